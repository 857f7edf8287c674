"""jnet: neural-network layers in JAX whose gradients are derived by hand.

>>> import jax, jnet
>>> model = jnet.models.fully_connected_net([32], num_classes=10)
>>> state = jnet.train.create_state(model, jnet.optim.adam(1e-3), jax.random.key(0), (28, 28, 1))
>>> images, labels = jax.numpy.ones((8, 28, 28, 1)), jax.numpy.zeros(8, "int32")
>>> step = jnet.train.make_train_step(model, jnet.optim.adam(1e-3))
>>> state, metrics = step(state, (images, labels))

Each module is imported when it is first asked for: the command starts itself a second time, and pays for JAX once.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jnet import custom_vjp, data, formulas, gradcheck, layers, models, optim, reference, train

__all__ = ["custom_vjp", "data", "formulas", "gradcheck", "layers", "models", "optim", "reference", "train"]
__version__ = "0.1.0"


def __getattr__(name: str) -> ModuleType:
    """Import a module of `__all__` at its first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    """List what there is, imported yet or not."""
    return sorted({*globals(), *__all__})
