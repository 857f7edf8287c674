"""The course's layers: gradients, conventions, layouts, errors, and the traps between NumPy and JAX."""

import subprocess
import sys

import numpy as np
import pytest

from jnet.compat.cs231n import fast_layers, im2col, im2col_cython, layer_utils, layers, rnn_layers
from jnet.compat.cs231n.gradient_check import eval_numerical_gradient, eval_numerical_gradient_array


def draw(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def close(got, want, tolerance=1e-7):
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(np.abs(want).max(initial=0), 1e-3))


CONV = {"stride": 2, "pad": 1}
POOL = {"pool_height": 2, "pool_width": 3, "stride": 2}
TILES = {"pool_height": 2, "pool_width": 2, "stride": 2}
IMAGES, FILTERS = (2, 3, 6, 5), (4, 3, 3, 2)
CELL = [(3, 4), (3, 2), (4, 2), (2, 2), (2,)]
GATES = [(3, 4), (3, 2), (3, 2), (4, 8), (2, 8), (8,)]

# name: the pair's module, the arrays' shapes, and the arguments behind them
PAIRS = {
    "affine": (layers, [(4, 2, 3), (6, 5), (5,)], ()),
    "relu": (layers, [(4, 5)], ()),
    "batchnorm": (layers, [(6, 4), (4,), (4,)], ({"mode": "train"},)),
    "layernorm": (layers, [(6, 4), (4,), (4,)], ({},)),
    "dropout": (layers, [(6, 4)], ({"mode": "train", "p": 0.6, "seed": 3},)),
    "spatial_batchnorm": (layers, [(2, 4, 3, 2), (4,), (4,)], ({"mode": "train"},)),
    "spatial_groupnorm": (layers, [(2, 4, 3, 2), (1, 4, 1, 1), (1, 4, 1, 1)], (2, {})),
    "conv_naive": (layers, [IMAGES, FILTERS, (4,)], (CONV,)),
    "conv_fast": (fast_layers, [IMAGES, FILTERS, (4,)], (CONV,)),
    "max_pool_naive": (layers, [IMAGES], (POOL,)),
    "max_pool_fast": (fast_layers, [(2, 3, 6, 4)], (TILES,)),
    "affine_relu": (layer_utils, [(4, 6), (6, 5), (5,)], ()),
    "affine_bn_relu": (layer_utils, [(6, 3), (3, 4), (4,), (4,), (4,)], ({"mode": "train"},)),
    "affine_ln_relu": (layer_utils, [(6, 3), (3, 4), (4,), (4,), (4,)], ({},)),
    "conv_relu": (layer_utils, [IMAGES, FILTERS, (4,)], (CONV,)),
    "conv_relu_pool": (layer_utils, [(2, 3, 8, 8), (4, 3, 3, 3), (4,)], ({"stride": 1, "pad": 1}, TILES)),
    "conv_bn_relu": (layer_utils, [IMAGES, FILTERS, (4,), (4,), (4,)], (CONV, {"mode": "train"})),
    "rnn_step": (rnn_layers, CELL, ()),
    "rnn": (rnn_layers, [(3, 2, 4), *CELL[1:]], ()),
    "lstm": (rnn_layers, [(3, 2, 4), (3, 2), *GATES[3:]], ()),
    "temporal_affine": (rnn_layers, [(3, 2, 4), (4, 5), (5,)], ()),
}

# A batch normalization subtracts the mean, and with it the bias in front: its gradient is 0, whatever comes behind.
EXACT_ZEROS = {("affine_bn_relu", 2), ("conv_bn_relu", 2)}


def pair(name):
    """Forward, backward, arrays and further arguments."""
    module, shapes, rest = PAIRS[name]
    for kind in ("naive", "fast"):
        if name.endswith(kind):
            stem = name.removesuffix("_" + kind)
            names = f"{stem}_forward_{kind}", f"{stem}_backward_{kind}"
            break
    else:
        names = f"{name}_forward", f"{name}_backward"
    arrays = [draw(*shape, seed=i) for i, shape in enumerate(shapes)]
    return (*(getattr(module, n) for n in names), arrays, rest)


