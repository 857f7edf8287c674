"""Training from start to finish: `fit`, and the pieces of it that other loops can use."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jnet.custom_vjp import softmax_cross_entropy
from jnet.data import Dataset, Split, check_split, epoch_order
from jnet.layers import Layer
from jnet.optim import EmaState, Optimizer, averaged_params
from jnet.step import (
    COMPILER_OPTIONS,
    Batch,
    Loss,
    TrainState,
    compiler_options,
    create_state,
    init_shapes,
    make_eval_step,
    make_train_epoch,
    make_train_step,
)

__all__ = [
    "COMPILER_OPTIONS",
    "Best",
    "FitResult",
    "Progress",
    "TrainState",
    "compiler_options",
    "create_state",
    "evaluate",
    "fit",
    "init_shapes",
    "make_eval_step",
    "make_train_epoch",
    "make_train_step",
    "steps_in_one_call",
]

EVAL_BATCH = 250  # images in a batch that only looks; small networks gain nothing from more
SCAN_BYTES = 64 * 2**20  # images in one scanned call: enough to make the cost of a call vanish

Row = dict[str, float]  # epoch, step, train_loss, train_accuracy, val_loss, val_accuracy


class Best(NamedTuple):
    """The parameters of the epoch with the highest validation accuracy; the lower loss decides between equals."""

    params: Any
    model_state: Any
    epoch: int  # 0: the initial parameters, before any validation
    val_accuracy: float
    val_loss: float


class Progress(NamedTuple):
    """How far a run is; with the state and the seed it says all that is to come."""

    epoch: int = 0  # epochs finished
    batch: int = 0  # batches done in the epoch under way
    loss_sum: float = 0.0  # over those batches
    accuracy_sum: float = 0.0
    history: tuple[Row, ...] = ()  # a row for each epoch finished


class Report(NamedTuple):
    """What `fit` tells its caller after each call of the compiled step."""

    epoch: int  # the epoch under way, from 1
    step: int  # steps done since the beginning
    steps: int  # steps of the whole run
    loss: float  # of the last batch
    accuracy: float
    row: Row | None  # the history's new row, where this step was the last of its epoch


class FitResult(NamedTuple):
    """What a run leaves."""

    state: TrainState
    history: list[Row]
    best: Best


def fit(
    model: Layer,
    dataset: Dataset,
    optimizer: Optimizer,
    *,
    epochs: int = 10,
    batch_size: int = 50,
    seed: int = 0,
    loss: Loss = softmax_cross_entropy,
    reg: float = 0.0,
    steps_per_call: int | None = None,
    report: Callable[[Report], None] | None = None,
) -> FitResult:
    """Train `model` on shuffled minibatches, validate after each epoch, keep the best parameters.

    `seed` decides everything: the initial parameters, the order of the images, dropout. An epoch has
    `len(train) // batch_size` steps, all of one shape, so nothing is compiled after the first ones; the images that
    fill no batch are others in each epoch. `steps_per_call` many run in one XLA call (None: `steps_in_one_call`).

    Raises `ValueError` for data that cannot be learnt from (empty, not finite, labels out of range), and
    `FloatingPointError`, naming the step, at the first loss that is not finite.
    """
    _check_arguments(epochs, batch_size, steps_per_call)
    check_dataset(dataset, batch_size)
    input_shape = dataset.train.images.shape[1:]
    check_model(model, input_shape, dataset.num_classes)
    if steps_per_call is None:
        steps_per_call = steps_in_one_call(model, dataset.train, batch_size)

    state = create_state(model, optimizer, jax.random.key(seed), input_shape)
    best = Best(_copy(state.params), _copy(state.model_state), epoch=0, val_accuracy=-1.0, val_loss=math.inf)
    progress = Progress()
    step = make_train_step(model, optimizer, loss, reg)
    scan = make_train_epoch(model, optimizer, loss, reg)
    eval_step = make_eval_step(model, loss)
    steps_per_epoch = len(dataset.train.labels) // batch_size

    while progress.epoch < epochs:
        batches = _batches(dataset.train, batch_size, seed, progress, steps_per_call)
        batch = next(batches)
        while batch is not None:
            run = scan if batch[1].ndim == 2 else step
            state, metrics = run(state, batch)  # returns at once ...
            batch = next(batches, None)  # ... so that the next batch is cut while this one is learnt
            progress = _add(progress, metrics, steps_per_epoch)
            if batch is None:
                params = params_to_judge(state)
                val = _evaluate(eval_step, params, state.model_state, dataset.val)
                progress = _finish_epoch(progress, steps_per_epoch, val)
                if (val["accuracy"], -val["loss"]) > (best.val_accuracy, -best.val_loss):
                    kept = _copy(params), _copy(state.model_state)
                    best = Best(kept[0], kept[1], progress.epoch, val["accuracy"], val["loss"])
            if report is not None:
                report(_report(progress, metrics, steps_per_epoch, epochs))
    return FitResult(state, list(progress.history), best)


def evaluate(model: Layer, params: Any, model_state: Any, split: Split, loss: Loss = softmax_cross_entropy) -> Row:
    """Mean loss and accuracy over a whole split: `{"loss", "accuracy"}`, each image counted once."""
    return _evaluate(make_eval_step(model, loss), params, model_state, split)


def params_to_judge(state: TrainState) -> Any:
    """The parameters that validation and the final test use: their moving average where the optimizer keeps one."""
    nodes = jax.tree.leaves(state.opt_state, is_leaf=lambda node: isinstance(node, EmaState))
    if any(isinstance(node, EmaState) for node in nodes):
        return averaged_params(state.opt_state)
    return state.params


def steps_in_one_call(model: Layer, train: Split, batch_size: int) -> int:
    """How many steps `fit` gives XLA in one call: the one visible choice.

    A scan saves the cost of a call for each step, as many steps as hold `SCAN_BYTES` of images. On a CPU XLA's
    convolution gradients collapse inside a scan (jax#12868), so a model with convolutions is called step by step there.
    """
    if jax.default_backend() == "cpu" and _contains(model, "conv2d"):
        return 1
    batch_bytes = batch_size * math.prod(train.images.shape[1:]) * train.images.itemsize
    return max(1, min(len(train.labels) // batch_size, SCAN_BYTES // batch_bytes))


def check_dataset(dataset: Dataset, batch_size: int) -> None:
    """Raise `ValueError` unless every split can be learnt from and the training split fills a batch."""
    for name in ("train", "val", "test"):
        check_split(getattr(dataset, name), dataset.num_classes, name)
    if batch_size > len(dataset.train.labels):
        images = len(dataset.train.labels)
        raise ValueError(f"batch_size: {batch_size}; must be from 1 to the number of training images, {images}")


def check_model(model: Layer, input_shape: tuple[int, ...], num_classes: int) -> None:
    """Raise `ValueError` unless `model` makes `num_classes` scores of an input of `input_shape` (no batch axis)."""
    _, _, scores = init_shapes(model, input_shape)
    if scores != (num_classes,):
        raise ValueError(f"model: makes {scores} of an input {input_shape}; must make ({num_classes},), its classes")


def _check_arguments(epochs: int, batch_size: int, steps_per_call: int | None) -> None:
    for name, value in {"epochs": epochs, "batch_size": batch_size, "steps_per_call": steps_per_call}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}: {value}; must be 1 or more")


def _batches(split: Split, batch_size: int, seed: int, progress: Progress, steps_per_call: int) -> Iterator[Batch]:
    """What is left of the epoch: stacks `(steps_per_call, batch, ...)`, then single batches where no stack is full.

    The stacks begin at multiples of `steps_per_call`, so a run that goes on in the middle makes the very same calls.
    """
    steps = len(split.labels) // batch_size
    order = epoch_order(len(split.labels), seed, progress.epoch)[: steps * batch_size].reshape(steps, batch_size)
    position = progress.batch
    while position < steps:
        stacked = steps_per_call > 1 and position + steps_per_call <= steps
        rows = order[position : position + steps_per_call] if stacked else order[position]
        yield split.images[rows], split.labels[rows]
        position += steps_per_call if stacked else 1


def _add(progress: Progress, metrics: dict[str, Any], steps_per_epoch: int) -> Progress:
    """Count the steps of one call; raise at the first loss that is not finite."""
    losses = np.atleast_1d(np.asarray(metrics["loss"], np.float64)).tolist()
    accuracies = np.atleast_1d(np.asarray(metrics["accuracy"], np.float64)).tolist()
    for loss, accuracy in zip(losses, accuracies, strict=True):
        if not math.isfinite(loss):
            step = progress.epoch * steps_per_epoch + progress.batch + 1
            raise FloatingPointError(
                f"loss: {loss} at step {step}, epoch {progress.epoch + 1}; must be finite: try a lower learning rate"
            )
        progress = progress._replace(
            batch=progress.batch + 1,
            loss_sum=progress.loss_sum + loss,
            accuracy_sum=progress.accuracy_sum + accuracy,
        )
    return progress


def _finish_epoch(progress: Progress, steps_per_epoch: int, val: Row) -> Progress:
    epoch = progress.epoch + 1
    row = {
        "epoch": epoch,
        "step": epoch * steps_per_epoch,
        "train_loss": progress.loss_sum / steps_per_epoch,
        "train_accuracy": progress.accuracy_sum / steps_per_epoch,
        "val_loss": val["loss"],
        "val_accuracy": val["accuracy"],
    }
    return Progress(epoch=epoch, history=(*progress.history, row))


def _report(progress: Progress, metrics: dict[str, Any], steps_per_epoch: int, epochs: int) -> Report:
    finished = progress.batch == 0
    return Report(
        epoch=progress.epoch if finished else progress.epoch + 1,
        step=progress.epoch * steps_per_epoch + progress.batch,
        steps=epochs * steps_per_epoch,
        loss=float(np.ravel(metrics["loss"])[-1]),
        accuracy=float(np.ravel(metrics["accuracy"])[-1]),
        row=progress.history[-1] if finished else None,
    )


def _evaluate(eval_step, params: Any, model_state: Any, split: Split) -> Row:
    """Walk a split in batches of one size, the last one filled up with rows that are not counted."""
    rows = len(split.labels)
    size = min(EVAL_BATCH, rows)
    total, correct = 0.0, 0
    for first in range(0, rows, size):
        index = np.arange(first, first + size)
        counted = index < rows
        index = np.minimum(index, rows - 1)
        sums = eval_step(params, model_state, (split.images[index], split.labels[index], counted))
        total += float(sums["loss"])
        correct += int(sums["correct"])
    return {"loss": total / rows, "accuracy": correct / rows}


def _copy(tree: Any) -> Any:
    """New buffers: those of the state are donated to the next step."""
    return jax.tree.map(jnp.copy, tree)


def _contains(layer: Layer, name: str) -> bool:
    return layer.name == name or any(_contains(child, name) for child in layer.children.values())
