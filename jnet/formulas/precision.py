"""The dtype in which statistics and reductions run."""

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

__all__ = ["accumulator", "widen"]


def accumulator(dtype: DTypeLike) -> jnp.dtype:
    """Return float32, or `dtype` itself where it is wider: what sums over `dtype` values are kept in."""
    dtype = jnp.dtype(dtype)
    return dtype if dtype.itemsize > 4 else jnp.dtype(jnp.float32)


def widen(x: Array) -> Array:
    """Return `x` in the dtype of its accumulator (`x` itself where that is its dtype already)."""
    return x.astype(accumulator(x.dtype))
