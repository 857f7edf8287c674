"""Grade a whole file: its functions run in a process of their own, under a time limit, and a score sheet is printed."""

import json as json_format
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jnet.grading.record import Grade, Mistake

__all__ = ["TASKS", "Task", "main", "to_dict"]


class Task(NamedTuple):
    """Functions that belong together, by the names that the course gives them."""

    op: str
    forward: str
    backward: str | None
    is_optional: bool = False  # a second backward function for the same forward one

    @property
    def label(self) -> str:
        """Name the functions."""
        return self.forward if self.backward is None else f"{self.forward}, {self.backward}"


def _pair(op: str, suffix: str = "") -> Task:
    return Task(op, f"{op}_forward{suffix}", f"{op}_backward{suffix}")


TASKS = (
    _pair("affine"),
    _pair("relu"),
    Task("softmax_loss", "softmax_loss", None),
    Task("svm_loss", "svm_loss", None),
    _pair("batchnorm"),
    Task("batchnorm", "batchnorm_forward", "batchnorm_backward_alt", is_optional=True),
    _pair("layernorm"),
    _pair("dropout"),
    _pair("conv", "_naive"),
    _pair("conv"),
    _pair("max_pool", "_naive"),
    _pair("max_pool"),
    _pair("spatial_batchnorm"),
    _pair("spatial_groupnorm"),
)


class Result(NamedTuple):
    """The grade of one task."""

    label: str
    grade: Grade


def main(path: str | Path, *, json: bool = False, timeout_s: float = 60.0) -> bool:
    """Grade the functions of a Python file that bear the course's names, print a score sheet, return whether all pass.

    `json` prints the sheet as one JSON object, for programs. The file runs in a process of its own; loading it, and
    each task, may take `timeout_s` seconds. Raises ValueError where the file is not there, cannot be loaded, or has
    none of the functions.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"file: {path}; must be an existing Python file")
    if not timeout_s > 0:
        raise ValueError(f"timeout_s: {timeout_s}; must be greater than 0")
    results = _grade_file(path, timeout_s)
    if not results:
        raise ValueError(f"file: {path}; must define functions of the course, such as {TASKS[0].label}")
    print(_to_json(path, results) if json else _to_text(path, results))
    return all(result.grade.ok for result in results)


# The sheet


def _to_text(path: Path, results: Sequence[Result]) -> str:
    right = sum(result.grade.ok for result in results)
    width = max(len(result.label) for result in results)
    lines = [f"{path}: {right} of {len(results)} right", ""]
    for label, grade in results:
        verdict = "right" if grade.ok else ", ".join(f"{m.gradient}: {m.name}" for m in grade.mistakes)
        lines.append(f"  {label:<{width}}  {verdict}")
    for label, grade in results:
        if not grade.ok:
            lines += ["", label, *str(grade).splitlines()[1:]]
    return "\n".join(lines)


def _to_json(path: Path, results: Sequence[Result]) -> str:
    tasks = [to_dict(label, grade) for label, grade in results]
    right = sum(grade.ok for _, grade in results)
    return json_format.dumps({"file": str(path), "right": right, "graded": len(results), "tasks": tasks}, indent=2)


def to_dict(label: str, grade: Grade) -> dict[str, Any]:
    """Turn a grade into what JSON can hold."""
    mistakes = [mistake._asdict() for mistake in grade.mistakes]
    parts = {"right": list(grade.right), "unjudged": list(grade.unjudged)}
    return {"functions": label, "op": grade.op, "ok": grade.ok, "mistakes": mistakes, **parts}


# The process that runs the student's code, seen from outside


def _grade_file(path: Path, timeout_s: float) -> list[Result]:
    """Run tasks in a process; where it hangs or dies, say so of the task it was at and start another for the rest."""
    results: dict[str, Result] = {}
    while True:
        current = None
        rest = [task for task in TASKS if task.label not in results]
        for message in _messages(path, [TASKS.index(task) for task in rest], timeout_s):
            kind, *content = message
            if kind == "start":
                current = next(task for task in TASKS if task.label == content[0])
            elif kind == "grade":
                results[content[0]] = Result(content[0], _grade_from(content[1]))
                current = None
            elif kind == "done":
                return [results[task.label] for task in TASKS if task.label in results]
            elif current is None:  # the file itself is at fault
                raise ValueError(f"file: {path}; loading it {content[0]}")
            else:
                mistake = Mistake("did-not-finish", f"grading it {content[0]}", "out", f"{path} ({current.label})")
                results[current.label] = Result(current.label, Grade(current.op, (mistake,), ()))


def _grade_from(content: dict[str, Any]) -> Grade:
    mistakes = tuple(Mistake(**mistake) for mistake in content["mistakes"])
    return Grade(content["op"], mistakes, tuple(content["right"]), tuple(content["unjudged"]))


def _messages(path: Path, tasks: Sequence[int], timeout_s: float) -> Iterator[list[Any]]:
    """Yield what the process says, until it is done, dies or is silent for too long; the last two are a "failed"."""
    command = [sys.executable, "-m", "jnet.grading.worker", str(path.resolve()), *map(str, tasks)]
    here = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, here))}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
    ) as process:
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read, args=(process, lines), daemon=True).start()
        try:
            while True:
                try:
                    line = lines.get(timeout=timeout_s)
                except queue.Empty:
                    yield ["failed", f"did not finish within {timeout_s:g} s"]
                    return
                if line is None:
                    yield ["failed", f"ended Python with exit code {process.wait()}"]
                    return
                message = json_format.loads(line)
                yield message
                if message[0] in ("done", "failed"):
                    return
        finally:
            process.kill()


def _read(process: subprocess.Popen, lines: queue.Queue) -> None:
    for line in process.stdout or ():
        lines.put(line)
    lines.put(None)
