"""Which algorithm computes which of the three correlations of a convolution."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jnet.formulas.convolution import depthwise, packed, split, subpixel, winograd
from jnet.formulas.windows import Geometry

__all__ = ["choose"]

WORTH_IT = 50_000_000  # multiplications below which nothing but the compiler's own convolution pays for its compilation
MANY_TAPS = 49  # beyond which a loop written out for each tap is not worth its compilation


def choose(
    direction: str,
    images: int,
    where: Geometry,
    channels: int,
    filters: int,
    groups: int,
    dtype: DTypeLike,
    algorithm: str,
) -> str:
    """Return the name of the algorithm for `direction`: "forward", "input_gradient" or "weight_gradient".

    What `"auto"` takes, of the first line that fits; the measurements are in `docs/performance/convolution.md`:

    | where | forward | input gradient | weight gradient |
    |---|---|---|---|
    | a CPU, a filter for each channel | depthwise | depthwise | depthwise |
    | float64 on a CPU, stride above 1 | xla | im2col | im2col |
    | a GPU, float64, few multiplications, groups | xla | xla | xla |
    | 3x3, stride 1, 32 channels and filters or more | winograd | winograd | winograd |
    | 1x1 | xla | xla | im2col |
    | stride 1, 8 to 16 channels, 16 filters or fewer | packed | packed | split |
    | stride 1, 4 channels or fewer | packed to 32 filters | im2col to 9 taps, packed beyond | xla |
    | stride above 1, 32 channels or fewer | xla | subpixel | im2col to 9 taps and 16 channels, xla beyond |
    | the rest | xla | xla | xla |
    """
    if algorithm != "auto":
        return algorithm
    if jax.default_backend() != "cpu":
        return "xla"
    if groups > 1 and depthwise.suits(channels, filters, groups) and where.window[0] * where.window[1] <= MANY_TAPS:
        return "depthwise"
    forward, weights = direction == "forward", direction == "weight_gradient"
    if jnp.dtype(dtype) == jnp.float64:
        # XLA:CPU has no fast float64 correlation with zeros between pixels: it is 4 to 10 times as slow.
        return "im2col" if not forward and max(where.stride) > 1 else "xla"
    pixels, taps = where.out[0] * where.out[1], where.window[0] * where.window[1]
    if groups > 1 or images * pixels * taps * channels * filters < WORTH_IT:
        return "xla"
    if winograd.suits(where, groups) and min(channels, filters) >= 32 and winograd.use(where) >= 0.5:
        return "winograd"
    if taps == 1:
        return "im2col" if weights else "xla"
    if packed.suits(where, groups) and split.suits(where, groups) and where.window[1] > 1:
        if 8 <= channels <= 16 and filters <= 16:
            return "split" if weights else "packed"
        if channels <= 4 and (filters <= 32 if forward else not weights):
            return "packed" if forward or taps > 9 else "im2col"
    if max(where.stride) > 1 and channels <= 32:
        if direction == "input_gradient" and subpixel.suits(where, groups):
            return "subpixel"
        if weights and taps <= 9 and channels <= 16:
            return "im2col"
    return "xla"
