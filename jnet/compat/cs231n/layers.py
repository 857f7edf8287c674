"""The course's layers: pairs `X_forward(...) -> (out, cache)` and `X_backward(dout, cache) -> gradients`.

The mathematics is `jnet.formulas`; here stand only the course's names, arguments, layouts and conventions. Images are
`(N, C, H, W)`, filters `(F, C, HH, WW)`. A float32 layer stays in float32 and a float64 layer in float64.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jnet.compat.cs231n.boundary import check_labels, floats, nchw, nhwc, numpy_backward, numpy_jit
from jnet.formulas import activation, affine, convolution, loss, normalization, pooling

__all__ = [
    "affine_backward",
    "affine_forward",
    "batchnorm_backward",
    "batchnorm_backward_alt",
    "batchnorm_forward",
    "conv_backward_naive",
    "conv_forward_naive",
    "dropout_backward",
    "dropout_forward",
    "layernorm_backward",
    "layernorm_forward",
    "max_pool_backward_naive",
    "max_pool_forward_naive",
    "relu_backward",
    "relu_forward",
    "softmax_loss",
    "spatial_batchnorm_backward",
    "spatial_batchnorm_forward",
    "spatial_groupnorm_backward",
    "spatial_groupnorm_forward",
    "svm_loss",
]

Params = dict[str, Any]


def affine_forward(x, w, b):
    """Map the rows of `x: (N, d1, ..., dk)` by `w: (D, M)` and `b: (M,)`; cache `(x, w, b)`."""
    cache = floats(x, w, b)
    return _affine_forward(*cache), cache


def affine_backward(dout, cache):
    """Return `dx` (shape of x), `dw: (D, M)`, `db: (M,)`."""
    return _affine_backward(dout, cache)


@numpy_jit
def _affine_forward(x, w, b):
    return affine.affine_forward(x, w, b)[0]


@numpy_backward
def _affine_backward(dout, cache):
    x, w, _ = cache
    return affine.affine_backward(dout, affine.AffineCache(x, w))


def relu_forward(x):
    """Return `max(x, 0)`, any shape; cache `x`."""
    (x,) = floats(x)
    return _relu_forward(x), x


def relu_backward(dout, cache):
    """Return `dx`: `dout` where `x > 0`, else 0."""
    return _relu_backward(dout, cache)


@numpy_jit
def _relu_forward(x):
    return activation.relu_forward(x)[0]


@numpy_backward
def _relu_backward(dout, x):
    return activation.relu_backward(dout, activation.ReluCache(x > 0))


def softmax_loss(x, y):
    """Return the mean softmax cross-entropy of scores `x: (N, C)` and labels `y: (N,)`, and its gradient `(N, C)`."""
    (x,) = floats(x)
    return _softmax_loss(x, check_labels(y, x.shape[:1], x.shape[-1]))


@numpy_jit
def _softmax_loss(x, y):
    value, cache = loss.softmax_cross_entropy_forward(x, y)
    return value, loss.softmax_cross_entropy_backward(jnp.ones_like(value), cache).astype(x.dtype)


def svm_loss(x, y):
    """Return the mean multiclass hinge loss, margin 1, of scores `x: (N, C)` and labels `y: (N,)`, and its gradient."""
    (x,) = floats(x)
    return _svm_loss(x, check_labels(y, x.shape[:1], x.shape[-1]))


@numpy_jit
def _svm_loss(x, y):
    value, cache = loss.svm_loss_forward(x, y)
    return value, loss.svm_loss_backward(jnp.ones_like(value), cache).astype(x.dtype)


def batchnorm_forward(x, gamma, beta, bn_param: Params):
    """Normalise each column of `x: (N, D)`; `gamma`, `beta` `(D,)`.

    `bn_param`: `mode` "train" or "test"; `eps` 1e-5; `momentum` 0.9; `running_mean`, `running_var` `(D,)`, written
    back on every call. Running and batch variance are both biased. An empty batch leaves the running statistics alone.
    """
    x, gamma, beta = floats(x, gamma, beta)
    mode, eps, momentum = bn_param["mode"], float(bn_param.get("eps", 1e-5)), float(bn_param.get("momentum", 0.9))
    mean, var = (bn_param.get(name, np.zeros(x.shape[1], x.dtype)) for name in ("running_mean", "running_var"))
    if mode == "train":
        (out, batch_mean, batch_var), cache = _batchnorm_forward(x, gamma, beta, eps=eps)
        if len(x):
            mean = momentum * mean + (1 - momentum) * batch_mean
            var = momentum * var + (1 - momentum) * batch_var
    elif mode == "test":
        out, cache = _batchnorm_inference(x, gamma, beta, *floats(mean, var), eps=eps), None
    else:
        raise ValueError(f'Invalid forward batchnorm mode "{mode}"')
    bn_param["running_mean"], bn_param["running_var"] = mean, var
    return out, cache


def batchnorm_backward(dout, cache):
    """Return `dx: (N, D)`, `dgamma: (D,)`, `dbeta: (D,)`, by walking the computation graph backward."""
    return _batchnorm_backward(dout, cache)


def batchnorm_backward_alt(dout, cache):
    """Return what `batchnorm_backward` returns, by the simplified formula."""
    return _batchnorm_backward_alt(dout, cache)


_batchnorm_forward = numpy_jit(normalization.batchnorm_forward)


@numpy_jit
def _batchnorm_inference(x, gamma, beta, mean, var, *, eps):
    return normalization.batchnorm_inference_forward(x, gamma, beta, mean, var, eps=eps)[0]


@numpy_backward
def _batchnorm_backward(dout, cache):
    return normalization.batchnorm_backward_staged(_of_out_alone(dout, cache), cache)


@numpy_backward
def _batchnorm_backward_alt(dout, cache):
    return normalization.batchnorm_backward(_of_out_alone(dout, cache), cache)


def _of_out_alone(dout, cache):
    """The course's layer has no outputs mean and var: their cotangents are zero."""
    return dout, jnp.zeros_like(cache.rstd), jnp.zeros_like(cache.rstd)


