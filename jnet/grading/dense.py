"""Exercises: affine, relu, dropout."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jnet import custom_vjp as ops
from jnet.formulas.activation import relu_forward
from jnet.formulas.affine import affine_forward
from jnet.formulas.dropout import dropout_forward
from jnet.grading.record import Case, Exercise, Made, Slip, by_case

__all__ = ["AFFINE", "DROPOUT", "RELU", "right_results"]


def right_results(op: Any, names: tuple[str, ...], args: tuple[Any, ...], dout: Any) -> dict[str, np.ndarray]:
    """Run jnet's own op: `out` and, where there is a `dout`, the gradients under `names`."""

    def both(args: tuple[Any, ...], dout: Any) -> tuple[Any, Any]:
        out, pull = jax.vjp(op, *args)
        return out, () if dout is None else pull(dout)

    out, grads = jax.jit(both)(args, dout)
    return {"out": np.asarray(out)} | {name: np.asarray(grad) for name, grad in zip(names, grads, strict=False)}


# affine


def _affine_cases(rng: np.random.Generator) -> list[Case]:
    def case(x: tuple[int, ...], outputs: int) -> Case:
        inputs = int(np.prod(x[1:]))
        args = (rng.standard_normal(x), rng.standard_normal((inputs, outputs)), rng.standard_normal(outputs))
        return Case(args, rng.standard_normal((x[0], outputs)))

    return [case((4, 2, 3), 5), case((3, 4), 2), case((3, 3), 3)]  # square too: there a transpose keeps the shape


@by_case
def _affine(case: Case) -> Made:
    x, w, b = case.args
    flat = x.reshape(len(x), -1)
    right = right_results(ops.affine, ("dx", "dw", "db"), case.args, case.dout)
    return Made(x=x, w=w, b=b, dout=case.dout, flat=flat, square=len(x) == w.shape[0] == w.shape[1], right=right)


def _columns_first(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1, order="F")


_DX, _DW = r"\bar X_{nd} = \sum_m g_{nm}", r"\bar w_{dm} = \sum_n g_{nm} X_{nd}"
_MATRICES, _Y = r"which in matrices reads", r"y_{nm} = \sum_d X_{nd}\, w_{dm} + b_m"

AFFINE = Exercise(
    op="affine",
    arguments=("x", "w", "b"),
    gradients=("dx", "dw", "db"),
    derivation=affine_forward,
    cases=_affine_cases,
    make=_affine,
    axes={"out": "NM", "dw": "DM"},
    slips=(
        Slip("bias-forgotten", "out", lambda m: m.flat @ m.w, "the bias b is not added", _Y),
        Slip("bias-subtracted", "out", lambda m: m.flat @ m.w - m.b, "the bias b is subtracted, must be added", _Y),
        Slip("flattened-in-the-wrong-order", "out", lambda m: _columns_first(m.x) @ m.w + m.b,
             "x is flattened with its last axis slowest; a plain reshape(N, -1) has the last axis fastest", _Y),
        Slip("weight-transposed", "out", lambda m: m.flat @ m.w.T + m.b if m.square else None,
             "x is multiplied by the transpose of w; w is (D, M) and stands to the right of x as it is", _Y),
        Slip("weight-not-transposed", "dx", lambda m: (m.dout @ m.w).reshape(m.x.shape) if m.square else None,
             "dout must be multiplied by the transpose of w: the sum runs over the outputs m, the second index of w",
             _DX),
        Slip("left-flat", "dx", lambda m: m.dout @ m.w.T,
             "dx is still the flat (N, D) matrix; it must be reshaped to the shape of x", _MATRICES),
        Slip("unflattened-in-the-wrong-order", "dx", lambda m: (m.dout @ m.w.T).reshape(m.x.shape, order="F"),
             "dx is reshaped with its first axis fastest; a plain reshape(x.shape) undoes the flattening", _MATRICES),
        Slip("averaged-over-the-batch", "dx", lambda m: m.right["dx"] / len(m.x),
             "dx is divided by N; the 1/N of a mean loss is in dout already", _DX),
        Slip("input-not-transposed", "dw", lambda m: m.flat @ m.dout if m.square else None,
             "dout must be multiplied by the transpose of x: the sum runs over the batch n, the first index of x", _DW),
        Slip("averaged-over-the-batch", "dw", lambda m: m.right["dw"] / len(m.x),
             "dw is divided by N; the 1/N of a mean loss is in dout already, so dw is a plain sum over the batch", _DW),
        Slip("flattened-in-the-wrong-order", "dw", lambda m: _columns_first(m.x).T @ m.dout,
             "x is flattened in another order than in the forward pass", _DW),
        Slip("summed-over-the-wrong-axis", "db", lambda m: m.dout.sum(1),
             "dout is summed over its outputs (axis 1); b is added in each row, so db sums over the batch (axis 0)",
             _DW),
        Slip("not-summed-over-the-batch", "db", lambda m: m.dout,
             "db is dout itself; b is added in each row, so its gradient is the sum of dout over the rows", _DW),
        Slip("averaged-over-the-batch", "db", lambda m: m.dout.mean(0),
             "db is the mean of dout over the batch, must be the sum: the 1/N of a mean loss is in dout already", _DW),
        Slip("summed-over-everything", "db", lambda m: m.dout.sum(),
             "db is one number, the sum of all of dout; each output has a bias of its own", _DW),
    ),
)  # fmt: skip


