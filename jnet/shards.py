"""Data sets larger than memory: a folder of NumPy files that reads like arrays.

A folder holds `index.json` and, for each piece of each split, a pair of files such as `train-00002-images.npy` and
`train-00002-labels.npy`. Labels are read into memory; images stay on disk until rows of them are asked for. A folder
appears under its name when it is complete, never before.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from jnet.data import Dataset, Split, check_split

_FORMAT = "jnet shards 1"
_SPLITS = ("train", "val", "test")
_OPEN_FILES = 128  # mapped at a time and split: each holds a file descriptor, of which a process has about 1,000
_CHUNK_ROWS = 2048


def write_shards(dataset: Dataset, folder: str | Path, rows_per_shard: int = 10_000) -> None:
    """Write a data set as a new `folder` of shards. Its images may be `np.memmap`: they are read piece by piece.

    Images are kept as bytes where that loses nothing (uint8, or float multiples of 1/255, as CIFAR-10 and MNIST
    are), and otherwise as float32. Raises `ValueError` for data that `check_split` refuses and `FileExistsError` where
    `folder` exists.
    """
    folder = Path(folder)
    partial = folder.with_name(folder.name + ".partial")
    if rows_per_shard < 1:
        raise ValueError(f"rows_per_shard: {rows_per_shard}; must be 1 or more")
    if folder.exists():
        raise FileExistsError(f"{folder}: exists; must be a new folder")
    if partial.exists():
        raise FileExistsError(f"{partial}: left by a writer that was interrupted or still runs; delete it to go on")
    for name in _SPLITS:
        split = getattr(dataset, name)
        check_split(split, dataset.num_classes, name)
        if split.images.shape[1:] != dataset.train.images.shape[1:]:
            shapes = f"{split.images.shape[1:]}; must be as in train, {dataset.train.images.shape[1:]}"
            raise ValueError(f"{name} images: of shape {shapes}")
    dtype = np.uint8 if all(_is_bytes(getattr(dataset, name).images) for name in _SPLITS) else np.float32
    partial.mkdir(parents=True)
    try:
        index = {
            "format": _FORMAT,
            "name": dataset.name,
            "num_classes": dataset.num_classes,
            "image_shape": list(dataset.train.images.shape[1:]),
            "image_dtype": np.dtype(dtype).name,
            "rows_per_shard": rows_per_shard,
            "splits": {
                name: _write_split(getattr(dataset, name), partial, name, rows_per_shard, dtype) for name in _SPLITS
            },
        }
        (partial / "index.json").write_text(json.dumps(index, indent=1) + "\n")
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial)
        raise


def open_shards(folder: str | Path) -> Dataset:
    """A folder of shards as a `Dataset`; `images` are `ShardedImages`, `labels` arrays in memory.

    Every file is looked at, none of the images is read. Raises `FileNotFoundError` for a missing file and `ValueError`
    for one that is damaged: cut short, of another shape or dtype, with labels out of range.
    """
    folder = Path(folder)
    index = _read_index(folder)
    splits = {}
    for name in _SPLITS:
        rows, shape = index["splits"][name]["rows"], tuple(index["image_shape"])
        sizes = _shard_sizes(rows, index["rows_per_shard"])
        stems = [folder / f"{name}-{number:05d}" for number in range(len(sizes))]
        images, labels = [_images(stem) for stem in stems], [_labels(stem) for stem in stems]
        for path, size in zip(images, sizes, strict=True):
            _map(path, (size, *shape), index["image_dtype"])
        kept = [np.array(_map(path, (size,), "int32")) for path, size in zip(labels, sizes, strict=True)]
        lazy = ShardedImages(images, (rows, *shape), index["image_dtype"], index["rows_per_shard"])
        splits[name] = Split(cast(np.ndarray, lazy), np.concatenate(kept))
        check_split(splits[name], index["num_classes"], f"{folder}: {name}")
    return Dataset(**splits, name=index["name"], num_classes=index["num_classes"])


def verify_shards(folder: str | Path) -> None:
    """Read every byte of a folder of shards; raise `ValueError` for the first file that is not as it was written."""
    folder = Path(folder)
    open_shards(folder)
    for name, entry in _read_index(folder)["splits"].items():
        for number, checksums in enumerate(entry["crc32"]):
            stem = folder / f"{name}-{number:05d}"
            for path, written in zip((_images(stem), _labels(stem)), checksums, strict=True):
                found = _checksum(np.load(path, mmap_mode="r", allow_pickle=False))
                if found != written:
                    raise ValueError(f"{path}: damaged (checksum {found}, was {written} when written); write it again")


class ShardedImages:
    """Images on disk that read like a NumPy array `(N, H, W, C)` of float32.

    Indexing by a slice, an integer or an array of integers (of any shape) reads those rows; bytes become `byte / 255`.
    Many threads may read at a time.
    """

    def __init__(self, files: Sequence[Path], shape: tuple[int, ...], stored: str, rows_per_shard: int):
        """`shape` and the `stored` dtype (uint8 or float32) must be those of the files; `open_shards` checks them."""
        self.shape, self.dtype = shape, np.dtype(np.float32)
        self.ndim, self.size, self.itemsize = len(shape), math.prod(shape), self.dtype.itemsize
        self._rows_per_shard = rows_per_shard
        sizes = _shard_sizes(len(self), rows_per_shard)
        self._shard = lru_cache(_OPEN_FILES)(lambda number: _map(files[number], (sizes[number], *shape[1:]), stored))

    def __len__(self) -> int:
        """The number of images."""
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Read rows, in the order asked for."""
        rows = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows)
        if not np.issubdtype(rows.dtype, np.integer):
            raise IndexError(f"images: indexed by {rows.dtype}; must be a slice or integers")
        flat = rows.ravel()
        if flat.size and not -len(self) <= flat.min() <= flat.max() < len(self):
            raise IndexError(f"images: row {flat.min()} or {flat.max()} is not one of the {len(self)} rows")
        flat = np.where(flat < 0, flat + len(self), flat)
        numbers, inside = np.divmod(flat, self._rows_per_shard)
        out = np.empty((len(flat), *self.shape[1:]), self.dtype)
        for number in np.unique(numbers):
            here = np.flatnonzero(numbers == number)
            out[here] = _to_float(self._shard(int(number))[inside[here]])
        return out.reshape(*rows.shape, *self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All rows, in memory."""
        return self[:].astype(dtype or self.dtype, copy=False)


def _to_float(images: np.ndarray) -> np.ndarray:
    return np.divide(images, np.float32(255), dtype=np.float32) if images.dtype == np.uint8 else images


def _to_bytes(images: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)


def _is_bytes(images: np.ndarray) -> bool:
    """Whether bytes hold these images without loss."""
    pieces = (images[first : first + _CHUNK_ROWS] for first in range(0, len(images), _CHUNK_ROWS))
    return images.dtype == np.uint8 or all(np.array_equal(_to_float(_to_bytes(piece)), piece) for piece in pieces)


def _write_split(split: Split, folder: Path, name: str, rows_per_shard: int, dtype: Any) -> dict[str, Any]:
    """Write one split; returns its entry in the index."""
    checksums = []
    for number, first in enumerate(range(0, len(split.labels), rows_per_shard)):
        images = split.images[first : first + rows_per_shard]
        if dtype == np.uint8 and images.dtype != np.uint8:
            images = _to_bytes(images)
        images = np.ascontiguousarray(_to_float(images) if dtype == np.float32 else images, dtype)
        labels = np.ascontiguousarray(split.labels[first : first + rows_per_shard], np.int32)
        stem = folder / f"{name}-{number:05d}"
        np.save(_images(stem), images)
        np.save(_labels(stem), labels)
        checksums.append([_checksum(images), _checksum(labels)])
    return {"rows": len(split.labels), "crc32": checksums}


def _images(stem: Path) -> Path:
    return stem.with_name(stem.name + "-images.npy")


def _labels(stem: Path) -> Path:
    return stem.with_name(stem.name + "-labels.npy")


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(array.data)


def _shard_sizes(rows: int, rows_per_shard: int) -> list[int]:
    return [min(rows_per_shard, rows - first) for first in range(0, rows, rows_per_shard)]


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / "index.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; must be in a folder that jnet.shards.write_shards has written")
    try:
        index = json.loads(path.read_bytes())
        if index["format"] != _FORMAT:
            raise ValueError(f"format {index['format']!r}, must be {_FORMAT!r}")
        numbers = [index["num_classes"], index["rows_per_shard"], *index["image_shape"]]
        numbers += [index["splits"][name]["rows"] for name in _SPLITS]
        if not all(type(number) is int and number > 0 for number in numbers):
            raise ValueError("a size that is not a positive integer")
        for name in _SPLITS:
            shards = len(_shard_sizes(index["splits"][name]["rows"], index["rows_per_shard"]))
            if len(index["splits"][name]["crc32"]) != shards:
                raise ValueError(f"not one pair of checksums for each of the {shards} shards of {name}")
        if index["image_dtype"] not in ("uint8", "float32"):
            raise ValueError(f"image_dtype {index['image_dtype']!r}, must be 'uint8' or 'float32'")
    except (ValueError, KeyError, TypeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{path}: damaged ({reason}); must be as write_shards wrote it: write the shards again"
        ) from None
    return index


def _map(path: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Map a file into memory after a look at its header."""
    expected = f"must be {dtype} of shape {shape}; write the shards again"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {expected}")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: damaged ({' '.join(str(error).split())}); {expected}") from None
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"{path}: damaged ({array.dtype} of shape {array.shape}); {expected}")
    return array