def layernorm_forward(x, gamma, beta, ln_param: Params):
    """Normalise each row of `x: (N, D)`; `gamma`, `beta` `(D,)`; `ln_param`: `eps` 1e-5."""
    return _layernorm_forward(*floats(x, gamma, beta), eps=float(ln_param.get("eps", 1e-5)))


def layernorm_backward(dout, cache):
    """Return `dx: (N, D)`, `dgamma: (D,)`, `dbeta: (D,)`."""
    return _layernorm_backward(dout, cache)


_layernorm_forward = numpy_jit(normalization.layernorm_forward)
_layernorm_backward = numpy_backward(normalization.layernorm_backward)


def dropout_forward(x, dropout_param: Params):
    """Keep each element of `x` with probability `p` and scale it by 1 / p; zero the others. Cache `(dropout_param,
    mask)`.

    `dropout_param`: `p`, the probability of *keeping* a unit; `mode` "train" or "test" (which is the identity);
    `seed`, where given, seeds NumPy's global generator on every call.
    """
    (x,) = floats(x)
    if "seed" in dropout_param:
        np.random.seed(dropout_param["seed"])
    if dropout_param["mode"] != "train":
        return x, (dropout_param, None)
    p = float(dropout_param["p"])
    if not 0 < p <= 1:
        raise ValueError(f"dropout_param['p'] is {p}, the probability of keeping a unit; it must be in (0, 1]")
    mask = (np.random.rand(*x.shape) < p) / p
    return _where_kept(x, mask), (dropout_param, mask)


def dropout_backward(dout, cache):
    """Return `dx`; the mode is read from `dropout_param` now, as it stands in the dictionary."""
    dropout_param, mask = cache
    (dout,) = floats(dout)
    return _where_kept(dout, mask) if dropout_param["mode"] == "train" else dout


