"""Pairs as students write them: right ones in several styles, for the grader, and one place for each usual mistake.

`pair(op)` is the right pair of loops, `rewrite(op, old, new)` the same with a piece of its code replaced.
"""

import inspect
import textwrap

import jax
import jax.numpy as jnp
import numpy as np

# Loops


def affine_forward(x, w, b):
    rows = x.reshape(x.shape[0], -1)
    out = np.zeros((rows.shape[0], w.shape[1]))
    for n in range(rows.shape[0]):
        for m in range(w.shape[1]):
            out[n, m] = np.sum(rows[n] * w[:, m]) + b[m]
    return out, (x, w, b)


def affine_backward(dout, cache):
    x, w, b = cache
    dx, dw, db = np.zeros_like(x), np.zeros_like(w), np.zeros_like(b)
    rows, drows = x.reshape(len(x), -1), dx.reshape(len(x), -1)
    for n in range(len(x)):
        for m in range(len(b)):
            drows[n] += dout[n, m] * w[:, m]
            dw[:, m] += dout[n, m] * rows[n]
            db[m] += dout[n, m]
    return dx, dw, db


def relu_forward(x):
    out = np.maximum(0, x)
    return out, x


def relu_backward(dout, cache):
    x = cache
    dx = dout * (x > 0)
    return dx


def batchnorm_forward(x, gamma, beta, bn_param):
    eps, momentum = bn_param.get("eps", 1e-5), bn_param.get("momentum", 0.9)
    running_mean = bn_param.get("running_mean", np.zeros(x.shape[1]))
    running_var = bn_param.get("running_var", np.zeros(x.shape[1]))
    if bn_param["mode"] == "test":
        scale = np.sqrt(running_var + eps)
        return gamma * (x - running_mean) / scale + beta, None
    mean = x.mean(axis=0)
    centred = x - mean
    var = (centred**2).mean(axis=0)
    std = np.sqrt(var + eps)
    xhat = centred / std
    out = gamma * xhat + beta
    bn_param["running_mean"] = momentum * running_mean + (1 - momentum) * mean
    bn_param["running_var"] = momentum * running_var + (1 - momentum) * var
    return out, (xhat, gamma, centred, std)


def batchnorm_backward(dout, cache):
    """The computation graph, node by node."""
    xhat, gamma, centred, std = cache
    n = dout.shape[0]
    dbeta = dout.sum(axis=0)
    dgamma = (dout * xhat).sum(axis=0)
    dxhat = gamma * dout
    dinv = (dxhat * centred).sum(axis=0)
    dcentred = dxhat / std
    dstd = -dinv / std**2
    dvar = 0.5 * dstd / std
    dsquare = dvar / n * np.ones_like(dout)
    dcentred = dcentred + 2 * centred * dsquare
    dmean = -dcentred.sum(axis=0)
    dx = dcentred + dmean / n
    return dx, dgamma, dbeta


def batchnorm_backward_alt(dout, cache):
    xhat, gamma, _, std = cache
    n = len(dout)
    dbeta, dgamma = dout.sum(0), (dout * xhat).sum(0)
    return gamma / (n * std) * (n * dout - dbeta - xhat * dgamma), dgamma, dbeta


def layernorm_forward(x, gamma, beta, ln_param):
    eps = ln_param.get("eps", 1e-5)
    mean = x.mean(axis=1, keepdims=True)
    var = x.var(axis=1, keepdims=True)
    std = np.sqrt(var + eps)
    xhat = (x - mean) / std
    return gamma * xhat + beta, (xhat, std, gamma)


def layernorm_backward(dout, cache):
    xhat, std, gamma = cache
    dxhat = dout * gamma
    dx = (dxhat - dxhat.mean(1, keepdims=True) - xhat * (dxhat * xhat).mean(1, keepdims=True)) / std
    dgamma = np.sum(dout * xhat, axis=0)
    dbeta = np.sum(dout, axis=0)
    return dx, dgamma, dbeta


