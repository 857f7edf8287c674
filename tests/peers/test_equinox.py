"""jnet's layers inside an Equinox module, trained by jnet's optimizer: the example, and what it promises."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnet import layers, optim

eqx = pytest.importorskip("equinox")
IMAGES = np.random.default_rng(0).normal(size=(4, 8, 6, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def example():
    path = Path(__file__).parents[2] / "examples" / "in_equinox.py"
    spec = importlib.util.spec_from_file_location("in_equinox", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_layer_is_the_same_inside_equinox(example):
    layer = layers.serial(layers.conv2d(4, 3), layers.groupnorm(2), layers.relu())
    module = example.JnetLayer(layer, jax.random.key(0), IMAGES.shape[1:])
    out, grads = eqx.filter_jit(eqx.filter_value_and_grad(lambda m: jnp.sum(m(IMAGES) ** 2)))(module)
    want = jax.jit(jax.value_and_grad(lambda p: jnp.sum(layer.apply(p, {}, IMAGES)[0] ** 2)))(module.params)
    jax.tree.map(np.testing.assert_array_equal, (out, grads.params), want)


def test_an_optimizer_steps_a_module(example):
    """Leaves that are not arrays are None in what Equinox hands over."""
    net = example.Net(jax.random.key(0))
    optimizer = optim.adamw(0.1, weight_decay=0.5, mask=optim.decay_weights_only)
    arrays = eqx.filter(net, eqx.is_array)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, arrays), optimizer.init(arrays), arrays)
    moved = eqx.apply_updates(net, updates)
    w = net.features.params["00_conv2d"]["w"]
    np.testing.assert_allclose(moved.features.params["00_conv2d"]["w"], 0.95 * w, rtol=1e-6)
    np.testing.assert_array_equal(moved.head.bias, net.head.bias)


def test_the_example_learns(example):
    pytest.importorskip("sklearn")
    assert example.main(steps=60) > 0.85
