"""Run a pair on an exercise, judge each result, and name the mistake behind a wrong one."""

import copy
import functools
import traceback
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np

from jnet.grading.compare import NARROW, TOLERANCE, close, describe
from jnet.grading.record import Case, Exercise, Grade, Mistake, Slip, point

__all__ = ["fixed_cases", "judge"]


class Refusal(Exception):
    """The pair broke the form that the course asks for: no result can be judged."""

    def __init__(self, name: str, sentence: str, part: str):
        super().__init__(sentence)
        self.name, self.sentence, self.part = name, sentence, part


class Run(NamedTuple):
    """A pair on one case."""

    case: Case
    seen: dict[str, np.ndarray]  # the results
    made: SimpleNamespace  # the ingredients, with the right results
    tolerance: float

    def agrees(self, part: str, value: np.ndarray) -> bool:
        return close(self.seen[part], value, self.tolerance)


def judge(exercise: Exercise, forward: Callable, backward: Callable | None, seed: int = 0) -> Grade:
    """Grade a pair on an exercise."""
    notes: dict[tuple[str, str], Mistake] = {}  # by name and result: said once, whatever the number of cases

    def note(name: str, sentence: str, part: str, line: str = "**Backward.**") -> None:
        notes.setdefault((name, part), Mistake(name, sentence, part, point(exercise.derivation, line)))

    runs = []
    with jax.enable_x64(True), np.errstate(all="ignore"):
        for case in fixed_cases(exercise.cases, seed):
            try:
                runs.append(_run(exercise, forward, backward, case, note))
            except Refusal as refusal:
                note(refusal.name, refusal.sentence, refusal.part)
        wrong = [part for part in _parts(runs) if not all(_is_right(run, part) for run in runs)]
        unjudged = [part for part in wrong if not _explain(exercise, forward, runs, part, wrong, note)]
    blamed = {mistake.gradient for mistake in notes.values()}
    right = tuple(part for part in _parts(runs) if part not in wrong and part not in blamed)
    return Grade(exercise.op, tuple(notes.values()), right, tuple(unjudged))


@functools.lru_cache
def fixed_cases(cases: Callable[[np.random.Generator], list[Case]], seed: int) -> list[Case]:
    """Draw the cases of an exercise, the same ones each time."""
    return cases(np.random.default_rng(seed))


def _parts(runs: list[Run]) -> list[str]:
    return list(dict.fromkeys(part for run in runs for part in run.seen))


def _is_right(run: Run, part: str) -> bool:
    return part not in run.seen or run.agrees(part, run.made.right[part])


# Running


def _run(exercise: Exercise, forward: Callable, backward: Callable | None, case: Case, note: Callable) -> Run:
    args = copy.deepcopy(case.args)
    first, second = _pair(_call("forward", forward, *args), exercise)
    _see_unchanged(exercise, case, args, "forward", note)
    raw = {"loss": first, "dx": second} if exercise.is_loss else {"out": first}
    raw |= exercise.extras(case, dict(zip(exercise.arguments, args, strict=True)), first)
    if backward is not None and case.dout is not None:
        try:
            raw |= _backward(exercise, backward, case, second, note)
            _see_unchanged(exercise, case, args, "backward", note)
        except Refusal as refusal:
            note(refusal.name, refusal.sentence, refusal.part)
    seen = {part: _array(value, part) for part, value in raw.items()}
    narrow = [part for part, value in raw.items() if np.ndim(value) and np.asarray(value).dtype != np.float64]
    for part in narrow:
        dtype = np.asarray(raw[part]).dtype
        note("narrow-dtype", f"{part} is {dtype} where its inputs are float64; checks need every digit", part)
    return Run(case, seen, exercise.make(case, seen), NARROW if narrow else TOLERANCE)


