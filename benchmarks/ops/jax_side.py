"""The ops on JAX: jnet's rules, autodiff of the plain twins, autodiff of the native operations."""

import functools
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contenders.jax_steps import COMPILER_OPTIONS, set_precision, temporaries
from benchmarks.measure import repeat
from benchmarks.ops import native
from benchmarks.ops.cases import CASES, Case
from jnet import reference
from jnet.custom_vjp import CATALOGUE, Entry
from jnet.summary import kept_bytes

SCANNED = 3  # evaluations in one scan
Arrays = dict[str, jax.Array]
Function = Callable[[Arrays, Arrays], tuple[Any, Any]]
ENTRIES = {entry.name: entry for entry in CATALOGUE}


class JaxSide:
    """Compiles and runs a case of an op on each side; lives in a process of its own."""

    def __init__(self, precision: str, options: str):
        self._dtype = set_precision(precision)
        self._options = COMPILER_OPTIONS[options] if options in COMPILER_OPTIONS else None
        self._calls: dict[str, Callable[[], Any]] = {}
        self._steps = 1
        self._drawn: tuple[Case, Arrays] | None = None
        self._rng = np.random.default_rng(0)
        self._ballast: list[np.ndarray] = []

    def peaks(self) -> tuple[float, float]:
        """What the machine can do now: GF/s of a large matrix product, GB/s (read and written) of a large copy."""
        rng = np.random.default_rng(0)
        a = jnp.asarray(rng.standard_normal((2048, 2048)), self._dtype)
        product = jax.jit(jnp.matmul).lower(a, a).compile()
        gemm = min(repeat(lambda: jax.block_until_ready(product(a, a)), 1.0))
        negate = jax.jit(lambda x, into: -x, donate_argnums=1, keep_unused=True)  # no fresh pages: only the copy
        x, into = jnp.zeros(2**25, jnp.float32), jnp.ones(2**25, jnp.float32)

        def copy() -> None:
            nonlocal into
            into = jax.block_until_ready(negate(x, into))

        return 2 * 2048**3 / gemm / 1e9, 2 * x.nbytes / min(repeat(copy, 1.0)) / 1e9

    def prepare(self, op: str, index: int, mode: str, side: str) -> dict[str, Any]:
        """Compile one side of a case; returns what compiling tells, the work of a call, and the forward's result."""
        entry, case = ENTRIES[op], CASES[op][index]
        function, primals, rest = self._problem(entry, case, side)
        program, args = _program(mode, entry, function, primals, rest)
        call = jax.jit(program, compiler_options=self._options)
        start = time.perf_counter()
        compiled = call.lower(*args).compile()
        seconds = time.perf_counter() - start
        self._calls[side] = lambda: jax.block_until_ready(call(*args))  # `compiled` would be the slower way in
        self._steps = SCANNED if mode == "scan" else 1
        read, written = map(_bytes, (args, jax.eval_shape(program, *args)))
        return {
            "program": _nameless(compiled.as_text()),
            "compile_s": seconds,
            "temporaries": temporaries(compiled),
            "kept": kept_bytes(lambda primals: function(primals, rest)[0], primals),
            "flops": case.flops * (1 if mode == "forward" else 3),
            "bytes": read / self._steps + written,  # each step of a scan reads its share and writes all that is left
            "out": np.asarray(jax.tree.leaves(self._calls[side]())[0], np.float32) if mode == "forward" else None,
        }

    def run(self, side: str, seconds: float) -> list[float]:
        """Seconds an evaluation.

        Where results lie relative to operands can decide on a fifth of the time, and malloc gives a program the same
        places call after call. So other memory is taken before each turn: nobody keeps a lucky place.
        """
        self._ballast = [np.empty(size, np.uint8) for size in self._rng.integers(1, 400_000, self._rng.integers(1, 8))]
        return [taken / self._steps for taken in repeat(self._calls[side], seconds)]

    def forget(self) -> None:
        """Drop what was compiled."""
        self._calls.clear()
        jax.clear_caches()

    def error(self, op: str, index: int, side: str) -> float:
        """The largest error of the result and of every gradient against float64, relative to the largest entry."""
        got = self._evaluate(ENTRIES[op], *self._problem(ENTRIES[op], CASES[op][index], side))
        return max(map(_error, jax.tree.leaves(got), jax.tree.leaves(self._exact(op, index))))

    @functools.lru_cache(maxsize=1)  # noqa: B019  one side after the other asks for the same
    def _exact(self, op: str, index: int) -> Any:
        """The result and the gradients by autodiff of the plain twin in float64."""
        entry, case = ENTRIES[op], CASES[op][index]
        function, primals, rest = self._problem(entry, case, "reference")
        if "key" in rest:  # a draw depends on the width of floats: the twin in float32 has the same mask
            return self._evaluate(entry, function, primals, rest)
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == self._dtype else x, (primals, rest))
            return self._evaluate(entry, function, *wide)

    def _problem(self, entry: Entry, case: Case, side: str) -> tuple[Function, Arrays, Arrays]:
        """`f(primals, rest) -> (outputs with a gradient, other outputs)`, and its two dictionaries of arrays."""
        modules = {"reference": reference, "native": native}
        function = entry.op if side == "jnet" else getattr(modules[side], entry.name)
        inputs = dict(self._inputs(case))

        def evaluate(primals: Arrays, rest: Arrays) -> tuple[Any, Any]:
            out = function(**primals, **rest, **case.static)
            return (out[0], out[1:]) if case.auxiliary else (out, ())

        primals = {name: inputs.pop(name) for name in entry.diff if name in inputs}
        return evaluate, primals, inputs

    def _inputs(self, case: Case) -> Arrays:
        """The case's arrays, the same ones for every side."""
        if self._drawn is None or self._drawn[0] is not case:
            self._drawn = case, {n: self._array(value) for n, value in case.draw().items() if value is not None}
        return self._drawn[1]

    def _array(self, value: Any) -> jax.Array:
        floating = isinstance(value, np.ndarray) and value.dtype.kind == "f"
        return jnp.asarray(value, self._dtype) if floating else jnp.asarray(value)

    def _evaluate(self, entry: Entry, function: Function, primals: Arrays, rest: Arrays) -> Any:
        program, args = _program("both", entry, function, primals, rest)
        return jax.device_get(jax.jit(program, compiler_options=self._options)(*args))


