"""Two-dimensional convolution: the formula pair, over algorithms of which each has a file of its own."""

from types import ModuleType
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jnet.formulas.convolution import depthwise, im2col, rule, split, winograd, xla
from jnet.formulas.outline import outlined
from jnet.formulas.precision import accumulator
from jnet.formulas.validate import require, require_float, require_shape
from jnet.formulas.windows import Geometry, Padding, geometry

__all__ = ["ALGORITHMS", "Conv2dCache", "conv2d_backward", "conv2d_forward"]

# Each module has the three correlations of a convolution, in one form:
#   forward(x, w, where, groups) -> out    input_gradient(dout, w, where, groups) -> dx
#   weight_gradient(x, dout, where, groups) -> dw
# `split` has the last only; the rule asks it for no other.
ALGORITHMS: dict[str, ModuleType] = {
    "im2col": im2col,
    "winograd": winograd,
    "depthwise": depthwise,
    "xla": xla,
    "split": split,
}
CHOICES = ("auto", "im2col", "winograd", "xla")  # what a caller may ask for


class Conv2dCache(NamedTuple):
    """What `conv2d_backward` needs."""

    x: Array  # (N, H, W, C), the input's own dtype; or only the pixels that strided 1x1 windows read, (N, OH, OW, C)
    w: Array  # (HH, WW, C // groups, F), the filters' own dtype
    b: Array | None  # (0,), no bytes: whether there was a bias, and its dtype
    image: Array  # (0, H, W, C), no bytes: the size of the image


def conv2d_forward(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: Padding = "SAME",
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    algorithm: str = "auto",
) -> tuple[Array, Conv2dCache]:
    r"""Correlate each image of `x: (N, H, W, C)` with the filters `w: (HH, WW, C // groups, F)`, and add `b: (F,)`.

    **Forward.** With stride $s$, dilation $d$ and padding $p$ (top, left), and $x = 0$ outside the image,

    $$y_{n,o,q,f} = b_f + \sum_{i,j,c} x_{n,\; s o + d i - p,\; s q + d j - p,\; c}\; w_{i,j,c,f}.$$

    A convolution is linear in $x$ and in $w$, so it is a matrix product once the windows are written as rows. Let
    $X = \mathrm{im2col}(x)$, with a row for each output pixel $(n, o, q)$ and a column for each tap and channel
    $(i, j, c)$, and let $W$ be $w$ with $(i, j, c)$ flattened. Then $Y = X W + b$, and $Y$ is the output as
    $(N \cdot OH \cdot OW, F)$. With `groups` the channels and the filters fall into as many contiguous blocks, and
    block $g$ of the output sees only block $g$ of the input: one such product a group.

    **Backward.** Let $G = \partial L / \partial Y$. From $dL = \langle G, dX\,W + X\,dW + db\rangle$:

    - $\bar b = \sum_{\text{rows}} G$, as $b$ is added to each row;
    - $\bar W = X^\top G$: a filter tap gathers, over all outputs, the pixel it met times that output's cotangent;
    - $\bar X = G W^\top$; and since each entry of $X$ is a copy of one pixel, or a padding zero, the cotangent of a
      pixel is the sum over its copies, $\bar x = \mathrm{im2col}^\top(\bar X) = \mathrm{col2im}(\bar X)$.

    Written without $X$, both are correlations again, and that is how the other algorithms compute them:

    $$\bar w_{i,j,c,f} = \sum_{n,o,q} x_{n,\; s o + d i - p,\; s q + d j - p,\; c}\; G_{n,o,q,f}, \qquad
    \bar x_{n,h,k,c} = \sum_{i,j,f} G_{n,\; (h + p - d i)/s,\; (k + p - d j)/s,\; f}\; w_{i,j,c,f}.$$

    The first slides $G$ over $x$, with $s$ between its taps and $d$ between its steps. The second, where only whole
    fractions count, slides the flipped filters, $c$ and $f$ exchanged, over $G$ with $s - 1$ zeros between its pixels.

    **Kept:** `x` and `w`. The matrix $X$ is up to $HH \cdot WW$ times as large as $x$ and takes one copy to rebuild.
    A window of one tap with a stride is the exception: $X$ is then the smaller one, one pixel in $s^2$. Those alone are
    read and kept; the others have no gradient.

    `algorithm` is `"auto"` (the table in `rule.choose`), `"im2col"` (the products above), `"xla"` (the compiler's own
    convolutions) or `"winograd"` (3x3 filters, stride 1; a quarter of the multiplications, and in float32 an error of
    about 1e-5 of the largest entry where the others have 1e-6). `"auto"` may take Winograd's on a CPU, never in
    float64. float16 and bfloat16 accumulate in float32; the result has the dtype of `x`.

    Raises `ValueError` where the shapes do not go together or a window is larger than the padded image.

    Reference: Chellapilla, Puri & Simard 2006, "High Performance Convolutional Neural Networks for Document
    Processing" (im2col); Dumoulin & Visin 2016, arXiv:1603.07285 (the arithmetic of the gradients).
    """
    where = _check(x, w, b, stride, padding, dilation, groups, algorithm)
    read, here = _read(x, where)
    kernel = ALGORITHMS[_choose("forward", read, w, here, groups, algorithm)]
    out = kernel.forward(read, w.astype(x.dtype), here, groups)
    if b is not None:
        out = out + b.astype(out.dtype).reshape(1, 1, 1, -1)
    return out.astype(x.dtype), Conv2dCache(read, w, None if b is None else b[:0], x[:0])


