"""From the committed CSVs: tables on the terminal, the tables of the documents, plots.

    python -m benchmarks report --readme

A document has a table between `<!-- benchmarks:NAME -->` and `<!-- /benchmarks -->`; NAME is a function below.
"""

import difflib
import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from benchmarks import goals, ops, results, scaling, steps
from benchmarks.ops.cases import CASES
from benchmarks.tables import show
from benchmarks.workloads import WORKLOADS

Row = results.Row
ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "docs/performance.md")
OP_RIVALS = ("reference", "native", "torch")
_BLOCK = re.compile(r"(<!-- benchmarks:([\w-]+) -->\n).*?(<!-- /benchmarks -->)", re.DOTALL)


def main(readme: bool = False, check: bool = False, plots: bool = False) -> None:
    """Print what was measured; `--readme` writes it into README.md and docs/performance.md.

    Args:
        readme: write the tables of the documents from the CSVs.
        check: fail where a document's table is not that of the CSVs; write nothing.
        plots: draw docs/images/performance_*.png.
    """
    if readme or check:
        for path in map(ROOT.joinpath, DOCUMENTS):
            if path.exists():
                _update(path, check)
    elif plots:
        draw(ROOT / "docs" / "images")
    else:
        for (device, precision, workload, allocator), rows in races().items():
            show(steps.table(rows, f"{workload}, allocator {allocator}, {precision} on {device}"))
        for (device, precision), op_rows in _grouped(results.load(ops.PATH), "device", "precision").items():
            for name in dict.fromkeys(row["op"] for row in op_rows):
                show(ops.table([row for row in op_rows if row["op"] == name], f"{name}, {precision} on {device}"))
            show(ops.summary(op_rows))
        for (axis, allocator), rows in _grouped(results.load(scaling.PATH), "axis", "allocator").items():
            show(scaling.table(rows, f"{axis}, allocator {allocator}"))


def races() -> dict[tuple[str, str, str, str], list[Row]]:
    """The committed training steps: the rows of each race, by device, precision, workload and allocator."""
    found = _grouped(results.load(steps.PATH), "device", "precision", "workload", "allocator")
    order = list(WORKLOADS)
    return dict(sorted(found.items(), key=lambda item: (*item[0][:2], order.index(item[0][2]), item[0][3])))


# The tables of the documents, in Markdown: one for each device and precision


def training() -> str:
    """Training steps on the processor that was measured last."""
    return _training(_raced_last())


def training_elsewhere() -> str:
    """Training steps on other processors."""
    last = _raced_last()
    return _training([row for row in _raced() if not results.on_gpu(row) and row not in last])


def training_gpu() -> str:
    """Training steps on GPUs."""
    return _training(list(filter(results.on_gpu, _raced())))


def _raced() -> list[Row]:
    return [row for race in races().values() for row in race]


def _raced_last() -> list[Row]:
    device = results.last_cpu(results.load(steps.PATH))
    return [row for row in _raced() if row["device"] == device]


def _training(rows: Sequence[Row]) -> str:
    """Milliseconds a training step of everyone's fastest mode, and the ratios that matter."""
    head = ("workload", "allocator", "jnet ms", "flax", "equinox", "torch", "fastest rival / jnet")
    head += ("temporaries, jnet / flax", "compile, jnet / flax")

    def lines(rows: Sequence[Row]) -> Iterable[Sequence[str]]:
        for (workload, allocator), race in _grouped(rows, "workload", "allocator").items():
            times = [_time(steps.fastest(race, library)) for library in ("jnet", *steps.RIVALS)]
            rival = steps.ratios(race).get("rival")
            bold = "" if rival is None else f"**{rival:.2f}**"
            yield [workload, allocator, *times, bold, _number(steps.memory(race)), _number(steps.compile_ratio(race))]

    return _tables(rows, head, lines)


def operations() -> str:
    """The ops on the processor that was measured last."""
    return _operations(results.of_last_cpu(_raced_ops()))


def operations_gpu() -> str:
    """The ops on GPUs."""
    return _operations(list(filter(results.on_gpu, _raced_ops())))


def _raced_ops() -> list[Row]:
    """The committed ops, in the order of the cases, whichever was raced last."""
    order = list(CASES)
    return sorted(results.load(ops.PATH), key=lambda row: order.index(row["op"]))


