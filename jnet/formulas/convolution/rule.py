"""Which algorithm computes which of the three correlations of a convolution."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jnet.formulas import onednn
from jnet.formulas.convolution import depthwise, split, winograd
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
    | a CPU, a filter for each channel | depthwise, by oneDNN xla | depthwise, by oneDNN xla | depthwise |
    | float64 on a CPU, stride above 1 | xla | im2col | im2col |
    | a GPU, float64 | xla | xla | xla |
    | 1x1, no groups | xla | as below | im2col |
    | few multiplications, groups | xla | xla | xla |
    | 3x3, stride 1, 64 channels and filters or more, one of them 128 or more | winograd | winograd | winograd |
    | 3x3, stride 1, 32 channels and filters or more | xla | winograd | winograd |
    | stride 1, 8 to 16 channels, 16 filters or fewer | xla | xla | split |
    | stride 1, 4 channels or fewer | xla | im2col to 9 taps, xla beyond | xla |
    | stride above 1 | xla | im2col | im2col to 9 taps and 16 channels, xla beyond |
    | the rest | xla | xla | xla |

    "xla" is oneDNN's convolution where the compiler can call it (`formulas.onednn`), and the compiler's own elsewhere.
    """
    if algorithm != "auto":
        return algorithm
    if jax.default_backend() != "cpu":
        return "xla"
    forward, weights = direction == "forward", direction == "weight_gradient"
    if groups > 1 and depthwise.suits(channels, filters, groups) and where.window[0] * where.window[1] <= MANY_TAPS:
        return "depthwise" if weights or not onednn.available(dtype) else "xla"
    if jnp.dtype(dtype) == jnp.float64:
        # XLA:CPU has no fast float64 correlation with zeros between pixels: it is 4 to 10 times as slow.
        return "im2col" if not forward and max(where.stride) > 1 else "xla"
    pixels, taps = where.out[0] * where.out[1], where.window[0] * where.window[1]
    if weights and taps == groups == 1:
        return "im2col"
    if groups > 1 or images * pixels * taps * channels * filters < WORTH_IT:
        return "xla"
    narrow, wide = sorted((channels, filters))
    many = narrow >= 64 and wide >= 128 if forward else narrow >= 32
    if many and winograd.suits(where, groups) and winograd.use(where) >= 0.5:
        return "winograd"
    if direction == "input_gradient":
        return "im2col" if max(where.stride) > 1 or (channels <= 4 and taps <= 9) else "xla"
    if weights and split.suits(where, groups) and 8 <= channels <= 16 and filters <= 16:
        return "split"
    if weights and max(where.stride) > 1 and taps <= 9 and channels <= 16:
        return "im2col"
    return "xla"
