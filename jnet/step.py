"""One training step, visible and jitted: what `fit` runs, and what anyone's own loop can call.

The step is a pure function `(state, batch) -> (state, metrics)`. Everything that changes is in the state: parameters,
running statistics, optimizer state, the count of steps and the key from which each step draws its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jnet.compiling import jit, loop_options
from jnet.custom_vjp import softmax_cross_entropy
from jnet.layers import Layer
from jnet.optim import Optimizer, apply_updates
from jnet.parallel import Placement

Batch = tuple[Any, Any]  # images (N, H, W, C) and labels (N,)
Loss = Callable[[Any, Any], Array]  # (logits, labels) -> scalar, the mean over the batch
Metrics = dict[str, Array]

_UNCHECKED: dict[str, Any] = {"mode": "promise_in_bounds", "wrap_negative_indices": False}


class TrainState(NamedTuple):
    """All that a training step reads and replaces."""

    step: Array  # () int32: steps taken so far
    params: Any  # float32 leaves named w, b, gamma, beta
    model_state: Any  # running statistics
    opt_state: Any  # whatever the optimizer keeps
    key: Array  # stays as it is: step t draws from fold_in(key, t)


def create_state(model: Layer, optimizer: Optimizer, key: Array, input_shape: tuple[int, ...]) -> TrainState:
    """Initialise `model` for inputs of `input_shape` (no batch axis) and `optimizer` for its parameters."""
    init_key, step_key = jax.random.split(key)
    params, model_state, _ = model.init(init_key, tuple(input_shape))
    return TrainState(jnp.zeros((), jnp.int32), params, model_state, optimizer.init(params), step_key)


def init_shapes(model: Layer, input_shape: tuple[int, ...]) -> tuple[Any, Any, tuple[int, ...]]:
    """The shapes and dtypes of what `model.init` would make for `input_shape`, and its output shape; none is made."""
    output_shapes: list[tuple[int, ...]] = []

    def init(key: Array):
        params, model_state, output_shape = model.init(key, tuple(input_shape))
        output_shapes.append(tuple(output_shape))
        return params, model_state

    params, model_state = jax.eval_shape(init, jax.random.key(0))
    return params, model_state, output_shapes[0]


def make_train_step(
    model: Layer,
    optimizer: Optimizer,
    loss: Loss = softmax_cross_entropy,
    reg: float = 0.0,
    placement: Placement = Placement(),  # noqa: B008 (immutable)
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Compile one step: `step(state, (x, y)) -> (state, {"loss", "accuracy"})`, both of the batch before the update.

    The objective is `loss` plus `0.5 * reg * sum(w**2)` over the leaves named `w`. The state is donated: its buffers
    are reused for the result, so keep no reference to it. On several devices the new state stays where `placement`
    has put the old one.
    """
    step = _train_step(model, optimizer, loss, reg, placement)
    return jit(step, donate_argnums=0)


