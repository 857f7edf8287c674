"""Parameters and whole runs on disk, through Orbax: atomic, checked on the way back, never a pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp


def save_tree(path: Path, tree: Any) -> None:
    """Write a pytree of arrays to the new folder `path`: it is there whole, or not at all."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), tree)


def load_tree(path: Path, like: Any) -> Any:
    """Read the pytree in `path`, which must have the structure, shapes and dtypes of `like`.

    Raises `FileNotFoundError` where there is none, `ValueError` with the list of what differs.
    """
    path = path.absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder; must hold saved parameters")
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            stored = checkpointer.metadata(path).item_metadata.tree
        except Exception as error:  # whatever a damaged file makes Orbax raise
            raise ValueError(f"{path}: damaged ({type(error).__name__}); no parameters can be read from it") from None
        differing = differences(stored, like)
        if differing:
            raise ValueError(f"{path}: of another model: {'; '.join(differing)}")
        return checkpointer.restore(path, on_device(like))


def on_device(like: Any) -> Any:
    """The shapes and dtypes of `like`, to be placed on the default device unless a leaf says otherwise."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def place(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or device)

    return jax.tree.map(place, like)


def differences(stored: Any, wanted: Any) -> list[str]:
    """What differs between two pytrees in names, shapes and dtypes: a line for each leaf."""
    there, here = _leaves(stored), _leaves(wanted)
    lines = [f"{name} {here[name]} is not in it" for name in here if name not in there]
    lines += [f"{name} {there[name]} has no place" for name in there if name not in here]
    both = [name for name in here if name in there and there[name] != here[name]]
    return lines + [f"{name} is {there[name]}, must be {here[name]}" for name in both]


def _leaves(tree: Any) -> dict[str, str]:
    """Path -> dtype and shape, as `params/00_conv2d/w: float32(3, 3, 1, 32)`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{tuple(leaf.shape)}"
        for path, leaf in leaves
    }
