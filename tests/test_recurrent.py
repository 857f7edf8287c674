"""Recurrent formulas beyond the contracts: layers, carried states, words that are none, and what a loop holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnet import custom_vjp as ops
from jnet import layers, reference

KEY = jax.random.key(0)
CELL = [(5, 2), (2, 2), (2,)]
GATES = [(5, 8), (2, 8), (8,)]


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng((seed, *shape)).standard_normal(shape))


@pytest.mark.parametrize("make", [layers.rnn, layers.lstm], ids=["rnn", "lstm"])
def test_layers(make):
    layer = make(3)
    params, state, shape = layer.init(KEY, (4, 5))
    assert shape == (4, 3) and sorted(params) == ["b", "wh", "wx"]
    x = draw(2, 4, 5).astype(jnp.float32)
    out, new_state = layer.apply(params, state, x, train=True)
    assert out.shape == (2, *shape) and out.dtype == jnp.float32 and new_state is state
    np.testing.assert_allclose(out, layers.with_ops(layer, reference).apply(params, state, x)[0], atol=1e-6)
    with pytest.raises(ValueError, match=r"the input shape is \(5,\); it must be \(T, D\)"):
        layer.init(KEY, (5,))
    with pytest.raises(ValueError, match="features is 0; it must be at least 1"):
        make(0)


def test_embedding_feeds_a_network():
    model = layers.serial(layers.embedding(7, 4), layers.lstm(3), layers.flatten(), layers.affine(2))
    params, state, shape = model.init(KEY, (5,))
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 7, (6, 5)))
    assert shape == (2,) and model.apply(params, state, ids)[0].shape == (6, 2)
    gradient = jax.grad(lambda p: jnp.sum(model.apply(p, state, ids)[0] ** 2))(params)["00_embedding"]["w"]
    seen = np.isin(np.arange(7), ids)
    assert (np.abs(gradient).sum(axis=1) > 0).tolist() == seen.tolist()
    with pytest.raises(ValueError, match="vocabulary is 0"):
        layers.embedding(0, 4)


def test_a_sequence_may_be_cut_and_carried_on():
    x, h, c, weights = draw(3, 6, 5), draw(3, 2), draw(3, 2, seed=1), [draw(*shape) for shape in GATES]
    whole, last = ops.lstm(x, h, c, *weights)
    first, between = ops.lstm(x[:, :4], h, c, *weights)
    second, end = ops.lstm(x[:, 4:], first[:, -1], between, *weights)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, atol=1e-14)
    np.testing.assert_allclose(end, last, atol=1e-14)


def test_the_loop_of_a_backward_pass_holds_one_product():
    """The weights' cotangents are one large product each, behind the loop, and the inputs' are too."""
    args = draw(3, 6, 5), draw(3, 2), *(draw(*shape) for shape in CELL)
    pull = jax.vjp(ops.rnn, *args)[1]
    loops = [eqn for eqn in jax.make_jaxpr(pull)(draw(3, 6, 2)).jaxpr.eqns if eqn.primitive.name == "scan"]
    assert len(loops) == 1
    assert str(loops[0].params["jaxpr"]).count("dot_general") == 1


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32", "int64"])
def test_a_word_that_is_none_reaches_no_other(dtype):
    w = draw(300, 2)[: 5 if dtype == "int8" else 300]
    wrong = {"int8": -1, "uint8": 255, "int32": -1, "uint32": 2**32 - 1, "int64": 2**32 + 1}[dtype]
    ids = jnp.asarray([0, wrong, 2], dtype)
    out, pull = jax.vjp(lambda w: ops.word_embedding(ids, w), w)
    is_word = dtype == "uint8"  # 255 of 300 is one
    assert jnp.isnan(out).all(axis=1).tolist() == [False, not is_word, False]
    reached = np.flatnonzero(np.abs(pull(jnp.ones_like(out))[0]).sum(axis=1)).tolist()
    assert reached == ([0, 2, 255] if is_word else [0, 2])


def test_masked_steps_do_not_matter_and_wrong_labels_show():
    logits, mask = draw(2, 3, 4), jnp.asarray([[True, False, True], [True, True, False]])
    labels = jnp.asarray([[0, 99, 1], [2, 3, -7]])
    strange = logits.at[0, 1].set(jnp.inf)
    loss, slope = jax.value_and_grad(ops.temporal_softmax_loss)(strange, labels, mask)
    assert loss == ops.temporal_softmax_loss(logits, jnp.where(mask, labels, 0), mask)
    assert jnp.isfinite(slope).all() and not slope[~mask].any()
    loss, slope = jax.value_and_grad(ops.temporal_softmax_loss)(logits, labels, jnp.ones((2, 3), bool))
    assert jnp.isnan(loss)
    assert jnp.isnan(slope).all(axis=2).tolist() == [[False, True, False], [False, False, True]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.rnn(draw(3, 5), draw(3, 2), draw(5, 2), draw(2, 2), draw(2)), r"x has shape \(3, 5\)"),
        (lambda: ops.rnn_step(draw(3, 5), draw(4, 2), draw(5, 2), draw(2, 2), draw(2)), r"rnn_step: h has shape"),
        (
            lambda: ops.lstm_step(draw(3, 5), *[draw(3, 2)] * 2, draw(5, 2), draw(2, 8), draw(8)),
            "lstm_step: wx has shape",
        ),
        (
            lambda: ops.lstm_step(draw(3, 5), *[draw(3, 2)] * 2, draw(5, 8), draw(2, 2), draw(8)),
            "lstm_step: wh has shape",
        ),
        (lambda: ops.word_embedding(draw(3), draw(4, 2)), "ids have dtype float64; they must be integers"),
        (lambda: ops.temporal_affine(draw(3, 4), draw(4, 2), draw(2)), r"x has shape \(3, 4\)"),
        (
            lambda: ops.temporal_softmax_loss(draw(2, 3, 4), jnp.zeros((2, 3), int), jnp.ones((2, 3))),
            "mask has dtype float64; it must be bool",
        ),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
