"""Random changes to training images: pure functions `(images, key) -> images`, for use inside the jitted step.

Each image of a batch `(N, H, W, C)` has its own draw; shape and dtype stay. The same key gives the same images, on any
number of devices. Draws are int32 whatever the width of JAX's default integers, so that x64 changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

Augmentation = Callable[[Array, Array], Array]


def random_crop(images: Array, key: Array, padding: int = 4) -> Array:
    """Pad each image with zeros on all sides, and cut its own size out at a random place.

    All `(2*padding + 1)**2` places are equally likely. Raises `ValueError` if `padding` is below 1.

    Reference: He et al. 2016, arXiv:1512.03385, section 4.2.

    >>> images = jnp.ones((2, 8, 8, 3))
    >>> random_crop(images, jax.random.key(0)).shape
    (2, 8, 8, 3)
    """
    _check_images("random_crop", images)
    if padding < 1:
        raise ValueError(f"random_crop: padding is {padding}; must be 1 or more")
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    places = jax.random.randint(key, (len(images), 2), 0, 2 * padding + 1, dtype=jnp.int32)

    def crop(image, place):
        return jax.lax.dynamic_slice(image, (place[0], place[1], jnp.int32(0)), images.shape[1:])

    return jax.vmap(crop)(padded, places)


def random_flip(images: Array, key: Array) -> Array:
    """Mirror each image left to right with probability 1/2. Not for digits and letters, which change their meaning."""
    _check_images("random_flip", images)
    flipped = jax.random.bits(key, (len(images), 1, 1, 1), jnp.uint8) < 128
    return jnp.where(flipped, images[:, :, ::-1], images)


def cutout(images: Array, key: Array, size: int = 8) -> Array:
    """Set one square of `size` x `size` pixels of each image to zero: the mean colour, once images are normalized.

    The centre may be any pixel; what lies beyond the border is not cut. Raises `ValueError` unless
    `1 <= size <= min(H, W)`.

    Reference: DeVries & Taylor 2017, arXiv:1708.04552, section 3.2.
    """
    _check_images("cutout", images)
    rows, height, width, _ = images.shape
    if not 1 <= size <= min(height, width):
        raise ValueError(
            f"cutout: size is {size}; must be from 1 to {min(height, width)}, the shorter side of the image"
        )
    row_key, column_key = jax.random.split(key)

    def inside(key, length):
        """`(N, length)` bool: the pixels along one axis that the square covers."""
        first = jax.random.randint(key, (rows, 1), 0, length, dtype=jnp.int32) - size // 2
        pixel = jnp.arange(length, dtype=jnp.int32)[None]
        return (pixel >= first) & (pixel < first + size)

    hole = inside(row_key, height)[:, :, None, None] & inside(column_key, width)[:, None, :, None]
    return jnp.where(hole, jnp.zeros((), images.dtype), images)


def chain(*augmentations: Augmentation) -> Augmentation:
    """One after the other, each with its own key.

    >>> from functools import partial
    >>> augment = chain(partial(random_crop, padding=2), random_flip)
    >>> augment(jnp.ones((4, 8, 8, 3)), jax.random.key(0)).shape
    (4, 8, 8, 3)
    """

    def augment(images: Array, key: Array) -> Array:
        for number, augmentation in enumerate(augmentations):
            images = augmentation(images, jax.random.fold_in(key, number))
        return images

    return augment


def _check_images(name: str, images: Array) -> None:
    if images.ndim != 4:
        raise ValueError(f"{name}: images have shape {images.shape}; must be (N, H, W, C)")
