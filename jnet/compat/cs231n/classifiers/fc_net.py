"""Fully connected networks. Exports all layers too: notebooks import nothing else."""

from pathlib import Path
from typing import Any

import numpy as np

from jnet.compat.cs231n import layer_utils, layers
from jnet.compat.cs231n.data_utils import read_object_array
from jnet.compat.cs231n.layer_utils import *  # noqa: F403
from jnet.compat.cs231n.layers import *  # noqa: F403

__all__ = ["FullyConnectedNet", "TwoLayerNet"]
__all__ += layers.__all__
__all__ += layer_utils.__all__

_SAVED = Path(__file__).parent.parent / "saved"


class _Saved:
    """Save and load `params`; a bare file name lies in the folder `saved` of this package."""

    params: dict[str, np.ndarray]

    def save(self, fname: str) -> None:
        """Write the parameters to `fname`."""
        path = _SAVED / fname
        path.parent.mkdir(exist_ok=True)
        np.save(path, np.array(self.params))
        print(fname, "saved.")

    def load(self, fname: str) -> bool:
        """Read the parameters from `fname`; return whether there is such a file."""
        path = _SAVED / fname
        if not path.exists():
            print(fname, "not available.")
            return False
        with path.open("rb") as stream:
            self.params = read_object_array(stream).item()
        print(fname, "loaded.")
        return True


class TwoLayerNet(_Saved):
    """Affine, relu, affine, softmax; `params` W1, b1, W2, b2, drawn at deviation `weight_scale`."""

    def __init__(
        self,
        input_dim: int = 3 * 32 * 32,
        hidden_dim: int = 100,
        num_classes: int = 10,
        weight_scale: float = 1e-3,
        reg: float = 0.0,
    ):
        """Draw W1 and W2 in this order; biases are 0."""
        self.reg = reg
        self.params = {}
        self.params["W1"] = weight_scale * np.random.randn(input_dim, hidden_dim)
        self.params["b1"] = np.zeros(hidden_dim)
        self.params["W2"] = weight_scale * np.random.randn(hidden_dim, num_classes)
        self.params["b2"] = np.zeros(num_classes)

    def loss(self, X: np.ndarray, y: np.ndarray | None = None) -> Any:
        """Return the scores `(N, C)` of `X: (N, d1, ..., dk)`; with labels `y: (N,)` the loss and the gradients."""
        hidden, hidden_cache = layer_utils.affine_relu_forward(X, self.params["W1"], self.params["b1"])
        scores, scores_cache = layers.affine_forward(hidden, self.params["W2"], self.params["b2"])
        if y is None:
            return scores
        loss, dscores = layers.softmax_loss(scores, y)
        dhidden, dW2, db2 = layers.affine_backward(dscores, scores_cache)
        _, dW1, db1 = layer_utils.affine_relu_backward(dhidden, hidden_cache)
        return regularise(loss, {"W1": dW1, "b1": db1, "W2": dW2, "b2": db2}, self.params, self.reg)


