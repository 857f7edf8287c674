"""Whole training steps: jnet against Flax, Equinox and PyTorch, each in every mode it has.

python -m benchmarks steps --workload vgg --contenders jnet torch:channels_last --repeat 3
"""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Literal

from rich.table import Table

from benchmarks import results
from benchmarks.contenders import SCANS, STEPS, build, parse
from benchmarks.measure import ALLOCATORS, Worker, WorkerError, cores, setting, summarise
from benchmarks.tables import grid, number, show
from benchmarks.workloads import WORKLOADS, Workload, checked

Row = results.Row
RIVALS = ("flax", "equinox", "torch")
PATIENCE = 20.0  # seconds a step: a contender that needs more in its first turn gets no second
GROUP = ("device", "workload", "allocator", "precision")  # what is measured in one run and compared
PATH = results.FOLDER / "steps.csv"


def main(
    workload: tuple[str, ...] = tuple(WORKLOADS),
    contenders: tuple[str, ...] = STEPS + SCANS,
    allocator: tuple[Literal["default", "tuned"], ...] = ("default", "tuned"),
    precision: Literal["float32", "tf32", "bfloat16"] = "float32",
    repeat: int = 5,
    seconds: float = 1.0,
    compilations: int = 5,
    save: bool = False,
) -> None:
    """Race training steps, the contenders in turn, and print a table a workload.

    Args:
        workload: which of fc-small, fc-large, three-layer, vgg, resnet.
        contenders: libraries with their variants, such as jnet, jnet:scan, flax:reduce, torch:compile:channels_last.
        allocator: the system's malloc as it is, or told to keep its memory; the same for every contender.
        precision: of the matrix products; the rest but bfloat16 is float32 throughout.
        repeat: rounds, in each of which every contender has one turn.
        seconds: length of a turn.
        compilations: of each contender, in turn, of which the median counts: one alone varies by a third.
        save: put the rows into benchmarks/results/steps.csv.
    """
    for name in workload:
        if name not in WORKLOADS:
            raise ValueError(f"workload is {name!r}; it must be one of {', '.join(WORKLOADS)}")
    for contender in contenders:
        parse(contender)
    where = setting()
    for name, regime in itertools.product(workload, allocator):
        rows = race(WORKLOADS[name], contenders, regime, precision, repeat, seconds, compilations)
        rows = [{"workload": name, "allocator": regime, "precision": precision, **row, **where} for row in rows]
        show(table(rows, f"{name}, allocator {regime}, {precision}"))
        for row in rows:
            if row.get("error"):
                print(f"{row['contender']}: {row['error']}")
        if save:
            results.save(PATH, rows, GROUP)


def race(
    workload: Workload,
    names: Sequence[str],
    allocator: str,
    precision: str,
    rounds: int,
    seconds: float,
    compilations: int = 5,
) -> list[Row]:
    """Race the contenders on one workload: `rounds` rounds, in each of which each runs for about `seconds`.

    Returns a row a contender. A contender that cannot run, trains another network (another number of parameters than
    the first) or does not lower its loss has an `error` and no place in any comparison.
    """
    workers: dict[str, Worker] = {}
    rows: dict[str, Row] = {name: {"contender": name} for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}

    def start(name: str) -> None:
        try:
            workers[name] = Worker(build, name, workload, precision, env=ALLOCATORS[allocator])
            rows[name] |= workers[name].call("describe", checked(workload))
        except WorkerError as error:
            rows[name]["error"] = str(error)

    with ThreadPoolExecutor(max(1, cores() // 2)) as pool:  # compiling keeps two cores busy
        list(pool.map(start, names))
    compiled: dict[str, list[float]] = {name: [] for name in names}
    for _, name in itertools.product(range(compilations), list(_healthy(rows))):
        compiled[name].append(workers[name].call("compile"))
    for round_ in range(rounds):
        for name in _healthy(rows):
            if round_ == 0 or max(times[name]) < PATIENCE:
                times[name] += workers[name].call("run", seconds)
    for worker in workers.values():
        worker.close()
    expected = next((row["parameters"] for row in rows.values() if "parameters" in row), 0)
    for name in _healthy(rows):
        timing = summarise(times[name])
        rows[name] |= {"p20_ms": 1e3 * timing.p20, "p50_ms": 1e3 * timing.p50, "p80_ms": 1e3 * timing.p80}
        rows[name] |= {"compile_s": median(compiled[name]) if compilations else None}
        rows[name] |= {"calls": timing.calls, "error": _doubt(rows[name], expected)}
    return list(rows.values())


def fastest(rows: Sequence[Row], library: str) -> Row | None:
    """The row of a library's fastest mode; jnet on its plain twins is not jnet."""
    mine = [
        row
        for row in rows
        if not row.get("error") and row["contender"].split(":")[0] == library and "reference" not in row["contender"]
    ]
    return min(mine, key=lambda row: row["p50_ms"], default=None)


def ratios(rows: Sequence[Row]) -> dict[str, float]:
    """How many times as long as jnet each rival takes in one race, both in their fastest mode; `rival` is the least."""
    jnet = fastest(rows, "jnet")
    if jnet is None:
        return {}
    rivals = {library: fastest(rows, library) for library in RIVALS}
    found = {library: row["p50_ms"] / jnet["p50_ms"] for library, row in rivals.items() if row is not None}
    return {"rival": min(found.values())} | found if found else {}


def memory(rows: Sequence[Row]) -> float | None:
    """Compiled temporaries of jnet over those of Flax, of the fastest mode of each: the configuration that is timed."""
    jnet, flax = fastest(rows, "jnet"), fastest(rows, "flax")
    return jnet["temporaries"] / flax["temporaries"] if jnet and flax and flax["temporaries"] else None


def compile_ratio(rows: Sequence[Row]) -> float | None:
    """Seconds to compile jnet's step over those of Flax's, both as they come."""
    seconds = {row["contender"]: row["compile_s"] for row in rows if not row.get("error")}
    return seconds["jnet"] / seconds["flax"] if seconds.get("jnet") and seconds.get("flax") else None


def table(rows: Sequence[Row], title: str) -> Table:
    """A table for the terminal, the fastest first; what could not be measured is left out."""
    measured = [row for row in rows if not row.get("error")]
    mine = [row["p50_ms"] for row in measured if row["contender"].startswith("jnet")]
    headings = ("contender", "p20 ms", "p50 ms", "p80 ms", "calls", "/ jnet", "temporaries MB", "compile s")
    lines = [
        (
            row["contender"],
            *(number(row[name], 2) for name in ("p20_ms", "p50_ms", "p80_ms")),
            number(row["calls"], 0),
            number(row["p50_ms"] / min(mine), 2) if mine else "",
            number(row["temporaries"], 1, 1e-6),
            number(row["compile_s"], 1),
        )
        for row in sorted(measured, key=lambda row: row["p50_ms"])
    ]
    return grid(title, headings, lines)


def _healthy(rows: dict[str, Row]) -> Iterator[str]:
    return (name for name, row in rows.items() if not row.get("error"))


def _doubt(row: Row, parameters: int) -> str:
    """Why a row may not be compared with the others, or nothing."""
    if row["parameters"] != parameters:
        return f"{row['parameters']} parameters, the first contender has {parameters}"
    if not row["last_loss"] < row["first_loss"]:
        return f"the loss went from {row['first_loss']:.3g} to {row['last_loss']:.3g}"
    return ""
