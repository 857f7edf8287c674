r"""Check a hand-written gradient: is it right, in which entry is it wrong, and by how much?

Three questions, three functions:

- `numerical_vjp(f, args, dout)`: what must the gradient be? Central differences in float64, in every coordinate.
- `check_vjp(f, args, reference=...)`: is the rule of a JAX function right, in every dtype? Returns a `Report`.
- `check_pair(forward, backward, args)`: the same for a NumPy pair in the form `(out, cache)`, `(dout, cache)`.

`assert_vjp(f, args, ...)` is `check_vjp` as one line of a test.

How it avoids the ways in which such checks lie:

- *Every* coordinate of every argument, not one random direction; a random cotangent, never ones (for batch
  normalization a cotangent of ones makes `dx` identically zero, and any formula passes).
- In float64 whatever `jax_enable_x64` is set to, and without changing it.
- An error is measured against the largest entry of its gradient. A gradient that is wrong by 0.1 % fails in float32;
  one that is right to bfloat16's own rounding passes in bfloat16.
- At a kink no difference is the derivative. Where the one-sided differences disagree at every step size, the entry is
  reported apart, and must only lie between them. A `reference` states the convention there: against it kinks count.

Imports nothing of jnet.
"""

import copy
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

TOLERANCES = {"float64": 1e-12, "float32": 2e-5, "bfloat16": 5e-2, "float16": 1e-2}
"""The largest error that each dtype is allowed, relative to the largest entry of the gradient."""

DIFFERENCE_TOLERANCE = 1e-6
"""The same for float64 central differences, which are no better than this themselves."""

Vector = np.ndarray  # (n,) float64: all float arguments, or all float results, one after another


class Row(NamedTuple):
    """One check of one argument."""

    check: str  # "differences" | "reference" | "linearity" | "cotangent" | "second order" | "jit" | ...
    dtype: str
    argument: str
    shape: tuple[int, ...]
    at: tuple[int, ...] | None  # the index of the worst entry; None where the check is not of entries
    expected: float
    got: float
    error: float  # of the worst entry, relative to the largest entry expected
    tolerance: float
    ok: bool
    note: str = ""


class Kink(NamedTuple):
    """An entry at which the one-sided derivatives disagree, so that central differences say nothing."""

    dtype: str
    argument: str
    at: tuple[int, ...]
    low: float  # the gradient may be anything between what the two sides give
    high: float
    got: float


class GradientError(AssertionError):
    """A gradient is wrong. The message is the report."""


