"""Every op of the catalogue at several shapes: jnet's rule against autodiff of its plain twin, of the native operation,
and against PyTorch; forward, forward and backward, and both inside `lax.scan`.

    python -m benchmarks ops --op conv2d max_pool2d --mode both scan
"""

import itertools
from collections.abc import Iterable, Sequence
from statistics import geometric_mean
from typing import Any, Literal

import numpy as np
from rich.table import Table

from benchmarks import results
from benchmarks.measure import ALLOCATORS, Worker, WorkerError, setting, summarise
from benchmarks.tables import grid, number, show

Row = results.Row
SIDES = ("jnet", "reference", "native", "torch", "torch:channels_first")
MODES = ("forward", "both", "scan")
PATIENCE = 2.0  # seconds a call: a side that needs more in its first turn gets no second
GROUP = ("device", "allocator", "precision", "options", "op", "case", "mode")
PATH = results.FOLDER / "ops.csv"


def main(
    op: tuple[str, ...] = (),
    mode: tuple[Literal["forward", "both", "scan"], ...] = MODES,
    side: tuple[Literal["jnet", "reference", "native", "torch", "torch:channels_first"], ...] = SIDES,
    case: tuple[int, ...] = (),
    allocator: Literal["default", "tuned"] = "tuned",
    precision: Literal["float32", "tf32", "bfloat16"] = "float32",
    options: Literal["default", "reduce", "off"] = "reduce",
    rounding: bool = False,
    repeat: int = 5,
    seconds: float = 0.05,
    save: bool = False,
) -> None:
    """Time ops, the sides in turn, and print a line a shape and mode.

    Args:
        op: names from the catalogue; all of them if none is given.
        mode: forward, both (forward and backward), scan (both, inside lax.scan).
        side: whom to measure: jnet, reference (autodiff of the plain twin), native (autodiff of lax/jax.nn), torch with
            the images' channels last, as for all others, or first, as it has them by default (convolution and pools).
        case: positions in the op's list of shapes; all of them if none is given.
        allocator: the system's malloc as it is, or told to keep its memory; the same for every side.
        precision: of the matrix products; bfloat16 is the dtype of everything.
        options: which fusions XLA hands to its YNN library on a CPU, for every side; jnet trains with reduce.
        rounding: with both, find the largest error against float64, which takes a while.
        repeat: rounds, in each of which every side has one turn.
        seconds: length of a turn.
        save: put the rows into benchmarks/results/ops.csv.
    """
    from benchmarks.ops.cases import CASES
    from benchmarks.ops.jax_side import JaxSide

    for name in op:
        if name not in CASES:
            raise ValueError(f"op is {name!r}; it must be one of {', '.join(CASES)}")
    env = ALLOCATORS[allocator]
    jax_worker = Worker(JaxSide, precision, options, env=env)
    workers = {name: jax_worker for name in side if not _is_torch(name)}
    for name in filter(_is_torch, side):
        from benchmarks.ops.torch_side import TorchSide

        workers[name] = Worker(TorchSide, precision, name == "torch", env=env)
    gemm, copy = jax_worker.call("peaks")
    print(f"this machine now: {gemm:.0f} GF/s in a large matrix product, {copy:.1f} GB/s in a large copy")
    where = setting() | {"allocator": allocator, "precision": precision, "options": options}
    where |= {"peak_gflops": gemm, "peak_gbytes": copy}
    rows: list[Row] = []
    for name in op or CASES:
        for index in case or range(len(CASES[name])):
            rows += measure(workers, name, index, CASES[name][index].label, mode, rounding, repeat, seconds)
        jax_worker.call("forget")
        rows = [row | where for row in rows]
        show(table([row for row in rows if row["op"] == name], name))
    for worker in set(workers.values()):
        worker.close()
    for row in rows:
        if row.get("error"):
            print(f"{row['op']} {row['case']} {row['mode']} {row['side']}: {row['error']}")
    show(summary(rows))
    if save:
        results.save(PATH, rows, GROUP)


