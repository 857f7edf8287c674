"""The command line: what the arguments are, and what is printed. What is computed lives elsewhere."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

import jnet
from jnet.build import build_model, load_dataset
from jnet.config import MACHINE_OPTIONS, ModelName, Normalization, TrainConfig, read_json, to_json
from jnet.interrupt import Interrupted

USER_ERRORS = (ValueError, OSError, ImportError)  # what bad input raises; anything else is a defect and shows itself


@dataclasses.dataclass(frozen=True)
class Train(TrainConfig):
    """Train a network and write a run: config.json, metrics.csv, curves.png, filters.png, params."""

    out: str | None = None
    """Folder of the run; must be new. None: runs/DATA-MODEL-SEED."""
    resume: str | None = None
    """Go on with the run in this folder, from its newest checkpoint, with its own options."""
    config: str | None = None
    """Take the options from this file, such as the config.json of a run; others given here replace them."""
    process_id: int = 0
    """Which of --num-processes this one is, from 0; process 0 prints and writes."""
    tune: bool = True
    """Start with the memory allocator tuned (Linux): faster steps, more memory held."""
    verbose: bool = False
    """Also say what is set up."""

    def __post_init__(self) -> None:
        """Check nothing yet: tyro would draw a box around the message."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measure the test accuracy of a run again."""

    run: tyro.conf.Positional[str]
    """The run's folder."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """Print a network's layers: shapes, parameters, multiply-adds, bytes kept for the backward pass."""

    model: ModelName = "vgg"
    """The network."""
    widths: tuple[int, ...] = ()
    """Channels of its layers, as in jnet train."""
    normalization: Normalization = "default"
    """Between each layer and its relu, as in jnet train."""
    dropout_keep: float = 1.0
    """Probability of keeping a unit, in (0, 1]."""
    input_shape: tuple[int, int, int] = (28, 28, 1)
    """Height, width and channels of an image."""
    num_classes: int = 10
    """Classes to tell apart."""
    batch_size: int = 50
    """Images in a training step."""


@dataclasses.dataclass(frozen=True)
class Check:
    """Prove every gradient: largest relative error against float64 autodiff, and bytes kept, a line an op."""

    ops: tyro.conf.Positional[tuple[str, ...]] = ()
    """The ops to check; none given: all."""


@dataclasses.dataclass(frozen=True)
class Grade:
    """Check your own forward and backward functions, and name the mistake."""

    file: tyro.conf.Positional[str]
    """Python file that defines them."""
    json: bool = False
    """Print the findings as JSON."""
    time_limit: float = 60.0
    """Seconds that a function may take."""


@dataclasses.dataclass(frozen=True)
class Predict:
    """Print the classes of images with their probabilities."""

    run: tyro.conf.Positional[str]
    """The run's folder."""
    images: tyro.conf.Positional[tuple[str, ...]]
    """Image files of any size; scaled to what the network takes, a light drawing on a dark ground for digits."""
    top: int = 3
    """Classes to print for each image."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a run's network for other programs: StableHLO, ONNX, safetensors, PyTorch weights."""

    run: tyro.conf.Positional[str]
    """The run's folder."""
    format: Literal["stablehlo", "onnx", "safetensors", "torch"] = "stablehlo"
    """What to write: the network (stablehlo, onnx) or its weights (safetensors, torch)."""
    out: str | None = None
    """The file to write; replaced if it exists. None: RUN/model with the format's ending."""


def parse_train(arguments: Sequence[str]) -> Train:
    """The options of `jnet train`; those left out are the ones of the file that --config or --resume names."""
    options = _parse(Train, "train", arguments)
    if options.resume is not None and options.config is not None:
        raise ValueError("--config: given with --resume; must be left out, the run has its own config.json")
    if options.resume is not None:
        defaults = read_json(Path(options.resume) / "config.json")
    elif options.config is not None:
        defaults = read_json(Path(options.config))
    else:
        return options
    options = _parse(Train, "train", arguments, default=Train(**dataclasses.asdict(defaults)))
    if options.resume is not None:
        for name, value in {**dataclasses.asdict(defaults), "out": None}.items():
            if getattr(options, name) != value and name not in MACHINE_OPTIONS:
                option = f"--{name.replace('_', '-')}: {getattr(options, name)}"
                raise ValueError(f"{option}; must be left out with --resume: the run goes on with its own, {value}")
    return options


