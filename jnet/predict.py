"""The classes of images from anywhere, by a finished run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from jnet import runs

CLASS_NAMES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}


def predict(folder: Path, images: Sequence[Path], top: int) -> Iterator[str]:
    """A line for each image: its file, then the `top` most probable classes."""
    run = runs.load(folder)
    pixels = np.stack([read_image(path, run.input_shape) for path in images])
    logits, _ = run.model.apply(run.params, run.model_state, pixels)
    names = CLASS_NAMES.get(run.config.data, tuple(str(label) for label in range(run.num_classes)))
    for path, row in zip(images, np.asarray(jax.nn.softmax(logits)), strict=True):
        best = np.argsort(-row, kind="stable")[:top]
        yield f"{path}: " + ", ".join(f"{names[label]} {row[label]:.1%}" for label in best)


def read_image(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """An image file as float32 in [0, 1] of `shape` (H, W, C): scaled to it, grey where it has one channel.

    Raises `FileNotFoundError`, or `ValueError` for a file that holds no image.
    """
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; must be an image")
    height, width, channels = shape
    try:
        with Image.open(path) as image:
            scaled = image.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BILINEAR)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(
            f"{path}: not an image that can be read ({type(error).__name__}); must be PNG, JPEG ..."
        ) from None
    return (np.asarray(scaled, np.float32) / 255).reshape(shape)
