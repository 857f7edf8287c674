"""A batch taken apart: a group of images for each device, and of each group a few images at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

__all__ = ["groups_of", "in_parts"]


def groups_of(images: int) -> int:
    """Return how many groups the images form: one a device, where all get as many.

    What is summed over the batch is summed in each group first. So a sharded batch needs no communication before the
    last sum, which may come after a transform that makes its terms smaller. With one device there is one group.
    """
    return jax.device_count() if images % jax.device_count() == 0 else 1


def in_parts(part: Callable[..., Any], parts: int, *images: Array) -> Any:
    """Apply `part` to the images of each group, `(groups, N / groups, ...)` in and out, in so many parts of it.

    The results are joined along their second axis: `part` gives an axis of one to what it has summed. `parts` must
    divide the images of a group. The loop runs over the parts of all groups at once, so that each device works on its
    own group: a loop along the sharded axis would run on every device in full.
    """
    if parts == 1:
        return jax.vmap(part)(*images)
    stacks = [v.reshape(v.shape[0], parts, v.shape[1] // parts, *v.shape[2:]) for v in images]

    def one(i: Array) -> Any:
        return jax.vmap(part)(*(lax.dynamic_index_in_dim(v, i, axis=1, keepdims=False) for v in stacks))

    out = lax.map(one, jnp.arange(parts))
    return jax.tree.map(lambda v: v.swapaxes(0, 1).reshape(v.shape[1], v.shape[0] * v.shape[2], *v.shape[3:]), out)
