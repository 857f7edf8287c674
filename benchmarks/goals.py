"""The figures that jnet is held to, from the committed CSVs: what was asked, what was measured, by which command."""

from collections.abc import Callable, Iterable, Sequence
from statistics import geometric_mean
from typing import Any, NamedTuple

from benchmarks import fitting, ops, results, steps

Row = results.Row
STEPS = "python -m benchmarks steps --workload"
OPS = "python -m benchmarks ops --op"
POOL_RIVALS = {"reference": (10, 40), "native": (10, 40), "torch": (3, 10), "torch:channels_first": (3, 10)}


class Goal(NamedTuple):
    """A figure: what it is, the least that is asked, the aim, the measured values by name, and how to reproduce it."""

    figure: str
    floor: float
    aim: float
    measured: dict[str, float]
    command: str
    more_is_better: bool = True

    @property
    def holds(self) -> bool | None:
        """Whether every measured value reaches the floor; None where nothing was measured."""
        values = self.measured.values()
        if not values:
            return None
        return min(values) >= self.floor if self.more_is_better else max(values) <= self.floor


def goals() -> list[Goal]:
    """All figures of the processor that was measured last, in float32."""
    step_rows, op_rows, fit_rows = (results.of_last_cpu(results.load(module.PATH)) for module in (steps, ops, fitting))
    races: dict[tuple[str, str], list[Row]] = {}
    for row in step_rows:
        if row["precision"] == "float32":
            races.setdefault((row["workload"], row["allocator"]), []).append(row)
    groups = [group for group in ops.groups(op_rows) if "jnet" in group]

    def race(workload: str, figure: Callable[[Sequence[Row]], float | None]) -> dict[str, float]:
        found = {allocator: figure(rows) for (name, allocator), rows in races.items() if name == workload}
        return {allocator: value for allocator, value in found.items() if value is not None}

    def rival(workload: str, floor: float, aim: float) -> Goal:
        command = f"{STEPS} {workload}"
        return Goal(f"{workload}: fastest rival / jnet", floor, aim, race(workload, _rival), command)

    def temporaries(workload: str, floor: float) -> Goal:
        figure = f"{workload}: compiled temporaries, jnet / flax"
        return Goal(figure, floor, 0.3, race(workload, steps.memory), f"{STEPS} {workload}", False)

    def op_ratio(rival: str, mode: str, name: str = "", case: str = "") -> dict[str, float]:
        return _worst_and_mean(groups, rival, mode, name, case)

    fit = {row["allocator"]: row["python_ms"] for row in fit_rows}
    return [
        rival("fc-small", 1.3, 2),
        rival("fc-large", 1.15, 1.3),
        rival("three-layer", 1.3, 2),
        rival("vgg", 1.15, 1.5),
        rival("resnet", 0.85, 1.5),
        Goal("resnet: flax and equinox / jnet", 1.8, 1.8, race("resnet", _jax_rival), f"{STEPS} resnet"),
        temporaries("three-layer", 0.4),
        temporaries("vgg", 0.6),
        temporaries("resnet", 0.6),
        Goal("every op: reference / jnet", 0.95, 2, op_ratio("reference", "both"), "python -m benchmarks ops"),
        Goal("every op: native / jnet", 0.95, 2, op_ratio("native", "both"), "python -m benchmarks ops"),
        *(
            Goal(f"max-pool {window}: {rival} / jnet", *asked, op_ratio(rival, "both", "max_pool2d", window), command)
            for command in (f"{OPS} max_pool2d",)
            for window in ("2x2/2", "3x3/2")
            for rival, asked in POOL_RIVALS.items()
        ),
        *(
            Goal(f"conv2d in scan: {rival} / jnet", 20, 100, op_ratio(rival, "scan", "conv2d"), f"{OPS} conv2d")
            for rival in ("reference", "native")
        ),
        *(
            Goal(f"{workload}: per-call / scanned", 1, 1.2, _default(race(workload, _scanned)), f"{STEPS} {workload}")
            for workload in ("vgg", "resnet")
        ),
        *(
            Goal(
                f"{workload}: compile time, jnet / flax",
                1.5,
                1,
                race(workload, steps.compile_ratio),
                f"{STEPS} {workload}",
                False,
            )
            for workload in dict.fromkeys(workload for workload, _ in races)
        ),
        Goal("fit, fc-small, scanned: ms of Python a step", 0.1, 0.02, fit, "python -m benchmarks fit", False),
    ]


def _default(values: dict[str, float]) -> dict[str, float]:
    return {allocator: value for allocator, value in values.items() if allocator == "default"}


def _rival(rows: Sequence[Row]) -> float | None:
    return steps.ratios(rows).get("rival")


def _jax_rival(rows: Sequence[Row]) -> float | None:
    ratios = steps.ratios(rows)
    return min((ratios[name] for name in ("flax", "equinox") if name in ratios), default=None)


def _by_name(rows: Sequence[Row]) -> dict[str, Row]:
    return {row["contender"]: row for row in rows if not row.get("error")}


def _scanned(rows: Sequence[Row]) -> float | None:
    """Time of jnet's step called by itself over that of one in a scanned epoch."""
    found = _by_name(rows)
    return found["jnet"]["p50_ms"] / found["jnet:scan"]["p50_ms"] if {"jnet", "jnet:scan"} <= found.keys() else None


def _worst_and_mean(groups: Iterable[dict[str, Row]], rival: str, mode: str, name: str, case: str) -> dict[str, float]:
    """The least ratio, with its op and shape, and the geometric mean over the shapes that match."""
    found = {}
    for group in groups:
        row = group["jnet"]
        times = ops.ratio(group, rival)
        if times is not None and row["mode"] == mode and (not name or row["op"] == name) and case in row["case"]:
            found[f"{row['op']} {row['case']}"] = times
    if not found:
        return {}
    worst = min(found, key=lambda key: found[key])
    return {f"least, {worst}": found[worst], "mean": geometric_mean(found.values())}


def line(goal: Goal) -> list[str]:
    """The cells of a table."""
    sign = "" if goal.more_is_better else "at most "
    verdict = {True: "yes", False: "**no**", None: "not measured"}[goal.holds]
    measured = "; ".join(f"{value:.4g} ({name})" for name, value in goal.measured.items())
    return [goal.figure, f"{sign}{goal.floor:g}", f"{goal.aim:g}", measured, verdict, f"`{goal.command}`"]


HEAD: tuple[Any, ...] = ("figure", "floor", "aim", "measured", "holds", "command")