def conv2d_backward(
    dout: Array,
    cache: Conv2dCache,
    *,
    stride: int | tuple[int, int] = 1,
    padding: Padding = "SAME",
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    algorithm: str = "auto",
) -> tuple[Array, Array, Array | None]:
    """Return `(dx, dw, db)` of `conv2d_forward` for `dout: (N, OH, OW, F)`; `db` is None where there was no `b`."""
    where = geometry("conv2d", cache.image.shape[1:3], cache.w.shape[:2], stride, padding, dilation)
    dx, dw, db = _backward(dout, cache, where=where, groups=groups, algorithm=algorithm)
    return _unread(dx, where), dw, db


@outlined(static=("where", "groups", "algorithm"))  # or XLA makes copies for dw ahead of time
def _backward(
    dout: Array, cache: Conv2dCache, *, where: Geometry, groups: int, algorithm: str
) -> tuple[Array, Array, Array | None]:
    """Return the same, but of dx what the windows have read."""
    _, w, b, _ = cache
    x, here = _read(cache.x, where)
    for_dx = _choose("input_gradient", x, w, here, groups, algorithm)
    for_dw = _choose("weight_gradient", x, w, here, groups, algorithm)
    narrow = w.astype(dout.dtype)
    if for_dx == for_dw == "winograd":
        dx, dw = winograd.backward(x, narrow, dout, here)
    else:
        dx = ALGORITHMS[for_dx].input_gradient(dout, narrow, here, groups)
        dw = ALGORITHMS[for_dw].weight_gradient(x, dout, here, groups)
    db = None if b is None else jnp.sum(dout, axis=(0, 1, 2), dtype=accumulator(dout.dtype)).astype(b.dtype)
    return dx.astype(x.dtype), dw.astype(w.dtype), db


def _read(x: Array, where: Geometry) -> tuple[Array, Geometry]:
    """Return the pixels that the windows read, of the image or of these pixels, and where the windows lie on them."""
    if where.window != (1, 1) or where.padding != ((0, 0), (0, 0)):
        return x, where
    if x.shape[1:3] != where.out:
        x = x[:, :: where.stride[0], :: where.stride[1]]
    return x, where._replace(size=where.out, stride=(1, 1))


def _unread(dx: Array, where: Geometry) -> Array:
    """Put zeros where pixels were not read: the transpose of `_read`."""
    if dx.shape[1:3] == where.size:
        return dx
    spread = [(0, (size - 1) % stride, stride - 1) for size, stride in zip(where.size, where.stride, strict=True)]
    return lax.pad(dx, jnp.zeros((), dx.dtype), ((0, 0, 0), *spread, (0, 0, 0)))


def _choose(direction: str, x: Array, w: Array, where: Geometry, groups: int, algorithm: str) -> str:
    return rule.choose(direction, x.shape[0], where, x.shape[-1], w.shape[-1], groups, x.dtype, algorithm)


def _check(
    x: Array,
    w: Array,
    b: Array | None,
    stride: int | tuple[int, int],
    padding: Padding,
    dilation: int | tuple[int, int],
    groups: int,
    algorithm: str,
) -> Geometry:
    """Return where the windows lie, or raise an error that names the argument at fault."""
    require_float("conv2d", x=x, w=w)
    require(x.ndim == 4, f"conv2d: x has shape {x.shape}; it must be (N, H, W, C)")
    require(w.ndim == 4, f"conv2d: w has shape {w.shape}; it must be (HH, WW, C // groups, F)")
    channels, filters = x.shape[-1], w.shape[-1]
    require(
        groups >= 1 and channels % groups == 0 and filters % groups == 0,
        f"conv2d: groups is {groups}; it must divide the {channels} channels of x and the {filters} filters of w",
    )
    expected = (*w.shape[:2], channels // groups, filters)
    require_shape("conv2d", "w", w, expected, f"x {x.shape} and groups {groups}")
    if b is not None:
        require_float("conv2d", b=b)
        require_shape("conv2d", "b", b, (filters,), f"w {w.shape}")
    require(algorithm in CHOICES, f"conv2d: algorithm is {algorithm!r}; it must be one of {', '.join(CHOICES)}")
    where = geometry("conv2d", x.shape[1:3], w.shape[:2], stride, padding, dilation)
    require(
        algorithm != "winograd" or (winograd.suits(where, groups) and x.dtype != jnp.float64),
        f"conv2d: algorithm is 'winograd' with filters {where.window}, stride {where.stride}, dilation "
        f"{where.dilation}, groups {groups} and {x.dtype}; it must be 'auto', 'im2col' or 'xla' for all but "
        "3x3 filters with stride, dilation and groups 1, in float32 or narrower",
    )
    return where