def _pair(result: Any, exercise: Exercise) -> tuple[Any, Any]:
    what = "(loss, dx)" if exercise.is_loss else "(out, cache)"
    if result is None:
        raise Refusal("not-written", f"the function returns None, must return {what}", "out")
    if not isinstance(result, tuple | list) or len(result) != 2:
        size = f"{len(result)} values" if isinstance(result, tuple | list) else "one value"
        raise Refusal("return-count", f"the forward function returns {size}, must return {what}", "out")
    return result[0], result[1]


def _backward(exercise: Exercise, backward: Callable, case: Case, cache: Any, note: Callable) -> dict[str, Any]:
    names = exercise.gradients

    def run() -> list[Any]:
        dout = copy.deepcopy(case.dout)
        grads = _unpack(_call("backward", backward, dout, cache), names)
        if not np.array_equal(dout, case.dout):
            note("input-changed", "backward writes into dout, which belongs to the caller; work on a copy", names[0])
        return copy.deepcopy(grads)

    grads, again = run(), run()
    same = all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(grads, again, strict=True))
    if not same and not any(np.isnan(np.asarray(a, np.float64)).any() for a in grads):
        note("cache-changed", "backward changes its cache: a second run on it gives other gradients", names[0])
    return dict(zip(names, grads, strict=True))


def _unpack(grads: Any, names: tuple[str, ...]) -> list[Any]:
    wanted = names[0] if len(names) == 1 else f"({', '.join(names)})"
    if grads is None:
        raise Refusal("not-written", f"the backward function returns None, must return {wanted}", ", ".join(names))
    if len(names) == 1 and not isinstance(grads, tuple | list):
        return [grads]
    count = len(grads) if isinstance(grads, tuple | list) else 1
    if len(names) == 1 or count != len(names):
        sentence = (
            f"backward returns {count} value{'s' * (count > 1)} in a tuple"
            if count == len(names)
            else (f"backward returns {count} value{'s' * (count > 1)}")
        )
        raise Refusal("return-count", f"{sentence}, must return {wanted}", ", ".join(names))
    return list(grads)


def _call(what: str, function: Callable, *args: Any) -> Any:
    """Call the student's function; a draw from NumPy's global generator is the same each time."""
    state = np.random.get_state()  # noqa: NPY002 - the course draws from it
    np.random.seed(len(what))  # noqa: NPY002 - not the same for both passes: who draws again gets another mask
    try:
        return function(*args)
    except (Exception, SystemExit) as error:
        raise Refusal("raises", f"{what} raised {_said(error)}", "out" if what == "forward" else "gradients") from None
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _said(error: BaseException) -> str:
    """Name an error and the line of the student's code that led to it."""
    text = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    mine = [f for f in frames if f.filename != __file__ and "site-packages" not in f.filename]
    where = f" at line {mine[-1].lineno}: {mine[-1].line}".removesuffix(": ") if mine else ""
    return f"{type(error).__name__}: {text[:200]}{where}"


def _array(value: Any, part: str) -> np.ndarray:
    try:
        return np.asarray(value).astype(np.float64)
    except (TypeError, ValueError):
        kind = type(value).__name__
        raise Refusal("not-an-array", f"{part} is of type {kind}, must be an array of numbers", part) from None


def _see_unchanged(exercise: Exercise, case: Case, args: tuple, what: str, note: Callable) -> None:
    for name, before, after in zip(exercise.arguments, case.args, args, strict=True):
        if isinstance(before, np.ndarray) and not np.array_equal(before, after):
            sentence = f"{what} writes into its argument {name}, which belongs to the caller; work on a copy"
            note("input-changed", sentence, "out" if what == "forward" else exercise.gradients[0])


# Explaining


