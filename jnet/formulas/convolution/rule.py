"""Which algorithm computes which of the three correlations of a convolution."""

import jax.numpy as jnp
from jax.typing import DTypeLike

from jnet.formulas.windows import Geometry

__all__ = ["choose"]


def choose(
    direction: str, where: Geometry, channels: int, filters: int, groups: int, dtype: DTypeLike, algorithm: str
) -> str:
    """Return the name of the algorithm for `direction`: "forward", "input_gradient" or "weight_gradient"."""
    if algorithm != "auto":
        return algorithm
    del channels, filters, groups
    if direction != "forward" and max(where.stride) > 1 and dtype == jnp.float64:
        return "im2col"  # XLA:CPU has no fast float64 correlation with zeros between pixels: 4 to 10 times as slow
    return "xla"
