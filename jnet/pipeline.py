"""Batches read ahead by threads, from memory or from shards, through an iterator that can be saved: grain.

The batches are those of `jnet.data.minibatches`, bit for bit, one epoch after the other; so a run may change from data
in memory to data on disk, or stop and go on anywhere, and see the same images in the same order.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from jnet.data import Split, epoch_order

try:
    import grain
except ImportError:
    raise ModuleNotFoundError(
        'grain: not installed, and the pipeline runs on it; pip install "jnet[pipeline]"'
    ) from None

Batch = tuple[np.ndarray, np.ndarray]


class Batches(grain.DatasetIterator[Batch]):
    """Iterator over `(images, labels)`; `get_state` and `set_state` exchange a small dict that JSON can hold.

    It is a `grain.DatasetIterator`: Orbax saves it through `grain.checkpoint.CheckpointSave`.
    """

    def __init__(self, parent: grain.DatasetIterator[Batch], run: dict[str, int]):
        """`run` is what decides the order of the rows."""
        super().__init__(parent)
        self._source, self._run = parent, run

    def __next__(self) -> Batch:
        """The next batch."""
        return next(self._source)

    def get_state(self) -> dict[str, int]:
        """The number of the next batch, and what decides the order of the rows."""
        return {**self._source.get_state(), **self._run}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on where `get_state` was called. Raises `ValueError` if that run had another order of rows."""
        differ = [
            f"{name} {state.get(name)}, here {value}" for name, value in self._run.items() if state.get(name) != value
        ]
        if differ:
            raise ValueError(
                f"state: of another run ({'; '.join(differ)}); must be of the same data, seed and batch size"
            )
        self._source.set_state({"next_index": state["next_index"]})


def batches(
    split: Split, batch_size: int, *, seed: int = 0, epochs: int = 1, threads: int = 2, ahead: int = 4
) -> Batches:
    """Shuffled batches of `epochs` epochs, `len(split) // batch_size` in each.

    `threads` read up to `ahead` batches before they are asked for; `split` may hold arrays or `ShardedImages`.
    Raises `ValueError` if `batch_size`, `epochs`, `threads` or `ahead` is out of range.

    >>> from jnet import data
    >>> iterator = batches(data.load("digits").train, 500, epochs=2)
    >>> images, labels = next(iterator)
    >>> images.shape, iterator.get_state()
    ((500, 8, 8, 1), {'next_index': 1, 'rows': 1437, 'batch_size': 500, 'seed': 0})
    """
    rows = len(split.labels)
    if not 1 <= batch_size <= rows:
        raise ValueError(f"batch_size: {batch_size}; must be from 1 to the number of images, {rows}")
    for name, value in {"epochs": epochs, "threads": threads, "ahead": ahead}.items():
        if value < 1:
            raise ValueError(f"{name}: {value}; must be 1 or more")
    steps = rows // batch_size
    order = lru_cache(2)(lambda epoch: epoch_order(rows, seed, epoch))

    def read(step: int) -> Batch:
        epoch, batch = divmod(step, steps)
        index = order(epoch)[batch * batch_size : (batch + 1) * batch_size]
        return split.images[index], split.labels[index]

    options = grain.ReadOptions(num_threads=min(threads, ahead), prefetch_buffer_size=ahead)
    read_ahead = grain.MapDataset.range(epochs * steps).map(read).to_iter_dataset(options)
    return Batches(iter(read_ahead), {"rows": rows, "batch_size": batch_size, "seed": seed})
