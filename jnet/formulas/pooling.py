"""Max and average over the windows of an image, NHWC."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jnet.formulas.outline import in_one_loop, outlined
from jnet.formulas.precision import widen
from jnet.formulas.validate import require, require_float
from jnet.formulas.windows import Geometry, Padding, Pair, geometry, window_slices

__all__ = [
    "AvgPool2dCache",
    "MaxPool2dCache",
    "at_winners",
    "avg_pool2d_backward",
    "avg_pool2d_forward",
    "largest",
    "max_pool2d_backward",
    "max_pool2d_forward",
    "nobody",
    "pool_geometry",
    "to_winners",
]


class MaxPool2dCache(NamedTuple):
    """What the backward pass of `max_pool2d` needs: one byte an output."""

    winner: Array  # (N, OH, OW, C), uint8 (wider from 255 taps on): the tap that won, i * WW + j
    image: Array  # (0, H, W, C), no bytes: the size of the image, which strides may not tell


def max_pool2d_forward(
    x: Array,
    *,
    window: int | Sequence[int] = 2,
    stride: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
    dilation: int | Sequence[int] = 1,
) -> tuple[Array, MaxPool2dCache]:
    r"""Take the largest entry of each window of `x: (N, H, W, C)`, a channel at a time.

    **Forward.** Window $o$ sees the pixels $h = o s - P + i d$ a tap $i$, an axis at a time: stride $s$, padding $P$ in
    front, dilation $d$. The padding is $-\infty$. Play the taps off in pairs of neighbours, each with its number, until
    one is left, of equals the first: $y_o = \max_i x_{o s - P + i d}$ and $k_o = \operatorname{argmax}$.

    **Backward.**

    1. $y_o$ is the entry under tap $k_o$, so $\partial y_o / \partial x_h = [\,o s - P + k_o d = h\,]$ and
       $\bar x_h = \sum_o g_o\,[\,o s - P + k_o d = h\,]$.
    2. To scatter each $g_o$ is to write at random. Gather instead: for pixel $h$, sum over the windows that cover it.
       Number the pixels $h = a s + p$, block $a$ and place $0 \le p < s$ in it. Tap $i$ of window $o$ is on $h$ where
       $i d - P = (a - o)\,s + p$, that is, with $i d - P = u s + p$ divided with remainder, where $o = a - u$.
    3. So the taps fall into few groups by their shift $u$, at most one tap $i(u, p)$ a place, and
       $\bar x_{a s + p} = \sum_u g_{a-u}\,[\,k_{a-u} = i(u, p)\,]$: shifted reads, a comparison with a constant, a
       sum, in one pass that writes each pixel once. Where windows tile the image there is one shift, $u = 0$, and no
       sum is left.

    **Kept:** the winner's number, one byte an output. (Kept instead, `x` and `out` are 4 (s² + 1) bytes an output.)

    **At ties** the whole gradient goes to the first maximum in row-major order, as in torch and XLA; padding never
    wins, not even against $-\infty$. NaN goes through, and the first NaN of a window gets the gradient.

    Reference: Ranzato, Huang, Boureau & LeCun 2007, doi:10.1109/CVPR.2007.383157; torch.nn.MaxPool2d.

    `window`, `stride` (by default the window) and `dilation` are an int or (h, w); `padding` as in
    `windows.resolve_padding`. Returns `out: (N, OH, OW, C)` in x's dtype, and the cache. Raises `ValueError` where no
    window fits.
    """
    where = pool_geometry("max_pool2d", x, window, stride, padding, dilation)
    out, winner = _largest(x, where=where)
    return out, MaxPool2dCache(winner, x[:0])


def max_pool2d_backward(
    dout: Array,
    cache: MaxPool2dCache,
    *,
    window: int | Sequence[int] = 2,
    stride: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
    dilation: int | Sequence[int] = 1,
) -> Array:
    """Return `dx: (N, H, W, C)`; derivation in `max_pool2d_forward`."""
    where = pool_geometry("max_pool2d", cache.image, window, stride, padding, dilation)
    return to_winners(dout, cache.winner, where)


@outlined(static=("where",))  # the index must be stored, not found again once a pixel from the whole of x
def _largest(x: Array, *, where: Geometry) -> tuple[Array, Array]:
    values, winner = in_one_loop(*largest(x, where))
    return values, winner


def largest(x: Array, where: Geometry) -> tuple[Array, Array]:
    """Return the largest entry of each window and the number of its tap, both `(N, OH, OW, C)`."""
    values, winner = _by_bands(_largest_of_band, x, where)
    return values, winner


def to_winners(dout: Array, winner: Array, where: Geometry) -> Array:
    """Return `dx: (N, H, W, C)`, each `dout` added to the pixel that won; a winner `nobody(where)` gets nothing."""
    winner, dout = winner[:, :, None, :, None, :], dout[:, :, None, :, None, :]

    def part(shift: Pair, taps: Array) -> Array:
        if where.stride == (1, 1):  # either order is right; XLA vectorises this one without blocks, that one with
            return _shift(jnp.where(winner == taps, dout, jnp.zeros((), dout.dtype)), shift, where)
        is_winner = _shift(winner, shift, where, nobody(where)) == taps
        return jnp.where(is_winner, _shift(dout, shift, where), jnp.zeros((), dout.dtype))

    return _gather(part, where)


def at_winners(x: Array, winner: Array, where: Geometry) -> Array:
    """Return the entries of `x: (N, H, W, C)` at the winners, `(N, OH, OW, C)`; 0 where nobody won."""
    entries = jnp.zeros(winner.shape, x.dtype)
    for tap, values in enumerate(window_slices(x, where)):
        entries = jnp.where(winner == winner.dtype.type(tap), values, entries)
    return entries


def _largest_of_band(x: Array, where: Geometry, corner: Pair) -> tuple[Array, Array]:
    """Play the taps of each window off against each other, pair by pair: shorter chains than a walk."""
    values = window_slices(x, where, -jnp.inf, corner)
    rounds = list(zip(values, _own_numbers(where, x.shape[1:3]), strict=True))
    while len(rounds) > 1:
        pairs = [_larger(*rounds[i : i + 2]) for i in range(0, len(rounds) - 1, 2)]
        rounds = pairs + rounds[2 * len(pairs) :]
    largest, winner = rounds[0]
    return largest, jnp.broadcast_to(winner, largest.shape)


def _larger(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return the larger value with its tap, the first of equals, and the first NaN."""
    second_wins = ~(second[0] <= first[0]) & (first[0] == first[0])
    return jnp.where(second_wins, second[0], first[0]), jnp.where(second_wins, second[1], first[1])


