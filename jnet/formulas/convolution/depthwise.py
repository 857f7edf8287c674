"""Convolution of each channel by a filter of its own: no sum over channels, so no matrix product."""

import jax.numpy as jnp
from jax import Array

from jnet.formulas.precision import widen
from jnet.formulas.windows import Geometry, fold, window_slices

__all__ = ["forward", "input_gradient", "suits", "weight_gradient"]


def suits(channels: int, filters: int, groups: int) -> bool:
    """Return whether this algorithm can compute the convolution at all."""
    return groups == channels == filters


def forward(x: Array, w: Array, where: Geometry, groups: int) -> Array:
    r"""Return the correlation of `x: (N, H, W, C)` with `w: (HH, WW, 1, C)`, `(N, OH, OW, C)`.

    With $x_{ij}$ the image that holds what tap $(i, j)$ of each window sees, the convolution is a weighted sum of
    HH * WW images, channel by channel, and so are its gradients:

    $$ y_c = \sum_{i,j} w_{ijc}\, x_{ijc}, \qquad \bar w_{ijc} = \sum_{n,o,q} x_{ijc}\, G_c, \qquad
       \bar x_{ij} = w_{ij}\, G \ \text{added back where } x_{ij} \text{ came from.} $$

    The compiler makes one loop of each sum, along the channels.

    Reference: Chollet 2017, arXiv:1610.02357, for the operation; the rest is the definition in `conv2d_forward`.
    """
    del groups
    terms: list[Array] = [tap * weight for tap, weight in zip(window_slices(widen(x), where), _taps(w), strict=True)]
    return sum(terms[1:], start=terms[0])


def input_gradient(dout: Array, w: Array, where: Geometry, groups: int) -> Array:
    """Return the cotangent of x, `(N, H, W, C)`; derivation in `forward`."""
    del groups
    return fold([widen(dout) * weight for weight in _taps(w)], where)


def weight_gradient(x: Array, dout: Array, where: Geometry, groups: int) -> Array:
    """Return the cotangent of w, `(HH, WW, 1, C)`; derivation in `forward`."""
    del groups
    dw = jnp.stack([jnp.sum(tap * widen(dout), axis=(0, 1, 2)) for tap in window_slices(widen(x), where)])
    return dw.reshape(*where.window, 1, dout.shape[-1])


def _taps(w: Array) -> Array:
    """Return the weights of each tap, to be spread over the images: `(HH * WW, 1, 1, 1, C)`."""
    return widen(w).reshape(-1, 1, 1, 1, w.shape[-1])
