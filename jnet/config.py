"""What a run is made of: every option with its default, checked, written to `config.json` and read back.

A configuration is plain data. `build_model`, `build_optimizer` and `load_dataset` turn it into the parts that
`jnet.train.fit` takes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from pathlib import Path
from typing import Any, Literal

from jnet import data, models, optim
from jnet.data import Dataset
from jnet.layers import Layer, dropout, serial

DataName = Literal["mnist5k", "digits", "cifar10"]
ModelName = Literal["vgg", "resnet", "three_layer_conv_net", "fully_connected_net"]
Normalization = Literal["default", "none", "batchnorm", "layernorm", "groupnorm"]
OptimizerName = Literal["sgd", "sgd_momentum", "rmsprop", "adam", "adamw"]
ScheduleName = Literal["constant", "cosine", "exponential", "step"]

# Options of the machine, not of the result: a run can be gone on with on other devices.
MACHINE_OPTIONS = ("devices", "shard_params", "coordinator", "num_processes")

DEFAULT_WIDTHS: dict[str, tuple[int, ...]] = {
    "vgg": (32, 32, 64, 64),
    "resnet": (16, 32, 64),
    "three_layer_conv_net": (32, 100),
    "fully_connected_net": (100, 100),
}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The options of `jnet train` that decide what a run computes."""

    data: DataName = "mnist5k"
    """The images to learn: 5,000 of MNIST, scikit-learn's 1,797 digits, or CIFAR-10 from --data-dir."""
    data_dir: str = ""
    """The folder that holds CIFAR-10, in its official binary or Python layout."""
    model: ModelName = "vgg"
    """The network."""
    widths: tuple[int, ...] = ()
    """Channels of the network's layers: of each convolution (vgg), each stage (resnet), filters and hidden units
    (three_layer_conv_net), each hidden layer (fully_connected_net). Left out: 32 32 64 64; 16 32 64; 32 100; 100 100.
    """
    normalization: Normalization = "default"
    """Between each layer and its relu. default: batchnorm, and none in three_layer_conv_net."""
    dropout_keep: float = 1.0
    """Probability of keeping a unit, in (0, 1]: after each relu (fully_connected_net) or before the last layer."""
    optimizer: OptimizerName = "adam"
    """The rule that turns gradients into steps."""
    learning_rate: float = 4e-3
    """Highest learning rate."""
    schedule: ScheduleName = "cosine"
    """How the rate falls: not at all, half a cosine to 0, to a hundredth exponentially, by 10 at 1/2 and at 3/4."""
    warmup: float = 0.1
    """Share of the steps, in [0, 1), over which a cosine schedule first rises from 0 to the learning rate."""
    epochs: int = 8
    """Passes over the training images."""
    batch_size: int = 50
    """Images in a step."""
    reg: float = 0.0
    """L2 strength: 0.5 * reg * sum(w**2) over weights is added to the loss."""
    seed: int = 0
    """Decides the split, the initial parameters, the order of the images and dropout."""
    save_every: int | None = None
    """Steps between two checkpoints. None: at the end of an epoch, if ten seconds have passed."""
    keep: int = 3
    """Checkpoints to keep, the newest."""
    devices: int | None = None
    """Devices of this process that share each batch; on a CPU so many are made. None: all there are, one on a CPU."""
    shard_params: bool = False
    """Cut parameters and optimizer state into a part a device, instead of a copy on each."""
    coordinator: str | None = None
    """HOST:PORT of process 0, the same for all, where several processes train together."""
    num_processes: int = 1
    """Processes that train together; each is started with the same options but --process-id."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for a value out of range: one line with the option, what it was, what it must be."""
        _check_choices(self)
        for width in self.widths:
            _require(width >= 1, "widths", self.widths, "whole numbers of at least 1")
        _require(0 < self.dropout_keep <= 1, "dropout-keep", self.dropout_keep, "above 0 and at most 1")
        _require(0 < self.learning_rate < math.inf, "learning-rate", self.learning_rate, "a number above 0")
        _require(0 <= self.warmup < 1, "warmup", self.warmup, "at least 0 and below 1")
        _require(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        _require(self.batch_size >= 1, "batch-size", self.batch_size, "at least 1")
        _require(0 <= self.reg < math.inf, "reg", self.reg, "a number of at least 0")
        _require(self.seed >= 0, "seed", self.seed, "at least 0")
        _require(self.save_every is None or self.save_every >= 1, "save-every", self.save_every, "at least 1, or None")
        _require(self.keep >= 1, "keep", self.keep, "at least 1")
        _require(self.devices is None or self.devices >= 1, "devices", self.devices, "at least 1, or None")
        _require(self.num_processes >= 1, "num-processes", self.num_processes, "at least 1")
        _check_model_options(self)


def load_dataset(config: TrainConfig) -> Dataset:
    """The images that `config` names."""
    return data.load(config.data, root=config.data_dir or None, seed=config.seed)


def build_model(config: TrainConfig, num_classes: int) -> Layer:
    """The network that `config` names."""
    widths = config.widths or DEFAULT_WIDTHS[config.model]
    normalization = {"default": "batchnorm", "none": None}.get(config.normalization, config.normalization)
    if config.model == "fully_connected_net":
        return models.fully_connected_net(
            list(widths), num_classes, dropout_keep_ratio=config.dropout_keep, normalization=normalization
        )
    if config.model == "vgg":
        model = models.vgg(widths, num_classes, normalization=normalization)
    elif config.model == "resnet":
        model = models.resnet(widths, num_classes=num_classes)
    else:
        model = models.three_layer_conv_net(widths[0], hidden_dim=widths[1], num_classes=num_classes)
    if config.dropout_keep < 1:
        *features, classifier = model.children.values()
        return serial(*features, dropout(config.dropout_keep), classifier)
    return model


def build_schedule(config: TrainConfig, steps: int) -> optim.Schedule:
    """The learning rate of each of a run's `steps`."""
    rate = config.learning_rate
    if config.schedule == "cosine":
        return optim.cosine_schedule(rate, steps, warmup_steps=int(config.warmup * steps))
    if config.schedule == "exponential":
        return optim.exponential_schedule(rate, 0.01, steps)
    if config.schedule == "step":
        return optim.step_schedule(rate, [max(1, steps // 2), max(1, 3 * steps // 4)])
    return optim.constant_schedule(rate)


def build_optimizer(config: TrainConfig, steps: int) -> optim.Optimizer:
    """The optimizer that `config` names, for a run of `steps`."""
    return getattr(optim, config.optimizer)(build_schedule(config, steps))


def to_json(config: TrainConfig) -> str:
    """`config` as the text of `config.json`: every option, defaults too."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def read_json(path: Path) -> TrainConfig:
    """The configuration in a file that `to_json` wrote; options that it does not name have their defaults.

    Raises `FileNotFoundError` or `ValueError`, one line that names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; must be the config.json of a run")
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); must be the config.json of a run") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a {type(values).__name__}; must be an object of options")
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    unknown = sorted(values.keys() - known)
    if unknown:
        raise ValueError(f"{path}: unknown option {unknown[0]!r}; must be one of {', '.join(sorted(known))}")
    try:
        return TrainConfig(**{name: _typed(name, value) for name, value in values.items()})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _typed(name: str, value: Any) -> Any:
    """A value from JSON in the type of its option; JSON has no tuples, and 1 is a float there too."""
    kind = typing.get_type_hints(TrainConfig)[name]
    if typing.get_origin(kind) is tuple and isinstance(value, list) and all(type(item) is int for item in value):
        return tuple(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) in (str if typing.get_origin(kind) is Literal else kind, *typing.get_args(kind)):
        return value
    expected = getattr(kind, "__name__", str(kind))
    raise ValueError(f"--{name.replace('_', '-')}: {value!r}; must be {expected}")


def _check_choices(config: TrainConfig) -> None:
    for name, kind in typing.get_type_hints(type(config)).items():
        if typing.get_origin(kind) is Literal:
            choices = typing.get_args(kind)
            _require(getattr(config, name) in choices, name, getattr(config, name), f"one of {', '.join(choices)}")


def _check_model_options(config: TrainConfig) -> None:
    """Options that the chosen model, or data set, does not have are refused, not ignored."""
    if config.model == "three_layer_conv_net":
        _require(len(config.widths) in (0, 2), "widths", config.widths, "two for three_layer_conv_net: filters, hidden")
        fits = config.normalization in ("default", "none")
        _require(
            fits, "normalization", config.normalization, "none for three_layer_conv_net, which has no place for it"
        )
    if config.model == "resnet":
        fits = config.normalization in ("default", "batchnorm")
        _require(fits, "normalization", config.normalization, "batchnorm for resnet")
    if config.data == "cifar10":
        _require(bool(config.data_dir), "data-dir", "not given", "the folder that holds CIFAR-10")
    else:
        _require(not config.data_dir, "data-dir", config.data_dir, f"left out: {config.data} comes with a package")


def _require(condition: bool, option: str, value: Any, expected: str) -> None:
    if not condition:
        shown = value if isinstance(value, str) else repr(value)
        raise ValueError(f"--{option}: {shown}; must be {expected}")