def dropout_forward(x, dropout_param):
    p, mode = dropout_param["p"], dropout_param["mode"]
    if "seed" in dropout_param:
        np.random.seed(dropout_param["seed"])  # noqa: NPY002
    mask = None
    out = x
    if mode == "train":
        mask = (np.random.rand(*x.shape) < p) / p  # noqa: NPY002
        out = x * mask
    return out, (dropout_param, mask)


def dropout_backward(dout, cache):
    dropout_param, mask = cache
    if dropout_param["mode"] == "test":
        return dout
    dx = dout * mask
    return dx


def conv_forward(x, w, b, conv_param):
    stride, pad = conv_param["stride"], conv_param["pad"]
    (N, _, H, W), (F, _, HH, WW) = x.shape, w.shape
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    OH, OW = 1 + (H + 2 * pad - HH) // stride, 1 + (W + 2 * pad - WW) // stride
    out = np.zeros((N, F, OH, OW))
    for n in range(N):
        for f in range(F):
            for i in range(OH):
                for j in range(OW):
                    window = padded[n, :, i * stride : i * stride + HH, j * stride : j * stride + WW]
                    out[n, f, i, j] = np.sum(window * w[f]) + b[f]
    return out, (x, w, b, conv_param)


def conv_backward(dout, cache):
    x, w, b, conv_param = cache
    stride, pad = conv_param["stride"], conv_param["pad"]
    (N, _, H, W), (F, _, HH, WW) = x.shape, w.shape
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    dpadded, dw, db = np.zeros_like(padded), np.zeros_like(w), np.zeros_like(b)
    for n in range(N):
        for f in range(F):
            for i in range(dout.shape[2]):
                for j in range(dout.shape[3]):
                    here = (n, slice(None), slice(i * stride, i * stride + HH), slice(j * stride, j * stride + WW))
                    dpadded[here] += dout[n, f, i, j] * w[f]
                    dw[f] += dout[n, f, i, j] * padded[here]
                    db[f] += dout[n, f, i, j]
    dx = dpadded[:, :, pad : pad + H, pad : pad + W]
    return dx, dw, db


