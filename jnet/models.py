"""Networks: each a few lines of layers that read like their description."""

import math
from collections.abc import Sequence

from jnet.formulas.validate import require
from jnet.layers import (
    Layer,
    affine,
    batchnorm,
    conv2d,
    dropout,
    flatten,
    global_avg_pool,
    groupnorm,
    layernorm,
    max_pool2d,
    relu,
    residual,
    serial,
)

__all__ = ["fully_connected_net", "resnet", "three_layer_conv_net", "vgg"]


def fully_connected_net(
    hidden_dims: Sequence[int],
    num_classes: int = 10,
    dropout_keep_ratio: float = 1.0,
    normalization: str | None = None,
    weight_scale: float | None = None,
) -> Layer:
    """`{affine - [normalization] - relu - [dropout]} x len(hidden_dims) - affine`."""
    layers = []
    for width in hidden_dims:
        layers += [affine(width, weight_scale=weight_scale), *_normalization(normalization, width), relu()]
        layers += [dropout(dropout_keep_ratio)] if dropout_keep_ratio != 1.0 else []
    return serial(*layers, affine(num_classes, weight_scale=weight_scale))


def three_layer_conv_net(
    num_filters: int = 32, filter_size: int = 7, hidden_dim: int = 100, num_classes: int = 10
) -> Layer:
    """`conv - relu - 2x2 max pool - affine - relu - affine`."""
    return serial(
        conv2d(num_filters, filter_size),
        relu(),
        max_pool2d(2),
        flatten(),
        affine(hidden_dim),
        relu(),
        affine(num_classes),
    )


def vgg(widths: Sequence[int], num_classes: int = 10, normalization: str | None = "batchnorm") -> Layer:
    """`conv3x3 - [normalization] - relu` of each width, a 2x2 max pool after every second; then affine.

    Reference: Simonyan & Zisserman 2014, arXiv:1409.1556.
    """
    layers = []
    for position, width in enumerate(widths, start=1):
        layers += [_conv3x3(width, normalization), *_normalization(normalization, width), relu()]
        layers += [max_pool2d(2)] if position % 2 == 0 else []
    return serial(*layers, flatten(), affine(num_classes))


def resnet(widths: Sequence[int], blocks_per_stage: int = 3, num_classes: int = 10) -> Layer:
    """CIFAR ResNet: `conv3x3 - batchnorm - relu`, a stage of basic blocks a width, mean over the image, affine.

    Every stage but the first halves the image. Widths (16, 32, 64) with 3 blocks a stage make ResNet-20.
    Reference: He, Zhang, Ren & Sun 2015, arXiv:1512.03385, section 4.2, with projection shortcuts.
    """
    layers = [_conv3x3(widths[0], "batchnorm"), batchnorm(), relu()]
    for stage, width in enumerate(widths):
        for block in range(blocks_per_stage):
            halves, widens = stage > 0 and block == 0, block == 0 and width != widths[max(stage - 1, 0)]
            layers += [_basic_block(width, stride=2 if halves else 1, project=halves or widens), relu()]
    return serial(*layers, global_avg_pool(), affine(num_classes))


def _basic_block(width: int, stride: int, project: bool) -> Layer:
    """`conv3x3 - batchnorm - relu - conv3x3 - batchnorm`, added to the input or its 1x1 projection."""
    body = serial(_conv3x3(width, "batchnorm", stride), batchnorm(), relu(), _conv3x3(width, "batchnorm"), batchnorm())
    shortcut = serial(conv2d(width, 1, stride, "VALID", use_bias=False), batchnorm()) if project else None
    return residual(body, shortcut)


def _conv3x3(width: int, normalization: str | None, stride: int = 1) -> Layer:
    """Pad by 1; a bias would be undone by the mean that a normalization subtracts."""
    return conv2d(width, 3, stride, padding=1, use_bias=normalization is None)


def _normalization(kind: str | None, width: int) -> list[Layer]:
    """Return the normalization of that name as a list of one layer, or none."""
    kinds = {
        None: [],
        "batchnorm": [batchnorm()],
        "layernorm": [layernorm()],
        "groupnorm": [groupnorm(math.gcd(8, width))],
    }
    require(kind in kinds, f"normalization is {kind!r}; it must be one of {', '.join(map(repr, kinds))}")
    return kinds[kind]