@pytest.mark.parametrize("name", PAIRS)
def test_gradients_are_those_of_central_differences(name):
    forward, backward, arrays, rest = pair(name)
    out, cache = forward(*arrays, *rest)
    dout = draw(*out.shape, seed=9)
    grads = backward(dout, cache)
    grads = grads if isinstance(grads, tuple) else (grads,)
    assert len(grads) == len(arrays)
    for position, (array, grad) in enumerate(zip(arrays, grads, strict=True)):
        assert isinstance(grad, np.ndarray) and grad.dtype == np.float64 and grad.shape == array.shape
        numerical = eval_numerical_gradient_array(lambda _: forward(*arrays, *rest)[0], array, dout)
        if (name, position) in EXACT_ZEROS:
            assert np.abs(grad).max() < 1e-13 and np.abs(numerical).max() < 1e-8
        else:
            np.testing.assert_allclose(grad, numerical, rtol=0, atol=1e-7 * np.abs(numerical).max())


@pytest.mark.parametrize("name", PAIRS)
def test_float32_stays_and_results_can_be_written_to(name):
    forward, backward, arrays, rest = pair(name)
    low = [array.astype(np.float32) for array in arrays]
    out, cache = forward(*low, *rest)
    assert out.dtype == np.float32
    close(out, forward(*arrays, *rest)[0], 1e-4)
    out[...] = 0.0
    dout = draw(*out.shape)  # a float64 cotangent does not widen a float32 layer (dropout keeps nothing of its input)
    grads = backward(dout.astype(np.float32) if name == "dropout" else dout, cache)
    for grad in grads if isinstance(grads, tuple) else (grads,):
        assert grad.dtype == np.float32
        grad[...] = 0.0


@pytest.mark.parametrize("name", PAIRS)
def test_arrays_may_change_as_soon_as_a_call_returns(name):
    forward, backward, arrays, rest = pair(name)
    out, cache = forward(*arrays, *rest)
    dout = draw(*out.shape, seed=9)
    expected = backward(dout, cache)
    late, late_cache = forward(*arrays, *rest)
    for array in arrays:
        array[...] = 1e3
    close(late, out, 1e-15)
    grads = backward(dout, late_cache)
    for got, want in zip(*(g if isinstance(g, tuple) else (g,) for g in (grads, expected)), strict=True):
        np.testing.assert_array_equal(got, want)


def test_large_arrays_do_not_race_with_their_caller():
    x, w, b = draw(600, 600), draw(600, 600), np.zeros(600)
    expected = layers.affine_forward(x, w, b)[0]
    for _ in range(5):
        again = x.copy()
        out, _ = layers.affine_forward(again, w, b)
        again[...] = 0.0
        np.testing.assert_array_equal(out, expected)


