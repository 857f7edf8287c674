"""Equinox with Optax: channels first, one image at a time under `vmap`, as its documentation writes it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from benchmarks.contenders import jax_steps
from benchmarks.workloads import CLASSES, KEEP, LEARNING_RATE, MOMENTUM, Workload


class Keys:
    """An endless supply of keys."""

    def __init__(self) -> None:
        self._key = jax.random.key(0)

    def __call__(self) -> jax.Array:
        self._key, key = jax.random.split(self._key)
        return key


class Block(eqx.Module):
    """A basic residual block: two 3x3 convolutions, a projection where the shape changes."""

    convs: list[eqx.nn.Conv2d]
    norms: list[eqx.nn.BatchNorm]

    def __init__(self, features_in: int, features: int, stride: int, keys: Keys):
        self.convs = [
            eqx.nn.Conv2d(features_in, features, 3, stride, padding=1, use_bias=False, key=keys()),
            eqx.nn.Conv2d(features, features, 3, padding=1, use_bias=False, key=keys()),
        ]
        if stride != 1 or features_in != features:
            self.convs.append(eqx.nn.Conv2d(features_in, features, 1, stride, use_bias=False, key=keys()))
        self.norms = [norm(features) for _ in self.convs]

    def __call__(self, x: jax.Array, state: eqx.nn.State) -> tuple[jax.Array, eqx.nn.State]:
        out, state = self.norms[0](self.convs[0](x), state)
        out, state = self.norms[1](self.convs[1](jax.nn.relu(out)), state)
        if len(self.convs) == 3:
            x, state = self.norms[2](self.convs[2](x), state)
        return jax.nn.relu(out + x), state


class Network(eqx.Module):
    """Layers in a row; some take the state, dropout takes a key, the rest are plain functions."""

    layers: list

    def __call__(self, x: jax.Array, state: eqx.nn.State, key: jax.Array) -> tuple[jax.Array, eqx.nn.State]:
        for i, layer in enumerate(self.layers):
            if isinstance(layer, (eqx.nn.BatchNorm, Block)):
                x, state = layer(x, state)
            elif isinstance(layer, eqx.nn.Dropout):
                x = layer(x, key=jax.random.fold_in(key, i))
            else:
                x = layer(x)
        return x, state


def norm(features: int) -> eqx.nn.BatchNorm:
    return eqx.nn.BatchNorm(features, axis_name="batch", momentum=MOMENTUM, mode="batch")


def mean(x: jax.Array) -> jax.Array:
    return x.mean((1, 2))


def layers(workload: Workload, keys: Keys) -> list:
    """The workload's layers."""
    widths, shape = workload.widths, workload.input_shape
    row: list = []
    if workload.network == "fc":
        for a, b in zip((shape[0], *widths), widths, strict=False):
            row += [eqx.nn.Linear(a, b, key=keys()), norm(b), jax.nn.relu, eqx.nn.Dropout(1 - KEEP)]
        features = widths[-1]
    elif workload.network == "three_layer":
        filters, hidden = widths
        size = filters * (shape[0] // 2) * (shape[1] // 2)
        row += [eqx.nn.Conv2d(shape[2], filters, 7, padding=3, key=keys()), jax.nn.relu, eqx.nn.MaxPool2d(2, 2)]
        row += [jnp.ravel, eqx.nn.Linear(size, hidden, key=keys()), jax.nn.relu]
        features = hidden
    elif workload.network == "vgg":
        for i, (a, b) in enumerate(zip((shape[2], *widths), widths, strict=False)):
            row += [eqx.nn.Conv2d(a, b, 3, padding=1, use_bias=False, key=keys()), norm(b), jax.nn.relu]
            row += [eqx.nn.MaxPool2d(2, 2)] if i % 2 else []
        row += [jnp.ravel]
        shrink = 2 ** (len(widths) // 2)
        features = widths[-1] * (shape[0] // shrink) * (shape[1] // shrink)
    else:
        row += [eqx.nn.Conv2d(shape[2], widths[0], 3, padding=1, use_bias=False, key=keys()), norm(widths[0])]
        row += [jax.nn.relu]
        for stage, (a, b) in enumerate(zip((widths[0], *widths), widths, strict=False)):
            row += [Block(a, b, 2 if stage else 1, keys)]
            row += [Block(b, b, 1, keys) for _ in range(workload.depth - 1)]
        row += [mean]
        features = widths[-1]
    return [*row, eqx.nn.Linear(features, CLASSES, key=keys())]


def build(workload: Workload, variants: frozenset[str], precision: str) -> jax_steps.JaxContender:
    """The contender."""
    if precision == "bfloat16":
        raise ValueError("equinox has no mixed-precision layers: a bfloat16 row for it would compare another thing")
    dtype = jax_steps.set_precision(precision)
    model, model_state = eqx.nn.make_with_state(Network)(layers(workload, Keys()))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    optimizer = optax.adam(LEARNING_RATE)

    def loss_of(params: Any, state: Any, key: jax.Array, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        model = eqx.combine(params, static)
        keys = jax.random.split(key, x.shape[0])
        forward = jax.vmap(model, in_axes=(0, None, 0), out_axes=(0, None), axis_name="batch")
        logits, state = forward(x, state, keys)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), state

    def step(state: Any, data: Any) -> Any:
        params, model_state, opt_state, key = state
        key, now = jax.random.split(key)
        (loss, model_state), grads = jax.value_and_grad(loss_of, has_aux=True)(params, model_state, now, *data)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), model_state, opt_state, key), loss

    images, labels = jax_steps.device_batch(workload, dtype)
    data = (images.transpose(0, 3, 1, 2) if images.ndim == 4 else images, labels)
    return jax_steps.JaxContender(
        jax_steps.jit(step, variants, workload),
        (params, model_state, optimizer.init(params), jax.random.PRNGKey(0)),
        data,
        params,
        "scan" in variants,
    )
