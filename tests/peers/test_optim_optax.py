"""jnet.optim beside Optax: the same trajectories, and each one's parts at work inside the other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnet import optim

optax = pytest.importorskip("optax")

RATE, STEPS = 0.05, 6
SCHEDULE = optim.cosine_schedule(RATE, STEPS, 2)

PAIRS = {
    "sgd": (optim.sgd(RATE), optax.sgd(RATE)),
    "momentum": (optim.sgd_momentum(RATE), optax.sgd(RATE, 0.9)),
    "nesterov": (optim.sgd_momentum(RATE, nesterov=True), optax.sgd(RATE, 0.9, nesterov=True)),
    "rmsprop": (optim.rmsprop(RATE, 0.9), optax.rmsprop(RATE, 0.9, eps_in_sqrt=False)),
    "adam": (optim.adam(RATE), optax.adam(RATE)),
    "adam-schedule": (optim.adam(SCHEDULE), optax.adam(SCHEDULE)),
    "adamw": (
        optim.adamw(RATE, weight_decay=0.1, mask=optim.decay_weights_only),
        optax.adamw(RATE, weight_decay=0.1, mask=optim.decay_weights_only),
    ),
    "clipped": (
        optim.chain(optim.clip_by_global_norm(0.5), optim.sgd(RATE)),
        optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(RATE)),
    ),
    "accumulated": (
        optim.accumulate(optim.adam(RATE), 2),
        optax.MultiSteps(optax.adam(RATE), 2).gradient_transformation(),
    ),
    "jnet in an optax chain": (
        optim.chain(optim.clip_by_global_norm(0.5), optim.adam(RATE)),
        optax.chain(optax.clip_by_global_norm(0.5), optim.scale_by_adam(), optim.scale_by_learning_rate(RATE)),
    ),
    "optax in a jnet chain": (
        optim.chain(optim.scale_by_adam(), optim.scale_by_learning_rate(RATE)),
        optim.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(RATE)),
    ),
}


def params():
    rng = np.random.default_rng(0)
    return {"w": jnp.asarray(rng.normal(size=(3, 2))), "b": jnp.asarray(rng.normal(size=2))}


def run(optimizer, apply_updates):
    def step(carry, t):
        p, state = carry
        grads = jax.tree.map(lambda x: x * jnp.cos(t) + 0.1, p)
        updates, state = optimizer.update(grads, state, p)
        p = apply_updates(p, updates)
        return (p, state), p

    return jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), jnp.arange(float(STEPS)))[1])(params())


@pytest.mark.parametrize("name", PAIRS)
def test_trajectories_agree(name):
    ours, theirs = PAIRS[name]
    path = run(ours, optim.apply_updates)
    # Optax computes 1 - b**t in float32, whatever the parameters: 1e-5 of 1 - 0.999
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6), path, run(theirs, optax.apply_updates))


def test_warmup_cosine_agrees():
    theirs = optax.warmup_cosine_decay_schedule(RATE / 5, RATE, warmup_steps=4, decay_steps=20, end_value=0.01)
    ours = optim.cosine_schedule(RATE, 20, warmup_steps=4, final=0.01)
    np.testing.assert_allclose([ours(t) for t in range(25)], [theirs(t) for t in range(25)], rtol=1e-6)


def test_in_flax_train_state():
    train_state = pytest.importorskip("flax.training.train_state")
    state = train_state.TrainState.create(apply_fn=None, params=params(), tx=optim.adam(RATE))
    step = jax.jit(lambda s: s.apply_gradients(grads=jax.tree.map(jnp.ones_like, s.params)))
    moved = step(step(state))
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-6), moved.params, jax.tree.map(lambda p: p - 0.1, params())
    )
