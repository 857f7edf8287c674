"""A run's folder: what `jnet train` leaves, and how it is read again.

    RUN/config.json    every option
    RUN/checkpoints/   what the run goes on from (Orbax)
    RUN/metrics.csv    a row for each epoch
    RUN/curves.png     loss and accuracy
    RUN/filters.png    the first layer
    RUN/params/        the best parameters and their running statistics (Orbax)
    RUN/result.json    the test accuracy; written last, so that a run that has it has ended
    RUN/norms.csv, RUN/tensorboard/, RUN/profile/      on request

Each file is written to a neighbour and renamed, so that a reader finds it whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

import jnet
from jnet import checkpoint
from jnet.build import build_loss, build_model, build_optimizer, load_dataset
from jnet.config import TrainConfig, read_json, to_json
from jnet.data import Dataset, channel_statistics
from jnet.layers import Layer
from jnet.logs import check_installed, open_logs, to_csv, write
from jnet.parallel import Placement
from jnet.train import Report, Row, check_dataset, check_model, evaluate, fit, init_shapes

RUNS = Path("runs")  # where runs go that are not told where


class Run(NamedTuple):
    """A finished run, read back."""

    config: TrainConfig
    model: Layer
    params: Any
    model_state: Any
    input_shape: tuple[int, ...]
    num_classes: int


class Prepared(NamedTuple):
    """The parts of a run, checked, before anything is written."""

    config: TrainConfig
    dataset: Dataset
    model: Layer
    steps: int
    placement: Placement


def prepare(config: TrainConfig, placement: Placement) -> Prepared:
    """Load and build what `config` names; raises for everything that can be known to be wrong beforehand."""
    check_installed(config)
    dataset = load_dataset(config)
    check_dataset(dataset, config.batch_size)
    placement.check_batch_size(config.batch_size)
    statistics = channel_statistics(dataset.train) if config.standardize else None
    model = build_model(config, dataset.num_classes, statistics)
    check_model(model, dataset.train.images.shape[1:], dataset.num_classes)
    steps = config.epochs * (len(dataset.train.labels) // config.batch_size)
    return Prepared(config, dataset, model, steps, placement)


def new_folder(config: TrainConfig, out: str | None) -> Path:
    """Where a new run goes: `out`, or `runs/DATA-MODEL-SEED` with the first number that is free.

    Raises `ValueError` if `out` exists and is not an empty folder.
    """
    if out is not None:
        folder = Path(out)
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise ValueError(f"--out: {out}; must be a new or an empty folder, or be gone on with by --resume {out}")
        return folder
    name = f"{config.data}-{config.model}-{config.seed}"
    candidates = [RUNS / name, *(RUNS / f"{name}-{number}" for number in range(2, 10_000))]
    return next(folder for folder in candidates if not folder.exists())


def start(config: TrainConfig, folder: Path) -> None:
    """Make the run's folder with its configuration; from here on the run can be gone on with."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "config.json", to_json(config).encode())


def train(run: Prepared, folder: Path, report: Callable[[Report], None]) -> float:
    """Train from where the run stands, write the rest of the folder, return the best parameters' test accuracy."""
    config, dataset, model, steps, placement = run

    loss, optimizer = build_loss(config), build_optimizer(config, steps)
    logs = (
        open_logs(config, model, dataset, folder, steps) if placement.leads else contextlib.nullcontext(lambda _: None)
    )
    with logs as log:

        def log_and_report(event: Report) -> None:
            log(event)
            report(event)

        result = fit(
            model,
            dataset,
            optimizer,
            epochs=config.epochs,
            batch_size=config.batch_size,
            seed=config.seed,
            loss=loss,
            reg=config.reg,
            checkpoint_dir=folder / "checkpoints",
            save_every=config.save_every,
            keep=config.keep,
            debug_nans=config.debug_nans,
            placement=placement,
            report=log_and_report,
        )
    best, input_shape = result.best, dataset.train.images.shape[1:]
    best = best._replace(params=placement.whole(best.params), model_state=placement.whole(best.model_state))
    test = evaluate(model, best.params, best.model_state, dataset.test, placement=placement)
    checkpoint.save_tree(folder / "params", {"params": best.params, "model_state": best.model_state})
    if not placement.leads:
        return test["accuracy"]
    write(folder / "metrics.csv", to_csv(result.history).encode())
    write_plots(folder, result.history, best.params, input_shape)
    facts = {
        "input_shape": input_shape,
        "num_classes": dataset.num_classes,
        "best_epoch": best.epoch,
        "val_accuracy": best.val_accuracy,
        "test_accuracy": test["accuracy"],
        "test_loss": test["loss"],
        "versions": {"jnet": jnet.__version__, "jax": jax.__version__},
        "backend": jax.default_backend(),
    }
    write(folder / "result.json", (json.dumps(facts, indent=2) + "\n").encode())
    return test["accuracy"]


def load(folder: Path) -> Run:
    """Read a finished run back: its model and parameters.

    Raises `FileNotFoundError` or `ValueError`, one line that names the file.
    """
    config = read_config(folder)
    path = folder / "result.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; the run has not ended: jnet train --resume {folder}")
    try:
        facts = json.loads(path.read_bytes())
        input_shape, num_classes = tuple(facts["input_shape"]), facts["num_classes"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({type(error).__name__}); must be as jnet train wrote it") from None
    model = build_model(config, num_classes)
    params, model_state, _ = init_shapes(model, input_shape)
    tree = checkpoint.load_tree(folder / "params", {"params": params, "model_state": model_state})
    return Run(config, model, tree["params"], tree["model_state"], input_shape, num_classes)


def read_config(folder: Path) -> TrainConfig:
    """The configuration of the run in `folder`, whether it has ended or not."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; must be the folder of a run")
    return read_json(folder / "config.json")


def write_plots(folder: Path, history: Sequence[Row], params: Any, input_shape: tuple[int, ...]) -> None:
    """Draw the learning curves and the first layer's filters."""
    from jnet import plots  # matplotlib takes a second to import

    write(folder / "curves.png", plots.to_png(plots.learning_curves(history, title=folder.name)))
    filters = plots.filter_grid(plots.first_filters(params, input_shape), title="first layer")
    write(folder / "filters.png", plots.to_png(filters))
