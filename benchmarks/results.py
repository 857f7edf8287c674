"""The committed measurements: one CSV a kind, every row with the versions and the device it was taken with."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
FOLDER = Path(__file__).parent / "results"


def load(path: Path) -> list[Row]:
    """The rows of a CSV, numbers as floats and empty cells as None; no file is no rows."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: _value(name, cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def on_gpu(row: Row) -> bool:
    """Whether a row was taken on a GPU: `measure.device_name` gives nvidia-smi's name of it."""
    return row["device"].startswith("NVIDIA")


def last_cpu(rows: Sequence[Row]) -> str:
    """The processor that was measured last: `save` puts what is new at the end."""
    return next((row["device"] for row in reversed(rows) if not on_gpu(row)), "")


def of_last_cpu(rows: Sequence[Row]) -> list[Row]:
    """The rows of that processor."""
    return [row for row in rows if row["device"] == last_cpu(rows)]


def save(path: Path, rows: Sequence[Row], group: Sequence[str]) -> None:
    """Put `rows` into the CSV in place of those that agree with any of them in the columns `group`.

    What one run measured together is replaced together, so that no ratio is ever taken across two runs.
    """
    new = {_key(row, group) for row in rows}
    kept = [row for row in load(path) if _key(row, group) not in new]
    merged = [*kept, *rows]
    columns = list(dict.fromkeys(name for row in merged for name in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(row.get(name)) for name in columns} for row in merged)


def _key(row: Mapping[str, Any], group: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(row.get(name)) for name in group)


def _value(column: str, cell: str) -> Any:
    if cell == "":
        return None
    if column == "commit":  # 61234e567 is one too
        return cell
    try:
        return float(cell)
    except ValueError:
        return cell


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
