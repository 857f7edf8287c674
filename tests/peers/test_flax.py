"""jnet's layers inside a Flax module, and its optimizer in Flax's TrainState: the example, and what it promises."""

import importlib.util
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnet import layers

pytest.importorskip("flax")
pytest.importorskip("optax")
IMAGES = np.random.default_rng(0).normal(size=(4, 8, 6, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def example():
    path = Path(__file__).parents[2] / "examples" / "in_flax.py"
    spec = importlib.util.spec_from_file_location("in_flax", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def block():
    return layers.serial(layers.conv2d(4, 3), layers.batchnorm(), layers.relu())


def test_a_layer_is_the_same_inside_flax(example):
    module, layer = example.JnetLayer(block), block()
    variables = module.init(jax.random.key(0), IMAGES)
    params, state = variables["params"]["layer"], variables["batch_stats"]["layer"]

    def flax_loss(variables):
        out, updates = module.apply(variables, IMAGES, train=True, mutable=["batch_stats"])
        return jnp.sum(out**2), (out, updates["batch_stats"]["layer"])

    def jnet_loss(params):
        out, new_state = layer.apply(params, state, IMAGES, train=True)
        return jnp.sum(out**2), (out, new_state)

    flax_grads, flax_results = jax.jit(jax.grad(flax_loss, has_aux=True))(variables)
    grads, results = jax.jit(jax.grad(jnet_loss, has_aux=True))(params)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, (flax_grads["params"]["layer"], flax_results), (grads, results))
    close(module.apply(variables, IMAGES), layer.apply(params, state, IMAGES)[0])


def test_dropout_draws_from_flax(example):
    module = example.JnetLayer(partial(layers.dropout, 0.5))
    apply = partial(module.apply, module.init(jax.random.key(0), IMAGES), IMAGES, train=True, mutable=["batch_stats"])
    first, again, other = (np.asarray(apply(rngs={"dropout": jax.random.key(k)})[0]) for k in (1, 1, 2))
    assert (first == again).all() and (first != other).any() and (first == 0).any()


def test_the_example_learns(example):
    pytest.importorskip("sklearn")
    assert example.main(steps=60) > 0.85
