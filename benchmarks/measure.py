"""How everything here is timed: contenders in processes of their own, called in turn, summarised by percentiles.

A process each keeps the allocator, the thread pool and the compiled code of one contender from helping or hindering
another; calling them in turn lets a slow minute of the machine fall on all of them alike. Only the contender whose
turn it is works: the others wait on a pipe.
"""

import importlib.metadata
import multiprocessing
import os
import platform
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from jnet.__main__ import ALLOCATOR

# XLA and torch allocate a step's temporaries anew at each call, so what `jnet train` tells glibc's malloc helps them
# all, and in the tuned regime all of them get it.
ALLOCATORS: dict[str, dict[str, str]] = {"default": {}, "tuned": ALLOCATOR}
REST = 0.02  # seconds
STARTING = threading.Lock()  # a process starts with the environment of its parent, which is one for all threads
PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax", "equinox", "torch")


class Timing(NamedTuple):
    """Seconds a call: the 20th, 50th and 80th percentile of so many calls."""

    p20: float
    p50: float
    p80: float
    calls: int


def summarise(seconds: list[float]) -> Timing:
    """The percentiles of a list of times."""
    ordered = sorted(seconds)
    p20, p50, p80 = (ordered[round(q * (len(ordered) - 1))] for q in (0.2, 0.5, 0.8))
    return Timing(p20, p50, p80, len(ordered))


def repeat(call: Callable[[], Any], seconds: float, most: int = 1000) -> list[float]:
    """Time `call`, which returns when its work is done, over and over for about `seconds`.

    The first call finds cold caches and does not count, unless it is so long, a quarter of the time there is, that they
    are soon warm: a scanned epoch would else have one call a turn. A turn starts with a rest: PyTorch's threads go on
    spinning for 10 ms after their work, in the way of whoever comes next.
    """
    time.sleep(REST)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or (len(times) <= most and time.perf_counter() < end):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times if times[0] > seconds / 4 else times[1:]


class WorkerError(RuntimeError):
    """A contender failed in its own process: one line says how, the traceback there is `detail`."""

    def __init__(self, line: str, detail: str = ""):
        super().__init__(line)
        self.detail = detail


class Worker:
    """An object that lives in a fresh process; `call` runs one of its methods there and returns the result."""

    def __init__(self, factory: Callable[..., Any], *args: Any, env: Mapping[str, str] | None = None):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, factory, args), daemon=True)
        with STARTING, _environment(env or {}):
            self._process.start()
        theirs.close()
        self._receive()

    def call(self, method: str, *args: Any) -> Any:
        """Run `method(*args)` on the object; raise WorkerError with its traceback where it fails."""
        self._pipe.send((method, args))
        return self._receive()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()

    def _receive(self) -> Any:
        try:
            ok, value = self._pipe.recv()
        except EOFError:
            raise WorkerError("the process died without a word (out of memory?)") from None
        if not ok:
            raise WorkerError(*value)
        return value


def _serve(pipe: Any, factory: Callable[..., Any], args: tuple) -> None:
    """The other end of a Worker: build the object, then answer until the pipe closes; a failure is an answer too."""
    target = None
    try:
        while True:
            try:
                if target is None:
                    target, answer = factory(*args), None
                else:
                    method, arguments = pipe.recv()
                    answer = getattr(target, method)(*arguments)
                pipe.send((True, answer))
            except EOFError:
                raise
            except Exception as error:
                line = traceback.format_exception_only(error)[0].strip().splitlines()[0]
                pipe.send((False, (line, traceback.format_exc())))
                if target is None:
                    return
    except (EOFError, BrokenPipeError):
        return


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the processes started within."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def setting() -> dict[str, str]:
    """Where and with what a measurement was taken: the columns that every CSV row carries."""
    versions = " ".join(f"{name}={_version(name)}" for name in PACKAGES)
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": device_name(),
        "cores": str(cores()),
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
    }


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name() -> str:
    """The GPU where JAX may use one, else the processor."""
    if os.environ.get("JAX_PLATFORMS") != "cpu":
        gpu = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
        if gpu:
            return gpu.splitlines()[0]
    model = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    flags = "AVX-512" if any("avx512f" in line for line in _lines("/proc/cpuinfo")) else platform.machine()
    return f"{model[0] if model else platform.processor()}, {flags}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _commit() -> str:
    here = os.path.dirname(os.path.abspath(__file__))
    return _output("git", "-C", here, "describe", "--always", "--dirty=+", "--abbrev=9") or "unknown"


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError:
        return []
