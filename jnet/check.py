"""Is every gradient right? Each op of the catalogue against autodiff of its plain twin in float64, a line an op."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jnet.custom_vjp import Entry, Sample
from jnet.summary import kept_bytes

ALLOWED = {"float64": 1e-12, "float32": 2e-5, "bfloat16": 5e-2}
"""The largest error of each dtype, relative to the largest entry of a gradient."""


class OpCheck(NamedTuple):
    """What was found about one op."""

    name: str
    errors: Mapping[str, float]  # dtype -> largest relative error of the result and of every gradient, all samples
    kept_by_hand: int  # bytes for the backward pass of the first sample, in float32
    kept_by_autodiff: int

    @property
    def ok(self) -> bool:
        """Whether every error is allowed; NaN is not."""
        return all(error <= ALLOWED[dtype] for dtype, error in self.errors.items())


def check_op(entry: Entry) -> OpCheck:
    """Compare an op with its twin on all its samples and kinks, under a random cotangent."""
    errors = dict.fromkeys(ALLOWED, 0.0)
    with jax.enable_x64(True):
        for sample in entry.samples + entry.kinks:
            for dtype, error in _sample_errors(entry, sample).items():
                errors[dtype] = float(np.maximum(errors[dtype], error))  # a NaN stays
    by_hand, by_autodiff = (_kept(entry, function) for function in (entry.op, entry.reference))
    return OpCheck(entry.name, errors, by_hand, by_autodiff)


def _sample_errors(entry: Entry, sample: Sample) -> dict[str, float]:
    """The error of each dtype on one sample."""
    _, rest = _split(entry, sample, "float64")
    twin, op = _value_and_gradients(entry.reference, rest), _value_and_gradients(entry.op, rest)
    rng = np.random.default_rng(1)
    errors = {}
    for dtype in ALLOWED:
        primals, _ = _split(entry, sample, dtype)
        exact = {name: array.astype(jnp.float64) for name, array in primals.items()}
        shapes = jax.eval_shape(lambda primals: entry.reference(**primals, **rest), exact)
        dout = jax.tree.map(lambda out: rng.standard_normal(out.shape), shapes)
        pairs = zip(jax.tree.leaves(twin(exact, dout)), jax.tree.leaves(op(primals, dout)), strict=True)
        errors[dtype] = float(np.max([_error(expected, got, _largest(dout)) for expected, got in pairs], initial=0.0))
    return errors


def _value_and_gradients(function: Any, rest: Mapping[str, Any]):
    """`(primals, dout) -> (out, gradients)`, jitted."""

    @jax.jit
    def evaluate(primals, dout):
        out, pull = jax.vjp(lambda primals: function(**primals, **rest), primals)
        return out, pull(jax.tree.map(lambda d, o: d.astype(o.dtype), dout, out))[0]

    return evaluate


def _split(entry: Entry, sample: Sample, dtype: str) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """The arrays that have a gradient, and all other arguments."""
    arrays = entry.inputs(sample, 0, dtype)
    primals = {name: arrays[name] for name in entry.diff if arrays[name] is not None}
    return primals, {**{name: a for name, a in arrays.items() if name not in primals}, **sample.static}


def _error(expected: Any, got: Any, beside: float) -> float:
    """Largest error relative to the largest expected entry, or to a thousandth of the cotangents where all are zero."""
    expected, got = np.asarray(expected, np.float64), np.asarray(got, np.float64)
    scale = max(_largest(expected), 1e-3 * beside) or 1.0
    return _largest(got - expected) / scale


def _largest(tree: Any) -> float:
    """The largest entry of a tree by size; NaN if there is one."""
    return float(np.max([np.abs(np.asarray(leaf)).max(initial=0.0) for leaf in jax.tree.leaves(tree)], initial=0.0))


def _kept(entry: Entry, function: Any) -> int:
    primals, rest = _split(entry, entry.samples[0], "float32")
    return kept_bytes(lambda primals: function(**primals, **rest), primals)


HEAD = f"{'op':<25}  {'float64':>9}  {'float32':>9}  {'bfloat16':>9}  {'kept by hand':>12}  {'by autodiff':>12}"


def to_line(result: OpCheck) -> str:
    """One op's line under `HEAD`; bytes are those of its first sample."""
    errors = "  ".join(f"{result.errors[dtype]:>9.1e}" for dtype in ALLOWED)
    kept = f"{result.kept_by_hand:>12,}  {result.kept_by_autodiff:>12,}"
    return f"{result.name:<25}  {errors}  {kept}  {'ok' if result.ok else 'WRONG'}"
