"""Parameters and whole runs on disk, through Orbax: atomic, checked on the way back, never a pickle."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax import Array

_HALF_WRITTEN = "*.orbax-checkpoint-tmp*"  # what a process that was killed while saving leaves


class CheckpointWarning(UserWarning):
    """A checkpoint cannot be used; the message names it."""


class Saved(NamedTuple):
    """One checkpoint, read back."""

    step: int
    arrays: Any  # a pytree
    facts: Any  # what JSON can hold


class Checkpoints:
    """The checkpoints of one run in one folder, each under the number of its step.

    `save` returns when the arrays are copied; they are written by another thread, to a folder that gets its name when
    it is complete. With it go checksums: what does not read back as it was written counts as damaged.
    """

    def __init__(self, folder: str | Path, keep: int):
        """Open or make `folder`, to hold the newest `keep` checkpoints."""
        if keep < 1:
            raise ValueError(f"keep: {keep}; must be at least 1")
        self._folder = Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=options,
            item_handlers={"arrays": ocp.StandardCheckpointHandler(), "facts": ocp.JsonCheckpointHandler()},
        )

    def save(self, step: int, arrays: Any, facts: Mapping[str, Any]) -> None:
        """Save a checkpoint; the caller may donate `arrays` as soon as this returns.

        Checkpoints of this step or later ones were damaged, or the run would have gone on from them; they make room.
        """
        for later in self._manager.all_steps():
            if later >= step:
                self._manager.delete(later)
        copies = jax.tree.map(jnp.copy, arrays)
        checked = {"facts": facts, "checksum": _checksum_of_facts(facts), "checksums": _checksums(copies)}
        items = {"arrays": ocp.args.StandardSave(copies), "facts": ocp.args.JsonSave(checked)}
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def restore(self, like: Any) -> Saved | None:
        """Read the newest checkpoint that is whole, or None if there is none.

        `like` has the shapes, dtypes and shardings that are wanted. Warns (`CheckpointWarning`) of each newer one that
        is damaged. Raises `ValueError` with the list of what differs if the checkpoint is of another model, and if
        there are checkpoints but no whole one.
        """
        for path in sorted(self._folder.glob(_HALF_WRITTEN)):
            warnings.warn(f"{path}: half-written; skipped", CheckpointWarning, stacklevel=2)
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            path = self._folder / str(step)
            try:
                with _silence():
                    return self._read(step, like)
            except _OtherModelError:
                raise
            except Exception as error:  # a damaged file can make Orbax raise anything
                warnings.warn(f"{path}: damaged ({_one_line(error)}); skipped", CheckpointWarning, stacklevel=2)
        if steps:
            raise ValueError(f"{self._folder}: no checkpoint in it can be read; remove it to begin anew")
        return None

    def close(self) -> None:
        """Wait until all is written."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _read(self, step: int, like: Any) -> Saved:
        checked = self._manager.restore(step, args=ocp.args.Composite(facts=ocp.args.JsonRestore()))["facts"]
        if _checksum_of_facts(checked["facts"]) != checked["checksum"]:
            raise ValueError("facts are not what was written")
        stored = self._manager.item_metadata(step)["arrays"]
        if not stored:
            raise ValueError("the list of its arrays is missing")
        check_same(self._folder / str(step), getattr(stored, "tree", stored), like)
        args = ocp.args.Composite(arrays=ocp.args.StandardRestore(on_device(like)))
        arrays = self._manager.restore(step, args=args)["arrays"]
        found = _checksums(arrays)
        wrong = [name for name, checksum in checked["checksums"].items() if found[name] != checksum]
        if wrong:
            raise ValueError(f"{wrong[0]} is not what was written")
        return Saved(step, arrays, checked["facts"])


def save_tree(path: Path, tree: Any) -> None:
    """Write a pytree of arrays to the folder `path`, replacing it: it is there whole, or not at all."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), tree, force=True)


def load_tree(path: Path, like: Any) -> Any:
    """Read the pytree in `path`, which must have the structure, shapes and dtypes of `like`.

    Raises `FileNotFoundError` where there is none; `ValueError` with the list of what differs, or if it is damaged.
    """
    path = path.absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder; must hold saved parameters")
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            with _silence():
                check_same(path, checkpointer.metadata(path).item_metadata.tree, like)
                return checkpointer.restore(path, on_device(like))
        except _OtherModelError:
            raise
        except Exception as error:
            raise ValueError(f"{path}: damaged ({_one_line(error)}); no parameters can be read from it") from None


def on_device(like: Any) -> Any:
    """The shapes and dtypes of `like`, placed on the default device unless a leaf says otherwise."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def place(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or device)

    return jax.tree.map(place, like)


class _OtherModelError(ValueError):
    """What is stored is whole, but of another model."""


def check_same(path: Path, stored: Any, wanted: Any) -> None:
    """Raise `ValueError` with all that differs between two pytrees in names, shapes and dtypes."""
    there, here = _leaves(stored), _leaves(wanted)
    lines = [f"{name} {here[name]} is missing" for name in here if name not in there]
    lines += [f"{name} {there[name]} is not in this model" for name in there if name not in here]
    both = [name for name in here if name in there and there[name] != here[name]]
    lines += [f"{name} is {there[name]}, must be {here[name]}" for name in both]
    if lines:
        own = [line for line in lines if not line.startswith(("best/", "state/opt_state/"))]  # the others mirror these
        raise _OtherModelError(f"{path}: of another model: {'; '.join(own or lines)}")


def _leaves(tree: Any) -> dict[str, str]:
    """Path -> dtype and shape, as `params/00_conv2d/w: float32(3, 3, 1, 32)`; a key is described by its words."""
    words = {name: jax.eval_shape(_raw, leaf) if _is_key(leaf) else leaf for name, leaf in _named(tree)}
    return {name: f"{leaf.dtype}{tuple(leaf.shape)}" for name, leaf in words.items()}


def _named(tree: Any) -> list[tuple[str, Any]]:
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in paths]


def _checksums(tree: Any) -> dict[str, int]:
    """A number for each leaf, by path, that changes with any of its bits; computed where the array is."""
    sums = jax.device_get(_checksum_leaves(jax.tree.map(_raw, tree)))
    return {name: int(checksum) for name, checksum in _named(sums)}


@jax.jit
def _checksum_leaves(tree: Any) -> Any:
    """Sum of the words of each array, each times its odd place, modulo 2**32."""

    def checksum(x: Array) -> Array:
        bits = jnp.uint8 if x.dtype.itemsize == 1 else jnp.uint16 if x.dtype.itemsize == 2 else jnp.uint32
        x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
        words = jax.lax.bitcast_convert_type(x, bits).astype(jnp.uint32).reshape(-1)
        place = jax.lax.iota(jnp.uint32, words.size)
        return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)

    return jax.tree.map(checksum, tree)


def _raw(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _checksum_of_facts(facts: Any) -> int:
    return zlib.crc32(json.dumps(facts, sort_keys=True).encode())


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep Orbax from logging at length what it also raises."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
