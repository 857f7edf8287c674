"""Numerical gradients by central differences, in place: `x` is changed entry by entry and put back.

Callers rely on that: a function may ignore its argument and read `x` from where it found it.
"""

import random
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = [
    "eval_numerical_gradient",
    "eval_numerical_gradient_array",
    "eval_numerical_gradient_blobs",
    "eval_numerical_gradient_net",
    "grad_check_sparse",
]


def eval_numerical_gradient(
    f: Callable[[np.ndarray], float], x: np.ndarray, verbose: bool = True, h: float = 1e-5
) -> np.ndarray:
    """Return the gradient of the scalar `f` at `x`, in x's shape; print each entry where `verbose`."""
    grad = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        above, below = _both_sides(f, x, index, h)
        grad[index] = (above - below) / (2 * h)
        if verbose:
            print(index, grad[index])
    return grad


def eval_numerical_gradient_array(
    f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, df: np.ndarray, h: float = 1e-5
) -> np.ndarray:
    """Return the gradient of `sum(f(x) * df)` at `x`, in x's shape: the cotangent of `x` for the cotangent `df`."""
    grad = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        above, below = _both_sides(lambda at: np.array(f(at)), x, index, h)
        grad[index] = np.sum((above - below) * df) / (2 * h)
    return grad


def eval_numerical_gradient_blobs(
    f: Callable[..., Any], inputs: tuple, output: Any, h: float = 1e-5
) -> list[np.ndarray]:
    """Return a gradient for each input blob; `f(*inputs, output)` writes `output.vals`, of cotangent `output.diffs`."""

    def outcome(_):
        f(*inputs, output)
        return np.copy(output.vals)

    return [eval_numerical_gradient_array(outcome, blob.vals, output.diffs, h) for blob in inputs]


def eval_numerical_gradient_net(net: Any, inputs: tuple, output: Any, h: float = 1e-5) -> list[np.ndarray]:
    """Return a gradient for each input blob of `net`, whose `forward()` writes `output.vals`."""
    return eval_numerical_gradient_blobs(lambda *_: net.forward(), inputs, output, h)


def grad_check_sparse(
    f: Callable[[np.ndarray], float], x: np.ndarray, analytic_grad: np.ndarray, num_checks: int = 10, h: float = 1e-5
) -> None:
    """Print the numerical and the analytic gradient at `num_checks` random entries (drawn from `random`)."""
    for _ in range(num_checks):
        index = tuple(random.randrange(size) for size in x.shape)
        above, below = _both_sides(f, x, index, h)
        numerical, analytic = float((above - below) / (2 * h)), float(analytic_grad[index])
        scale = abs(numerical) + abs(analytic)
        error = abs(numerical - analytic) / scale if scale else 0.0
        print(f"numerical: {numerical:f} analytic: {analytic:f}, relative error: {error:e}")


def _both_sides(f: Callable, x: np.ndarray, index: tuple[int, ...], h: float) -> tuple[Any, Any]:
    """Return f with `x[index]` moved up and with it moved down by h; the entry is itself again afterwards."""
    value = x[index]
    try:
        x[index] = value + h
        above = f(x)
        x[index] = value - h
        return above, f(x)
    finally:
        x[index] = value