def make_train_epoch(
    model: Layer,
    optimizer: Optimizer,
    loss: Loss = softmax_cross_entropy,
    reg: float = 0.0,
    placement: Placement = Placement(),  # noqa: B008 (immutable)
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Compile many steps as one XLA call: `epoch(state, (xs, ys))` scans over stacks `(steps, batch, ...)`.

    The steps are those of `make_train_step`, with no Python between them; each metric comes back as `(steps,)`.
    """
    step = _train_step(model, optimizer, loss, reg, placement)
    options, unroll = loop_options(contains(model, "conv2d"))

    def epoch(state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        return lax.scan(step, state, batches, unroll=unroll)

    return jit(epoch, donate_argnums=0, options=options)


def make_train_rows(
    model: Layer,
    optimizer: Optimizer,
    loss: Loss = softmax_cross_entropy,
    reg: float = 0.0,
    placement: Placement = Placement(),  # noqa: B008 (immutable)
) -> Callable[[TrainState, Batch, Any], tuple[TrainState, Metrics]]:
    """Compile steps on images that lie on the device: `run(state, (images, labels), rows)`.

    `rows: (batch,)` is one step, `(steps, batch)` a scan over so many; a step gathers its own batch, so only the
    numbers of the rows come from Python. They are not checked: each must be one of the images'.
    """
    step = _train_step(model, optimizer, loss, reg, placement)
    options, unroll = loop_options(contains(model, "conv2d"))

    def one(state: TrainState, split: Batch, rows: Array) -> tuple[TrainState, Metrics]:
        images, labels = (array.at[rows].get(**_UNCHECKED) for array in split)
        return step(state, (images, labels))

    def many(state: TrainState, split: Batch, rows: Array) -> tuple[TrainState, Metrics]:
        return lax.scan(lambda state, rows: one(state, split, rows), state, rows, unroll=unroll)

    jitted = {1: jit(one, donate_argnums=0), 2: jit(many, donate_argnums=0, options=options)}
    return lambda state, split, rows: jitted[rows.ndim](state, split, rows)


def make_eval_step(model: Layer, loss: Loss = softmax_cross_entropy):
    """Compile `evaluate(params, model_state, (x, y, counted)) -> {"loss", "correct"}`, sums over the rows to count.

    `counted: (N,)` is False on the rows that only fill up a batch; they change nothing.
    """

    def evaluate(params, model_state, batch: tuple[Any, Any, Any]) -> Metrics:
        x, y, counted = batch
        logits, _ = model.apply(params, model_state, x)
        row_losses = jax.vmap(lambda row, label: loss(row[None], label[None]))(logits, y)
        return {
            "loss": jnp.sum(jnp.where(counted, row_losses, 0)),
            "correct": jnp.sum(counted & _is_correct(logits, y)),
        }

    return jit(evaluate)


def smoothed_cross_entropy(epsilon: float) -> Loss:
    r"""Softmax cross-entropy with labels smoothed: $1 - \epsilon$ on the label and $\epsilon$ shared by all classes.

    With $\ell_k = \log \sum_j e^{s_j} - s_k$ a row's loss is $(1-\epsilon)\,\ell_y + \frac{\epsilon}{C}\sum_k\ell_k$.
    All $\ell_k$ share their first term, so this is $\ell_y + \epsilon\,(s_y - \langle s\rangle)$: the ordinary loss
    and a linear function of the scores. A class masked by $-\infty$ has a share of the labels: the loss is $+\infty$.

    Reference: Szegedy et al. 2016, arXiv:1512.00567, section 7.
    """

    def loss(logits: Array, labels: Array) -> Array:
        wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        classes = jnp.arange(logits.shape[1], dtype=labels.dtype)
        own = jnp.sum(jnp.where(classes[None, :] == labels[:, None], wide, 0), axis=1)
        return softmax_cross_entropy(logits, labels) + epsilon * jnp.mean(own - jnp.mean(wide, axis=1))

    return loss


def contains(layer: Layer, name: str) -> bool:
    """Whether a layer of this name is in `layer`."""
    return layer.name == name or any(contains(child, name) for child in layer.children.values())


def _train_step(model: Layer, optimizer: Optimizer, loss: Loss, reg: float, placement: Placement):
    """The step before it is jitted."""

    def objective(params, model_state, batch: Batch, key: Array):
        x, y = batch
        logits, model_state = model.apply(params, model_state, x, train=True, key=key)
        total = loss(logits, y)
        if reg:
            total = total + 0.5 * reg * _sum_of_squared_weights(params)
        return total, (model_state, jnp.mean(_is_correct(logits, y), dtype=jnp.float32))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        value_and_grad = jax.value_and_grad(objective, has_aux=True)
        (total, (model_state, accuracy)), grads = value_and_grad(state.params, state.model_state, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = apply_updates(state.params, updates)
        state = TrainState(state.step + 1, params, model_state, opt_state, state.key)
        return placement.keep(state), {"loss": total, "accuracy": accuracy}

    return step


def _is_correct(logits: Array, labels: Array) -> Array:
    """Which rows have their largest logit at the label: `(N,)` bool."""
    return jnp.argmax(logits, axis=-1) == labels


def _sum_of_squared_weights(params: Any) -> Any:
    """Sum of squares over the leaves named `w`; biases, scales and shifts are not regularised."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    weights = [leaf for path, leaf in leaves if getattr(path[-1], "key", None) == "w"]
    return sum(jnp.sum(jnp.square(w)) for w in weights)
