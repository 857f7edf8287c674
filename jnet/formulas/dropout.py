"""Inverted dropout."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jnet.formulas.validate import require, require_float

__all__ = ["DropoutCache", "dropout_backward", "dropout_forward", "keep_mask"]


class DropoutCache(NamedTuple):
    """What the backward pass of `dropout` needs: whence the mask can be drawn again."""

    key: Array  # (), a random key: 8 bytes


def dropout_forward(x: Array, key: Array, *, keep_prob: float) -> tuple[Array, DropoutCache]:
    r"""Keep each element of `x` with probability `keep_prob` and scale it by `1 / keep_prob`; zero the others.

    **Forward.** Draw $u \sim U[0, 1)$ an element, independent of $x$; $m = [u < p]$; $y = m\,x / p$. Since $E[m] =
    p$, the expectation of $y$ is $x$, and nothing needs to be scaled at test time ("inverted" dropout).

    **Backward.** $m$ does not depend on $x$, so $y$ is linear in $x$ with slope $m/p$:

    $$ \bar x = g\, m / p. $$

    **Kept:** the key. A `keep_mask` costs a dozen integer operations an element, less than to write and read it as
    bytes: the pass that selects draws it on its way. Both passes select and never multiply by zero: a dropped inf or
    NaN leaves 0.

    Reference: Srivastava et al. 2014, JMLR 15:1929.

    `key` is a JAX random key, `keep_prob` in (0, 1]. Returns `out` like `x`, and the cache.
    """
    require_float("dropout", x=x)
    require(0.0 < keep_prob <= 1.0, f"dropout: keep_prob is {keep_prob}; it must be in (0, 1]")
    return _select(x, key, keep_prob), DropoutCache(key)


def dropout_backward(dout: Array, cache: DropoutCache, *, keep_prob: float) -> Array:
    """Return `dx`: `dout / keep_prob` where the element was kept, 0 elsewhere."""
    return _select(dout, cache.key, keep_prob)


def _select(x: Array, key: Array, keep_prob: float) -> Array:
    return jnp.where(keep_mask(key, keep_prob, x.shape), x / keep_prob, jnp.zeros((), x.dtype))


def keep_mask(key: Array, keep_prob: float, shape: tuple[int, ...]) -> Array:
    """Draw booleans that are True with probability `keep_prob`, to within 2**-32.

    Element i is True where hash(hash(i + k0) ^ k1) < keep_prob * 2**32: k0 and k1 are the first and the last word of
    the key, and the hash is a bijection of 32-bit integers in which each bit of the argument flips each of the result
    with probability 1/2, to within 0.1 %. There is no state and no loop, so it fuses with what uses it. It is no
    cipher, as JAX's own Threefry is; that one takes 20 rounds an element, and on a CPU longer than the layers around
    the dropout.

    Reference: Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", for random access by
    hashing a counter; the hash is that of C. Wellons' Hash Prospector, github.com/skeeto/hash-prospector, issue 19.
    """
    if keep_prob == 1.0:
        return jnp.ones(shape, bool)
    words = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    counter = lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    bits = _hash(_hash(counter + words[0]) ^ words[-1])
    return bits < jnp.uint32(min(round(keep_prob * 2**32), 2**32 - 1))


def _hash(bits: Array) -> Array:
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x21F0AAAD)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0xD35A2D97)
    return bits ^ (bits >> 15)
