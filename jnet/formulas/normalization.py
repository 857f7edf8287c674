"""Batch, layer and group normalization.

All three subtract a mean and divide by a deviation; they differ in the axes that share one mean: all but the last
(batch), the last (layer), the positions and the channels of a group (group). One derivation serves:
`batchnorm_forward`.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jnet.formulas.outline import by_channel, column_sums, on_one_cpu, outlined, parts, row_sums
from jnet.formulas.precision import widen
from jnet.formulas.validate import require, require_float, require_rank, require_shape

__all__ = [
    "BatchnormCache",
    "BatchnormInferenceCache",
    "GroupnormCache",
    "LayernormCache",
    "batchnorm_backward",
    "batchnorm_backward_staged",
    "batchnorm_forward",
    "batchnorm_inference_backward",
    "batchnorm_inference_forward",
    "coefficients",
    "combined",
    "groupnorm_backward",
    "groupnorm_forward",
    "layernorm_backward",
    "layernorm_forward",
    "normalized",
    "parameter_gradients",
    "scale_and_shift",
    "scaled",
    "through_batchnorm",
]


class BatchnormCache(NamedTuple):
    """What the backward pass of `batchnorm` needs."""

    x: Array  # (N, ..., C), the input's own dtype
    mean: Array  # (C,), float32 or wider
    rstd: Array  # (C,), float32 or wider
    gamma: Array  # (C,)


def batchnorm_forward(
    x: Array, gamma: Array, beta: Array, *, eps: float = 1e-5, axis_name: str | None = None
) -> tuple[tuple[Array, Array, Array], BatchnormCache]:
    r"""Normalise each channel of `x: (N, ..., C)` over all other axes, then scale and shift by `(C,)` vectors.

    **Forward.** Per channel, over the $M$ entries of all axes but the last,

    $$ m = \frac1M\sum_i x_i, \qquad v = \frac1M\sum_i (x_i - m)^2, \qquad r = (v+\epsilon)^{-1/2}, \qquad
       h_i = (x_i - m)\,r, \qquad y_i = \gamma h_i + \beta. $$

    The outputs are $y$, $m$ and $v$ (biased). Both sums are taken in one pass, about a guess $s$ of the mean: with $S =
    \sum_i (x_i - s)$, $Q = \sum_i (x_i - s)^2$ and $\delta = m - s$,

    $$ m = s + \tfrac1M S, \qquad \sum_i (x_i - m)^2 = Q - 2\delta S + M\delta^2. $$

    With $s = 0$ this cancels where the mean is large against the deviation. Here $s$ is the mean of the first
    sixteenth of the entries (of all of them on several devices). The squares of any share $p$ of the entries alone make
    $v \ge p\,(s - m)^2$, so that $Q \le (1 + 1/p)\,M v$, and rounding counts at most 17 times. A GPU takes the sums of
    parts of up to 256 rows, each about its own first row, and moves them to the mean $s$ of the first part: for a part
    of $n$ rows about $s'$, $\sum (x - s)^2 = Q + 2 S (s' - s) + n (s' - s)^2$. There $p$ is one in so many rows or
    parts.

    **Backward.** Let $g = \partial L/\partial y$, $\mu = \partial L/\partial m$ and $\nu = \partial L/\partial v$ be
    the cotangents of the outputs. $\gamma$ and $\beta$ enter linearly: $\bar\gamma = \sum_i g_i h_i$, $\bar\beta =
    \sum_i g_i$. Let $n_i = \gamma g_i$ be the cotangent of $h_i$. Then, each intermediate's total derivative in turn:

    1. $h_i = (x_i-m)\,r$ reaches $r$: $\bar r = \sum_i n_i (x_i-m) = \tfrac1r \sum_i n_i h_i$.
    2. $r = (v+\epsilon)^{-1/2}$ has $dr/dv = -\tfrac12 r^3$: $\bar v = \nu - \tfrac12 r^2\sum_j n_j h_j$.
    3. $v$ moves with $x_i$ by $\tfrac2M (x_i - m)$, and with $m$ by $-\tfrac2M\sum_i(x_i-m) = 0$.
    4. $m$ is reached from $h$ and from outside: $\bar m = \mu - r\sum_j n_j$, and moves with $x_i$ by $\tfrac1M$.
    5. $x_i$ is reached from $h_i$, $v$ and $m$: $\bar x_i = r\,n_i + \tfrac2M (x_i-m)\,\bar v + \tfrac1M\bar m$.

    Inserting 2 and 4 into 5, with $x_i - m = h_i / r$ and $\langle\cdot\rangle$ the mean over the $M$ entries,

    $$ \bar x_i = r\,\bigl(n_i - \langle n\rangle - h_i\langle n h\rangle\bigr) + \tfrac1M\mu
       + \tfrac2M (x_i - m)\,\nu : $$

    the gradient less its components along the constants and along $h$, the two directions that normalisation removes.
    $\langle n\rangle = \gamma\bar\beta/M$ and $\langle nh\rangle = \gamma\bar\gamma/M$, so the parameters' gradients
    are the only sums needed.

    **Kept:** `x`, with `mean`, `rstd` and `gamma` a channel. $h$ is one multiply-add to rebuild and a whole activation
    to store.

    A constant channel has $v = 0$ and $h = 0$: the result is `beta`, the gradient finite. An empty batch has mean and
    variance 0.

    **On several devices** (`axis_name`, inside `shard_map` or `vmap`), which hold equally many entries, each with a
    guess of its own, two vectors a pass are added up: the means of $x$ and of $(x - m)^2$ forward, $\bar\gamma$ and
    $\bar\beta$ backward. The cotangents returned for gamma and beta are this device's part; who holds one gamma for all
    adds them up.

    Reference: Ioffe & Szegedy 2015, arXiv:1502.03167, section 3; the simplified gradient is exercise material of
    CS231n. Chan, Golub & LeVeque 1983, doi:10.1080/00031305.1983.10483115, for sums about a guess of the mean.

    Returns `(out, mean, var)`, out in x's dtype, mean and var float32 or wider, and the cache.
    """
    _check_channels("batchnorm", x, 2, gamma=gamma, beta=beta)
    mean, var = _moments(x, axis_name=axis_name)
    cache = BatchnormCache(x, mean, jax.lax.rsqrt(var + eps), gamma)
    return (normalized(cache, beta), mean, var), cache


@outlined(static=("axis_name",))  # or XLA computes x again for it
def _moments(x: Array, *, axis_name: str | None) -> tuple[Array, Array]:
    """Return the mean and the variance of each channel."""
    (_, here), (_, size) = _all_but_last(x), _all_but_last(x, axis_name)
    rows, devices = _in_parts(_as_matrix(x)), size // here
    guess = _guess(rows)
    off = rows - guess[..., None, :]
    mean_off, mean_square = (total / max(rows.shape[-2], 1) for total in column_sums(off, off * off))
    if rows.ndim == 3:
        guess, mean_off, mean_square = _joined(guess, mean_off, mean_square)
    mean = _total(guess + mean_off, axis_name) / devices
    return mean, _total(_variance(mean - guess, mean_off, mean_square), axis_name) / devices


def _in_parts(rows: Array) -> Array:
    """See `(M, C)` as `(parts, rows, C)`, if there are parts."""
    pieces = parts(len(rows))
    return rows if pieces == 1 else rows.reshape(pieces, len(rows) // pieces, rows.shape[-1])


def _guess(rows: Array) -> Array:
    """Guess the means of `(..., rows, C)` over the rows; on a GPU the first row is the guess, which takes no pass."""
    return _first_mean(rows, axis=-2) if jax.default_backend() == "cpu" else rows[..., :1, :].sum(axis=-2)


def _joined(guess: Array, mean_off: Array, mean_square: Array) -> tuple[Array, Array, Array]:
    """Return one guess for all parts, `(C,)`, and the means of x and its square about it, from those of each part."""
    common = guess[0] + mean_off[0]
    moved = guess - common[None]  # (x - common) = (x - guess) + moved
    total, total_square = column_sums(moved + mean_off, mean_square + moved * (2 * mean_off + moved))
    return common, total / len(guess), total_square / len(guess)


def _variance(delta: Array, mean_off: Array, mean_square: Array) -> Array:
    """Return the mean square about the mean from means about a guess, `delta` below it."""
    return jnp.maximum(mean_square - delta * (2 * mean_off - delta), 0)


def _first_mean(x: Array, axis: int) -> Array:
    """Return the mean along an axis of `_first`."""
    first = _first(x, axis)
    return jnp.sum(first, axis=axis) / max(first.shape[axis], 1)


def _first(x: Array, axis: int) -> Array:
    """Return the first sixteenth along an axis, to guess a mean from; all of it where a pass costs less than a cut."""
    return jax.lax.slice_in_dim(x, 0, -(-x.shape[axis] // 16), axis=axis) if on_one_cpu() else x


def normalized(cache: BatchnormCache, beta: Array) -> Array:
    """Return gamma h + beta, the output of `batchnorm`, from what it keeps."""
    return by_channel(scaled)(cache.x, *scale_and_shift(cache, beta))


def scale_and_shift(cache: BatchnormCache, beta: Array) -> tuple[Array, Array, Array]:
    """Return what is subtracted from x, what that is multiplied with, and what is added, `(C,)`, float32 or wider."""
    return cache.mean, widen(cache.gamma) * cache.rstd, widen(beta)


def scaled(x: Array, mean: Array, scale: Array, shift: Array) -> Array:
    """Return `scale * (x - mean) + shift`, gamma h + beta, in x's dtype."""
    return ((widen(x) - mean) * scale + shift).astype(x.dtype)


@outlined(static=("axis_name",))  # or XLA makes dx again in each of its consumers
def batchnorm_backward(
    dout: tuple[Array, Array, Array], cache: BatchnormCache, *, axis_name: str | None = None
) -> tuple[Array, Array, Array]:
    """Return `dx, dgamma, dbeta` by the simplified formula; `dout` holds the cotangents of out, mean and var."""
    dy, dmean, dvar = dout
    dgamma, dbeta = parameter_gradients(dy, cache)
    return through_batchnorm(dy, dmean, dvar, dgamma, dbeta, cache, axis_name), dgamma, dbeta


def parameter_gradients(dy: Array, cache: BatchnormCache) -> tuple[Array, Array]:
    """Return `dgamma` and `dbeta`, `(C,)`, from the cotangent of gamma h + beta."""
    dy = _as_matrix(dy)
    dbeta, total = column_sums(dy, dy * (_as_matrix(cache.x) - cache.mean[None, :]))
    return total * cache.rstd, dbeta


def through_batchnorm(
    dy: Array, dmean: Array, dvar: Array, dgamma: Array, dbeta: Array, cache: BatchnormCache, axis_name: str | None
) -> Array:
    """Return `dx` from the cotangent of gamma h + beta and the parameters' gradients."""
    along = coefficients(dmean, dvar, dgamma, dbeta, cache, axis_name)
    return by_channel(combined)(dy, cache.x, cache.mean, *along)


def coefficients(
    dmean: Array, dvar: Array, dgamma: Array, dbeta: Array, cache: BatchnormCache, axis_name: str | None
) -> tuple[Array, Array, Array]:
    """Return what `dy`, `x - mean` and 1 are multiplied with in `dx`: `(C,)` each."""
    _, size = _all_but_last(cache.x, axis_name)
    scale = widen(cache.gamma) * cache.rstd
    along_h = (2.0 * dvar - scale * cache.rstd * _total(dgamma, axis_name)) / size
    along_1 = (dmean - scale * _total(dbeta, axis_name)) / size
    return scale, along_h, along_1


def combined(dy: Array, x: Array, mean: Array, scale: Array, along_h: Array, along_1: Array) -> Array:
    """Return `dx`, affine in `dy` and `x - mean` with three coefficients a channel."""
    return (scale * widen(dy) + along_h * (widen(x) - mean) + along_1).astype(x.dtype)


def batchnorm_backward_staged(dout: tuple[Array, Array, Array], cache: BatchnormCache) -> tuple[Array, Array, Array]:
    """Return `dx, dgamma, dbeta` by walking the computation graph backward, a node a line.

    The same result as `batchnorm_backward`, in more passes over the data: the form to learn from, and to check against.
    """
    dy, dmean, dvar = dout
    dtype, rstd, gamma = cache.x.dtype, cache.rstd, cache.gamma
    axes, size = _all_but_last(cache.x)
    dy, centred = widen(dy), widen(cache.x) - _row(cache.mean, cache.x)
    h = centred * _row(rstd, dy)
    # y = gamma * h + beta
    dbeta = jnp.sum(dy, axis=axes)
    dgamma = jnp.sum(dy * h, axis=axes)
    dh = dy * _row(widen(gamma), dy)
    # h = centred * rstd
    dcentred = dh * _row(rstd, dy)
    drstd = jnp.sum(dh * centred, axis=axes)
    # rstd = 1 / std
    std = 1.0 / rstd
    dstd = -drstd / std**2
    # std = sqrt(var + eps)
    dvar = dvar + 0.5 * dstd / std
    # var = sum(square) / size
    dsquare = jnp.broadcast_to(_row(dvar / size, dy), dy.shape)
    # square = centred ** 2
    dcentred = dcentred + 2.0 * centred * dsquare
    # centred = x - mean
    dx = dcentred
    dmean = dmean - jnp.sum(dcentred, axis=axes)
    # mean = sum(x) / size
    dx = dx + _row(dmean / size, dy)
    return dx.astype(dtype), dgamma, dbeta


class BatchnormInferenceCache(NamedTuple):
    """What the backward pass of `batchnorm_inference` needs."""

    x: Array  # (N, ..., C)
    mean: Array  # (C,)
    rstd: Array  # (C,), float32 or wider
    gamma: Array  # (C,)


def batchnorm_inference_forward(
    x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, eps: float = 1e-5
) -> tuple[Array, BatchnormInferenceCache]:
    r"""Normalise `x: (N, ..., C)` by a given mean and variance `(C,)`: batch normalization at test time.

    **Forward.** $r = (v+\epsilon)^{-1/2}$, $h_i = (x_i - m)\,r$, $y_i = \gamma h_i + \beta$, with $m$ and $v$ now
    inputs.

    **Backward.** Nothing but $h_i$ depends on $x_i$ any more: $\bar x_i = \gamma r\, g_i$. As before $\bar\gamma =
    \sum_i g_i h_i$ and $\bar\beta = \sum_i g_i$; the mean enters with slope $-\gamma r$ and the variance through
    $dr/dv = -\tfrac12 r^3$:

    $$ \bar m = -\gamma r\,\bar\beta, \qquad \bar v = -\tfrac12\gamma r^2\,\bar\gamma. $$

    **Kept:** `x`, `mean`, `rstd`, `gamma`.

    Reference: Ioffe & Szegedy 2015, arXiv:1502.03167, section 3.1.

    Returns `out` in x's dtype, and the cache.
    """
    _check_channels("batchnorm_inference", x, 2, gamma=gamma, beta=beta, mean=mean, var=var)
    rstd = jax.lax.rsqrt(widen(var) + eps)
    out = (widen(x) - _row(widen(mean), x)) * _row(widen(gamma) * rstd, x) + _row(widen(beta), x)
    return out.astype(x.dtype), BatchnormInferenceCache(x, mean, rstd, gamma)


def batchnorm_inference_backward(
    dout: Array, cache: BatchnormInferenceCache
) -> tuple[Array, Array, Array, Array, Array]:
    """Return `dx, dgamma, dbeta, dmean, dvar`; derivation in `batchnorm_inference_forward`."""
    x, mean, rstd, gamma = cache
    dy, scale = widen(dout), widen(gamma) * rstd
    rows = _as_matrix(dout)
    dbeta, total = column_sums(rows, rows * (_as_matrix(x) - widen(mean)[None, :]))
    dgamma = total * rstd
    dx = dy * _row(scale, x)
    return dx.astype(x.dtype), dgamma, dbeta, -scale * dbeta, -0.5 * scale * rstd * dgamma


class LayernormCache(NamedTuple):
    """What the backward pass of `layernorm` needs."""

    x: Array  # (..., C), the input's own dtype
    mean: Array  # (..., 1), float32 or wider
    rstd: Array  # (..., 1), float32 or wider
    gamma: Array  # (C,)


def layernorm_forward(x: Array, gamma: Array, beta: Array, *, eps: float = 1e-5) -> tuple[Array, LayernormCache]:
    r"""Normalise each row of `x: (..., C)` over its last axis, then scale and shift by `(C,)` vectors.

    **Forward.** Per row, over its $C$ entries, $m = \langle x\rangle$, $v = \langle (x-m)^2\rangle$, $r =
    (v+\epsilon)^{-1/2}$, $h = (x-m)\,r$, $y = \gamma h + \beta$. Both sums are taken in one pass about a guess, the
    mean of a sixteenth of the row, as in `batchnorm_forward`.

    **Backward.** $\gamma$ and $\beta$ are shared by the rows: $\bar\gamma = \sum_\text{rows} g h$, $\bar\beta =
    \sum_\text{rows} g$. Let $n = \gamma g$ be the cotangent of $h$. Both $m$ and $r$ move with every entry of the
    row: steps 1 to 5 of `batchnorm_forward`, with the mean now over the row and no cotangents of $m$ and $v$ from
    outside, give

    $$ \bar x = r\,\bigl(n - \langle n\rangle - h\,\langle n h\rangle\bigr). $$

    The difference from batch normalization: $\gamma$ varies along the axis of the mean, so it stays inside
    $\langle\cdot\rangle$, and the two means are no by-product of $\bar\gamma$ and $\bar\beta$.

    **Kept:** `x`, with `mean` and `rstd` a row. $h$ is one multiply-add to rebuild and a whole activation to store.

    Reference: Ba, Kiros & Hinton 2016, arXiv:1607.06450.

    Returns `out` in x's dtype, and the cache.
    """
    _check_channels("layernorm", x, 1, gamma=gamma, beta=beta)
    mean, rstd = _row_moments(x, eps=eps)
    out = (widen(x) - mean) * rstd * _row(widen(gamma), x) + _row(widen(beta), x)
    return out.astype(x.dtype), LayernormCache(x, mean, rstd, gamma)


def layernorm_backward(dout: Array, cache: LayernormCache) -> tuple[Array, Array, Array]:
    """Return `dx, dgamma, dbeta`; derivation in `layernorm_forward`."""
    x, mean, rstd, gamma = cache
    along_1, along_h = _row_means(dout, cache)
    dy, h = widen(dout), (widen(x) - mean) * rstd
    dx = rstd * (dy * _row(widen(gamma), x) - along_1 - h * along_h)
    if x.shape[-1] == 1:  # a lone entry is its own mean; left to rounding, the difference is large against rstd
        dx = jnp.zeros_like(dx)
    dgamma, dbeta = column_sums(_as_matrix(dy * h), _as_matrix(dy))
    return dx.astype(x.dtype), dgamma, dbeta


@outlined()  # or XLA sums up and computes dx in one kernel of YNN's, for which it writes out all that dx is made of
def _row_means(dout: Array, cache: LayernormCache) -> tuple[Array, Array]:
    """Return the means of n and of n h over each row, `(..., 1)`."""
    x, mean, rstd, gamma = cache
    n = widen(dout) * _row(widen(gamma), x)
    along_1, along_h = (v[..., None] / max(x.shape[-1], 1) for v in row_sums(n, n * (widen(x) - mean) * rstd))
    return along_1, along_h


@outlined(static=("eps",))  # or XLA writes out x - mean, and rstd once an entry
def _row_moments(x: Array, *, eps: float) -> tuple[Array, Array]:
    """Return the mean of each row and the reciprocal of its deviation, `(..., 1)`, in one pass, as `batchnorm`."""
    wide, size = widen(x), max(x.shape[-1], 1)
    guess = _first_mean(wide, axis=-1)[..., None]
    off = wide - guess
    mean_off, mean_square = (total[..., None] / size for total in row_sums(off, off * off))
    mean = guess + mean_off
    return mean, jax.lax.rsqrt(_variance(mean - guess, mean_off, mean_square) + eps)


class GroupnormCache(NamedTuple):
    """What the backward pass of `groupnorm` needs."""

    x: Array  # (N, ..., C), the input's own dtype
    mean: Array  # (N, 1, G), float32 or wider
    rstd: Array  # (N, 1, G), float32 or wider
    gamma: Array  # (C,)


def groupnorm_forward(
    x: Array, gamma: Array, beta: Array, *, groups: int, eps: float = 1e-5
) -> tuple[Array, GroupnormCache]:
    r"""Normalise `x: (N, ..., C)` an example and a group of C / groups contiguous channels at a time.

    **Forward.** See `x` as $(N, S, G, C/G)$, $S$ positions and $G$ groups. Over the $S\,C/G$ entries of an example's
    group: $m = \langle x\rangle$, $v = \langle (x-m)^2\rangle$, $r = (v+\epsilon)^{-1/2}$, $h = (x-m)\,r$; then $y =
    \gamma h + \beta$ a channel. Both sums are taken in one pass about a guess, the mean over a sixteenth of the
    positions, as in `batchnorm_forward`.

    **Backward.** Steps 1 to 5 of `batchnorm_forward` with the mean over a group. $\gamma$ varies inside the group and
    is shared by examples and positions:

    $$ n = \gamma g, \qquad \bar x = r\,\bigl(n - \langle n\rangle - h\,\langle n h\rangle\bigr), \qquad
       \bar\gamma = \sum_{N, S} g h, \qquad \bar\beta = \sum_{N, S} g. $$

    All four sums come from two of an example and channel, $b = \sum_S g$ and $a = \sum_S g h$: $\bar\beta = \sum_N b$,
    $\bar\gamma = \sum_N a$, and over the channels of a group $\sum \gamma b$ and $\sum \gamma a$ are the means.

    One group on `(N, C)` is layer normalization; C groups are instance normalization.

    **Kept:** `x`, with `mean` and `rstd` an example and group.

    Reference: Wu & He 2018, arXiv:1803.08494.

    `groups` must divide C. Returns `out` in x's dtype, and the cache.
    """
    _check_channels("groupnorm", x, 2, gamma=gamma, beta=beta)
    channels = x.shape[-1]
    divides = groups > 0 and channels % groups == 0
    require(divides, f"groupnorm: groups is {groups}; it must divide the {channels} channels of x {x.shape}")
    mean, rstd = _group_moments(x, groups=groups, eps=eps)
    h = _positions(x) - _a_channel(mean, x)
    out = h * (_a_channel(rstd, x) * _row(widen(gamma), h)) + _row(widen(beta), h)
    return out.reshape(x.shape).astype(x.dtype), GroupnormCache(x, mean, rstd, gamma)


@outlined()  # or XLA keeps the normalised images, which cost one pass to rebuild
def groupnorm_backward(dout: Array, cache: GroupnormCache) -> tuple[Array, Array, Array]:
    """Return `dx, dgamma, dbeta`; derivation in `groupnorm_forward`."""
    x, mean, rstd, gamma = cache
    groups, scale = mean.shape[-1], widen(gamma)[None, None, :]
    dy, rstd = _positions(dout), _a_channel(rstd, x)
    h = (_positions(x) - _a_channel(mean, x)) * rstd
    sum_dyh, sum_dy = (total[:, None] for total in column_sums(dy * h, dy))  # (N, 1, C)
    along_1, along_h = (_a_channel(_group_mean(scale * v, x, groups), x) for v in (sum_dy, sum_dyh))
    dx = dy * (rstd * scale) - rstd * along_1 - h * (rstd * along_h)
    if math.prod(x.shape[1:]) == groups:  # as in `layernorm_backward`
        dx = jnp.zeros_like(dx)
    return dx.reshape(x.shape).astype(x.dtype), sum_dyh.sum(axis=(0, 1)), sum_dy.sum(axis=(0, 1))


@outlined(static=("groups", "eps"))  # as in `_row_moments`
def _group_moments(x: Array, *, groups: int, eps: float) -> tuple[Array, Array]:
    """Return the mean of each example's group and the reciprocal of its deviation, `(N, 1, G)`, in one pass."""
    wide = _positions(x)
    first = _first(wide, axis=1)
    guess = _group_mean(jnp.sum(first, axis=1, keepdims=True), first, groups)
    off = wide - _a_channel(guess, x)
    mean_off, mean_square = (_group_mean(total[:, None], x, groups) for total in column_sums(off, off * off))
    mean = guess + mean_off
    return mean, jax.lax.rsqrt(_variance(mean - guess, mean_off, mean_square) + eps)


def _group_mean(sums: Array, x: Array, groups: int) -> Array:
    """Return the means of the groups of `x: (N, ..., C)`, `(N, 1, G)`, from its sums by channel, `(N, 1, C)`."""
    size = math.prod(x.shape[1:]) // groups
    return sums.reshape(len(x), 1, groups, x.shape[-1] // groups).sum(axis=-1) / max(size, 1)


def _a_channel(values: Array, x: Array) -> Array:
    """Give each channel of `x: (N, ..., C)` what its group has, `(N, 1, G)`: `(N, 1, C)`."""
    return _repeated(values, times=x.shape[-1] // values.shape[-1])


@outlined(static=("times",))  # or the loops over images look up the group of each entry, one by one
def _repeated(values: Array, *, times: int) -> Array:
    return jnp.repeat(values, times, axis=-1)


def _positions(x: Array) -> Array:
    """See `(N, ..., C)` as `(N, positions, C)`, float32 or wider."""
    return widen(x).reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])


def _as_matrix(x: Array) -> Array:
    """See `(N, ..., C)` as `(M, C)`, float32 or wider."""
    return widen(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _all_but_last(x: Array, axis_name: str | None = None) -> tuple[tuple[int, ...], int]:
    """Return all axes but the last, and how many entries they hold (at least 1: the mean of nothing is 0)."""
    devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    return tuple(range(x.ndim - 1)), max(math.prod(x.shape[:-1]) * devices, 1)


def _total(here: Array, axis_name: str | None) -> Array:
    """Add up what the devices along `axis_name` hold."""
    return here if axis_name is None else jax.lax.psum(here, axis_name)


def _row(vector: Array, x: Array) -> Array:
    """See a `(C,)` vector as `(1, ..., C)` with x's rank."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


def _check_channels(op: str, x: Array, at_least: int, **vectors: Array) -> None:
    """Check that x has enough axes, and that each vector has one entry a channel."""
    require_float(op, x=x, **vectors)
    require_rank(op, "x", x, at_least, "(N, ..., C)" if at_least == 2 else "(..., C)")
    for name, vector in vectors.items():
        require_shape(op, name, vector, x.shape[-1:], f"the channels of x {x.shape}")
