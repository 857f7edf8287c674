"""The shapes at which each op is measured: those of the networks in `workloads.py`, and of their larger kin."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jnet.custom_vjp import Maker, key, labels, normal, positive


class Case(NamedTuple):
    """One row of the table: what the op is called with.

    `flops` counts the multiplications and additions of the forward pass where matrix products dominate, else 0;
    a backward pass needs twice as many again. With `auxiliary`, outputs after the first have no gradient in use.
    """

    label: str
    arrays: Mapping[str, Maker | None]
    static: Mapping[str, Any] = {}
    flops: float = 0.0
    auxiliary: bool = False

    def draw(self) -> dict[str, Any]:
        """The arrays: NumPy in float32, integers as they are, random keys; None for an absent bias."""
        rng = np.random.default_rng(0)
        drawn = {name: None if make is None else make(rng) for name, make in self.arrays.items()}
        return {
            name: np.asarray(value, np.float32) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value
            for name, value in drawn.items()
        }


def _label(shape: tuple[int, ...], note: str = "") -> str:
    return "x".join(map(str, shape)) + (f" {note}" if note else "")


def _affine(rows: int, inputs: tuple[int, ...], outputs: int) -> Case:
    size = math.prod(inputs)
    arrays = {"x": normal(rows, *inputs), "w": normal(size, outputs), "b": normal(outputs)}
    return Case(_label((rows, *inputs), f"-> {outputs}"), arrays, flops=2.0 * rows * size * outputs)


def _elementwise(*shape: int) -> Case:
    return Case(_label(shape), {"x": normal(*shape)})


def _norm(*shape: int, groups: int | None = None, auxiliary: bool = False) -> Case:
    arrays = {"x": normal(*shape), "gamma": normal(shape[-1]), "beta": normal(shape[-1])}
    static = {"groups": groups} if groups else {}
    return Case(_label(shape, f"groups {groups}" if groups else ""), arrays, static, auxiliary=auxiliary)


def _inference(*shape: int) -> Case:
    case = _norm(*shape)
    return case._replace(arrays={**case.arrays, "mean": normal(shape[-1]), "var": positive(shape[-1])})


def _dropout(*shape: int) -> Case:
    return Case(_label(shape), {"x": normal(*shape), "key": key()}, {"keep_prob": 0.5})


def _conv(
    images: int,
    size: int,
    channels: int,
    filters: int,
    window: int,
    stride: int = 1,
    *,
    bias: bool = False,
    dilation: int = 1,
    groups: int = 1,
) -> Case:
    static: dict[str, Any] = {"stride": stride, "padding": dilation * (window // 2)}
    static |= {"dilation": dilation} if dilation > 1 else {}
    static |= {"groups": groups} if groups > 1 else {}
    out = (size - 1) // stride + 1
    flops = 2.0 * images * out**2 * window**2 * (channels // groups) * filters
    note = f"-> {filters}, {window}x{window}" + (f"/{stride}" if stride > 1 else "")
    note += (f", dilation {dilation}" if dilation > 1 else "") + (f", {groups} groups" if groups > 1 else "")
    arrays = {
        "x": normal(images, size, size, channels),
        "w": normal(window, window, channels // groups, filters),
        "b": normal(filters) if bias else None,
    }
    return Case(_label((images, size, size, channels), note), arrays, static, flops)


def _with(case: Case, static: Mapping[str, Any] | None = None, **arrays: Maker) -> Case:
    return case._replace(arrays={**case.arrays, **arrays}, static={**case.static, **(static or {})})


def _biased(case: Case) -> Case:
    channels = int(case.label.split()[0].split("x")[-1])
    return _with(case, b=normal(channels))


def _normed(case: Case) -> Case:
    """A convolution of what batchnorm and relu make of its images."""
    channels = int(case.label.split()[0].split("x")[-1])
    return _with(case, gamma=normal(channels), beta=normal(channels))._replace(auxiliary=True)


def _pool(shape: tuple[int, ...], window: int, stride: int, **static: Any) -> Case:
    note = f"{window}x{window}/{stride}" + "".join(f", {name} {value}" for name, value in static.items())
    return Case(_label(shape, note), {"x": normal(*shape)}, {"window": window, "stride": stride, **static})


def _classes(argument: str, rows: int, classes: int) -> Case:
    return Case(_label((rows, classes)), {argument: normal(rows, classes), "labels": labels(rows, classes)})


def _cell(rows: int, inputs: int, units: int, gates: int, steps: int | None = None) -> Case:
    state = {"h": normal(rows, units)} | ({"c": normal(rows, units)} if gates == 4 else {})
    shape = (rows, inputs) if steps is None else (rows, steps, inputs)
    arrays: dict[str, Maker | None] = {"x": normal(*shape)}
    arrays |= state if steps is None else {f"{name}0": make for name, make in state.items()}
    # Small weights keep the states away from saturation, as trained ones do.
    arrays |= {"wx": _scaled(inputs, gates * units), "wh": _scaled(units, gates * units), "b": normal(gates * units)}
    flops = 2.0 * rows * (steps or 1) * (inputs + units) * gates * units
    return Case(_label(shape, f"-> {units}"), arrays, flops=flops)


def _scaled(rows: int, columns: int) -> Maker:
    return lambda rng: rng.standard_normal((rows, columns)) / math.sqrt(rows)


_MAPS = ((64, 32, 32, 64), (64, 16, 16, 128), (64, 8, 8, 256))
_ACTIVATION = (_elementwise(256, 1024), *(_elementwise(*shape) for shape in _MAPS))
_TOKENS = (64, 16)

CASES: dict[str, tuple[Case, ...]] = {
    "affine": (
        _affine(100, (3072,), 100),
        _affine(256, (3072,), 1024),
        _affine(256, (1024,), 1024),
        _affine(100, (16, 16, 32), 100),
        _affine(64, (4, 4, 256), 10),
    ),
    "relu": _ACTIVATION,
    "leaky_relu": _ACTIVATION[:2],
    "sigmoid": _ACTIVATION[:2],
    "tanh": _ACTIVATION[:2],
    "batchnorm": tuple(_norm(*shape, auxiliary=True) for shape in ((100, 100), (256, 1024), *_MAPS, (128, 32, 32, 16))),
    "batchnorm_inference": (_inference(256, 1024), _inference(64, 32, 32, 64)),
    "layernorm": (_norm(512, 256), _norm(4096, 768)),
    "groupnorm": (_norm(64, 32, 32, 64, groups=8), _norm(64, 8, 8, 256, groups=8)),
    "dropout": (_dropout(100, 100), _dropout(256, 1024), _dropout(64, 32, 32, 64)),
    "conv2d": (
        _conv(100, 32, 3, 32, 7, bias=True),
        _conv(64, 32, 3, 64, 3),
        _conv(64, 32, 64, 64, 3),
        _conv(64, 16, 64, 128, 3),
        _conv(64, 16, 128, 128, 3),
        _conv(64, 8, 128, 256, 3),
        _conv(64, 8, 256, 256, 3),
        _conv(128, 32, 3, 16, 3),
        _conv(128, 32, 16, 16, 3),
        _conv(128, 32, 16, 32, 3, 2),
        _conv(128, 16, 32, 32, 3),
        _conv(128, 16, 32, 64, 3, 2),
        _conv(128, 8, 64, 64, 3),
        _conv(128, 32, 16, 32, 1, 2),
        _conv(64, 16, 128, 128, 1),
        _conv(64, 32, 64, 64, 3, groups=64),
        _conv(64, 16, 64, 64, 3, dilation=2),
    ),
    "max_pool2d": (
        _pool((100, 32, 32, 32), 2, 2),
        *(_pool(shape, 2, 2) for shape in _MAPS),
        *(_pool(shape, 3, 2, padding=1) for shape in _MAPS[:2]),
        _pool((64, 16, 16, 128), 3, 1, padding=2, dilation=2),
    ),
    "avg_pool2d": (_pool((64, 32, 32, 64), 2, 2), _pool((64, 32, 32, 64), 3, 2, padding=1)),
    "affine_relu": (_affine(100, (3072,), 100), _affine(256, (1024,), 1024), _affine(100, (16, 16, 32), 100)),
    "bias_relu": tuple(_biased(_elementwise(*shape)) for shape in ((100, 32, 32, 32), _MAPS[1])),
    "bias_relu_max_pool2d": tuple(_biased(_pool(shape, 2, 2)) for shape in ((100, 32, 32, 32), _MAPS[1])),
    "batchnorm_relu": tuple(_norm(*shape, auxiliary=True) for shape in ((100, 100), (256, 1024), *_MAPS)),
    "batchnorm_add_relu": tuple(
        _with(_norm(*shape, auxiliary=True), shortcut=normal(*shape))
        for shape in ((128, 32, 32, 16), (128, 16, 16, 32), (128, 8, 8, 64))
    ),
    "batchnorm_relu_max_pool2d": tuple(
        _with(_norm(*shape, auxiliary=True), {"window": 2, "stride": 2}) for shape in _MAPS
    ),
    "batchnorm_relu_conv2d": tuple(
        _normed(_conv(*sizes, 3))
        for sizes in ((64, 32, 64, 64), (64, 16, 128, 128), (64, 8, 256, 256), (128, 32, 16, 16), (128, 8, 64, 64))
    ),
    "softmax_cross_entropy": (
        _classes("logits", 128, 10),
        _classes("logits", 256, 1000),
        _classes("logits", 512, 32000),
    ),
    "svm_loss": (_classes("scores", 128, 10), _classes("scores", 256, 1000)),
    "rnn_step": (_cell(128, 256, 256, 1),),
    "rnn": (_cell(64, 256, 256, 1, 16),),
    "lstm_step": (_cell(128, 256, 256, 4),),
    "lstm": (_cell(64, 256, 256, 4, 16),),
    "word_embedding": (
        Case("64x16 of 10000x256", {"ids": labels(_TOKENS, 10_000), "w": normal(10_000, 256)}),
        Case("64x16 of 1000x256", {"ids": labels(_TOKENS, 1000), "w": normal(1000, 256)}),
    ),
    "temporal_affine": (
        Case(
            "64x16x256 -> 1000",
            {"x": normal(*_TOKENS, 256), "w": normal(256, 1000), "b": normal(1000)},
            flops=2.0 * 64 * 16 * 256 * 1000,
        ),
    ),
    "temporal_softmax_loss": (
        Case(
            "64x16x1000",
            {
                "logits": normal(*_TOKENS, 1000),
                "labels": labels(_TOKENS, 1000),
                "mask": lambda rng: rng.random(_TOKENS) < 0.8,
            },
        ),
    ),
}
