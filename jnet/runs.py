"""A run's folder: what `jnet train` leaves, and how it is read again.

    RUN/config.json   every option
    RUN/metrics.csv   a row for each epoch
    RUN/curves.png    loss and accuracy
    RUN/filters.png   the first layer
    RUN/params/       the best parameters and their running statistics (Orbax)

Each file is written to a neighbour and renamed, so that a reader finds it whole or not at all.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jnet import checkpoint
from jnet.config import TrainConfig, build_model, build_optimizer, load_dataset, read_json, to_json
from jnet.data import Dataset
from jnet.layers import Layer
from jnet.train import Report, Row, check_dataset, check_model, evaluate, fit, init_shapes

RUNS = Path("runs")  # where runs go that are not told where


class Run(NamedTuple):
    """A finished run, read back."""

    config: TrainConfig
    dataset: Dataset
    model: Layer
    params: Any
    model_state: Any


class Prepared(NamedTuple):
    """The parts of a run, checked, before anything is written."""

    config: TrainConfig
    dataset: Dataset
    model: Layer
    steps: int


def prepare(config: TrainConfig) -> Prepared:
    """Load and build what `config` names; raises for everything that can be known to be wrong beforehand."""
    dataset = load_dataset(config)
    check_dataset(dataset, config.batch_size)
    model = build_model(config, dataset.num_classes)
    check_model(model, dataset.train.images.shape[1:], dataset.num_classes)
    steps = config.epochs * (len(dataset.train.labels) // config.batch_size)
    return Prepared(config, dataset, model, steps)


def new_folder(config: TrainConfig, out: str | None) -> Path:
    """Where a new run goes: `out`, or `runs/DATA-MODEL-SEED` with the first number that is free.

    Raises `ValueError` if `out` exists and is not an empty folder.
    """
    if out is not None:
        folder = Path(out)
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise ValueError(f"--out: {out}; must be a new or an empty folder")
        return folder
    name = f"{config.data}-{config.model}-{config.seed}"
    candidates = [RUNS / name, *(RUNS / f"{name}-{number}" for number in range(2, 10_000))]
    return next(folder for folder in candidates if not folder.exists())


def train(run: Prepared, folder: Path, report: Callable[[Report], None]) -> float:
    """Train, write everything to `folder`, return the test accuracy of the best parameters."""
    config, dataset, model, steps = run
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "config.json", to_json(config).encode())

    def report_and_record(event: Report) -> None:
        if event.row is not None:
            rows.append(event.row)
            write(folder / "metrics.csv", to_csv(rows).encode())
        report(event)

    rows: list[Row] = []
    result = fit(
        model,
        dataset,
        build_optimizer(config, steps),
        epochs=config.epochs,
        batch_size=config.batch_size,
        seed=config.seed,
        reg=config.reg,
        report=report_and_record,
    )
    best = result.best
    checkpoint.save_tree(folder / "params", {"params": best.params, "model_state": best.model_state})
    write_plots(folder, result.history, best.params, dataset.train.images.shape[1:])
    return evaluate(model, best.params, best.model_state, dataset.test)["accuracy"]


def load(folder: Path) -> Run:
    """Read a finished run back: its data, model and parameters.

    Raises `FileNotFoundError` or `ValueError`, one line that names the file.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; must be the folder of a run")
    config = read_json(folder / "config.json")
    dataset = load_dataset(config)
    model = build_model(config, dataset.num_classes)
    params, model_state, _ = init_shapes(model, dataset.train.images.shape[1:])
    tree = checkpoint.load_tree(folder / "params", {"params": params, "model_state": model_state})
    return Run(config, dataset, model, tree["params"], tree["model_state"])


def write_plots(folder: Path, history: Sequence[Row], params: Any, input_shape: tuple[int, ...]) -> None:
    """Draw the learning curves and the first layer's filters."""
    from jnet import plots  # matplotlib takes a second to import

    write(folder / "curves.png", plots.to_png(plots.learning_curves(history, title=folder.name)))
    filters = plots.filter_grid(plots.first_filters(params, input_shape), title="first layer")
    write(folder / "filters.png", plots.to_png(filters))


def to_csv(rows: Sequence[Row]) -> str:
    """The rows of a history as CSV; numbers as Python writes them, so that they read back exactly."""
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
