"""Argument checks shared by the formulas: one line that names the op, the argument, what it was and what it must be."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

__all__ = ["require", "require_float", "require_labels", "require_rank", "require_shape"]


def require(condition: bool, message: str) -> None:
    """Raise `ValueError(message)` unless `condition`; both are known while tracing."""
    if not condition:
        raise ValueError(message)


def require_float(op: str, **arrays: Any) -> None:
    """Raise unless every named array has a floating dtype."""
    for name, array in arrays.items():
        if not jnp.issubdtype(jnp.result_type(array), jnp.floating):
            raise TypeError(f"{op}: {name} has dtype {jnp.result_type(array)}; it must be a floating dtype")


def require_rank(op: str, name: str, array: Any, at_least: int, expected: str) -> None:
    """Raise unless `array` has at least `at_least` axes; `expected` says what the axes are, as `(N, ..., C)`."""
    if jnp.ndim(array) < at_least:
        raise ValueError(f"{op}: {name} has shape {jnp.shape(array)}; it must be {expected}")


def require_shape(op: str, name: str, array: Any, shape: Sequence[int], because: str) -> None:
    """Raise unless `array` has exactly `shape`; `because` names what the shape follows from, as `x (4, 7)`."""
    if jnp.shape(array) != tuple(shape):
        raise ValueError(f"{op}: {name} has shape {jnp.shape(array)}; it must be {tuple(shape)} to go with {because}")


def require_labels(op: str, labels: Any, rows: int) -> None:
    """Raise unless `labels` is a vector of `rows` integers."""
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise TypeError(f"{op}: labels have dtype {jnp.result_type(labels)}; they must be integers")
    if jnp.shape(labels) != (rows,):
        raise ValueError(f"{op}: labels have shape {jnp.shape(labels)}; they must be ({rows},), one a row")
