"""Classification losses: softmax cross-entropy and the multiclass hinge."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jnet.formulas.precision import widen
from jnet.formulas.validate import require, require_float, require_labels

__all__ = [
    "SoftmaxCrossEntropyCache",
    "SvmLossCache",
    "softmax_cross_entropy_backward",
    "softmax_cross_entropy_forward",
    "svm_loss_backward",
    "svm_loss_forward",
]


class SoftmaxCrossEntropyCache(NamedTuple):
    """What the backward pass of `softmax_cross_entropy` needs."""

    logits: Array  # (N, C), their own dtype
    labels: Array  # (N,), integers
    peak: Array  # (N, 1), the row's largest logit, float32 or wider
    rest: Array  # (N, 1), the sum of exp(logit - peak) over all classes but the label's, float32 or wider


def softmax_cross_entropy_forward(logits: Array, labels: Array) -> tuple[Array, SoftmaxCrossEntropyCache]:
    r"""Mean over the rows of `logits: (N, C)` of the negative log-probability of the row's label.

    **Forward.** With $p_j = e^{s_j} / \sum_k e^{s_k}$ the loss of a row is $\ell = -\log p_y$. Let $m = \max_j s_j$;
    nothing overflows in

    $$ \ell = (m - s_y) + \log \sum_j e^{s_j - m}
            = (m - s_y) + \mathrm{log1p}\Bigl(\sum_{j \ne y} e^{s_j - m} + \mathrm{expm1}(s_y - m)\Bigr), \qquad
       L = \frac1N \sum_n \ell_n. $$

    Where the label has the largest logit the second term is 0, and `log1p` keeps a loss far below the rounding of 1.
    A logit of $-\infty$ in another class is a masked class.

    **Backward.** $\ell = \log \sum_k e^{s_k} - s_y$, and $\partial \log \sum_k e^{s_k} / \partial s_j = e^{s_j} /
    \sum_k e^{s_k} = p_j$:

    $$ \frac{\partial \ell}{\partial s_j} = p_j - [j = y], \qquad \bar s_{nj} = \frac{g}{N}\,(p_{nj} - [j = y_n]). $$

    Where $p_y \approx 1$ the label's entry $p_y - 1$ cancels. As the $p_j$ add up to 1 it is $-\sum_{j \ne y} p_j$,
    which keeps every digit; the forward pass has that sum, but for the factor.

    **Kept:** the logits, an alias of the caller's array, with two numbers a row, $m$ and $\sum_{j \ne y} e^{s_j - m}$;
    the probabilities are one exponential to rebuild.

    A label outside [0, C) makes the loss, and its own row of the gradient, NaN. An empty batch has loss NaN.

    Reference: Bridle 1990, doi:10.1007/978-3-642-76153-9_28; for the small components jax#40344.

    `labels: (N,)`, any integer dtype. Returns a scalar, float32 or wider, and the cache.
    """
    losses, peak, rest = softmax_rows_forward("softmax_cross_entropy", logits, labels)
    return jnp.sum(losses) / len(losses), SoftmaxCrossEntropyCache(logits, labels, peak, rest)


def softmax_cross_entropy_backward(dout: Array, cache: SoftmaxCrossEntropyCache) -> Array:
    """Return `dlogits: (N, C)` from the scalar `dout`; derivation in `softmax_cross_entropy_forward`."""
    logits, labels, peak, rest = cache
    return softmax_rows_backward(dout / max(len(labels), 1), logits, labels, peak, rest)


def softmax_rows_forward(op: str, logits: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Return each row's loss `(N,)`, and its `peak` and `rest`, `(N, 1)`: what means over rows or steps share."""
    index, inside, scores = _prepare(op, "logits", logits, labels)
    peak = lax.stop_gradient(jnp.max(scores, axis=1, keepdims=True))  # the result does not depend on it
    peak = jnp.where(peak == -jnp.inf, 0.0, peak)  # a row masked throughout: -inf - -inf would be NaN
    own = _pick(scores, index) - peak
    rest = jnp.sum(_exp_of_others(scores - peak, index), axis=1, keepdims=True)
    beyond = jnp.maximum(rest + jnp.expm1(own), 0.0)  # below 0 in a row masked throughout only
    return jnp.where(inside, (jnp.log1p(beyond) - own)[:, 0], jnp.nan), peak, rest


