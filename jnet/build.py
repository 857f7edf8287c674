"""The parts of a run, made of its configuration: data, model, loss, optimizer."""

from __future__ import annotations

from functools import partial

from jnet import augment, data, models, optim
from jnet.adapt import input_layer, mixed_precision
from jnet.config import DEFAULT_WIDTHS, TrainConfig
from jnet.custom_vjp import softmax_cross_entropy
from jnet.data import ChannelStatistics, Dataset
from jnet.layers import Layer, dropout, serial
from jnet.step import Loss, smoothed_cross_entropy


def load_dataset(config: TrainConfig) -> Dataset:
    """The images that `config` names."""
    return data.load(config.data, root=config.data_dir or None, seed=config.seed)


def build_model(config: TrainConfig, num_classes: int, statistics: ChannelStatistics | None = None) -> Layer:
    """The model that `config` names.

    `statistics` are those of the training images. They become a part of the model's state: a model that is to be filled
    from a file needs none.
    """
    layers = list(_network(config, num_classes).children.values())
    if config.dropout_keep < 1 and config.model != "fully_connected_net":
        layers.insert(-1, dropout(config.dropout_keep))
    augmentation = _augmentation(config)
    if config.standardize or augmentation is not None:
        layers.insert(0, input_layer(statistics if config.standardize else None, augmentation))
    model = serial(*layers)
    return mixed_precision(model) if config.precision == "bf16" else model


def build_loss(config: TrainConfig) -> Loss:
    """Softmax cross-entropy, with smoothed labels if `config` asks for it."""
    return smoothed_cross_entropy(config.label_smoothing) if config.label_smoothing else softmax_cross_entropy


def build_schedule(config: TrainConfig, steps: int) -> optim.Schedule:
    """The learning rate of each of an optimizer's `steps`."""
    rate = config.learning_rate
    if config.schedule == "cosine":
        return optim.cosine_schedule(rate, steps, warmup_steps=int(config.warmup * steps))
    if config.schedule == "exponential":
        return optim.exponential_schedule(rate, 0.01, steps)
    if config.schedule == "step":
        return optim.step_schedule(rate, [max(1, steps // 2), max(1, 3 * steps // 4)])
    return optim.constant_schedule(rate)


def build_optimizer(config: TrainConfig, steps: int) -> optim.Optimizer:
    """The optimizer that `config` names with all that stands before and behind it, for a run of `steps` batches."""
    rate = build_schedule(config, max(1, steps // config.accumulate))
    blocks = [] if config.clip is None else [optim.clip_by_global_norm(config.clip)]
    if config.optimizer == "adamw":
        decay = {} if config.weight_decay is None else {"weight_decay": config.weight_decay}
        blocks.append(optim.adamw(rate, mask=optim.decay_weights_only, **decay))
    else:
        if config.weight_decay:
            blocks.append(optim.add_decayed_weights(config.weight_decay, optim.decay_weights_only))
        blocks.append(getattr(optim, config.optimizer)(rate))
    if config.ema is not None:
        blocks.append(optim.ema(config.ema))
    optimizer = blocks[0] if len(blocks) == 1 else optim.chain(*blocks)
    return optimizer if config.accumulate == 1 else optim.accumulate(optimizer, config.accumulate)


def _network(config: TrainConfig, num_classes: int) -> Layer:
    widths = config.widths or DEFAULT_WIDTHS[config.model]
    normalization = {"default": "batchnorm", "none": None}.get(config.normalization, config.normalization)
    if config.model == "fully_connected_net":
        return models.fully_connected_net(widths, num_classes, config.dropout_keep, normalization)
    if config.model == "vgg":
        return models.vgg(widths, num_classes, normalization)
    if config.model == "resnet":
        return models.resnet(widths, num_classes=num_classes)
    return models.three_layer_conv_net(widths[0], hidden_dim=widths[1], num_classes=num_classes)


def _augmentation(config: TrainConfig) -> augment.Augmentation | None:
    changes = []
    if config.augment_crop:
        changes.append(partial(augment.random_crop, padding=config.augment_crop))
    if config.augment_flip:
        changes.append(augment.random_flip)
    if config.augment_cutout:
        changes.append(partial(augment.cutout, size=config.augment_cutout))
    return augment.chain(*changes) if changes else None
