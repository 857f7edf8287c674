"""Convolution of few channels: neighbouring output columns become further filters, so that the products are wide."""

import jax.numpy as jnp
from jax import Array, lax

from jnet.formulas.convolution import xla
from jnet.formulas.windows import Geometry

__all__ = ["columns", "forward", "input_gradient", "suits"]


def suits(where: Geometry, groups: int) -> bool:
    """Return whether this algorithm can compute the convolution at all."""
    return (where.stride, where.dilation, groups) == ((1, 1), (1, 1), 1)


def columns(channels: int, filters: int) -> int:
    """Return how many output columns are packed: 2, or 4 where both channels and filters are few.

    64 columns of a product are wide enough, and the more are packed, the more of the products are with zeros.
    """
    return 4 if channels <= 4 and filters <= 16 else 2


def forward(x: Array, w: Array, where: Geometry, groups: int) -> Array:
    r"""Return the correlation of `x: (N, H, W, C)` with `w: (HH, WW, C, F)`, `(N, OH, OW, F)`.

    A matrix product with 3 or 16 columns leaves most of a vector unit idle. So let $s$ neighbouring columns of the
    image be one pixel of $sC$ channels, a reshape, and let $s$ output columns be one of $sF$ channels. Output column
    $sq + o$ meets image column $sq + o + j$ with tap $j$; written as $sq + p$, $p = o + j$, the packed filters are

    $$\hat w_{i,p,c,(o,f)} = w_{i,\;p-o,\;c,\;f} \text{ where } 0 \le p - o < WW, \text{ else } 0:$$

    a band of copies of $w$, $\lceil (s - 1 + WW)/s \rceil$ packed pixels wide. The products with the zeros are wasted:
    for $s = 2$ a third more than needed with three taps, a seventh with seven. The width is worth more. Nothing is
    rounded otherwise than directly.

    Reference: none; a regrouping of the sum in `conv2d_forward`.
    """
    del groups
    (rows, taps, channels, filters), pack = w.shape, columns(*w.shape[2:])
    blocks, out = -(-(pack - 1 + taps) // pack), -(-where.out[1] // pack)
    left, width = where.padding[1][0], (out + blocks - 1) * pack
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (0, 0, 0), (left, width - left - x.shape[2], 0), (0, 0, 0)))
    x = x.reshape(x.shape[0], x.shape[1], width // pack, pack * channels)
    band = [
        lax.pad(w, jnp.zeros((), w.dtype), ((0, 0, 0), (o, blocks * pack - taps - o, 0), (0, 0, 0), (0, 0, 0)))
        for o in range(pack)
    ]
    w = jnp.stack(band, axis=3).reshape(rows, blocks, pack * channels, pack * filters)
    packed = where._replace(window=(rows, blocks), padding=(where.padding[0], (0, 0)), out=(where.out[0], out))
    y = xla.forward(x, w, packed, 1).reshape(x.shape[0], where.out[0], out * pack, filters)
    return y[:, :, : where.out[1]]


def input_gradient(dout: Array, w: Array, where: Geometry, groups: int) -> Array:
    """Return the cotangent of x, `(N, H, W, C)`: the same with the filters flipped, channels and filters exchanged."""
    rows, taps = where.window
    (top, bottom), (left, right) = where.padding
    padding = (rows - 1 - top, rows - 1 - bottom), (taps - 1 - left, taps - 1 - right)
    flipped = where._replace(size=where.out, out=where.size, padding=padding)
    return forward(dout, w[::-1, ::-1].swapaxes(2, 3), flipped, groups)
