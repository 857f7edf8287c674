"""From the committed CSVs: tables on the terminal, the tables of the documents, plots.

    python -m benchmarks report --readme

A document has a table between `<!-- benchmarks:NAME -->` and `<!-- /benchmarks -->`; NAME is a function below.
"""

import difflib
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from benchmarks import ops, results, scaling, steps
from benchmarks.tables import show
from benchmarks.workloads import WORKLOADS

Row = results.Row
ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "docs/performance.md")
_BLOCK = re.compile(r"(<!-- benchmarks:([\w-]+) -->\n).*?(<!-- /benchmarks -->)", re.DOTALL)


def main(readme: bool = False, check: bool = False, plots: bool = False) -> None:
    """Print what was measured; `--readme` writes it into README.md and docs/performance.md.

    Args:
        readme: write the tables of the documents from the CSVs.
        check: fail where a document's table is not that of the CSVs; write nothing.
        plots: draw benchmarks/results/*.png.
    """
    if readme or check:
        for path in map(ROOT.joinpath, DOCUMENTS):
            if path.exists():
                _update(path, check)
    elif plots:
        draw(results.FOLDER)
    else:
        for (workload, allocator, precision), rows in races().items():
            show(steps.table(rows, f"{workload}, allocator {allocator}, {precision}"))
        op_rows = results.load(ops.PATH)
        for name in dict.fromkeys(row["op"] for row in op_rows):
            show(ops.table([row for row in op_rows if row["op"] == name], name))
        show(ops.summary(op_rows))
        for axis, rows in itertools.groupby(results.load(scaling.PATH), key=lambda row: row["axis"]):
            show(scaling.table(list(rows), axis))


def races() -> dict[tuple[str, str, str], list[Row]]:
    """The committed training steps: the rows of each race, by workload, allocator and precision."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in results.load(steps.PATH):
        found.setdefault((row["workload"], row["allocator"], row["precision"]), []).append(row)
    order = list(WORKLOADS)
    return dict(sorted(found.items(), key=lambda item: (item[0][2], item[0][1], order.index(item[0][0]))))


# The tables of the documents, in Markdown


def training() -> str:
    """Milliseconds a training step of everyone's fastest mode, and the ratios that matter."""
    lines = []
    for (workload, allocator, precision), rows in races().items():
        fastest = {library: steps.fastest(rows, library) for library in ("jnet", *steps.RIVALS)}
        if precision != "float32" or fastest["jnet"] is None:
            continue
        cells = [_time(fastest[library]) for library in ("jnet", *steps.RIVALS)]
        memory = steps.memory(rows)
        ratio = steps.ratios(rows).get("rival")
        lines.append(
            [workload, allocator, *cells, _bold(ratio), "" if memory is None else f"{memory:.2f}", _compile(rows)]
        )
    head = ("workload", "allocator", "jnet ms", "flax", "equinox", "torch", "fastest rival / jnet")
    return _markdown((*head, "temporaries, jnet / flax", "compile, jnet / flax"), lines) + _taken(
        results.load(steps.PATH)
    )


def operations() -> str:
    """A line an op, over its shapes: how much longer the others take for forward and backward, and what they keep."""
    rows = results.load(ops.PATH)
    lines = []
    for name in dict.fromkeys(row["op"] for row in rows):
        groups = [group for group in ops.groups(rows) if "jnet" in group and group["jnet"]["op"] == name]
        cells = [_spread(groups, "both", rival) for rival in ops.SIDES[1:]]
        cells += [_spread(groups, "scan", rival) for rival in ("reference", "native")]
        kept = [
            group["reference"]["kept"] / group["jnet"]["kept"]
            for group in groups
            if "reference" in group and group["jnet"]["mode"] == "both" and group["jnet"]["kept"]
        ]
        errors = [group["jnet"]["rounding"] for group in groups if group["jnet"].get("rounding") is not None]
        cells += [f"{geometric_mean(kept):.1f}" if kept and min(kept) > 0 else ""]
        cells += [f"{max(errors):.0e}" if errors else ""]
        lines.append([f"`{name}`", *cells])
    head = ("op", "reference / jnet", "native / jnet", "torch / jnet", "in scan: reference", "in scan: native")
    return _markdown((*head, "kept, autodiff / by hand", "rounding"), lines) + _taken(rows)


def growth() -> str:
    """The exponents of time and temporaries along each axis."""
    rows = results.load(scaling.PATH)
    lines = []
    for (axis, contender), group in _grouped(rows, "axis", "contender").items():
        sizes = [row["size"] for row in group]
        fits = [scaling.exponents(group, contender, quantity) for quantity in ("p50_ms", "temporaries")]
        span = f"{min(sizes):.0f} to {max(sizes):.0f}"
        lines.append([axis, span, contender, *("" if fit is None else f"{fit:.2f}" for fit in fits)])
    return _markdown(("what grows", "from, to", "contender", "time", "temporaries"), lines) + _taken(rows)


