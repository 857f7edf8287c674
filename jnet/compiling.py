"""How the trainer's functions are compiled: `jax.jit`, with what XLA is told for a backend and for arrays of a size."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.core import ShapedArray
from jax.extend import core

__all__ = ["COMPILER_OPTIONS", "CONCURRENT", "Jitted", "compiler_options", "jit", "loop_options"]

Options = dict[str, str | int | bool | float]

# By backend. On a CPU the default fusions halve the speed of convolutions and of batched products, and none at all
# makes the reductions of batch norm 10x slower; and LLVM takes half of an AVX-512 register unless told to prefer all of
# it. On a GPU a convolution takes the elementwise work after it along.
COMPILER_OPTIONS: dict[str, Options] = {
    "cpu": {
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
        "xla_cpu_prefer_vector_width": 512,  # bits; LLVM uses what the processor has
    },
    "gpu": {"xla_gpu_experimental_enable_conv_fusion": True},
}
# Kernels that do not wait for each other run at once. It takes memory, and time to prepare: for loops of small kernels.
CONCURRENT: Options = {"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"}
# XLA asks for all temporaries of a call as one block, and glibc's malloc maps a block of more than 32 MB anew each
# time, page by page: a fifth of ResNet's step. Several smaller ones it keeps.
BLOCK_BYTES = 32_000_000


def compiler_options() -> Options:
    """The XLA options of the default backend, for a function of any size."""
    return COMPILER_OPTIONS.get(jax.default_backend(), {})


def loop_options(convolutions: bool) -> tuple[Options, int]:
    """The XLA options for a scan over training steps, and how many steps to write out in each of its turns.

    On a GPU a step is bound by its launches. Without convolutions its kernels are small and are launched several at a
    time. With them that takes long and much memory; what pays is to go round the loop half as often.
    """
    if jax.default_backend() != "gpu":
        return compiler_options(), 1
    return (compiler_options(), 2) if convolutions else (compiler_options() | CONCURRENT, 1)


def jit(
    function: Callable[..., Any],
    donate_argnums: int | tuple[int, ...] = (),
    options: Options | None = None,
) -> Callable[..., Any]:
    """Return `jax.jit(function)` with `options` (None: those of the backend); on a CPU it also cuts the temporaries."""
    options = compiler_options() if options is None else options
    whole = jax.jit(function, donate_argnums=donate_argnums, compiler_options=options)
    if jax.default_backend() != "cpu":
        return whole
    options = options | {"xla_multiheap_size_constraint_per_heap": str(BLOCK_BYTES)}
    return Jitted(whole, jax.jit(function, donate_argnums=donate_argnums, compiler_options=options))


class Jitted:
    """A jitted function, compiled to take its temporaries in blocks if each of its arrays fits into one.

    An array that does not would get a block to itself, which no other may use after it: ResNet's temporaries would
    double. Which of the two it is depends on the shapes of all arguments but the first, the state.
    """

    def __init__(self, whole: Any, in_blocks: Any):
        """`whole` and `in_blocks` are one function, jitted without blocks and with them."""
        self._whole, self._in_blocks = whole, in_blocks
        self._chosen: dict[Any, Any] = {}

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Run the function."""
        return self._choose(*args, **named)(*args, **named)

    def lower(self, *args: Any, **named: Any) -> Any:
        """Lower the function, as `jax.jit(...).lower`."""
        return self._choose(*args, **named).lower(*args, **named)

    def _choose(self, *args: Any, **named: Any) -> Any:
        leaves = jax.tree.leaves((args[1:], named))
        shapes = tuple([(np.shape(leaf), getattr(leaf, "dtype", None)) for leaf in leaves])
        if shapes not in self._chosen:
            fits = _largest(self._in_blocks.trace(*args, **named).jaxpr.jaxpr) <= BLOCK_BYTES
            self._chosen[shapes] = self._in_blocks if fits else self._whole
        return self._chosen[shapes]


def _largest(jaxpr: core.Jaxpr) -> int:
    """Return the bytes of the largest array that is computed, in inner functions and loops too."""
    made = [var.aval for equation in jaxpr.eqns for var in equation.outvars]
    sizes = [aval.size * aval.dtype.itemsize for aval in made if isinstance(aval, ShapedArray)]
    inner = [body for equation in jaxpr.eqns for body in core.jaxprs_in_params(equation.params)]
    return max([*sizes, *map(_largest, inner)], default=0)
