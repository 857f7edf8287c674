"""The draws of dropout: as many as asked for, and independent of each other and of the key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnet.formulas.dropout import dropout_backward, dropout_forward, keep_mask


@pytest.mark.parametrize("keep_prob", [0.01, 0.5, 0.9, 1.0])
def test_as_many_are_kept_as_asked_for(keep_prob):
    mask = keep_mask(jax.random.key(0), keep_prob, (1000, 1000))
    deviation = np.sqrt(keep_prob * (1 - keep_prob) / mask.size)
    assert abs(float(mask.mean()) - keep_prob) <= 4 * deviation


def test_draws_are_independent():
    """Neighbours along each axis, elements over many keys, and masks of related keys are uncorrelated."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(1), i))(jnp.arange(2000))
    masks = np.asarray(jax.vmap(lambda key: keep_mask(key, 0.5, (8, 64)))(keys))
    signs = 2.0 * masks.astype(float) - 1.0
    pairs = [signs[:, :, lag:] * signs[:, :, :-lag] for lag in (1, 2, 4, 8, 32)]
    pairs += [signs[:, 1:] * signs[:, :-1], signs[1:] * signs[:-1], signs[2:] * signs[:-2]]
    for product in pairs:
        assert abs(product.mean()) < 4 / np.sqrt(product.size)
    # each element over the keys: the squared z-scores of 512 coins sum to chi-squared with 512 degrees of freedom
    chi_squared = (signs.sum(axis=0) ** 2 / len(signs)).sum()
    assert abs(chi_squared - 512) < 4 * np.sqrt(2 * 512)


def test_runs_have_the_lengths_of_fair_coins():
    coins = np.asarray(keep_mask(jax.random.key(2), 0.5, (1 << 20,)))
    ends = np.flatnonzero(np.diff(coins))
    lengths = np.bincount(np.diff(ends))[1:9]
    expected = (len(ends) - 1) * 0.5 ** np.arange(1, 9)
    assert (np.abs(lengths - expected) < 4.5 * np.sqrt(expected)).all()


def test_a_mask_is_a_function_of_the_key():
    shape = (16, 16)
    one, again, other = (keep_mask(jax.random.key(seed), 0.5, shape) for seed in (0, 0, 1))
    assert (one == again).all()
    assert not (one == other).all()
    raw = jax.random.key_data(jax.random.key(0))
    assert (keep_mask(raw, 0.5, shape) == one).all(), "old-style keys are keys"


def test_nothing_of_the_size_of_x_is_kept_and_what_is_dropped_is_zero():
    x = jnp.full((64, 64), jnp.inf)
    out, cache = dropout_forward(x, jax.random.key(0), keep_prob=0.5)
    assert set(np.unique(out)) == {0.0, np.inf}
    assert sum(leaf.size for leaf in jax.tree.leaves(cache)) == 1
    dx = dropout_backward(jnp.full(x.shape, jnp.nan), cache, keep_prob=0.5)
    np.testing.assert_array_equal(np.isnan(dx), np.isinf(out))
