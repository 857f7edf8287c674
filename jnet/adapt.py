"""Fit a model to its data and its number format: what stands before the first layer, and mixed precision."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jnet.augment import Augmentation
from jnet.data import ChannelStatistics, normalize
from jnet.layers import Layer


def input_layer(statistics: ChannelStatistics | None = None, augmentation: Augmentation | None = None) -> Layer:
    """What stands before the first layer: random changes in training, then `(x - mean) / std` of each channel.

    `statistics` are those of the training images (None: 0 and 1). They are state, `mean` and `std`, so that they are
    saved and exported with the model. `augmentation(images, key)` is applied in training only, inside the jitted step.
    """

    def init(key, shape):
        del key
        channels = shape[-1]
        mean, std = statistics or (jnp.zeros(channels, jnp.float32), jnp.ones(channels, jnp.float32))
        return {}, {"mean": jnp.asarray(mean), "std": jnp.asarray(std)}, shape

    def apply(params, state, x, *, train=False, key=None):
        del params
        if train and augmentation is not None:
            if key is None:
                raise ValueError("input: key is None; it must be a random key when train=True, to augment images")
            x = augmentation(x, key)
        return normalize(x, ChannelStatistics(state["mean"], state["std"])), state

    return Layer(init, apply, "input", {"augmentation": augmentation})


def mixed_precision(model: Layer, dtype: Any = jnp.bfloat16) -> Layer:
    """The same model computing in `dtype`: images, weights and biases are cast on the way in, scores to float32 back.

    The parameters themselves stay float32, and with them gradients, optimizer state and updates; so do scales, shifts,
    running statistics and, by the ops' own rule, every reduction and the loss.

    Reference: Micikevicius et al. 2018, arXiv:1710.03740. bfloat16 has float32's range: no loss scaling is needed.
    """

    def apply(params, state, x, *, train=False, key=None):
        def cast(path, leaf):
            return leaf.astype(dtype) if path[-1].key in ("w", "b") else leaf

        low = jax.tree_util.tree_map_with_path(cast, params)
        out, state = model.apply(low, state, x.astype(dtype), train=train, key=key)
        return out.astype(jnp.float32), state

    return model._replace(apply=apply, hyper={**model.hyper, "dtype": dtype})