def softmax_rows_backward(dloss: Array, logits: Array, labels: Array, peak: Array, rest: Array) -> Array:
    """Return `dlogits`, `(N, C)`, float32 or wider, where the loss of each row has the cotangent `dloss`, a scalar."""
    index, inside = class_index(labels, logits.shape[1])
    scores, scale = widen(logits), jnp.where(inside, dloss, jnp.nan)[:, None]
    total = rest + jnp.exp(_pick(scores, index) - peak)
    scale = scale / jnp.where(total > 0, total, 1.0)  # 0 in a row masked throughout
    others = _exp_of_others(scores - peak, index)  # the array of the forward pass, where XLA sees both
    return jnp.where(_is_class(index, scores), -rest * scale, others * scale)


class SvmLossCache(NamedTuple):
    """What the backward pass of `svm_loss` needs: one bit of information a score, and the labels."""

    violated: Array  # (N, C), bool: the margin of this class is violated (False at the label)
    labels: Array  # (N,), integers


def svm_loss_forward(scores: Array, labels: Array, *, margin: float = 1.0) -> tuple[Array, SvmLossCache]:
    r"""Multiclass hinge loss: mean over rows of the sum over wrong classes of `max(0, s_j - s_y + margin)`.

    **Forward.** $\ell = \sum_{j \ne y} \max(0,\; s_j - s_y + \Delta)$, $L = \frac1N \sum_n \ell_n$.

    **Backward.** A term is active where $v_j = [\,j \ne y,\; s_j - s_y + \Delta > 0\,]$; it then moves with slope 1
    in $s_j$ and $-1$ in $s_y$. Collecting what reaches $s_y$ from all active terms,

    $$ \bar s_j = \frac gN\, v_j \quad (j \ne y), \qquad \bar s_y = -\frac gN \sum_j v_j. $$

    **Kept:** $v$ as booleans and the labels.

    **At the kink**, a margin of exactly 0, the term is not active. A label outside [0, C) makes the loss, and its own
    row of the gradient, NaN. An empty batch has loss NaN.

    Reference: Weston & Watkins 1999, "Support vector machines for multi-class pattern recognition".

    `scores: (N, C)`, `labels: (N,)` integers. Returns a scalar, float32 or wider, and the cache.
    """
    index, inside, wide = _prepare("svm_loss", "scores", scores, labels)
    is_label = _is_class(index, wide)
    hinge = jnp.where(is_label, 0.0, jnp.maximum(wide - _pick(wide, index) + margin, 0.0))
    losses = jnp.where(inside, jnp.sum(hinge, axis=1), jnp.nan)
    return jnp.sum(losses) / len(losses), SvmLossCache(hinge > 0, labels)


def svm_loss_backward(dout: Array, cache: SvmLossCache) -> Array:
    """Return `dscores: (N, C)` from the scalar `dout`; derivation in `svm_loss_forward`."""
    violated, labels = cache
    index, inside = class_index(labels, violated.shape[1])
    slope = violated.astype(dout.dtype)
    dlosses = jnp.where(_is_class(index, slope), -jnp.sum(slope, axis=1, keepdims=True), slope)
    dlosses = jnp.where(inside[:, None], dlosses, jnp.nan)
    return dlosses * (dout / max(len(labels), 1))


def _prepare(op: str, name: str, scores: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Check the arguments of a loss; return the class index of each row, whether it is one, and the widened scores."""
    require_float(op, **{name: scores})
    require(
        scores.ndim == 2 and scores.shape[1] > 0, f"{op}: {name} have shape {scores.shape}; they must be (N, C), C >= 1"
    )
    require_labels(op, labels, scores.shape[0])
    index, inside = class_index(labels, scores.shape[1])
    return index, inside, widen(scores)


def class_index(labels: Array, num_classes: int) -> tuple[Array, Array]:
    """Return the labels as int32 and whether each is in [0, C): compared before the cast, which could wrap."""
    last = min(num_classes - 1, int(jnp.iinfo(labels.dtype).max))
    inside = (labels >= 0) & (labels <= last)
    return jnp.where(inside, labels, 0).astype(jnp.int32), inside


def _is_class(index: Array, scores: Array) -> Array:
    """Return (N, C) booleans, True at each row's `index`."""
    return index[:, None].astype(jnp.int32) == jnp.arange(scores.shape[1], dtype=jnp.int32)[None, :]


def _exp_of_others(scores: Array, index: Array) -> Array:
    """Return `exp(scores)`, `(N, C)`, with 0 at each row's `index`."""
    return jnp.exp(jnp.where(_is_class(index, scores), -jnp.inf, scores))


def _pick(scores: Array, index: Array) -> Array:
    """Return the score at each row's `index`, (N, 1)."""
    return jnp.take_along_axis(scores, index[:, None], axis=1, mode="promise_in_bounds")