def test_the_configuration_of_jax_is_left_alone():
    program = (
        "import jax, jax.numpy as jnp, numpy as np\n"
        "from jnet.compat.cs231n.classifiers.cnn import *\n"
        "assert np.__name__ == 'numpy'\n"
        "x, w, b = np.ones((2, 3)), np.ones((3, 4)), np.ones(4)\n"
        "out, cache = affine_forward(x, w, b)\n"
        "assert out.dtype == np.float64 and affine_backward(out, cache)[0].dtype == np.float64\n"
        "assert softmax_loss(out, np.zeros(2, int))[1].dtype == np.float64\n"
        "assert not jax.config.jax_enable_x64 and jnp.asarray(x).dtype == np.float32\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# Convolution and pooling, against loops


def conv_loops(x, w, b, stride, pad):
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    rows = 1 + (padded.shape[2] - w.shape[2]) // stride
    columns = 1 + (padded.shape[3] - w.shape[3]) // stride
    out = np.empty((len(x), len(w), rows, columns))
    for i, j in np.ndindex(rows, columns):
        window = padded[:, :, i * stride :, j * stride :][:, :, : w.shape[2], : w.shape[3]]
        out[:, :, i, j] = np.einsum("ncij,fcij->nf", window, w) + b
    return out


GEOMETRY = [((2, 3, 6, 5), (4, 3, 3, 2), 1, 0), ((2, 2, 8, 7), (3, 2, 3, 4), 3, 1), ((1, 3, 5, 5), (2, 3, 1, 1), 2, 0)]


@pytest.mark.parametrize(("x_shape", "w_shape", "stride", "pad"), GEOMETRY)
def test_convolutions_agree_with_loops_and_with_each_other(x_shape, w_shape, stride, pad):
    x, w, b, param = draw(*x_shape), draw(*w_shape), draw(w_shape[0]), {"stride": stride, "pad": pad}
    expected = conv_loops(x, w, b, stride, pad)
    naive, naive_cache = layers.conv_forward_naive(x, w, b, param)
    fast, fast_cache = fast_layers.conv_forward_fast(x, w, b, param)
    close(naive, expected, 1e-13)
    close(fast, expected, 1e-13)
    dout = draw(*expected.shape)
    grads = layers.conv_backward_naive(dout, naive_cache)
    for got, want in zip(fast_layers.conv_backward_fast(dout, fast_cache), grads, strict=True):
        close(got, want, 1e-13)
    x_cols = fast_cache[4]
    close(
        (w.reshape(len(w), -1) @ x_cols).reshape(len(w), len(x), *expected.shape[2:]).swapaxes(0, 1),
        expected - b[:, None, None],
        1e-13,
    )


def test_the_im2col_pair_wants_a_stride_that_leaves_no_rest():
    x, w, b = draw(2, 3, 6, 7), draw(4, 3, 2, 3), draw(4)
    out, cache = fast_layers.conv_forward_im2col(x, w, b, {"stride": 2, "pad": 0})
    close(out, conv_loops(x, w, b, 2, 0), 1e-13)
    assert len(cache) == 5
    x_, w_, b_, conv_param, x_cols = cache
    np.testing.assert_array_equal(x_, x)
    assert (w_.shape, b_.shape, conv_param) == (w.shape, b.shape, {"stride": 2, "pad": 0})
    close((w.reshape(4, -1) @ x_cols).reshape(4, 3, 3, 2).transpose(3, 0, 1, 2), out - b[:, None, None], 1e-13)
    assert [g.shape for g in fast_layers.conv_backward_im2col(out, cache)] == [x.shape, w.shape, b.shape]
    with pytest.raises(AssertionError, match="width does not work"):
        fast_layers.conv_forward_im2col(x[..., 1:], w, b, {"stride": 2, "pad": 0})


@pytest.mark.parametrize("shape", [(2, 2, 7, 8), (1, 3, 6, 6)])
@pytest.mark.parametrize("pool", [POOL, {**POOL, "stride": 1}, {**POOL, "stride": 4}])
def test_max_pool_agrees_with_loops(shape, pool):
    x, (height, width, stride) = draw(*shape), pool.values()
    out, cache = layers.max_pool_forward_naive(x, pool)
    dout, dx = draw(*out.shape), np.zeros_like(x)
    assert out.shape == (*shape[:2], 1 + (shape[2] - height) // stride, 1 + (shape[3] - width) // stride)
    for n, c, i, j in np.ndindex(out.shape):
        window = x[n, c, i * stride :, j * stride :][:height, :width]
        assert out[n, c, i, j] == window.max()
        row, column = np.unravel_index(window.argmax(), window.shape)
        dx[n, c, i * stride + row, j * stride + column] += dout[n, c, i, j]
    close(layers.max_pool_backward_naive(dout, cache), dx, 1e-14)
    fast, fast_cache = fast_layers.max_pool_forward_fast(x, pool)
    assert fast_cache[0] == "im2col"
    np.testing.assert_array_equal(fast, out)
    close(fast_layers.max_pool_backward_fast(dout, fast_cache), dx, 1e-14)


def test_ties_of_a_pool_follow_the_method():
    x, dout = np.ones((1, 1, 4, 4)), np.array([[[[4.0, 8.0], [12.0, 16.0]]]])
    out, cache = fast_layers.max_pool_forward_fast(x, TILES)
    assert cache[0] == "reshape" and (out == 1).all()
    np.testing.assert_array_equal(
        fast_layers.max_pool_backward_fast(dout, cache)[0, 0], np.kron(dout[0, 0] / 4, np.ones((2, 2)))
    )
    _, cache = layers.max_pool_forward_naive(x, TILES)
    np.testing.assert_array_equal(
        layers.max_pool_backward_naive(dout, cache)[0, 0], np.kron(dout[0, 0], [[1, 0], [0, 0]])
    )
    with pytest.raises(AssertionError, match="Invalid pool params"):
        fast_layers.max_pool_forward_reshape(x, POOL)
    with pytest.raises(ValueError, match="Unrecognized method"):
        fast_layers.max_pool_backward_fast(dout, ("other", None))


@pytest.mark.parametrize(
    ("shape", "window", "pad", "stride"), [((2, 3, 5, 6), (3, 2), 1, 2), ((1, 2, 4, 4), (2, 2), 0, 1)]
)
def test_columns_of_windows(shape, window, pad, stride):
    x = draw(*shape)
    k, i, j = im2col.get_im2col_indices(shape, *window, padding=pad, stride=stride)
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    cols = im2col.im2col_indices(x, *window, padding=pad, stride=stride)
    np.testing.assert_array_equal(cols, padded[:, k, i, j].transpose(1, 2, 0).reshape(cols.shape))
    np.testing.assert_array_equal(cols, im2col_cython.im2col_cython(x, *window, pad, stride))
    other = draw(*cols.shape)
    back = im2col.col2im_indices(other, shape, *window, padding=pad, stride=stride)
    close(np.sum(back * x), np.sum(other * cols), 1e-12)  # the transpose of a linear map
    np.testing.assert_array_equal(back, im2col_cython.col2im_cython(other, *shape, *window, pad, stride))
    rows, columns = (1 + (size + 2 * pad - w) // stride for size, w in zip(shape[2:], window, strict=True))
    laid = other.reshape(shape[1], *window, rows, columns, shape[0]).transpose(0, 1, 2, 5, 3, 4)
    np.testing.assert_array_equal(back, im2col_cython.col2im_6d_cython(laid, *shape, *window, pad, stride))


# Normalization


def test_batchnorm_writes_its_running_statistics():
    x, gamma, beta = 3 + 2 * draw(50, 3), np.array([1, 2, 3]), np.array([4, 5, 6])  # integers, as a notebook has them
    param = {"mode": "train", "momentum": 0.8}
    out, cache = layers.batchnorm_forward(x, gamma, beta, param)
    assert out.dtype == np.float64
    close(out.mean(axis=0), beta, 1e-12)
    close(out.std(axis=0), gamma, 1e-5)
    close(param["running_mean"], 0.2 * x.mean(axis=0), 1e-12)
    close(param["running_var"], 0.2 * x.var(axis=0), 1e-12)
    dout = draw(50, 3, seed=1)
    for staged, simple in zip(
        layers.batchnorm_backward(dout, cache), layers.batchnorm_backward_alt(dout, cache), strict=True
    ):
        close(staged, simple, 1e-12)
    param["mode"] = "test"
    before = dict(param)
    out, _ = layers.batchnorm_forward(x, gamma, beta, param)
    close(out, gamma * (x - before["running_mean"]) / np.sqrt(before["running_var"] + 1e-5) + beta, 1e-12)
    assert all(np.array_equal(param[name], before[name]) for name in ("running_mean", "running_var"))
    with pytest.raises(ValueError, match='Invalid forward batchnorm mode "tset"'):
        layers.batchnorm_forward(x, gamma, beta, {"mode": "tset"})


def test_empty_batches():
    param = {"mode": "train", "running_mean": np.ones(3), "running_var": np.ones(3)}
    out, cache = layers.batchnorm_forward(np.zeros((0, 3)), np.ones(3), np.zeros(3), param)
    assert out.shape == (0, 3) and (param["running_mean"] == 1).all() and (param["running_var"] == 1).all()
    assert [g.shape for g in layers.batchnorm_backward(out, cache)] == [(0, 3), (3,), (3,)]
    x, w, b = np.zeros((0, 3, 5, 5)), draw(4, 3, 3, 3), draw(4)
    for forward, backward in (
        (layers.conv_forward_naive, layers.conv_backward_naive),
        (fast_layers.conv_forward_fast, fast_layers.conv_backward_fast),
    ):
        out, cache = forward(x, w, b, {"stride": 1, "pad": 1})
        dx, dw, db = backward(out, cache)
        assert out.shape == (0, 4, 5, 5) and dx.shape == x.shape and not dw.any() and not db.any()
    out, cache = layers.max_pool_forward_naive(x, {**TILES, "stride": 1})
    assert layers.max_pool_backward_naive(out, cache).shape == x.shape
    assert layers.affine_forward(x, draw(75, 2), draw(2))[0].shape == (0, 2)
    assert layers.spatial_batchnorm_forward(x, np.ones(3), np.ones(3), {"mode": "train"})[0].shape == x.shape


def test_groupnorm_takes_vectors_too():
    x, gamma, beta = draw(2, 4, 3, 2), draw(4), draw(4)
    out, cache = layers.spatial_groupnorm_forward(x, gamma, beta, 2, {})
    as_images = (vector.reshape(1, 4, 1, 1) for vector in (gamma, beta))
    np.testing.assert_array_equal(out, layers.spatial_groupnorm_forward(x, *as_images, 2, {})[0])
    assert [g.shape for g in layers.spatial_groupnorm_backward(out, cache)] == [x.shape, (4,), (4,)]
    group = x[:, :2].reshape(2, -1)
    close(
        out[:, 0],
        gamma[0]
        * ((x[:, 0].reshape(2, -1) - group.mean(1)[:, None]) / np.sqrt(group.var(1)[:, None] + 1e-5)).reshape(2, 3, 2)
        + beta[0],
        1e-12,
    )


# Dropout


def test_dropout_draws_what_the_course_draws():
    x, param = draw(30, 40), {"mode": "train", "p": 0.3}
    np.random.seed(5)
    mask = (np.random.rand(30, 40) < 0.3) / 0.3
    follows = np.random.rand()
    np.random.seed(5)
    out, (kept_param, kept_mask) = layers.dropout_forward(x, param)
    assert np.random.rand() == follows
    np.testing.assert_array_equal(kept_mask, mask)
    close(out, x * mask, 1e-15)
    close(layers.dropout_backward(x, (kept_param, kept_mask)), x * mask, 1e-15)
    param["mode"] = "test"  # read at the backward pass
    np.testing.assert_array_equal(layers.dropout_backward(x, (kept_param, kept_mask)), x)
    np.testing.assert_array_equal(layers.dropout_forward(x, param)[0], x)
    seeded = {"mode": "train", "p": 0.3, "seed": 5}
    np.testing.assert_array_equal(layers.dropout_forward(x, seeded)[0], layers.dropout_forward(x, seeded)[0])
    dropped = layers.dropout_forward(np.where(mask > 0, x, np.inf), seeded)[0]
    assert np.isfinite(dropped).all()
    with pytest.raises(ValueError, match=r"dropout_param\['p'\] is 0.0"):
        layers.dropout_forward(x, {"mode": "train", "p": 0})


# Losses


@pytest.mark.parametrize("loss", [layers.softmax_loss, layers.svm_loss])
def test_losses(loss):
    x, y = draw(7, 5), np.arange(7) % 5
    value, dx = loss(x, y)
    rows = np.arange(7)
    if loss is layers.softmax_loss:
        close(value, np.mean(np.log(np.exp(x).sum(1)) - x[rows, y]), 1e-14)
    else:
        margins = np.maximum(x - x[rows, y][:, None] + 1, 0)
        margins[rows, y] = 0
        close(value, margins.sum() / 7, 1e-14)
    close(dx, eval_numerical_gradient(lambda x: loss(x, y)[0], x, verbose=False))
    assert np.isscalar(value) and dx.flags.writeable
    extreme, dx = loss(np.array([[1000.0, -1000.0]]), np.array([1]))
    assert extreme == (2000 if loss is layers.softmax_loss else 2001)
    np.testing.assert_array_equal(dx, [[1, -1]])
    assert np.isnan(loss(np.zeros((0, 3)), np.zeros(0, int))[0])
    for wrong, message in ((5, r"y\[2\] is 5; labels must be from 0 to 4"), (-1, r"y\[2\] is -1")):
        with pytest.raises(ValueError, match=message):
            loss(x, np.where(rows == 2, wrong, y))
    with pytest.raises(ValueError, match="it must be integers of shape"):
        loss(x, y[:3])


def test_names_that_a_star_import_brings():
    namespace = {"np": np}
    exec("from jnet.compat.cs231n.classifiers.cnn import *", namespace)
    assert namespace["np"] is np
    for name in ("affine_forward", "conv_relu_pool_backward", "conv_forward_fast", "svm_loss", "ThreeLayerConvNet"):
        assert name in namespace
    namespace = {}
    exec("from jnet.compat.cs231n.classifiers.fc_net import *", namespace)
    assert {"affine_relu_forward", "batchnorm_backward_alt", "FullyConnectedNet", "TwoLayerNet"} <= namespace.keys()
