"""Inverted dropout."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jnet.formulas.validate import require, require_float

__all__ = ["DropoutCache", "dropout_backward", "dropout_forward"]


class DropoutCache(NamedTuple):
    """What the backward pass of `dropout` needs: one bit of information an element."""

    kept: Array  # shape of x, bool


def dropout_forward(x: Array, key: Array, *, keep_prob: float) -> tuple[Array, DropoutCache]:
    r"""Keep each element of `x` with probability `keep_prob` and scale it by `1 / keep_prob`; zero the others.

    **Forward.** Draw $u \sim U[0, 1)$ an element, independent of $x$; $m = [u < p]$; $y = m\,x / p$. Since $E[m] =
    p$, the expectation of $y$ is $x$, and nothing needs to be scaled at test time ("inverted" dropout).

    **Backward.** $m$ does not depend on $x$, so $y$ is linear in $x$ with slope $m/p$:

    $$ \bar x = g\, m / p. $$

    **Kept:** the mask as booleans, one byte an element; drawing it again from the key would cost more time than
    reading it. Both passes select and never multiply by zero: a dropped inf or NaN leaves 0.

    Reference: Srivastava et al. 2014, JMLR 15:1929.

    `key` is a JAX random key, `keep_prob` in (0, 1]. Returns `out` like `x`, and the cache.
    """
    require_float("dropout", x=x)
    require(0.0 < keep_prob <= 1.0, f"dropout: keep_prob is {keep_prob}; it must be in (0, 1]")
    kept = jax.random.bernoulli(key, keep_prob, x.shape)
    return _select(x, kept, keep_prob), DropoutCache(kept)


def dropout_backward(dout: Array, cache: DropoutCache, *, keep_prob: float) -> Array:
    """Return `dx`: `dout / keep_prob` where the element was kept, 0 elsewhere."""
    return _select(dout, cache.kept, keep_prob)


def _select(x: Array, kept: Array, keep_prob: float) -> Array:
    return jnp.where(kept, x / keep_prob, jnp.zeros((), x.dtype))
