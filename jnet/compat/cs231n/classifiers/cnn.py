"""The three-layer convolutional network. Exports all layers too: notebooks import nothing else."""

from typing import Any

import numpy as np

from jnet.compat.cs231n import fast_layers, layer_utils, layers
from jnet.compat.cs231n.classifiers.fc_net import regularise
from jnet.compat.cs231n.fast_layers import *  # noqa: F403
from jnet.compat.cs231n.layer_utils import *  # noqa: F403
from jnet.compat.cs231n.layers import *  # noqa: F403

__all__ = ["ThreeLayerConvNet"]
__all__ += layers.__all__
__all__ += layer_utils.__all__
__all__ += fast_layers.__all__


class ThreeLayerConvNet:
    """Convolution (stride 1, same size), relu, 2x2 max-pool, affine, relu, affine, softmax; images `(N, C, H, W)`.

    `params`: W1 `(F, C, filter_size, filter_size)`, b1, W2 `(F * H/2 * W/2, hidden)`, b2, W3, b3. `reg` may be set
    at any time.
    """

    def __init__(
        self,
        input_dim: tuple[int, int, int] = (3, 32, 32),
        num_filters: int = 32,
        filter_size: int = 7,
        hidden_dim: int = 100,
        num_classes: int = 10,
        weight_scale: float = 1e-3,
        reg: float = 0.0,
        dtype: Any = np.float32,
    ):
        """Draw W1, W2, W3 in this order at deviation `weight_scale`; biases are 0."""
        channels, height, width = input_dim
        self.reg = reg
        self.dtype = dtype
        params = {}
        params["W1"] = weight_scale * np.random.randn(num_filters, channels, filter_size, filter_size)
        params["b1"] = np.zeros(num_filters)
        params["W2"] = weight_scale * np.random.randn(num_filters * (height // 2) * (width // 2), hidden_dim)
        params["b2"] = np.zeros(hidden_dim)
        params["W3"] = weight_scale * np.random.randn(hidden_dim, num_classes)
        params["b3"] = np.zeros(num_classes)
        self.params = {name: value.astype(dtype) for name, value in params.items()}

    def loss(self, X: np.ndarray, y: np.ndarray | None = None) -> Any:
        """Return the scores `(N, classes)` of `X: (N, C, H, W)`; with labels `y: (N,)` the loss and the gradients."""
        W1, b1, W2, b2, W3, b3 = (self.params[name] for name in ("W1", "b1", "W2", "b2", "W3", "b3"))
        conv_param = {"stride": 1, "pad": (W1.shape[2] - 1) // 2}
        pool_param = {"pool_height": 2, "pool_width": 2, "stride": 2}
        pooled, conv_cache = layer_utils.conv_relu_pool_forward(X.astype(self.dtype), W1, b1, conv_param, pool_param)
        hidden, hidden_cache = layer_utils.affine_relu_forward(pooled, W2, b2)
        scores, scores_cache = layers.affine_forward(hidden, W3, b3)
        if y is None:
            return scores
        grads = {}
        loss, dscores = layers.softmax_loss(scores, y)
        dhidden, grads["W3"], grads["b3"] = layers.affine_backward(dscores, scores_cache)
        dpooled, grads["W2"], grads["b2"] = layer_utils.affine_relu_backward(dhidden, hidden_cache)
        _, grads["W1"], grads["b1"] = layer_utils.conv_relu_pool_backward(dpooled, conv_cache)
        return regularise(loss, grads, self.params, self.reg)
