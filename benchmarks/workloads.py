"""The networks that are trained, described once for every library that trains them."""

from typing import NamedTuple

import numpy as np

CLASSES = 10
KEEP = 0.5  # dropout's probability of keeping a unit
LEARNING_RATE = 1e-4  # small, so that the loss falls from the first step on
MOMENTUM = 0.9  # of the running statistics: running = 0.9 running + 0.1 batch


class Workload(NamedTuple):
    """A network, its sizes and its batch; trained with Adam in float32 on one fixed batch.

    `network` is one of

    - `fc`: {affine - batchnorm - relu - dropout} for each width, then affine;
    - `three_layer`: conv 7x7 - relu - pool 2x2 - affine - relu - affine, `widths` = (filters, hidden);
    - `vgg`: conv 3x3 - batchnorm - relu for each width, a 2x2 pool after every second; affine;
    - `resnet`: CIFAR ResNet, `depth` basic blocks a stage, a stage for each width; global mean; affine.
    """

    network: str
    widths: tuple[int, ...]
    batch: int
    input_shape: tuple[int, ...] = (32, 32, 3)
    depth: int = 3


WORKLOADS = {
    "fc-small": Workload("fc", (100,) * 4, 100, (3072,)),
    "fc-large": Workload("fc", (1024,) * 4, 256, (3072,)),
    "three-layer": Workload("three_layer", (32, 100), 100),
    "vgg": Workload("vgg", (64, 64, 128, 128, 256, 256), 64),
    "resnet": Workload("resnet", (16, 32, 64), 128),
}


def checked(workload: Workload) -> int:
    """How many first steps must lower the loss: its mean over the last half of them is below that over the first.

    Dropout makes a loss noisy, and small networks can afford to average it.
    """
    return 48 if workload.network == "fc" else 8


def batch(workload: Workload) -> tuple[np.ndarray, np.ndarray]:
    """Images (batch, ...) float32 with channels last, labels (batch,) int32."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((workload.batch, *workload.input_shape), dtype=np.float32)
    return images, rng.integers(0, CLASSES, workload.batch).astype(np.int32)
