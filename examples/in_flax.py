"""jnet's layers in a Flax module, jnet's optimizer in an Optax chain and in Flax's TrainState.

    pip install 'jnet[train,peers]'
    python examples/in_flax.py

About 10 seconds on two cores; prints `test accuracy 0.98..` on scikit-learn's digits.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import optax
from flax.training import train_state

from jnet import data, layers, optim


class JnetLayer(nn.Module):
    """Any layer of jnet, its parameters and running statistics kept where Flax keeps its own."""

    make: Callable[[], layers.Layer]

    @nn.compact
    def __call__(self, x, train: bool = False):
        layer = self.make()
        params = self.param("layer", lambda key: layer.init(key, x.shape[1:])[0])
        state = self.variable("batch_stats", "layer", lambda: layer.init(jax.random.key(0), x.shape[1:])[1])
        key = self.make_rng("dropout") if self.has_rng("dropout") else None
        out, new_state = layer.apply(params, state.value, x, train=train, key=key)
        if train and not self.is_initializing():
            state.value = new_state
        return out


def features() -> layers.Layer:
    block = [layers.conv2d(32, 3, use_bias=False), layers.batchnorm(), layers.relu(), layers.max_pool2d(2)]
    return layers.serial(*block, layers.flatten(), layers.dropout(0.8))


class Net(nn.Module):
    """Hand-derived layers below, one of Flax's own on top."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        return nn.Dense(10)(JnetLayer(features)(x, train))


class TrainState(train_state.TrainState):
    batch_stats: Any


def main(steps: int = 300) -> float:
    dataset = data.load("digits")
    net = Net()
    variables = net.init(jax.random.key(0), dataset.train.images[:1])
    optimizer = optax.chain(
        optim.clip_by_global_norm(5.0),
        optim.scale_by_adam(),
        optax.add_decayed_weights(1e-4),
        optim.scale_by_learning_rate(optim.cosine_schedule(3e-3, steps, warmup_steps=steps // 10)),
    )
    state = TrainState.create(
        apply_fn=net.apply, params=variables["params"], batch_stats=variables["batch_stats"], tx=optimizer
    )

    @jax.jit
    def step(state, batch):
        images, labels = batch

        def loss(params):
            scores, updates = state.apply_fn(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.fold_in(jax.random.key(1), state.step)},
            )
            return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean(), updates

        grads, updates = jax.grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads, batch_stats=updates["batch_stats"])

    epoch = 0
    while state.step < steps:
        for batch in data.minibatches(dataset.train, 50, epoch=epoch):
            if state.step < steps:
                state = step(state, batch)
        epoch += 1
    scores = net.apply({"params": state.params, "batch_stats": state.batch_stats}, dataset.test.images)
    return float((scores.argmax(1) == dataset.test.labels).mean())


if __name__ == "__main__":
    print(f"test accuracy {main():.4f}")
