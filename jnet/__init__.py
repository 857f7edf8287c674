"""jnet: neural-network layers in JAX whose gradients are derived by hand.

>>> import jax, jnet
>>> model = jnet.models.fully_connected_net([32], num_classes=10)
>>> state = jnet.train.create_state(model, jnet.optim.adam(1e-3), jax.random.key(0), (28, 28, 1))
>>> images, labels = jax.numpy.ones((8, 28, 28, 1)), jax.numpy.zeros(8, "int32")
>>> step = jnet.train.make_train_step(model, jnet.optim.adam(1e-3))
>>> state, metrics = step(state, (images, labels))
"""

from jnet import custom_vjp, formulas, gradcheck, layers, models, optim, reference, train

__all__ = ["custom_vjp", "formulas", "gradcheck", "layers", "models", "optim", "reference", "train"]
__version__ = "0.1.0"
