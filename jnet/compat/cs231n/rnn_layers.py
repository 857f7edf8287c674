"""The course's recurrent layers. `x` is `(N, T, D)`: sequences of T vectors; gates stand in the order i, f, o, g."""

import jax.numpy as jnp
import numpy as np

from jnet.compat.cs231n.boundary import check_labels, floats, numpy_backward, numpy_jit
from jnet.formulas import activation, affine, recurrent

__all__ = [
    "lstm_backward",
    "lstm_forward",
    "lstm_step_backward",
    "lstm_step_forward",
    "rnn_backward",
    "rnn_forward",
    "rnn_step_backward",
    "rnn_step_forward",
    "sigmoid",
    "temporal_affine_backward",
    "temporal_affine_forward",
    "temporal_softmax_loss",
    "word_embedding_backward",
    "word_embedding_forward",
]


def rnn_step_forward(x, prev_h, Wx, Wh, b):
    """Return the next state `tanh(x Wx + prev_h Wh + b)`, `(N, H)`, from `x: (N, D)`, `prev_h: (N, H)`."""
    return _rnn_step_forward(*floats(x, prev_h, Wx, Wh, b))


def rnn_step_backward(dnext_h, cache):
    """Return `dx, dprev_h, dWx, dWh, db`."""
    return _rnn_step_backward(dnext_h, cache)


def rnn_forward(x, h0, Wx, Wh, b):
    """Return all states `(N, T, H)` from `x: (N, T, D)`, `h0: (N, H)`."""
    return _rnn_forward(*floats(x, h0, Wx, Wh, b))


def rnn_backward(dh, cache):
    """Return `dx, dh0, dWx, dWh, db` from the cotangents of all states, `(N, T, H)`."""
    return _rnn_backward(dh, cache)


def lstm_step_forward(x, prev_h, prev_c, Wx, Wh, b):
    """Return the next state and cell, `(N, H)`, and the cache; `Wx: (D, 4H)`, `Wh: (H, 4H)`, `b: (4H,)`."""
    (next_h, next_c), cache = _lstm_step_forward(*floats(x, prev_h, prev_c, Wx, Wh, b))
    return next_h, next_c, cache


def lstm_step_backward(dnext_h, dnext_c, cache):
    """Return `dx, dprev_h, dprev_c, dWx, dWh, db`."""
    return _lstm_step_backward((dnext_h, dnext_c), cache)


def lstm_forward(x, h0, Wx, Wh, b):
    """Return all states `(N, T, H)` from `x: (N, T, D)`, `h0: (N, H)`; the first cell is zero."""
    x, h0, Wx, Wh, b = floats(x, h0, Wx, Wh, b)
    (h, _), cache = _lstm_forward(x, h0, np.zeros_like(h0), Wx, Wh, b)
    return h, cache


def lstm_backward(dh, cache):
    """Return `dx, dh0, dWx, dWh, db` from the cotangents of all states, `(N, T, H)`."""
    dx, dh0, _, dWx, dWh, db = _lstm_backward((dh, np.zeros_like(cache.h0)), cache)
    return dx, dh0, dWx, dWh, db


_rnn_step_forward = numpy_jit(recurrent.rnn_step_forward)
_rnn_step_backward = numpy_backward(recurrent.rnn_step_backward)
_rnn_forward = numpy_jit(recurrent.rnn_forward)
_rnn_backward = numpy_backward(recurrent.rnn_backward)
_lstm_step_forward = numpy_jit(recurrent.lstm_step_forward)
_lstm_step_backward = numpy_backward(recurrent.lstm_step_backward)
_lstm_forward = numpy_jit(recurrent.lstm_forward)
_lstm_backward = numpy_backward(recurrent.lstm_backward)


def word_embedding_forward(x, W):
    """Return the vector of each word, `(N, T, D)`, from ids `x: (N, T)` and `W: (V, D)`."""
    (W,) = floats(W)
    ids = check_labels(x, np.shape(x), len(W), "x")
    return _word_embedding_forward(ids, W), (ids.copy(), W)


def word_embedding_backward(dout, cache):
    """Return `dW: (V, D)`; the cotangents of a word that occurs twice add up."""
    ids, W = cache
    return _word_embedding_backward(dout, (W, ids))


@numpy_jit
def _word_embedding_forward(ids, W):
    return recurrent.word_embedding_forward(ids, W)[0]


@numpy_backward
def _word_embedding_backward(dout, cache):
    W, ids = cache
    return recurrent.word_embedding_backward(dout, recurrent.WordEmbeddingCache(ids, W))


def sigmoid(x):
    """Return the logistic function, elementwise; right at any x."""
    (x,) = floats(x)
    return _sigmoid(x)


@numpy_jit
def _sigmoid(x):
    return activation.sigmoid_forward(x)[0]


def temporal_affine_forward(x, w, b):
    """Map each vector of `x: (N, T, D)` by `w: (D, M)` and `b: (M,)`; cache `(x, w, b, out)`."""
    x, w, b = floats(x, w, b)
    out = _temporal_affine_forward(x, w, b)
    return out, (x, w, b, out.copy())


def temporal_affine_backward(dout, cache):
    """Return `dx: (N, T, D)`, `dw: (D, M)`, `db: (M,)`."""
    return _temporal_affine_backward(dout, cache)


@numpy_jit
def _temporal_affine_forward(x, w, b):
    return recurrent.temporal_affine_forward(x, w, b)[0]


@numpy_backward
def _temporal_affine_backward(dout, cache):
    x, w, _, _ = cache
    return recurrent.temporal_affine_backward(dout, affine.AffineCache(x, w))


def temporal_softmax_loss(x, y, mask, verbose=False):
    """Return the cross-entropy of scores `x: (N, T, V)` and words `y: (N, T)` where `mask: (N, T)` is true, and `dx`.

    Summed over time, divided by N alone. A word where the mask is false may be anything.
    """
    (x,) = floats(x)
    mask = np.array(mask, bool)
    y = check_labels(np.where(mask, y, 0), x.shape[:2], x.shape[-1])
    loss, dx = _temporal_softmax_loss(x, y, mask)
    if verbose:
        print("dx_flat: ", (dx.size // max(dx.shape[-1], 1), dx.shape[-1]))
    return loss, dx


@numpy_jit
def _temporal_softmax_loss(x, y, mask):
    loss, cache = recurrent.temporal_softmax_loss_forward(x, y, mask)
    return loss, recurrent.temporal_softmax_loss_backward(jnp.ones_like(loss), cache).astype(x.dtype)
