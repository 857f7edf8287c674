"""Each op as a JAX user would write it from `lax` and `jax.nn`, differentiated automatically: the rival at home.

Same names and signatures as in `jnet.custom_vjp`. Where `jnet.reference` spells the mathematics out, this takes the
ready-made operation: a window reduction for a pool, the one-pass variance for batch normalization, as Flax does.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jnet import reference

affine = reference.affine
relu = jax.nn.relu
leaky_relu = jax.nn.leaky_relu
sigmoid = jax.nn.sigmoid
rnn_step = reference.rnn_step
rnn = reference.rnn
temporal_affine = reference.temporal_affine


def tanh(x):
    return jnp.tanh(x)


def batchnorm(x, gamma, beta, eps=1e-5, axis_name=None):
    del axis_name
    mean, var = _fast_moments(x, tuple(range(x.ndim - 1)))
    return batchnorm_inference(x, gamma, beta, mean, var, eps), mean, var


def batchnorm_inference(x, gamma, beta, mean, var, eps=1e-5):
    return jax.nn.standardize(x, mean=mean, variance=var, epsilon=eps) * gamma + beta


def layernorm(x, gamma, beta, eps=1e-5):
    return jax.nn.standardize(x, axis=-1, epsilon=eps) * gamma + beta


def groupnorm(x, gamma, beta, groups, eps=1e-5):
    grouped = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    axes = (*range(1, x.ndim - 1), x.ndim)
    return jax.nn.standardize(grouped, axis=axes, epsilon=eps).reshape(x.shape) * gamma + beta


def dropout(x, key, keep_prob):
    return jnp.where(jax.random.bernoulli(key, keep_prob, x.shape), x / keep_prob, 0)


def conv2d(x, w, b=None, stride=1, padding="SAME", dilation=1, groups=1, algorithm="auto"):
    del algorithm
    pads = padding if isinstance(padding, str) else ((padding, padding), (padding, padding))
    out = lax.conv_general_dilated(
        x,
        w,
        (stride, stride),
        pads,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    return out if b is None else out + b


def max_pool2d(x, window=2, stride=None, padding=0, dilation=1):
    return _reduce(x, -jnp.inf, lax.max, window, stride, padding, dilation)


def avg_pool2d(x, window=2, stride=None, padding=0, count_include_pad=True):
    del count_include_pad
    return _reduce(x, 0.0, lax.add, window, stride, padding, 1) / window**2


def affine_relu(x, w, b):
    return jax.nn.relu(affine(x, w, b))


def bias_relu(x, b):
    return jax.nn.relu(x + b)


def bias_relu_max_pool2d(x, b, **static):
    return max_pool2d(bias_relu(x, b), **static)


def batchnorm_relu(x, gamma, beta):
    out, mean, var = batchnorm(x, gamma, beta)
    return jax.nn.relu(out), mean, var


def batchnorm_add_relu(x, gamma, beta, shortcut):
    out, mean, var = batchnorm(x, gamma, beta)
    return jax.nn.relu(out + shortcut), mean, var


def batchnorm_relu_max_pool2d(x, gamma, beta, **static):
    out, mean, var = batchnorm_relu(x, gamma, beta)
    return max_pool2d(out, **static), mean, var


def batchnorm_relu_conv2d(x, gamma, beta, w, **static):
    out, mean, var = batchnorm_relu(x, gamma, beta)
    return conv2d(out, w, **static), mean, var


def softmax_cross_entropy(logits, labels):
    log_p = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], axis=1))


def svm_loss(scores, labels, margin=1.0):
    right = jnp.take_along_axis(scores, labels[:, None], axis=1)
    hinge = jax.nn.relu(scores - right + margin) * (1 - jax.nn.one_hot(labels, scores.shape[1]))
    return hinge.sum() / len(scores)


def lstm_step(x, h, c, wx, wh, b):
    i, f, o, g = jnp.split(x @ wx + h @ wh + b, 4, axis=1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def lstm(x, h0, c0, wx, wh, b):
    def step(state, now):
        h, c = lstm_step(now, state[0], state[1], wx, wh, b)
        return (h, c), h

    (_, c), out = lax.scan(step, (h0, c0), x.swapaxes(0, 1))
    return out.swapaxes(0, 1), c


def word_embedding(ids, w):
    return jnp.take(w, ids, axis=0)


def temporal_softmax_loss(logits, labels, mask):
    log_p = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0] * mask) / len(logits)


def _fast_moments(x, axes):
    mean = jnp.mean(x, axes)
    return mean, jnp.mean(jnp.square(x), axes) - jnp.square(mean)


def _reduce(x, start, combine, window, stride, padding, dilation):
    def over_images(n):
        return (1, n, n, 1)

    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    strides = over_images(stride or window)
    return lax.reduce_window(
        x, start, combine, over_images(window), strides, pads, window_dilation=over_images(dilation)
    )
