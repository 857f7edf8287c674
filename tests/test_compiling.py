"""What XLA is told about temporaries: blocks that malloc keeps, unless an array is larger than a block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnet import compiling

STATE = jnp.ones(())


def chain(state, x):
    """Twelve arrays as large as x, each needed until the end."""
    made = [x]
    for _ in range(11):
        made.append(jnp.cumsum(made[-1], axis=0) * state)
    return state + sum(jnp.sum(v * made[-1]) for v in made), x[0]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(compiling, "BLOCK_BYTES", 100_000)


@pytest.mark.parametrize(("rows", "fits"), [(100, True), (400, False)])
def test_a_function_whose_arrays_fit_takes_blocks(small_blocks, capfd, rows, fits):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((rows, 100)), jnp.float32)
    function, plain = compiling.jit(chain), jax.jit(chain, compiler_options=compiling.compiler_options())
    for got, expected in zip(function(STATE, x), plain(STATE, x), strict=True):
        np.testing.assert_array_equal(got, expected)
    chosen = function._choose(STATE, x)
    assert chosen is (function._in_blocks if fits else function._whole)
    bytes_, least = (f.lower(STATE, x).compile().memory_analysis().temp_size_in_bytes for f in (function, plain))
    assert bytes_ <= 1.5 * least
    assert "limit" not in capfd.readouterr().err  # XLA warns of each array that is larger than a block


def test_each_shape_has_its_own_choice(small_blocks):
    function = compiling.jit(chain)
    for rows, fits in ((100, True), (400, False), (100, True)):
        args = STATE, jnp.ones((rows, 100))
        assert (function._choose(*args) is function._in_blocks) == fits
        function(*args)


def test_the_largest_array_is_found_in_loops_and_calls():
    def inner(carry, row):
        return carry + jnp.sum(jnp.outer(row, row)), None

    jaxpr = jax.make_jaxpr(lambda x: jax.lax.scan(jax.jit(inner), jnp.float32(0), x)[0])(jnp.ones((3, 50), jnp.float32))
    assert compiling._largest(jaxpr.jaxpr) == 50 * 50 * 4


def test_arguments_may_be_named(small_blocks):
    function = compiling.jit(lambda state, x: chain(state, x))
    assert function(STATE, x=jnp.ones((100, 100)))[1].shape == (100,)
    assert function(STATE, x=jnp.ones((400, 100)))[1].shape == (100,)
    assert (function._in_blocks._cache_size(), function._whole._cache_size()) == (1, 1)


def test_state_is_donated(small_blocks):
    function = compiling.jit(lambda state, x: (state + x, x), donate_argnums=0)
    state = jnp.ones(10)
    function(state, jnp.ones(10))
    assert state.is_deleted()


def test_keys_have_a_size():
    function = compiling.jit(lambda key, n: jax.random.split(key, 3)[n])
    assert function(jax.random.key(0), jnp.int32(1)).dtype == jax.random.key(0).dtype
