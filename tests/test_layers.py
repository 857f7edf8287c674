"""Layers: shapes, initial values, states, keys in pytrees, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnet import layers, models, reference

KEY = jax.random.key(0)


def draw(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.affine(3), (2, 4)),
        (layers.conv2d(4, (3, 2), stride=(2, 1), padding=((1, 0), (0, 1))), (7, 6, 2)),
        (layers.conv2d(4, 3, groups=2, dilation=2, use_bias=False), (7, 6, 2)),
        (layers.batchnorm(), (5,)),
        (layers.batchnorm(), (4, 3, 2)),
        (layers.layernorm(), (5,)),
        (layers.groupnorm(2), (4, 3, 6)),
        (layers.relu(), (3,)),
        (layers.leaky_relu(), (3,)),
        (layers.sigmoid(), (3,)),
        (layers.tanh(), (3,)),
        (layers.dropout(0.5), (3,)),
        (layers.max_pool2d(3, 2), (7, 8, 2)),
        (layers.avg_pool2d(2), (7, 8, 2)),
        (layers.global_avg_pool(), (7, 8, 2)),
        (layers.flatten(), (7, 8, 2)),
        (layers.residual(layers.conv2d(2, 3)), (7, 8, 2)),
        (layers.residual(layers.conv2d(3, 3), layers.conv2d(3, 1)), (7, 8, 2)),
    ],
    ids=lambda value: value.name if isinstance(value, layers.Layer) else str(value),
)
def test_shape_is_as_announced(layer, shape):
    params, state, out_shape = layer.init(KEY, shape)
    for train in (False, True):
        out, new_state = layer.apply(params, state, draw(4, *shape), train=train, key=KEY)
        assert out.shape == (4, *out_shape)
        assert out.dtype == jnp.float32
        assert jax.tree.structure(new_state) == jax.tree.structure(state)
        assert jax.tree.map(jnp.shape, new_state) == jax.tree.map(jnp.shape, state)
    twin, _ = layers.with_ops(layer, reference).apply(params, state, draw(4, *shape), train=True, key=KEY)
    np.testing.assert_allclose(out, twin, atol=1e-5)


def test_initial_values():
    params, _, _ = layers.affine(4000).init(KEY, (50,))
    assert abs(float(jnp.std(params["w"])) / np.sqrt(2 / 50) - 1) < 0.01
    assert not params["b"].any()
    params, _, _ = layers.conv2d(400, 3).init(KEY, (8, 8, 16))
    assert abs(float(jnp.std(params["w"])) / np.sqrt(2 / (9 * 16)) - 1) < 0.02
    params, _, _ = layers.affine(4000, weight_scale=0.01).init(KEY, (50,))
    assert abs(float(jnp.std(params["w"])) / 0.01 - 1) < 0.01
    params, state, _ = layers.batchnorm().init(KEY, (6,))
    assert (params["gamma"] == 1).all() and (params["beta"] == 0).all()
    assert (state["mean"] == 0).all() and (state["var"] == 1).all()


def test_running_statistics_move_by_the_momentum_and_serve_at_test_time():
    layer = layers.batchnorm(momentum=0.75)
    params, state, _ = layer.init(KEY, (3,))
    x = 2.0 + 3.0 * draw(50, 3)
    _, state = layer.apply(params, state, x, train=True)
    np.testing.assert_allclose(state["mean"], 0.25 * x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(state["var"], 0.75 + 0.25 * x.var(0), rtol=1e-6)  # biased
    out, same = layer.apply(params, state, x)
    np.testing.assert_allclose(
        out, (x - state["mean"][None]) / np.sqrt(state["var"] + 1e-5)[None], rtol=1e-5, atol=1e-5
    )
    assert same is state


def test_running_statistics_are_constants_to_the_gradient():
    layer = layers.batchnorm()
    params, state, _ = layer.init(KEY, (3,))
    slope = jax.grad(lambda x: layer.apply(params, state, x, train=True)[1]["mean"].sum())(draw(4, 3))
    assert not slope.any()


def test_children_draw_from_the_key_folded_with_their_position():
    ones = jnp.ones((4, 50))
    model = layers.serial(layers.relu(), layers.dropout(0.5))
    want = layers.dropout(0.5).apply({}, {}, ones, train=True, key=jax.random.fold_in(KEY, 1))[0]
    np.testing.assert_array_equal(model.apply({}, {}, ones, train=True, key=KEY)[0], want)
    branches = layers.residual(layers.relu(), layers.dropout(0.5))
    np.testing.assert_array_equal(branches.apply({}, {}, ones, train=True, key=KEY)[0], ones + want)


def test_dropout_needs_a_key_only_when_training():
    layer = layers.dropout(0.5)
    x = draw(4, 3)
    assert layer.apply({}, {}, x)[0] is x
    with pytest.raises(ValueError, match="dropout: key is None; it must be a random key"):
        layer.apply({}, {}, x, train=True)


def test_each_dropout_of_a_network_draws_its_own_mask():
    model = layers.serial(layers.dropout(0.5), layers.relu(), layers.dropout(0.5))
    ones = jnp.ones((1, 1000))
    kept = int((model.apply({}, {}, ones, train=True, key=KEY)[0] > 0).sum())
    assert 200 < kept < 300  # a quarter; with one mask for both it would be a half


def test_paths_are_readable_and_in_order():
    model = models.resnet((4, 8), blocks_per_stage=1)
    params, state, _ = model.init(KEY, (8, 8, 3))
    paths = ["/".join(k.key for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert paths[0] == "00_conv2d/w"
    assert "05_residual/shortcut/00_conv2d/w" in paths
    assert "05_residual/body/01_batchnorm/gamma" in paths
    assert paths == sorted(paths)
    assert "01_batchnorm" in state and "02_relu" not in params


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.dropout(0.0), "keep_prob is 0.0; it must be in (0, 1]"),
        (lambda: layers.dropout(1.5), "keep_prob is 1.5; it must be in (0, 1]"),
        (lambda: layers.affine(0), "features is 0; it must be at least 1"),
        (lambda: layers.batchnorm(momentum=2.0), "momentum is 2.0"),
        (lambda: layers.groupnorm(4).init(KEY, (6,)), "groups is 4; it must divide the 6 channels"),
        (lambda: layers.conv2d(4, 3).init(KEY, (6,)), "input shape is (6,); it must be (H, W, C)"),
        (lambda: layers.max_pool2d(9).init(KEY, (6, 6, 1)), "window"),
        (lambda: layers.conv2d(4, 9, padding="VALID").init(KEY, (6, 6, 1)), "window"),
        (lambda: layers.residual(layers.affine(3)).init(KEY, (4,)), "body gives (3,); it must give (4,)"),
        (lambda: models.vgg((4,), normalization="batch"), "normalization is 'batch'; it must be one of None"),
    ],
)
def test_errors_name_the_argument_in_one_line(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)
