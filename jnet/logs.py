"""What a run writes while it trains: metrics.csv, and on request layer norms, TensorBoard events and a profile."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jnet.build import build_loss, build_schedule
from jnet.config import TrainConfig
from jnet.data import Dataset
from jnet.layers import Layer
from jnet.progress import Report

PROFILE_AFTER = 10  # steps: the first ones compile
NORM_IMAGES = 50  # of the training split, the same ones each time

Log = Callable[[Report], None]


def check_installed(config: TrainConfig) -> None:
    """Raise `ImportError` if what the logs of `config` need is not there."""
    if config.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise ImportError("--tensorboard: tensorboardX is not installed; pip install 'jnet[train]'")


@contextlib.contextmanager
def open_logs(config: TrainConfig, model: Layer, dataset: Dataset, folder: Path, steps: int) -> Iterator[Log]:
    """Give a function for `fit(report=...)` that writes all the logs that `config` asks for; ends them at the end."""
    with contextlib.ExitStack() as stack:
        logs: list[Log] = [_csv_log(folder)]
        scalars = stack.enter_context(_tensorboard(folder)) if config.tensorboard else None
        if scalars is not None:
            logs.append(_event_log(config, steps, scalars))
        if config.norms:
            logs.append(_norm_log(model, config, dataset, folder, scalars))
        if config.profile:
            logs.append(stack.enter_context(_profiler(folder, config.profile)))

        def log_all(report: Report) -> None:
            for log in logs:
                log(report)

        yield log_all


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV; numbers as Python writes them, so that they read back exactly."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write(path: Path, content: bytes) -> None:
    """Write `path` so that it is there whole or not at all, even if the process dies here."""
    neighbour = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with neighbour.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        neighbour.replace(path)
    finally:
        neighbour.unlink(missing_ok=True)


def _csv_log(folder: Path) -> Log:
    """The history after each epoch: the file is replaced, so a run that goes on repeats no row."""

    def log(report: Report) -> None:
        if report.finished:
            write(folder / "metrics.csv", to_csv(report.history).encode())

    return log


Scalars = Callable[[Mapping[str, float], int], None]  # name -> value, of a step


@contextlib.contextmanager
def _tensorboard(folder: Path) -> Iterator[Scalars]:
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:

        def scalars(values: Mapping[str, float], step: int) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        yield scalars


def _event_log(config: TrainConfig, steps: int, scalars: Scalars) -> Log:
    schedule = build_schedule(config, max(1, steps // config.accumulate))

    def log(report: Report) -> None:
        if report.finished:
            row = report.history[-1]
            rate = float(schedule(max(0, report.step // config.accumulate - 1)))
            names = {
                f"{split}/{name}": row[f"{split}_{name}"] for split in ("train", "val") for name in ("loss", "accuracy")
            }
            scalars({**names, "learning_rate": rate}, report.step)

    return log


def _norm_log(model: Layer, config: TrainConfig, dataset: Dataset, folder: Path, scalars: Scalars | None) -> Log:
    """A row for each layer after each epoch: Euclidean norms on the first training images."""
    from jnet.probe import layer_norms

    norms = layer_norms(model, build_loss(config))
    batch = dataset.train.images[:NORM_IMAGES], dataset.train.labels[:NORM_IMAGES]
    path = folder / "norms.csv"
    rows: list[dict[str, Any]] = []

    def log(report: Report) -> None:
        if not report.finished:
            return
        if not rows and path.exists():  # the run goes on
            with path.open() as file:
                rows.extend(row for row in csv.DictReader(file) if int(row["epoch"]) < report.epoch)
        for layer, seen in jax.device_get(norms(report.state, batch)).items():
            values = {name: float(value) for name, value in seen._asdict().items()}
            rows.append({"epoch": report.epoch, "layer": layer, **values})
            if scalars is not None:
                scalars({f"norms/{layer}/{name}": value for name, value in values.items()}, report.step)
        write(path, to_csv(rows).encode())

    return log


@contextlib.contextmanager
def _profiler(folder: Path, steps: int) -> Iterator[Log]:
    """Trace at least `steps` steps of this process, beginning after a call that reaches step `PROFILE_AFTER`."""
    begun: int | None = None
    ended = False

    def log(report: Report) -> None:
        nonlocal begun, ended
        if begun is None and report.step >= min(PROFILE_AFTER, report.steps // 2):
            jax.profiler.start_trace(str(folder / "profile"))
            begun = report.step
        elif begun is not None and not ended and report.step - begun >= steps:
            jax.profiler.stop_trace()
            ended = True

    try:
        yield log
    finally:
        if begun is not None and not ended:
            jax.profiler.stop_trace()