def _where_kept(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Scale by the mask that the course draws, which is none of JAX's; selected, so a dropped inf leaves 0."""
    return np.multiply(x, mask, where=mask > 0, out=np.zeros_like(x), casting="same_kind")


def conv_forward_naive(x, w, b, conv_param: Params):
    """Correlate `x: (N, C, H, W)` with `w: (F, C, HH, WW)` and add `b: (F,)`; cache `(x, w, b, conv_param)`, x not
    padded.

    `conv_param`: `stride` and `pad` (zeros on all four sides). The result is `(N, F, 1 + (H + 2 pad - HH) // stride,
    ...)`.
    """
    x, w, b = floats(x, w, b)
    return correlate(x, w, b, **conv_static(conv_param), algorithm="im2col"), (x, w, b, conv_param)


def conv_backward_naive(dout, cache):
    """Return `dx`, `dw`, `db`, each in the shape of its own array."""
    *arrays, conv_param = cache
    return correlate_backward(dout, tuple(arrays), **conv_static(conv_param), algorithm="im2col")


@numpy_jit
def correlate(x, w, b, *, stride, pad, algorithm):
    static = {"stride": stride, "padding": pad, "algorithm": algorithm}
    return nchw(convolution.conv2d_forward(nhwc(x), _hwio(w), b, **static)[0])


@numpy_backward
def correlate_backward(dout, cache, *, stride, pad, algorithm):
    x, w, b = cache
    static = {"stride": stride, "padding": pad, "algorithm": algorithm}
    x = nhwc(x)
    dx, dw, db = convolution.conv2d_backward(nhwc(dout), convolution.Conv2dCache(x, _hwio(w), b, x[:0]), **static)
    return nchw(dx), jnp.transpose(dw, (3, 2, 0, 1)), db


def conv_static(conv_param: Params) -> dict[str, int]:
    return {"stride": int(conv_param["stride"]), "pad": int(conv_param["pad"])}


def max_pool_forward_naive(x, pool_param: Params):
    """Take the maximum of each window of `x: (N, C, H, W)`, without padding; cache `(x, pool_param)`.

    `pool_param`: `pool_height`, `pool_width`, `stride`. Windows may overlap; a rest that no window reaches is left out.
    """
    (x,) = floats(x)
    return _max_pool_forward(x, **_windows(pool_param)), (x, pool_param)


def max_pool_backward_naive(dout, cache):
    """Return `dx`: each cotangent goes to the first maximum of its window, and where windows overlap they add up."""
    x, pool_param = cache
    return _max_pool_backward(dout, x, **_windows(pool_param))


@numpy_jit
def _max_pool_forward(x, *, window, stride):
    return nchw(pooling.max_pool2d_forward(nhwc(x), window=window, stride=stride)[0])


@numpy_backward
def _max_pool_backward(dout, x, *, window, stride):
    _, cache = pooling.max_pool2d_forward(nhwc(x), window=window, stride=stride)
    return nchw(pooling.max_pool2d_backward(nhwc(dout), cache, window=window, stride=stride))


def _windows(pool_param: Params) -> dict[str, Any]:
    window = int(pool_param["pool_height"]), int(pool_param["pool_width"])
    return {"window": window, "stride": int(pool_param["stride"])}


def spatial_batchnorm_forward(x, gamma, beta, bn_param: Params):
    """Normalise each channel of `x: (N, C, H, W)`; `gamma`, `beta` `(C,)`; `bn_param` as in `batchnorm_forward`."""
    n, c, h, w = np.shape(x)
    out, cache = batchnorm_forward(_pixels(x), gamma, beta, bn_param)
    return _images(out, (n, h, w, c)), cache


def spatial_batchnorm_backward(dout, cache):
    """Return `dx: (N, C, H, W)`, `dgamma: (C,)`, `dbeta: (C,)`."""
    n, c, h, w = np.shape(dout)
    dx, dgamma, dbeta = batchnorm_backward_alt(_pixels(dout), cache)
    return _images(dx, (n, h, w, c)), dgamma, dbeta


def spatial_groupnorm_forward(x, gamma, beta, G: int, gn_param: Params):
    """Normalise `x: (N, C, H, W)` an example and one of G groups of contiguous channels at a time.

    `gamma`, `beta` are `(1, C, 1, 1)`, or `(C,)`; `gn_param`: `eps` 1e-5.
    """
    x, gamma, beta = floats(x, gamma, beta)
    out, cache = _groupnorm_forward(x, gamma, beta, groups=int(G), eps=float(gn_param.get("eps", 1e-5)))
    return out, (cache, gamma.shape)


def spatial_groupnorm_backward(dout, cache):
    """Return `dx: (N, C, H, W)`, and `dgamma`, `dbeta` in the shape of gamma."""
    cache, shape = cache
    dx, dgamma, dbeta = _groupnorm_backward(dout, cache)
    return dx, dgamma.reshape(shape), dbeta.reshape(shape)


@numpy_jit
def _groupnorm_forward(x, gamma, beta, *, groups, eps):
    vectors = gamma.reshape(-1), beta.reshape(-1)
    out, cache = normalization.groupnorm_forward(nhwc(x), *vectors, groups=groups, eps=eps)
    return nchw(out), cache


@numpy_backward
def _groupnorm_backward(dout, cache):
    dx, dgamma, dbeta = normalization.groupnorm_backward(nhwc(dout), cache)
    return nchw(dx), dgamma, dbeta


def _hwio(w):
    return jnp.transpose(w, (2, 3, 1, 0))


def _pixels(x) -> np.ndarray:
    """See images `(N, C, H, W)` as a row a pixel, `(N H W, C)`."""
    x = np.asarray(x)
    return x.transpose(0, 2, 3, 1).reshape(x.size // max(x.shape[1], 1), x.shape[1])


def _images(rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Undo `_pixels`; `shape` is `(N, H, W, C)`."""
    return np.ascontiguousarray(rows.reshape(shape).transpose(0, 3, 1, 2))
