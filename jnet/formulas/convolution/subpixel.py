"""The images' gradient of a strided convolution: the pixels between two strides become channels."""

import jax.numpy as jnp
from jax import Array, lax

from jnet.formulas.convolution import xla
from jnet.formulas.windows import Geometry

__all__ = ["input_gradient", "suits"]


def suits(where: Geometry, groups: int) -> bool:
    """Return whether this algorithm can compute the convolution at all."""
    return (where.dilation, groups) == ((1, 1), 1)


def input_gradient(dout: Array, w: Array, where: Geometry, groups: int) -> Array:
    r"""Return the cotangent of x, `(N, H, W, C)`.

    Along one axis, pixel $h$ of the padded image meets tap $i$ of window $o$ where $h = s o + i$. Let $h = s a + r$ and
    $i = s t + r'$ with remainders below $s$: then $r = r'$ and $o = a - t$. So each remainder $r$ is an image of its
    own,

    $$\bar x_{sa + r} = \sum_t g_{a - t}\; w_{st + r},$$

    a correlation of $g$, without zeros between its pixels, with every $s$-th tap in reverse. All $s^2$ of them share
    $g$: they are one correlation with $s^2 C$ filters of $\lceil HH/s \rceil \times \lceil WW/s \rceil$ taps, whose
    result is put in order by a transposition. Where $s$ does not divide the window the missing taps are zeros: 16
    products for the 9 of a 3x3 window, in a product $s^2$ times as wide, which is what few channels lack.

    Reference: Shi et al. 2016, arXiv:1609.07009, "Is the deconvolution layer the same as a convolutional layer?"
    """
    del groups
    (rows, columns, channels, filters), (down, across) = w.shape, where.stride
    tall, wide = -(-rows // down), -(-columns // across)
    w = lax.pad(
        w, jnp.zeros((), w.dtype), ((0, tall * down - rows, 0), (0, wide * across - columns, 0), *[(0, 0, 0)] * 2)
    )
    w = w.reshape(tall, down, wide, across, channels, filters)[::-1, :, ::-1].transpose(0, 2, 5, 1, 3, 4)
    (top, left), (height, width) = (before for before, _ in where.padding), where.size
    blocks = -(-(height + top) // down), -(-(width + left) // across)
    padding = (tall - 1, blocks[0] - where.out[0]), (wide - 1, blocks[1] - where.out[1])
    dense = Geometry(where.out, (tall, wide), (1, 1), padding, (1, 1), blocks)
    dx = xla.forward(dout, w.reshape(tall, wide, filters, down * across * channels), dense, 1)
    dx = dx.reshape(-1, *blocks, down, across, channels).transpose(0, 1, 3, 2, 4, 5)
    dx = dx.reshape(-1, blocks[0] * down, blocks[1] * across, channels)
    return dx[:, top : top + height, left : left + width]