def _program(mode: str, entry: Entry, function: Function, primals: Arrays, rest: Arrays) -> tuple[Callable, tuple]:
    """What is compiled in each mode, and its arguments. All outputs are returned, so that nothing is left out."""
    if mode == "forward":
        return function, (primals, rest)

    def both(primals: Arrays, rest: Arrays, douts: Any) -> tuple[Any, Any, Arrays]:
        out, pull, auxiliary = jax.vjp(lambda primals: function(primals, rest), primals, has_aux=True)
        return out, auxiliary, pull(douts)[0]

    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(function, primals, rest)[0]
    douts = jax.tree.map(lambda out: jnp.asarray(rng.standard_normal(out.shape), out.dtype), shapes)
    if mode == "both":
        return both, (primals, rest, douts)

    # As in a training loop: data and cotangents differ from step to step, parameters move a little, and what else a
    # step makes, the next one writes over.
    data = [name for name in primals if name in ("x", "logits", "scores")]
    parameters = {name: value for name, value in primals.items() if name not in data}

    def step(carry: tuple[Arrays, Any], now: tuple[Arrays, Arrays, Any]) -> tuple[tuple[Arrays, Any], None]:
        parameters, _ = carry
        out, auxiliary, grads = both(parameters | now[0], *now[1:])
        moved = {name: value - 1e-6 * grads[name] for name, value in parameters.items()}
        return (moved, (out, auxiliary, [grads[name] for name in data])), None

    def scan(parameters: Arrays, every: Any) -> tuple[Arrays, Any]:
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), left)
        return jax.lax.scan(step, (parameters, nothing), every)[0]

    now = {name: primals[name] for name in data}, rest, douts
    left = jax.eval_shape(lambda parameters: step((parameters, None), now)[0][1], parameters)
    return scan, (parameters, jax.tree.map(lambda x: jnp.stack([x] * SCANNED), now))


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _nameless(program: str) -> str:
    """A compiled program without the names of its values and where they come from: the same text, the same code."""
    body = re.sub(r", metadata=\{[^}]*\}", "", program[re.search(r"^(%|ENTRY)", program, re.MULTILINE).start() :])
    numbers: dict[str, str] = {}
    body = re.sub(r"%[\w.-]+", lambda name: numbers.setdefault(name[0], f"%{len(numbers)}"), body)
    return re.sub(r"(?<=[(, ])[\w.-]+: ", "", body)  # parameters in the heads of functions


def _error(got: Any, exact: Any) -> float:
    got, exact = np.asarray(got, np.float64), np.asarray(exact, np.float64)
    return float(np.max(np.abs(got - exact), initial=0.0) / (np.max(np.abs(exact), initial=0.0) or 1.0))
