"""The multiclass hinge loss of a linear classifier."""

from jnet.compat.cs231n.classifiers.softmax import linear_loss
from jnet.compat.cs231n.layers import svm_loss

__all__ = ["svm_loss_naive", "svm_loss_vectorized"]


def svm_loss_vectorized(W, X, y, reg):
    """Return the mean loss of `X: (N, D)`, `y: (N,)` plus `reg * sum(W * W)`, and its gradient in `W: (D, C)`."""
    return linear_loss(svm_loss, W, X, y, reg)


# The course's naive version differs in its loops alone; there are none here.
svm_loss_naive = svm_loss_vectorized
