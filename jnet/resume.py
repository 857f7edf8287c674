"""Saving a run while it trains, and going on from what was saved as if nothing had happened."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jnet.checkpoint import Checkpoints
from jnet.interrupt import Interrupted, noted_signals
from jnet.parallel import Placement
from jnet.progress import Best, Order, Progress
from jnet.step import TrainState

SAVE_SECONDS = 10.0  # between two checkpoints of a run that does not say how often

Run = tuple[TrainState, Best, Progress]


class Saver:
    """Keeps the checkpoints of one run; a context in which SIGTERM and Ctrl-C mean: save and stop."""

    def __init__(self, folder: str | Path, order: Order, save_every: int | None, keep: int):
        """Open `folder`; see `fit` for the other arguments."""
        self._folder, self._order, self._save_every = Path(folder), order, save_every
        self._checkpoints = Checkpoints(folder, keep)
        # processes that train together would stop at different steps: there signals act as ever
        self._signals = noted_signals() if jax.process_count() == 1 else contextlib.nullcontext(lambda: None)
        self._saved_step, self._saved_time = 0, time.monotonic()

    def __enter__(self) -> Saver:
        """Begin to note signals."""
        self._signal = self._signals.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Wait until all is written; signals act as before."""
        self._checkpoints.close()
        self._signals.__exit__(*error)

    def restore(self, begin: Callable[[Placement], Run], placement: Placement) -> Run:
        """The newest whole checkpoint, put where `placement` says, or `begin(placement)`.

        Raises `ValueError` with what differs if the checkpoint is of another model, data or order.
        """
        shapes = jax.eval_shape(lambda: _arrays(*begin(Placement())[:2]))
        saved = self._checkpoints.restore(placement.of_shapes(shapes))
        if saved is None:
            return begin(placement)
        facts, arrays = saved.facts, saved.arrays
        ours = self._order._asdict()
        differing = [
            f"{name} {facts['order'][name]}, here {ours[name]}" for name in ours if facts["order"][name] != ours[name]
        ]
        if differing:
            raise ValueError(f"{self._folder / str(saved.step)}: of another run: {'; '.join(differing)}")
        self._saved_step = saved.step
        progress = Progress(**{**facts["progress"], "history": tuple(facts["progress"]["history"])})
        return arrays["state"], Best(**arrays["best"], **facts["best"]), progress

    def save_if_due(self, state: TrainState, best: Best, progress: Progress, *, last: bool) -> None:
        """Save where a checkpoint is due, at the `last` step, and before raising `Interrupted` for a signal."""
        noted = self._signal()
        if last or noted is not None or self._is_due(progress):
            self._save(state, best, progress)
        if noted is not None:
            self._checkpoints.close()
            raise Interrupted(
                noted, f"stopped by {signal.Signals(noted).name} after step {self._saved_step}; saved in {self._folder}"
            )

    def _is_due(self, progress: Progress) -> bool:
        if self._save_every is not None:
            return progress.step(self._order) // self._save_every > self._saved_step // self._save_every
        waited = time.monotonic() - self._saved_time
        return progress.batch == 0 and (waited >= SAVE_SECONDS or jax.process_count() > 1)  # all must agree

    def _save(self, state: TrainState, best: Best, progress: Progress) -> None:
        step = progress.step(self._order)
        facts = {
            "order": self._order._asdict(),
            "progress": progress._asdict(),
            "best": {"epoch": best.epoch, "val_accuracy": best.val_accuracy, "val_loss": best.val_loss},
        }
        self._checkpoints.save(step, _arrays(state, best), facts)
        self._saved_step, self._saved_time = step, time.monotonic()


def _arrays(state: TrainState, best: Best) -> dict[str, Any]:
    return {"state": state, "best": {"params": best.params, "model_state": best.model_state}}
