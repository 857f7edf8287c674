"""The affine (fully connected, dense, linear) map."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jnet.formulas import onednn
from jnet.formulas.outline import outlined
from jnet.formulas.precision import accumulator
from jnet.formulas.validate import require_float, require_rank, require_shape

__all__ = ["AffineCache", "affine_backward", "affine_forward"]


class AffineCache(NamedTuple):
    """What the backward pass of `affine` needs: its inputs."""

    x: Array  # (N, d1, ..., dk), the input's own dtype
    w: Array  # (D, M), D = d1 * ... * dk


def affine_forward(x: Array, w: Array, b: Array) -> tuple[Array, AffineCache]:
    r"""Map each row of `x: (N, d1, ..., dk)` by `w: (D, M)` and `b: (M,)`, the trailing axes flattened into D.

    **Forward.** With $X$ the $(N, D)$ matrix of flattened rows,

    $$ y_{nm} = \sum_d X_{nd}\, w_{dm} + b_m, \qquad Y = X w + 1 b^\top. $$

    **Backward.** Let $g = \partial L / \partial y$. An entry of $x$ touches only its own row of $y$, an entry of $w$
    only its own column, and an entry of $b$ a whole column with weight one. By the chain rule

    $$ \bar X_{nd} = \sum_m g_{nm} \frac{\partial y_{nm}}{\partial X_{nd}} = \sum_m g_{nm} w_{dm}, \qquad
       \bar w_{dm} = \sum_n g_{nm} X_{nd}, \qquad \bar b_m = \sum_n g_{nm}, $$

    which in matrices reads $\bar X = g\,w^\top$, $\bar w = X^\top g$, $\bar b = g^\top 1$: the sums run over the
    index that the gradient does not have. Only these products have the right shapes, a check worth making before any
    other.

    **Kept:** `x` and `w`, which the caller holds anyway; `b` is not needed. The two products of the backward pass cost
    twice the forward's $NDM$ multiply-adds.

    Reference: Rumelhart, Hinton & Williams 1986, doi:10.1038/323533a0.

    Returns `out: (N, M)` in x's dtype, and the cache. Raises ValueError where the shapes do not fit.
    """
    require_float("affine", x=x, w=w, b=b)
    require_rank("affine", "x", x, 1, "(N, d1, ..., dk)")
    n, d = x.shape[0], math.prod(x.shape[1:])
    require_rank("affine", "w", w, 2, "(D, M)")
    require_shape("affine", "w", w, (d, w.shape[-1]), f"x {x.shape}")
    require_shape("affine", "b", b, (w.shape[1],), f"w {w.shape}")
    out = onednn.matmul(x.reshape(n, d), w.astype(x.dtype)) + b.astype(accumulator(x.dtype))[None, :]
    return out.astype(x.dtype), AffineCache(x, w)


@outlined()  # or XLA copies w for dx, since it cannot tell that the update of w comes later
def affine_backward(dout: Array, cache: AffineCache) -> tuple[Array, Array, Array]:
    """Return `dx` (shape of x), `dw: (D, M)` and `db: (M,)` from `dout: (N, M)`; derivation in `affine_forward`."""
    x, w = cache
    n, d = x.shape[0], w.shape[0]
    wide = accumulator(x.dtype)
    flat, narrow = x.reshape(n, d), w.astype(x.dtype)
    dx = onednn.matmul(dout, narrow, transpose_b=True)
    dw = onednn.matmul(flat, dout, transpose_a=True)
    db = jnp.sum(dout, axis=0, dtype=wide)
    return dx.reshape(x.shape), dw, db
