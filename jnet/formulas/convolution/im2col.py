"""Convolution as the matrix product of windows and filters: the readable form, and fast in a loop too."""

import jax.numpy as jnp
from jax import Array

from jnet.formulas import windows
from jnet.formulas.precision import accumulator
from jnet.formulas.windows import Geometry

__all__ = ["forward", "input_gradient", "weight_gradient"]

# In the subscripts: m is an output pixel (n, o, q), t a tap (i, j), g a group, c a channel and f a filter of it.


def forward(x: Array, w: Array, where: Geometry, groups: int) -> Array:
    """Return `X W`, `(N, OH, OW, F)`, in the dtype of the accumulator."""
    out = jnp.einsum("mtgc,tcgf->mgf", _cols(x, where, groups), _filters(w, groups), preferred_element_type=_wide(x))
    return out.reshape(x.shape[0], *where.out, w.shape[-1])


def input_gradient(dout: Array, w: Array, where: Geometry, groups: int) -> Array:
    """Return `col2im(G W^T)`, `(N, H, W, C)`, in the dtype of the accumulator."""
    cols = jnp.einsum("mgf,tcgf->mtgc", _rows(dout, groups), _filters(w, groups), preferred_element_type=_wide(dout))
    return windows.col2im(cols.reshape(*dout.shape[:3], cols.shape[1], groups * w.shape[2]), where)


def weight_gradient(x: Array, dout: Array, where: Geometry, groups: int) -> Array:
    """Return `X^T G`, `(HH, WW, C // groups, F)`, in the dtype of the accumulator."""
    dw = jnp.einsum("mtgc,mgf->tcgf", _cols(x, where, groups), _rows(dout, groups), preferred_element_type=_wide(x))
    return dw.reshape(*where.window, x.shape[-1] // groups, dout.shape[-1])


def _cols(x: Array, where: Geometry, groups: int) -> Array:
    pixels, taps = x.shape[0] * where.out[0] * where.out[1], where.window[0] * where.window[1]
    return windows.im2col(x, where).reshape(pixels, taps, groups, x.shape[-1] // groups)


def _rows(dout: Array, groups: int) -> Array:
    n, height, width, filters = dout.shape
    return dout.reshape(n * height * width, groups, filters // groups)


def _filters(w: Array, groups: int) -> Array:
    rows, columns, channels, filters = w.shape
    return w.reshape(rows * columns, channels, groups, filters // groups)


def _wide(x: Array) -> jnp.dtype:
    return accumulator(x.dtype)