def _operations(rows: Sequence[Row]) -> str:
    """A line an op, over its shapes: how much longer the others take for forward and backward, and what they keep."""
    head = ("op", "shapes", "reference / jnet", "native / jnet", "torch / jnet")
    head += ("in scan: reference / jnet", "in scan: native / jnet", "kept, autodiff / by hand", "rounding")

    def lines(rows: Sequence[Row]) -> Iterable[Sequence[str]]:
        for (name,), mine in _grouped(rows, "op").items():
            groups = [group for group in ops.groups(mine) if "jnet" in group]
            both = [group for group in groups if group["jnet"]["mode"] == "both"]
            times = [_spread(groups, "both", rival) for rival in OP_RIVALS]
            scans = [_spread(groups, "scan", rival) for rival in ("reference", "native")]
            errors = [group["jnet"]["rounding"] for group in both if group["jnet"].get("rounding") is not None]
            kept = [_kept(group) for group in both if "reference" in group]
            yield [f"`{name}`", str(len(both)), *times, *scans, _range(kept), f"{max(errors):.0e}" if errors else ""]

    return _tables(rows, head, lines)


def growth() -> str:
    """The exponents of time and temporaries along each axis."""

    def lines(rows: Sequence[Row]) -> Iterable[Sequence[str]]:
        for (axis, contender), group in _grouped(rows, "axis", "contender").items():
            sizes = [row["size"] for row in group]
            fits = [scaling.exponents(group, contender, quantity) for quantity in ("p50_ms", "temporaries")]
            yield [axis, f"{min(sizes):.0f} to {max(sizes):.0f}", contender, *map(_number, fits)]

    return _tables(_grown(), ("what grows", "from, to", "contender", "time", "temporaries"), lines)


def _grown() -> list[Row]:
    """The committed growth, axis by axis."""
    order = list(scaling.SWEEPS)
    return sorted(results.load(scaling.PATH), key=lambda row: order.index(row["axis"]))


def aims() -> str:
    """What jnet is held to and what was measured."""
    return _markdown([goals.HEAD, *map(goals.line, goals.goals())])


TABLES: dict[str, Callable[[], str]] = {
    "training": training,
    "training-elsewhere": training_elsewhere,
    "training-gpu": training_gpu,
    "operations": operations,
    "operations-gpu": operations_gpu,
    "growth": growth,
    "goals": aims,
}


def _update(path: Path, check: bool) -> None:
    """Put the tables into a document, or compare them."""
    before = path.read_text(encoding="utf-8")

    def table(match: re.Match[str]) -> str:
        if match[2] not in TABLES:
            raise ValueError(f"{path.name} asks for the table {match[2]!r}; there are {', '.join(TABLES)}")
        return f"{match[1]}{TABLES[match[2]]()}{match[3]}"

    after = _BLOCK.sub(table, before)
    if check and after != before:
        changes = difflib.unified_diff(before.splitlines(), after.splitlines(), path.name, "from the CSVs", lineterm="")
        print("\n".join(changes))
        raise SystemExit(f"{path.name} is not what the CSVs say; python -m benchmarks report --readme makes it so")
    if not check:
        path.write_text(after, encoding="utf-8")


def _tables(rows: Sequence[Row], head: Sequence[str], lines: Callable[[Sequence[Row]], Iterable[Sequence[str]]]) -> str:
    """A table for each device and precision in `rows`, with when and with what it was measured under it."""
    parts = []
    for (device, precision), group in _grouped(rows, "device", "precision").items():
        taken = dict.fromkeys((row["date"], row["cores"], row["versions"]) for row in group)
        notes = [f"{precision} on {device}, {cores:.0f} cores, {date}; {versions}." for date, cores, versions in taken]
        parts += [_markdown([head, *lines(group)]), *notes, ""]
    return "\n".join(parts)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head."""
    head, *lines = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join(["", head, f"|---|{'--:|' * (len(rows[0]) - 1)}", *lines, "", ""])


def _time(row: Row | None) -> str:
    if row is None:
        return ""
    variant = " ".join(row["contender"].split(":")[1:]).replace("_", " ")
    return f"{row['p50_ms']:.3g}" + (f" ({variant})" if variant else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _kept(group: dict[str, Row]) -> float:
    """Bytes kept for the backward pass, by autodiff over by hand."""
    kept = group["jnet"]["kept"]
    return group["reference"]["kept"] / kept if kept else math.inf


def _spread(groups: Sequence[dict[str, Row]], mode: str, rival: str) -> str:
    found = [ops.ratio(group, rival) for group in groups if group["jnet"]["mode"] == mode]
    return _range([ratio for ratio in found if ratio is not None])


def _range(values: Sequence[float]) -> str:
    """The geometric mean, and in brackets from where to where."""
    if not values:
        return ""
    mean = _short(geometric_mean(values)) if min(values) > 0 and max(values) < math.inf else ""
    return mean if len(values) == 1 else f"{mean} ({_short(min(values))} to {_short(max(values))})".strip()


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _grouped(rows: Iterable[Row], *columns: str) -> dict[tuple, list[Row]]:
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in columns), []).append(row)
    return groups


# Plots


def draw(folder: Path) -> None:
    """Bars of the training steps, dots of the ops' ratios, lines of the growth: a PNG each, of the last processor."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plots = {
        "performance_steps.png": (_bars, _raced_last()),
        "performance_ops.png": (_dots, results.of_last_cpu(_raced_ops())),
        "performance_scaling.png": (_lines, results.of_last_cpu(_grown())),
    }
    for name, (plot, rows) in plots.items():
        if rows:
            figure = plot(plt, rows)
            figure.savefig(folder / name, dpi=120, bbox_inches="tight")
            plt.close(figure)


