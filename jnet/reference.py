"""The plain twins: each op of `jnet.custom_vjp` again, in jax.numpy without rules, differentiated by JAX itself.

They are the oracle of the tests, the rival in the benchmarks, and the way to forward-mode derivatives (`jax.jvp`,
`jax.hessian`). They are written for plainness, not for speed, and share no code with `jnet.formulas`. Same names and
signatures as the ops; `jnet.layers.with_ops(model, jnet.reference)` runs a whole model on them.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

__all__ = [
    "affine",
    "affine_relu",
    "avg_pool2d",
    "batchnorm",
    "batchnorm_add_relu",
    "batchnorm_inference",
    "batchnorm_relu",
    "batchnorm_relu_conv2d",
    "batchnorm_relu_max_pool2d",
    "bias_relu",
    "bias_relu_max_pool2d",
    "conv2d",
    "dropout",
    "groupnorm",
    "layernorm",
    "leaky_relu",
    "lstm",
    "lstm_step",
    "max_pool2d",
    "relu",
    "rnn",
    "rnn_step",
    "sigmoid",
    "softmax_cross_entropy",
    "svm_loss",
    "tanh",
    "temporal_affine",
    "temporal_softmax_loss",
    "word_embedding",
]


def affine(x, w, b):
    """Rows of x, flattened, times w, plus b."""
    return _low(x.reshape(x.shape[0], math.prod(x.shape[1:])) @ w.astype(x.dtype) + b.astype(x.dtype)[None, :], x)


def relu(x):
    """`max(x, 0)`, with slope 0 at 0."""
    return jnp.where(x <= 0, jnp.zeros((), x.dtype), x)


def leaky_relu(x, negative_slope=0.01):
    """`x` where positive, else `negative_slope * x`."""
    return jnp.where(x > 0, x, negative_slope * x)


def sigmoid(x):
    """Logistic function."""
    return jnp.exp(-jnp.logaddexp(jnp.zeros((), x.dtype), -x))


def tanh(x):
    """Hyperbolic tangent."""
    return jnp.tanh(x)


def batchnorm(x, gamma, beta, eps=1e-5, axis_name=None):
    """Normalise over all axes but the last, and over the devices along `axis_name`; return (out, mean, var)."""
    axes = tuple(range(x.ndim - 1))

    def over_all(values):
        here = jnp.mean(values, axis=axes)
        return here if axis_name is None else lax.pmean(here, axis_name)

    mean = over_all(_wide(x))
    var = over_all((_wide(x) - _row(mean, x)) ** 2)
    return batchnorm_inference(x, gamma, beta, mean, var, eps), mean, var


def batchnorm_inference(x, gamma, beta, mean, var, eps=1e-5):
    """Normalise by a given mean and variance."""
    h = (_wide(x) - _row(_wide(mean), x)) / jnp.sqrt(_row(_wide(var), x) + eps)
    return _low(h * _row(_wide(gamma), x) + _row(_wide(beta), x), x)


def layernorm(x, gamma, beta, eps=1e-5):
    """Normalise over the last axis."""
    wide = _wide(x)
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    var = jnp.mean((wide - mean) ** 2, axis=-1, keepdims=True)
    h = (wide - mean) / jnp.sqrt(var + eps)
    return _low(h * _row(_wide(gamma), x) + _row(_wide(beta), x), x)


def groupnorm(x, gamma, beta, groups, eps=1e-5):
    """Normalise each example over its positions and the channels of a group."""
    wide = _wide(x).reshape(x.shape[0], math.prod(x.shape[1:-1]), groups, x.shape[-1] // groups)
    mean = jnp.mean(wide, axis=(1, 3), keepdims=True)
    var = jnp.mean((wide - mean) ** 2, axis=(1, 3), keepdims=True)
    h = ((wide - mean) / jnp.sqrt(var + eps)).reshape(x.shape)
    return _low(h * _row(_wide(gamma), x) + _row(_wide(beta), x), x)


def dropout(x, key, keep_prob):
    """Keep each element with probability keep_prob, scaled by its reciprocal."""
    return jnp.where(_kept(key, keep_prob, x.shape), x / keep_prob, jnp.zeros((), x.dtype))


def conv2d(x, w, b=None, stride=1, padding="SAME", dilation=1, groups=1, algorithm="auto"):
    """Cross-correlate NHWC images with HWIO filters by XLA's own convolution."""
    del algorithm  # the formulas' choice of path; there is one here
    out = lax.conv_general_dilated(
        x,
        w.astype(x.dtype),
        _pair(stride),
        _explicit(padding),
        rhs_dilation=_pair(dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    return out if b is None else out + _row(b.astype(x.dtype), out)


def max_pool2d(x, window=2, stride=None, padding="VALID", dilation=1):
    """Largest entry of each window; the gradient goes to the first of equals in row-major order."""
    taps = _windows(x, window, stride, padding, dilation, -jnp.inf)
    is_nan = jnp.isnan(taps)
    winner = jnp.argmax(jnp.where(is_nan, jnp.inf, taps), axis=-1, keepdims=True)
    winner = jnp.where(is_nan.any(-1, keepdims=True), jnp.argmax(is_nan, axis=-1, keepdims=True), winner)
    return jnp.take_along_axis(taps, winner, axis=-1)[..., 0]


def avg_pool2d(x, window=2, stride=None, padding="VALID", count_include_pad=True):
    """Mean of each window, the padding counted unless told otherwise."""
    taps = _windows(_wide(x), window, stride, padding, 1, 0.0)
    inside = _windows(jnp.ones_like(_wide(x)), window, stride, padding, 1, 0.0)
    size = taps.shape[-1] if count_include_pad else jnp.sum(inside, axis=-1)
    return _low(jnp.sum(taps, axis=-1) / size, x)


def bias_relu(x, b):
    """`max(x + b, 0)`, b a channel."""
    return relu(x + _row(b.astype(x.dtype), x))


def affine_relu(x, w, b):
    """`relu(affine(x, w, b))`."""
    return relu(affine(x, w, b))


def bias_relu_max_pool2d(x, b, window=2, stride=None, padding="VALID", dilation=1):
    """`max_pool2d(bias_relu(x, b))`."""
    return max_pool2d(bias_relu(x, b), window, stride, padding, dilation)


def batchnorm_relu(x, gamma, beta, eps=1e-5, axis_name=None):
    """`relu` of batchnorm's out; return (out, mean, var)."""
    out, mean, var = batchnorm(x, gamma, beta, eps, axis_name)
    return relu(out), mean, var


def batchnorm_add_relu(x, gamma, beta, shortcut, eps=1e-5, axis_name=None):
    """`relu` of batchnorm's out plus the shortcut; return (out, mean, var)."""
    out, mean, var = batchnorm(x, gamma, beta, eps, axis_name)
    return relu(out + shortcut.astype(x.dtype)), mean, var


def batchnorm_relu_max_pool2d(
    x, gamma, beta, eps=1e-5, axis_name=None, window=2, stride=None, padding="VALID", dilation=1
):
    """`max_pool2d` of batchnorm_relu's out; return (out, mean, var)."""
    out, mean, var = batchnorm_relu(x, gamma, beta, eps, axis_name)
    return max_pool2d(out, window, stride, padding, dilation), mean, var


def batchnorm_relu_conv2d(
    x,
    gamma,
    beta,
    w,
    b=None,
    eps=1e-5,
    axis_name=None,
    stride=1,
    padding="SAME",
    dilation=1,
    groups=1,
    algorithm="auto",
):
    """`conv2d` of batchnorm_relu's out; return (out, mean, var)."""
    out, mean, var = batchnorm_relu(x, gamma, beta, eps, axis_name)
    return conv2d(out, w, b, stride, padding, dilation, groups, algorithm), mean, var


def softmax_cross_entropy(logits, labels):
    """Mean negative log-probability of the labels."""
    wide, rows = _wide(logits), jnp.arange(len(logits))
    return jnp.mean(jax.nn.logsumexp(wide, axis=1) - wide[rows, labels])


def svm_loss(scores, labels, margin=1.0):
    """Mean over rows of the summed hinge over wrong classes."""
    wide, rows = _wide(scores), jnp.arange(len(scores))
    excess = wide - wide[rows, labels][:, None] + margin
    hinge = relu(excess.at[rows, labels].set(0.0))
    return jnp.mean(jnp.sum(hinge, axis=1))


def rnn_step(x, h, wx, wh, b):
    """The next state of a vanilla recurrent network."""
    return _low(jnp.tanh(_cell(x, h, wx, wh, b)), x)


def rnn(x, h0, wx, wh, b):
    """All states of a vanilla recurrent network over `(N, T, D)`."""

    def step(h, now):
        h = rnn_step(now, h, wx, wh, b)
        return h, h

    return jnp.swapaxes(lax.scan(step, h0.astype(x.dtype), jnp.swapaxes(x, 0, 1))[1], 0, 1)


def lstm_step(x, h, c, wx, wh, b):
    """The next state and cell of a long short-term memory, gates in the order i, f, o, g."""
    i, f, o, g = jnp.split(_cell(x, h, wx, wh, b), 4, axis=1)
    c = sigmoid(f) * _wide(c) + sigmoid(i) * jnp.tanh(g)
    return _low(sigmoid(o) * jnp.tanh(c), x), c


def lstm(x, h0, c0, wx, wh, b):
    """All states, and the last cell, of a long short-term memory over `(N, T, D)`."""

    def step(state, now):
        h, c = state
        h, c = lstm_step(now, h, c, wx, wh, b)
        return (h, c), h

    (_, c), out = lax.scan(step, (h0.astype(x.dtype), _wide(c0)), jnp.swapaxes(x, 0, 1))
    return jnp.swapaxes(out, 0, 1), c


def word_embedding(ids, w):
    """Row `ids` of w."""
    return w[ids]


def temporal_affine(x, w, b):
    """The last axis of x times w, plus b."""
    return _low(x @ w.astype(x.dtype) + _row(b.astype(x.dtype), x), x)


def temporal_softmax_loss(logits, labels, mask):
    """Negative log-probability of the labels, summed where mask is true, over the batch's size."""
    log_p = jax.nn.log_softmax(_wide(logits), axis=-1)
    picked = jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(mask, picked, 0.0)) / len(logits)


def _cell(x, h, wx, wh, b):
    return _wide(x @ wx.astype(x.dtype)) + _wide(h.astype(x.dtype) @ wh.astype(x.dtype)) + _wide(b)[None, :]


def _wide(x: Array) -> Array:
    return x.astype(jnp.float32) if jnp.dtype(x.dtype).itemsize < 4 else x


def _low(x: Array, like: Array) -> Array:
    return x.astype(like.dtype)


def _kept(key, keep_prob, shape):
    """Draw the mask of dropout: the hashes of a counter, keyed by the words of the key, below a threshold."""
    if keep_prob == 1.0:
        return jnp.ones(shape, bool)
    words = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    bits = jnp.arange(math.prod(shape), dtype=jnp.uint32)
    for combine, word in ((jnp.add, words[0]), (jnp.bitwise_xor, words[-1])):
        bits = combine(bits, word)
        for shift, factor in ((16, 0x21F0AAAD), (15, 0xD35A2D97)):
            bits = (bits ^ (bits >> shift)) * np.uint32(factor)
        bits = bits ^ (bits >> 15)
    return (bits < np.uint32(min(round(keep_prob * 2**32), 2**32 - 1))).reshape(shape)


def _row(vector: Array, x: Array) -> Array:
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


def _pair(value) -> tuple:
    return (value, value) if isinstance(value, int) else tuple(value)


def _explicit(padding) -> Any:
    if isinstance(padding, str):
        return padding
    rows, columns = _pair(padding)
    return (_pair(rows), _pair(columns))


def _windows(x, window, stride, padding, dilation, fill):
    """Gather the entries of each window on a new last axis, (N, OH, OW, C, taps), with plain indexing."""
    (hh, ww), (dh, dw) = _pair(window), _pair(dilation)
    sh, sw = _pair(window if stride is None else stride)
    span = ((hh - 1) * dh + 1, (ww - 1) * dw + 1)
    if isinstance(padding, str):
        pads = lax.padtype_to_pads(x.shape[1:3], span, (sh, sw), padding)
    else:
        pads = _explicit(padding)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    rows = jnp.arange(0, x.shape[1] - span[0] + 1, sh)[:, None] + dh * jnp.arange(hh)[None, :]
    columns = jnp.arange(0, x.shape[2] - span[1] + 1, sw)[:, None] + dw * jnp.arange(ww)[None, :]
    taps = x[:, rows[:, None, :, None], columns[None, :, None, :], :]  # (N, OH, OW, hh, ww, C)
    return jnp.moveaxis(taps.reshape(*taps.shape[:3], hh * ww, x.shape[3]), 3, -1)
