"""Recurrent networks: the vanilla and the LSTM cell, whole sequences of them, and the layers around them."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax, typeof

from jnet.formulas import onednn
from jnet.formulas.activation import sigmoid_forward
from jnet.formulas.affine import AffineCache, affine_backward, affine_forward
from jnet.formulas.loss import class_index, softmax_rows_backward, softmax_rows_forward
from jnet.formulas.precision import accumulator, widen
from jnet.formulas.validate import require, require_float, require_rank, require_shape

__all__ = [
    "LstmCache",
    "LstmStepCache",
    "RnnCache",
    "RnnStepCache",
    "TemporalSoftmaxLossCache",
    "WordEmbeddingCache",
    "lstm_backward",
    "lstm_forward",
    "lstm_step_backward",
    "lstm_step_forward",
    "rnn_backward",
    "rnn_forward",
    "rnn_step_backward",
    "rnn_step_forward",
    "temporal_affine_backward",
    "temporal_affine_forward",
    "temporal_softmax_loss_backward",
    "temporal_softmax_loss_forward",
    "word_embedding_backward",
    "word_embedding_forward",
]


class RnnStepCache(NamedTuple):
    """What the backward pass of `rnn_step` needs: its arguments but the bias, and its output."""

    x: Array  # (N, D)
    h: Array  # (N, H)
    wx: Array  # (D, H)
    wh: Array  # (H, H)
    out: Array  # (N, H), x's dtype


def rnn_step_forward(x: Array, h: Array, wx: Array, wh: Array, b: Array) -> tuple[Array, RnnStepCache]:
    r"""One step of a vanilla recurrent network: `tanh(x wx + h wh + b)` from input `(N, D)` and state `(N, H)`.

    **Forward.** $a = x\,w_x + h\,w_h + 1 b^\top$, $\;y = \tanh a$.

    **Backward.** Let $g = \partial L/\partial y$. Through the tanh, $\bar a = g\,(1 - y)(1 + y)$. The rest is two
    affine maps that are added up, so $\bar a$ reaches each of them unchanged:

    $$ \bar x = \bar a\, w_x^\top, \quad \bar w_x = x^\top \bar a, \quad
       \bar h = \bar a\, w_h^\top, \quad \bar w_h = h^\top \bar a, \quad \bar b = \bar a^\top 1. $$

    **Kept:** the output, from which the slope of tanh follows, and what the caller holds anyway.

    Reference: Elman 1990, doi:10.1207/s15516709cog1402_1.

    Returns the next state `(N, H)` in x's dtype, and the cache. Raises ValueError where the shapes do not fit.
    """
    _check_cell("rnn_step", x, {"h": h}, wx, wh, b, gates=1)
    out = jnp.tanh(_inputs(x, wx, b) + _product(h, wh, x.dtype)).astype(x.dtype)
    return out, RnnStepCache(x, h, wx, wh, out)


def rnn_step_backward(dout: Array, cache: RnnStepCache) -> tuple[Array, Array, Array, Array, Array]:
    """Return `dx, dh, dwx, dwh, db` from `dout: (N, H)`; derivation in `rnn_step_forward`."""
    x, h, wx, wh, out = cache
    da = _through_tanh(widen(dout), out)
    return _affine_cotangents(da, x, h, wx, wh)


class RnnCache(NamedTuple):
    """What the backward pass of `rnn` needs: its arguments but the bias, and its output."""

    x: Array  # (N, T, D)
    h0: Array  # (N, H)
    wx: Array  # (D, H)
    wh: Array  # (H, H)
    out: Array  # (N, T, H), x's dtype


def rnn_forward(x: Array, h0: Array, wx: Array, wh: Array, b: Array) -> tuple[Array, RnnCache]:
    r"""Run a vanilla recurrent network over the sequences `x: (N, T, D)` from the state `h0: (N, H)`.

    **Forward.** $a_t = x_t w_x + h_{t-1} w_h + 1 b^\top$, $\;h_t = \tanh a_t$ for $t = 1 \dots T$. Only $h_{t-1} w_h$
    waits for the step before; the products $x_t w_x$ of all steps are one large one, outside the loop.

    **Backward.** Through time. Let $g_t = \partial L/\partial h_t$ along the output alone. The state $h_t$ is used
    twice: as output, and by step $t+1$ through $a_{t+1}$. Both paths add up, from the last step to the first:

    $$ \bar h_t = g_t + \bar a_{t+1} w_h^\top, \qquad \bar a_t = \bar h_t\,(1 - h_t)(1 + h_t), \qquad
       \bar a_{T+1} = 0. $$

    This recursion alone is sequential. The weights are shared by all steps, so their cotangents are sums over $t$, and
    with all $\bar a_t$ at hand each sum over $n$ *and* $t$ is one large product:

    $$ \bar x_t = \bar a_t w_x^\top, \quad \bar w_x = \sum_{nt} x_{nt} \bar a_{nt}^\top, \quad
       \bar w_h = \sum_{nt} h_{n,t-1} \bar a_{nt}^\top, \quad \bar b = \sum_{nt} \bar a_{nt}, \quad
       \bar h_0 = \bar a_1 w_h^\top. $$

    (Automatic differentiation of the loop adds to $\bar w_h$ at each step instead: T small products, and T passes over
    an array of the weights' size.)

    **Kept:** the output, which the caller holds anyway, and the arguments; nothing else.

    Reference: Werbos 1990, "Backpropagation through time", doi:10.1109/5.58337.

    Returns all states `(N, T, H)` in x's dtype, and the cache. Raises ValueError where the shapes do not fit.
    """
    require_rank("rnn", "x", x, 3, "(N, T, D)")
    _check_cell("rnn", x, {"h0": h0}, wx, wh, b, gates=1)
    inputs = _swap(_inputs(x, wx, b))

    def step(h, a):
        h = jnp.tanh(a + _product(h, wh, x.dtype)).astype(x.dtype)
        return h, h

    _, out = lax.scan(step, _vary(h0.astype(x.dtype), inputs, wh), inputs)
    out = _swap(out)
    return out, RnnCache(x, h0, wx, wh, out)


def rnn_backward(dout: Array, cache: RnnCache) -> tuple[Array, Array, Array, Array, Array]:
    """Return `dx, dh0, dwx, dwh, db` from `dout: (N, T, H)`; derivation in `rnn_forward`."""
    x, h0, wx, wh, out = cache

    def step(dh, now):
        dout, out = now
        da = _through_tanh(widen(dout) + dh, out)
        return _product(da, wh, da.dtype, transpose_b=True), da

    last = _vary(jnp.zeros(h0.shape, accumulator(x.dtype)), dout, out, wh)
    dh0, da = lax.scan(step, last, (_swap(dout), _swap(out)), reverse=True)
    dx, dwx, dwh, db = _sequence_cotangents(_swap(da), x, h0, out, wx)
    return dx, dh0, dwx, dwh, db


class LstmStepCache(NamedTuple):
    """What the backward pass of `lstm_step` needs."""

    x: Array  # (N, D)
    h: Array  # (N, H)
    c: Array  # (N, H)
    wx: Array  # (D, 4H)
    wh: Array  # (H, 4H)
    gates: Array  # (N, 4H), the gates i, f, o, g behind their activation, x's dtype
    next_c: Array  # (N, H), float32 or wider


def lstm_step_forward(
    x: Array, h: Array, c: Array, wx: Array, wh: Array, b: Array
) -> tuple[tuple[Array, Array], LstmStepCache]:
    r"""One step of a long short-term memory: input `x: (N, D)`, state `h: (N, H)`, cell `c: (N, H)`.

    **Forward.** $a = x\,w_x + h\,w_h + 1 b^\top$ is $(N, 4H)$, cut in four; with $\sigma$ the logistic function

    $$ i = \sigma(a_i), \quad f = \sigma(a_f), \quad o = \sigma(a_o), \quad k = \tanh(a_k), \qquad
       c' = f c + i k, \qquad h' = o \tanh c'. $$

    (The columns of the weights stand in the order i, f, o, g; the candidate $k$ is the course's g.)

    **Backward.** Let $p = \partial L/\partial h'$, $q = \partial L/\partial c'$ along the outputs and $t = \tanh c'$.
    The new cell acts on the loss through both outputs; the gates and the old cell act through products, each getting
    the other factor:

    $$ \bar c' = q + p\,o\,(1 - t^2), \qquad \bar o = p\,t, \qquad \bar i = \bar c' k, \qquad \bar k = \bar c' i, \qquad
       \bar f = \bar c' c, \qquad \bar c = \bar c' f. $$

    Behind the activations, whose slopes follow from their outputs,

    $$ \bar a_i = \bar i\, i (1-i), \quad \bar a_f = \bar f f (1-f), \quad \bar a_o = \bar o\, o (1-o), \quad
       \bar a_k = \bar k (1 - k^2), $$

    and from $\bar a$ on it is the affine map of `rnn_step`. The path $c' \to c$ has slope $f$ alone, neither weights
    nor a squashing function: that is why gradients survive many steps.

    **Kept:** the four gates and the new cell; to build them again would cost the forward's matrix products once more.
    $t$ is one tanh to rebuild and an array to store, so it is rebuilt.

    Reference: Hochreiter & Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735; the forget gate: Gers et al. 2000.

    Returns `(next_h, next_c)`, each `(N, H)`, and the cache: the state in x's dtype, the cell, which sums over many
    steps, in float32 or wider. Raises ValueError where the shapes do not fit.
    """
    _check_cell("lstm_step", x, {"h": h, "c": c}, wx, wh, b, gates=4)
    a = _inputs(x, wx, b) + _product(h, wh, x.dtype)
    next_h, next_c, gates = _lstm_cell(a, c.astype(a.dtype), x.dtype)
    return (next_h, next_c), LstmStepCache(x, h, c, wx, wh, gates, next_c)


def lstm_step_backward(
    dout: tuple[Array, Array], cache: LstmStepCache
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Return `dx, dh, dc, dwx, dwh, db` from `dout = (dnext_h, dnext_c)`; derivation in `lstm_step_forward`."""
    x, h, c, wx, wh, gates, next_c = cache
    da, dc = _lstm_cell_backward(widen(dout[0]), widen(dout[1]), gates, c.astype(next_c.dtype), next_c)
    dx, dh, dwx, dwh, db = _affine_cotangents(da, x, h, wx, wh)
    return dx, dh, dc, dwx, dwh, db


class LstmCache(NamedTuple):
    """What the backward pass of `lstm` needs."""

    x: Array  # (N, T, D)
    h0: Array  # (N, H)
    c0: Array  # (N, H)
    wx: Array  # (D, 4H)
    wh: Array  # (H, 4H)
    out: Array  # (N, T, H), x's dtype
    cells: Array  # (N, T, H), float32 or wider
    gates: Array  # (N, T, 4H), behind their activation, x's dtype


def lstm_forward(
    x: Array, h0: Array, c0: Array, wx: Array, wh: Array, b: Array
) -> tuple[tuple[Array, Array], LstmCache]:
    r"""Run a long short-term memory over the sequences `x: (N, T, D)` from the state `h0` and the cell `c0`, `(N, H)`.

    **Forward.** `lstm_step` for $t = 1 \dots T$, with $x_t w_x + b$ of all steps computed at once, before the loop.

    **Backward.** Through time. Each of $h_t$ and $c_t$ acts through the output and through step $t+1$; the two paths
    add up, from the last step to the first:

    $$ \bar h_t = g_t + \bar a_{t+1} w_h^\top, \qquad
       \bar c_t = \bar c_{t+1} f_{t+1} + \bar h_t\, o_t\,(1 - \tanh^2 c_t), $$

    starting from the cotangent of the last cell, where the caller gives one, in place of $\bar c_{T+1} f_{T+1}$. Within
    a step $\bar a_t$ follows as in `lstm_step`; only this recursion is sequential. The cotangents of the shared weights
    are sums over $n$ and $t$, each one large product, as in `rnn`.

    **Kept:** the output, all cells and the four gates, six numbers for each number of the output.

    Reference: Hochreiter & Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735; Graves 2012, chapter 4.

    Returns `(out, c)` and the cache: all states `(N, T, H)` in x's dtype, and the last cell `(N, H)` in float32 or
    wider. Raises ValueError where the shapes do not fit.
    """
    require_rank("lstm", "x", x, 3, "(N, T, D)")
    _check_cell("lstm", x, {"h0": h0, "c0": c0}, wx, wh, b, gates=4)
    inputs = _swap(_inputs(x, wx, b))

    def step(state, a):
        h, c = state
        h, c, gates = _lstm_cell(a + _product(h, wh, x.dtype), c, x.dtype)
        return (h, c), (h, c, gates)

    h = _vary(h0.astype(x.dtype), inputs, wh, c0)
    (_, c), everything = lax.scan(step, (h, _vary(c0.astype(inputs.dtype), h)), inputs)
    out, cells, gates = map(_swap, everything)
    return (out, c), LstmCache(x, h0, c0, wx, wh, out, cells, gates)


def lstm_backward(dout: tuple[Array, Array], cache: LstmCache) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Return `dx, dh0, dc0, dwx, dwh, db` from `dout`, the cotangents of the states and of the last cell."""
    x, h0, c0, wx, wh, out, cells, gates = cache
    previous = _shift(c0.astype(cells.dtype), cells)

    def step(carry, now):
        dh, dc = carry
        dout, gates, c, next_c = now
        da, dc = _lstm_cell_backward(widen(dout) + dh, dc, gates, c, next_c)
        return (_product(da, wh, da.dtype, transpose_b=True), dc), da

    dh = _vary(jnp.zeros(h0.shape, accumulator(x.dtype)), *dout, gates, cells, previous, wh)
    steps = tuple(map(_swap, (dout[0], gates, previous, cells)))
    (dh0, dc0), da = lax.scan(step, (dh, _vary(widen(dout[1]), dh)), steps, reverse=True)
    dx, dwx, dwh, db = _sequence_cotangents(_swap(da), x, h0, out, wx)
    return dx, dh0, dc0, dwx, dwh, db


class WordEmbeddingCache(NamedTuple):
    """What the backward pass of `word_embedding` needs: its arguments."""

    ids: Array  # any shape, integers
    w: Array  # (V, D), for its shape and dtype


def word_embedding_forward(ids: Array, w: Array) -> tuple[Array, WordEmbeddingCache]:
    r"""Look up the vector of each word: row `ids` of `w: (V, D)`, for integer `ids` of any shape.

    **Forward.** $y_n = w_{k_n}$, which is the product of a one-hot matrix $E_{nv} = [k_n = v]$ with $w$, never formed.

    **Backward.** By that product, $\bar w = E^\top g$:

    $$ \bar w_v = \sum_{n : k_n = v} g_n . $$

    A word that occurs twice gets the sum of both cotangents (assigning instead of adding is the usual mistake); a word
    that does not occur gets zero. Integers have no cotangent.

    **Kept:** the ids; `w` is the caller's own.

    An id outside [0, V) yields a row of NaN, and its cotangent reaches no word.

    Reference: Bengio et al. 2003, JMLR 3:1137, section 2.

    Returns `(*ids.shape, D)` in w's dtype, and the cache.
    """
    require_float("word_embedding", w=w)
    require_rank("word_embedding", "w", w, 2, "(V, D)")
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"word_embedding: ids have dtype {ids.dtype}; they must be integers")
    index, inside = class_index(ids, w.shape[0])
    return jnp.where(inside[..., None], w[index], jnp.nan), WordEmbeddingCache(ids, w)


def word_embedding_backward(dout: Array, cache: WordEmbeddingCache) -> Array:
    """Return `dw: (V, D)`, the cotangents of each word's places added up; derivation in `word_embedding_forward`."""
    ids, w = cache
    index, inside = class_index(ids, w.shape[0])
    rows = jnp.where(inside[..., None], widen(dout), 0.0)
    return jnp.zeros(w.shape, rows.dtype).at[index].add(rows)


def temporal_affine_forward(x: Array, w: Array, b: Array) -> tuple[Array, AffineCache]:
    r"""Map the last axis of `x: (N, T, D)` by `w: (D, M)` and `b: (M,)`: the same affine map at each step.

    **Forward.** $y_{nt} = w^\top x_{nt} + b$: `affine` with the $NT$ vectors as rows.

    **Backward.** That of `affine`, whose sums over rows now run over $n$ and $t$:
    $\bar x_{nt} = w\,g_{nt}$, $\;\bar w = \sum_{nt} x_{nt} g_{nt}^\top$, $\;\bar b = \sum_{nt} g_{nt}$.

    **Kept:** `x` and `w`, which the caller holds anyway.

    Reference: as `affine`.

    Returns `(N, T, M)` in x's dtype, and the cache.
    """
    require_rank("temporal_affine", "x", x, 3, "(N, T, D)")
    out, cache = affine_forward(_rows(x), w, b)
    return out.reshape(*x.shape[:-1], w.shape[-1]), AffineCache(x, cache.w)


def temporal_affine_backward(dout: Array, cache: AffineCache) -> tuple[Array, Array, Array]:
    """Return `dx: (N, T, D)`, `dw: (D, M)` and `db: (M,)`; derivation in `temporal_affine_forward`."""
    x, w = cache
    dx, dw, db = affine_backward(_rows(dout), AffineCache(_rows(x), w))
    return dx.reshape(x.shape), dw, db


class TemporalSoftmaxLossCache(NamedTuple):
    """What the backward pass of `temporal_softmax_loss` needs."""

    logits: Array  # (N, T, V), their own dtype
    labels: Array  # (N, T), integers
    mask: Array  # (N, T), bool
    peak: Array  # (NT, 1), float32 or wider, as in softmax_cross_entropy
    rest: Array  # (NT, 1), float32 or wider


def temporal_softmax_loss_forward(logits: Array, labels: Array, mask: Array) -> tuple[Array, TemporalSoftmaxLossCache]:
    r"""Softmax cross-entropy of each step's word, summed over the steps that `mask: (N, T)` marks, mean over the batch.

    **Forward.** With $\ell_{nt}$ the cross-entropy of `logits[n, t]: (V,)` and `labels[n, t]`,

    $$ L = \frac1N \sum_{nt} m_{nt}\, \ell_{nt}: $$

    a sum over time, so that a longer sentence weighs more; only N divides.

    **Backward.** $\bar s_{ntj} = \frac gN\, m_{nt}\,(p_{ntj} - [j = y_{nt}])$, the rows of `softmax_cross_entropy` (the
    label's entry is computed in the same cancellation-free way), zero where the mask is off: selected, so that an
    infinite logit or an impossible label in a padded step does not matter.

    **Kept:** as in `softmax_cross_entropy`.

    Reference: as `softmax_cross_entropy`.

    `labels` are of any integer dtype, `mask` is boolean. Returns a scalar, float32 or wider, and the cache. A label
    outside [0, V) in a marked step makes the loss, and its own row of the gradient, NaN; an empty batch has loss NaN.
    """
    op = "temporal_softmax_loss"
    require(
        jnp.ndim(logits) == 3 and logits.shape[2] > 0,
        f"{op}: logits have shape {jnp.shape(logits)}; they must be (N, T, V), V >= 1",
    )
    require_shape(op, "labels", labels, logits.shape[:2], f"logits {logits.shape}")
    require_shape(op, "mask", mask, logits.shape[:2], f"logits {logits.shape}")
    require(mask.dtype == bool, f"{op}: mask has dtype {mask.dtype}; it must be bool")
    losses, peak, rest = softmax_rows_forward(op, _rows(logits), labels.reshape(-1))
    loss = jnp.sum(jnp.where(mask.reshape(-1), losses, 0.0)) / len(logits)
    return loss, TemporalSoftmaxLossCache(logits, labels, mask, peak, rest)


def temporal_softmax_loss_backward(dout: Array, cache: TemporalSoftmaxLossCache) -> Array:
    """Return `dlogits: (N, T, V)` from the scalar `dout`; derivation in `temporal_softmax_loss_forward`."""
    logits, labels, mask, peak, rest = cache
    dlogits = softmax_rows_backward(dout / max(len(logits), 1), _rows(logits), labels.reshape(-1), peak, rest)
    return jnp.where(mask[..., None], dlogits.reshape(logits.shape), 0.0)


def _check_cell(op: str, x: Array, states: dict[str, Array], wx: Array, wh: Array, b: Array, *, gates: int) -> None:
    """Check dtypes, and that states `(N, H)`, `wx: (D, gates H)`, `wh: (H, gates H)` and `b: (gates H,)` fit x."""
    require_float(op, x=x, wx=wx, wh=wh, b=b, **states)
    require_rank(op, "x", x, 2, "(N, D)")
    require_rank(op, "wh", wh, 2, "(H, H)" if gates == 1 else "(H, 4H)")
    width = wh.shape[0]
    require_shape(op, "wh", wh, (width, gates * width), f"its own {width} rows")
    require_shape(op, "wx", wx, (x.shape[-1], gates * width), f"x {x.shape} and wh {wh.shape}")
    require_shape(op, "b", b, (gates * width,), f"wh {wh.shape}")
    for name, state in states.items():
        require_shape(op, name, state, (x.shape[0], width), f"x {x.shape} and wh {wh.shape}")


def _product(a: Array, b: Array, dtype: jnp.dtype, **transposed: bool) -> Array:
    """Matrix product of factors in `dtype`, in the dtype of its accumulator; `transposed` as in `onednn.matmul`."""
    a, b = a.astype(dtype), b.astype(dtype)
    if transposed:
        return onednn.matmul(a, b, **transposed)
    return jnp.matmul(a, b, preferred_element_type=accumulator(dtype))  # XLA computes those of x and h side by side


def _inputs(x: Array, wx: Array, b: Array) -> Array:
    """What the inputs `(..., D)` add to the cells' arguments, at all steps at once: `x wx + b`."""
    out = _product(_rows(x), wx, x.dtype).reshape(*x.shape[:-1], wx.shape[1])
    return out + jnp.broadcast_to(b.astype(out.dtype), out.shape)


def _through_tanh(dout: Array, out: Array) -> Array:
    out = widen(out)
    return dout * (1.0 - out) * (1.0 + out)


def _lstm_cell(a: Array, c: Array, dtype: jnp.dtype) -> tuple[Array, Array, Array]:
    """Return the next state, the next cell and the gates, from the gates' arguments `a: (N, 4H)`."""
    width = c.shape[-1]
    gates = jnp.concatenate([sigmoid_forward(a[:, : 3 * width])[0], jnp.tanh(a[:, 3 * width :])], axis=1)
    i, f, o, g = jnp.split(gates, 4, axis=1)
    c = f * c + i * g
    return (o * jnp.tanh(c)).astype(dtype), c, gates.astype(dtype)


def _lstm_cell_backward(dh: Array, dc: Array, gates: Array, c: Array, next_c: Array) -> tuple[Array, Array]:
    """Return the cotangents of the gates' arguments, `(N, 4H)`, and of the old cell, all float32 or wider."""
    i, f, o, g = jnp.split(widen(gates), 4, axis=1)
    t = jnp.tanh(next_c)
    dc = dc + _through_tanh(dh * o, t)
    da = [dc * g * i * (1.0 - i), dc * c * f * (1.0 - f), dh * t * o * (1.0 - o), _through_tanh(dc * i, g)]
    return jnp.concatenate(da, axis=1), dc * f


def _affine_cotangents(da: Array, x: Array, h: Array, wx: Array, wh: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Cotangents of `x, h, wx, wh, b` from that of `x wx + h wh + b`, all with N rows."""
    dwx, dwh = (_product(factor, da, da.dtype, transpose_a=True) for factor in (x, h))
    dx, dh = (_product(da, w, da.dtype, transpose_b=True) for w in (wx, wh))
    return dx, dh, dwx, dwh, jnp.sum(da, axis=0)


def _sequence_cotangents(da: Array, x: Array, h0: Array, out: Array, wx: Array) -> tuple[Array, Array, Array, Array]:
    """Cotangents of `x, wx, wh, b` from that of all steps' `x_t wx + h_(t-1) wh + b`, `(N, T, ...)`: large products."""
    rows = _rows(da)
    previous = _shift(h0.astype(out.dtype), out)
    dwx, dwh = (_product(_rows(factor), rows, da.dtype, transpose_a=True) for factor in (x, previous))
    dx = _product(rows, wx, da.dtype, transpose_b=True).reshape(x.shape)
    return dx, dwx, dwh, jnp.sum(rows, axis=0)


def _rows(x: Array) -> Array:
    """Flatten all axes but the last; zero-size arrays too."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _shift(first: Array, sequence: Array) -> Array:
    """What each step `(N, T, H)` found: `first: (N, H)`, then the results of all steps but the last."""
    return jnp.concatenate([first[:, None], sequence], axis=1)[:, :-1]


def _swap(x: Array) -> Array:
    """Exchange batch and time, both ways: a scan walks the first axis."""
    return jnp.swapaxes(x, 0, 1)


def _vary(start: Array, *others: Array) -> Array:
    """Return the first carry of a scan, varying over the mesh axes of all that will flow into it (`jax.shard_map`)."""
    axes = frozenset().union(*map(_axes, others)) - _axes(start)
    return lax.pcast(start, tuple(sorted(axes)), to="varying") if axes else start


def _axes(x: Array) -> frozenset[str]:
    return typeof(x).manual_axis_type.varying
