"""Products and convolutions by oneDNN, the library of kernels for x86 that jaxlib carries for XLA.

XLA:CPU can hand an operation to oneDNN, and does not do so by itself. Asked for by its name in the program it works:
a convolution of 16 channels takes half the time, and a product reads a transposed operand as it lies. What is computed
is the plain form that stands beside each, and wherever oneDNN is not to be had, that form is taken: on other backends,
in other dtypes, under `vmap`, for second derivatives and in exported programs.

The names and their configuration are XLA's own and no interface: what is wrong in them can end the process. So the
versions of jaxlib are listed for which the tests have passed; with any other the plain forms are taken.

Reference: oneDNN, https://uxlfoundation.github.io/oneDNN; XLA, xla/service/cpu/onednn_config.proto.
"""

import functools
import json
import math
import platform
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.typing import DTypeLike
from jaxlib.version import __version__ as jaxlib_version

from jnet.formulas.precision import accumulator
from jnet.formulas.windows import Geometry

__all__ = ["available", "convolution", "matmul"]

TESTED = ("0.10.2", "0.11.2")  # versions of jaxlib
# What XLA multiplies faster, of single products: on some processors those with many entries of b, if no operand is
# transposed; tiny ones, for which a call of oneDNN costs as much as the product; and small ones of three long axes,
# which XLA computes beside each other where they are independent.
LARGE, TINY, LONG, FEW = 2**21, 128, 128, 2**24


def available(dtype: DTypeLike) -> bool:
    """Return whether oneDNN is to be had: for float32, on one x86 CPU under Linux, in a version that was tested.

    (Several devices would each compute the whole of it, since XLA cannot see into the call to share it out.)
    """
    here = (platform.system(), platform.machine()) == ("Linux", "x86_64") and jaxlib_version in TESTED
    return here and jax.default_backend() == "cpu" and jax.device_count() == 1 and jnp.dtype(dtype) == jnp.float32


def matmul(a: Array, b: Array, *, transpose_a: bool = False, transpose_b: bool = False) -> Array:
    """Return the product of `a: (..., M, K)` and `b: (..., K, N)` in the dtype of the accumulator.

    With `transpose_a` it is `a: (..., K, M)`, with `transpose_b` `b: (..., N, K)`; there is no broadcasting.
    """
    transposed = {"transpose_a": transpose_a, "transpose_b": transpose_b}
    product = _matmul.bind if _suits(a, b) and not _left_to_xla(a, b, **transposed) else _plain_matmul
    return product(a, b, **transposed)


def convolution(x: Array, w: Array, where: Geometry, groups: int) -> Array:
    """Slide the filters `w: (HH, WW, C // groups, F)` over the images `x: (N, H, W, C)`: `(N, OH, OW, F)`."""
    # Padding of less than nothing, or of a whole window, is left to XLA.
    spans = [(taps - 1) * step + 1 for taps, step in zip(where.window, where.dilation, strict=True)]
    beside = all(0 <= side < span for span, sides in zip(spans, where.padding, strict=True) for side in sides)
    correlate = _convolution.bind if beside and _suits(x, w) else _plain_convolution
    return correlate(x, w, where=where, groups=groups)


def _suits(a: Array, b: Array) -> bool:
    """Return whether oneDNN may have these: not empty, and inside `shard_map` both varying on the same axes."""
    alike = a.dtype == b.dtype and jax.typeof(a).manual_axis_type == jax.typeof(b).manual_axis_type
    return available(a.dtype) and alike and min(a.size, b.size) > 0


def _left_to_xla(a: Array, b: Array, **transposed: bool) -> bool:
    if a.ndim > 2:
        return False
    rows, columns = _product_shape(a, b, **transposed)
    terms = a.size // max(rows, 1)
    axes = rows, columns, terms
    many = b.size >= LARGE and not any(transposed.values())
    return many or max(axes) <= TINY or (min(axes) >= LONG and math.prod(axes) < FEW)


def _plain_matmul(a: Array, b: Array, *, transpose_a: bool, transpose_b: bool) -> Array:
    a, b = jnp.swapaxes(a, -1, -2) if transpose_a else a, jnp.swapaxes(b, -1, -2) if transpose_b else b
    return jnp.matmul(a, b, preferred_element_type=accumulator(a.dtype))


def _plain_convolution(x: Array, w: Array, *, where: Geometry, groups: int) -> Array:
    return lax.conv_general_dilated(
        x,
        w,
        window_strides=where.stride,
        padding=where.padding,
        rhs_dilation=where.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _matmul_config(**transposed: bool) -> dict[str, Any]:
    return {"onednn_matmul_config": transposed}


def _convolution_config(*, where: Geometry, groups: int) -> dict[str, Any]:
    images = {"dims": 4, "data": {"batch_dim": 0, "feature_dim": 3, "spatial_dims": [1, 2]}}
    filters = {"dims": 4, "filter": {"input_feature_dim": 2, "output_feature_dim": 3, "spatial_dims": [0, 1]}}
    window = {
        "size": where.window,
        "pad_left": [before for before, _ in where.padding],
        "pad_right": [after for _, after in where.padding],
        "strides": where.stride,
        "window_dilations": where.dilation,
    }
    config = {"dims": 4, "input": images, "kernel": filters, "output": images, "window": window}
    return {"onednn_conv_config": {**config, "feature_groups": groups}}


def _product_shape(a: Any, b: Any, *, transpose_a: bool, transpose_b: bool) -> tuple[int, ...]:
    return (*a.shape[:-2], a.shape[-1 if transpose_a else -2], b.shape[-2 if transpose_b else -1])


def _convolution_shape(x: Any, w: Any, *, where: Geometry, groups: int) -> tuple[int, ...]:
    del groups
    return (x.shape[0], *where.out, w.shape[-1])


def _primitive(
    target: str,
    plain: Callable[..., Array],
    config: Callable[..., dict[str, Any]],
    shape: Callable[..., tuple[int, ...]],
) -> Primitive:
    """Return the operation that is `plain`, but in a program for a CPU oneDNN's `target`, unless it is for export."""
    primitive = Primitive(f"onednn_{target}")
    in_xla = mlir.lower_fun(plain, multiple_results=False)

    def abstract(*operands: Any, **static: Any) -> Any:
        return operands[0].update(shape=shape(*operands, **static))

    def lower(ctx: mlir.LoweringRuleContext, *operands: Any, **static: Any) -> Any:
        if ctx.module_context.lowering_parameters.for_export:
            return in_xla(ctx, *operands, **static)
        call = jax.ffi.ffi_lowering(f"__onednn${target}", api_version=1, backend_config=json.dumps(config(**static)))
        return call(ctx, *operands)

    def jvp(primals: Any, tangents: Any, **static: Any) -> Any:
        return jax.jvp(functools.partial(plain, **static), primals, tuple(map(ad.instantiate_zeros, tangents)))

    def batch(operands: Any, axes: Any, **static: Any) -> Any:
        return jax.vmap(functools.partial(plain, **static), axes)(*operands), 0

    @primitive.def_impl
    def run(*operands: Any, **static: Any) -> Any:
        return jax.jit(functools.partial(primitive.bind, **static))(*operands)

    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, in_xla)
    mlir.register_lowering(primitive, lower, platform="cpu")
    ad.primitive_jvps[primitive] = jvp
    batching.primitive_batchers[primitive] = batch
    return primitive


_matmul = _primitive("matmul", _plain_matmul, _matmul_config, _product_shape)
_convolution = _primitive("convolution", _plain_convolution, _convolution_config, _convolution_shape)
