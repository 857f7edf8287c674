"""Linear classifiers trained by stochastic gradient descent."""

import numpy as np

from jnet.compat.cs231n.classifiers.linear_svm import svm_loss_vectorized
from jnet.compat.cs231n.classifiers.softmax import softmax_loss_vectorized

__all__ = ["LinearClassifier", "LinearSVM", "Softmax"]


class LinearClassifier:
    """Scores `X W`, with `W: (D, C)` drawn at the first `train`; a subclass says what the loss is."""

    def __init__(self):
        """Start without weights."""
        self.W = None

    def train(
        self,
        X: np.ndarray,
        y: np.ndarray,
        learning_rate: float = 1e-3,
        reg: float = 1e-5,
        num_iters: int = 100,
        batch_size: int = 200,
        verbose: bool = False,
    ) -> list[float]:
        """Fit `X: (N, D)`, `y: (N,)` by steps on minibatches drawn with replacement; return the loss of each step."""
        if self.W is None:
            self.W = 0.001 * np.random.randn(X.shape[1], np.max(y) + 1)
        history = []
        for iteration in range(num_iters):
            rows = np.random.choice(len(X), batch_size)
            loss, grad = self.loss(X[rows], y[rows], reg)
            history.append(loss)
            self.W -= learning_rate * grad
            if verbose and iteration % 100 == 0:
                print(f"iteration {iteration} / {num_iters}: loss {loss:f}")
        return history

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return the class of the highest score for each row of `X: (N, D)`."""
        return np.argmax(X @ self.W, axis=1)

    def loss(self, X_batch: np.ndarray, y_batch: np.ndarray, reg: float) -> tuple[float, np.ndarray]:
        """Return the loss and its gradient with respect to W."""
        raise NotImplementedError("a subclass says what the loss is")


class LinearSVM(LinearClassifier):
    """A linear classifier with the multiclass hinge loss."""

    def loss(self, X_batch: np.ndarray, y_batch: np.ndarray, reg: float) -> tuple[float, np.ndarray]:
        """Return the hinge loss and its gradient with respect to W."""
        return svm_loss_vectorized(self.W, X_batch, y_batch, reg)


class Softmax(LinearClassifier):
    """A linear classifier with the softmax cross-entropy loss."""

    def loss(self, X_batch: np.ndarray, y_batch: np.ndarray, reg: float) -> tuple[float, np.ndarray]:
        """Return the cross-entropy and its gradient with respect to W."""
        return softmax_loss_vectorized(self.W, X_batch, y_batch, reg)
