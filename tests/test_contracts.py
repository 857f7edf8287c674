"""What every op of the catalogue must keep: each contract walks all entries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jaxlib.version import __version_info__ as jaxlib_version

from jnet.custom_vjp import CATALOGUE, Entry, Sample

TOLERANCE = {"float64": 1e-12, "float32": 2e-5, "bfloat16": 5e-2, "float16": 1e-2}
EMITTER = {"xla_cpu_use_fusion_emitters": True} if jaxlib_version < (0, 11) else {}
AS_USERS_COMPILE = {"xla_backend_optimization_level": 3, **EMITTER}  # not as conftest.py says
SAMPLES = {f"{e.name}-{i}": (e, s) for e in CATALOGUE for i, s in enumerate(e.samples)}
CASES = {f"{e.name}-{i}": (e, s) for e in CATALOGUE for i, s in enumerate(e.samples + e.kinks)}

every_entry = pytest.mark.parametrize("entry", CATALOGUE, ids=lambda e: e.name)


def split(entry: Entry, sample: Sample, dtype: str, seed: int = 0):
    """Return the differentiable arrays and the rest of the keyword arguments."""
    arrays = entry.inputs(sample, seed, dtype)
    primals = {name: arrays[name] for name in entry.diff if arrays[name] is not None}
    return primals, {**{n: a for n, a in arrays.items() if n not in primals}, **sample.static}


def random_like(tree, seed=1):
    """Cotangents: random, never ones, for which a batch-normalization's dx is identically zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: rng.standard_normal(a.shape).astype(a.dtype), tree)


def value_and_cotangents(function, rest, compiler_options=None):
    """Compile `(primals, dout) -> (out, cotangents)`."""

    def both(primals, dout):
        out, pull = jax.vjp(lambda primals: function(**primals, **rest), primals)
        return out, pull(jax.tree.map(lambda d, o: d.astype(o.dtype), dout, out))[0]

    return jax.jit(both, compiler_options=compiler_options)


@functools.cache
def oracle(case: str):
    """The plain twin in float64: one compilation for all dtypes."""
    entry, sample = CASES[case]
    exact, rest = split(entry, sample, "float64")
    dout = random_like(jax.eval_shape(lambda primals: entry.reference(**primals, **rest), exact))
    return dout, value_and_cotangents(entry.reference, rest)


