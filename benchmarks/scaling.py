"""How the time and the temporaries of a training step grow with batch, width, depth and image size.

    python -m benchmarks scaling --axis batch depth

Each axis is varied alone; a line through the points in logarithms gives the exponent: 1 is proportional.
"""

import itertools
import math
from collections.abc import Sequence
from statistics import linear_regression
from typing import Literal

from rich.table import Table

from benchmarks import results
from benchmarks.contenders import parse
from benchmarks.measure import setting
from benchmarks.steps import race
from benchmarks.tables import grid, number, show
from benchmarks.workloads import Workload

Row = results.Row
GROUP = ("device", "allocator", "axis")
PATH = results.FOLDER / "scaling.csv"
_VGG = Workload("vgg", (32, 32, 64, 64), 32)

SWEEPS: dict[str, dict[int, Workload]] = {
    "batch": {n: _VGG._replace(batch=n) for n in (8, 16, 32, 64, 128)},
    "width": {n: _VGG._replace(widths=(n, n, 2 * n, 2 * n)) for n in (8, 16, 32, 64, 128)},
    "depth": {6 * n + 2: Workload("resnet", (16, 32, 64), 32, depth=n) for n in (1, 2, 3, 5)},
    "image": {n: _VGG._replace(input_shape=(n, n, 3)) for n in (16, 32, 48, 64)},
    "affine width": {n: Workload("fc", (n,) * 4, 128, (3072,)) for n in (128, 256, 512, 1024, 2048)},
}


def main(
    axis: tuple[str, ...] = tuple(SWEEPS),
    contenders: tuple[str, ...] = ("jnet", "flax:reduce", "torch:channels_last"),
    allocator: tuple[Literal["default", "tuned"], ...] = ("tuned",),
    points: int = 5,
    repeat: int = 3,
    seconds: float = 0.3,
    save: bool = False,
) -> None:
    """Race training steps along each axis and fit exponents.

    Args:
        axis: what grows: the batch, the channels, the layers, the side of the images, the units of affine layers.
        contenders: libraries with their variants, as in `steps`.
        allocator: the system's malloc as it is, or told to keep its memory; the same for every contender.
        points: how many sizes of each axis, the smallest first.
        repeat: rounds, in each of which every contender has one turn.
        seconds: length of a turn.
        save: put the rows into benchmarks/results/scaling.csv.
    """
    for name in axis:
        if name not in SWEEPS:
            raise ValueError(f"axis is {name!r}; it must be one of {', '.join(SWEEPS)}")
    if points < 2:
        raise ValueError(f"points is {points}; it must be at least 2, for a line needs two")
    for contender in contenders:
        parse(contender)
    where = setting()
    for name, regime in itertools.product(axis, allocator):
        rows: list[Row] = []
        for size, workload in itertools.islice(SWEEPS[name].items(), points):
            raced = race(workload, contenders, regime, "float32", repeat, seconds)
            rows += [
                {"axis": name, "size": size, "allocator": regime, "precision": "float32", **row, **where}
                for row in raced
            ]
        show(table(rows, f"{name}, allocator {regime}"))
        for row in rows:
            if row.get("error"):
                print(f"{name} {row['size']} {row['contender']}: {row['error']}")
        if save:
            results.save(PATH, rows, GROUP)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of the line through the points in logarithms."""
    return linear_regression([math.log(size) for size in sizes], [math.log(value) for value in values]).slope


def exponents(rows: Sequence[Row], contender: str, quantity: str) -> float | None:
    """How `quantity` grows for one contender; None where there are too few points."""
    points = [(row["size"], row[quantity]) for row in rows if row["contender"] == contender and row.get(quantity)]
    return exponent(*zip(*points, strict=True)) if len(points) > 1 else None


def table(rows: Sequence[Row], title: str) -> Table:
    """A line a contender: milliseconds (and megabytes of temporaries) at each size, and the exponents."""
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    lines = []
    for contender in dict.fromkeys(row["contender"] for row in rows):
        mine = {row["size"]: row for row in rows if row["contender"] == contender}
        cells = [_cell(mine.get(size, {})) for size in sizes]
        fits = [number(exponents(rows, contender, quantity), 2) for quantity in ("p50_ms", "temporaries")]
        lines.append((contender, *cells, *fits))
    headings = ("ms (MB)", *(f"{size:.0f}" for size in sizes), "exponent of time", "of temporaries")
    return grid(title, headings, lines)


def _cell(row: Row) -> str:
    temporaries = number(row.get("temporaries"), 1, 1e-6)
    return number(row.get("p50_ms"), 1) + (f" ({temporaries})" if temporaries else "")
