"""Convolution as the matrix product of windows and filters: the readable form, and fast in a loop too."""

from collections.abc import Callable

import jax
from jax import Array

from jnet.formulas import onednn, windows
from jnet.formulas.convolution.parts import sum_of_parts
from jnet.formulas.windows import Geometry

__all__ = ["forward", "input_gradient", "weight_gradient"]

PART_BYTES = 2_500_000  # of the windows of a part, so that they stay in a CPU's cache

# Of a group of channels: X is `(M, T * C)`, W `(T * C, F)` and G `(M, F)`, with M output pixels (n, o, q), T taps
# (i, j), C channels and F filters.


def forward(x: Array, w: Array, where: Geometry, groups: int) -> Array:
    """Return `X W`, `(N, OH, OW, F)`, in the dtype of the accumulator."""

    def product(cols: Array, w: Array) -> Array:
        return onednn.matmul(_matrix(cols), _filters(w))

    out = _each_group(product, groups)(windows.im2col(x, where), w)
    return out.reshape(x.shape[0], *where.out, w.shape[-1])


def input_gradient(dout: Array, w: Array, where: Geometry, groups: int) -> Array:
    """Return `col2im(G W^T)`, `(N, H, W, C)`, in the dtype of the accumulator."""

    def product(dout: Array, w: Array) -> Array:
        cols = onednn.matmul(_rows(dout), _filters(w), transpose_b=True)
        return cols.reshape(*dout.shape[:3], where.window[0] * where.window[1], w.shape[2])

    return windows.col2im(_each_group(product, groups)(dout, w), where)


def weight_gradient(x: Array, dout: Array, where: Geometry, groups: int) -> Array:
    """Return `X^T G`, `(HH, WW, C // groups, F)`, in the dtype of the accumulator.

    On a CPU a few images at a time: the windows overlap, so $X$ is larger than `x`, and it is read but once.
    """
    images = x.shape[0]
    if jax.default_backend() == "cpu" and where.window != (1, 1):
        taps, pixels = where.window[0] * where.window[1], where.out[0] * where.out[1]
        images = PART_BYTES // (taps * pixels * x.shape[-1] * x.dtype.itemsize) or 1

    def product(cols: Array, dout: Array) -> Array:
        return onednn.matmul(_matrix(cols), _rows(dout), transpose_a=True).reshape(
            *where.window, cols.shape[-1], dout.shape[-1]
        )

    def part(x: Array, dout: Array) -> Array:
        return _each_group(product, groups)(windows.im2col(x, where), dout)

    return sum_of_parts(part, images, x, dout)


def _each_group(product: Callable[[Array, Array], Array], groups: int) -> Callable[[Array, Array], Array]:
    """Apply `product` to each group of the last axes: channels or filters of the operands and of the result.

    (A matrix product of a group has two axes and no more: XLA on a CPU copies an operand with others, transposed.)
    """
    if groups == 1:
        return product

    def of_all(a: Array, b: Array) -> Array:
        a, b = (v.reshape(*v.shape[:-1], groups, v.shape[-1] // groups) for v in (a, b))
        out = jax.vmap(product, in_axes=-2, out_axes=-2)(a, b)
        return out.reshape(*out.shape[:-2], groups * out.shape[-1])

    return of_all


def _matrix(cols: Array) -> Array:
    n, height, width, taps, channels = cols.shape
    return cols.reshape(n * height * width, taps * channels)


def _rows(dout: Array) -> Array:
    n, height, width, filters = dout.shape
    return dout.reshape(n * height * width, filters)


def _filters(w: Array) -> Array:
    rows, columns, channels, filters = w.shape
    return w.reshape(rows * columns * channels, filters)