class Report(NamedTuple):
    """What `check_vjp` and `check_pair` found. `print(report)` shows the table."""

    name: str
    rows: tuple[Row, ...]
    kinks: tuple[Kink, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(row.ok for row in self.rows)

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows that did not pass."""
        return tuple(row for row in self.rows if not row.ok)

    def raise_if_failed(self) -> None:
        """Raise `GradientError` with the report as its message, unless every check passed."""
        if not self.ok:
            raise GradientError(f"{len(self.failures)} of {len(self.rows)} checks failed\n{self}")

    def __str__(self) -> str:
        """Draw the table: argument, shape, worst entry with its index, expected and got, verdict."""
        head = ("check", "dtype", "argument", "shape", "worst at", "expected", "got", "error", "allowed", "verdict")
        lines = _table([head, *map(_cells, self.rows)])
        verdict = "ok" if self.ok else f"{len(self.failures)} of {len(self.rows)} checks FAILED"
        if self.kinks:
            lines += ["", f"{len(self.kinks)} entries at a kink, where the one-sided differences disagree:"]
            lines += [_kink_line(kink) for kink in self.kinks[:8]]
            lines += [f"  ... and {len(self.kinks) - 8} more"] if len(self.kinks) > 8 else []
        return "\n".join([f"{self.name}: {verdict}", *lines, *self.notes])


def _cells(row: Row) -> tuple[str, ...]:
    verdict = ("ok" if row.ok else "FAIL") + (f"  {row.note}" if row.note else "")
    shape = str(row.shape).replace(" ", "") if row.argument else ""
    if row.at is None:
        return (row.check, row.dtype, row.argument, shape, "", "", "", "", "", verdict)
    index = str(list(row.at)).replace(" ", "")
    numbers = (f"{row.expected:.6g}", f"{row.got:.6g}", f"{row.error:.1e}", f"{row.tolerance:.0e}")
    return (row.check, row.dtype, row.argument, shape, index, *numbers, verdict)


def _table(cells: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]


def _kink_line(kink: Kink) -> str:
    index = str(list(kink.at)).replace(" ", "")
    return f"  {kink.argument}{index} ({kink.dtype}): between {kink.low:.6g} and {kink.high:.6g}, got {kink.got:.6g}"


# ----------------------------------------------------------------------------------------------------------------------
# A function of its float arrays alone


class _Problem(NamedTuple):
    call: Callable[..., tuple[Any, ...]]  # float arrays in, float arrays out; all else is held fixed or dropped
    floats: list[np.ndarray]  # float64
    names: list[str]


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, float) or (hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating))


def _problem(f: Callable, args: Sequence | Mapping, static: Mapping[str, Any]) -> _Problem:
    """Close `f` over everything but its float leaves."""
    args = dict(args) if isinstance(args, Mapping) else tuple(args)
    paths, tree = jax.tree_util.tree_flatten_with_path(args)
    where = [i for i, (_, leaf) in enumerate(paths) if _is_float(leaf)]
    if not where:
        raise ValueError("args must hold at least one floating-point array to differentiate, got none")

    def call(*floats):
        leaves = [leaf for _, leaf in paths]
        for i, value in zip(where, floats, strict=True):
            leaves[i] = value
        filled = jax.tree.unflatten(tree, leaves)
        return _floats(f(**filled, **static) if isinstance(filled, dict) else f(*filled, **static))

    names = {key: str(key) for key in args} if isinstance(args, dict) else dict(enumerate(_names(f, len(args))))
    floats = [np.array(paths[i][1], np.float64) for i in where]
    return _Problem(call, floats, [_leaf_name(names, paths[i][0]) for i in where])


def _floats(out: Any) -> tuple[Any, ...]:
    return tuple(leaf for leaf in jax.tree.leaves(out) if _is_float(leaf))


def _names(f: Callable, count: int) -> list[str]:
    """Name the first `count` positional arguments of `f`."""
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [named[i] if i < len(named) else f"args[{i}]" for i in range(count)]


def _leaf_name(names: Mapping[Any, str], path: tuple) -> str:
    top = path[0].key if hasattr(path[0], "key") else path[0].idx
    return names[top] + jax.tree_util.keystr(path[1:])


def _join(arrays: Sequence[Any]) -> Vector:
    return np.concatenate([np.asarray(a).astype(np.float64).reshape(-1) for a in arrays])


# ----------------------------------------------------------------------------------------------------------------------
# Central differences


class _Slopes(NamedTuple):
    """Differences of `<dout, f>` in some coordinates, each (k,) float64."""

    slope: Vector  # central
    low: Vector  # the least and the largest sum of the outputs' one-sided derivatives, each taken from either side
    high: Vector
    gross: Vector  # the largest sum of absolute contributions in the same argument: rounding is proportional to it
    noise: Vector  # what the rounding of f's results costs a difference
    kink: np.ndarray  # bool


class _Differences:
    """Differences of one function, compiled once where JAX can trace it, else by a loop over NumPy calls."""

    def __init__(self, call: Callable, floats: Sequence[np.ndarray]):
        self.shapes = [a.shape for a in floats]
        self.sizes = [a.size for a in floats]
        self.leaf = np.repeat(np.arange(len(floats)), self.sizes)
        try:
            outs = jax.eval_shape(call, *floats)
            self.traced = True
        except Exception:  # a NumPy function meets a tracer; if the error is its own, the next line raises it again
            outs = [np.asarray(out) for out in call(*[a.copy() for a in floats])]
            self.traced = False
        if not outs:
            raise ValueError("f must return at least one floating-point array, got none")
        self.out_shapes = [np.shape(out) for out in outs]
        # A result narrower than float64 carries its own rounding: step and tolerance follow it.
        self.eps = max(float(jnp.finfo(out.dtype).eps) for out in outs)
        self.width = self.eps ** (1 / 3)
        self.tolerance = max(DIFFERENCE_TOLERANCE, 10 * self.eps ** (2 / 3))
        # Points are evaluated in chunks of one length, so that everything below is a single compilation.
        self.chunk = max(1, min(256, 2**22 // (sum(map(math.prod, self.out_shapes)) + 1)))
        self._evaluate = self._evaluator(call)

    def _evaluator(self, call: Callable) -> Callable:
        """Make `(flat, where (c,), offsets (c,)) -> (c, m)`: f with one coordinate of `flat` moved."""
        xp = jnp if self.traced else np

        def vector(flat):
            parts = xp.split(flat, np.cumsum(self.sizes)[:-1].tolist())
            arrays = [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]
            return xp.concatenate([xp.asarray(out, dtype=np.float64).reshape(-1) for out in call(*arrays)])

        def traced(flat, where, offsets):
            return jax.lax.map(lambda move: vector(flat.at[move[0]].add(move[1])), (where, offsets))

        def looped(flat, where, offsets):
            points = np.tile(flat, (where.size, 1))
            points[np.arange(where.size), where] += offsets
            return np.stack([vector(point) for point in points])

        return jax.jit(traced) if self.traced else looped

    def _moved(self, flat: Vector, where: np.ndarray, offsets: Vector) -> np.ndarray:
        """Evaluate a chunk: (k, m) float64."""
        pad = self.chunk - where.size if self.traced else 0
        return np.asarray(self._evaluate(flat, np.pad(where, (0, pad)), np.pad(offsets, (0, pad))))[: where.size]

    def at(self, flat: Vector, dout: Vector, where: np.ndarray, width: float | None = None) -> _Slopes:
        """Difference in the coordinates `where`, with steps of `width`, and tell kinks from slopes."""
        if where.size == 0:
            empty = np.zeros(0)
            return _Slopes(empty, empty, empty, empty, empty, np.zeros(0, bool))
        steps = self._steps(flat, where, width or self.width)
        centre = self._moved(flat, where[:1], np.zeros(1))[0]
        probe = functools.partial(self._probe, flat, dout, centre)
        slope, low, high, gross, bend = self._chunked(probe, where, steps)
        size = np.abs(dout * centre)[np.isfinite(centre)].sum()
        gross, noise = self._largest(gross, where), 8 * self.eps * size / steps
        kink = bend > max(1e-4, 10 * self.tolerance) * gross + 4 * noise
        if kink.any():
            # Curvature makes the sides disagree too, but by half as much at half the step.
            (bend,) = self._chunked(functools.partial(self._bend, flat, dout, centre), where[kink], steps[kink])
            kink[kink] = bend > (1e-5 if width is None else 1e-2) * gross[kink] + 4 * noise[kink]
        return _Slopes(slope, low, high, gross, noise, kink)

    def _chunked(self, probe: Callable, where: np.ndarray, steps: Vector) -> list[Vector]:
        spans = [slice(i, i + self.chunk) for i in range(0, where.size, self.chunk)]
        found = [probe(where[span], steps[span]) for span in spans]
        return [np.concatenate(column) for column in zip(*found, strict=True)]

    def _sides(self, flat: Vector, dout: Vector, centre: Vector, where: np.ndarray, steps: Vector) -> tuple[Any, Any]:
        """One-sided difference quotients of every output, times its cotangent: left and right, each (k, m)."""
        down, up = self._moved(flat, where, -steps), self._moved(flat, where, steps)
        with np.errstate(invalid="ignore"):  # inf - inf: the entry is nan, and fails as nan
            return dout * (centre - down) / steps[:, None], dout * (up - centre) / steps[:, None]

    def _probe(self, flat, dout, centre, where, steps) -> tuple[Vector, ...]:
        left, right = self._sides(flat, dout, centre, where, steps)
        slopes = 0.5 * (left + right)
        low, high = np.minimum(left, right).sum(1), np.maximum(left, right).sum(1)
        return slopes.sum(1), low, high, np.abs(slopes).sum(1), np.abs(right - left).sum(1)

    def _bend(self, flat, dout, centre, where, steps) -> tuple[Vector]:
        def jump(n):
            left, right = self._sides(flat, dout, centre, where, steps / n)
            return right - left

        whole = jump(1)  # two ratios, because a kink a third of the step away hides from the first alone
        return (np.max([np.abs(whole - n * jump(n)).sum(1) for n in (2, 4)], axis=0),)

    def _steps(self, flat: Vector, where: np.ndarray, width: float) -> Vector:
        """Make `width` times the size of the argument, at most 1, a power of two: adding it is then exact."""
        size = np.where(np.isfinite(flat), np.abs(flat), 0.0)
        largest = self._largest(size, np.arange(flat.size))
        unit = np.where(largest > 0, np.minimum(largest, 1.0), 1.0)
        return 2.0 ** np.round(np.log2(width * np.maximum(unit, size * 2.0**-8)))[where]

    def _largest(self, values: Vector, where: np.ndarray) -> Vector:
        """Replace each entry by the largest one of its argument."""
        leaf = self.leaf[where]
        return np.array([values[leaf == i].max(initial=0.0) for i in range(len(self.sizes))])[leaf]


def numerical_vjp(f: Callable, args: Sequence | Mapping, dout: Any) -> Any:
    """Differentiate `<dout, f(*args)>` by central differences in float64, in every coordinate.

    `f` may be a JAX function (compiled, one call for all coordinates) or a NumPy function (called in a loop). `args` is
    a tuple, or a dict of arguments by name; arguments may be pytrees. `dout` has the structure and the shapes of
    `f`'s result. Returns the structure of `args` with a float64 NumPy array for each floating-point array and None for
    everything else. Raises ValueError where `dout` does not fit.

    >>> import numpy as np
    >>> numerical_vjp(lambda x: x**3, (np.array([1.0, 2.0]),), np.array([1.0, 10.0]))[0].round(6)
    array([  3., 120.])
    """
    with jax.enable_x64(True):
        call, floats, _ = _problem(f, args, {})
        differences = _Differences(call, floats)
        douts = _floats(dout)
        shapes = [np.shape(d) for d in douts]
        if shapes != differences.out_shapes:
            raise ValueError(f"dout must have the shapes of f's results, {differences.out_shapes}, got {shapes}")
        flat = _join(floats)
        slopes = differences.at(flat, _join(douts), np.arange(flat.size)).slope
    parts = iter(np.split(slopes, np.cumsum(differences.sizes)[:-1]))
    return jax.tree.map(lambda leaf: next(parts).reshape(np.shape(leaf)) if _is_float(leaf) else None, args)


# ----------------------------------------------------------------------------------------------------------------------
# Comparing gradients, entry by entry


class _Frame:
    """Names and shapes of the arrays that are compared. All arrays lie one after another in one vector."""

    def __init__(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]], dtype: str):
        self.names, self.shapes, self.dtype = names, shapes, dtype
        self.starts = np.cumsum([0, *map(math.prod, shapes)])

    def place(self, k: int) -> tuple[str, tuple[int, ...]]:
        """Name the array in which coordinate `k` lies, and the index there."""
        i = int(np.searchsorted(self.starts, k, side="right")) - 1
        return self.names[i], tuple(int(n) for n in np.unravel_index(k - self.starts[i], self.shapes[i]))

    def coordinates(self, places: Iterable[tuple[str, tuple[int, ...]]]) -> np.ndarray:
        """Undo `place`."""
        arrays = {
            name: (start, shape) for name, start, shape in zip(self.names, self.starts, self.shapes, strict=False)
        }
        found = [arrays[name][0] + np.ravel_multi_index(at, arrays[name][1]) for name, at in places]
        return np.array(found, np.int64)

    def errors(self, got: Vector, want: Vector, where: np.ndarray, slack: Vector, tolerance: float) -> Vector:
        """Measure each entry's error against the largest entry wanted of its array; `slack` is rounding, absolute."""
        out = np.zeros(where.size)
        for mine in self._arrays(where):
            scale = np.abs(want[mine][np.isfinite(want[mine])]).max(initial=slack[mine].max(initial=0.0) / tolerance)
            same = (got[mine] == want[mine]) | (np.isnan(got[mine]) & np.isnan(want[mine]))
            with np.errstate(divide="ignore", invalid="ignore"):
                out[mine] = np.where(same, 0.0, np.abs(got[mine] - want[mine]) / scale)
        return np.where(np.isnan(out), math.inf, out)

    def compare(
        self, check, got: Vector, want: Vector, where: np.ndarray, slack: Vector, tolerance: float
    ) -> list[Row]:
        """Make a row an array. `got`, `want` and `slack` are given at the coordinates `where`."""
        rows = []
        error = self.errors(got, want, where, slack, tolerance)
        for name, shape, mine in zip(self.names, self.shapes, self._arrays(where), strict=True):
            if not mine.any():
                rows.append(Row(check, self.dtype, name, shape, None, 0.0, 0.0, 0.0, tolerance, True))
                continue
            k = int(np.argmax(np.where(mine, error, -1.0)))
            numbers = (float(want[k]), float(got[k]), float(error[k]), tolerance)
            rows.append(
                Row(check, self.dtype, name, shape, self.place(where[k])[1], *numbers, bool(error[k] <= tolerance))
            )
        return rows

    def _arrays(self, where: np.ndarray) -> list[np.ndarray]:
        return [(where >= i) & (where < j) for i, j in zip(self.starts, self.starts[1:], strict=False)]

    def fact(self, check: str, name: str, shape: tuple[int, ...], ok: bool, note: str) -> Row:
        """Make a row that is not of entries."""
        return Row(check, self.dtype, name, shape, None, 0.0, 0.0, 0.0, 0.0, ok, "" if ok else note)


def _raised(check: str, dtype: str, error: Exception) -> Row:
    """Make a row for something that could not be run at all."""
    first = (str(error).strip().splitlines() or [""])[0]
    return Row(check, dtype, "", (), None, 0.0, 0.0, 0.0, 0.0, False, f"{type(error).__name__}: {first}")


# ----------------------------------------------------------------------------------------------------------------------
# Checking a JAX function


def check_vjp(
    f: Callable,
    args: Sequence | Mapping,
    *,
    reference: Callable | None = None,
    dtypes: Sequence[str] = tuple(TOLERANCES),
    static: Mapping[str, Any] | None = None,
    second_order: bool = True,
    limit: int = 1000,
    seed: int = 0,
) -> Report:
    """Check the reverse-mode derivative of `f`, `custom_vjp` or not, and say where it is wrong.

    `args` is a tuple, or a dict of arguments by name, of arrays or pytrees of them; floating-point arrays are
    differentiated, and cast to each of `dtypes` in turn; labels, keys and the like are passed on as they are. `static`
    are keyword arguments that are not arrays. `reference` is the same function in plain `jax.numpy`.

    Checked, with a random cotangent of every result:

    - *differences*: central differences of `f` itself in float64, in every coordinate (`limit` random ones of a larger
      argument; the report says so). In the narrower dtypes too where no `reference` is given.
    - *reference*: float64 autodiff of `reference` at the same, rounded inputs.
    - *cotangent* shapes and dtypes; *linearity* in the cotangent.
    - *second order*: the rule's own derivative, in the arguments and in the cotangent, against differences of the rule,
      in the widest dtype. `second_order=False` leaves it out.
    - *jit*: compiled equals eager, in the widest dtype.

    An error in `f`'s own forward pass is raised; one in its backward pass is a row that fails.

    >>> import jax.numpy as jnp
    >>> report = check_vjp(lambda x, w: jnp.tanh(x @ w), (jnp.ones((2, 3)), jnp.ones((3, 2))), dtypes=("float64",))
    >>> report.ok
    True
    """
    if not dtypes or any(dtype not in TOLERANCES for dtype in dtypes):
        raise ValueError(f"dtypes must be some of {tuple(TOLERANCES)}, got {tuple(dtypes)}")
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        problem = _problem(f, args, static or {})
        twin = None if reference is None else jax.jit(_pull(_problem(reference, args, static or {}).call))
        jax.eval_shape(problem.call, *problem.floats)  # an error in the forward pass is the caller's to see
        check = _Check(problem, limit, rng)
        widest, *rest = sorted(dtypes, key=TOLERANCES.__getitem__)
        for dtype in (widest, *rest):
            check.attempt("backward", dtype, lambda dtype=dtype: check.first_order(dtype, twin))
        check.attempt("jit", widest, lambda: check.jit(widest))
        if second_order:
            check.attempt("second order", widest, lambda: check.second_order(widest))
    return check.report(getattr(f, "__name__", type(f).__name__))


def assert_vjp(f: Callable, args: Sequence | Mapping, **options: Any) -> None:
    """Raise `GradientError` with the report unless `check_vjp(f, args, **options)` passes: one line of a test."""
    check_vjp(f, args, **options).raise_if_failed()


def _pull(call: Callable) -> Callable:
    """Turn `call(*floats) -> outs` into `(floats, douts) -> (outs, cotangents)`."""

    def pull(floats, douts):
        outs, back = jax.vjp(call, *floats)
        return outs, back(tuple(jnp.asarray(dout, out.dtype) for dout, out in zip(douts, outs, strict=True)))

    return pull


class _Check:
    """One run of `check_vjp`: collects the rows."""

    def __init__(self, problem: _Problem, limit: int, rng: np.random.Generator):
        self.problem, self.limit, self.rng = problem, limit, rng
        self.pull = jax.jit(_pull(problem.call))
        self.differences = _Differences(problem.call, problem.floats)
        self.where = self._choose()
        self.rows: list[Row] = []
        self.kinks: dict[tuple[str, tuple[int, ...]], Kink] = {}  # one an entry, from the widest dtype

    def _choose(self) -> np.ndarray:
        """Choose the coordinates to perturb: all, or `limit` random ones of a larger argument."""
        sizes = self.differences.sizes
        chosen = [np.sort(self.rng.permutation(n)[: self.limit]) for n in sizes]
        return np.concatenate([start + c for start, c in zip(np.cumsum([0, *sizes[:-1]]), chosen, strict=True)])

    def attempt(self, check: str, dtype: str, run: Callable[[], None]) -> None:
        """Run a check; an exception in it is a row that fails."""
        try:
            run()
        except Exception as error:
            self.rows.append(_raised(check, dtype, error))

    def report(self, name: str) -> Report:
        counts = zip(self.problem.names, self.differences.sizes, strict=True)
        notes = [f"differences in {self.limit} random entries of {a}'s {n}" for a, n in counts if n > self.limit]
        return Report(name, tuple(self.rows), tuple(self.kinks.values()), tuple(notes))

    def _draw(self, dtype: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Cast the arguments to `dtype` and draw a cotangent of each result in that result's own dtype."""
        floats = [a.astype(jnp.dtype(dtype)) for a in self.problem.floats]
        outs = jax.eval_shape(self.problem.call, *floats)
        return floats, [np.asarray(self.rng.standard_normal(out.shape)).astype(out.dtype) for out in outs]

    def _frame(self, dtype: str) -> _Frame:
        return _Frame(self.problem.names, self.differences.shapes, dtype)

    def first_order(self, dtype: str, twin: Callable | None) -> None:
        frame = self._frame(dtype)
        floats, douts = self._draw(dtype)
        cotangents = self.pull(floats, douts)[1]
        for name, dx, x in zip(frame.names, cotangents, floats, strict=True):  # JAX checks the shape, not the dtype
            note = f"cotangent is {dx.dtype}, must be {x.dtype}"
            self.rows.append(frame.fact("cotangent", name, x.shape, dx.dtype == x.dtype, note))
        got, flat, dout = _join(cotangents), _join(floats), _join(douts)
        slopes = self.differences.at(flat, dout, self.where)
        if dtype == "float64" or twin is None:
            self._against_differences("differences", frame, got, flat, dout, slopes)
        if twin is not None:
            wide = ([np.asarray(a).astype(np.float64) for a in group] for group in (floats, douts))
            want = _join(twin(*wide)[1])
            self._against_reference(frame, got, want, flat, dout, slopes)
        self._linearity(frame, lambda d: _join(self.pull(floats, d)[1]), got, douts, slopes)

    def _against_differences(self, check, frame, got, flat, dout, slopes) -> None:
        """Compare away from kinks; at a kink the gradient must lie between the sides."""
        tolerance = max(TOLERANCES[frame.dtype], self.differences.tolerance)
        slack = 4 * float(jnp.finfo(frame.dtype).eps) * slopes.gross + slopes.noise
        got = got[self.where]
        error = frame.errors(got, slopes.slope, self.where, slack, tolerance)
        near = self._near(frame, flat, dout, error > tolerance)
        self._note_kinks(frame, got, near)
        self._note_kinks(frame, got, slopes)
        kink = slopes.kink | near.kink
        away = self.where[~kink]
        self.rows += frame.compare(check, got[~kink], slopes.slope[~kink], away, slack[~kink], tolerance)
        nearest = np.clip(got, slopes.low, slopes.high)[slopes.kink]
        rows = frame.compare("kink", got[slopes.kink], nearest, self.where[slopes.kink], slack[slopes.kink], tolerance)
        self.rows += [row for row in rows if not row.ok]

    def _against_reference(self, frame, got, want, flat, dout, slopes) -> None:
        """Compare every entry. At a kink the reference states the convention, so kinks count."""
        slack = 4 * float(jnp.finfo(frame.dtype).eps) * self._everywhere(slopes.gross, got.size)
        where, tolerance = np.arange(got.size), TOLERANCES[frame.dtype]
        error = frame.errors(got, want, where, slack, tolerance)
        near = self._near(frame, flat, dout, (error[self.where] > tolerance) & ~slopes.kink)
        self._note_kinks(frame, got[self.where], near)
        away = np.delete(where, self.where[near.kink])
        self.rows += frame.compare("reference", got[away], want[away], away, slack[away], tolerance)

    def _everywhere(self, gross: Vector, size: int) -> Vector:
        """Spread a number per argument, given at the chosen coordinates, over all of them."""
        out = np.zeros(size)
        out[self.where] = gross
        return self.differences._largest(out, np.arange(size))

    def _near(self, frame: _Frame, flat: Vector, dout: Vector, wrong: np.ndarray) -> _Slopes:
        """Find those of the `wrong` entries from which a narrow `frame.dtype` may have rounded across a kink."""
        if frame.dtype == "float64" or not wrong.any():
            zeros = np.zeros(wrong.size)
            return _Slopes(zeros, zeros, zeros, zeros, zeros, np.zeros(wrong.size, bool))
        near = self.differences.at(flat, dout, self.where, 4 * float(jnp.finfo(frame.dtype).eps))
        return near._replace(kink=near.kink & wrong)

    def _note_kinks(self, frame: _Frame, got: Vector, slopes: _Slopes) -> None:
        for i in np.flatnonzero(slopes.kink):
            name, at = frame.place(self.where[i])
            numbers = (float(slopes.low[i]), float(slopes.high[i]), float(got[i]))
            self.kinks.setdefault((name, at), Kink(frame.dtype, name, at, *numbers))

    def _linearity(self, frame, pull, got, douts, slopes) -> None:
        """B(u + 16 v) = B(u) + 16 B(v): a rule that clips, squares or adds to the cotangent fails."""
        others = [np.asarray(self.rng.standard_normal(d.shape)).astype(d.dtype) for d in douts]
        mixed = [u + d.dtype.type(16) * v for u, v, d in zip(douts, others, douts, strict=True)]
        want = got + 16 * pull(others)
        slack = 64 * float(jnp.finfo(frame.dtype).eps) * self._everywhere(slopes.gross, got.size)
        where = np.arange(got.size)
        self.rows += frame.compare("linearity", pull(mixed), want, where, slack, TOLERANCES[frame.dtype])

    def jit(self, dtype: str) -> None:
        """Compiled equals eager, results and cotangents."""
        floats, douts = self._draw(dtype)
        outs, cotangents = _pull(self.problem.call)(floats, douts)
        names = [*_numbered("out", len(outs)), *self.problem.names]
        arrays = [*outs, *cotangents]
        frame = _Frame(names, [a.shape for a in arrays], dtype)
        eager = _join(arrays)
        compiled = _join(jax.tree.leaves(self.pull(floats, douts)))
        slack = np.full(eager.size, 4 * float(jnp.finfo(dtype).eps) * np.abs(eager).max(initial=0.0))
        self.rows += frame.compare("jit", compiled, eager, np.arange(eager.size), slack, TOLERANCES[dtype])

    def second_order(self, dtype: str) -> None:
        """Differentiate the rule itself, in the arguments and in the cotangent."""
        floats, douts = self._draw(dtype)
        n, pull = len(floats), _pull(self.problem.call)
        names = [*self.problem.names, *_numbered("dout", len(douts))]
        arrays = [np.asarray(a).astype(np.float64) for a in (*floats, *douts)]
        rule = _Problem(lambda *a: pull(a[:n], a[n:])[1], arrays, names)
        check = _Check(rule, self.limit, self.rng)
        check.where = np.setdiff1d(check.where, self._frame(dtype).coordinates(self.kinks))  # there the rule jumps
        cotangents = [np.asarray(self.rng.standard_normal(a.shape)).astype(a.dtype) for a in floats]
        got = _join(check.pull((*floats, *douts), cotangents)[1])
        flat, dout = _join(arrays), _join(cotangents)
        slopes = check.differences.at(flat, dout, check.where)
        check._against_differences("second order", check._frame(dtype), got, flat, dout, slopes)
        self.rows += check.rows


def _numbered(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}[{i}]" for i in range(count)]


# ----------------------------------------------------------------------------------------------------------------------
# Checking a pair


def check_pair(forward: Callable, backward: Callable, args: Sequence, *, limit: int = 1000, seed: int = 0) -> Report:
    """Check a pair in the form `forward(*args) -> (out, cache)`, `backward(dout, cache) -> gradients`, in float64.

    NumPy or JAX. `backward` returns one gradient an argument that is a floating-point array, in order: a tuple, or the
    gradient alone where there is one. Everything else in `args` (labels, a dict of settings) is passed as it is, a
    fresh copy each call. Checked: number, shapes and dtypes of the gradients; central differences of `forward`;
    linearity in `dout`; that neither function changes its inputs; that `backward` can run twice on one cache.

    >>> import numpy as np
    >>> double = lambda x: (2 * x, None)
    >>> check_pair(double, lambda dout, cache: 2 * dout, (np.arange(3.0),)).ok
    True
    """
    with jax.enable_x64(True):
        return _check_pair(forward, backward, tuple(args), limit, np.random.default_rng(seed))


def _check_pair(forward, backward, args, limit, rng) -> Report:
    where = [i for i, a in enumerate(args) if hasattr(a, "dtype") and _is_float(a)]

    def fill(floats):
        filled = copy.deepcopy(list(args))
        for i, value in zip(where, floats, strict=True):
            filled[i] = value
        return filled

    names = _names(forward, len(args))
    floats = [np.array(args[i], np.float64) for i in where]
    problem = _Problem(lambda *a: _floats(forward(*fill(a))[0]), floats, [names[i] for i in where])
    check = _Check(problem, limit, rng)
    frame = check._frame("float64")
    check.attempt("backward", "float64", lambda: _pair_rows(check, frame, forward, backward, fill(floats), where))
    return check.report(getattr(forward, "__name__", type(forward).__name__))


def _pair_rows(check: _Check, frame: _Frame, forward, backward, filled, where) -> None:
    before = copy.deepcopy(filled)
    out, cache = forward(*filled)
    douts = [np.asarray(check.rng.standard_normal(np.shape(o))) for o in _floats(out)]

    def run(douts):
        given = [d.copy() for d in douts]
        grads = backward(jax.tree.unflatten(jax.tree.structure(out), given), cache)
        same = all(np.array_equal(a, b) for a, b in zip(given, douts, strict=True))
        return grads if isinstance(grads, tuple | list) else (grads,), same

    grads, dout_kept = run(douts)
    count = len(frame.names)
    if len(grads) != count:
        note = f"backward returns {len(grads)} gradients, must return {count}: {', '.join(frame.names)}"
        check.rows.append(frame.fact("gradients", "", (), False, note))
        return
    for name, dx, shape in zip(frame.names, grads, frame.shapes, strict=True):
        right = np.shape(dx) == shape and np.asarray(dx).dtype == np.float64
        note = f"gradient is {np.asarray(dx).dtype}{list(np.shape(dx))}, must be float64{list(shape)}"
        check.rows.append(frame.fact("gradients", name, shape, right, note))
    if any(np.shape(dx) != shape for dx, shape in zip(grads, frame.shapes, strict=True)):
        return
    got, flat, dout = _join(grads), _join([before[i] for i in where]), _join(douts)
    slopes = check.differences.at(flat, dout, check.where)
    check._against_differences("differences", frame, got, flat, dout, slopes)
    check._linearity(frame, lambda d: _join(run(d)[0]), got, douts, slopes)
    kept = dout_kept and all(np.array_equal(filled[i], before[i]) for i in where)
    check.rows.append(frame.fact("inputs", "", (), kept, "forward or backward changes an array that it was given"))
    again = np.array_equal(_join(run(douts)[0]), got, equal_nan=True)
    check.rows.append(frame.fact("cache", "", (), again, "backward changes its cache: a second run differs"))
