"""Compare a result with what is right, and put into words in which way it is wrong."""

import numpy as np

__all__ = ["NARROW", "TOLERANCE", "close", "describe"]

TOLERANCE = 1e-6  # relative to the largest entry; correct float64 code of any style is far below
NARROW = 1e-3  # the same for results in a narrower dtype


def close(got: np.ndarray, want: np.ndarray, tolerance: float = TOLERANCE) -> bool:
    """Whether two arrays have the same shape and agree to rounding, nan and infinity included."""
    want = np.asarray(want)
    if got.shape != want.shape:
        return False
    finite = np.isfinite(want)
    scale = np.abs(want[finite]).max(initial=0.0)
    special = np.array_equal(got[~finite], want[~finite], equal_nan=True)
    return bool(special and (np.abs(got[finite] - want[finite]) <= tolerance * scale).all())


def describe(got: np.ndarray, want: np.ndarray, axes: str = "") -> str:
    """Say in one sentence how `got` differs from `want`."""
    want = np.asarray(want)
    if got.shape != want.shape:
        return _shape(got, want)
    bad = ~np.isfinite(got)
    if bad.any():
        return f"{bad.sum()} of {got.size} entries are nan or infinite, the first at {_index(bad)}"
    if not got.any():
        return "it is all zeros"
    for words in (_factor, _offset, _factor_by_axis, _some_indices, _border):
        sentence = words(got, want, _axis_names(got, axes))
        if sentence:
            return sentence
    wrong = _wrong(got, want)
    error = np.where(wrong, np.abs(got - want), 0)
    at = np.unravel_index(int(np.argmax(error)), got.shape)
    where = list(map(int, at))
    return f"{wrong.sum()} of {got.size} entries are wrong; at {where} it is {got[at]:.6g}, must be {want[at]:.6g}"


def _shape(got: np.ndarray, want: np.ndarray) -> str:
    text = f"its shape is {got.shape}, must be {want.shape}"
    if got.size == want.size and close(got.reshape(want.shape), want):
        return f"{text}; the numbers are right and only need a reshape"
    try:
        broadcasts = np.broadcast_shapes(got.shape, want.shape)
    except ValueError:
        return text
    return f"{text}; NumPy would broadcast it to {broadcasts} without a word"


def _wrong(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    return np.abs(got - want) > TOLERANCE * np.abs(want).max(initial=0.0)


def _index(mask: np.ndarray) -> list[int]:
    return [int(i) for i in np.argwhere(mask)[0]]


def _axis_names(got: np.ndarray, axes: str) -> list[str]:
    return [f"axis {i} ({axes[i]})" if i < len(axes) else f"axis {i}" for i in range(got.ndim)]


def _factor(got: np.ndarray, want: np.ndarray, names: list[str]) -> str:
    if not want.any():
        return ""
    factor = float((got * want).sum() / (want * want).sum())
    return f"every entry is {factor:.6g} times what it must be" if close(got, factor * want) else ""


def _offset(got: np.ndarray, want: np.ndarray, names: list[str]) -> str:
    offset = float((got - want).mean())
    return (
        f"every entry is {abs(offset):.6g} too {'large' if offset > 0 else 'small'}"
        if close(got, want + offset)
        else ""
    )


def _factor_by_axis(got: np.ndarray, want: np.ndarray, names: list[str]) -> str:
    """A factor, or an offset, that varies along one axis only."""
    for axis, name in enumerate(names):
        others = tuple(i for i in range(got.ndim) if i != axis)
        if not others or got.shape[axis] == 1:
            continue
        square = (want * want).sum(others, keepdims=True)
        factor = (got * want).sum(others, keepdims=True) / np.where(square > 0, square, 1.0)
        if close(got, factor * want):
            return f"each index of {name} has a wrong factor of its own: {_few(factor.reshape(-1))}"
        offset = (got - want).mean(others, keepdims=True)
        if close(got, want + offset):
            return f"each index of {name} is off by a constant of its own: {_few(offset.reshape(-1))}"
    return ""


def _some_indices(got: np.ndarray, want: np.ndarray, names: list[str]) -> str:
    """Wrong at some indices of one axis only."""
    wrong = _wrong(got, want)
    for axis, name in enumerate(names):
        hit = np.flatnonzero(wrong.any(tuple(i for i in range(got.ndim) if i != axis)))
        if got.ndim > 1 and 0 < hit.size <= got.shape[axis] // 2:
            return f"it is wrong only at index {', '.join(map(str, hit))} of {name}, which has {got.shape[axis]}"
    return ""


def _border(got: np.ndarray, want: np.ndarray, names: list[str]) -> str:
    wrong = _wrong(got, want)
    if got.ndim == 4 and min(got.shape[2:]) > 2 and not wrong[:, :, 1:-1, 1:-1].any():
        return "it is wrong only on the border of the image"
    return ""


def _few(values: np.ndarray) -> str:
    return ", ".join(f"{v:.4g}" for v in values[:4]) + (", ..." if values.size > 4 else "")
