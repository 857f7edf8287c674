"""The door between the course's NumPy arrays and jnet's formulas: every array of this package crosses here.

Inside the door a formula is compiled once for each set of shapes and dtypes. JAX's global configuration stays as it is:
float64 is at hand for the length of a call. What comes out is finished, owns its memory and can be written to, and
what a cache keeps is a copy, so a caller may change an array in place as soon as a call has returned.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["check_labels", "floats", "nchw", "nhwc", "numpy_backward", "numpy_jit"]


def numpy_jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function(*arrays, **statics)` of JAX arrays into one of NumPy arrays, in the dtypes that come in.

    Its keyword-only arguments are static. Results keep their structure; a result of rank 0 becomes a NumPy scalar.

    >>> @numpy_jit
    ... def scaled(x, *, by):
    ...     return x * by
    >>> scaled(np.ones(2), by=3)
    array([3., 3.])
    """
    parameters = inspect.signature(function).parameters.values()
    compiled = jax.jit(function, static_argnames=[p.name for p in parameters if p.kind is p.KEYWORD_ONLY])

    @functools.wraps(function)
    def call(*arrays: Any, **statics: Any) -> Any:
        with jax.enable_x64(True):
            return jax.tree.map(_to_numpy, compiled(*arrays, **statics))

    return call


def numpy_backward(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a backward pass, `backward(dout, cache, **statics) -> cotangents`, as `numpy_jit` does.

    It runs in the dtype of the cache's first array (that of `dout` where this is not a float), and so do its
    results: the gradients of a float32 layer are float32 whatever `dout` is.
    """

    @functools.wraps(backward)
    def typed(dout: Any, cache: Any, **statics: Any) -> Any:
        kept, given = jax.tree.leaves(cache)[0].dtype, jax.tree.leaves(dout)[0].dtype
        dtype = kept if jnp.issubdtype(kept, jnp.floating) else given
        cast = functools.partial(jax.tree.map, lambda array: array.astype(dtype))
        return cast(backward(cast(dout), cache, **statics))

    return numpy_jit(typed)


def floats(*arrays: Any) -> tuple[np.ndarray, ...]:
    """Copy arrays into NumPy arrays of one floating dtype: the widest among them, float64 where all are integers.

    >>> [array.dtype.name for array in floats(np.zeros(2, np.float32), [3, 4])]
    ['float32', 'float32']
    """
    given = [np.asarray(array) for array in arrays]
    floating = [array.dtype for array in given if jnp.issubdtype(array.dtype, jnp.floating)]
    dtype = np.result_type(*floating) if floating else np.float64
    return tuple(np.array(array, dtype) for array in given)


def check_labels(labels: Any, shape: tuple[int, ...], num_classes: int, name: str = "y") -> np.ndarray:
    """Return integer labels as an array, or raise ValueError naming the first that is none of `num_classes`.

    JAX would clamp such a label in silence and train on another class.
    """
    array = np.asarray(labels)
    if not np.issubdtype(array.dtype, np.integer) or array.shape != shape:
        raise ValueError(f"{name} is {array.dtype} of shape {array.shape}; it must be integers of shape {shape}")
    wrong = np.argwhere((array < 0) | (array >= num_classes))
    if len(wrong):
        index = ", ".join(map(str, wrong[0]))
        raise ValueError(f"{name}[{index}] is {array[tuple(wrong[0])]}; labels must be from 0 to {num_classes - 1}")
    return array


def nhwc(images: jax.Array) -> jax.Array:
    """Bring the course's images `(N, C, H, W)` into the formulas' layout."""
    return jnp.transpose(images, (0, 2, 3, 1))


def nchw(images: jax.Array) -> jax.Array:
    """Bring images `(N, H, W, C)` into the course's layout."""
    return jnp.transpose(images, (0, 3, 1, 2))


def _to_numpy(array: jax.Array) -> Any:
    copy = np.array(array)  # waits for the result, and owns its memory
    return copy[()] if copy.ndim == 0 else copy