def train(options: Train) -> None:
    """`jnet train`."""
    from jnet import runs
    from jnet.display import show_progress
    from jnet.parallel import Placement, start

    config = TrainConfig(**{field.name: getattr(options, field.name) for field in dataclasses.fields(TrainConfig)})
    if config.num_processes > 1 and options.out is None and options.resume is None:
        raise ValueError("--out: None; must be a folder that all processes share")
    mesh = start(config.devices, config.coordinator, config.num_processes, options.process_id)
    prepared = runs.prepare(config, Placement(mesh, config.shard_params))
    if options.resume is not None:
        folder = Path(options.resume)
    else:
        folder = runs.new_folder(config, options.out) if options.process_id == 0 else Path(str(options.out))
        if options.process_id == 0:
            runs.start(config, folder)
    if options.process_id > 0:
        runs.train(prepared, folder, lambda report: None)
        return
    print(f"{config.model} on {config.data}, {prepared.steps} steps, to {folder}", flush=True)
    started = time.monotonic()
    try:
        with _plain_warnings(), show_progress(config.epochs, prepared.steps) as report:
            accuracy = runs.train(prepared, folder, report)
    except Interrupted as stopped:
        raise Interrupted(stopped.number, f"{stopped}; go on with: jnet train --resume {folder}") from None
    print(f"{time.monotonic() - started:.1f} s; the run is in {folder}")
    print(f"test accuracy {accuracy:.4f}")


def evaluate(options: Evaluate) -> None:
    """`jnet evaluate`."""
    from jnet import runs
    from jnet.train import evaluate

    run = runs.load(Path(options.run))
    test = load_dataset(run.config).test
    print(f"test accuracy {evaluate(run.model, run.params, run.model_state, test)['accuracy']:.4f}")


def summary(options: Summary) -> None:
    """`jnet summary`."""
    from jnet import summary

    names = ("model", "widths", "normalization", "dropout_keep", "batch_size")
    config = TrainConfig(**{name: getattr(options, name) for name in names})
    for name in ("input_shape", "num_classes"):
        if np.min(getattr(options, name)) < 1:
            raise ValueError(f"--{name.replace('_', '-')}: {getattr(options, name)}; must be at least 1")
    model = build_model(config, options.num_classes)
    print(summary.to_text(summary.summarize(model, options.input_shape, options.batch_size)))


def check(options: Check) -> None:
    """`jnet check`."""
    from jnet.check import HEAD, check_op, to_line
    from jnet.custom_vjp import CATALOGUE

    names = [entry.name for entry in CATALOGUE]
    for name in options.ops:
        if name not in names:
            raise ValueError(f"ops: {name}; must be among {', '.join(names)}")
    print(HEAD, flush=True)
    wrong = []
    for entry in CATALOGUE:
        if entry.name in options.ops or not options.ops:
            result = check_op(entry)
            print(to_line(result), flush=True)
            wrong += [] if result.ok else [result.name]
    if wrong:
        raise FloatingPointError(f"gradients not within what is allowed: {', '.join(wrong)}")


def export(options: Export) -> None:
    """`jnet export`."""
    from jnet import interop, runs
    from jnet.logs import write

    run = runs.load(Path(options.run))
    path = Path(options.out or Path(options.run) / f"model{interop.FORMATS[options.format]}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--out: {path}; must be in a folder that exists")
    facts = json.loads(to_json(run.config))
    write(path, interop.export(options.format, run.model, run.params, run.model_state, run.input_shape, facts))
    print(path)


def grade(options: Grade) -> None:
    """`jnet grade`."""
    from jnet import grading

    if not grading.main(options.file, json=options.json, timeout_s=options.time_limit):
        raise FloatingPointError(f"{options.file}: not all of it is right")


