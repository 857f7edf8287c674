"""Tables on the terminal."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def grid(title: str, headings: Sequence[str], lines: Iterable[Sequence[str]]) -> Table:
    """A table whose first column stands left and whose others stand right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for position, heading in enumerate(headings):
        table.add_column(heading, justify="right" if position else "left", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    return table


def number(value: Any, digits: int, scale: float = 1.0) -> str:
    """A number for a cell; None is an empty cell."""
    return "" if value is None else f"{value * scale:.{digits}f}"


def show(table: Table) -> None:
    """Print a table whole: a pipe or a narrow terminal gets long lines, not cut ones."""
    console = Console()
    console.width = max(console.width, Console(width=1000).measure(table).maximum)
    console.print(table)