def _own_numbers(where: Geometry, size: Sequence[int]) -> list[Array]:
    """Return for each tap its number, `(1, OH, OW, 1)`, on the padding that of the window's first tap inside.

    So the padding never wins, not even among equals at -inf.
    """
    rows, columns = ((0 <= pixels) & (pixels < length) for pixels, length in zip(_pixels(where), size, strict=True))
    first = rows.argmax(axis=1)[:, None] * where.window[1] + columns.argmax(axis=1)
    numbers = [
        np.where(row[:, None] & column, i * where.window[1] + j, first)
        for (i, row), (j, column) in product(enumerate(rows.T), enumerate(columns.T))
    ]
    own_or_one = (own[:1, :1] if (own == own[0, 0]).all() else own for own in numbers)
    return [jnp.asarray(own[None, :, :, None].astype(_index_dtype(where))) for own in own_or_one]


class AvgPool2dCache(NamedTuple):
    """What the backward pass of `avg_pool2d` needs: shapes, no bytes."""

    image: Array  # (0, H, W, C): the size of the image, which strides may not tell


def avg_pool2d_forward(
    x: Array,
    *,
    window: int | Sequence[int] = 2,
    stride: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
) -> tuple[Array, AvgPool2dCache]:
    r"""Average each window of `x: (N, H, W, C)`, a channel at a time.

    **Forward.** $y_o = \frac{1}{n_o} \sum_i x_{o s - P + i}$ with zeros for the padding; $n_o$ is the number of taps,
    or without `count_include_pad` of those on the image. Sums run in float32 or wider.

    **Backward.** $y$ is linear in $x$: $\bar x_h = \sum_o \frac{g_o}{n_o}\,[\text{window } o \text{ covers } h]$. With
    pixels and taps grouped as in `max_pool2d_forward`, $\bar x_{a s + p} = \sum_u \frac{g_{a-u}}{n_{a-u}}\,[\,i(u, p)
    \text{ exists}\,]$: where windows tile the image, each pixel takes its window's share.

    **Kept:** nothing.

    Reference: LeCun, Boser et al. 1989, doi:10.1162/neco.1989.1.4.541; torch.nn.AvgPool2d.

    Arguments as in `max_pool2d_forward`. Returns `out: (N, OH, OW, C)` in x's dtype, and the cache. A window that lies
    wholly on padding which is not counted is the mean of nothing, NaN.
    """
    where = pool_geometry("avg_pool2d", x, window, stride, padding, 1)
    (total,) = _by_bands(_sum_of_band, widen(x), where)
    return (total / _count(where, count_include_pad)).astype(x.dtype), AvgPool2dCache(x[:0])