def worst(got, expected, beside=0.0) -> float:
    """Largest error relative to the largest expected entry; where all are zero but for rounding, to those `beside`."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    scale = max(largest(expected), 1e-3 * beside) or 1.0
    return largest(got - expected) / scale


def largest(tree) -> float:
    return max(
        (float(np.abs(np.asarray(leaf, np.float64)).max(initial=0.0)) for leaf in jax.tree.leaves(tree)), default=0.0
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
def test_equals_float64_autodiff_of_the_plain_twin(case, dtype):
    entry, sample = CASES[case]
    primals, rest = split(entry, sample, dtype)
    dout, twin = oracle(case)
    out, cotangents = value_and_cotangents(entry.op, rest, AS_USERS_COMPILE)(primals, dout)
    expected_out, expected = twin({name: np.asarray(a, np.float64) for name, a in primals.items()}, dout)
    for got, want in zip(jax.tree.leaves(out), jax.tree.leaves(expected_out), strict=True):
        assert worst(got, want, 1.0) < TOLERANCE[dtype]
    for name, primal in primals.items():
        assert cotangents[name].dtype == primal.dtype, name
        assert worst(cotangents[name], expected[name], largest(dout)) < TOLERANCE[dtype], name
    first = jax.tree.leaves(out)[0]
    is_loss = first.ndim == 0
    assert first.dtype == (jnp.promote_types(dtype, jnp.float32) if is_loss else dtype)
    for statistic in jax.tree.leaves(out)[1:]:
        assert statistic.dtype == jnp.promote_types(dtype, jnp.float32)


@pytest.mark.parametrize("case", SAMPLES)
def test_equals_central_differences_in_every_coordinate(case, step=1e-6):
    entry, sample = SAMPLES[case]
    primals, rest = split(entry, sample, "float64", seed=2)
    dout = random_like(jax.eval_shape(lambda p: entry.op(**p, **rest), primals), seed=3)
    flat, unravel = ravel_pytree(primals)

    def value(flat):
        outs = jax.tree.leaves(entry.op(**unravel(flat), **rest))
        return sum(jnp.sum(o * d) for o, d in zip(outs, jax.tree.leaves(dout), strict=True))

    nudges = step * np.concatenate([np.eye(flat.size), -np.eye(flat.size)])
    both = jax.jit(lambda points: (jax.vmap(value)(points), jax.grad(value)(flat)))
    values, gradient = both(np.asarray(flat)[None] + nudges)
    above, below = np.split(np.asarray(values), 2)
    assert worst(gradient, (above - below) / (2 * step), 1.0) < 1e-6


@every_entry
def test_backward_is_linear_in_the_cotangent(entry):
    primals, rest = split(entry, entry.samples[0], "float64")

    def pull(dout):
        return jax.vjp(lambda p: entry.op(**p, **rest), primals)[1](dout)

    out = jax.eval_shape(lambda p: entry.op(**p, **rest), primals)
    a, b = random_like(out, 1), random_like(out, 2)
    mixed = jax.tree.map(lambda p, q: 2.0 * p - 3.0 * q, a, b)
    together, of_a, of_b = jax.jit(lambda *douts: [pull(dout) for dout in douts])(mixed, a, b)
    apart = jax.tree.map(lambda p, q: 2.0 * np.asarray(p) - 3.0 * np.asarray(q), of_a, of_b)
    for got, want in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        assert worst(got, want, largest(together)) < 1e-12


def along_random(entry, rest, dout):
    """The op as a scalar function of its differentiable arguments."""

    def scalar(primals):
        outs = jax.tree.leaves(entry.op(**primals, **rest))
        return sum(jnp.sum(jnp.sin(o) * d) for o, d in zip(outs, jax.tree.leaves(dout), strict=True))

    return scalar


def assert_trees_close(got, want, tolerance=1e-12):
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert worst(g, w, largest(want)) < tolerance


@every_entry
def test_transforms(entry):
    """jit, checkpoint, scan and vmap (over every argument, and over one with the others shared) agree with eager."""
    primals, rest = split(entry, entry.samples[0], "float64")
    dout = random_like(jax.eval_shape(lambda p: entry.op(**p, **rest), primals))
    scalar = along_random(entry, rest, dout)
    eager = jax.grad(scalar)(primals)
    twice = jax.tree.map(lambda a: np.stack([a, 2.0 * a]), jax.tree.map(np.asarray, primals))

    def each_alone(primals, twice):
        for name in primals:
            axes = {n: 0 if n == name else None for n in primals}
            yield jax.vmap(jax.grad(scalar), in_axes=(axes,))({**primals, name: twice[name]})

    @jax.jit  # one program: what all take part in is compiled once
    def transformed(primals, twice):
        return {
            "jit": jax.grad(scalar)(primals),
            "jit of the second": jax.grad(scalar)(jax.tree.map(lambda a: a[1], twice)),
            "checkpoint": jax.grad(jax.checkpoint(scalar))(primals),
            "scan": jax.lax.scan(lambda c, p: (c, jax.grad(scalar)(p)), 0, twice)[1],
            "vmap": jax.vmap(jax.grad(scalar))(twice),
            "vmap of one": [jax.tree.map(lambda a: a[0], got) for got in each_alone(primals, twice)],
        }

    got = transformed(primals, twice)
    assert_trees_close(got["jit"], eager)
    assert_trees_close(got["checkpoint"], eager)
    both = jax.tree.map(lambda a, b: np.stack([a, b]), eager, got["jit of the second"])
    assert_trees_close(got["scan"], both)
    assert_trees_close(got["vmap"], both)
    for alone in got["vmap of one"]:
        assert_trees_close(alone, eager)


@every_entry
def test_second_derivative(entry):
    """The Hessian by two hand-written backward passes equals that of the twin by autodiff."""
    primals, rest = split(entry, entry.samples[0], "float64")
    dout = random_like(jax.eval_shape(lambda p: entry.op(**p, **rest), primals))
    direction = random_like(primals, 5)

    def hessian_product(which, primals):
        scalar = along_random(entry._replace(op=which), rest, dout)

        def slope(p):
            gradient = jax.grad(scalar)(p)
            return sum(jnp.sum(g * d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))

        return jax.grad(slope)(primals)

    got, want = jax.jit(lambda p: [hessian_product(which, p) for which in (entry.op, entry.reference)])(primals)
    assert_trees_close(got, want, 1e-10)


def test_jacrev_of_jacrev():
    from jnet.custom_vjp import layernorm

    x, gamma, beta = (jnp.asarray(np.random.default_rng(0).standard_normal(s)) for s in [(2, 3), (3,), (3,)])
    assert jax.jacrev(jax.jacrev(layernorm))(x, gamma, beta).shape == (2, 3, 2, 3, 2, 3)


@every_entry
def test_the_rule_in_use_is_the_one_written_by_hand(entry):
    primals, rest = split(entry, entry.samples[0], "float32")
    assert "custom_vjp_call" in str(jax.make_jaxpr(lambda p: entry.op(**p, **rest))(primals))
    assert "custom_vjp_call" not in str(jax.make_jaxpr(lambda p: entry.reference(**p, **rest))(primals))


@every_entry
def test_parameters_of_another_dtype(entry):
    """The result has the dtype of the first argument, each cotangent that of its own primal."""
    primals, rest = split(entry, entry.samples[0], "float32")
    first = entry.diff[0]
    mixed = {name: a.astype(jnp.bfloat16) if name == first else a for name, a in primals.items()}

    def run(mixed):
        out, pull = jax.vjp(lambda p: entry.op(**p, **rest), mixed)
        return out, pull(out)[0]

    out, cotangents = jax.jit(run)(mixed)
    assert jax.tree.leaves(out)[0].dtype in (jnp.bfloat16, jnp.float32)  # a loss is never narrower than float32
    assert {name: d.dtype for name, d in cotangents.items()} == {name: a.dtype for name, a in mixed.items()}


@every_entry
def test_positions_and_keywords_mean_the_same(entry):
    sample = entry.samples[-1]
    arrays = entry.inputs(sample)

    @jax.jit
    def both(*values):
        by_name = dict(zip(arrays, values, strict=True))
        return entry.op(*values, **sample.static), entry.op(**by_name, **sample.static)

    by_position, by_name = both(*arrays.values())
    assert_trees_close(by_position, by_name, 1e-30)


def test_names_are_those_of_the_plain_twins():
    from jnet import custom_vjp, reference

    names = [entry.name for entry in CATALOGUE]
    assert len(set(names)) == len(names)
    for entry in CATALOGUE:
        assert getattr(custom_vjp, entry.name) is entry.op
        assert getattr(reference, entry.name) is entry.reference
        assert entry.op.__doc__ == entry.forward.__doc__
        for word in ("**Forward.**", "**Backward.**", "**Kept:**", "Reference:"):
            assert word in entry.forward.__doc__, f"{entry.name} lacks {word}"
