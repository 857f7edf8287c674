"""Load, blur and normalise images."""

import io
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from jnet.compat.cs231n.fast_layers import conv_forward_fast

__all__ = [
    "SQUEEZENET_MEAN",
    "SQUEEZENET_STD",
    "blur_image",
    "deprocess_image",
    "image_from_url",
    "load_image",
    "preprocess_image",
]

SQUEEZENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
SQUEEZENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def blur_image(X: np.ndarray) -> np.ndarray:
    """Blur images `(N, 3, H, W)` very gently: each channel with a 3x3 filter that is nearly the identity."""
    w = np.zeros((3, 3, 3, 3), X.dtype)
    w[range(3), range(3)] = np.array([[1, 2, 1], [2, 188, 2], [1, 2, 1]]) / 200
    return conv_forward_fast(X, w, np.zeros(3, X.dtype), {"stride": 1, "pad": 1})[0]


def preprocess_image(img: np.ndarray) -> np.ndarray:
    """Bring an image `(..., 3)` of 0 to 255 to SqueezeNet's mean and deviation, float32."""
    return (img.astype(np.float32) / 255 - SQUEEZENET_MEAN) / SQUEEZENET_STD


def deprocess_image(img: np.ndarray, rescale: bool = False) -> np.ndarray:
    """Undo `preprocess_image`, to uint8; `rescale` stretches the values to the whole range first."""
    img = img * SQUEEZENET_STD + SQUEEZENET_MEAN
    if rescale:
        low, high = img.min(), img.max()
        img = (img - low) / (high - low) if high > low else np.zeros_like(img)
    return np.clip(255 * img, 0, 255).astype(np.uint8)


def image_from_url(url: str) -> np.ndarray | None:
    """Read the image at `url` into an array `(H, W, 3)`; print the reason and return None where it cannot be had."""
    try:
        with urllib.request.urlopen(url) as response:
            return read_image(io.BytesIO(response.read()))
    except urllib.error.HTTPError as error:
        print("HTTP Error: ", error.code, url)
    except urllib.error.URLError as error:
        print("URL Error: ", error.reason, url)
    return None


def load_image(filename: str | Path, size: int | None = None) -> np.ndarray:
    """Read an image file; with `size`, the shorter side is brought to it (nearest neighbours)."""
    img = read_image(filename)
    if size is None:
        return img
    from PIL import Image

    height, width = (int(side * size / min(img.shape[:2])) for side in img.shape[:2])
    return np.array(Image.fromarray(img).resize((width, height), resample=Image.Resampling.NEAREST))


def read_image(file: Any) -> np.ndarray:
    """Read an image file or stream as it is stored, `(H, W, C)` or, gray, `(H, W)`, uint8."""
    from PIL import Image  # here: only these functions need it

    with Image.open(file) as image:
        return np.array(image)
