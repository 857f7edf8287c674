"""The two-layer network of the first assignment until 2020."""

from typing import Any

import numpy as np

from jnet.compat.cs231n.layer_utils import affine_relu_backward, affine_relu_forward
from jnet.compat.cs231n.layers import affine_backward, affine_forward, softmax_loss

__all__ = ["TwoLayerNet"]


class TwoLayerNet:
    """Affine, relu, affine, softmax; `params` W1, b1, W2, b2. Regularised by `reg * sum(W * W)`, without the 1/2."""

    def __init__(self, input_size: int, hidden_size: int, output_size: int, std: float = 1e-4):
        """Draw W1 and W2 at deviation `std`; biases are 0."""
        self.params = {}
        self.params["W1"] = std * np.random.randn(input_size, hidden_size)
        self.params["b1"] = np.zeros(hidden_size)
        self.params["W2"] = std * np.random.randn(hidden_size, output_size)
        self.params["b2"] = np.zeros(output_size)

    def loss(self, X: np.ndarray, y: np.ndarray | None = None, reg: float = 0.0) -> Any:
        """Return the scores `(N, C)` of `X: (N, D)`; with labels `y: (N,)` the loss and a dictionary of gradients."""
        W1, b1, W2, b2 = (self.params[name] for name in ("W1", "b1", "W2", "b2"))
        hidden, hidden_cache = affine_relu_forward(X, W1, b1)
        scores, scores_cache = affine_forward(hidden, W2, b2)
        if y is None:
            return scores
        loss, dscores = softmax_loss(scores, y)
        dhidden, dW2, db2 = affine_backward(dscores, scores_cache)
        _, dW1, db1 = affine_relu_backward(dhidden, hidden_cache)
        loss += reg * (np.sum(W1 * W1) + np.sum(W2 * W2))
        return loss, {"W1": dW1 + 2 * reg * W1, "b1": db1, "W2": dW2 + 2 * reg * W2, "b2": db2}

    def train(
        self,
        X: np.ndarray,
        y: np.ndarray,
        X_val: np.ndarray,
        y_val: np.ndarray,
        learning_rate: float = 1e-3,
        learning_rate_decay: float = 0.95,
        reg: float = 5e-6,
        num_iters: int = 100,
        batch_size: int = 200,
        verbose: bool = False,
    ) -> dict[str, list]:
        """Fit by stochastic gradient descent; return `loss_history`, `train_acc_history`, `val_acc_history`."""
        iterations_per_epoch = max(len(X) // batch_size, 1)
        history = {"loss_history": [], "train_acc_history": [], "val_acc_history": []}
        for iteration in range(num_iters):
            rows = np.random.choice(len(X), batch_size)
            loss, grads = self.loss(X[rows], y[rows], reg=reg)
            history["loss_history"].append(loss)
            for name, grad in grads.items():
                self.params[name] -= learning_rate * grad
            if verbose and iteration % 100 == 0:
                print(f"iteration {iteration} / {num_iters}: loss {loss:f}")
            if iteration % iterations_per_epoch == 0:
                history["train_acc_history"].append(np.mean(self.predict(X[rows]) == y[rows]))
                history["val_acc_history"].append(np.mean(self.predict(X_val) == y_val))
                learning_rate *= learning_rate_decay
        return history

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return the class of the highest score for each row of `X: (N, D)`."""
        return np.argmax(self.loss(X), axis=1)
