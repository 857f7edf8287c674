"""Sliding windows over images, shared by convolution and pooling: their geometry, im2col and col2im."""

import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jnet.formulas.validate import require

__all__ = ["Geometry", "Padding", "col2im", "fold", "geometry", "im2col", "pair", "resolve_padding", "window_slices"]

Pair = tuple[int, int]
Padding = str | int | Pair | tuple[Pair, Pair]


class Geometry(NamedTuple):
    """Where the windows of an image lie; every field is (rows, columns) and known while tracing."""

    size: Pair  # the image, (H, W)
    window: Pair  # (HH, WW)
    stride: Pair
    padding: tuple[Pair, Pair]  # ((top, bottom), (left, right))
    dilation: Pair  # the step between neighbouring taps of a window
    out: Pair  # how many windows there are, (OH, OW)


def pair(value: int | Sequence[int]) -> Pair:
    """Return `(h, w)` for an int or a pair of ints.

    >>> pair(2), pair((1, 3))
    ((2, 2), (1, 3))
    """
    rows, columns = value if isinstance(value, Sequence) else (value, value)
    return operator.index(rows), operator.index(columns)


def resolve_padding(
    padding: Padding, size: Pair, window: Pair, stride: Pair = (1, 1), dilation: Pair = (1, 1)
) -> tuple[Pair, Pair]:
    """Return `((top, bottom), (left, right))`.

    `"SAME"` pads so that there are `ceil(size / stride)` windows, the odd row at the bottom and right, as XLA does;
    `"VALID"` is none; an int or `(h, w)` pads both sides alike; `((top, bottom), (left, right))` is taken as it is.

    >>> resolve_padding("SAME", (5, 6), (3, 3), (2, 2))
    ((1, 1), (0, 1))
    >>> resolve_padding((1, 2), (5, 6), (3, 3))
    ((1, 1), (2, 2))
    """
    if padding == "SAME":
        rows, columns = map(_same, size, window, stride, dilation)
        return rows, columns
    if padding == "VALID":
        return (0, 0), (0, 0)
    try:
        if isinstance(padding, str):
            raise TypeError
        rows, columns = padding if isinstance(padding, Sequence) else (padding, padding)
        return pair(rows), pair(columns)
    except (TypeError, ValueError):
        raise ValueError(
            f"padding is {padding!r}; it must be 'SAME', 'VALID', an int, (h, w) or ((top, bottom), (left, right))"
        ) from None


def _same(size: int, window: int, stride: int, dilation: int) -> Pair:
    windows = -(-size // stride)
    total = max((windows - 1) * stride + (window - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def geometry(
    op: str,
    size: Sequence[int],
    window: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: Padding = "VALID",
    dilation: int | Sequence[int] = 1,
) -> Geometry:
    """Check the arguments of `op` and lay its windows over an image of `size`.

    Raises `ValueError` for a window, stride or dilation below 1, a negative padding, an unknown padding, and a window
    that is larger than the padded image.

    >>> geometry("conv2d", (5, 6), 3, stride=2, padding="SAME").out
    (3, 3)
    """
    size = pair(size)
    window, stride, dilation = (
        _positive_pair(op, name, value)
        for name, value in (("window", window), ("stride", stride), ("dilation", dilation))
    )
    try:
        padding = resolve_padding(padding, size, window, stride, dilation)
    except ValueError as error:
        raise ValueError(f"{op}: {error}") from None
    require(min(*padding[0], *padding[1]) >= 0, f"{op}: padding is {padding}; it must be 0 or more on each side")
    padded = size[0] + sum(padding[0]), size[1] + sum(padding[1])
    span = (window[0] - 1) * dilation[0] + 1, (window[1] - 1) * dilation[1] + 1
    require(
        span[0] <= padded[0] and span[1] <= padded[1],
        f"{op}: window {window} with dilation {dilation} spans {span}; it must fit into the padded image {padded}",
    )
    out = (padded[0] - span[0]) // stride[0] + 1, (padded[1] - span[1]) // stride[1] + 1
    return Geometry(size, window, stride, padding, dilation, out)


def _positive_pair(op: str, name: str, value: int | Sequence[int]) -> Pair:
    try:
        checked = pair(value)
    except (TypeError, ValueError):
        raise ValueError(f"{op}: {name} is {value!r}; it must be an int or a pair of ints") from None
    require(min(checked) >= 1, f"{op}: {name} is {value!r}; it must be 1 or more")
    return checked


def window_slices(x: Array, where: Geometry, fill: float = 0.0, corner: Pair = (0, 0)) -> list[Array]:
    """Return the taps of all windows of `x: (N, H, W, C)`, each `(N, OH, OW, C)`, in row-major order.

    Tap `(i, j)` holds what lies at row `i`, column `j` of every window. `fill` stands in the padding. The first window
    begins at `corner` of the padded image.
    """
    n, _, _, c = x.shape
    x = lax.pad(x, jnp.asarray(fill, x.dtype), ((0, 0, 0), (*where.padding[0], 0), (*where.padding[1], 0), (0, 0, 0)))
    slices = []
    for i in range(where.window[0]):
        for j in range(where.window[1]):
            top, left = corner[0] + i * where.dilation[0], corner[1] + j * where.dilation[1]
            bottom = top + (where.out[0] - 1) * where.stride[0] + 1
            right = left + (where.out[1] - 1) * where.stride[1] + 1
            slices.append(lax.slice(x, (0, top, left, 0), (n, bottom, right, c), (1, *where.stride, 1)))
    return slices


def fold(slices: Sequence[Array], where: Geometry) -> Array:
    """Return the transpose of `window_slices`: add each tap `(N, OH, OW, C)` where it came from, `(N, H, W, C)`.

    Windows that overlap add up; what fell on the padding is dropped. The columns are folded first, one row of taps
    at a time, and then the rows: HH + WW images are written instead of HH * WW.
    """
    rows = [
        _fold_axis(slices[i * where.window[1] : (i + 1) * where.window[1]], where, axis=1)
        for i in range(where.window[0])
    ]
    return _fold_axis(rows, where, axis=0)


def _fold_axis(slices: Sequence[Array], where: Geometry, axis: int) -> Array:
    """Sum the slices along one image axis, each spread by the stride and shifted to its tap."""
    size, stride, before = where.size[axis], where.stride[axis], where.padding[axis][0]
    total = None
    for tap, part in enumerate(slices):
        low = tap * where.dilation[axis] - before
        high = size - (low + (where.out[axis] - 1) * stride + 1)
        config = [(0, 0, 0)] * 4
        config[axis + 1] = (low, high, stride - 1)
        spread = lax.pad(part, jnp.zeros((), part.dtype), config)
        total = spread if total is None else total + spread
    assert total is not None, "a window has at least one tap"
    return total


def im2col(x: Array, where: Geometry) -> Array:
    """Return the windows of `x: (N, H, W, C)` as rows of a matrix, `(N, OH, OW, HH * WW, C)`."""
    return jnp.stack(window_slices(x, where), axis=3)


def col2im(cols: Array, where: Geometry) -> Array:
    """Return the transpose of `im2col`: add `cols: (N, OH, OW, HH * WW, C)` back into an image `(N, H, W, C)`."""
    return fold([cols[..., tap, :] for tap in range(cols.shape[3])], where)
