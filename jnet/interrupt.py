"""Stopping at a good moment: SIGTERM and Ctrl-C are noted, and the loop stops when its state is whole."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class Interrupted(Exception):
    """Training was asked to stop, and has saved itself."""

    def __init__(self, number: int, message: str):
        """`number` is that of the signal."""
        super().__init__(message)
        self.number = number


@contextlib.contextmanager
def noted_signals() -> Iterator[Callable[[], int | None]]:
    """Inside the block SIGTERM and SIGINT only set what the given function returns; a second one acts as ever.

    Outside the main thread Python allows no handlers: there nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    noted: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: object) -> None:
        noted.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: noted[0] if noted else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
