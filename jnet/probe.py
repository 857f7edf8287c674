"""Look inside a training step: what each layer gives, what comes back to it, and where a value stopped being finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jnet.adapt import mixed_precision
from jnet.layers import Layer, residual, serial
from jnet.step import Batch, Loss, TrainState

Record = Callable[[str, Array], Array]  # (path of a layer, what it gives) -> what goes on in its place


class Seen(NamedTuple):
    """What one layer did in one training step, in norms or as arrays."""

    activation: Any  # what it gave
    gradient: Any  # of the loss, with respect to what it gave
    weights: Any  # of the loss, with respect to its parameters


def layer_norms(model: Layer, loss: Loss) -> Callable[[TrainState, Batch], dict[str, Seen]]:
    """Compile `(state, batch) -> {path of a layer: Euclidean norms}`, of the step that `state` would take next."""

    @jax.jit
    def norms(state: TrainState, batch: Batch) -> dict[str, Seen]:
        _, seen = _look(model, loss, state, batch)
        return {name: Seen(*(_norm(part) for part in parts)) for name, parts in seen.items()}

    return norms


def first_not_finite(model: Layer, loss: Loss, state: TrainState, batch: Batch) -> str | None:
    """Where the first value that is not finite appears in the step that `state` would take: pass and layer, or None.

    The forward pass is looked through from the first layer on, then the backward pass from the last.
    """
    value, seen = _look(model, loss, state, batch)
    for name, parts in seen.items():
        if not _finite(parts.activation):
            return f"the forward pass of {name}"
    if not _finite(value):
        return "the forward pass of the loss"
    later = "the loss"
    for name, parts in reversed(seen.items()):
        if not _finite(parts.gradient):
            return f"the backward pass of {later}"
        if not _finite(parts.weights):
            return f"the backward pass of {name}"
        later = name
    return None


def recorded(layer: Layer, record: Record, path: str = "") -> Layer:
    """The same layer, calling `record` on what each layer inside gives; parameters are interchangeable."""
    inner = {key: recorded(child, record, f"{path}/{key}" if path else key) for key, child in layer.children.items()}
    if inner:
        same = serial(*inner.values()) if layer.name == "serial" else residual(**inner)
        return mixed_precision(same, layer.hyper["dtype"]) if "dtype" in layer.hyper else same

    def apply(params, state, x, *, train=False, key=None):
        out, state = layer.apply(params, state, x, train=train, key=key)
        return record(path or layer.name, out), state

    return layer._replace(apply=apply)


def _look(model: Layer, loss: Loss, state: TrainState, batch: Batch) -> tuple[Array, dict[str, Seen]]:
    """The loss of the step that `state` would take, and what each layer sees in it, in the order of the forward pass.

    A zero added to what a layer gives has the gradient of what it gives.
    """
    x, y = batch
    key = jax.random.fold_in(state.key, state.step)

    def forward(params: Any, zeros: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
        given: dict[str, Array] = {}

        def record(path: str, out: Array) -> Array:
            given[path] = out
            return out + zeros[path] if path in zeros else out

        logits, _ = recorded(model, record).apply(params, state.model_state, x, train=True, key=key)
        return loss(logits, y), given

    zeros: dict[str, Any] = {}  # in the order of the forward pass; a dict that leaves a transformation is sorted

    def shapes(params: Any) -> None:
        zeros.update({name: jax.ShapeDtypeStruct(out.shape, out.dtype) for name, out in forward(params, {})[1].items()})

    jax.eval_shape(shapes, state.params)
    zeros = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in zeros.items()}
    run = jax.value_and_grad(forward, argnums=(0, 1), has_aux=True)
    (value, given), (weights, gradients) = run(state.params, zeros)
    return value, {name: Seen(given[name], gradients[name], _owned(model, weights, name)) for name in zeros}


def _owned(model: Layer, tree: Any, path: str) -> Any:
    """The part of a parameter tree that the layer at `path` owns; empty where it has none."""
    for key in path.split("/") if model.children else ():
        tree = tree.get(key, {})
    return tree


def _norm(tree: Any) -> Array:
    leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum([jnp.sum(jnp.square(leaf)) for leaf in leaves], start=jnp.zeros((), jnp.float32)))


def _finite(tree: Any) -> bool:
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(tree))
