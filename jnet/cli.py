"""The command line: what the arguments are, and what is printed. What is computed lives elsewhere."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import io
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from jnet.config import TrainConfig

USER_ERRORS = (ValueError, OSError, ImportError)  # what bad input raises; anything else is a defect and shows itself


@dataclasses.dataclass(frozen=True)
class Train(TrainConfig):
    """Train a network and write a run: config.json, metrics.csv, curves.png, filters.png, params."""

    out: str | None = None
    """Folder of the run; must be new. None: runs/DATA-MODEL-SEED."""
    tune: bool = True
    """Start with the memory allocator tuned (Linux): faster steps, more memory held."""
    verbose: bool = False
    """Also say what is set up."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measure the test accuracy of a run again."""

    run: tyro.conf.Positional[str]
    """The run's folder."""


def train(options: Train) -> None:
    """`jnet train`."""
    from jnet import runs
    from jnet.progress import show_progress

    config = TrainConfig(**{field.name: getattr(options, field.name) for field in dataclasses.fields(TrainConfig)})
    prepared = runs.prepare(config)
    folder = runs.new_folder(config, options.out)
    print(f"{config.model} on {config.data}, {prepared.steps} steps, to {folder}", flush=True)
    started = time.monotonic()
    with show_progress(config.epochs, prepared.steps) as report:
        accuracy = runs.train(prepared, folder, report)
    print(f"{time.monotonic() - started:.1f} s; the run is in {folder}")
    print(f"test accuracy {accuracy:.4f}")


def evaluate(options: Evaluate) -> None:
    """`jnet evaluate`."""
    from jnet import runs
    from jnet.train import evaluate

    run = runs.load(Path(options.run))
    print(f"test accuracy {evaluate(run.model, run.params, run.model_state, run.dataset.test)['accuracy']:.4f}")


COMMANDS: dict[str, tuple[Any, Callable[[Any], None]]] = {
    "train": (Train, train),
    "evaluate": (Evaluate, evaluate),
}


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code: 0, 1 for a run that failed, 2 for a mistake of the user."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(_overview())
        return 0
    if name == "--version":
        print(f"jnet {importlib.metadata.version('jnet')}")
        return 0
    try:
        if name not in COMMANDS:
            raise ValueError(f"command: {name}; must be one of {', '.join(COMMANDS)}")
        kind, command = COMMANDS[name]
        command(_parse(kind, name, arguments[1:]))
    except USER_ERRORS as error:
        return _fail(name, error, 2)
    except FloatingPointError as error:
        return _fail(name, error, 1)
    return 0


def _overview() -> str:
    lines = ["usage: jnet COMMAND [OPTIONS]", "", "commands (jnet COMMAND --help explains each):"]
    lines += [f"  {name:<10} {kind.__doc__.splitlines()[0]}" for name, (kind, _) in COMMANDS.items()]
    return "\n".join([*lines, "", "  --version  Print the version."])


def _parse(kind: Any, name: str, arguments: Sequence[str]) -> Any:
    """Options from `arguments`; tyro's box of an error becomes a `ValueError` of one line."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(kind, args=arguments, prog=f"jnet {name}")
    except SystemExit as stopped:
        if stopped.code == 0:  # --help
            raise
        raise ValueError(_unbox(errors.getvalue())) from None


def _unbox(box: str) -> str:
    """The first paragraph of a box drawn on a terminal, as one line, with the option that was perhaps meant."""
    lines = [line.strip(" │") for line in box.splitlines() if line.startswith("│")]
    paragraphs = "\n".join(lines).split("─" * 4)
    text = " ".join(paragraphs[0].split())
    text = re.sub(
        r"^Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)$", r"\1: \2; must be an integer", text
    )
    text = re.sub(r"^Error parsing (\S+): could not convert string to float: (.*)$", r"\1: \2; must be a number", text)
    meant = re.search(r"Perhaps you meant:\s+(--[\w-]+)", box.replace("│", " "))
    return f"{text}; perhaps you meant {meant.group(1)}" if meant else text


def _fail(name: str, error: Exception, code: int) -> int:
    print(f"jnet {name}: {' '.join(str(error).split())}", file=sys.stderr)
    return code