def avg_pool2d_backward(
    dout: Array,
    cache: AvgPool2dCache,
    *,
    window: int | Sequence[int] = 2,
    stride: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
) -> Array:
    """Return `dx: (N, H, W, C)`; derivation in `avg_pool2d_forward`."""
    where = pool_geometry("avg_pool2d", cache.image, window, stride, padding, 1)
    share = (widen(dout) / _count(where, count_include_pad))[:, :, None, :, None, :]

    def part(shift: Pair, taps: Array) -> Array:
        covered = taps != _no_tap(where)
        return jnp.where(covered, _shift(share, shift, where), jnp.zeros((), share.dtype))

    return _gather(part, where).astype(dout.dtype)


def _sum_of_band(x: Array, where: Geometry, corner: Pair) -> tuple[Array]:
    first, *others = window_slices(x, where, corner=corner)
    return (sum(others, start=first),)


def _count(where: Geometry, count_include_pad: bool) -> np.ndarray:
    """Count the taps of each window: `(1, OH, OW, 1)`, float32."""
    rows, columns = (
        np.count_nonzero(count_include_pad | (0 <= pixels) & (pixels < size), axis=1)
        for pixels, size in zip(_pixels(where), where.size, strict=True)
    )
    return (rows[:, None] * columns)[None, :, :, None].astype(np.float32)


# Geometry, known while tracing


def pool_geometry(op: str, x: Array, window, stride, padding: Padding, dilation) -> Geometry:
    """Check `x: (N, H, W, C)` and lay the windows of `op` over it; `stride` None is the window."""
    require_float(op, x=x)
    require(x.ndim == 4, f"{op}: x has shape {x.shape}; it must be (N, H, W, C)")
    return geometry(op, x.shape[1:3], window, window if stride is None else stride, padding, dilation)


def nobody(where: Geometry) -> int:
    """Return a number for the winner of a window in which no pixel wins."""
    return where.window[0] * where.window[1]


def _no_tap(where: Geometry) -> int:
    """Return a number that neither a tap nor a winner has."""
    return nobody(where) + 1


def _index_dtype(where: Geometry) -> np.dtype:
    return np.min_scalar_type(_no_tap(where))


def _pixels(where: Geometry) -> list[np.ndarray]:
    """Return for each axis the pixel under each tap of each window, `(out, window)`; below 0 on the padding."""
    return [
        stride * np.arange(out)[:, None] - before + dilation * np.arange(window)
        for out, window, stride, (before, _), dilation in zip(*where[5:], *where[1:5], strict=True)
    ]


def _gather(part: Callable[[Pair, Array], Array], where: Geometry) -> Array:
    """Sum `part(shift, taps)`, `(N, A, s, B, s, C)`, over the shifts; return it as an image, `(N, H, W, C)`.

    `taps: (1, 1, s, 1, s, 1)` numbers the tap that is on each place of a block, `_no_tap` where there is none.
    """
    total = None
    for shift in product(_shifts(where, 0), _shifts(where, 1)):
        term = part(shift, _taps_at(shift, where))
        total = term if total is None else total + term
    assert total is not None, "a window has at least one tap"
    n, a, _, b, _, c = total.shape
    image = total.reshape(n, a * where.stride[0], b * where.stride[1], c)
    return image[:, : where.size[0], : where.size[1]]


