"""Convolution by the compiler's own convolution or oneDNN's, with both backward correlations written out."""

import jax
from jax import Array, lax

from jnet.formulas import onednn
from jnet.formulas.precision import widen
from jnet.formulas.windows import Geometry

__all__ = ["forward", "input_gradient", "weight_gradient"]


def forward(x: Array, w: Array, where: Geometry, groups: int) -> Array:
    """Slide the filters over the images, `(N, OH, OW, F)`."""
    return onednn.convolution(_accumulating(x), _accumulating(w), where, groups)


def input_gradient(dout: Array, w: Array, where: Geometry, groups: int) -> Array:
    """Slide the flipped filters, channels and filters exchanged, over the spread-out cotangent, `(N, H, W, C)`."""
    padding = []
    for axis in (0, 1):
        span = (where.window[axis] - 1) * where.dilation[axis] + 1
        spread = (where.out[axis] - 1) * where.stride[axis] + 1
        before = span - 1 - where.padding[axis][0]
        padding.append((before, where.size[axis] + span - 1 - before - spread))
    w, filters = w[::-1, ::-1], "HWOI"  # as autodiff has it: so XLA finds the kernel that a GPU's library has for it
    if groups > 1 or jax.default_backend() == "cpu":
        w, filters = _exchanged(w, groups), "HWIO"
        if where.stride == (1, 1):
            back = where._replace(size=where.out, out=where.size, padding=tuple(padding))
            return forward(dout, w, back, groups)
    return lax.conv_general_dilated(
        _accumulating(dout),
        _accumulating(w),
        window_strides=(1, 1),
        padding=padding,
        lhs_dilation=where.stride,
        rhs_dilation=where.dilation,
        dimension_numbers=("NHWC", filters, "NHWC"),
        feature_group_count=groups,
    )


def _exchanged(w: Array, groups: int) -> Array:
    """Exchange the channels and the filters of each group."""
    rows, columns, channels, filters = w.shape
    w = w.reshape(rows, columns, channels, groups, filters // groups).transpose(0, 1, 4, 3, 2)
    return w.reshape(rows, columns, filters // groups, groups * channels)


def weight_gradient(x: Array, dout: Array, where: Geometry, groups: int) -> Array:
    """Slide the cotangent over the images, the batch being what is summed, `(HH, WW, C // groups, F)`.

    The channels take the place of the batch and the batch that of the channels, by transposes written out: XLA does so
    itself only outside loops, and a convolution left as it is inside `lax.scan` runs 80 times slower (jax#12868).
    """
    padding = []
    for axis in (0, 1):
        spread = (where.out[axis] - 1) * where.stride[axis] + 1
        before = where.padding[axis][0]
        reach = (where.window[axis] - 1) * where.dilation[axis] + spread
        padding.append((before, reach - before - where.size[axis]))
    dw = lax.conv_general_dilated(
        _accumulating(x).transpose(3, 1, 2, 0),
        _accumulating(dout).transpose(1, 2, 0, 3),
        window_strides=where.dilation,
        padding=padding,
        rhs_dilation=where.stride,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        batch_group_count=groups,
    )
    return dw.transpose(1, 2, 0, 3)


def _accumulating(x: Array) -> Array:
    """Return `x` in a dtype of which XLA's convolution keeps its sums in float32 or wider.

    A GPU's library does so for float16 and bfloat16 as they are. On a CPU the operands are widened; asking for a
    wider result instead would leave a convolution that JAX cannot differentiate again.
    """
    return widen(x) if jax.default_backend() == "cpu" else x
