"""What Python costs in `jnet.train.fit`: fc-small, scanned, on images that fit in memory.

    python -m benchmarks fit

XLA computes on threads of its own, so the processor time of the main thread is Python's: cutting batches, calling,
counting, validating; it does not grow while the thread waits. It is taken from the end of one epoch to the end of the
next, in one run, without the first epochs, which compile.
"""

import time
from typing import Any, Literal

import numpy as np

from benchmarks import results
from benchmarks.measure import ALLOCATORS, Worker, setting, summarise
from benchmarks.tables import grid, number, show
from benchmarks.workloads import CLASSES, LEARNING_RATE, WORKLOADS

STEPS = 40  # in an epoch
WARM, EPOCHS = 2, 20  # epochs before those that count, and those
GROUP = ("device", "allocator")
PATH = results.FOLDER / "fit.csv"


class Fit:
    """Runs `fit` for so many epochs; lives in a process of its own."""

    def __init__(self):
        from benchmarks.contenders.jnet_steps import network
        from jnet import data, optim

        workload = WORKLOADS["fc-small"]
        rng = np.random.default_rng(0)

        def split(images: int) -> data.Split:
            shape = (images, *workload.input_shape)
            labels = rng.integers(0, CLASSES, images).astype(np.int32)
            return data.Split(rng.standard_normal(shape, dtype=np.float32), labels)

        rows = STEPS * workload.batch
        self._dataset = data.Dataset(split(rows), split(100), split(100), "noise", CLASSES)
        self._model, self._optimizer, self._batch = network(workload), optim.adam(LEARNING_RATE), workload.batch

    def run(self, epochs: int) -> tuple[float, float]:
        """Seconds a step on the clock, and of the main thread, over the last `epochs` of a run."""
        from jnet import train

        ends: list[tuple[float, float]] = []

        def note(report: train.Report) -> None:
            if report.finished:
                ends.append((time.perf_counter(), time.thread_time()))

        epochs += WARM
        train.fit(self._model, self._dataset, self._optimizer, epochs=epochs, batch_size=self._batch, report=note)
        (clock, thread), (last_clock, last_thread) = ends[WARM - 1], ends[-1]
        steps = (epochs - WARM) * STEPS
        return (last_clock - clock) / steps, (last_thread - thread) / steps


def main(
    allocator: tuple[Literal["default", "tuned"], ...] = ("default", "tuned"), repeat: int = 5, save: bool = False
) -> None:
    """Time fit, and Python's share of it.

    Args:
        allocator: the system's malloc as it is, or told to keep its memory.
        repeat: how many runs are made, of which the median counts.
        save: put the rows into benchmarks/results/fit.csv.
    """
    rows: list[dict[str, Any]] = []
    for regime in allocator:
        worker = Worker(Fit, env=ALLOCATORS[regime])
        clocks, threads = zip(*(worker.call("run", EPOCHS) for _ in range(repeat)), strict=True)
        worker.close()
        clock, python = summarise(list(clocks)).p50, summarise(list(threads)).p50
        rows.append({"allocator": regime, "step_ms": 1e3 * clock, "python_ms": 1e3 * python, **setting()})
    lines = [(row["allocator"], number(row["step_ms"], 3), number(row["python_ms"], 4)) for row in rows]
    show(grid("fit, fc-small, scanned", ("allocator", "ms a step", "of it Python"), lines))
    if save:
        results.save(PATH, rows, GROUP)
