"""Run a network that `jnet export RUN --format stablehlo` wrote. It needs jax and NumPy; jnet is not needed.

    python examples/load_stablehlo.py net.stablehlo images.npy

`images.npy` holds float32 images (batch, H, W, C), prepared as in training, in a batch of any size. Prints the class of
each, a line an image, with its probability.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from jax import export


def main(network: str, images: str) -> list[int]:
    scores = export.deserialize(bytearray(Path(network).read_bytes())).call(np.load(images))
    probabilities = np.asarray(jax.nn.softmax(scores))
    classes = probabilities.argmax(axis=1).tolist()
    for label, row in zip(classes, probabilities, strict=True):
        print(f"{label} {row[label]:.4f}")
    return classes


if __name__ == "__main__":
    main(*sys.argv[1:])
