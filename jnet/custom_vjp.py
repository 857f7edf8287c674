"""Every differentiable op of jnet: a formula's pair bound to `jax.custom_vjp`, and the catalogue of them all.

No mathematics lives here. An op takes its arguments by position or keyword, as its formula's forward does, and is
differentiated by its formula's backward: under jit, vmap, grad of grad, `jax.checkpoint`, `lax.scan` and `shard_map`.
Forward-mode differentiation (`jax.jvp`, `jax.hessian`) of a `custom_vjp` is a limitation of JAX: `jnet.reference` has the
same functions without rules, and `jax.jacrev(jax.jacrev(f))` works here.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jnet.formulas import activation, affine as affine_, dropout as dropout_, loss, normalization

__all__ = ["bind"]


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Like:
    """What a cotangent must look like: its primal's dtype, and the mesh axes on which the primal varies."""

    dtype: Any
    varying: frozenset[str]


def bind(
    forward: Callable[..., Any], backward: Callable[..., Any], *, static: tuple[str, ...] = (), nondiff: tuple[str, ...] = ()
) -> Callable[..., Any]:
    """Turn a formula's pair into a differentiable op.

    Args:
        forward: `forward(*arrays, **statics) -> (out, cache)`; the cache is a pytree of arrays.
        backward: `backward(dout, cache, **statics) -> cotangents`: one for each differentiable array, in order, in a tuple
            (bare if there is only one). It takes as keywords those statics that it needs.
        static: names of the arguments that are hashable Python values (stride, padding, eps), never arrays.
        nondiff: names of the array arguments without a gradient (labels, random keys).

    Returns:
        The op, with forward's signature and docstring. Each cotangent has the dtype of its own primal and, in `shard_map`,
        is summed over the mesh axes on which it varies and its primal does not.

    >>> def double_forward(x):
    ...     return 2 * x, ()
    >>> def double_backward(dout, cache):
    ...     return 2 * dout
    >>> double = bind(double_forward, double_backward)
    >>> float(jax.grad(double)(3.0))
    2.0
    """
    name = forward.__name__.removesuffix("_forward")
    signature = _positional(inspect.signature(forward))
    arrays = tuple(n for n in signature.parameters if n not in static)
    backward_static = tuple(n for n in inspect.signature(backward).parameters if n in static)

    def primal(statics, *args):
        return forward(*args, **dict(statics))[0]

    def rule_forward(statics, *args):
        out, cache = forward(*args, **dict(statics))
        return out, (cache, tuple(None if arg is None else _like(arg) for arg in args))

    def rule_backward(statics, residuals, dout):
        cache, likes = residuals
        cotangents = backward(dout, cache, **{n: v for n, v in statics if n in backward_static})
        remaining = iter(cotangents if isinstance(cotangents, tuple) else (cotangents,))
        return tuple(
            None if n in nondiff else _match(next(remaining), like) for n, like in zip(arrays, likes, strict=True)
        )

    primal.__name__ = name  # what a jaxpr shows
    rule = jax.custom_vjp(primal, nondiff_argnums=(0,))
    rule.defvjp(rule_forward, rule_backward)

    @functools.wraps(forward)
    def op(*args, **kwargs):
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        values = call.arguments
        statics = tuple((n, _hashable(name, n, values[n])) for n in static)
        return rule(statics, *(None if values[n] is None else jnp.asarray(values[n]) for n in arrays))

    op.__name__ = op.__qualname__ = name
    op.__module__ = __name__
    op.__signature__ = signature.replace(return_annotation=inspect.Signature.empty)  # pyright: ignore[reportAttributeAccessIssue]
    return op


def _positional(signature: inspect.Signature) -> inspect.Signature:
    """Let the keyword-only statics of a formula be given by position too."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return signature.replace(parameters=[p.replace(kind=kind) for p in signature.parameters.values()])


def _hashable(op: str, name: str, value: Any) -> Any:
    """Return a static argument with lists turned into tuples; refuse arrays, which would silently get no gradient."""
    if isinstance(value, list | tuple):
        return tuple(_hashable(op, name, item) for item in value)
    if hasattr(value, "shape") and not hasattr(value, "item") or isinstance(value, jax.Array):
        raise TypeError(f"{op}: {name} is an array {value}; it must be a plain Python value, known while tracing")
    return value.item() if hasattr(value, "item") else value


def _like(primal: jax.Array) -> _Like:
    return _Like(primal.dtype, _varying(primal))


def _varying(x: jax.Array) -> frozenset[str]:
    """Return the mesh axes on which `x` varies inside `shard_map` (none outside)."""
    return jax.typeof(x).manual_axis_type.varying


def _match(cotangent: jax.Array | None, like: _Like | None) -> jax.Array | None:
    """Return the cotangent as its primal is: summed over the mesh axes that it has in excess, in the primal's dtype."""
    if cotangent is None or like is None:
        return None
    varying = _varying(cotangent)
    if excess := tuple(sorted(varying - like.varying)):
        cotangent = jax.lax.psum(cotangent, excess)
    if missing := tuple(sorted(like.varying - varying)):
        cotangent = jax.lax.pcast(cotangent, missing, to="varying")
    return cotangent.astype(like.dtype)
