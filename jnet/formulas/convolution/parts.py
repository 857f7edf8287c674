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


def in_parts(part: Callable[..., tuple[Any, Any]], parts: int, *images: Array) -> tuple[Any, Any]:
    """Apply `part` to the images of each group, `(groups, N / groups, ...)` in, in so many parts of it.

    `part` returns what it has for each image, which is joined again, `(groups, N / groups, ...)`, and what it has
    summed over its images, which is added up, `(groups, ...)`; either may be `()`. `parts` must divide the images of a
    group. The loop runs over the parts of all groups at once, so that each device works on its own group: a loop along
    the sharded axis would run on every device in full.
    """
    if parts == 1:
        return jax.vmap(part)(*images)
    stacks = [v.reshape(v.shape[0], parts, v.shape[1] // parts, *v.shape[2:]) for v in images]

    def one(i: Array) -> tuple[Any, Any]:
        return jax.vmap(part)(*(lax.dynamic_index_in_dim(v, i, axis=1, keepdims=False) for v in stacks))

    def step(totals: Any, i: Array) -> tuple[Any, Any]:
        each, sums = one(i)
        return jax.tree.map(jnp.add, totals, sums), each

    _, sums = jax.eval_shape(one, 0)
    totals, each = lax.scan(step, jax.tree.map(jnp.zeros_like, sums), jnp.arange(parts))
    return jax.tree.map(_join, each), totals


def _join(each: Array) -> Array:
    """Put the parts of a group one after the other: `(parts, groups, N / groups / parts, ...)` in."""
    each = each.swapaxes(0, 1)
    return each.reshape(each.shape[0], each.shape[1] * each.shape[2], *each.shape[3:])
