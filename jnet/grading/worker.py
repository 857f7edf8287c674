"""The process in which a student's code runs: `python -m jnet.grading.worker FILE TASK...`.

It says on its standard output, a JSON list a line: `["start", task]`, `["grade", task, grade]`, `["failed", why]` where
the file cannot be loaded, and at the end `["done"]`.
"""

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from jnet.grading import EXERCISES, Grade, Mistake, grade
from jnet.grading.record import point
from jnet.grading.sheet import TASKS, Task, to_dict


def work(path: Path, tasks: Sequence[Task]) -> None:
    """Grade those of the tasks whose functions the file has."""
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the student's code prints must not mix with the messages

    def say(*message: Any) -> None:
        print(json.dumps(message), file=pipe, flush=True)

    try:
        module = load(path)
    except (Exception, SystemExit) as error:
        say("failed", f"raised {type(error).__name__}: {' '.join(str(error).split())}")
        return
    for task in tasks:
        forward, backward = (getattr(module, name or "", None) for name in (task.forward, task.backward))
        if not callable(forward) or (task.is_optional and not callable(backward)):
            continue
        say("start", task.label)
        missing = task.backward is not None and not callable(backward)
        say("grade", task.label, to_dict(task.label, _absent(task) if missing else grade(task.op, forward, backward)))
    say("done")


def _absent(task: Task) -> Grade:
    exercise = EXERCISES[task.op]
    sentence = f"{task.backward} is not defined"
    pointer = point(exercise.derivation, "**Backward.**")
    return Grade(task.op, (Mistake("not-written", sentence, ", ".join(exercise.gradients), pointer),), ())


def load(path: Path) -> ModuleType:
    """Import a file, as part of its package where it has one."""
    names, folder = [path.stem], path.parent
    while (folder / "__init__.py").is_file():
        names, folder = [folder.name, *names], folder.parent
    sys.path.insert(0, str(folder))
    if len(names) > 1:
        return importlib.import_module(".".join(names))
    spec = importlib.util.spec_from_file_location("graded", path)
    if spec is None or spec.loader is None:
        raise ImportError("it is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["graded"] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    work(Path(sys.argv[1]), [TASKS[int(number)] for number in sys.argv[2:]])