def _shifts(where: Geometry, axis: int) -> list[int]:
    """Return how many blocks back windows lie that have a tap on a block."""
    stride, before = where.stride[axis], where.padding[axis][0]
    return sorted({(tap * where.dilation[axis] - before) // stride for tap in range(where.window[axis])})


def _taps_at(shift: Pair, where: Geometry) -> Array:
    """Number the tap of a window `shift` blocks back that is on each place of a block: `(1, 1, s, 1, s, 1)`.

    Counted in the compiled loop, which is faster than reading a constant.
    """
    tops, lefts = (_taps_along(shift[axis], where, axis) for axis in (0, 1))
    none = (tops < 0)[:, None] | (lefts < 0)[None, :]
    taps = jnp.where(none, _no_tap(where), (tops * where.window[1])[:, None] + lefts[None, :])
    return taps.astype(_index_dtype(where))[None, None, :, None, :, None]


def _taps_along(u: int, where: Geometry, axis: int) -> Array:
    """Number the tap of a window u blocks back on each of the `s` places along an axis, -1 for none."""
    stride, dilation = where.stride[axis], where.dilation[axis]
    offset = u * stride + where.padding[axis][0] + lax.iota(np.int32, stride)
    tap, rest = lax.div(offset, np.int32(dilation)), lax.rem(offset, np.int32(dilation))
    return jnp.where((rest == 0) & (tap >= 0) & (tap < where.window[axis]), tap, -1)


def _shift(parts: Array, shift: Pair, where: Geometry, fill: int = 0) -> Array:
    """Move `(N, OH, 1, OW, 1, C)` down and right by `shift` and to the size of the image in blocks."""
    blocks = (-(-size // stride) for size, stride in zip(where.size, where.stride, strict=True))
    rows, columns = ((u, count - out - u, 0) for u, count, out in zip(shift, blocks, where.out, strict=True))
    none = (0, 0, 0)
    return lax.pad(parts, jnp.asarray(fill, parts.dtype), (none, rows, none, columns, none, none))


def _by_bands(
    of_band: Callable[[Array, Geometry, Pair], tuple[Array, ...]], x: Array, where: Geometry
) -> tuple[Array, ...]:
    """Apply `of_band` to the middle, where no window touches the padding, and to the borders; join the results.

    To pad the whole image would be to copy it, for the sake of a border. The middle is not cut out either: its taps
    are slices, and XLA would write out what they are slices of.
    """
    rows = []
    for top, bottom, above_below, height in _bands(where, 0):
        columns = []
        for left, right, before_after, width in _bands(where, 1):
            band = where._replace(padding=(above_below, before_after), out=(height, width))
            padded = any((*above_below, *before_after))
            part, corner = (x[:, top:bottom, left:right], (0, 0)) if padded else (x, (top, left))
            columns.append(of_band(part, band, corner))
        rows.append([jnp.concatenate(results, axis=2) for results in zip(*columns, strict=True)])
    return tuple(jnp.concatenate(results, axis=1) for results in zip(*rows, strict=True))


def _bands(where: Geometry, axis: int) -> list[tuple[int, int, Pair, int]]:
    """Return `(start, stop, padding, windows)` of up to three runs: windows before, inside and past the image."""
    size, pixels = where.size[axis], _pixels(where)[axis]
    inside = ((0 <= pixels) & (pixels < size)).all(axis=1)
    first = int(inside.argmax()) if inside.any() else len(pixels)
    bands = []
    for run in (pixels[:first], pixels[first : first + inside.sum()], pixels[first + inside.sum() :]):
        if len(run):
            start, stop = int(run[0, 0]), int(run[-1, -1]) + 1
            before, after = min(max(-start, 0), stop - start), min(max(stop - size, 0), stop - start)
            bands.append((max(start, 0), min(stop, size), (before, after), len(run)))
    return bands
