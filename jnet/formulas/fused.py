"""Neighbours in a network as one formula: what lies between them is neither kept nor written twice.

Each is the composition of formulas that stand elsewhere, results and gradients included; what is derived here is how
little of the composition the backward pass needs. `layers.serial` finds the neighbours.

The backward passes are outlined: XLA would otherwise make `dx` again in each of its consumers, and what is rebuilt
from the cache it would find made by the forward pass, and keep that.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jnet.formulas.activation import relu_forward
from jnet.formulas.affine import AffineCache, affine_backward, affine_forward
from jnet.formulas.convolution import Conv2dCache, conv2d_backward, conv2d_forward
from jnet.formulas.normalization import (
    BatchnormCache,
    batchnorm_backward,
    batchnorm_forward,
    coefficients,
    combined,
    normalized,
    parameter_gradients,
    scale_and_shift,
    scaled,
    through_batchnorm,
)
from jnet.formulas.outline import by_channel, in_one_loop, outlined
from jnet.formulas.pooling import at_winners, largest, nobody, pool_geometry, to_winners
from jnet.formulas.precision import widen
from jnet.formulas.validate import require_float, require_rank, require_shape
from jnet.formulas.windows import Geometry, Padding

__all__ = [
    "AffineReluCache",
    "BatchnormAddReluCache",
    "BatchnormReluCache",
    "BatchnormReluConv2dCache",
    "BatchnormReluMaxPool2dCache",
    "BiasReluCache",
    "BiasReluMaxPool2dCache",
    "affine_relu_backward",
    "affine_relu_forward",
    "batchnorm_add_relu_backward",
    "batchnorm_add_relu_forward",
    "batchnorm_relu_backward",
    "batchnorm_relu_conv2d_backward",
    "batchnorm_relu_conv2d_forward",
    "batchnorm_relu_forward",
    "batchnorm_relu_max_pool2d_backward",
    "batchnorm_relu_max_pool2d_forward",
    "bias_relu_backward",
    "bias_relu_forward",
    "bias_relu_max_pool2d_backward",
    "bias_relu_max_pool2d_forward",
]

Statistics = tuple[Array, Array, Array]  # (out, mean, var), or their cotangents

_POOL = ("window", "stride", "padding", "dilation")
_CONVOLUTION = ("stride", "padding", "dilation", "groups", "algorithm")


class BiasReluCache(NamedTuple):
    """What the backward pass of `bias_relu` needs: its output, which the next layer keeps anyway."""

    out: Array  # (N, ..., C)


def bias_relu_forward(x: Array, b: Array) -> tuple[Array, BiasReluCache]:
    r"""Add `b: (C,)` to `x: (N, ..., C)` and rectify: what follows a convolution.

    **Forward.** $y = \max(x + b, 0)$, $b$ broadcast over all axes but the last.

    **Backward.** $y > 0$ exactly where $x + b > 0$, so the slope of relu is read off the output: $\bar x = g\,[y >
    0]$. The bias meets every row with weight one: $\bar b = \sum_{\text{rows}} \bar x$.

    **Kept:** the output, which the next layer keeps anyway. The sum $x + b$, of which relu alone would keep the signs,
    dies at once.

    **At the kink** $x + b = 0$ the slope is 0, as in `relu_forward`.

    Reference: `relu_forward`.
    """
    _check_bias("bias_relu", x, b)
    out, _ = relu_forward(x + _row(b.astype(x.dtype), x))
    return out, BiasReluCache(out)


def bias_relu_backward(dout: Array, cache: BiasReluCache) -> tuple[Array, Array]:
    """Return `dx` and `db: (C,)`; derivation in `bias_relu_forward`."""
    dx = _where_positive(cache.out, dout)
    return dx, jnp.sum(widen(dx), axis=tuple(range(dx.ndim - 1)))


class AffineReluCache(NamedTuple):
    """What the backward pass of `affine_relu` needs: its inputs, and its output, which the next layer keeps anyway."""

    x: Array  # (N, d1, ..., dk)
    w: Array  # (D, M)
    out: Array  # (N, M)


@outlined()  # or XLA keeps the products too, and rectifies them again for the sign
def affine_relu_forward(x: Array, w: Array, b: Array) -> tuple[Array, AffineReluCache]:
    r"""Map each row of `x` by `w: (D, M)` and `b: (M,)`, as `affine_forward`, and rectify.

    **Forward.** $Y = \max(X w + 1 b^\top, 0)$.

    **Backward.** The cotangent of the affine map's result is $g\,[y > 0]$, the sign read off the output; from there
    on it is `affine_forward`'s.

    **Kept:** `x` and `w`, and the output, which the next layer keeps anyway: no mask.

    **At the kink** as `relu_forward`.

    Reference: `affine_forward`, `relu_forward`.
    """
    z, cache = affine_forward(x, w, b)
    out, _ = relu_forward(z)
    return out, AffineReluCache(*cache, out)


def affine_relu_backward(dout: Array, cache: AffineReluCache) -> tuple[Array, Array, Array]:
    """Return `dx, dw, db`; derivation in `affine_relu_forward`."""
    x, w, out = cache
    return affine_backward(_where_positive(out, dout), AffineCache(x, w))


class BiasReluMaxPool2dCache(NamedTuple):
    """What the backward pass of `bias_relu_max_pool2d` needs: one byte an output."""

    winner: Array  # (N, OH, OW, C), uint8: the tap that won, `nobody` where the output is not positive
    image: Array  # (0, H, W, C), no bytes: the size of the image


def bias_relu_max_pool2d_forward(
    x: Array,
    b: Array,
    *,
    window: int | Sequence[int] = 2,
    stride: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
    dilation: int | Sequence[int] = 1,
) -> tuple[Array, BiasReluMaxPool2dCache]:
    r"""Add `b: (C,)` to `x: (N, H, W, C)`, rectify, and take the largest entry of each window.

    **Forward.** Adding a constant and rectifying are monotone, and rounding is too, so they commute with the maximum:
    $\max_i \max(x_i + b, 0) = \max(\max_i x_i + b, 0)$. The pool comes first, and the others touch only its output,
    for 2x2 windows a quarter of the image.

    **Backward.** Where the output is positive, it is $x + b$ at the winning pixel, and that pixel gets the cotangent;
    elsewhere nobody does. So write "nobody" for the winner where the output is not positive, and $\bar x$ is
    `max_pool2d_forward`'s gather. Each cotangent that passes reaches the bias once: $\bar b = \sum_o g_o\,[y_o > 0]$.

    **Kept:** the winner's number, one byte an output: neither `x`, nor the rectified image, nor the output.

    **At ties and kinks** as `max_pool2d_forward` and `relu_forward`. (Pixels that differ by less than the rounding of
    the sum count as different here.)

    Reference: `max_pool2d_forward`, `relu_forward`.

    The other arguments are those of `max_pool2d_forward`. The padding must leave each window a pixel; a window of
    padding alone gives 0 here and minus infinity there.
    """
    _check_bias("bias_relu_max_pool2d", x, b)
    where = pool_geometry("bias_relu_max_pool2d", x, window, stride, padding, dilation)
    out, winner = _bias_relu_largest(x, b, where=where)
    return out, BiasReluMaxPool2dCache(winner, x[:0])


def bias_relu_max_pool2d_backward(
    dout: Array,
    cache: BiasReluMaxPool2dCache,
    *,
    window: int | Sequence[int] = 2,
    stride: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
    dilation: int | Sequence[int] = 1,
) -> tuple[Array, Array]:
    """Return `dx: (N, H, W, C)` and `db: (C,)`; derivation in `bias_relu_max_pool2d_forward`."""
    where = pool_geometry("bias_relu_max_pool2d", cache.image, window, stride, padding, dilation)
    passed = jnp.where(cache.winner == nobody(where), 0, widen(dout))
    return to_winners(dout, cache.winner, where), jnp.sum(passed, axis=(0, 1, 2))


@outlined(static=("where",))  # the winners must be stored, not found again from x
def _bias_relu_largest(x: Array, b: Array, *, where: Geometry) -> tuple[Array, Array]:
    values, winner = largest(x, where)
    return _rectify(values + _row(b.astype(x.dtype), x), winner, where)


class BatchnormReluCache(NamedTuple):
    """What the backward pass of `batchnorm_relu` needs: that of `batchnorm`, and `beta`."""

    norm: BatchnormCache
    beta: Array  # (C,)


def batchnorm_relu_forward(
    x: Array, gamma: Array, beta: Array, *, eps: float = 1e-5, axis_name: str | None = None
) -> tuple[Statistics, BatchnormReluCache]:
    r"""Normalise each channel of `x: (N, ..., C)` as `batchnorm_forward`, and rectify.

    **Forward.** $y = \max(\gamma h + \beta, 0)$ with $h = (x - m)\,r$.

    **Backward.** The cotangent of $\gamma h + \beta$ is $g\,[\gamma h + \beta > 0]$; from there on it is
    `batchnorm_forward`'s.

    **Kept:** what `batchnorm` keeps, and `beta`: the sign is rebuilt from $x$, which that backward pass reads in any
    case, by a subtraction, a multiply-add and a comparison.

    **At the kink** as `relu_forward`.

    Reference: `batchnorm_forward`, `relu_forward`.

    Returns `(out, mean, var)`, and the cache.
    """
    (_, mean, var), cache = batchnorm_forward(x, gamma, beta, eps=eps, axis_name=axis_name)
    out = _scaled_relu(x, *scale_and_shift(cache, beta))
    return (out, mean, var), BatchnormReluCache(cache, beta)


@by_channel
def _scaled_relu(x: Array, mean: Array, scale: Array, shift: Array) -> Array:
    return relu_forward(scaled(x, mean, scale, shift))[0]


@outlined(static=("axis_name",))
def batchnorm_relu_backward(
    dout: Statistics, cache: BatchnormReluCache, *, axis_name: str | None = None
) -> tuple[Array, Array, Array]:
    """Return `dx, dgamma, dbeta`; derivation in `batchnorm_relu_forward`."""
    dy, dmean, dvar = dout
    norm, vectors = cache.norm, scale_and_shift(cache.norm, cache.beta)
    passed = _where_scaled_positive(dy, norm.x, *(_row(vector, dy) for vector in vectors))
    dgamma, dbeta = parameter_gradients(passed, norm)
    _, *along = coefficients(dmean, dvar, dgamma, dbeta, norm, axis_name)
    return _combined_where_positive(dy, norm.x, *vectors, *along), dgamma, dbeta


def _where_scaled_positive(dout: Array, x: Array, mean: Array, scale: Array, shift: Array) -> Array:
    return _where_positive(scaled(x, mean, scale, shift), dout)


@by_channel  # the mask is made twice rather than written
def _combined_where_positive(
    dout: Array, x: Array, mean: Array, scale: Array, shift: Array, along_h: Array, along_1: Array
) -> Array:
    return combined(_where_scaled_positive(dout, x, mean, scale, shift), x, mean, scale, along_h, along_1)


class BatchnormAddReluCache(NamedTuple):
    """What the backward pass of `batchnorm_add_relu` needs: that of `batchnorm`, and the output, kept anyway."""

    norm: BatchnormCache
    out: Array  # (N, ..., C)


def batchnorm_add_relu_forward(
    x: Array, gamma: Array, beta: Array, shortcut: Array, *, eps: float = 1e-5, axis_name: str | None = None
) -> tuple[Statistics, BatchnormAddReluCache]:
    r"""Normalise `x: (N, ..., C)`, add `shortcut` of the same shape, and rectify: the end of a residual block.

    **Forward.** $y = \max(\gamma h + \beta + s, 0)$ with $h = (x - m)\,r$.

    **Backward.** $d = g\,[y > 0]$ is the cotangent of the sum. It goes to the shortcut as it is, $\bar s = d$, and
    through `batchnorm_forward`'s backward pass to $x$, $\gamma$ and $\beta$.

    **Kept:** what `batchnorm` keeps, and the output, which the next block keeps anyway; neither the shortcut nor the
    sum.

    **At the kink** as `relu_forward`.

    Reference: He, Zhang, Ren & Sun 2015, arXiv:1512.03385; `batchnorm_forward`, `relu_forward`.

    Returns `(out, mean, var)`, and the cache.
    """
    require_float("batchnorm_add_relu", shortcut=shortcut)
    require_shape("batchnorm_add_relu", "shortcut", shortcut, x.shape, f"x {x.shape}")
    (_, mean, var), cache = batchnorm_forward(x, gamma, beta, eps=eps, axis_name=axis_name)
    out = _normalized_add_relu(cache, beta, shortcut)
    return (out, mean, var), BatchnormAddReluCache(cache, out)


@outlined()  # or XLA adds the shortcuts up again, block upon block, wherever the sum is read
def _normalized_add_relu(cache: BatchnormCache, beta: Array, shortcut: Array) -> Array:
    return _scaled_add_relu(cache.x, *scale_and_shift(cache, beta), shortcut.astype(cache.x.dtype))


@by_channel
def _scaled_add_relu(x: Array, mean: Array, scale: Array, shift: Array, shortcut: Array) -> Array:
    return relu_forward(scaled(x, mean, scale, shift) + shortcut)[0]


def batchnorm_add_relu_backward(
    dout: Statistics, cache: BatchnormAddReluCache, *, axis_name: str | None = None
) -> tuple[Array, Array, Array, Array]:
    """Return `dx, dgamma, dbeta, dshortcut`; derivation in `batchnorm_add_relu_forward`.

    Only `batchnorm`'s part is outlined: the cotangents of the block's two readers are added up on the way to the mask.
    """
    dy, dmean, dvar = dout
    dy = _where_positive(cache.out, dy)
    return *batchnorm_backward((dy, dmean, dvar), cache.norm, axis_name=axis_name), dy


class BatchnormReluMaxPool2dCache(NamedTuple):
    """What the backward pass of `batchnorm_relu_max_pool2d` needs: that of `batchnorm`, and one byte an output."""

    norm: BatchnormCache
    winner: Array  # (N, OH, OW, C), uint8: the tap that won, `nobody` where the output is not positive


def batchnorm_relu_max_pool2d_forward(
    x: Array,
    gamma: Array,
    beta: Array,
    *,
    eps: float = 1e-5,
    axis_name: str | None = None,
    window: int | Sequence[int] = 2,
    stride: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
    dilation: int | Sequence[int] = 1,
) -> tuple[Statistics, BatchnormReluMaxPool2dCache]:
    r"""Normalise `x: (N, H, W, C)` as `batchnorm_forward`, rectify, and take the largest entry of each window.

    **Forward.** $y_o = \max_i \max(\gamma h_i + \beta, 0) = \max(\max_i (\gamma h_i + \beta), 0)$. ($\gamma$ may be
    negative, so the normalization does not commute with the maximum as a bias does; it is one multiply-add on the way
    into the pool.)

    **Backward.** With "nobody" for the winner where $y_o \le 0$, the cotangent $d$ of $\gamma h + \beta$ is
    `max_pool2d_forward`'s gather of $g$, and from there on it is `batchnorm_forward`'s. Its two sums over the image
    have one term for each cotangent that passed, so they are sums over the outputs: with $i_o$ the winner of $o$,

    $$ \bar\beta = \sum_i d_i = \sum_o g_o\,[y_o > 0], \qquad
       \bar\gamma = r \sum_i d_i\,(x_i - m) = r \sum_o g_o\,[y_o > 0]\,(x_{i_o} - m). $$

    Only $\bar x$ needs $d$ itself, a gather on the way.

    **Kept:** what `batchnorm` keeps, and one byte an output. The rectified image, as large as `x`, is never written.

    **At ties and kinks** as `max_pool2d_forward` and `relu_forward`.

    Reference: `batchnorm_forward`, `relu_forward`, `max_pool2d_forward`.

    The other arguments are those of `max_pool2d_forward`. Returns `(out, mean, var)`, and the cache. The padding must
    leave each window a pixel; a window of padding alone gives 0 here and minus infinity there.
    """
    where = pool_geometry("batchnorm_relu_max_pool2d", x, window, stride, padding, dilation)
    (_, mean, var), cache = batchnorm_forward(x, gamma, beta, eps=eps, axis_name=axis_name)
    out, winner = _batchnorm_relu_largest(cache, beta, where=where)
    return (out, mean, var), BatchnormReluMaxPool2dCache(cache, winner)


@outlined(static=("axis_name", *_POOL))
def batchnorm_relu_max_pool2d_backward(
    dout: Statistics,
    cache: BatchnormReluMaxPool2dCache,
    *,
    axis_name: str | None = None,
    window: int | Sequence[int] = 2,
    stride: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
    dilation: int | Sequence[int] = 1,
) -> tuple[Array, Array, Array]:
    """Return `dx, dgamma, dbeta`; derivation in `batchnorm_relu_max_pool2d_forward`."""
    dy, dmean, dvar = dout
    where = pool_geometry("batchnorm_relu_max_pool2d", cache.norm.x, window, stride, padding, dilation)
    passed = jnp.where(cache.winner == nobody(where), 0, widen(dy))
    entries = at_winners(cache.norm.x, cache.winner, where)
    dgamma, dbeta = parameter_gradients(passed, cache.norm._replace(x=entries))
    gathered = to_winners(dy, cache.winner, where)
    return through_batchnorm(gathered, dmean, dvar, dgamma, dbeta, cache.norm, axis_name), dgamma, dbeta


@outlined(static=("where",))  # the winners must be stored, not found again
def _batchnorm_relu_largest(cache: BatchnormCache, beta: Array, *, where: Geometry) -> tuple[Array, Array]:
    return _rectify(*largest(normalized(cache, beta), where), where)


class BatchnormReluConv2dCache(NamedTuple):
    """What the backward pass of `batchnorm_relu_conv2d` needs: that of `batchnorm`, `beta` and the filters."""

    norm: BatchnormCache
    beta: Array  # (C,)
    w: Array  # (HH, WW, C // groups, F)
    b: Array | None  # (0,), no bytes: whether there was a bias, and its dtype


def batchnorm_relu_conv2d_forward(
    x: Array,
    gamma: Array,
    beta: Array,
    w: Array,
    b: Array | None = None,
    *,
    eps: float = 1e-5,
    axis_name: str | None = None,
    stride: int | tuple[int, int] = 1,
    padding: Padding = "SAME",
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    algorithm: str = "auto",
) -> tuple[Statistics, BatchnormReluConv2dCache]:
    r"""Normalise `x: (N, H, W, C)` as `batchnorm_forward`, rectify, and correlate with `w` as `conv2d_forward`.

    **Forward.** $a = \max(\gamma h + \beta, 0)$, $y = a \star w + b$.

    **Backward.** `conv2d_forward`'s backward pass gives $\bar w$, $\bar b$ and $\bar a$; the cotangent of $\gamma h +
    \beta$ is $\bar a\,[a > 0]$, and from there on it is `batchnorm_forward`'s.

    **Kept:** what `batchnorm` keeps, `beta` and the filters. $a$, which a convolution keeps for $\bar w$, is rebuilt
    from $x$: a subtraction, a multiply-add and a maximum an element, against the hundreds of a convolution. Of the two
    activations that the three layers would keep, one is left.

    **At the kink** as `relu_forward`.

    Reference: `batchnorm_forward`, `conv2d_forward`; Chen, Xu, Zhang & Guestrin 2016, arXiv:1604.06174, for dropping
    what is cheap to rebuild.

    The other arguments are those of `conv2d_forward`. Returns `(out, mean, var)` and the cache.
    """
    (_, mean, var), cache = batchnorm_forward(x, gamma, beta, eps=eps, axis_name=axis_name)
    a = _scaled_relu(x, *scale_and_shift(cache, beta))
    out, (_, _, bias, _) = conv2d_forward(
        a, w, b, stride=stride, padding=padding, dilation=dilation, groups=groups, algorithm=algorithm
    )
    return (out, mean, var), BatchnormReluConv2dCache(cache, beta, w, bias)


@outlined(static=("axis_name", *_CONVOLUTION))
def batchnorm_relu_conv2d_backward(
    dout: Statistics,
    cache: BatchnormReluConv2dCache,
    *,
    axis_name: str | None = None,
    stride: int | tuple[int, int] = 1,
    padding: Padding = "SAME",
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    algorithm: str = "auto",
) -> tuple[Array, Array, Array, Array, Array | None]:
    """Return `dx, dgamma, dbeta, dw, db`; derivation in `batchnorm_relu_conv2d_forward`."""
    dy, dmean, dvar = dout
    a = _scaled_relu(cache.norm.x, *scale_and_shift(cache.norm, cache.beta))
    da, dw, db = conv2d_backward(
        dy,
        Conv2dCache(a, cache.w, cache.b, a[:0]),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        algorithm=algorithm,
    )
    through = BatchnormReluCache(cache.norm, cache.beta)
    return *batchnorm_relu_backward((da, dmean, dvar), through, axis_name=axis_name), dw, db


def _rectify(values: Array, winner: Array, where: Geometry) -> tuple[Array, Array]:
    """Return `max(values, 0)`, and the winners, nobody where that is 0 (or the value is NaN)."""
    out, winner = in_one_loop(relu_forward(values)[0], jnp.where(values > 0, winner, winner.dtype.type(nobody(where))))
    return out, winner


def _where_positive(out: Array, dout: Array) -> Array:
    return jnp.where(out > 0, dout, jnp.zeros((), dout.dtype))


def _row(vector: Array, x: Array) -> Array:
    """See a `(C,)` vector as `(1, ..., C)` with x's rank."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


def _check_bias(op: str, x: Array, b: Array) -> None:
    require_float(op, x=x, b=b)
    require_rank(op, "x", x, 1, "(N, ..., C)")
    require_shape(op, "b", b, x.shape[-1:], f"the channels of x {x.shape}")
