"""Layers that `serial` runs as one op give what they give apart, in value, gradient and running statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnet import layers, reference
from jnet.formulas import outline
from jnet.formulas.outline import ROW, by_channel, column_sums, in_one_loop, row_sums

KEY = jax.random.key(0)


def apart(layer):
    """The same layer with an apply that nobody knows, so that it is not fused."""
    return layer._replace(apply=lambda params, state, x, **rest: layer.apply(params, state, x, **rest))


def plain_residual(body, shortcut=None):
    return layers.residual(apart(body), shortcut)


def basic_block(residual, shortcut=None):
    body = layers.serial(layers.conv2d(4, 3, use_bias=False), layers.batchnorm(), layers.relu(), layers.dropout(0.7))
    tail = layers.serial(layers.conv2d(4, 3), layers.batchnorm(momentum=0.5, eps=1e-3))
    return residual(layers.serial(body, *tail.children.values()), shortcut)


CASES = {
    "affine_relu": [layers.affine(5), layers.relu()],
    "bias_relu": [layers.conv2d(3, 3), layers.relu()],
    "bias_relu_max_pool2d": [layers.conv2d(3, 3, stride=2), layers.relu(), layers.max_pool2d(2, 1)],
    "batchnorm_relu": [layers.batchnorm(momentum=0.5, eps=1e-3), layers.relu()],
    "batchnorm_relu_max_pool2d": [layers.batchnorm(), layers.relu(), layers.max_pool2d(2)],
    "batchnorm_relu_conv2d": [layers.batchnorm(), layers.relu(), layers.conv2d(3, 3, use_bias=False)],
    "batchnorm_add_relu": [basic_block(layers.residual), layers.relu()],
}
APART = {**CASES, "batchnorm_add_relu": [basic_block(plain_residual), layers.relu()]}
SHAPE = (6, 7, 4)


def train(layer, params, state, x, dout):
    """Return ((out, state), gradients) of a training pass."""

    def scalar(params, x):
        out, new_state = layer.apply(params, state, x, train=True, key=KEY)
        return jnp.sum(out * dout), (out, new_state)

    gradients, outputs = jax.grad(scalar, argnums=(0, 1), has_aux=True)(params, x)
    return outputs, gradients


def assert_equal(got, want, tolerance=1e-12):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.dtype == w.dtype
        np.testing.assert_allclose(g, w, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("op", CASES)
def test_fused_layers_equal_the_layers_apart(op):
    dropped = layers.dropout(0.5)  # in front, so that the positions of keys and parameters do not begin at 0
    fused, separate = layers.serial(dropped, *CASES[op]), layers.serial(dropped, *map(apart, APART[op]))
    params, state, shape = fused.init(KEY, SHAPE)
    params, state = jax.tree.map(lambda a: a.astype(jnp.float64) + 0.1, (params, state))
    x, dout = (jax.random.normal(jax.random.key(i), (3, *s), jnp.float64) for i, s in ((1, SHAPE), (2, shape)))
    args = (params, state, x, dout)
    assert uses(fused, op, args)
    assert not uses(separate, op, args)
    want = jax.jit(lambda *a: train(separate, *a))(*args)
    assert_equal(jax.jit(lambda *a: train(fused, *a))(*args), want)
    twin = layers.with_ops(fused, reference)
    assert_equal(jax.jit(lambda *a: train(twin, *a))(*args), want)
    assert_equal(fused.apply(params, state, x)[0], separate.apply(params, state, x)[0])


def uses(layer, op, args):
    """Whether a training pass of the layer calls that op."""
    params, state, x, _ = args
    return op + "\n" in str(jax.make_jaxpr(lambda: layer.apply(params, state, x, train=True, key=KEY)[0])())


def test_a_shortcut_of_its_own():
    shortcut = layers.serial(layers.conv2d(4, 1), layers.batchnorm())
    fused = layers.serial(basic_block(layers.residual, shortcut), layers.relu())
    separate = layers.serial(basic_block(plain_residual, shortcut), layers.relu())
    params, state, shape = fused.init(KEY, SHAPE)
    args = (params, state, *(jax.random.normal(jax.random.key(i), (2, *s)) for i, s in ((1, SHAPE), (2, shape))))
    assert_equal(jax.jit(lambda *a: train(fused, *a))(*args), jax.jit(lambda *a: train(separate, *a))(*args), 2e-5)


@pytest.mark.parametrize(
    "declined",
    [
        [layers.batchnorm(groups=2), layers.relu()],
        [layers.conv2d(3, 3, use_bias=False), layers.relu(), layers.max_pool2d(2)],
        [layers.conv2d(3, 3), layers.tanh()],
        [layers.affine(3), apart(layers.relu())],
        [layers.affine(3), layers.with_ops(layers.relu(), reference)],
        [layers.residual(layers.relu()), layers.relu()],
        [layers.residual(layers.serial(layers.conv2d(4, 3), layers.batchnorm(groups=2))), layers.relu()],
    ],
    ids=lambda layers: "-".join(layer.name for layer in layers),
)
def test_what_does_not_fit_stays_apart(declined):
    model = layers.serial(*declined)
    params, state, _ = model.init(KEY, SHAPE)
    jaxpr = str(jax.make_jaxpr(lambda x: model.apply(params, state, x, train=True)[0])(jnp.zeros((2, *SHAPE))))
    assert not any(op in jaxpr for op in CASES)


def test_a_padded_pool_is_not_swallowed():
    model = layers.serial(layers.conv2d(3, 3), layers.relu(), layers.max_pool2d(2, padding=1))
    params, state, _ = model.init(KEY, SHAPE)
    jaxpr = str(jax.make_jaxpr(lambda x: model.apply(params, state, x, train=True)[0])(jnp.zeros((2, *SHAPE))))
    assert "bias_relu" in jaxpr
    assert "bias_relu_max_pool2d" not in jaxpr


@pytest.mark.parametrize(
    "shape", [(6, 5, 4, 16), (7, 3), (10, 3), (2, 4, 6, 24), (3, 5, 7, 2), (0, 4, 4, 8), (4, 4, 1), (5, 40)], ids=str
)
def test_long_rows_change_no_result(shape):
    """Elementwise over activations and vectors a channel: every vector meets its own channel, in any order of them."""

    def function(vector, x, y, other):
        return x * vector - y * other

    rng = np.random.default_rng(0)  # whole numbers, so that no rounding excuses a difference
    x, y = (jnp.asarray(rng.integers(-99, 99, shape), float) for _ in range(2))
    vector, other = (jnp.asarray(rng.integers(-99, 99, shape[-1]), float) for _ in range(2))
    row = (1,) * (len(shape) - 1) + shape[-1:]
    want = function(vector.reshape(row), x, y, other.reshape(row))
    np.testing.assert_array_equal(jax.jit(by_channel(function))(vector, x, y, other), want)


def test_few_channels_run_in_long_rows():
    x, scale = jnp.ones((8, 8, 8, 16)), jnp.ones(16)
    compiled = jax.jit(by_channel(lambda x, scale: x * scale)).lower(x, scale).compile()
    assert f"f64[{x.size // ROW},{ROW}]" in str(compiled.as_text())


@pytest.mark.parametrize("shape", [(16, 3), (12, 5), (7, 4), (3, 24, 2), (2, 5, 64), (0, 4), (8, 0), (1, 1)], ids=str)
def test_sums_in_one_pass_are_sums(shape):
    rng = np.random.default_rng(0)  # whole numbers, so that no rounding excuses a difference
    x, y = (jnp.asarray(rng.integers(-99, 99, shape), float) for _ in range(2))
    for sums, axis in ((column_sums, -2), (row_sums, -1)):
        for got, term in zip(jax.jit(sums)(x, y), (x, y), strict=True):
            np.testing.assert_array_equal(got, term.sum(axis))
        slope = jax.grad(lambda x, sums=sums: (sums(x, x * x)[1] ** 2).sum())(x)
        np.testing.assert_array_equal(slope, 4 * x * (x * x).sum(axis, keepdims=True))


@pytest.mark.parametrize(("rows", "parts"), [(512, 1), (513, 3), (1024, 4), (2 * 521, 1), (2**18, 1024)])
def test_sums_in_parts_are_sums(monkeypatch, rows, parts):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert outline.parts(rows) == parts
    x, y = jnp.asarray(np.random.default_rng(0).integers(-99, 99, (2, rows, 3)), float)
    traced = jax.jit(column_sums).trace(x, y)
    assert str(traced.jaxpr).count("reduce[") == {1: 1, 1024: 3}.get(parts, 2)
    for got, term in zip(traced.lower().compile()(x, y), (x, y), strict=True):
        np.testing.assert_array_equal(got, term.sum(0))


def test_sums_in_one_pass_read_their_operands_once():
    compiled = jax.jit(lambda x, y: column_sums(x, x * y)).lower(*(jnp.ones((64, 24)),) * 2).compile().as_text()
    assert "(f64[8,24]" in compiled  # both sums of eights come from one kernel
    assert "f64[64,24]{1,0} fusion" not in compiled  # and the product is never written


def test_arrays_written_in_one_loop():
    def pair(x):
        return jnp.where(x > 0, x, 0), x > 0

    def together(x):
        return in_one_loop(*pair(x))

    x = jnp.asarray(np.random.default_rng(0).standard_normal((6, 5)))
    compiled = jax.jit(together).lower(x).compile().as_text()
    assert compiled.count(" fusion(") == 1
    assert "(f64[6,5]{1,0}, pred[6,5]{1,0}) fusion(" in compiled
    for got, want in zip(together(x), pair(x), strict=True):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(jax.grad(lambda x: together(x)[0].sum())(x), x > 0)
