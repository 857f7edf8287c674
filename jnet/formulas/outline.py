"""What XLA's fusion has to be told: where to stop, and what to compute in one loop."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental.xla_metadata import set_xla_metadata

__all__ = ["by_channel", "column_sums", "in_one_loop", "on_one_cpu", "outlined", "parts", "row_sums"]

FEW = 32  # channels, below which XLA writes out a loop over them entry by entry
ROW = 512  # entries of the rows that by_channel makes of few channels
TOGETHER = 8  # rows that column_sums adds up in its loop on a CPU
PART = 256  # rows at most that a block of a GPU's threads adds up


def outlined(*, static: Sequence[str] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile the decorated function apart from its callers, so that what it returns is computed once and kept.

    XLA on a CPU copies cheap producers into each of their consumers. A mask or an index that a forward pass makes for
    its backward pass is then never stored: the backward pass makes it again, from an activation four or more times as
    large that stays alive until then, and where a pixel is read by several windows it is made again for each.
    `jax.lax.optimization_barrier` is gone before XLA fuses; a call that must not be inlined is not. Other backends
    fuse across several results and get a plain call.

    `static` names the keyword arguments that are Python values.
    """

    def decorate(function):
        @functools.partial(jax.jit, static_argnames=tuple(static))
        @functools.wraps(function)
        def whole(*args, **kwargs):
            # What it calls in its turn is no fence, and a kernel that also stands outside is not compiled twice.
            with set_xla_metadata(inlineable=None):
                return function(*args, **kwargs)

        @functools.wraps(function)
        def call(*args, **kwargs):
            if jax.default_backend() != "cpu":
                return whole(*args, **kwargs)
            with set_xla_metadata(inlineable="false"):
                return whole(*args, **kwargs)

        return call

    return decorate


def on_one_cpu() -> bool:
    """Return whether programs are for one CPU device. (Where several share a batch, a cut of it has to travel.)"""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


@jax.custom_jvp
def in_one_loop(*arrays: Array) -> tuple[Array, ...]:
    """Return `arrays`, all of one shape, as they are; on a CPU one loop writes them all.

    XLA on a CPU gives each array a loop of its own, and each loop reads the operands from memory again. Only a
    reduction of several arrays writes several. So the arrays are spread along an axis of two, of which the last is
    taken: LLVM sees that both are the same. (What is written so never takes the place of an operand.)
    """
    if not on_one_cpu():
        return arrays
    twice = tuple(jnp.broadcast_to(v, (2, *v.shape)) for v in arrays)
    nothing = tuple(jnp.zeros((), v.dtype) for v in arrays)
    return tuple(lax.reduce(twice, nothing, lambda _, last: last, (0,)))


@in_one_loop.defjvp
def _in_one_loop_jvp(primals: Any, tangents: Any) -> Any:
    return in_one_loop(*primals), tangents


def parts(rows: int) -> int:
    """Into how many parts of one length `column_sums` cuts so many rows on a GPU, each for a block of its own; else 1.

    XLA gives 32 columns of up to 4096 rows to one block of threads: of 64 x 8 x 8 pixels with 128 channels, 4 of the
    132 processors of an H200 work. Rows that no number from 32 to 256 divides are left to it.
    """
    if jax.default_backend() == "cpu" or rows <= 2 * PART:
        return 1
    return next((rows // part for part in range(PART, 31, -1) if rows % part == 0), 1)


@jax.custom_jvp
def column_sums(*terms: Array) -> tuple[Array, ...]:
    """Return the sums of `terms`, `(..., S, C)` of one shape, over S: `(..., C)` each, from one pass over all of them.

    XLA makes a pass a sum, and first writes out terms that it would have to compute. A reduction of several arrays is
    one loop, terms and all. On a CPU it is a fast one only over few rows, which LLVM writes out one after the other to
    take the columns for its vectors. So each eight rows are added up, and then the sums, an eighth as large. On a GPU
    it is a fast one in `parts`.
    """
    rows = terms[0].shape[-2]
    if jax.default_backend() == "cpu":
        together = math.gcd(rows, TOGETHER)
        if on_one_cpu() and together >= TOGETHER // 2:
            terms = _sums_of(together, terms)
        return tuple(jnp.sum(term, axis=-2) for term in terms)
    while (pieces := parts(rows)) > 1:
        rows, terms = pieces, _sums_of(rows // pieces, terms)
    return _reduced(terms, axis=terms[0].ndim - 2)


def _sums_of(together: int, terms: Sequence[Array]) -> tuple[Array, ...]:
    """Return the sums of so many rows together, in one loop."""
    *outer, rows, columns = terms[0].shape
    split = (*outer, rows // together, together, columns)
    return _reduced([term.reshape(split) for term in terms], axis=len(outer) + 1)


def _reduced(terms: Sequence[Array], axis: int) -> tuple[Array, ...]:
    """Return the sums over an axis, by one reduction of all terms."""
    zeros = tuple(jnp.zeros((), term.dtype) for term in terms)
    return tuple(lax.reduce(tuple(terms), zeros, _added, (axis,)))


@column_sums.defjvp
def _column_sums_jvp(terms: Any, tangents: Any) -> Any:
    return column_sums(*terms), tuple(jnp.sum(tangent, axis=-2) for tangent in tangents)


def row_sums(*terms: Array) -> tuple[Array, ...]:
    """Return the sums of `terms`, `(..., C)` of one shape, over C: `(...)` each, from one pass over all of them.

    On a CPU a row is seen as a matrix of 32 columns, which `column_sums` adds up first.
    """
    columns = terms[0].shape[-1]
    if on_one_cpu() and columns % FEW == 0:
        terms = column_sums(*(term.reshape(*term.shape[:-1], columns // FEW, FEW) for term in terms))
    return tuple(jnp.sum(term, axis=-1) for term in terms)


def _added(sums: Sequence[Array], terms: Sequence[Array]) -> list[Array]:
    return [total + term for total, term in zip(sums, terms, strict=True)]


def by_channel(function: Callable[..., Array]) -> Callable[..., Array]:
    """Let an elementwise function of activations `(N, ..., C)` and vectors `(C,)` run over long rows.

    The function gets each vector in a shape that spreads over the activations, which all have one shape, and returns an
    activation.

    Of a loop over 16 channels XLA writes out all turns, and LLVM then reads and writes the pixels in strides, at half
    the speed or less. So few channels are seen as rows of several pixels, with the vectors repeated. It takes a call of
    its own: XLA would move the reshapes out of the loop.
    """
    in_one = outlined()(function)

    @functools.wraps(function)
    def call(*args: Array) -> Array:
        shape = next(v.shape for v in args if v.ndim > 1)
        pixels, channels = math.prod(shape[:-1]), shape[-1]
        # As many pixels as divide them all, a power of two: the sizes of batches and images mostly are its multiples.
        joined = math.gcd(pixels, 1 << (ROW // channels).bit_length() - 1) if 0 < channels < FEW else 1
        if joined == 1 or jax.default_backend() != "cpu":
            return function(*(v.reshape((1,) * (len(shape) - 1) + v.shape) if v.ndim == 1 else v for v in args))
        rows = (jnp.tile(v, joined)[None] if v.ndim == 1 else v.reshape(-1, joined * channels) for v in args)
        return in_one(*rows).reshape(shape)

    return call