def _explain(
    exercise: Exercise, forward: Callable, runs: list[Run], part: str, wrong: list[str], note: Callable
) -> bool:
    """Name the mistake that makes `part` wrong; return False where another result must be put right first."""
    follows = "out" in wrong and part != "out"
    if follows and part in exercise.gradients and _fits_own_forward(exercise, forward, runs, part):
        return False  # the gradient of a wrong function, rightly derived
    slips = [slip for slip in (*exercise.slips, *_common(exercise, part)) if slip.part == part]
    bad = [run for run in runs if not _is_right(run, part)]
    one = next((slip for slip in slips if _explains(slip, [run for run in runs if part in run.seen])), None)
    for run in bad:
        slip = one or next((slip for slip in slips if _explains(slip, [run])), None)
        if slip is None and follows:
            return False
        if slip is None:
            pattern = describe(run.seen[part], run.made.right[part], exercise.axes.get(part, ""))
            line = "**Backward.**" if part in exercise.gradients else "**Forward.**"
            note("unknown", f"{part} is wrong in a way that is none of the usual ones: {pattern}", part, line)
        else:
            note(slip.name, slip.sentence, part, slip.line)
    return True


def _explains(slip: Slip, runs: list[Run]) -> bool:
    """Whether the slip gives what was seen in every case, and something else than what is right in one."""
    told = False
    for run in runs:
        wrong = slip.wrong(run.made)
        wrong = None if wrong is None else np.asarray(wrong, np.float64)
        if wrong is None:
            if not _is_right(run, slip.part):
                return False
        elif not run.agrees(slip.part, wrong):
            return False
        else:
            told = told or not _is_right(run, slip.part)
    return told


def _common(exercise: Exercise, part: str) -> list[Slip]:
    """Mistakes of any gradient: its sign, its shape, the place in the tuple."""
    if part not in exercise.gradients:
        return []
    right: Callable[[SimpleNamespace], np.ndarray] = lambda made: made.right[part]  # noqa: E731
    argument = part.removeprefix("d")
    back = "**Backward.**"
    slips = [
        Slip("sign-flipped", part, lambda made: -right(made), f"{part} has the opposite sign", back),
        Slip(
            "transposed",
            part,
            lambda made: right(made).T,
            f"{part} is transposed: it must have the shape of {argument}, an entry for each entry of {argument}",
            back,
        ),
    ]
    for other in exercise.gradients:
        if other != part:
            sentence = f"{part} is what {other} must be: the gradients are returned in the wrong order"
            slips.append(Slip("swapped", part, lambda made, other=other: made.right[other], sentence, back))
    sentence = (
        f"the numbers of {part} are right but its shape is not that of {argument}: in an update NumPy would broadcast "
        f"it, or fail"
    )
    for shape in (
        lambda s: (1, *s),
        lambda s: (*s, 1),
        lambda s: tuple(n for n in s if n > 1),
        lambda s: (-1,),
        lambda s: (s[0], -1),
    ):
        reshape = functools.partial(_reshaped, right, shape)
        slips.append(Slip("shape-that-broadcasts", part, reshape, sentence, back))
    return slips


def _reshaped(right: Callable, shape: Callable, made: SimpleNamespace) -> np.ndarray | None:
    array = right(made)
    return array.reshape(shape(array.shape)) if array.ndim else None


def _fits_own_forward(exercise: Exercise, forward: Callable, runs: list[Run], part: str) -> bool:
    """Whether a gradient is that of the student's own forward function, right or wrong, along a few directions."""
    position = exercise.gradients.index(part)
    rng, step = np.random.default_rng(0), 1e-5
    for run in runs:
        if part not in run.seen:
            continue
        x, grad = run.case.args[position], run.seen[part]
        for _ in range(3):
            direction = rng.standard_normal(x.shape)
            try:
                above, below = (_own(forward, run.case, position, x + h * direction) for h in (step, -step))
                slope = np.sum(run.case.dout * (above - below)) / (2 * step)
                error = abs(slope - np.sum(grad * direction))
            except (Refusal, ValueError, TypeError):
                return False
            if not error <= 1e-5 * np.linalg.norm(grad) * np.linalg.norm(direction):
                return False
    return True


def _own(forward: Callable, case: Case, position: int, x: np.ndarray) -> np.ndarray:
    """Run the student's forward function with another array in one place."""
    args = list(copy.deepcopy(case.args))
    args[position] = x
    return np.asarray(_call("forward", forward, *args)[0], np.float64)