# relu


def _relu_cases(rng: np.random.Generator) -> list[Case]:
    """Draw inputs away from 0: there every slope between 0 and 1 is right."""

    def case(*shape: int) -> Case:
        x = rng.uniform(0.1, 2.0, shape) * rng.choice([-1.0, 1.0], shape)
        return Case((x,), rng.standard_normal(shape))

    return [case(5, 6), case(2, 3, 4, 5)]


@by_case
def _relu(case: Case) -> Made:
    (x,) = case.args
    return Made(x=x, dout=case.dout, right=right_results(ops.relu, ("dx",), case.args, case.dout))


_STEP, _MAX = r"\bar x = g \,[x > 0]", r"y = \max(x, 0)"

RELU = Exercise(
    op="relu",
    arguments=("x",),
    gradients=("dx",),
    derivation=relu_forward,
    cases=_relu_cases,
    make=_relu,
    slips=(
        Slip("nothing-done", "out", lambda m: m.x, "out is x: negative entries must become 0", _MAX),
        Slip("sides-exchanged", "out", lambda m: np.minimum(m.x, 0),
             "out keeps the negative entries, must keep the positive ones", _MAX),
        Slip("absolute-value", "out", lambda m: np.abs(m.x),
             "out is the absolute value of x; negative entries must become 0", _MAX),
        Slip("mask-for-value", "out", lambda m: m.x > 0,
             "out is the mask x > 0 itself; it must be x where the mask holds", _MAX),
        Slip("clipped-at-one", "out", lambda m: np.clip(m.x, 0, 1),
             "out is also cut off at 1; only negative entries are cut", _MAX),
        Slip("threshold-at-one", "out", lambda m: np.where(m.x > 1, m.x, 0),
             "out keeps the entries above 1, must keep those above 0", _MAX),
        Slip("mask-forgotten", "dx", lambda m: m.dout,
             "dx is dout unchanged; where x was negative no gradient flows", _STEP),
        Slip("mask-of-the-wrong-tensor", "dx", lambda m: m.dout * (m.dout > 0),
             "the mask is taken from dout; it is the sign of the input x that decides where the gradient flows", _STEP),
        Slip("dout-forgotten", "dx", lambda m: m.x > 0,
             "dx is the mask alone; by the chain rule it is multiplied by dout", _STEP),
        Slip("mask-inverted", "dx", lambda m: m.dout * (m.x < 0),
             "the gradient flows where x is negative, must flow where x is positive", _STEP),
        Slip("value-for-slope", "dx", lambda m: m.dout * np.maximum(m.x, 0),
             "dout is multiplied by the output; the slope of relu is 1 where x is positive, not x", _STEP),
        Slip("forward-for-backward", "dx", lambda m: np.maximum(m.x, 0),
             "dx is the output of the forward pass; it must be dout where x is positive", _STEP),
        Slip("leaky", "dx", lambda m: np.where(m.x > 0, m.dout, 0.01 * m.dout),
             "a hundredth of dout leaks where x is negative; relu is constant there", _STEP),
    ),
)  # fmt: skip


# dropout: the pair draws its own mask, so what is right follows from the output that is seen.

_KEEP = 0.7


def _dropout_cases(rng: np.random.Generator) -> list[Case]:
    x = rng.uniform(0.5, 1.5, (60, 40)) * rng.choice([-1.0, 1.0], (60, 40))
    dout = rng.standard_normal(x.shape)
    train, test = ({"mode": mode, "p": _KEEP, "seed": 3} for mode in ("train", "test"))
    return [Case((x, train), dout), Case((x[:5], test), dout[:5])]


def _dropout(case: Case, seen: Mapping[str, Any]) -> Made:
    x, settings = case.args
    made = Made(x=x, dout=case.dout, training=settings["mode"] == "train", out=seen["out"], dx=seen.get("dx"))
    made.kept = made.out != 0 if made.training and made.out.shape == x.shape else np.ones(x.shape, bool)
    made.share = made.kept.mean()
    scale = made.kept / (_KEEP if made.share < 1 else 1.0)
    made.right = {"out": x * scale, "dx": case.dout * scale}
    if made.training:
        made.right |= {"share kept": made.share if abs(made.share - _KEEP) < 0.06 else _KEEP, "draws": 1.0}
    return made


