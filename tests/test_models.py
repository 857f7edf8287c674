"""Networks: their shape, and the same training on the plain twins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnet import layers, models, optim, reference, train

MODELS = {
    "fully_connected": (models.fully_connected_net([16, 8], 5), (6,)),
    "fully_connected_batchnorm_dropout": (models.fully_connected_net([16, 8], 5, 0.8, "batchnorm"), (4, 3)),
    "fully_connected_layernorm": (models.fully_connected_net([16, 8], 5, normalization="layernorm"), (6,)),
    "three_layer_conv_net": (models.three_layer_conv_net(4, 3, 8, 5), (8, 8, 2)),
    "vgg": (models.vgg((4, 4, 8), 5), (8, 8, 2)),
    "vgg_groupnorm": (models.vgg((4, 8), 5, "groupnorm"), (8, 8, 2)),
    "resnet": (models.resnet((4, 8), 1, 5), (8, 8, 2)),
}


def twenty_losses(model, shape, dtype):
    """Train for 20 steps on batches of noise with random labels."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((20, 12, *shape)), dtype)
    labels = jnp.asarray(rng.integers(0, 5, (20, 12)))
    optimizer = optim.sgd_momentum(0.02)
    state = train.create_state(model, optimizer, jax.random.key(1), shape)
    as_dtype = lambda tree: jax.tree.map(lambda a: a.astype(dtype), tree)  # noqa: E731
    params, model_state = as_dtype(state.params), as_dtype(state.model_state)
    state = state._replace(params=params, model_state=model_state, opt_state=optimizer.init(params))
    step = train.make_train_step(model, optimizer, reg=1e-3)
    losses = []
    for batch in zip(images, labels, strict=True):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses


@pytest.mark.parametrize("name", MODELS)
def test_training_equals_that_of_the_plain_twin(name):
    model, shape = MODELS[name]
    by_hand = twenty_losses(model, shape, jnp.float64)
    by_autodiff = twenty_losses(layers.with_ops(model, reference), shape, jnp.float64)
    np.testing.assert_allclose(by_hand, by_autodiff, rtol=1e-9)
    assert by_hand[0] != by_hand[-1]


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("model", "shape", "parameters"),
    [
        (
            models.fully_connected_net([100] * 4, normalization="batchnorm"),
            (3072,),
            3072 * 100 + 3 * 10000 + 400 + 1010 + 800,
        ),
        (models.three_layer_conv_net(), (32, 32, 3), 7 * 7 * 3 * 32 + 32 + 16 * 16 * 32 * 100 + 100 + 1010),
        (models.vgg((64, 64)), (32, 32, 3), 9 * 3 * 64 + 9 * 64 * 64 + 4 * 64 + 16 * 16 * 64 * 10 + 10),
        (models.resnet((16, 32, 64)), (32, 32, 3), 272474),
    ],
    ids=["fully_connected", "three_layer", "vgg", "resnet20"],
)
def test_parameter_count(model, shape, parameters):
    params = jax.eval_shape(lambda key: model.init(key, shape)[0], jax.random.key(0))
    assert count(params) == parameters
