"""What `jnet train` shows while it runs: a bar on a terminal, a plain line for each epoch elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jnet.progress import Report, Row

REFRESH = 5  # times a second


@contextlib.contextmanager
def show_progress(epochs: int, steps: int) -> Iterator[Callable[[Report], None]]:
    """Give a function for `fit(report=...)`; the bar is gone when the block ends, the lines of the epochs stay."""
    if not sys.stdout.isatty():
        yield lambda report: print(epoch_line(report.history[-1], epochs), flush=True) if report.finished else None
        return
    columns = (
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[now]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True, refresh_per_second=REFRESH) as bar:
        task = bar.add_task("", total=steps, epoch=1, epochs=epochs, now="compiling")

        def show(report: Report) -> None:
            rate = bar.tasks[0].speed or 0.0
            now = f"{rate:.1f} steps/s  loss {report.loss:.4f}  accuracy {report.accuracy:.3f}"
            bar.update(task, completed=report.step, epoch=report.epoch, now=now)
            if report.finished:
                bar.console.print(epoch_line(report.history[-1], epochs), highlight=False)

        yield show


def epoch_line(row: Row, epochs: int) -> str:
    """One epoch's row of the history, for people."""
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}"
        f"  train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.4f}"
        f"  val loss {row['val_loss']:.4f} accuracy {row['val_accuracy']:.4f}"
    )