def _bars(plt: Any, rows: Sequence[Row]) -> Any:
    """A panel a race: the workloads side by side, an allocator below the other."""
    raced = _grouped(rows, "allocator", "workload")
    allocators = sorted({allocator for allocator, _ in raced})
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    size = (2.6 * len(workloads), 2.8 * len(allocators))
    figure, axes = plt.subplots(len(allocators), len(workloads), figsize=size, squeeze=False)
    for axis, (allocator, workload) in zip(axes.flat, itertools.product(allocators, workloads), strict=True):
        race = raced.get((allocator, workload), [])
        fastest = {library: steps.fastest(race, library) for library in ("jnet", *steps.RIVALS)}
        times = {library: row["p50_ms"] for library, row in fastest.items() if row is not None}
        bars = axis.bar(list(times), list(times.values()), color=[_COLOURS[library] for library in times])
        axis.bar_label(bars, fmt="%.3g")
        axis.margins(y=0.15)
        axis.set_title(f"{workload}, {allocator}")
        axis.tick_params(axis="x", rotation=30)
    figure.supylabel("ms a step, fastest mode")
    figure.tight_layout()
    return figure


def _dots(plt: Any, rows: Sequence[Row]) -> Any:
    """A line an op, a dot a shape and rival."""
    groups = [group for group in ops.groups(rows) if "jnet" in group and group["jnet"]["mode"] == "both"]
    names = list(dict.fromkeys(group["jnet"]["op"] for group in groups))
    figure, axis = plt.subplots(figsize=(7, 0.28 * len(names) + 1.5))
    for rival in OP_RIVALS:
        found = [(ops.ratio(group, rival), names.index(group["jnet"]["op"])) for group in groups if rival in group]
        axis.plot(*zip(*found, strict=True), "o", alpha=0.6, color=_COLOURS[rival], label=f"{rival} / jnet")
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set(xscale="log", xlabel="time, forward and backward, over jnet's", yticks=range(len(names)))
    axis.set_xticks(_RATIOS, [f"{ratio:g}" for ratio in _RATIOS])
    axis.set_yticklabels(names)
    axis.invert_yaxis()
    axis.legend()
    return figure


def _lines(plt: Any, rows: Sequence[Row]) -> Any:
    """A panel for each thing that grows, a line a contender."""
    grown = _grouped(rows, "axis")
    figure, axes = plt.subplots(1, len(grown), figsize=(3.2 * len(grown), 3), squeeze=False)
    for axis, ((name,), group) in zip(axes[0], grown.items(), strict=True):
        for (contender,), line in _grouped(group, "contender").items():
            points = [(row["size"], row["p50_ms"]) for row in line if row["p50_ms"]]
            colour = _COLOURS[contender.split(":")[0]]
            axis.loglog(*zip(*points, strict=True), "o-", color=colour, label=contender.replace(":", ", "))
        sizes = sorted({row["size"] for row in group})
        axis.set_xticks(sizes, [f"{size:.0f}" for size in sizes])
        axis.minorticks_off()
        axis.set_yticks(_MILLISECONDS, [str(time) for time in _MILLISECONDS])
        axis.autoscale(axis="y")
        axis.set_xlabel(name)
    axes[0][0].set_ylabel("ms a step")
    axes[0][0].legend()
    figure.tight_layout()
    return figure


_RATIOS = (0.25, 0.5, 1, 2, 5, 10, 20)
_MILLISECONDS = (2, 5, 10, 20, 50, 100, 200, 500)
_COLOURS = {
    **{"jnet": "tab:red", "flax": "tab:blue", "equinox": "tab:purple", "torch": "tab:orange"},
    **{"reference": "tab:blue", "native": "tab:green"},
}