def predict(options: Predict) -> None:
    """`jnet predict`."""
    from jnet import predict

    if options.top < 1:
        raise ValueError(f"--top: {options.top}; must be at least 1")
    for line in predict.predict(Path(options.run), [Path(image) for image in options.images], options.top):
        print(line)


def bench(arguments: Sequence[str]) -> None:
    """`jnet bench`: the benchmarks live beside the package, in a clone of the repository."""
    try:
        from benchmarks import __main__ as benchmarks
    except ImportError as error:
        raise ImportError(f"benchmarks: {error}; jnet bench must be run in a clone of the repository") from None
    benchmarks.main(list(arguments))


COMMANDS: dict[str, tuple[Any, Callable[[Any], None]]] = {
    "train": (Train, train),
    "evaluate": (Evaluate, evaluate),
    "predict": (Predict, predict),
    "export": (Export, export),
    "summary": (Summary, summary),
    "check": (Check, check),
    "grade": (Grade, grade),
}


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code: 0, 1 for a run that failed, 2 for a mistake of the user."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(_overview())
        return 0
    if name == "--version":
        print(f"jnet {jnet.__version__}")
        return 0
    try:
        if name == "bench":
            bench(arguments[1:])
        elif name in COMMANDS:
            kind, command = COMMANDS[name]
            command(parse_train(arguments[1:]) if kind is Train else _parse(kind, name, arguments[1:]))
        else:
            raise ValueError(f"command: {name}; must be one of {', '.join([*COMMANDS, 'bench'])}")
    except Interrupted as stopped:
        return _fail(name, stopped, 128 + stopped.number)
    except USER_ERRORS as error:
        return _fail(name, error, 2)
    except FloatingPointError as error:
        return _fail(name, error, 1)
    return 0


def _overview() -> str:
    lines = ["usage: jnet COMMAND [OPTIONS]", "", "commands (jnet COMMAND --help explains each):"]
    lines += [f"  {name:<10} {kind.__doc__.splitlines()[0]}" for name, (kind, _) in COMMANDS.items()]
    lines += [f"  {'bench':<10} Measure ops and training steps against other libraries."]
    return "\n".join([*lines, "", "  --version  Print the version."])


def _parse(kind: Any, name: str, arguments: Sequence[str], default: Any = None) -> Any:
    """Options from `arguments`; tyro's box of an error becomes a `ValueError` of one line."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(kind, args=arguments, prog=f"jnet {name}", default=default)
    except SystemExit as stopped:
        if stopped.code == 0:  # --help
            raise
        raise ValueError(_unbox(errors.getvalue())) from None


def _unbox(box: str) -> str:
    """The first paragraph of tyro's box (drawn in Unicode or ASCII) as one line, with the option perhaps meant."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]
    paragraphs = [" ".join(part.split()) for part in re.split(r"^[─-]+$", "\n".join(lines), flags=re.MULTILINE)]
    text, *more = [part for part in paragraphs if part]
    text = re.sub(
        r"^Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)$", r"\1: \2; must be an integer", text
    )
    text = re.sub(r"^Error parsing (\S+): could not convert string to float: (.*)$", r"\1: \2; must be a number", text)
    text = re.sub(
        r"^invalid choice (.*) for argument '(\S+)'. Expected one of \((.*?),?\)\.$", r"\2: \1; must be one of \3", text
    )
    text = re.sub(r"^Missing from [^:]*: [A-Z]+ (.*?)\.? \(required\)$", r"an argument is missing: \1", text)
    meant = re.search(r"Perhaps you meant: (--[\w-]+)", " ".join(more))
    return f"{text}; perhaps you meant {meant.group(1)}" if meant else text


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show jnet's own warnings as one line each, without the place in the code."""
    from jnet.checkpoint import CheckpointWarning

    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if issubclass(category, CheckpointWarning):
                print(f"jnet train: warning: {message}", file=sys.stderr)
            else:
                others(message, category, *place)

        warnings.simplefilter("always", CheckpointWarning)
        warnings.showwarning = show
        yield


def _fail(name: str, error: Exception, code: int) -> int:
    print(f"jnet {name}: {' '.join(str(error).split())}", file=sys.stderr)
    return code