def max_pool_forward(x, pool_param):
    ph, pw, stride = pool_param["pool_height"], pool_param["pool_width"], pool_param["stride"]
    N, C, H, W = x.shape
    out = np.zeros((N, C, 1 + (H - ph) // stride, 1 + (W - pw) // stride))
    for i in range(out.shape[2]):
        for j in range(out.shape[3]):
            out[:, :, i, j] = x[:, :, i * stride : i * stride + ph, j * stride : j * stride + pw].max(axis=(2, 3))
    return out, (x, pool_param)


def max_pool_backward(dout, cache):
    x, pool_param = cache
    ph, pw, stride = pool_param["pool_height"], pool_param["pool_width"], pool_param["stride"]
    dx = np.zeros_like(x)
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            for i in range(dout.shape[2]):
                for j in range(dout.shape[3]):
                    window = x[n, c, i * stride : i * stride + ph, j * stride : j * stride + pw]
                    a, b = np.unravel_index(window.argmax(), window.shape)
                    dx[n, c, i * stride + a, j * stride + b] += dout[n, c, i, j]
    return dx


def spatial_batchnorm_forward(x, gamma, beta, bn_param):
    N, C, H, W = x.shape
    rows = x.transpose(0, 2, 3, 1).reshape(-1, C)
    out, cache = batchnorm_forward(rows, gamma, beta, bn_param)
    return out.reshape(N, H, W, C).transpose(0, 3, 1, 2), cache


def spatial_batchnorm_backward(dout, cache):
    N, C, H, W = dout.shape
    rows = dout.transpose(0, 2, 3, 1).reshape(-1, C)
    dx, dgamma, dbeta = batchnorm_backward(rows, cache)
    return dx.reshape(N, H, W, C).transpose(0, 3, 1, 2), dgamma, dbeta


def spatial_groupnorm_forward(x, gamma, beta, G, gn_param):
    eps = gn_param.get("eps", 1e-5)
    N = len(x)
    groups = x.reshape(N * G, -1)
    std = np.sqrt(groups.var(axis=1, keepdims=True) + eps)
    xhat = ((groups - groups.mean(axis=1, keepdims=True)) / std).reshape(x.shape)
    return gamma * xhat + beta, (xhat, std, gamma, G)


def spatial_groupnorm_backward(dout, cache):
    xhat, std, gamma, G = cache
    N = len(dout)
    dbeta = dout.sum(axis=(0, 2, 3), keepdims=True)
    dgamma = (dout * xhat).sum(axis=(0, 2, 3), keepdims=True)
    dxhat = (gamma * dout).reshape(N * G, -1)
    h = xhat.reshape(N * G, -1)
    dx = (dxhat - dxhat.mean(1, keepdims=True) - h * (dxhat * h).mean(1, keepdims=True)) / std
    return dx.reshape(dout.shape), dgamma, dbeta


def softmax_loss(x, y):
    N = x.shape[0]
    shifted = x - x.max(axis=1, keepdims=True)
    p = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    loss = -np.log(p[np.arange(N), y]).sum() / N
    dx = p.copy()
    dx[np.arange(N), y] -= 1
    dx /= N
    return loss, dx


def svm_loss(x, y):
    N = x.shape[0]
    loss, dx = 0.0, np.zeros_like(x)
    for n in range(N):
        for j in range(x.shape[1]):
            if j == y[n]:
                continue
            margin = x[n, j] - x[n, y[n]] + 1
            if margin > 0:
                loss += margin
                dx[n, j] += 1
                dx[n, y[n]] -= 1
    return loss / N, dx / N


def pair(op):
    """The right functions of an op: forward and backward, None for a loss."""
    if op.endswith("_loss"):
        return globals()[op], None
    return globals()[f"{op}_forward"], globals()[f"{op}_backward"]


def rewrite(op, old, new):
    """The pair of an op with the text `old` of one of its functions replaced by `new`."""
    names = [op] if op.endswith("_loss") else [f"{op}_forward", f"{op}_backward"]
    sources = [textwrap.dedent(inspect.getsource(globals()[name])) for name in names]
    assert sum(source.count(old) for source in sources) >= 1, f"{op} has no {old!r}"
    scope = dict(globals())
    for source in sources:
        exec(source.replace(old, new), scope)
    return tuple(scope[name] for name in names) + (None,) * (2 - len(names))


# Other styles


class einsum_style:
    @staticmethod
    def affine_forward(x, w, b):
        return np.einsum("nd,dm->nm", x.reshape(len(x), -1), w) + b[None], {"x": x, "w": w}

    @staticmethod
    def affine_backward(dout, cache):
        x, w = cache["x"], cache["w"]
        flat = x.reshape(len(x), -1)
        return (
            np.einsum("nm,dm->nd", dout, w).reshape(x.shape),
            np.einsum("nd,nm->dm", flat, dout),
            np.einsum("nm->m", dout),
        )

    @staticmethod
    def relu_forward(x):
        return np.where(x >= 0, x, 0), x >= 0  # the other slope at 0

    @staticmethod
    def relu_backward(dout, cache):
        dx = dout.copy()
        dx[~cache] = 0
        return dx

    @staticmethod
    def conv_forward(x, w, b, conv_param):
        s, p = conv_param["stride"], conv_param["pad"]
        padded = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)), mode="constant")
        windows = np.lib.stride_tricks.sliding_window_view(padded, w.shape[2:], axis=(2, 3))[:, :, ::s, ::s]
        return np.einsum("ncijhw,fchw->nfij", windows, w) + b[:, None, None], (x, w, windows, s, p)

    @staticmethod
    def conv_backward(dout, cache):
        x, w, windows, s, p = cache
        N, C, H, W = x.shape
        dpadded = np.zeros((N, C, H + 2 * p, W + 2 * p))
        for i in range(dout.shape[2]):
            for j in range(dout.shape[3]):
                dpadded[:, :, i * s : i * s + w.shape[2], j * s : j * s + w.shape[3]] += np.einsum(
                    "nf,fchw->nchw", dout[:, :, i, j], w
                )
        return (
            dpadded[:, :, p : H + p, p : W + p],
            np.einsum("nfij,ncijhw->fchw", dout, windows),
            dout.sum((0, 2, 3)),
        )

    @staticmethod
    def max_pool_forward(x, pool_param):
        window, s = (pool_param["pool_height"], pool_param["pool_width"]), pool_param["stride"]
        windows = np.lib.stride_tricks.sliding_window_view(x, window, axis=(2, 3))[:, :, ::s, ::s]
        return windows.max((4, 5)), (x, window, s)

    @staticmethod
    def max_pool_backward(dout, cache):
        """Ties share the gradient."""
        x, (ph, pw), s = cache
        dx = np.zeros(x.shape)
        for i in range(dout.shape[2]):
            for j in range(dout.shape[3]):
                window = x[:, :, i * s : i * s + ph, j * s : j * s + pw]
                mask = window == window.max((2, 3), keepdims=True)
                share = mask / mask.sum((2, 3), keepdims=True)
                dx[:, :, i * s : i * s + ph, j * s : j * s + pw] += share * dout[:, :, i, j][:, :, None, None]
        return dx

    @staticmethod
    def dropout_forward(x, dropout_param):
        rng = np.random.default_rng(dropout_param.get("seed"))
        if dropout_param["mode"] == "test":
            return x.copy(), None
        kept = rng.binomial(1, dropout_param["p"], x.shape).astype(bool)
        return np.where(kept, x, 0) / dropout_param["p"], (kept, dropout_param["p"])

    @staticmethod
    def dropout_backward(dout, cache):
        return dout if cache is None else np.where(cache[0], dout, 0) / cache[1]

    @staticmethod
    def svm_loss(x, y):
        rows = np.arange(len(x))
        margins = np.maximum(0, x - x[rows, y][:, None] + 1.0)
        margins[rows, y] = 0
        dx = (margins > 0).astype(float)
        dx[rows, y] -= dx.sum(1)
        return margins.sum() / len(x), dx / len(x)

    @staticmethod
    def softmax_loss(x, y):
        rows = np.arange(len(x))
        logits = x - np.max(x, 1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return -log_p[rows, y].mean(), (np.exp(log_p) - np.eye(x.shape[1])[y]) / len(x)

    @staticmethod
    def layernorm_forward(x, gamma, beta, ln_param):
        """The batch-normalization code on the transposed input."""
        xt = x.T
        mu, var = xt.mean(0), xt.var(0)
        rstd = 1 / np.sqrt(var + ln_param.get("eps", 1e-5))
        h = ((xt - mu) * rstd).T
        return h * gamma[None] + beta[None], (h, rstd, gamma)

    @staticmethod
    def layernorm_backward(dout, cache):
        h, rstd, gamma = cache
        d = h.shape[1]
        n = (dout * gamma).T
        dx = (rstd / d) * (d * n - n.sum(0) - h.T * (n * h.T).sum(0))
        return dx.T, np.einsum("nd,nd->d", dout, h), dout.sum(0)


class jax_style:
    """The pair made by JAX: the cache is the pullback."""

    @staticmethod
    def affine_forward(x, w, b):
        return jax.vjp(lambda x, w, b: x.reshape(len(x), -1) @ w + b[None], x, w, b)

    @staticmethod
    def affine_backward(dout, cache):
        return cache(jnp.asarray(dout))

    @staticmethod
    def relu_forward(x):
        return jnp.maximum(x, 0), jnp.asarray(x)

    @staticmethod
    def relu_backward(dout, cache):
        return jnp.where(cache > 0, dout, 0)

    @staticmethod
    def layernorm_forward(x, gamma, beta, ln_param):
        def f(x, gamma, beta):
            h = (x - x.mean(1, keepdims=True)) / jnp.sqrt(x.var(1, keepdims=True) + ln_param.get("eps", 1e-5))
            return h * gamma[None] + beta[None]

        return jax.vjp(f, x, gamma, beta)

    @staticmethod
    def layernorm_backward(dout, cache):
        return cache(jnp.asarray(dout))

    @staticmethod
    def softmax_loss(x, y):
        return jax.value_and_grad(lambda x: -jax.nn.log_softmax(x)[jnp.arange(len(y)), y].mean())(x)
