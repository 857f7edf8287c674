"""Optimizers against the published updates written out in NumPy float64, and the promises that the protocol makes."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnet import optim

STEPS = 7
RATE = 0.1

# --- The published updates, one parameter array at a time, in NumPy float64 -------------------------------------------


def numpy_sgd(w, gradient, rate=RATE):
    for t in range(STEPS):
        w = w - rate * gradient(w, t)
        yield w


def numpy_momentum(w, gradient, rate=lambda t: RATE, mu=0.9):
    v = np.zeros_like(w)
    for t in range(STEPS):
        v = mu * v - rate(t) * gradient(w, t)
        w = w + v
        yield w


def numpy_nesterov(w, gradient, mu=0.9):
    """Sutskever et al.: the gradient at w + mu v; what the network sees is that point."""
    v = np.zeros_like(w)
    for t in range(STEPS):
        seen = w + mu * v
        v = mu * v - RATE * gradient(seen, t)
        w = w + v
        yield w + mu * v


def numpy_heavy_ball_outside(w, gradient, rate, mu=0.9):
    """The other momentum: bare gradients averaged, the rate applied last."""
    v = np.zeros_like(w)
    for t in range(STEPS):
        v = mu * v + gradient(w, t)
        w = w - rate(t) * v
        yield w


def numpy_rmsprop(w, gradient, rho=0.99, eps=1e-8, eps_inside=False):
    s = np.zeros_like(w)
    for t in range(STEPS):
        g = gradient(w, t)
        s = rho * s + (1 - rho) * g * g
        w = w - RATE * g / (np.sqrt(s + eps) if eps_inside else np.sqrt(s) + eps)
        yield w


def numpy_adam(w, gradient, b1=0.9, b2=0.999, eps=1e-8, wd=0.0, first=1, eps_inside=False):
    m, s = np.zeros_like(w), np.zeros_like(w)
    for t in range(first, STEPS + first):
        g = gradient(w, t - first)
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * g * g
        m_hat, s_hat = m / (1 - b1**t), s / (1 - b2**t)
        root = np.sqrt(s_hat + eps) if eps_inside else np.sqrt(s_hat) + eps
        w = w - RATE * (m_hat / root + wd * w)
        yield w


def falling(step):
    return RATE / (1 + step)


class Case(NamedTuple):
    make: object
    published: object


CASES = {
    "sgd": Case(lambda: optim.sgd(RATE), numpy_sgd),
    "momentum": Case(lambda: optim.sgd_momentum(RATE), numpy_momentum),
    "momentum-schedule": Case(lambda: optim.sgd_momentum(falling), partial(numpy_momentum, rate=falling)),
    "nesterov": Case(lambda: optim.sgd_momentum(RATE, nesterov=True), numpy_nesterov),
    "rmsprop": Case(lambda: optim.rmsprop(RATE), numpy_rmsprop),
    "rmsprop-eps": Case(lambda: optim.rmsprop(RATE, 0.9, 0.3), partial(numpy_rmsprop, rho=0.9, eps=0.3)),
    "adam": Case(lambda: optim.adam(RATE), numpy_adam),
    "adam-eps": Case(lambda: optim.adam(RATE, 0.8, 0.95, 0.3), partial(numpy_adam, b1=0.8, b2=0.95, eps=0.3)),
    "adam-without-memory": Case(lambda: optim.adam(RATE, 0.0, 0.0), partial(numpy_adam, b1=0.0, b2=0.0)),
    "adamw": Case(lambda: optim.adamw(RATE, weight_decay=0.3), partial(numpy_adam, wd=0.3)),
}
OPTIMIZERS = {
    **{name: case.make for name, case in CASES.items()},
    "clipped": lambda: optim.chain(optim.clip_by_global_norm(1.0), optim.adam(RATE)),
    "accumulated": lambda: optim.accumulate(optim.sgd_momentum(RATE), 2),
    "averaged": lambda: optim.chain(optim.sgd(RATE), optim.ema(0.9)),
    "cosine": lambda: optim.adam(optim.cosine_schedule(RATE, STEPS, 2)),
}


def start():
    rng = np.random.default_rng(0)
    return {"a": rng.normal(size=(3, 2)), "b": {"w": rng.normal(size=4)}}


def gradient(w, t):
    """A quadratic bowl that moves and whose slopes differ by orders of magnitude: no two steps alike."""
    return np.geomspace(1e-4, 2.0, w.size).reshape(w.shape) * (w - math.sin(t))


def trajectory(optimizer, dtype=np.float64):
    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optim.apply_updates(params, updates), state

    params = jax.tree.map(lambda w: jnp.asarray(w, dtype), start())
    state, path = optimizer.init(params), []
    for t in range(STEPS):
        grads = jax.tree.map(lambda w, t=t: jnp.asarray(gradient(np.asarray(w, np.float64), t), dtype), params)
        params, state = step(params, state, grads)
        path.append(params)
    return path


def distance(path, published):
    """Return the largest difference of two trajectories over the largest entry, per leaf."""
    worst = 0.0
    for leaf, name in ((lambda p: p["a"], "a"), (lambda p: p["b"]["w"], "b")):
        first = start()["a"] if name == "a" else start()["b"]["w"]
        for got, want in zip(path, published(first, gradient), strict=True):
            worst = max(worst, float(np.abs(np.asarray(leaf(got), np.float64) - want).max() / np.abs(want).max()))
    return worst


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "bound"), [(np.float64, 1e-12), (np.float32, 2e-6)])
def test_trajectory_is_the_published_one(name, dtype, bound):
    assert distance(trajectory(CASES[name].make(), dtype), CASES[name].published) < bound


@pytest.mark.parametrize(
    ("name", "mutant"),
    [
        ("rmsprop-eps", partial(numpy_rmsprop, rho=0.9, eps=0.3, eps_inside=True)),
        ("adam-eps", partial(numpy_adam, b1=0.8, b2=0.95, eps=0.3, eps_inside=True)),
        ("adam", partial(numpy_adam, first=2)),
        ("adamw", numpy_adam),
        ("momentum-schedule", partial(numpy_heavy_ball_outside, rate=falling)),
        ("momentum-schedule", partial(numpy_momentum, rate=lambda t: falling(t + 1))),
        ("nesterov", numpy_momentum),
        ("momentum", partial(numpy_momentum, mu=0.9 * (1 + 1e-4))),
    ],
)
def test_mutants_are_rejected(name, mutant):
    assert distance(trajectory(CASES[name].make()), mutant) > 1e-6


def test_adam_that_starts_at_zero_is_rejected():
    """t = 0 at the first step divides by 1 - 1: the corrected moments are not finite; ours are, and the step is eta."""
    (first, *_) = trajectory(optim.adam(RATE))
    np.testing.assert_allclose(np.abs(first["a"] - start()["a"]), RATE, rtol=1e-3)


# --- They minimise ----------------------------------------------------------------------------------------------------


def minimise(optimizer, loss, at, steps):
    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optim.apply_updates(params, updates), state), None

    params = jnp.asarray(at)
    return jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), length=steps)[0][0])(params)


@pytest.mark.parametrize(
    "optimizer",
    [
        optim.sgd(0.1),
        optim.sgd_momentum(0.05),
        optim.sgd_momentum(0.05, nesterov=True),
        optim.rmsprop(optim.exponential_schedule(0.1, 0.99)),
        optim.adam(0.1),
        optim.adamw(0.1, weight_decay=0.0),
        optim.accumulate(optim.adam(0.1), 2),
    ],
)
def test_parabola(optimizer):
    goal = jnp.array([-1.0, 2.0, 0.5])
    found = minimise(optimizer, lambda p: jnp.sum((p - goal) ** 2), [3.0, -3.0, 0.0], 1000)
    np.testing.assert_allclose(found, goal, atol=1e-3)


@pytest.mark.parametrize(
    "optimizer", [optim.sgd_momentum(2e-4, 0.99), optim.rmsprop(optim.cosine_schedule(1e-2, 20000)), optim.adam(0.02)]
)
def test_rosenbrock(optimizer):
    found = minimise(optimizer, lambda p: (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2, [-1.2, 1.0], 20000)
    np.testing.assert_allclose(found, [1.0, 1.0], atol=1e-2)


# --- The protocol -----------------------------------------------------------------------------------------------------


def params_of(dtype):
    return {"w": jnp.full((2, 3), 0.5, dtype), "b": jnp.full(3, -0.25, dtype)}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_second_step_does_not_recompile_and_state_is_stable(name):
    optimizer = OPTIMIZERS[name]()
    traces = 0

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        nonlocal traces
        traces += 1
        updates, state = optimizer.update(grads, state, params)
        assert jax.tree.map(jnp.result_type, updates) == jax.tree.map(jnp.result_type, grads)
        return optim.apply_updates(params, updates), state

    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64):
        params = params_of(dtype)
        state, traces = optimizer.init(params), 0
        kinds = jax.tree.map(lambda x: (x.shape, x.dtype), state)
        for x in jax.tree.leaves(state):
            assert x.dtype in (jnp.int32, jnp.float64 if dtype == jnp.float64 else jnp.float32)
        for _ in range(3):
            params, state = step(params, state, params_of(dtype))
        assert traces == 1
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == kinds
        assert all(p.dtype == dtype and bool(jnp.isfinite(p).all()) for p in jax.tree.leaves(params))


def test_mixed_dtypes_keep_master_parameters():
    """float32 parameters with bfloat16 gradients: float32 moments, bfloat16 updates, float32 sums."""
    optimizer = optim.adamw(0.1)
    params, grads = params_of(jnp.float32), params_of(jnp.bfloat16)
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
    assert {m.dtype for m in jax.tree.leaves(state[0].mean)} == {jnp.dtype(jnp.float32)}
    assert optim.apply_updates(params, updates)["w"].dtype == jnp.float32


def test_scan_eager_and_jit_agree():
    optimizer = OPTIMIZERS["clipped"]()
    params = params_of(jnp.float64)

    def step(carry, scale):
        params, state = carry
        grads = jax.tree.map(lambda p: p * scale, params)
        updates, state = optimizer.update(grads, state, params)
        return (optim.apply_updates(params, updates), state), None

    scales = jnp.arange(1.0, 5.0)
    carry = (params, optimizer.init(params))
    for scale in scales:
        carry, _ = step(carry, scale)
    scanned, _ = jax.jit(lambda c: jax.lax.scan(step, c, scales))((params, optimizer.init(params)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-13), carry, scanned)


def test_learning_rates_can_be_swept_with_vmap():
    def one(rate):
        optimizer = optim.adam(rate)
        params = params_of(jnp.float32)
        return optimizer.update(params, optimizer.init(params), params)[0]["w"]

    rates = jnp.array([0.1, 0.2], jnp.float32)
    np.testing.assert_allclose(jax.vmap(one)(rates)[1], one(0.2), rtol=1e-6)


def test_empty_trees_and_empty_leaves():
    for name, make in OPTIMIZERS.items():
        for params in ({}, {"w": jnp.zeros((0, 3))}):
            optimizer = make()
            updates, _ = optimizer.update(params, optimizer.init(params), params)
            assert jax.tree.structure(updates) == jax.tree.structure(params), name


# --- Clipping, decay --------------------------------------------------------------------------------------------------


def test_clip_by_global_norm():
    clip = optim.clip_by_global_norm(1.0)
    grads = {"w": jnp.full((2, 2), 3.0), "b": jnp.full(4, 4.0)}  # norm 10
    clipped, _ = clip.update(grads, clip.init(grads))
    np.testing.assert_allclose(optim.global_norm(grads), 10.0)
    jax.tree.map(lambda c, g: np.testing.assert_allclose(c, g / 10, rtol=1e-15), clipped, grads)
    short = jax.tree.map(lambda g: g / 20, grads)
    jax.tree.map(np.testing.assert_array_equal, clip.update(short, ())[0], short)


def test_zero_norm_is_no_nan():
    zero = {"w": jnp.zeros((2, 2)), "b": jnp.zeros(2, jnp.bfloat16)}
    jax.tree.map(np.testing.assert_array_equal, optim.clip_by_global_norm(1.0).update(zero, ())[0], zero)
    assert optim.global_norm(zero) == 0
    jax.tree.map(np.testing.assert_array_equal, jax.grad(optim.global_norm)(zero), zero)


def test_norm_of_half_floats_does_not_overflow():
    np.testing.assert_allclose(optim.global_norm(jnp.full(100, 6e4, jnp.float16)), 6e5, rtol=1e-3)


def test_nan_gradient_stays_visible():
    clipped, _ = optim.clip_by_global_norm(1.0).update({"w": jnp.array([jnp.nan, 1.0])}, ())
    assert jnp.isnan(clipped["w"]).all()


def test_weight_decay_masks():
    params = {"affine": {"w": jnp.ones(2), "b": jnp.ones(2)}, "norm": {"gamma": jnp.ones(2), "beta": jnp.ones(2)}}
    zero = jax.tree.map(jnp.zeros_like, params)
    everything, _ = optim.add_decayed_weights(0.5).update(zero, (), params)
    assert all((leaf == 0.5).all() for leaf in jax.tree.leaves(everything))
    for mask in (optim.decay_weights_only, optim.decay_weights_only(params)):
        updates, _ = jax.jit(optim.add_decayed_weights(0.5, mask).update)(zero, (), params)
        assert (updates["affine"]["w"] == 0.5).all()
        for leaf in (updates["affine"]["b"], updates["norm"]["gamma"], updates["norm"]["beta"]):
            assert (leaf == 0).all()
    optimizer = optim.adamw(0.1, weight_decay=0.5, mask=optim.decay_weights_only)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    np.testing.assert_allclose(updates["affine"]["w"], -0.05)
    assert (updates["norm"]["gamma"] == 0).all()


# --- Accumulation, averaging ------------------------------------------------------------------------------------------


def test_accumulation_is_one_step_with_the_mean():
    rng = np.random.default_rng(1)
    params = params_of(jnp.float64)
    batches = [jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params) for _ in range(6)]
    inner, outer = optim.adam(falling), optim.accumulate(optim.adam(falling), 3)
    update = jax.jit(outer.update)

    want, inner_state = params, inner.init(params)
    got, state = params, outer.init(params)
    for i, grads in enumerate(batches):
        updates, state = update(grads, state, got)
        got = optim.apply_updates(got, updates)
        if i % 3 != 2:
            assert all((u == 0).all() for u in jax.tree.leaves(updates))
            continue
        mean = jax.tree.map(lambda *gs: sum(gs) / 3, *batches[i - 2 : i + 1])
        updates, inner_state = inner.update(mean, inner_state, want)
        want = optim.apply_updates(want, updates)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-13), got, want)
    assert state.inner[1].step == 2  # the schedule counts real steps


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
def test_ema_is_the_weighted_mean_of_the_parameters_after_each_step(decay):
    optimizer = optim.chain(optim.sgd(RATE), optim.ema(decay))
    params = params_of(jnp.float64)
    state = optimizer.init(params)
    jax.tree.map(np.testing.assert_array_equal, optim.averaged_params(state), params)
    seen = []
    for t in range(5):
        grads = jax.tree.map(lambda p, t=t: p + t, params)
        updates, state = optimizer.update(grads, state, params)
        params = optim.apply_updates(params, updates)
        seen.append(params["w"])
    weights = np.array([decay ** (4 - i) for i in range(5)])
    want = np.tensordot(weights / weights.sum(), np.array(seen), 1)
    np.testing.assert_allclose(optim.averaged_params(state)["w"], want, rtol=1e-12)


def test_ema_alone_and_of_low_precision():
    """Kept separately; and float32, since 1e-3 of a bfloat16 difference would be lost in each step."""
    average = optim.ema(0.999)
    params = params_of(jnp.bfloat16)
    state = average.init(params)
    zero = jax.tree.map(jnp.zeros_like, params)
    for _ in range(3):
        params = jax.tree.map(lambda p: p + jnp.asarray(0.5, p.dtype), params)
        _, state = average.update(zero, state, params)
    assert state.average["w"].dtype == jnp.float32
    np.testing.assert_allclose(optim.averaged_params(state)["w"], 1.5, rtol=1e-3)


# --- Schedules --------------------------------------------------------------------------------------------------------


def test_schedules_are_first_asked_for_step_zero():
    asked = []

    def schedule(step):
        asked.append(int(step))
        return 0.1

    optimizer = optim.adam(schedule)
    params = params_of(jnp.float32)
    state = optimizer.init(params)
    for _ in range(3):
        _, state = optimizer.update(params, state, params)
    assert asked == [0, 1, 2]


@pytest.mark.parametrize(
    ("schedule", "want"),
    [
        (optim.constant_schedule(0.3), [0.3] * 6),
        (optim.exponential_schedule(0.3, 0.5, 2), [0.3 * 0.5 ** (t / 2) for t in range(6)]),
        (optim.step_schedule(0.3, (2, 4), 0.1), [0.3, 0.3, 0.03, 0.03, 0.003, 0.003]),
        (optim.step_schedule(0.3, ()), [0.3] * 6),
        (optim.cosine_schedule(0.3, 5), [0.15 * (1 + math.cos(math.pi * t / 5)) for t in range(6)]),
        (
            optim.cosine_schedule(0.3, 4, warmup_steps=2, final=0.1),
            [0.1, 0.2, 0.3, 0.2, 0.1, 0.1],
        ),
    ],
)
def test_schedules(schedule, want):
    np.testing.assert_allclose([float(schedule(t)) for t in range(6)], want, rtol=1e-12, atol=1e-15)
    inside = jax.jit(lambda t: jnp.asarray(schedule(t)))
    np.testing.assert_allclose([inside(jnp.int32(t)) for t in range(6)], want, rtol=1e-12, atol=1e-15)


# --- What a user may get wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.sgd(-0.1), "learning_rate must be a finite number of at least 0, got -0.1"),
        (lambda: optim.sgd(math.nan), "learning_rate must be a finite number of at least 0, got nan"),
        (lambda: optim.sgd("0.1"), "learning_rate must be a finite number of at least 0, got '0.1'"),
        (lambda: optim.sgd(None), "learning_rate must be a finite number of at least 0, got None"),
        (lambda: optim.sgd_momentum(0.1, 1.0), "momentum must be a number in [0, 1), got 1.0"),
        (lambda: optim.rmsprop(0.1, decay_rate=-1), "decay_rate must be a number in [0, 1), got -1"),
        (lambda: optim.rmsprop(0.1, eps=0), "eps must be a finite number above 0, got 0"),
        (lambda: optim.adam(0.1, b1=1), "b1 must be a number in [0, 1), got 1"),
        (lambda: optim.adam(0.1, b2=1.5), "b2 must be a number in [0, 1), got 1.5"),
        (lambda: optim.adam(0.1, eps=-1e-8), "eps must be a finite number above 0, got -1e-08"),
        (lambda: optim.adamw(0.1, weight_decay=-1), "wd must be a finite number of at least 0, got -1"),
        (lambda: optim.clip_by_global_norm(0), "c must be a finite number above 0, got 0"),
        (lambda: optim.ema(1.0), "decay must be a number in [0, 1), got 1.0"),
        (lambda: optim.accumulate(optim.sgd(0.1), 0), "every must be an integer of at least 1, got 0"),
        (lambda: optim.exponential_schedule(0.1, 0.0), "decay_rate must be a finite number above 0, got 0.0"),
        (lambda: optim.exponential_schedule(0.1, 0.5, 1.5), "decay_steps must be an integer of at least 1, got 1.5"),
        (lambda: optim.step_schedule(0.1, (0,)), "boundaries must be an integer of at least 1, got 0"),
        (lambda: optim.cosine_schedule(0.1, 0), "steps must be an integer of at least 1, got 0"),
        (lambda: optim.cosine_schedule(0.1, 5, 5), "warmup_steps must be an integer in [0, 5), got 5"),
        (lambda: optim.cosine_schedule(0.1, 5, final=-1), "final must be a finite number of at least 0, got -1"),
        (lambda: optim.averaged_params(()), "opt_state must hold the state of one ema, got 0"),
        (
            lambda: optim.decay_weights_only({"dense": {"kernel": 1.0}}),
            "params must hold a leaf named 'w' for decay_weights_only, got dense/kernel",
        ),
        (
            lambda: optim.adamw(0.1).update({"w": 1.0}, optim.adamw(0.1).init({"w": 1.0})),
            "params must be given to add_decayed_weights: update(grads, state, params), got None",
        ),
        (
            lambda: optim.add_decayed_weights(0.1, {"w": True}).update({"w": 1.0, "b": 1.0}, (), {"w": 1.0, "b": 1.0}),
            "mask must have the structure of params, but differs at b",
        ),
    ],
)
def test_bad_arguments_get_one_line(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == message
