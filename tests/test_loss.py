"""The losses at the ends of their range, where naive formulas lose every digit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnet.custom_vjp import softmax_cross_entropy

DOUBLE = np.float64


@pytest.mark.parametrize("lead", [0.0, 9.0, 40.0, 80.0])
def test_a_sure_network_has_a_loss_and_a_gradient_to_every_digit(lead):
    logits = jnp.zeros((1, 10), jnp.float32).at[0, 3].set(lead)
    loss, gradient = jax.value_and_grad(softmax_cross_entropy)(logits, jnp.array([3]))
    others = 9 * np.exp(-lead, dtype=DOUBLE)
    expected = np.full(10, np.exp(-lead) / (1 + others))
    expected[3] = -others / (1 + others)
    np.testing.assert_allclose(DOUBLE(loss), np.log1p(others), rtol=1e-6)
    np.testing.assert_allclose(DOUBLE(gradient[0]), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("row", "label", "loss", "gradient"),
    [
        ([1000.0, -1000.0], 1, 2000.0, [1.0, -1.0]),
        ([1000.0, -1000.0], 0, 0.0, [0.0, 0.0]),
        ([0.0, -np.inf], 0, 0.0, [0.0, 0.0]),
        ([0.0, -np.inf], 1, np.inf, [1.0, -1.0]),
        ([5.0, 5.0, -np.inf], 0, np.log(2.0), [-0.5, 0.5, 0.0]),
    ],
)
def test_far_and_masked_logits(row, label, loss, gradient):
    got = jax.value_and_grad(softmax_cross_entropy)(jnp.array([row], jnp.float32), jnp.array([label]))
    np.testing.assert_allclose(got[0], loss, rtol=1e-6)
    np.testing.assert_allclose(got[1][0], gradient, rtol=1e-6, atol=1e-7)


def test_a_row_masked_throughout_has_an_infinite_loss_and_leaves_the_others_alone():
    logits = jnp.array([[-jnp.inf, -jnp.inf], [0.0, 0.0]], jnp.float32)
    loss, gradient = jax.value_and_grad(softmax_cross_entropy)(logits, jnp.array([0, 1]))
    assert loss == jnp.inf
    np.testing.assert_allclose(gradient[1], [0.25, -0.25])
    assert np.isfinite(gradient).all()
