"""Pictures of a run: its learning curves, and the filters of its first layer."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_TRAIN, _VAL = "#4477aa", "#ee6677"  # told apart by colour-blind readers too
MAX_TILES = 64  # filters in a grid; more would be too small to see


def learning_curves(history: Sequence[dict[str, float]], title: str = "") -> Figure:
    """Loss and accuracy of training and validation, by epoch, from the rows of a history."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split, colour in (("train", _TRAIN), ("val", _VAL)):
            values = [row[f"{split}_{name}"] for row in history]
            axes.plot(epochs, values, color=colour, marker="o", markersize=3, label=f"{split} {values[-1]:.3f}")
        axes.set(xlabel="epoch", title=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.suptitle(title)
    return figure


def filter_grid(weights: np.ndarray, title: str = "") -> Figure:
    """Filters `(HH, WW, C, F)` as a grid of at most `MAX_TILES` images, each scaled to its own largest weight.

    Three channels are shown as red, green and blue; of any other number, the mean. Zero is mid-grey.
    """
    tiles = np.moveaxis(np.asarray(weights, np.float64), -1, 0)[:MAX_TILES]
    if tiles.shape[-1] != 3:
        tiles = tiles.mean(axis=-1)
    largest = np.abs(tiles).max(axis=tuple(range(1, tiles.ndim)), keepdims=True)
    tiles = 0.5 + 0.5 * tiles / np.where(largest > 0, largest, 1)
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    figure = Figure(figsize=(0.7 * columns, 0.7 * rows + 0.4), layout="constrained")
    for place, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if place < len(tiles):
            axes.imshow(tiles[place], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    figure.suptitle(title, fontsize="medium")
    return figure


def first_filters(params: Any, input_shape: tuple[int, ...]) -> np.ndarray:
    """The weights of the first layer as filters `(HH, WW, C, F)`.

    Those of an affine layer `(D, M)` are folded back into images of `input_shape`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    weights = np.asarray(next(leaf for path, leaf in leaves if getattr(path[-1], "key", None) == "w"))
    return weights if weights.ndim == 4 else weights.reshape(*input_shape, -1)


def to_png(figure: Figure) -> bytes:
    """`figure` as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
