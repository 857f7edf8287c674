"""Exercises: softmax_loss, svm_loss. Each is one function `(x, y) -> (loss, dx)`."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jnet import custom_vjp as ops
from jnet.formulas.loss import softmax_cross_entropy_forward, svm_loss_forward
from jnet.grading.record import Case, Exercise, Made, Slip, by_case

__all__ = ["SOFTMAX_LOSS", "SVM_LOSS"]


def _right(op: Callable[..., Any], x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    loss, dx = jax.jit(jax.value_and_grad(op))(x, y)
    return {"loss": np.asarray(loss), "dx": np.asarray(dx)}


def _base(x: np.ndarray, y: np.ndarray) -> Made:
    label = np.eye(x.shape[1])[y]
    return Made(x=x, y=y, n=len(x), c=x.shape[1], label=label, at_label=(x * label).sum(1, keepdims=True))


def _mean_slips(loss: str, slope: str) -> tuple[Slip, ...]:
    """Make the mistakes of any mean over the batch; `loss` and `slope` are the lines of the derivation."""
    return (
        Slip("not-divided-by-N", "loss", lambda m: m.right["loss"] * m.n,
             "the loss is the sum over the batch, must be the mean", loss),
        Slip("not-divided-by-N", "dx", lambda m: m.right["dx"] * m.n, "dx is not divided by N, as the loss is", slope),
        Slip("divided-twice", "dx", lambda m: m.right["dx"] / m.n, "dx is divided by N twice", slope),
    )  # fmt: skip


# softmax_loss


def _softmax_cases(rng: np.random.Generator) -> list[Case]:
    def case(n: int, c: int, shift: float = 0.0) -> Case:
        return Case((2 * rng.standard_normal((n, c)) + shift, rng.integers(0, c, n)), None)

    return [case(5, 4), case(7, 3), case(4, 4, shift=1000.0)]


@by_case
def _softmax(case: Case) -> Made:
    x, y = case.args
    m = _base(x, y)
    shifted = np.exp(x - x.max(1, keepdims=True))
    m.p = shifted / shifted.sum(1, keepdims=True)
    m.at_y = (m.p * m.label).sum(1)
    m.overflow = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    m.right = _right(ops.softmax_cross_entropy, x, y)
    return m


def _unstable(m: Made) -> Any:
    """The loss of a softmax that exponentiates the logits as they are, in the forms that it takes where that fails."""
    return None if np.isfinite(m.overflow).all() else np.nan


_ROW, _MEAN, _SLOPE = r"\ell = (m - s_y) + \log", r"L = \frac1N \sum_n \ell_n", r"\bar s_{nj} = \frac{g}{N}"

SOFTMAX_LOSS = Exercise(
    op="softmax_loss",
    arguments=("x", "y"),
    gradients=("dx",),
    derivation=softmax_cross_entropy_forward,
    cases=_softmax_cases,
    make=_softmax,
    is_loss=True,
    axes={"dx": "NC"},
    slips=(
        *_mean_slips(_MEAN, _SLOPE),
        Slip("divided-by-too-much", "loss", lambda m: m.right["loss"] / m.c,
             "the loss is divided by N * C, must be divided by N", _MEAN),
        Slip("logarithm-forgotten", "loss", lambda m: -m.at_y.mean(),
             "the loss is minus the probability of the label, must be minus its logarithm", _ROW),
        Slip("logarithm-to-base-2", "loss", lambda m: m.right["loss"] / np.log(2),
             "the logarithm is to base 2, must be natural", _ROW),
        Slip("largest-for-label", "loss", lambda m: -np.log(m.p.max(1)).mean(),
             "the loss takes the largest probability of each row, must take that of the label", _ROW),
        Slip("all-classes-summed", "loss", lambda m: -np.log(m.p).sum(1).mean(),
             "the loss sums over all classes, must take the label's alone", _ROW),
        Slip("overflows", "loss", _unstable,
             "large logits give nan or infinity: subtract the largest logit of each row before the exponential", _ROW),
        Slip("label-not-subtracted", "dx", lambda m: m.p / m.n,
             "the 1 of the label is not subtracted: the gradient is (p - onehot) / N", _SLOPE),
        Slip("divided-by-too-much", "dx", lambda m: m.right["dx"] / m.c,
             "dx is divided by N * C, must be divided by N", _SLOPE),
        Slip("divided-before-subtracting", "dx", lambda m: m.p / m.n - m.label,
             "the probabilities are divided by N before the 1 of the label is subtracted; divide the difference",
             _SLOPE),
        Slip("subtracted-from-every-class", "dx", lambda m: (m.p - 1) / m.n,
             "1 is subtracted from every class, must be subtracted at the label only", _SLOPE),
        Slip("label-added", "dx", lambda m: (m.p + m.label) / m.n,
             "the 1 of the label is added, must be subtracted", _SLOPE),
        Slip("softmax-forgotten", "dx", lambda m: (m.x - m.label) / m.n,
             "dx uses the logits, must use their softmax", _SLOPE),
        Slip("with-respect-to-the-probability", "dx", lambda m: -m.label / m.at_y[:, None] / m.n,
             "dx is the gradient with respect to the probabilities; the softmax itself is still to be differentiated",
             _SLOPE),
        Slip("overflows", "dx", lambda m: (m.overflow - m.label) / m.n if np.isnan(_unstable(m) or 0) else None,
             "large logits give nan: subtract the largest logit of each row before the exponential", _ROW),
    ),
)  # fmt: skip


# svm_loss


def _svm_cases(rng: np.random.Generator) -> list[Case]:
    return [Case((2 * rng.standard_normal((n, c)), rng.integers(0, c, n)), None) for n, c in [(5, 4), (8, 3), (4, 6)]]


@by_case
def _svm(case: Case) -> Made:
    x, y = case.args
    m = _base(x, y)
    m.excess = x - m.at_label + 1
    m.wrong = 1 - m.label
    m.violated = (m.excess > 0) * m.wrong
    m.hinge = np.maximum(m.excess, 0) * m.wrong
    m.spread = lambda slope: (slope - m.label * slope.sum(1, keepdims=True)) / m.n
    m.right = _right(ops.svm_loss, x, y)
    return m


_HINGE, _BAR = r"\ell = \sum_{j \ne y} \max(0,\;", r"\bar s_j = \frac gN\, v_j"

SVM_LOSS = Exercise(
    op="svm_loss",
    arguments=("x", "y"),
    gradients=("dx",),
    derivation=svm_loss_forward,
    cases=_svm_cases,
    make=_svm,
    is_loss=True,
    axes={"dx": "NC"},
    slips=(
        *_mean_slips(_HINGE, _BAR),
        Slip("label-counted", "loss", lambda m: m.right["loss"] + 1,
             "the label's own margin is counted, which adds 1 a row; the sum runs over the other classes", _HINGE),
        Slip("margin-forgotten", "loss", lambda m: (np.maximum(m.x - m.at_label, 0)).sum(1).mean(),
             "the margin of 1 is not added", _HINGE),
        Slip("squared-hinge", "loss", lambda m: (m.hinge**2).sum(1).mean(), "the hinges are squared", _HINGE),
        Slip("largest-for-sum", "loss", lambda m: m.hinge.max(1).mean(),
             "only the largest hinge of a row is taken, must be their sum", _HINGE),
        Slip("difference-reversed", "loss", lambda m: (np.maximum(m.at_label - m.x + 1, 0) * m.wrong).sum(1).mean(),
             "the hinge has the label's score minus the other's, must be the other way round", _HINGE),
        Slip("not-clipped", "loss", lambda m: (m.excess * m.wrong).sum(1).mean(),
             "margins that are kept are counted as negative losses; they must count as 0", _HINGE),
        Slip("label-forgotten", "dx", lambda m: m.violated / m.n,
             "the label's entry is missing: its score enters every violated margin with slope -1", _BAR),
        Slip("label-counted-once", "dx", lambda m: (m.violated - m.label * (m.violated.any(1, keepdims=True))) / m.n,
             "the label's entry is -1; it must be minus the number of violated margins", _BAR),
        Slip("hinge-for-slope", "dx", lambda m: m.spread(m.hinge),
             "the hinges themselves stand in dx; the slope of a violated margin is 1", _BAR),
        Slip("squared-hinge", "dx", lambda m: m.spread(2 * m.hinge), "dx is the gradient of squared hinges", _BAR),
        Slip("all-classes-counted", "dx", lambda m: m.spread(m.wrong),
             "every class counts as violated; only margins above 0 do", _BAR),
        Slip("margin-forgotten", "dx", lambda m: m.spread((m.x > m.at_label) * m.wrong),
             "a margin counts as violated only where the score exceeds the label's; the margin of 1 is forgotten",
             _BAR),
        Slip("largest-for-sum", "dx", lambda m: m.spread(m.violated * (m.hinge == m.hinge.max(1, keepdims=True))),
             "only the most violated class of a row gets a gradient, must be all of them", _BAR),
        Slip("label-counted", "dx", lambda m: (m.violated - m.label * (m.violated.sum(1, keepdims=True) + 1)) / m.n,
             "the label's entry counts its own margin as violated: it is one too small a row", _BAR),
    ),
)  # fmt: skip
