"""Train a convolutional network on 4,000 real MNIST digits: a loop of one's own around jnet's jitted step.

    pip install 'jnet[train]'
    python examples/train_mnist.py

About 40 seconds on two cores; prints a line an epoch and `test accuracy 0.98..`. Everything that changes (parameters,
running statistics, optimizer state, random key) is in `state`, which goes into a step and comes out of it.
"""

import jax
import numpy as np

from jnet import data, models, optim, train

BATCH = 50


def network():
    """conv3x3 - batchnorm - relu four times, a 2x2 max-pool after every second, then one affine layer."""
    return models.vgg((32, 32, 64, 64), num_classes=10)


def main(epochs: int = 8, images: int = 4000, seed: int = 0) -> float:
    """Train on the first `images` digits; returns the test accuracy."""
    mnist = data.load("mnist5k", seed=seed)
    training = data.Split(mnist.train.images[:images], mnist.train.labels[:images])
    steps = epochs * (images // BATCH)

    model = network()
    optimizer = optim.adam(optim.cosine_schedule(4e-3, steps, warmup_steps=steps // 10))
    state = train.create_state(model, optimizer, jax.random.key(seed), input_shape=(28, 28, 1))
    step = train.make_train_step(model, optimizer)  # jitted; the gradients in it are those derived by hand

    for epoch in range(epochs):
        losses = []
        for x, y in data.minibatches(training, BATCH, seed=seed, epoch=epoch):
            state, metrics = step(state, (x, y))
            losses.append(metrics["loss"])  # an array: nothing waits for it until it is read
        found = train.evaluate(model, state.params, state.model_state, mnist.val)
        print(f"epoch {epoch + 1}/{epochs}  train loss {np.mean(losses):.4f}  val accuracy {found['accuracy']:.4f}")

    accuracy = train.evaluate(model, state.params, state.model_state, mnist.test)["accuracy"]
    print(f"test accuracy {accuracy:.4f}")
    return accuracy


if __name__ == "__main__":
    main()
