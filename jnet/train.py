"""Training from start to finish: `fit`, and the pieces of it that other loops can use."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from jnet.compiling import COMPILER_OPTIONS, compiler_options
from jnet.custom_vjp import softmax_cross_entropy
from jnet.data import Dataset, Split, check_split, epoch_order
from jnet.interrupt import Interrupted
from jnet.layers import Layer
from jnet.optim import EmaState, Optimizer, averaged_params
from jnet.parallel import Placement
from jnet.progress import Best, Order, Progress, Report, Row, add_steps, better, copied, finish_epoch, report_of
from jnet.step import (
    Batch,
    Loss,
    TrainState,
    contains,
    create_state,
    init_shapes,
    make_eval_step,
    make_train_epoch,
    make_train_rows,
    make_train_step,
    smoothed_cross_entropy,
)

if TYPE_CHECKING:
    from jnet.resume import Saver

__all__ = [
    "COMPILER_OPTIONS",
    "Best",
    "FitResult",
    "Interrupted",
    "Progress",
    "Report",
    "TrainState",
    "compiler_options",
    "create_state",
    "evaluate",
    "fit",
    "init_shapes",
    "make_eval_step",
    "make_train_epoch",
    "make_train_step",
    "smoothed_cross_entropy",
    "steps_in_one_call",
]

EVAL_BATCH = 250  # images in a batch that only looks; small networks gain nothing from more
SCAN_BYTES = 64 * 2**20  # images in one scanned call: enough to make the cost of a call vanish
HELD_BYTES = 2**30  # training images that are copied to the devices once; more are cut into batches on the host


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
    checkpoint_dir: str | Path | None = None,
    save_every: int | None = None,
    keep: int = 3,
    debug_nans: bool = False,
    placement: Placement = Placement(),  # noqa: B008 (immutable)
    report: Callable[[Report], None] | None = None,
) -> FitResult:
    """Train `model` on shuffled minibatches, validate after each epoch, keep the best parameters.

    `seed` decides everything: the initial parameters, the order of the images, dropout. An epoch has
    `len(train) // batch_size` steps, all of one shape, so nothing is compiled after the first ones; the images that
    fill no batch are others in each epoch. `steps_per_call` many run in one XLA call (None: `steps_in_one_call`).

    With `checkpoint_dir` the run goes on from the newest whole checkpoint in that folder, or begins there, and ends
    with the very bits of one that was never stopped. It saves after each `save_every` steps (None: at an epoch's end,
    not more often than each `resume.SAVE_SECONDS`) and at the end, keeps the newest `keep`, and answers SIGTERM and
    Ctrl-C by saving and raising `Interrupted`.

    With `placement` the batch is shared by the devices of a mesh (`jnet.parallel`); the run is the same but for
    rounding.

    `debug_nans` takes the steps one by one, and names the layer and the pass in which the first value that is not
    finite appeared.

    Raises `ValueError` for arguments out of range, data that cannot be learnt from (empty, not finite, labels out of
    range) and a checkpoint of another run; `FloatingPointError`, naming the step, at the first loss that is not finite.
    """
    _check_arguments(epochs=epochs, batch_size=batch_size, steps_per_call=steps_per_call, save_every=save_every)
    check_dataset(dataset, batch_size)
    placement.check_batch_size(batch_size)
    input_shape = dataset.train.images.shape[1:]
    check_model(model, input_shape, dataset.num_classes)
    order = Order(len(dataset.train.labels), batch_size, seed)
    if steps_per_call is None:
        steps_per_call = steps_in_one_call(model, dataset.train, batch_size)
    chunk = 1 if debug_nans else min(steps_per_call, save_every or order.steps)

    def begin(placement: Placement) -> tuple[TrainState, Best, Progress]:
        state = placement.state(create_state(model, optimizer, jax.random.key(seed), input_shape))
        best = Best(copied(state.params), copied(state.model_state), epoch=0, val_accuracy=-1.0, val_loss=math.inf)
        return state, best, Progress()

    run, cut = _runner(model, optimizer, loss, reg, placement, dataset.train, debug_nans)
    eval_step, val = make_eval_step(model, loss), dataset.val
    held = list(_eval_batches(val, placement)) if is_held(val, placement) else None
    if held and placement.mesh is None:  # with a mesh they are on its devices already
        held = jax.device_put(held)

    with _saver(checkpoint_dir, order, save_every, keep) as saver:
        state, best, progress = begin(placement) if saver is None else saver.restore(begin, placement)
        while progress.epoch < epochs:
            batches = map(cut, _rows(order, progress, chunk))
            batch = next(batches)
            while batch is not None:
                state, metrics = run(state, batch)  # returns at once ...
                batch = next(batches, None)  # ... so that the next batch is cut while this one is learnt
                progress = add_steps(progress, order, metrics)
                if batch is None:
                    params = params_to_judge(state)
                    seen = held or _eval_batches(val, placement)
                    sums = _evaluate(eval_step, params, state.model_state, len(val.labels), seen)
                    progress = finish_epoch(progress, order, sums)
                    best = better(best, params, state.model_state, progress.history[-1])
                if report is not None:
                    report(report_of(progress, order, metrics, epochs, state))
                if saver is not None:
                    saver.save_if_due(state, best, progress, last=progress.epoch == epochs)
    return FitResult(state, list(progress.history), best)


def evaluate(
    model: Layer,
    params: Any,
    model_state: Any,
    split: Split,
    loss: Loss = softmax_cross_entropy,
    placement: Placement = Placement(),  # noqa: B008 (immutable)
) -> Row:
    """Mean loss and accuracy over a whole split: `{"loss", "accuracy"}`, each image counted once."""
    batches = _eval_batches(split, placement)
    return _evaluate(make_eval_step(model, loss), params, model_state, len(split.labels), batches)


def params_to_judge(state: TrainState) -> Any:
    """The parameters that validation and the final test use: their moving average where the optimizer keeps one."""
    nodes = jax.tree.leaves(state.opt_state, is_leaf=lambda node: isinstance(node, EmaState))
    if any(isinstance(node, EmaState) for node in nodes):
        return averaged_params(state.opt_state)
    return state.params


def steps_in_one_call(model: Layer, train: Split, batch_size: int) -> int:
    """How many steps `fit` gives XLA in one call: the one visible choice.

    A scan saves the cost of a call for each step, as many steps as hold `SCAN_BYTES` of images. On a CPU a step with
    convolutions is long beside a call and takes as long in a scan as out of it: it is called by itself, so that
    progress is told, and a signal answered, after each.
    """
    if jax.default_backend() == "cpu" and contains(model, "conv2d"):
        return 1
    batch_bytes = batch_size * math.prod(train.images.shape[1:]) * train.images.itemsize
    return max(1, min(len(train.labels) // batch_size, SCAN_BYTES // batch_bytes))


def is_held(split: Split, placement: Placement = Placement()) -> bool:  # noqa: B008 (immutable)
    """Whether `fit` copies a split to the devices once: an array in memory whose copies there take `HELD_BYTES`.

    Batches are then gathered by the compiled step itself, and Python has next to nothing to do. What is larger, or
    lies in files, is cut into batches on the host, one call ahead of the device.
    """
    if not isinstance(split.images, np.ndarray):
        return False
    return split.images.nbytes * (len(jax.local_devices()) if placement.mesh is not None else 1) <= HELD_BYTES


def check_dataset(dataset: Dataset, batch_size: int) -> None:
    """Raise `ValueError` unless every split can be learnt from and the training split fills a batch."""
    for name in ("train", "val", "test"):
        check_split(getattr(dataset, name), dataset.num_classes, name)
    if batch_size > len(dataset.train.labels):
        images = len(dataset.train.labels)
        raise ValueError(f"batch_size: {batch_size}; must be from 1 to the number of training images, {images}")


def check_model(model: Layer, input_shape: tuple[int, ...], num_classes: int) -> None:
    """Raise `ValueError` unless `model` makes `num_classes` scores of an input of `input_shape` (no batch axis).

    It is traced once as in training, so that what its layers refuse is known before anything is done.
    """
    params, model_state, scores = init_shapes(model, input_shape)
    if scores != (num_classes,):
        raise ValueError(f"model: makes {scores} of an input {input_shape}; must make ({num_classes},), its classes")
    images = jax.ShapeDtypeStruct((2, *input_shape), np.float32)
    jax.eval_shape(lambda *args: model.apply(*args, train=True, key=jax.random.key(0)), params, model_state, images)


def _check_arguments(**counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}: {value}; must be 1 or more")


def _saver(
    folder: str | Path | None, order: Order, save_every: int | None, keep: int
) -> contextlib.AbstractContextManager[Saver | None]:
    if folder is None:
        return contextlib.nullcontext()
    from jnet.resume import Saver  # Orbax takes a second to import

    return Saver(folder, order, save_every, keep)


def _watched(step: Callable, model: Layer, loss: Loss) -> Callable:
    """The same step, which looks for the origin where the loss or a parameter is not finite."""
    from jnet.probe import first_not_finite

    def watched(state: TrainState, batch: Batch):
        before = copied(state)
        state, metrics = step(state, batch)
        if not all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves((metrics["loss"], state.params))):
            where = first_not_finite(model, loss, before, batch) or "the optimizer"
            raise FloatingPointError(f"step {int(before.step) + 1}: the first value that is not finite is in {where}")
        return state, metrics

    return watched


def _runner(
    model: Layer, optimizer: Optimizer, loss: Loss, reg: float, placement: Placement, train: Split, debug_nans: bool
) -> tuple[Callable[[TrainState, Any], tuple[TrainState, Any]], Callable[[np.ndarray], Any]]:
    """Make `run(state, batch) -> (state, metrics)`, and `cut(rows)`, which makes the batch of such rows."""
    settings = (model, optimizer, loss, reg, placement)

    def place(batch: Any, rows: np.ndarray) -> Any:
        return placement.batch(batch, axis=rows.ndim - 1)

    if is_held(train, placement) and not debug_nans:
        step, held = make_train_rows(*settings), placement.everywhere(train)
        return lambda state, rows: step(state, held, rows), lambda rows: place(rows, rows)
    step, epoch = make_train_step(*settings), make_train_epoch(*settings)
    if debug_nans:
        step = _watched(step, model, loss)
    return (
        lambda state, batch: (epoch if batch[1].ndim == 2 else step)(state, batch),
        lambda rows: place((train.images[rows], train.labels[rows]), rows),
    )


def _rows(order: Order, progress: Progress, chunk: int) -> Iterator[np.ndarray]:
    """What is left of the epoch: rows `(chunk, batch)`, then single batches `(batch,)` where no stack is full.

    The stacks begin at multiples of `chunk`, so a run that goes on in the middle makes the very same calls.
    """
    rows = epoch_order(order.rows, order.seed, progress.epoch)[: order.steps * order.batch_size].astype(np.int32)
    rows = rows.reshape(order.steps, order.batch_size)
    position = progress.batch
    while position < order.steps:
        stacked = chunk > 1 and position + chunk <= order.steps
        yield rows[position : position + chunk] if stacked else rows[position]
        position += chunk if stacked else 1


def _eval_batches(split: Split, placement: Placement) -> Iterator[Any]:
    """Cut a split in batches `(images, labels, counted)` of one size; rows that fill up the last are not counted."""
    rows = len(split.labels)
    size = -(-min(EVAL_BATCH, rows) // placement.size) * placement.size
    for first in range(0, rows, size):
        index = np.arange(first, first + size)
        counted = index < rows
        index = np.minimum(index, rows - 1)
        yield placement.batch((split.images[index], split.labels[index], counted))


def _evaluate(eval_step, params: Any, model_state: Any, rows: int, batches: Iterable[Any]) -> Row:
    """Mean loss and accuracy over the `rows` that the batches count."""
    total, correct = 0.0, 0
    for batch in batches:
        sums = jax.device_get(eval_step(params, model_state, batch))
        total += float(sums["loss"])
        correct += int(sums["correct"])
    return {"loss": total / rows, "accuracy": correct / rows}