def measure(
    workers: dict[str, Worker],
    op: str,
    index: int,
    label: str,
    modes: Sequence[str],
    rounding: bool,
    rounds: int,
    seconds: float,
) -> Iterable[Row]:
    """The rows of one case: a row a mode and side. Sides whose compiled programs are the same are timed as one."""
    for mode in modes:
        rows: dict[str, Row] = {}
        programs: dict[str, str] = {}  # which side runs it
        runs: dict[str, str] = {}
        times: dict[str, list[float]] = {side: [] for side in workers}
        outputs: dict[str, Any] = {}
        for side, worker in workers.items():
            if (_is_torch(side) and mode == "scan") or (side == "torch:channels_first" and "2d" not in op):
                continue
            rows[side] = {"op": op, "case": label, "mode": mode, "side": side}
            try:
                info = worker.call("prepare", op, index, mode, side)
                outputs[side], program = info.pop("out"), info.pop("program", side)
                rows[side] |= info
                if rounding and mode == "both" and not _is_torch(side):
                    rows[side]["rounding"] = worker.call("error", op, index, side)
                runs[side] = programs.setdefault(program, side)  # last: a side that fails runs for nobody
            except WorkerError as error:
                rows[side]["error"] = str(error)
        racers = [side for side, row in rows.items() if not row.get("error") and runs[side] == side]
        for round_, turn in itertools.product(range(rounds), range(len(racers))):
            side = racers[(round_ + turn) % len(racers)]  # nobody always comes after the same neighbour
            if round_ == 0 or min(times[side]) < PATIENCE:
                times[side] += workers[side].call("run", side, seconds)
        for side, row in rows.items():
            if not row.get("error"):
                timing = summarise(times[runs[side]])
                row |= {"p20_ms": 1e3 * timing.p20, "p50_ms": 1e3 * timing.p50, "p80_ms": 1e3 * timing.p80}
                row |= {"calls": timing.calls, "error": _doubt(op, outputs.get("jnet"), outputs[side])}
        yield from rows.values()


def _is_torch(side: str) -> bool:
    return side.startswith("torch")


def table(rows: Sequence[Row], title: str) -> Table:
    """A line a shape and mode: jnet's time, how much longer the others take, and what else there is to know."""
    headings = ("shape", "mode", "jnet ms", *(f"{rival} /" for rival in SIDES[1:]), "GF/s", "GB/s", "of peak")
    headings += ("kept MB", "by autodiff", "temporaries MB", "autodiff's", "rounding")
    return grid(title, headings, [_line(group) for group in groups(rows) if "jnet" in group])


def summary(rows: Sequence[Row]) -> Table:
    """Over all shapes of each mode: the geometric mean and the worst of each rival's time over jnet's."""
    lines = []
    for mode, rival in itertools.product(MODES, SIDES[1:]):
        found = {}
        for group in groups(rows):
            times = ratio(group, rival)
            if times is not None and group["jnet"]["mode"] == mode:
                found[f"{group['jnet']['op']} {group['jnet']['case']}"] = times
        if found:
            worst = min(found, key=lambda name: found[name])
            cells = (number(geometric_mean(found.values()), 2), number(found[worst], 2), worst)
            lines.append((f"{mode}, {rival} / jnet", str(len(found)), *cells))
    return grid("all shapes", ("", "shapes", "geometric mean", "worst", "at"), lines)


def groups(rows: Sequence[Row]) -> Iterable[dict[str, Row]]:
    """The rows without an error, side by side."""
    found: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        if not row.get("error"):
            found.setdefault((row["op"], row["case"], row["mode"]), {})[row["side"]] = row
    return found.values()


def ratio(group: dict[str, Row], rival: str) -> float | None:
    """How many times as long as jnet a rival takes."""
    return group[rival]["p50_ms"] / group["jnet"]["p50_ms"] if rival in group and "jnet" in group else None


def _line(group: dict[str, Row]) -> tuple[str, ...]:
    jnet, reference = group["jnet"], group.get("reference", {})
    seconds = jnet["p50_ms"] / 1e3
    ideal = max(jnet["flops"] / jnet["peak_gflops"], jnet["bytes"] / jnet["peak_gbytes"]) / 1e9
    return (
        jnet["case"],
        jnet["mode"],
        number(jnet["p50_ms"], 3),
        *(number(ratio(group, rival), 2) for rival in SIDES[1:]),
        number(jnet["flops"] / seconds or None, 0, 1e-9),
        number(jnet["bytes"] / seconds, 1, 1e-9),
        f"{ideal / seconds:.0%}",
        number(jnet["kept"], 2, 1e-6),
        number(reference.get("kept"), 2, 1e-6),
        number(jnet["temporaries"], 2, 1e-6),
        number(reference.get("temporaries"), 2, 1e-6),
        "" if jnet.get("rounding") is None else f"{jnet['rounding']:.0e}",
    )


def _doubt(op: str, expected: Any, got: Any) -> str:
    """Why a side may not be compared with jnet: it computes another thing. Draws and the order of gates may differ."""
    if expected is None or got is None or op in ("dropout", "lstm", "lstm_step"):
        return ""
    if expected.shape != got.shape:
        return f"its result has the shape {got.shape}, jnet's {expected.shape}"
    difference = float(np.max(np.abs(expected - got), initial=0.0) / (np.max(np.abs(expected), initial=0.0) or 1.0))
    return "" if difference < 2e-2 else f"its result differs from jnet's by {difference:.1g}"
