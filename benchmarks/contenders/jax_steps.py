"""What the contenders on JAX share: compiling, timing and describing a training step."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import repeat
from benchmarks.workloads import Workload, batch
from jnet.compiling import COMPILER_OPTIONS as JNET_OPTIONS
from jnet.compiling import jit as jnet_jit
from jnet.compiling import loop_options

SCANNED = 8  # training steps in one call of a scanned epoch

# XLA:CPU hands some operations to its YNN library; which ones decides on the speed of convolutions and reductions. So
# the rivals are measured under jnet's own choice too ("reduce"), steps by the very function that compiles jnet's, which
# also sees to their temporaries. On a GPU "reduce" is jnet's choice there.
COMPILER_OPTIONS = {
    "reduce": JNET_OPTIONS["cpu"],
    "off": {"xla_cpu_experimental_ynn_fusion_type": ""},
}


def set_precision(precision: str) -> Any:
    """Set the precision of matrix products; return the dtype of the activations."""
    names = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "bfloat16"}
    jax.config.update("jax_default_matmul_precision", names[precision])
    return jnp.bfloat16 if precision == "bfloat16" else jnp.float32


def device_batch(workload: Workload, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """The workload's fixed batch on the device."""
    images, labels = batch(workload)
    return jnp.asarray(images, dtype), jnp.asarray(labels)


def jit(step: Callable, variants: frozenset[str], workload: Workload) -> Callable:
    """A rival's `step(state, batch) -> (state, loss)`, jitted as the variants say, its state donated."""
    options, unroll = loop_options(workload.network != "fc") if variants >= {"scan", "reduce"} else (None, 1)
    function = (lambda state, data: jax.lax.scan(step, state, data, unroll=unroll)) if "scan" in variants else step
    if "reduce" in variants:
        return jnet_jit(function, donate_argnums=0, options=options)
    return jax.jit(function, donate_argnums=0, compiler_options=COMPILER_OPTIONS["off"] if "off" in variants else None)


def temporaries(compiled: Any) -> int | None:
    """Bytes that the compiled program allocates for the time of a call; None where the backend does not say."""
    analysis = compiled.memory_analysis()
    return None if analysis is None else analysis.temp_size_in_bytes


class JaxContender:
    """Times `function(state, data) -> (state, loss)`, jitted and donating.

    A scanned function takes `data` stacked SCANNED times along a new leading axis, and as many steps a call. The
    second result is a loss, a stack of losses, or a dictionary of metrics with one of them under "loss".
    """

    def __init__(self, function: Any, state: Any, data: Any, parameters: Any, scanned: bool):
        self._initial = jax.tree.map(jnp.copy, state)
        self._steps = SCANNED if scanned else 1
        self._parameters = sum(leaf.size for leaf in jax.tree.leaves(parameters))
        self._data = data = jax.tree.map(lambda x: jnp.stack([x] * SCANNED), data) if scanned else data
        self._function = function
        self._state = state
        self._compiled = function.lower(state, data).compile()

    def describe(self, checked: int) -> dict[str, Any]:
        """Parameters, the mean losses that show that it trains, compiled temporaries in bytes."""
        losses = []
        while len(losses) < checked:
            losses.extend(np.atleast_1d(np.asarray(self._call(), np.float64)))
        return {
            "parameters": self._parameters,
            "first_loss": float(np.mean(losses[: checked // 2])),
            "last_loss": float(np.mean(losses[checked // 2 : checked])),
            "temporaries": temporaries(self._compiled),
        }

    def compile(self) -> float:
        """Seconds to trace and compile the step anew."""
        jax.clear_caches()
        start = time.perf_counter()
        self._function.lower(self._state, self._data).compile()
        return time.perf_counter() - start

    def run(self, seconds: float) -> list[float]:
        """Seconds a step. Starts from the initial state each time: a long run would reach subnormal numbers."""
        self._state = jax.tree.map(jnp.copy, self._initial)
        return [taken / self._steps for taken in repeat(self._call, seconds)]

    def _call(self) -> jax.Array:
        self._state, result = self._function(self._state, self._data)
        return jax.block_until_ready(result["loss"] if isinstance(result, dict) else result)
