"""The course's fast layers: the naive ones' arguments, on the algorithms that are fastest here.

The pairs differ in the layout of the `x_cols` in their caches, as the course's do, so a cache goes back to its own
pair.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jnet.compat.cs231n.boundary import floats, nhwc, numpy_backward, numpy_jit
from jnet.compat.cs231n.im2col import columns
from jnet.compat.cs231n.layers import (
    Params,
    conv_static,
    correlate,
    correlate_backward,
    max_pool_backward_naive,
    max_pool_forward_naive,
)
from jnet.formulas import windows

__all__ = [
    "conv_backward_fast",
    "conv_backward_im2col",
    "conv_backward_strides",
    "conv_forward_fast",
    "conv_forward_im2col",
    "conv_forward_strides",
    "max_pool_backward_fast",
    "max_pool_backward_im2col",
    "max_pool_backward_reshape",
    "max_pool_forward_fast",
    "max_pool_forward_im2col",
    "max_pool_forward_reshape",
]


@dataclass(frozen=True)
class ConvCache(Sequence):
    """Unpacks as the course's `(x, w, b, conv_param, x_cols)`; the columns, which jnet never needs, are laid then."""

    x: np.ndarray
    w: np.ndarray
    b: np.ndarray
    conv_param: Params
    images_last: bool

    @functools.cached_property
    def x_cols(self) -> np.ndarray:
        """The windows of x as columns, `(C HH WW, N OH OW)`, or with `images_last` `(C HH WW, OH OW N)`."""
        static = conv_static(self.conv_param)
        return _columns(self.x, window=self.w.shape[2:], **static, images_last=self.images_last)

    def __len__(self) -> int:
        """Return 5, as the course's tuple does."""
        return 5

    def __getitem__(self, index: Any) -> Any:
        """Return what stands there in the course's tuple."""
        return (self.x, self.w, self.b, self.conv_param, self.x_cols)[index]


def conv_forward_strides(x, w, b, conv_param: Params):
    """Correlate as `conv_forward_naive` does; cache `(x, w, b, conv_param, x_cols)`, x_cols `(C HH WW, N OH OW)`."""
    return _conv_forward(x, w, b, conv_param, images_last=False)


def conv_forward_im2col(x, w, b, conv_param: Params):
    """Correlate as `conv_forward_naive` does, where the stride leaves no rest; x_cols is `(C HH WW, OH OW N)`."""
    height, width = np.shape(x)[2:]
    stride, pad = int(conv_param["stride"]), int(conv_param["pad"])
    assert (width + 2 * pad - np.shape(w)[3]) % stride == 0, "width does not work"
    assert (height + 2 * pad - np.shape(w)[2]) % stride == 0, "height does not work"
    return _conv_forward(x, w, b, conv_param, images_last=True)


def conv_backward_strides(dout, cache):
    """Return `dx`, `dw`, `db`, each in the shape of its own array."""
    arrays = cache.x, cache.w, cache.b
    return correlate_backward(dout, arrays, **conv_static(cache.conv_param), algorithm="auto")


conv_backward_im2col = conv_backward_strides
conv_forward_fast = conv_forward_strides
conv_backward_fast = conv_backward_strides


def _conv_forward(x, w, b, conv_param: Params, *, images_last: bool) -> tuple[np.ndarray, ConvCache]:
    x, w, b = floats(x, w, b)
    out = correlate(x, w, b, **conv_static(conv_param), algorithm="auto")
    return out, ConvCache(x, w, b, conv_param, images_last)


@numpy_jit
def _columns(x, *, window, stride, pad, images_last):
    cols = columns(nhwc(x), windows.geometry("conv", x.shape[2:], window, stride, pad), images_last=images_last)
    return cols.reshape(math.prod(cols.shape[:3]), math.prod(cols.shape[3:]))


def max_pool_forward_fast(x, pool_param: Params):
    """Pool as `max_pool_forward_naive` does; cache `("reshape" | "im2col", real_cache)`."""
    if _tiles(x, pool_param):
        out, cache = max_pool_forward_reshape(x, pool_param)
        return out, ("reshape", cache)
    out, cache = max_pool_forward_im2col(x, pool_param)
    return out, ("im2col", cache)


def max_pool_backward_fast(dout, cache):
    """Return `dx`, by the method of the forward pass."""
    method, real_cache = cache
    if method == "reshape":
        return max_pool_backward_reshape(dout, real_cache)
    if method == "im2col":
        return max_pool_backward_im2col(dout, real_cache)
    raise ValueError(f'Unrecognized method "{method}"')


def max_pool_forward_reshape(x, pool_param: Params):
    """Pool with square windows that tile the image."""
    assert _tiles(x, pool_param), "Invalid pool params"
    return max_pool_forward_naive(x, pool_param)


def max_pool_backward_reshape(dout, cache):
    """Return `dx`, which splits a cotangent equally among tied maxima, as the course's reshape method does."""
    x, pool_param = cache
    return _split_among_ties(dout, x, window=int(pool_param["pool_height"]))


@numpy_backward
def _split_among_ties(dout, x, *, window):
    taps = [x[:, :, row::window, column::window] for row in range(window) for column in range(window)]
    largest = functools.reduce(jnp.maximum, taps)
    share = dout / sum((tap == largest).astype(x.dtype) for tap in taps)
    return jnp.where(x == _spread(largest, window), _spread(share, window), 0.0)


def _spread(tiles, window):
    """Repeat each entry of `(N, C, OH, OW)` over its tile of the image."""
    n, c, height, width = tiles.shape
    repeated = jnp.broadcast_to(tiles[:, :, :, None, :, None], (n, c, height, window, width, window))
    return repeated.reshape(n, c, height * window, width * window)


max_pool_forward_im2col = max_pool_forward_naive
max_pool_backward_im2col = max_pool_backward_naive


def _tiles(x, pool_param: Params) -> bool:
    """Square windows, side by side, that leave no rest."""
    window, stride = pool_param["pool_height"], pool_param["stride"]
    return pool_param["pool_width"] == window == stride and all(size % stride == 0 for size in np.shape(x)[2:])
