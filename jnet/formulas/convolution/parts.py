"""A batch taken apart: a group of images for each device, and of each group a few images at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

__all__ = ["count", "groups_of", "in_parts", "sum_of_parts"]


def groups_of(images: int) -> int:
    """Return how many groups the images form: one a device, where all get as many.

    What is summed over the batch is summed in each group first. So a sharded batch needs no communication before the
    last sum, which may come after a transform that makes its terms smaller. With one device there is one group.
    """
    return jax.device_count() if images % jax.device_count() == 0 else 1


def count(images: int, wanted: int) -> int:
    """Return the number of parts of one size that is `wanted` or the next above; 1 where it would be far above."""
    return next((k for k in range(max(wanted, 1), min(4 * wanted, images) + 1) if images % k == 0), 1)


def in_parts(part: Callable[..., tuple[Any, Any]], parts: int, *images: Array) -> tuple[Any, Any]:
    """Apply `part` to the images of each group, `(groups, N / groups, ...)`, in so many parts.

    `part` gets some images of one group, `(images, ...)`. It returns what it has for each image, which is joined
    again, `(groups, N / groups, ...)`, and what it has summed over its images, which is added up, `(groups, ...)`;
    either may be `()`. `parts` must divide the images of a group. The loop runs over the parts of all groups at once,
    so that each device works on its own group: a loop along the sharded axis would run on every device in full.
    """

    def of_groups(*some: Array) -> tuple[Any, Any]:
        if some[0].shape[0] > 1:
            return jax.vmap(part)(*some)
        # With an axis of one group, XLA on a CPU would take a product for a batch of products, half as fast.
        return jax.tree.map(lambda v: v[None], part(*(v[0] for v in some)))

    if parts == 1:
        return of_groups(*images)
    stacks = [v.reshape(v.shape[0], parts, v.shape[1] // parts, *v.shape[2:]) for v in images]

    @jax.jit  # traced once, for its shapes and for the loop
    def one(i: Array) -> tuple[Any, Any]:
        return of_groups(*(lax.dynamic_index_in_dim(v, i, axis=1, keepdims=False) for v in stacks))

    def step(i: Array, so_far: tuple[Any, Any]) -> tuple[Any, Any]:
        joined, totals = so_far
        each, sums = one(i)
        joined = jax.tree.map(lambda v, new: lax.dynamic_update_index_in_dim(v, new, i, axis=1), joined, each)
        return joined, jax.tree.map(jnp.add, totals, sums)

    each, sums = jax.eval_shape(one, 0)
    room = jax.tree.map(lambda v: jnp.zeros((v.shape[0], parts, *v.shape[1:]), v.dtype), each)
    joined, totals = lax.fori_loop(0, parts, step, (room, jax.tree.map(jnp.zeros_like, sums)))
    return jax.tree.map(lambda v: v.reshape(v.shape[0], v.shape[1] * v.shape[2], *v.shape[3:]), joined), totals


def sum_of_parts(part: Callable[..., Array], images: int, *batch: Array) -> Array:
    """Add up what `part`, a matrix product, returns for the batch, of which it gets about `images` images at a time."""
    groups = groups_of(batch[0].shape[0])
    n = batch[0].shape[0] // groups
    stacks = (v.reshape(groups, n, *v.shape[1:]) for v in batch)
    _, total = in_parts(lambda *some: ((), part(*some)), count(n, -(-n // max(images, 1))), *stacks)
    return total.sum(axis=0)
