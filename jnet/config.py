"""What a run is made of: every option with its default, checked, written to `config.json` and read back.

A configuration is plain data; `jnet.build` makes of it the parts that `jnet.train.fit` takes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from pathlib import Path
from typing import Any, Literal

DataName = Literal["mnist5k", "digits", "cifar10", "shards"]
ModelName = Literal["vgg", "resnet", "three_layer_conv_net", "fully_connected_net"]
Normalization = Literal["default", "none", "batchnorm", "layernorm", "groupnorm"]
Precision = Literal["float32", "bf16"]
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
    """The images to learn: 5,000 of MNIST, scikit-learn's 1,797 digits, CIFAR-10, or shards of one's own."""
    data_dir: str = ""
    """The folder that holds CIFAR-10, in its official binary or Python layout, or shards (jnet.shards)."""
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
    weight_decay: float | None = None
    """Decay of weights, not of biases and scales: decoupled (adamw) or added to the gradient. None: 1e-4 with adamw,
    0 with the others.
    """
    clip: float | None = None
    """Largest Euclidean norm of a step's gradient; longer ones are shrunk to it. None: no limit."""
    accumulate: int = 1
    """Batches whose mean gradient makes one step of the optimizer."""
    ema: float | None = None
    """Decay per step, in (0, 1), of a moving average of the parameters, which is then what is validated and kept."""
    label_smoothing: float = 0.0
    """Share of each label, in [0, 1), that is given to all classes alike."""
    precision: Precision = "float32"
    """Number format of the computation; with bf16 parameters, statistics and losses stay float32."""
    standardize: bool = False
    """Give each channel mean 0 and deviation 1, by the statistics of the training images."""
    augment_crop: int = 0
    """Pixels of padding around a training image before it is cut out again at a random place; 0: none."""
    augment_flip: bool = False
    """Mirror training images left to right at random."""
    augment_cutout: int = 0
    """Side, in pixels, of a square that is blanked at a random place of a training image; 0: none."""
    seed: int = 0
    """Decides the split, the initial parameters, the order of the images, their changes and dropout."""
    save_every: int | None = None
    """Steps between two checkpoints. None: at the end of an epoch, if ten seconds have passed."""
    keep: int = 3
    """Checkpoints to keep, the newest."""
    tensorboard: bool = False
    """Also log to RUN/tensorboard, as event files."""
    norms: bool = False
    """Also log each layer's norms after each epoch, of activations, their gradients and weight gradients: norms.csv."""
    profile: int = 0
    """Steps to trace, from the eleventh on, for Perfetto and TensorBoard: RUN/profile; 0: none."""
    debug_nans: bool = False
    """Name the layer and the pass in which the first value that is not finite appears. Slow."""
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
        for name in ("weight_decay", "clip"):
            value = getattr(self, name)
            fits = value is None or ((value > 0 if name == "clip" else value >= 0) and value < math.inf)
            _require(fits, name, value, "a number above 0, or None" if name == "clip" else "at least 0, or None")
        _require(self.ema is None or 0 < self.ema < 1, "ema", self.ema, "above 0 and below 1, or None")
        _require(0 <= self.label_smoothing < 1, "label-smoothing", self.label_smoothing, "at least 0 and below 1")
        _require(self.accumulate >= 1, "accumulate", self.accumulate, "at least 1")
        for name in ("augment_crop", "augment_cutout", "profile"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        _require(self.seed >= 0, "seed", self.seed, "at least 0")
        _require(self.save_every is None or self.save_every >= 1, "save-every", self.save_every, "at least 1, or None")
        _require(self.keep >= 1, "keep", self.keep, "at least 1")
        _require(self.devices is None or self.devices >= 1, "devices", self.devices, "at least 1, or None")
        _require(self.num_processes >= 1, "num-processes", self.num_processes, "at least 1")
        _check_model_options(self)


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
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)  # int | None
    if typing.get_origin(kind) is tuple and isinstance(value, list) and all(type(item) is int for item in value):
        return tuple(value)
    if float in kinds and type(value) is int:
        return float(value)
    if type(value) in kinds or (typing.get_origin(kind) is Literal and isinstance(value, str)):
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
    if config.data in ("cifar10", "shards"):
        wanted = "the folder that holds CIFAR-10" if config.data == "cifar10" else "the folder of the shards"
        _require(bool(config.data_dir), "data-dir", "not given", wanted)
    else:
        _require(not config.data_dir, "data-dir", config.data_dir, f"left out: {config.data} comes with a package")


def _require(condition: bool, option: str, value: Any, expected: str) -> None:
    if not condition:
        shown = value if isinstance(value, str) else repr(value)
        raise ValueError(f"--{option.replace('_', '-')}: {shown}; must be {expected}")
