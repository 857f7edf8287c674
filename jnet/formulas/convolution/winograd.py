"""3x3 convolution with a quarter of the multiplications: Winograd's F(4x4, 3x3), forward and its transpose."""

import functools
import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jnet.formulas import onednn
from jnet.formulas.convolution.parts import count, groups_of, in_parts
from jnet.formulas.outline import outlined
from jnet.formulas.precision import widen
from jnet.formulas.windows import Geometry

__all__ = ["backward", "forward", "input_gradient", "suits", "transforms", "use", "weight_gradient"]

TILE, TAPS = 4, 3  # outputs of a tile and taps of a filter, along each axis
SIZE = TILE + TAPS - 1  # inputs of a tile, and products of it, along each axis
POINTS = (0, 1, -1, 2, -2)  # where the polynomials are evaluated, besides infinity

Matrix = tuple[tuple[float, ...], ...]  # one that `jit` can know

# Transformed tiles beyond this many bytes leave the cache between the stages; then the images go through in parts.
TOO_MANY_BYTES, PART_BYTES = 24_000_000, 16_000_000


def transforms(points: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Return the matrices $A^\top, G, B^\top$ of one axis for `points` and infinity.

    **Derivation.** Multiplying polynomials $a$ (degree $m - 1$) and $g$ (degree $r - 1$) needs no more products than
    the result has coefficients, $\alpha = m + r - 1$: evaluate both at $\alpha$ points, infinity (the leading
    coefficient) among them, multiply value by value, and interpolate. With $E_m$ the evaluation of a polynomial of $m$
    coefficients and $C$ the interpolation, the full convolution is $C\,(E_r g \odot E_m a)$. For fixed $g$ it is linear
    in $a$: the matrix $C\,\mathrm{diag}(E_r g)\,E_m$. Its transpose is the *correlation* with $g$ of $\alpha$ inputs,
    giving $m$ outputs:

    $$y = E_m^\top \big[(E_r g) \odot (C^\top d)\big] = A^\top\big[(G g) \odot (B^\top d)\big].$$

    Lagrange: the polynomial with values $v_k$ at the points $p_k$ and leading coefficient $v_\infty$ is
    $\sum_k v_k \prod_{l \ne k} (x - p_l) / N_k + v_\infty \prod_l (x - p_l)$ with $N_k = \prod_{l\ne k}(p_k - p_l)$,
    after the leading term is taken off. So row $k$ of $B^\top$ holds the coefficients of $\prod_{l\ne k}(x - p_l)$, its
    last row those of $\prod_l (x - p_l)$, and $1/N_k$ is moved to $G$, which transforms the small filters.
    """
    degree = len(points)
    a = np.array([[float(p) ** i for p in points] + [float(i == TILE - 1)] for i in range(TILE)])
    scale = [Fraction(1, prod(p - q for q in points if q != p)) for p in points]
    g = np.array([[float(s * p**j) for j in range(TAPS)] for p, s in zip(points, scale, strict=True)] + [[0, 0, 1.0]])
    others = [[q for q in points if q != p] for p in points] + [list(points)]
    b = np.array([np.pad(np.poly(roots)[::-1], (0, degree - len(roots))) for roots in others])
    return a, g, np.round(b)


_A, _G, _B = transforms(POINTS)
_TILES, _COTANGENTS = (tuple(map(tuple, m.tolist())) for m in (_B, _A.T))
_AA = np.kron(_A, _A)  # both axes at once
_GG = np.kron(_G, _G).reshape(SIZE, SIZE, TAPS**2).swapaxes(0, 1).reshape(SIZE**2, TAPS**2)  # column products first


def suits(where: Geometry, groups: int) -> bool:
    """Return whether this algorithm can compute the convolution at all."""
    return (where.window, where.stride, where.dilation, groups) == ((TAPS, TAPS), (1, 1), (1, 1), 1)


def use(where: Geometry) -> float:
    """Return the share of the computed outputs that lie in the image: the last tiles reach over its edge."""
    rows, columns = _grid(where)
    return where.out[0] * where.out[1] / (TILE**2 * rows * columns)


def forward(x: Array, w: Array, where: Geometry, groups: int) -> Array:
    r"""Return the correlation of `x: (N, H, W, C)` with `w: (3, 3, C, F)`, `(N, OH, OW, F)`.

    **Forward.** Along both axes, for a tile $d$ of 6x6 inputs and its 4x4 outputs,

    $$U_{cf} = G\,w_{cf}\,G^\top, \quad V_{c} = B^\top d_c\,B, \quad M_f = \sum_c U_{cf} \odot V_c, \quad
    y_f = A^\top M_f\,A.$$

    The sum over channels is a matrix product for each of the 36 entries: 36 multiplications give 16 outputs, which
    take 144 directly. The transforms are one pass an axis, so that no combination is computed twice.

    **Backward.** With $w'_{fc}(a, b) = w_{cf}(2 - a, 2 - b)$, the filters turned by half a turn, the cotangent of x is
    itself a correlation with 3x3 filters, of $\bar y$ with $w'$ (`input_gradient`), and is computed like one:
    $\bar x_c = A^\top\big[\sum_f U'_{fc} \odot V'_f\big]A$ with $U' = G\,w'\,G^\top$ and $V' = B^\top\,\bar y\,B$.

    The change of the loss, $\langle y, \bar y\rangle = \langle x, \bar x\rangle$, is linear in each of $x$, $w'$ and
    $\bar y$. So the cotangent of $w'$ is what the transpose of the map $w' \mapsto \bar x$ makes of $x$: with
    $Z_c = A\,x_c\,A^\top$ of the 4x4 tiles of x, which do not overlap,

    $$\bar U'_{fc} = \sum_{\text{tiles}} V'_f \odot Z_c, \quad \bar w' = G^\top\,\bar U'\,G.$$

    $V'$ serves both gradients. (Transposing the forward pass itself would make dx a sum over overlapping tiles.)

    **Rounding.** The transforms add and subtract numbers of different sizes: in float32 the error is about 1e-5 of the
    largest entry, where the direct sum has 1e-6. float16 and bfloat16 are computed in float32.

    Reference: Winograd 1980, "Arithmetic Complexity of Computations"; Lavin & Gray 2016, arXiv:1509.09308.
    """
    del groups
    return _correlation(x, _filters(widen(w)), _products, w.shape[2:], where)


def input_gradient(dout: Array, w: Array, where: Geometry, groups: int) -> Array:
    """Return the cotangent of x, `(N, H, W, C)`; derivation in `forward`."""
    del groups
    return _correlation(dout, _turned_filters(widen(w)), _products_back, w.shape[2:], _reverse(where))


def _correlation(
    x: Array, u: Array, products: Callable[[Array, Array], Array], channels: Sequence[int], where: Geometry
) -> Array:
    """Correlate x with the filters whose transform is `u`; `products` multiplies their tiles with those of x."""

    def part(x: Array) -> tuple[Array, tuple[()]]:
        return _outputs(products(_tiles(widen(x), where), u), x.shape[0], where), ()

    return _in_parts(part, where, channels, x)[0]


def weight_gradient(x: Array, dout: Array, where: Geometry, groups: int) -> Array:
    """Return the cotangent of w, `(3, 3, C, F)`; derivation in `forward`."""
    del groups
    where = _reverse(where)

    def part(x: Array, dout: Array) -> tuple[tuple[()], Array]:
        return (), _met(_cotangents(widen(x), where), _tiles(widen(dout), where))

    return _in_parts(part, where, (x.shape[-1], dout.shape[-1]), x, dout)[1]


def backward(x: Array, w: Array, dout: Array, where: Geometry) -> tuple[Array, Array]:
    """Return both gradients, for which the tiles of the cotangent are transformed once; derivation in `forward`."""
    where = _reverse(where)
    u = _turned_filters(widen(w))

    def part(x: Array, dout: Array) -> tuple[Array, Array]:
        v = _tiles(widen(dout), where)
        return _outputs(_products_back(v, u), x.shape[0], where), _met(_cotangents(widen(x), where), v)

    return _in_parts(part, where, w.shape[2:], x, dout)


def _reverse(where: Geometry) -> Geometry:
    """Return the geometry of the correlation that gives dx: from the outputs back to the image."""
    (top, bottom), (left, right) = where.padding
    back = TAPS - 1
    padding = (back - top, back - bottom), (back - left, back - right)
    return where._replace(size=where.out, padding=padding, out=where.size)


def _in_parts(part: Callable[..., Any], where: Geometry, channels: Sequence[int], *images: Array) -> tuple[Any, Any]:
    """Apply `part` to as many images of a group at a time as leave their transformed tiles in the cache.

    Returns the images of the whole batch, and the filters' gradient, of which `part` gives the transform.
    """
    groups = groups_of(images[0].shape[0])
    n = images[0].shape[0] // groups
    # By the larger, so that neighbouring layers have parts of the same shape, whose loops are compiled once.
    tile_bytes = 4 * SIZE**2 * prod(_grid(where)) * 2 * max(channels)
    parts = 1
    if n * tile_bytes > TOO_MANY_BYTES:
        parts = count(n, -(-n * tile_bytes // PART_BYTES))
    each, du = in_parts(part, parts, *(v.reshape(groups, n, *v.shape[1:]) for v in images))
    whole = jax.tree.map(lambda v: v.reshape(groups * n, *v.shape[2:]), each)
    # Transformed before the groups are summed: what devices tell each other is then a quarter as large.
    return whole, jax.tree.map(lambda u: _filters_back(u).sum(axis=0), du)


# The stages. A "grid" is the tiles of an image, (TH, TW); k counts the 36 products, column products first.


def _grid(where: Geometry) -> tuple[int, int]:
    return -(-where.out[0] // TILE), -(-where.out[1] // TILE)


@outlined(static=("matrix", "tiles"))  # or XLA would do both axes in one loop, the first again for each of the second
def _along_an_axis(x: Array, *, matrix: Matrix, tiles: int) -> Array:
    """Multiply `matrix`, `(6, K)`, with K pixels from every fourth on, of the middle axis of x: `(6, a, tiles, b)`.

    Zeros and all, as one loop: without them it would be six, as fast and four times as long to compile.
    """
    x, run = x[None], TILE * (tiles - 1) + 1
    pixels = [lax.slice_in_dim(x, k, k + run, TILE, axis=2) for k in range(len(matrix[0]))]
    columns = np.asarray(matrix, x.dtype).T.reshape(-1, SIZE, 1, 1, 1)
    return functools.reduce(operator.add, map(operator.mul, pixels, columns))


def _filters(w: Array) -> Array:
    """Return `U = G w G^T`, `(36, C, F)`."""
    return _transformed(_GG, w)


def _turned_filters(w: Array) -> Array:
    """Return `U' = G w' G^T` of the filters turned by half a turn, `(36, C, F)`: the products exchange C and F."""
    return _transformed(_GG[:, ::-1], w)


def _transformed(matrix: np.ndarray, w: Array) -> Array:
    _, _, channels, filters = w.shape
    u = jnp.asarray(matrix, w.dtype) @ w.reshape(TAPS**2, channels * filters)
    return u.reshape(SIZE**2, channels, filters)


def _filters_back(du: Array) -> Array:
    """Return the cotangents of w, `(groups, 3, 3, C, F)`, of those of the transform of its turned filters."""
    groups, _, channels, filters = du.shape
    turned_back = jnp.asarray(_GG.T[::-1], du.dtype)
    dw = turned_back @ du.reshape(groups, SIZE**2, channels * filters)
    return dw.reshape(groups, TAPS, TAPS, channels, filters)


@functools.partial(jax.jit, static_argnames="where")  # traced once for all layers of a shape
def _tiles(x: Array, where: Geometry) -> Array:
    """Return `V = B^T d B`, `(36, N * TH * TW, C)`."""
    (top, _), (left, _) = where.padding
    rows, columns = _grid(where)
    x = _fit(_fit(x, 1, top, TILE * rows + TAPS - 1), 2, left, TILE * columns + TAPS - 1)
    return _along_both_axes(x, _TILES, where)


def _along_both_axes(x: Array, matrix: Matrix, where: Geometry) -> Array:
    """Multiply `matrix` with the pixels of each tile, first the rows and then the columns: `(36, N * TH * TW, C)`."""
    (n, height, width, c), (rows, columns) = x.shape, _grid(where)
    x = _along_an_axis(x.reshape(n, height, width * c), matrix=matrix, tiles=rows)
    x = _along_an_axis(x.reshape(SIZE * n * rows, width, c), matrix=matrix, tiles=columns)
    return x.reshape(SIZE**2, n * rows * columns, c)


def _products(v: Array, u: Array) -> Array:
    """Return `M`, the sums over the channels, `(36, N * TH * TW, F)`."""
    return onednn.matmul(v, u)


def _products_back(v: Array, u: Array) -> Array:
    """Return the sums over the filters, `(36, N * TH * TW, C)`."""
    return onednn.matmul(v, u, transpose_b=True)


def _outputs(m: Array, n: int, where: Geometry) -> Array:
    """Return `A^T M A` of all tiles as images, `(N, OH, OW, F)`."""
    (rows, columns), f = _grid(where), m.shape[-1]
    y = jnp.asarray(_AA, m.dtype) @ m.reshape(SIZE**2, n * rows * columns * f)
    y = y.reshape(TILE, TILE, n, rows, columns, f).transpose(2, 3, 1, 4, 0, 5)
    return y.reshape(n, TILE * rows, TILE * columns, f)[:, : where.out[0], : where.out[1]]


@functools.partial(jax.jit, static_argnames="where")  # traced once for all layers of a shape
def _cotangents(y: Array, where: Geometry) -> Array:
    """Return `Z = A y A^T` of a cotangent of the outputs, `(36, N * TH * TW, F)`."""
    rows, columns = _grid(where)
    return _along_both_axes(_fit(_fit(y, 1, 0, TILE * rows), 2, 0, TILE * columns), _COTANGENTS, where)


def _met(z: Array, v: Array) -> Array:
    """Return the cotangent of the transformed, turned filters: what met over all tiles, `(36, C, F)`."""
    return onednn.matmul(z, v, transpose_a=True)


def _fit(x: Array, axis: int, before: int, size: int) -> Array:
    """Put `before` zeros in front of `axis` (fewer than none: cut), and zeros or a cut at its end to make it `size`."""
    after = size - before - x.shape[axis]
    if before == after == 0:
        return x
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (before, after, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), config)