TABLES: dict[str, Callable[[], str]] = {"training": training, "operations": operations, "growth": growth}


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


def _markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---", *("--:" for _ in head[1:])], *lines]
    return "\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _taken(rows: Sequence[Row]) -> str:
    """When, where and with what: every combination in the rows."""
    found = dict.fromkeys((row["date"], row["device"], row["cores"], row["versions"]) for row in rows)
    lines = [f"{date}, {device}, {cores:.0f} cores; {versions}" for date, device, cores, versions in found]
    return "\n" + "".join(f"Measured {line}.\n" for line in lines) + "\n"


def _time(row: Row | None) -> str:
    if row is None:
        return ""
    variant = " ".join(row["contender"].split(":")[1:]).replace("_", " ")
    return f"{row['p50_ms']:.3g}" + (f" ({variant})" if variant else "")


def _bold(ratio: float | None) -> str:
    return "" if ratio is None else f"**{ratio:.2f}**"


def _compile(rows: Sequence[Row]) -> str:
    by_name = {row["contender"]: row for row in rows if not row.get("error")}
    if "jnet" not in by_name or "flax" not in by_name:
        return ""
    return f"{by_name['jnet']['compile_s'] / by_name['flax']['compile_s']:.2f}"


def _spread(groups: Sequence[dict[str, Row]], mode: str, rival: str) -> str:
    found = [ops.ratio(group, rival) for group in groups if group["jnet"]["mode"] == mode]
    ratios = [ratio for ratio in found if ratio is not None]
    if not ratios:
        return ""
    mean = f"{geometric_mean(ratios):.2f}"
    return mean if len(ratios) == 1 else f"{mean} ({min(ratios):.2f} to {max(ratios):.2f})"


def _grouped(rows: Iterable[Row], *columns: str) -> dict[tuple, list[Row]]:
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in columns), []).append(row)
    return groups


# Plots


def draw(folder: Path) -> None:
    """Bars of the training steps, dots of the ops' ratios, lines of the growth: a PNG each."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def save(figure: Any, name: str) -> None:
        figure.savefig(folder / name, dpi=120, bbox_inches="tight")
        plt.close(figure)

    step_groups = {key: rows for key, rows in races().items() if key[2] == "float32"}
    if step_groups:
        figure, axes = plt.subplots(1, len(step_groups), figsize=(3 * len(step_groups), 3.2), squeeze=False)
        for axis, ((workload, allocator, _), rows) in zip(axes[0], step_groups.items(), strict=True):
            fastest = {library: steps.fastest(rows, library) for library in ("jnet", *steps.RIVALS)}
            times = {library: row["p50_ms"] for library, row in fastest.items() if row is not None}
            bars = axis.bar(list(times), list(times.values()), color=[_COLOURS[library] for library in times])
            axis.bar_label(bars, fmt="%.3g")
            axis.set(title=f"{workload}\nallocator {allocator}", ylabel="ms a step, fastest mode")
            axis.tick_params(axis="x", rotation=45)
        figure.tight_layout()
        save(figure, "steps.png")

    op_rows = results.load(ops.PATH)
    if op_rows:
        names = list(dict.fromkeys(row["op"] for row in op_rows))
        figure, axis = plt.subplots(figsize=(7, 0.28 * len(names) + 1.5))
        for rival in ops.SIDES[1:]:
            points = [
                (ops.ratio(group, rival), names.index(group["jnet"]["op"]))
                for group in ops.groups(op_rows)
                if "jnet" in group and group["jnet"]["mode"] == "both" and rival in group
            ]
            axis.plot(*zip(*points, strict=True), "o", alpha=0.6, color=_COLOURS[rival], label=f"{rival} / jnet")
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set(xscale="log", xlabel="time, forward and backward, over jnet's", yticks=range(len(names)))
        axis.set_yticklabels(names)
        axis.invert_yaxis()
        axis.legend()
        save(figure, "ops.png")

    growth_groups = _grouped(results.load(scaling.PATH), "axis")
    if growth_groups:
        figure, axes = plt.subplots(1, len(growth_groups), figsize=(3.4 * len(growth_groups), 3), squeeze=False)
        for axis, ((name,), rows) in zip(axes[0], growth_groups.items(), strict=True):
            for contender in dict.fromkeys(row["contender"] for row in rows):
                line = [(row["size"], row["p50_ms"]) for row in rows if row["contender"] == contender and row["p50_ms"]]
                axis.loglog(*zip(*line, strict=True), "o-", color=_COLOURS[contender.split(":")[0]], label=contender)
            axis.set(xlabel=name, ylabel="ms a step")
        axes[0][0].legend()
        figure.tight_layout()
        save(figure, "scaling.png")


_COLOURS = {
    **{"jnet": "tab:red", "flax": "tab:blue", "equinox": "tab:purple", "torch": "tab:orange"},
    **{"reference": "tab:blue", "native": "tab:green"},
}
