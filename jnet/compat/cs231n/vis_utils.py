"""Grids of images."""

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["vis_grid", "vis_nn", "visualize_grid"]


def visualize_grid(Xs: np.ndarray, ubound: float = 255.0, padding: int = 1) -> np.ndarray:
    """Lay images `(N, H, W, C)` out in a square grid, `padding` black pixels apart, each stretched to [0, ubound].

    A constant image becomes 0.
    """
    number, height, width, channels = Xs.shape
    side = math.ceil(math.sqrt(number))
    rows, columns = (side * (size + padding) - padding for size in (height, width))
    grid = np.zeros((max(rows, 0), max(columns, 0), channels))
    for index, image in enumerate(Xs):
        top, left = (index // side) * (height + padding), (index % side) * (width + padding)
        grid[top : top + height, left : left + width] = ubound * _stretched(image)
    return grid


def vis_grid(Xs: np.ndarray) -> np.ndarray:
    """Lay images `(N, H, W, C)` out in a square grid, one pixel apart, all stretched together to [0, 1]."""
    side = math.ceil(math.sqrt(len(Xs)))
    rows = [Xs[start : start + side] for start in range(0, len(Xs), side)]
    return _stretched(_tiled(rows, side, side, Xs.min()))


def vis_nn(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Lay out rows of images `(H, W, C)`, one pixel apart, all stretched together to [0, 1]."""
    return _stretched(_tiled(rows, len(rows), len(rows[0]), 1))


def _tiled(rows: Sequence, down: int, across: int, blank: float) -> np.ndarray:
    height, width, channels = rows[0][0].shape
    grid = np.full((down * (height + 1), across * (width + 1), channels), blank, np.asarray(rows[0][0]).dtype)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            grid[y * (height + 1) :, x * (width + 1) :][:height, :width] = image
    return grid


def _stretched(image: np.ndarray) -> np.ndarray:
    """Map [min, max] to [0, 1]; all zeros where they are the same."""
    low, high = np.min(image), np.max(image)
    return (image - low) / (high - low) if high > low else np.zeros(image.shape)
