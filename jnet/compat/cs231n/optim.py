"""The course's update rules: `rule(w, dw, config=None) -> (next_w, config)`.

`config` holds the hyper-parameters and the state of one parameter; missing entries are filled in, and the same
dictionary is returned. Parameters keep their dtype.
"""

from typing import Any

import numpy as np

__all__ = ["adam", "rmsprop", "sgd", "sgd_momentum"]

Config = dict[str, Any]


def sgd(w: np.ndarray, dw: np.ndarray, config: Config | None = None) -> tuple[np.ndarray, Config]:
    """Stochastic gradient descent, `w -= learning_rate * dw`, in place. Defaults: learning_rate 1e-2."""
    config = _with_defaults(config, learning_rate=1e-2)
    w -= float(config["learning_rate"]) * dw
    return w, config


def sgd_momentum(w: np.ndarray, dw: np.ndarray, config: Config | None = None) -> tuple[np.ndarray, Config]:
    """Momentum in velocity form: `v = momentum * v - learning_rate * dw`, `w + v`. Defaults: 1e-2, momentum 0.9."""
    config = _with_defaults(config, learning_rate=1e-2, momentum=0.9, velocity=np.zeros_like(w))
    config["velocity"] = float(config["momentum"]) * config["velocity"] - float(config["learning_rate"]) * dw
    return _updated(w, config["velocity"]), config


def rmsprop(w: np.ndarray, dw: np.ndarray, config: Config | None = None) -> tuple[np.ndarray, Config]:
    """Scale by a running mean of squares, epsilon outside the root. Defaults: 1e-2, decay_rate 0.99, epsilon 1e-8."""
    config = _with_defaults(config, learning_rate=1e-2, decay_rate=0.99, epsilon=1e-8, cache=np.zeros_like(w))
    decay = float(config["decay_rate"])
    config["cache"] = decay * config["cache"] + (1 - decay) * dw**2
    step = float(config["learning_rate"]) * dw / (np.sqrt(config["cache"]) + float(config["epsilon"]))
    return _updated(w, -step), config


def adam(w: np.ndarray, dw: np.ndarray, config: Config | None = None) -> tuple[np.ndarray, Config]:
    """Adam with bias correction, counted from t = 1, epsilon outside the root.

    Defaults: learning_rate 1e-3, beta1 0.9, beta2 0.999, epsilon 1e-8.
    """
    defaults = {"m": np.zeros_like(w), "v": np.zeros_like(w), "t": 0}
    config = _with_defaults(config, learning_rate=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-8, **defaults)
    beta1, beta2 = float(config["beta1"]), float(config["beta2"])
    config["t"] += 1
    config["m"] = beta1 * config["m"] + (1 - beta1) * dw
    config["v"] = beta2 * config["v"] + (1 - beta2) * dw**2
    m = config["m"] / (1 - beta1 ** config["t"])
    v = config["v"] / (1 - beta2 ** config["t"])
    return _updated(w, -float(config["learning_rate"]) * m / (np.sqrt(v) + float(config["epsilon"]))), config


def _with_defaults(config: Config | None, **defaults: Any) -> Config:
    """Fill what is missing into `config` itself (a fresh one where there is none)."""
    config = {} if config is None else config
    for name, value in defaults.items():
        config.setdefault(name, value)
    return config


def _updated(w: np.ndarray, step: np.ndarray) -> np.ndarray:
    return (w + step).astype(w.dtype, copy=False)
