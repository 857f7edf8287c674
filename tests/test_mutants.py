"""A check that cannot fail is a defect: planted wrong gradients are rejected, and the catalogue's own pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnet import reference
from jnet.custom_vjp import CATALOGUE
from jnet.gradcheck import TOLERANCES, check_vjp

ENTRIES = {entry.name: entry for entry in CATALOGUE}
FEW = ("affine", "batchnorm", "conv2d")  # for what would take too long on every op
every_entry = pytest.mark.parametrize("entry", CATALOGUE, ids=lambda e: e.name)


def problem(entry, sample):
    """The op as a function of its differentiable arrays alone, and these."""
    arrays = entry.inputs(sample, dtype="float64")
    diff = {name: np.asarray(arrays.pop(name)) for name in entry.diff if arrays[name] is not None}

    def call(op, *values):
        return op(**dict(zip(diff, values, strict=True)), **arrays, **sample.static)

    return functools.partial(call, entry.op), functools.partial(call, entry.reference), diff


def plant(right, mutate):
    """The op with the gradient `mutate(right gradient, dout, *arguments)`."""

    def backward(args, dout):
        return tuple(mutate(jax.vjp(right, *args)[1](dout), dout, *args))

    op = jax.custom_vjp(lambda *args: right(*args))
    op.defvjp(lambda *args: (right(*args), args), backward)
    return op


def check(entry, sample, mutate, dtype):
    right, twin, diff = problem(entry, sample)
    return check_vjp(plant(right, mutate), tuple(diff.values()), reference=twin, dtypes=(dtype,), second_order=False)


def wrong_arguments(report):
    return {row.argument for row in report.failures if row.check in ("reference", "cotangent")}


def checked(entry, **options):
    sample = entry.samples[0]
    inputs = entry.inputs(sample, dtype="float64")
    return check_vjp(entry.op, inputs, reference=entry.reference, static=sample.static, **options)


@every_entry
def test_every_op_passes_in_every_dtype(entry):
    report = checked(entry, second_order=False)
    assert report.ok, str(report)
    assert {row.dtype for row in report.rows} == set(TOLERANCES)


@pytest.mark.parametrize("name", FEW)
def test_ops_pass_at_second_order(name):
    report = checked(ENTRIES[name], dtypes=("float64",))
    assert report.ok and "second order" in {row.check for row in report.rows}, str(report)


# Mutations of any gradient: every argument of every op must be found wrong.

FACTORS = {"float64": 1 + 1e-11, "float32": 1 + 1e-4, "float16": 1 + 3e-2, "bfloat16": 1 + 2e-1}


def scaled(factor):
    return lambda right, *_: [factor * d for d in right]


def one_entry_dropped(right, *_):
    """The largest entry is left out."""
    return [d.reshape(-1).at[jnp.argmax(jnp.abs(d))].set(0).reshape(d.shape) for d in right]


def of_another_dtype(right, *_):
    return [d.astype(jnp.float64 if d.dtype != jnp.float64 else jnp.float32) for d in right]


MUTATIONS = {"factor": scaled(1 + 1e-4), "entry": one_entry_dropped, "dtype": of_another_dtype}


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("mutate", MUTATIONS.values(), ids=MUTATIONS)
def test_a_mutant_of_every_gradient_is_rejected_in_every_argument(name, mutate):
    entry = ENTRIES[name]
    diff = problem(entry, entry.samples[0])[2]
    report = check(entry, entry.samples[0], mutate, "float32")
    assert len(wrong_arguments(report)) == len(diff), str(report)


@pytest.mark.parametrize("dtype", FACTORS)
def test_a_factor_is_rejected_in_the_dtype_where_it_is_planted(dtype):
    entry = ENTRIES["layernorm"]

    def mutate(right, dout, *_):
        return [jnp.asarray(FACTORS[dtype] if d.dtype == dtype else 1, d.dtype) * d for d in right]

    right, twin, diff = problem(entry, entry.samples[0])
    report = check_vjp(plant(right, mutate), tuple(diff.values()), reference=twin, second_order=False)
    wrong = {row.dtype for row in report.failures}
    assert wrong == {dtype}, str(report)


# Mutations of one op each


def autodiff_of(wrong):
    """The gradient of another function than the op's."""
    return lambda right, dout, *args: jax.vjp(wrong, *args)[1](dout)


def normalize(x, gamma, beta, axes, through_mean=True, through_var=True):
    mean = jnp.mean(x, axis=axes, keepdims=True)
    mean = mean if through_mean else jax.lax.stop_gradient(mean)
    var = jnp.mean((x - mean) ** 2, axis=axes, keepdims=True)
    var = var if through_var else jax.lax.stop_gradient(var)
    row = (1,) * (x.ndim - 1) + (-1,)
    return (x - mean) / jnp.sqrt(var + 1e-5) * gamma.reshape(row) + beta.reshape(row)


def batchnorm_without(**paths):
    """Batchnorm's gradient with a path through its statistics dropped; those of mean and var are kept."""

    def wrong(x, gamma, beta):
        return normalize(x, gamma, beta, (0,), **paths), x.mean(0), x.var(0)

    return autodiff_of(wrong)


def without_statistics(right, dout, x, gamma, beta):
    """Batchnorm that forgets that its mean and variance are outputs too."""
    return jax.vjp(lambda *a: reference.batchnorm(*a)[0], x, gamma, beta)[1](dout[0])


def gamma_forgotten(op, **static):
    def mutate(right, dout, x, gamma, beta):
        ones = jnp.ones_like(gamma)
        return jax.vjp(lambda *a: op(*a, **static), x, ones, beta)[1](dout)[0], *right[1:]

    return mutate


