"""Sliding windows as the columns of a matrix, in the course's layouts."""

import jax
import jax.numpy as jnp
import numpy as np

from jnet.compat.cs231n.boundary import floats, nchw, nhwc, numpy_jit
from jnet.formulas import windows

__all__ = ["col2im_indices", "get_im2col_indices", "im2col_indices"]


def get_im2col_indices(
    x_shape: tuple[int, int, int, int], field_height: int, field_width: int, padding: int = 1, stride: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return `(k, i, j)`: `x_padded[:, k, i, j]` are the windows, `(N, C field_height field_width, OH OW)`.

    `k` (channels) is `(C field_height field_width, 1)`; `i` and `j` (rows, columns) `(C field_height field_width, OH
    OW)`.
    """
    _, channels, height, width = x_shape
    where = windows.geometry("im2col", (height, width), (field_height, field_width), stride, padding)
    k, row, column = (index.reshape(-1, 1) for index in np.indices((channels, field_height, field_width)))
    down, across = (index.reshape(1, -1) * stride for index in np.indices(where.out))
    return k, row + down, column + across


def im2col_indices(x: np.ndarray, field_height: int, field_width: int, padding: int = 1, stride: int = 1) -> np.ndarray:
    """Return the windows of `x: (N, C, H, W)` as columns, `(C field_height field_width, OH OW N)`."""
    (x,) = floats(x)
    return _im2col(x, window=(field_height, field_width), padding=padding, stride=stride)


def col2im_indices(
    cols: np.ndarray,
    x_shape: tuple[int, int, int, int],
    field_height: int = 3,
    field_width: int = 3,
    padding: int = 1,
    stride: int = 1,
) -> np.ndarray:
    """Add the columns of `im2col_indices` back into images `(N, C, H, W)`: its transpose."""
    (cols,) = floats(cols)
    static = {"window": (field_height, field_width), "padding": padding, "stride": stride}
    return _col2im(cols, x_shape=tuple(x_shape), **static)


def columns(x: jax.Array, where: windows.Geometry, *, images_last: bool) -> jax.Array:
    """Return the windows of `x: (N, H, W, C)` as `(C, HH, WW, OH, OW, N)`, or `(C, HH, WW, N, OH, OW)`."""
    cols = windows.im2col(x, where)  # (N, OH, OW, HH WW, C)
    cols = jnp.transpose(cols, (4, 3, 1, 2, 0) if images_last else (4, 3, 0, 1, 2))
    return cols.reshape(cols.shape[0], *where.window, *cols.shape[2:])


def fold_columns(cols: jax.Array, where: windows.Geometry) -> jax.Array:
    """Add columns `(C, HH, WW, OH, OW, N)` back into images `(N, C, H, W)`."""
    taps = cols.reshape(cols.shape[0], where.window[0] * where.window[1], *cols.shape[3:])
    return nchw(windows.col2im(jnp.transpose(taps, (4, 2, 3, 1, 0)), where))


@numpy_jit
def _im2col(x, *, window, padding, stride):
    where = windows.geometry("im2col", x.shape[2:], window, stride, padding)
    cols = columns(nhwc(x), where, images_last=True)
    return cols.reshape(x.shape[1] * window[0] * window[1], where.out[0] * where.out[1] * x.shape[0])


@numpy_jit
def _col2im(cols, *, x_shape, window, padding, stride):
    number, channels, *size = x_shape
    where = windows.geometry("col2im", tuple(size), window, stride, padding)
    return fold_columns(cols.reshape(channels, *window, *where.out, number), where)
