"""The course's classifiers."""

from jnet.compat.cs231n.classifiers.k_nearest_neighbor import KNearestNeighbor
from jnet.compat.cs231n.classifiers.linear_classifier import LinearClassifier, LinearSVM, Softmax

__all__ = ["KNearestNeighbor", "LinearClassifier", "LinearSVM", "Softmax"]