def _dropout_extras(case: Case, after: Mapping[str, Any], out: Any) -> dict[str, Any]:
    """Return the share of units kept, and whether each entry has a draw of its own."""
    x, settings = case.args
    if settings["mode"] != "train" or np.shape(out) != x.shape:
        return {}
    kept = np.asarray(out) != 0
    alike = any((kept == np.take(kept, [0], axis)).all() for axis in (0, 1)) and 0 < kept.mean() < 1
    return {"share kept": kept.mean(), "draws": float(not alike)}


def _share(value: float) -> Any:
    return lambda m: m.share if abs(m.share - value) < 0.06 else None


def _masked(scaled: Any, by: Any) -> Any:
    """Return an array that is `by` where it is not zero, if zeros are there: a mask was drawn."""
    if scaled is None or scaled.shape != by.shape or scaled.all():
        return None
    return scaled if np.allclose(scaled[scaled != 0], by[scaled != 0]) else None


def _training(wrong: Any) -> Any:
    return lambda m: wrong(m) if m.training else None


def _testing(wrong: Any) -> Any:
    return lambda m: None if m.training else wrong(m)


_DRAW, _SLOPE, _MEAN = r"Draw $u \sim U[0, 1)$ an element", r"\bar x = g\, m / p", "expectation of $y$ is $x$"

DROPOUT = Exercise(
    op="dropout",
    arguments=("x", "dropout_param"),
    gradients=("dx",),
    derivation=dropout_forward,
    cases=_dropout_cases,
    make=_dropout,
    extras=_dropout_extras,
    slips=(
        Slip("keep-and-drop-exchanged", "share kept", _share(1 - _KEEP),
             "units are kept with probability 1 - p; p is the probability of keeping one", _DRAW),
        Slip("nothing-dropped", "share kept", _share(1.0),
             "no unit is dropped in train mode; each must be kept with probability p only", _DRAW),
        Slip("everything-dropped", "share kept", _share(0.0),
             "every unit is dropped in train mode; each must be kept with probability p", _DRAW),
        Slip("one-draw-for-many", "draws", lambda m: 0.0,
             "whole rows or columns are dropped together; each entry needs a draw of its own", _DRAW),
        Slip("not-scaled", "out", _training(lambda m: m.x * m.kept),
             "kept units are not divided by p, so the mean of the output is p times too small", _MEAN),
        Slip("scaled-twice", "out", _training(lambda m: m.x * m.kept / _KEEP**2),
             "kept units are divided by p twice: the mask carries 1/p already", _MEAN),
        Slip("multiplied-for-divided", "out", _training(lambda m: m.x * m.kept * _KEEP),
             "kept units are multiplied by p, must be divided by it", _MEAN),
        Slip("scaled-by-the-drop-probability", "out", _training(lambda m: m.x * m.kept / (1 - _KEEP)),
             "kept units are divided by 1 - p, must be divided by the probability p of keeping one", _MEAN),
        Slip("scaled-at-test-time", "out", _testing(lambda m: m.x * _KEEP),
             "the output is multiplied by p in test mode; with inverted dropout the training pass has scaled already",
             _MEAN),
        Slip("divided-at-test-time", "out", _testing(lambda m: m.x / _KEEP),
             "the output is divided by p in test mode; nothing is dropped there and nothing may be scaled", _MEAN),
        Slip("dropped-at-test-time", "out", _testing(lambda m: _masked(m.out, m.x / _KEEP)),
             "units are dropped in test mode; there the output is x", _MEAN),
        Slip("mask-forgotten", "dx", _training(lambda m: m.dout),
             "dx is dout unchanged; a dropped unit passes no gradient", _SLOPE),
        Slip("not-scaled", "dx", _training(lambda m: m.dout * m.kept),
             "the gradient of kept units is not divided by p as the forward pass was", _SLOPE),
        Slip("scaled-twice", "dx", _training(lambda m: m.dout * m.kept / _KEEP**2),
             "the gradient is divided by p twice: the mask carries 1/p already", _SLOPE),
        Slip("mask-not-applied", "dx", _training(lambda m: m.dout / _KEEP),
             "dout is divided by p but not masked; a dropped unit passes no gradient", _SLOPE),
        Slip("mask-inverted", "dx", _training(lambda m: m.dout * ~m.kept / _KEEP),
             "the gradient flows through the dropped units, must flow through the kept ones", _SLOPE),
        Slip("mask-of-the-wrong-tensor", "dx", _training(lambda m: m.dout * (m.x > 0)),
             "the mask is the sign of x; dropout passes the gradient where the unit was kept", _SLOPE),
        Slip("value-for-slope", "dx", _training(lambda m: m.dout * m.x * m.kept / _KEEP),
             "dout is multiplied by the output; the slope of dropout is the mask divided by p", _SLOPE),
        Slip("divided-at-test-time", "dx", _testing(lambda m: m.dout / _KEEP),
             "dout is divided by p in test mode; there dropout is the identity", _SLOPE),
        Slip("another-mask-drawn", "dx", _training(lambda m: _masked(m.dx, m.dout / _KEEP)),
             "backward draws a mask of its own; it must use the one of the forward pass, from the cache", _SLOPE),
    ),
)  # fmt: skip