def in_first(change):
    """Change the first argument's gradient only."""
    return lambda right, dout, *args: (change(right[0], dout, *args), *right[1:])


def label_not_subtracted(dx, dout, logits):
    return dout * jax.nn.softmax(logits) / len(logits)


def shared_among_ties(dx, dout, x):
    return jax.vjp(lambda x: x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).max((2, 4)), x)[1](dout)[
        0
    ]


def touching_margins_count(dx, dout, scores):
    labels = jnp.array([0, 2])  # those of the sample
    wrong = 1.0 - jnp.eye(3)[labels]
    violated = wrong * (scores - jnp.take_along_axis(scores, labels[:, None], 1) + 1 >= 0)
    return dout * (violated - (1 - wrong) * violated.sum(1, keepdims=True)) / 2


def filters_not_flipped(dx, dout, x, w, b):
    return jax.vjp(lambda x: reference.conv2d(x, w[::-1, ::-1]), x)[1](dout)[0]


SQUARE = {"x": lambda rng: rng.standard_normal((4, 4)), "w": lambda rng: rng.standard_normal((4, 4)),
          "b": lambda rng: rng.standard_normal(4)}  # fmt: skip
TIES = {"x": lambda rng: np.round(rng.standard_normal((2, 4, 6, 3)))}

MUTANTS = {
    "affine: dw transposed": ("affine", SQUARE, lambda r, *_: (r[0], r[1].T, r[2])),
    "affine: w not transposed": ("affine", SQUARE, lambda r, d, x, w, b: (d @ w, *r[1:])),
    "affine: dx and dw swapped": ("affine", SQUARE, lambda r, *_: (r[1], r[0], r[2])),
    "affine: db a mean": ("affine", None, lambda r, d, *_: (r[0], r[1], d.mean(0))),
    "relu: >= for >": ("relu", "kinks", in_first(lambda dx, d, x: jnp.where(x >= 0, d, 0))),
    "relu: > 0.01 for > 0": ("relu", "kinks", in_first(lambda dx, d, x: jnp.where(x > 0.01, d, 0))),
    "leaky_relu: >= for >": ("leaky_relu", "kinks", in_first(lambda dx, d, x: jnp.where(x >= 0, d, 0.01 * d))),
    "sigmoid: y for y (1 - y)": ("sigmoid", None, in_first(lambda dx, d, x: d * jax.nn.sigmoid(x))),
    "tanh: 1 - y for 1 - y^2": ("tanh", None, in_first(lambda dx, d, x: d * (1 - jnp.tanh(x)))),
    "batchnorm: path through the mean dropped": ("batchnorm", None, batchnorm_without(through_mean=False)),
    "batchnorm: path through the variance dropped": ("batchnorm", None, batchnorm_without(through_var=False)),
    "batchnorm: mean and var not seen as outputs": ("batchnorm", None, without_statistics),
    "batchnorm: gamma forgotten": ("batchnorm", None, gamma_forgotten(reference.batchnorm)),
    "batchnorm: dgamma and dbeta swapped": ("batchnorm", None, lambda r, *_: (r[0], r[2], r[1])),
    "batchnorm: a missing 1/N": ("batchnorm", None, lambda r, d, *_: (r[0], r[1] / len(d[0]), r[2])),
    "layernorm: path through the mean dropped": (
        "layernorm", None, autodiff_of(functools.partial(normalize, axes=(1,), through_mean=False))),
    "layernorm: path through the variance dropped": (
        "layernorm", None, autodiff_of(functools.partial(normalize, axes=(1,), through_var=False))),
    "layernorm: gamma forgotten": ("layernorm", None, gamma_forgotten(reference.layernorm)),
    "groupnorm: gamma forgotten": ("groupnorm", None, gamma_forgotten(reference.groupnorm, groups=3)),
    "groupnorm: other groups": (
        "groupnorm", None, autodiff_of(functools.partial(reference.groupnorm, groups=2))),
    "dropout: not scaled": ("dropout", None, in_first(lambda dx, d, x: 0.7 * dx)),
    "dropout: the mask of the wrong tensor": ("dropout", None, in_first(lambda dx, d, x: jnp.where(x > 0, d / 0.7, 0))),
    "conv2d: filters not flipped": ("conv2d", None, in_first(filters_not_flipped)),
    "conv2d: padding sliced off wrongly": ("conv2d", None, lambda r, *_: (jnp.roll(r[0], 1, 1), *r[1:])),
    "conv2d: db summed over the batch's mean": ("conv2d", None, lambda r, d, *_: (r[0], r[1], r[2] / len(d))),
    "max_pool2d: ties shared": ("max_pool2d", TIES, in_first(shared_among_ties)),
    "max_pool2d: the average's gradient": (
        "max_pool2d", TIES, lambda r, d, x: jax.vjp(reference.avg_pool2d, x)[1](d)),
    "avg_pool2d: not divided": ("avg_pool2d", None, scaled(4.0)),
    "softmax_cross_entropy: a missing 1/N": ("softmax_cross_entropy", None, scaled(6.0)),
    "softmax_cross_entropy: the label's 1 kept": ("softmax_cross_entropy", None, in_first(label_not_subtracted)),
    "svm_loss: a missing 1/N": ("svm_loss", None, scaled(6.0)),
    "svm_loss: >= for >": ("svm_loss", "kinks", in_first(touching_margins_count)),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_rejected(name):
    op, where, mutate = MUTANTS[name]
    entry = ENTRIES[op]
    sample = entry.kinks[0] if where == "kinks" else entry.samples[0]
    if isinstance(where, dict):
        sample = sample._replace(arrays=where)
    report = check(entry, sample, mutate, "float64")
    assert {row.check for row in report.failures} & {"reference"}, str(report)
