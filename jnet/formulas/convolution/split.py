"""The filters' gradient of few channels: half of im2col on the images, the other half on the cotangents."""

import jax.numpy as jnp
from jax import Array, lax

from jnet.formulas import onednn
from jnet.formulas.convolution.parts import sum_of_parts
from jnet.formulas.windows import Geometry

__all__ = ["suits", "weight_gradient"]

IMAGES = 8  # of a part, so that what is copied of them stays in the cache


def suits(where: Geometry, groups: int) -> bool:
    """Return whether this algorithm can compute the convolution at all."""
    return (where.stride, where.dilation, groups) == ((1, 1), (1, 1), 1)


def weight_gradient(x: Array, dout: Array, where: Geometry, groups: int) -> Array:
    r"""Return the cotangent of w, `(HH, WW, C, F)`.

    $\bar w_{i,j} = \sum_{h,q} x_{h + i,\,q + j}\, g_{h,q}$ over the padded image. With $h = r - i$ the two shifts part:

    $$\bar w_{i,j,c,f} = \sum_{r,q} x_{r,\;q + j,\;c}\;\; g_{r - i,\;q,\;f}.$$

    Rows $r$ of padding are zero and left out. So the images are copied once for each *column* of taps, the cotangents
    once for each *row*, and one product of $(i, f)$ with $(j, c)$ gives all taps: HH + WW copies instead of HH * WW,
    and a product of 48 by 48 for 16 channels and filters, where im2col has 144 by 16. It takes `IMAGES` images at a
    time, for the copies to stay in the cache.

    Reference: Cho & Brand 2017, arXiv:1706.06873, who lay windows out along one axis only, for the forward pass.
    """
    del groups
    dw = sum_of_parts(lambda x, dout: _product(x, dout, where), IMAGES, x, dout)
    dw = dw.reshape(where.window[0], dout.shape[-1], where.window[1], x.shape[-1])
    return dw.transpose(0, 2, 3, 1)


def _product(x: Array, dout: Array, where: Geometry) -> Array:
    """Return `(HH * F, WW * C)`, in the dtype of the accumulator."""
    (rows, columns), height, width, zero = where.window, where.size[0], where.out[1], jnp.zeros((), x.dtype)
    (top, bottom), across = where.padding
    x = lax.pad(x, zero, ((0, 0, 0), (0, 0, 0), (*across, 0), (0, 0, 0)))
    down = (rows - 1 - top, rows - 1 - bottom, 0)
    dout = lax.pad(dout, zero.astype(dout.dtype), ((0, 0, 0), down, (0, 0, 0), (0, 0, 0)))
    by_column = jnp.concatenate([x[:, :, j : j + width] for j in range(columns)], axis=-1)
    by_row = jnp.concatenate([dout[:, rows - 1 - i :][:, :height] for i in range(rows)], axis=-1)
    flat = [v.reshape(v.shape[0] * v.shape[1] * v.shape[2], v.shape[3]) for v in (by_row, by_column)]
    return onednn.matmul(*flat, transpose_a=True)
