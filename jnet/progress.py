"""How far a run is: plain data, and the pure functions that move it on."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Row = dict[str, float]  # epoch, step, train_loss, train_accuracy, val_loss, val_accuracy


class Order(NamedTuple):
    """What decides which images a step sees; a run goes on only with the same."""

    rows: int
    batch_size: int
    seed: int

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.rows // self.batch_size


class Progress(NamedTuple):
    """How far a run is; with the state and the order it says all that is to come."""

    epoch: int = 0  # epochs finished
    batch: int = 0  # batches done in the epoch under way
    loss_sum: float = 0.0  # over those batches
    accuracy_sum: float = 0.0
    history: tuple[Row, ...] = ()  # a row for each epoch finished

    def step(self, order: Order) -> int:
        """Steps done since the beginning."""
        return self.epoch * order.steps + self.batch


class Best(NamedTuple):
    """The parameters of the epoch with the highest validation accuracy; the lower loss decides between equals."""

    params: Any
    model_state: Any
    epoch: int  # 0: the initial parameters, before any validation
    val_accuracy: float
    val_loss: float


class Report(NamedTuple):
    """What `fit` tells its caller after each call of the compiled step."""

    epoch: int  # the epoch of this step, from 1
    step: int  # steps done since the beginning
    steps: int  # steps of the whole run
    loss: float  # of the last batch
    accuracy: float
    finished: bool  # whether this step was the last of its epoch
    history: tuple[Row, ...]  # a row for each epoch finished
    state: Any  # the TrainState after the step; its buffers are gone when `fit` goes on


def add_steps(progress: Progress, order: Order, metrics: dict[str, Any]) -> Progress:
    """Count the steps of one call; raise `FloatingPointError` at the first loss that is not finite."""
    losses, accuracies = (np.ravel(metrics[name]).tolist() for name in ("loss", "accuracy"))
    batch, loss_sum, accuracy_sum = progress.batch, progress.loss_sum, progress.accuracy_sum
    for loss, accuracy in zip(losses, accuracies, strict=True):
        batch += 1
        if not math.isfinite(loss):
            where = f"step {progress._replace(batch=batch).step(order)}, epoch {progress.epoch + 1}"
            raise FloatingPointError(f"loss: {loss} at {where}; must be finite: try a lower learning rate")
        loss_sum += loss
        accuracy_sum += accuracy
    return progress._replace(batch=batch, loss_sum=loss_sum, accuracy_sum=accuracy_sum)


def finish_epoch(progress: Progress, order: Order, val: Row) -> Progress:
    """Add the epoch's row to the history and begin the next."""
    epoch = progress.epoch + 1
    row = {
        "epoch": epoch,
        "step": epoch * order.steps,
        "train_loss": progress.loss_sum / order.steps,
        "train_accuracy": progress.accuracy_sum / order.steps,
        "val_loss": val["loss"],
        "val_accuracy": val["accuracy"],
    }
    return Progress(epoch=epoch, history=(*progress.history, row))


def better(best: Best, params: Any, model_state: Any, row: Row) -> Best:
    """The better of `best` and an epoch's parameters, in buffers of their own: those of a state are donated."""
    if (row["val_accuracy"], -row["val_loss"]) <= (best.val_accuracy, -best.val_loss):
        return best
    return Best(copied(params), copied(model_state), int(row["epoch"]), row["val_accuracy"], row["val_loss"])


def report_of(progress: Progress, order: Order, metrics: dict[str, Any], epochs: int, state: Any) -> Report:
    """What there is to tell after a call that had these metrics."""
    finished = progress.batch == 0
    return Report(
        epoch=progress.epoch if finished else progress.epoch + 1,
        step=progress.step(order),
        steps=epochs * order.steps,
        loss=float(np.ravel(metrics["loss"])[-1]),
        accuracy=float(np.ravel(metrics["accuracy"])[-1]),
        finished=finished,
        history=progress.history,
        state=state,
    )


def copied(tree: Any) -> Any:
    """The same arrays in new buffers."""
    return jax.tree.map(jnp.copy, tree)
