"""Classification by the labels of the nearest training examples."""

import numpy as np

__all__ = ["KNearestNeighbor"]


class KNearestNeighbor:
    """Remember all training examples; give a test example the commonest label of its k nearest, in L2 distance."""

    def train(self, X: np.ndarray, y: np.ndarray) -> None:
        """Keep the examples `X: (N, D)` and their labels `y: (N,)`."""
        self.X_train, self.y_train = X, y

    def predict(self, X: np.ndarray, k: int = 1, num_loops: int = 0) -> np.ndarray:
        """Return a label for each row of `X: (M, D)`; `num_loops` (0, 1, 2) says how the distances are computed."""
        distances = {
            0: self.compute_distances_no_loops,
            1: self.compute_distances_one_loop,
            2: self.compute_distances_two_loops,
        }
        if num_loops not in distances:
            raise ValueError(f"Invalid value {num_loops:d} for num_loops")
        return self.predict_labels(distances[num_loops](X), k=k)

    def compute_distances_two_loops(self, X: np.ndarray) -> np.ndarray:
        """Return the distances `(M, N)` of the rows of X from the training examples, one pair at a time."""
        X, train = self._both(X)
        distances = [[np.sqrt(np.sum((row - other) ** 2)) for other in train] for row in X]
        return np.array(distances).reshape(len(X), len(train))

    def compute_distances_one_loop(self, X: np.ndarray) -> np.ndarray:
        """Return the distances `(M, N)`, one test example at a time."""
        X, train = self._both(X)
        return np.array([np.sqrt(np.sum((train - row) ** 2, axis=1)) for row in X]).reshape(len(X), len(train))

    def compute_distances_no_loops(self, X: np.ndarray) -> np.ndarray:
        """Return the distances `(M, N)` all at once: |a - b|^2 = |a|^2 - 2 a.b + |b|^2."""
        X, train = self._both(X)
        squares = np.sum(X**2, axis=1)[:, None] - 2 * (X @ train.T) + np.sum(train**2, axis=1)[None]
        return np.sqrt(np.maximum(squares, 0))  # rounding can take the distance of equal rows below 0

    def predict_labels(self, dists: np.ndarray, k: int = 1) -> np.ndarray:
        """Return the commonest label of the k nearest for each row of `dists: (M, N)`; the smallest one on a tie."""
        nearest = np.argsort(dists, axis=1, kind="stable")[:, :k]
        classes, number = np.unique(self.y_train, return_inverse=True)
        votes = np.zeros((len(dists), len(classes)), np.int64)
        np.add.at(votes, (np.arange(len(dists))[:, None], number[nearest]), 1)
        return classes[np.argmax(votes, axis=1)]

    def _both(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Test and training examples as floats: differences of unsigned bytes would wrap."""
        dtype = np.result_type(X, self.X_train)
        dtype = dtype if np.issubdtype(dtype, np.floating) else np.float64
        return np.asarray(X, dtype), np.asarray(self.X_train, dtype)
