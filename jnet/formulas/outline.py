"""A call that XLA leaves whole: the one fence that its fusion does not climb on a CPU."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata

__all__ = ["outlined"]


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
