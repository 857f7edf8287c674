"""Moments from one pass about a guess are as good as those from two, where a shortcut would cancel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnet import custom_vjp, reference

SHAPE = (64, 4, 4, 32)
OPTIONS = {"batchnorm": {}, "layernorm": {}, "groupnorm": {"groups": 4}}
AXES = {"batchnorm": (0, 1, 2), "layernorm": (3,), "groupnorm": (1, 2, 3)}


def first_sixteenth(op):
    """Which entries the guess is made from: of each channel, row or position."""
    axis = {"batchnorm": 0, "layernorm": 3, "groupnorm": 1}[op]
    index = [slice(None)] * 4
    index[axis] = slice(max(SHAPE[axis] // 16, 1))
    return tuple(index)


def data(op, case):
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    if case == "a mean of 10000 deviations":
        return x + np.float32(1e4)
    if case == "a guess of 1000 deviations":
        x[first_sixteenth(op)] += 1000
        return x
    return np.full(SHAPE, np.float32(1234.567))


@pytest.fixture(params=["cpu", "gpu"])
def backend(request, monkeypatch):
    """What the formulas take the backend for: a GPU sums in parts, each about a guess of its own."""
    monkeypatch.setattr(jax, "default_backend", lambda: request.param)
    jax.clear_caches()  # of what was traced for the other
    yield
    jax.clear_caches()


@pytest.mark.parametrize("case", ["a mean of 10000 deviations", "a guess of 1000 deviations", "a constant"])
@pytest.mark.parametrize("op", OPTIONS)
def test_moments_in_one_pass(op, case, backend):
    x = data(op, case)
    gamma, beta = np.full(SHAPE[-1:], 2.0), np.full(SHAPE[-1:], 3.0)
    out = jax.tree.leaves(getattr(custom_vjp, op)(x, *map(jnp.float32, (gamma, beta)), **OPTIONS[op]))[0]
    want = jax.tree.leaves(getattr(reference, op)(x.astype(np.float64), gamma, beta, **OPTIONS[op]))[0]
    # the mean itself is a float32 number: half a unit in its last place, in deviations (or, of a constant, in eps)
    deviation = np.sqrt(x.astype(np.float64).var(axis=AXES[op]).min() + 1e-5)
    half_a_unit = np.spacing(np.float32(np.abs(x).max())) / 2 / deviation
    np.testing.assert_allclose(out, want, rtol=0, atol=2 * (2 * half_a_unit + 1e-5 * np.abs(want).max()))


@pytest.mark.parametrize("rows", [256, 1023, 1024, 600, 521, 0, 1])
def test_moments_of_parts(rows, backend):
    """Of rows that a GPU cuts into parts (of 93 rows, of 256, of 200), and of some that it does not."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, 5)) + np.linspace(0, 9, rows)[:, None]  # the parts' means are not the mean
    _, mean, var = custom_vjp.batchnorm(jnp.asarray(x), np.ones(5), np.zeros(5))
    np.testing.assert_allclose(mean, x.mean(axis=0) if rows else np.zeros(5), rtol=0, atol=1e-13)
    np.testing.assert_allclose(var, x.var(axis=0) if rows else np.zeros(5), rtol=0, atol=1e-12)
