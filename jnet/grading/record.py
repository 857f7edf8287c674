"""What the grader says, and what it knows: mistakes, grades, and the exercises with their usual slips."""

import functools
import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

__all__ = ["Case", "Exercise", "Grade", "Mistake", "Slip", "by_case", "point"]


class Mistake(NamedTuple):
    """One thing that is wrong, in words."""

    name: str  # "mean-path-dropped"; "unknown" where no usual mistake gives this result
    sentence: str
    gradient: str  # the result that is wrong: "dx", "dw", ..., or "out" and its kin for the forward pass
    pointer: str  # the line of the derivation to read again

    def __str__(self) -> str:
        """Draw it on three lines."""
        return f"{self.gradient}: {self.name}\n    {self.sentence}\n    see {self.pointer}"


class Grade(NamedTuple):
    """The verdict on one pair. `print(grade)` shows the report."""

    op: str
    mistakes: tuple[Mistake, ...]
    right: tuple[str, ...]  # the results that are right
    unjudged: tuple[str, ...] = ()  # those that cannot be told right or wrong before a mistake above is put right

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.mistakes

    def __str__(self) -> str:
        """Draw the report."""
        verdict = "right" if self.ok else f"{len(self.mistakes)} mistake" + "s" * (len(self.mistakes) > 1)
        lines = [f"{self.op}: {verdict}"]
        lines += [f"  {line}" for mistake in self.mistakes for line in str(mistake).splitlines()]
        lines += [f"  right: {', '.join(self.right)}"] if self.right else []
        lines += [f"  not judged before the forward pass is right: {', '.join(self.unjudged)}"] if self.unjudged else []
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Case:
    """One set of arguments on which a pair is run."""

    args: tuple[Any, ...]  # float64 arrays, and the course's dicts of settings
    dout: Any  # float64 array; None: the backward pass is not run


Made = SimpleNamespace
"""The ingredients of a case, by name: from these a slip makes the wrong result."""


class Slip(NamedTuple):
    """A usual mistake: how it is made, so that its result can be recognised."""

    name: str
    part: str  # the result that it spoils
    wrong: Callable[[Any], Any]  # ingredients of a case -> the spoilt result, or None where the slip has no effect
    sentence: str
    line: str  # a fragment of the line of the derivation that says it right


class Exercise(NamedTuple):
    """An op as the course has it."""

    op: str
    arguments: tuple[str, ...]  # of the forward function
    gradients: tuple[str, ...]  # that the backward function returns, in order; of the first arguments
    derivation: Callable[..., Any]  # the formula's forward function: its docstring holds the derivation
    cases: Callable[[Any], list[Case]]  # of a NumPy generator
    make: Callable[[Case, Mapping[str, Any]], Made]  # case, observed results -> ingredients, with the dict `right`
    slips: tuple[Slip, ...]
    axes: Mapping[str, str] = {}  # the axes of a result, a letter each: "NCHW"
    is_loss: bool = False  # one function (x, y) -> (loss, dx) in place of a pair
    extras: Callable[[Case, Mapping[str, Any], Any], dict[str, Any]] = lambda case, after, out: {}
    # case, arguments by name after the call, out -> further results that are judged

    @property
    def parts(self) -> tuple[str, ...]:
        """All results that slips name, in order."""
        return tuple(dict.fromkeys([slip.part for slip in self.slips]))


def by_case(make: Callable[[Case], Made]) -> Callable[[Case, Mapping[str, Any]], Made]:
    """Make the ingredients of a case once; they do not depend on what is seen."""
    once = functools.cache(make)
    return lambda case, seen: once(case)


@functools.cache
def point(derivation: Callable[..., Any], line: str) -> str:
    """Point to the line of a formula's docstring that holds the fragment `line`: `file:number (function): text`."""
    lines, start = inspect.getsourcelines(derivation)
    found = next((i for i, text in enumerate(lines) if line in text), 0)
    path = Path(inspect.getsourcefile(derivation) or "")
    package = path.parts[len(path.parts) - 1 - path.parts[::-1].index("jnet") :]
    name = getattr(derivation, "__name__", "")
    text = textwrap.shorten(lines[found].strip(), 120, placeholder=" ...")
    return f"{'/'.join(package)}:{start + found} ({name}): {text}"
