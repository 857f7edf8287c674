"""What a model is made of: shapes, parameters, multiply-adds, and what its backward pass keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jnet import custom_vjp, reference
from jnet.layers import Layer, with_ops
from jnet.step import init_shapes

Shape = tuple[int, ...]


class LayerSummary(NamedTuple):
    """One layer of a model; what it keeps is for a whole batch."""

    name: str  # the path of its parameters
    output_shape: Shape  # without the batch axis
    parameters: int
    multiply_adds: int  # of one image's forward pass; the backward pass needs twice as many
    kept_by_hand: int  # bytes that the layer alone keeps, its parameters not counted
    kept_by_autodiff: int  # the same for its plain twin


class Summary(NamedTuple):
    """All layers, and the whole: there, what two layers both keep counts once."""

    layers: tuple[LayerSummary, ...]
    total: LayerSummary
    batch_size: int


def summarize(model: Layer, input_shape: Shape, batch_size: int) -> Summary:
    """Look through `model` for images of `input_shape` (no batch axis); nothing is computed but shapes."""
    rows = tuple(
        _summarize_layer(name, layer, shape, batch_size) for name, layer, shape in _walk("", model, tuple(input_shape))
    )
    total = _summarize_layer("total", model, tuple(input_shape), batch_size)
    multiply_adds = sum(row.multiply_adds for row in rows)
    return Summary(rows, total._replace(multiply_adds=multiply_adds), batch_size)


def kept_bytes(function: Callable[..., Any], *args: Any, free: tuple[int, ...] = ()) -> int:
    """Bytes that `jax.vjp(function, *args)` keeps for the backward pass, each array once.

    Those that are arguments at the positions `free` (parameters, which are in memory anyway) do not count. `args` may
    be arrays or shapes; nothing is computed.
    """
    traced = jax.make_jaxpr(lambda *values: jax.tree.leaves(jax.vjp(function, *values)[1]))(*args)
    sizes = [len(jax.tree.leaves(arg)) for arg in args]
    starts = [sum(sizes[:position]) for position in range(len(sizes))]
    inputs = traced.jaxpr.invars
    uncounted = {id(var) for position in free for var in inputs[starts[position] : starts[position] + sizes[position]]}
    kept = {id(var): var.aval for var in traced.jaxpr.outvars if id(var) not in uncounted}
    return sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in kept.values())


def to_text(summary: Summary) -> str:
    """The summary as a table of plain text."""
    head = ("layer", "output", "parameters", "multiply-adds", "kept by hand", "by autodiff")
    cells = [head, *map(_cells, (*summary.layers, summary.total))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(text.ljust(width) if place < 2 else text.rjust(width) for place, (text, width) in enumerate(pairs))
        for pairs in (zip(row, widths, strict=True) for row in cells)
    ]
    rule = "-" * len(lines[0])
    note = (
        f"kept: bytes for the backward pass of a batch of {summary.batch_size}; shared arrays count once in the total"
    )
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], note])


def _walk(name: str, layer: Layer, shape: Shape) -> Iterator[tuple[str, Layer, Shape]]:
    """The layers that hold no others, with the shape that comes in."""
    if layer.name not in ("serial", "residual"):
        yield name, layer, shape
        return
    for key, child in layer.children.items():
        yield from _walk(f"{name}/{key}" if name else key, child, shape)
        if layer.name == "serial":
            shape = init_shapes(child, shape)[2]


def _summarize_layer(name: str, layer: Layer, shape: Shape, batch_size: int) -> LayerSummary:
    params, _, output_shape = init_shapes(layer, shape)
    leaves = jax.tree.leaves(params)
    return LayerSummary(
        name=name,
        output_shape=output_shape,
        parameters=sum(leaf.size for leaf in leaves),
        multiply_adds=math.prod(output_shape[:-1]) * sum(leaf.size for leaf in leaves if leaf.ndim > 1),
        kept_by_hand=_kept(layer, shape, batch_size, custom_vjp),
        kept_by_autodiff=_kept(layer, shape, batch_size, reference),
    )


def _kept(layer: Layer, shape: Shape, batch_size: int, ops: ModuleType) -> int:
    """Bytes that `layer` keeps of a training batch when it runs on `ops`."""
    twin = with_ops(layer, ops)
    params, state, _ = init_shapes(layer, shape)
    key = jax.random.key(0)

    def forward(params, x):
        return twin.apply(params, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), state), x, train=True, key=key)[0]

    return kept_bytes(forward, params, jax.ShapeDtypeStruct((batch_size, *shape), jnp.float32), free=(0,))


def _cells(row: LayerSummary) -> tuple[str, ...]:
    numbers = (row.parameters, row.multiply_adds, row.kept_by_hand, row.kept_by_autodiff)
    return (row.name, "x".join(map(str, row.output_shape)), *(f"{number:,}" for number in numbers))
