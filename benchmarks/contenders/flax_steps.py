"""Flax NNX with Optax, in its fastest form: the module is split once, the step is a pure function of its leaves."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks.contenders import jax_steps
from benchmarks.workloads import CLASSES, KEEP, LEARNING_RATE, MOMENTUM, Workload


class Block(nnx.Module):
    """A basic residual block: two 3x3 convolutions, a projection where the shape changes."""

    def __init__(self, features_in: int, features: int, stride: int, dtype: Any, rngs: nnx.Rngs):
        options = {"use_bias": False, "dtype": dtype, "rngs": rngs}
        self.conv1 = nnx.Conv(features_in, features, (3, 3), strides=stride, padding=1, **options)
        self.norm1 = norm(features, dtype, rngs)
        self.conv2 = nnx.Conv(features, features, (3, 3), padding=1, **options)
        self.norm2 = norm(features, dtype, rngs)
        self.project = nnx.data(None)
        if stride != 1 or features_in != features:
            self.project = nnx.Sequential(
                nnx.Conv(features_in, features, (1, 1), strides=stride, **options), norm(features, dtype, rngs)
            )

    def __call__(self, x: jax.Array) -> jax.Array:
        out = nnx.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        return nnx.relu(out + (x if self.project is None else self.project(x)))


def norm(features: int, dtype: Any, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(features, momentum=MOMENTUM, dtype=dtype, rngs=rngs)


def pool(x: jax.Array) -> jax.Array:
    return nnx.max_pool(x, (2, 2), (2, 2))


def flatten(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1)


def mean(x: jax.Array) -> jax.Array:
    return x.mean((1, 2))


def network(workload: Workload, dtype: Any, rngs: nnx.Rngs) -> nnx.Sequential:
    """The workload's layers."""
    widths, shape = workload.widths, workload.input_shape
    layers: list = []
    if workload.network == "fc":
        for a, b in zip((shape[0], *widths), widths, strict=False):
            layers += [nnx.Linear(a, b, dtype=dtype, rngs=rngs), norm(b, dtype, rngs), nnx.relu]
            layers += [nnx.Dropout(1 - KEEP, rngs=rngs)]
        features = widths[-1]
    elif workload.network == "three_layer":
        filters, hidden = widths
        size = filters * (shape[0] // 2) * (shape[1] // 2)
        layers += [nnx.Conv(shape[2], filters, (7, 7), dtype=dtype, rngs=rngs), nnx.relu, pool, flatten]
        layers += [nnx.Linear(size, hidden, dtype=dtype, rngs=rngs), nnx.relu]
        features = hidden
    elif workload.network == "vgg":
        for i, (a, b) in enumerate(zip((shape[2], *widths), widths, strict=False)):
            layers += [nnx.Conv(a, b, (3, 3), use_bias=False, dtype=dtype, rngs=rngs), norm(b, dtype, rngs), nnx.relu]
            layers += [pool] if i % 2 else []
        layers += [flatten]
        shrink = 2 ** (len(widths) // 2)
        features = widths[-1] * (shape[0] // shrink) * (shape[1] // shrink)
    else:
        first = nnx.Conv(shape[2], widths[0], (3, 3), padding=1, use_bias=False, dtype=dtype, rngs=rngs)
        layers += [first, norm(widths[0], dtype, rngs), nnx.relu]
        for stage, (a, b) in enumerate(zip((widths[0], *widths), widths, strict=False)):
            layers += [Block(a, b, 2 if stage else 1, dtype, rngs)]
            layers += [Block(b, b, 1, dtype, rngs) for _ in range(workload.depth - 1)]
        layers += [mean]
        features = widths[-1]
    return nnx.Sequential(*layers, nnx.Linear(features, CLASSES, dtype=dtype, rngs=rngs))


def build(workload: Workload, variants: frozenset[str], precision: str) -> jax_steps.JaxContender:
    """The contender."""
    dtype = jax_steps.set_precision(precision)
    model = network(workload, dtype, nnx.Rngs(0))
    optimizer = optax.adam(LEARNING_RATE)
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss_of(params: Any, rest: Any, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        model = nnx.merge(graph, params, rest, copy=True)
        logits = model(x).astype(jnp.float32)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, nnx.split(model, nnx.Param, ...)[2]

    def step(state: Any, data: Any) -> Any:
        params, rest, opt_state = state
        (loss, rest), grads = jax.value_and_grad(loss_of, has_aux=True)(params, rest, *data)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), rest, opt_state), loss

    data = jax_steps.device_batch(workload, dtype)
    return jax_steps.JaxContender(
        jax_steps.jit(step, variants, workload),
        (params, rest, optimizer.init(params)),
        data,
        params,
        "scan" in variants,
    )
