"""The names of the course's compiled extension, on `jnet.formulas.windows`: there is nothing to compile."""

import jax.numpy as jnp
import numpy as np

from jnet.compat.cs231n.boundary import floats, numpy_jit
from jnet.compat.cs231n.im2col import col2im_indices, fold_columns, im2col_indices
from jnet.formulas import windows

__all__ = ["col2im_6d_cython", "col2im_cython", "im2col_cython"]


def im2col_cython(x: np.ndarray, field_height: int, field_width: int, padding: int, stride: int) -> np.ndarray:
    """Return the windows of `x: (N, C, H, W)` as columns, `(C field_height field_width, OH OW N)`."""
    return im2col_indices(x, field_height, field_width, padding, stride)


def col2im_cython(
    cols: np.ndarray, N: int, C: int, H: int, W: int, field_height: int, field_width: int, padding: int, stride: int
) -> np.ndarray:
    """Add the columns of `im2col_cython` back into images `(N, C, H, W)`."""
    return col2im_indices(cols, (N, C, H, W), field_height, field_width, padding, stride)


def col2im_6d_cython(
    cols: np.ndarray, N: int, C: int, H: int, W: int, HH: int, WW: int, pad: int, stride: int
) -> np.ndarray:
    """Add columns laid as `(C, HH, WW, N, OH, OW)` back into images `(N, C, H, W)`."""
    (cols,) = floats(cols)
    return _col2im_6d(cols, size=(H, W), window=(HH, WW), pad=pad, stride=stride)


@numpy_jit
def _col2im_6d(cols, *, size, window, pad, stride):
    where = windows.geometry("col2im_6d", size, window, stride, pad)
    return fold_columns(jnp.transpose(cols, (0, 1, 2, 4, 5, 3)), where)