class FullyConnectedNet(_Saved):
    """{affine - [batch/layer norm] - relu - [dropout]} x (L - 1) - affine - softmax, L - 1 hidden layers.

    `params`: W1, b1, ... and, with `normalization` "batchnorm" or "layernorm", gamma1, beta1, ... of the hidden layers.
    `dropout_keep_ratio` (called `dropout` until 2020) is the probability of keeping a unit; 1 means no dropout.
    `seed` makes dropout the same on every call.
    """

    def __init__(
        self,
        hidden_dims: list[int],
        input_dim: int = 3 * 32 * 32,
        num_classes: int = 10,
        dropout_keep_ratio: float = 1,
        normalization: str | None = None,
        reg: float = 0.0,
        weight_scale: float = 1e-2,
        dtype: Any = np.float32,
        seed: int | None = None,
        *,
        dropout: float | None = None,
    ):
        """Draw W1, W2, ... in this order at deviation `weight_scale`; scales are 1, biases and shifts 0."""
        keep_ratio = dropout_keep_ratio if dropout is None else dropout
        self.normalization = normalization
        self.use_dropout = keep_ratio != 1
        self.reg = reg
        self.num_layers = 1 + len(hidden_dims)
        self.dtype = dtype
        self.params = {}
        widths = [input_dim, *hidden_dims, num_classes]
        for i in range(1, self.num_layers + 1):
            self.params[f"W{i}"] = weight_scale * np.random.randn(widths[i - 1], widths[i])
            self.params[f"b{i}"] = np.zeros(widths[i])
            if normalization is not None and i < self.num_layers:
                self.params[f"gamma{i}"] = np.ones(widths[i])
                self.params[f"beta{i}"] = np.zeros(widths[i])
        self.params = {name: value.astype(dtype) for name, value in self.params.items()}

        self.dropout_param = {}
        if self.use_dropout:
            self.dropout_param = {"mode": "train", "p": keep_ratio}
            if seed is not None:
                self.dropout_param["seed"] = seed
        self.bn_params = []
        if normalization == "batchnorm":
            self.bn_params = [{"mode": "train"} for _ in range(self.num_layers - 1)]
        if normalization == "layernorm":
            self.bn_params = [{} for _ in range(self.num_layers - 1)]

    def loss(self, X: np.ndarray, y: np.ndarray | None = None) -> Any:
        """Return the scores `(N, C)` of `X: (N, d1, ..., dk)`; with labels `y: (N,)` the loss and the gradients.

        Without labels the network is in test mode: running statistics, no dropout.
        """
        mode = "test" if y is None else "train"
        if self.use_dropout:
            self.dropout_param["mode"] = mode
        if self.normalization == "batchnorm":
            for bn_param in self.bn_params:
                bn_param["mode"] = mode

        hidden, caches = X.astype(self.dtype), []
        for i in range(1, self.num_layers):
            hidden, cache = self._hidden_forward(i, hidden)
            caches.append(cache)
        last = self.num_layers
        scores, scores_cache = layers.affine_forward(hidden, self.params[f"W{last}"], self.params[f"b{last}"])
        if y is None:
            return scores

        loss, dscores = layers.softmax_loss(scores, y)
        grads = {}
        dhidden, grads[f"W{last}"], grads[f"b{last}"] = layers.affine_backward(dscores, scores_cache)
        for i in range(last - 1, 0, -1):
            dhidden, of_layer = self._hidden_backward(dhidden, caches[i - 1])
            grads.update({f"{name}{i}": grad for name, grad in of_layer.items()})
        return regularise(loss, grads, self.params, self.reg)

    def _hidden_forward(self, i: int, x: np.ndarray) -> tuple[np.ndarray, tuple]:
        arrays = [x, self.params[f"W{i}"], self.params[f"b{i}"]]
        if self.normalization is None:
            out, cache = layer_utils.affine_relu_forward(*arrays)
        else:
            forward = _NORMALIZED[self.normalization][0]
            scale_and_shift = self.params[f"gamma{i}"], self.params[f"beta{i}"]
            out, cache = forward(*arrays, *scale_and_shift, self.bn_params[i - 1])
        if not self.use_dropout:
            return out, (cache, None)
        out, dropout_cache = layers.dropout_forward(out, self.dropout_param)
        return out, (cache, dropout_cache)

    def _hidden_backward(self, dout: np.ndarray, cache: tuple) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        cache, dropout_cache = cache
        if dropout_cache is not None:
            dout = layers.dropout_backward(dout, dropout_cache)
        if self.normalization is None:
            backward = layer_utils.affine_relu_backward
        else:
            backward = _NORMALIZED[self.normalization][1]
        dx, *grads = backward(dout, cache)
        return dx, dict(zip(("W", "b", "gamma", "beta"), grads, strict=False))


_NORMALIZED = {
    "batchnorm": (layer_utils.affine_bn_relu_forward, layer_utils.affine_bn_relu_backward),
    "layernorm": (layer_utils.affine_ln_relu_forward, layer_utils.affine_ln_relu_backward),
}


def regularise(loss: Any, grads: dict, params: dict, reg: float) -> tuple[Any, dict]:
    """Add `0.5 * reg * sum(W * W)` of the weights W1, W2, ... to the loss, and its gradient to theirs."""
    for name in grads:
        if name.startswith("W"):
            loss += 0.5 * reg * np.sum(params[name] ** 2)
            grads[name] += reg * params[name]
    return loss, grads
