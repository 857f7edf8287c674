"""Every differentiable op of jnet: a formula's pair bound to `jax.custom_vjp`, and the catalogue of them all.

No mathematics lives here. An op takes its arguments by position or keyword, as its formula's forward does, and is
differentiated by its formula's backward: under jit, vmap, grad of grad, `jax.checkpoint`, `lax.scan` and `shard_map`.
Forward-mode differentiation (`jax.jvp`, `jax.hessian`) of a `custom_vjp` is a limitation of JAX: `jnet.reference` has
the same functions without rules, and `jax.jacrev(jax.jacrev(f))` works here.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jnet import reference
from jnet.formulas import activation, convolution, fused, loss, normalization, pooling, recurrent
from jnet.formulas.affine import affine_backward, affine_forward
from jnet.formulas.dropout import dropout_backward, dropout_forward

__all__ = [
    "CATALOGUE",
    "Entry",
    "Sample",
    "affine",
    "affine_relu",
    "avg_pool2d",
    "batchnorm",
    "batchnorm_add_relu",
    "batchnorm_inference",
    "batchnorm_relu",
    "batchnorm_relu_conv2d",
    "batchnorm_relu_max_pool2d",
    "bias_relu",
    "bias_relu_max_pool2d",
    "bind",
    "conv2d",
    "dropout",
    "groupnorm",
    "layernorm",
    "leaky_relu",
    "lstm",
    "lstm_step",
    "max_pool2d",
    "relu",
    "rnn",
    "rnn_step",
    "sigmoid",
    "softmax_cross_entropy",
    "svm_loss",
    "tanh",
    "temporal_affine",
    "temporal_softmax_loss",
    "word_embedding",
]


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Like:
    """What a cotangent must look like: its primal's dtype, and the mesh axes on which the primal varies."""

    dtype: Any
    varying: frozenset[str]


def bind(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    *,
    static: tuple[str, ...] = (),
    nondiff: tuple[str, ...] = (),
) -> Callable[..., Any]:
    """Turn a formula's pair into a differentiable op.

    Args:
        forward: `forward(*arrays, **statics) -> (out, cache)`; the cache is a pytree of arrays.
        backward: `backward(dout, cache, **statics) -> cotangents`: one for each differentiable array, in order, in a
            tuple (bare if there is only one). It takes as keywords those statics that it needs.
        static: names of the arguments that are hashable Python values (stride, padding, eps), never arrays.
        nondiff: names of the array arguments without a gradient (labels, random keys).

    Returns:
        The op, with forward's signature and docstring. Each cotangent has the dtype of its own primal and, in
        `shard_map`, is summed over the mesh axes on which it varies and its primal does not.

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
    vars(op)["__signature__"] = signature.replace(return_annotation=inspect.Signature.empty)
    return op


def _positional(signature: inspect.Signature) -> inspect.Signature:
    """Let the keyword-only statics of a formula be given by position too."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return signature.replace(parameters=[p.replace(kind=kind) for p in signature.parameters.values()])


def _hashable(op: str, name: str, value: Any) -> Any:
    """Return a static argument with lists turned into tuples; refuse arrays, which would silently get no gradient."""
    if isinstance(value, list | tuple):
        return tuple(_hashable(op, name, item) for item in value)
    if (hasattr(value, "shape") and not hasattr(value, "item")) or isinstance(value, jax.Array):
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
    varying, result = _varying(cotangent), cotangent
    if excess := tuple(sorted(varying - like.varying)):
        result = jax.lax.psum(result, excess)
    if missing := tuple(sorted(like.varying - varying)):
        result = jax.lax.pcast(result, missing, to="varying")
    return result.astype(like.dtype)


affine = bind(affine_forward, affine_backward)
relu = bind(activation.relu_forward, activation.relu_backward)
leaky_relu = bind(activation.leaky_relu_forward, activation.leaky_relu_backward, static=("negative_slope",))
sigmoid = bind(activation.sigmoid_forward, activation.sigmoid_backward)
tanh = bind(activation.tanh_forward, activation.tanh_backward)
batchnorm = bind(normalization.batchnorm_forward, normalization.batchnorm_backward, static=("eps", "axis_name"))
batchnorm_inference = bind(
    normalization.batchnorm_inference_forward, normalization.batchnorm_inference_backward, static=("eps",)
)
layernorm = bind(normalization.layernorm_forward, normalization.layernorm_backward, static=("eps",))
groupnorm = bind(normalization.groupnorm_forward, normalization.groupnorm_backward, static=("groups", "eps"))
dropout = bind(dropout_forward, dropout_backward, static=("keep_prob",), nondiff=("key",))
conv2d = bind(
    convolution.conv2d_forward,
    convolution.conv2d_backward,
    static=("stride", "padding", "dilation", "groups", "algorithm"),
)
max_pool2d = bind(
    pooling.max_pool2d_forward, pooling.max_pool2d_backward, static=("window", "stride", "padding", "dilation")
)
avg_pool2d = bind(
    pooling.avg_pool2d_forward, pooling.avg_pool2d_backward, static=("window", "stride", "padding", "count_include_pad")
)
softmax_cross_entropy = bind(
    loss.softmax_cross_entropy_forward, loss.softmax_cross_entropy_backward, nondiff=("labels",)
)
svm_loss = bind(loss.svm_loss_forward, loss.svm_loss_backward, static=("margin",), nondiff=("labels",))
rnn_step = bind(recurrent.rnn_step_forward, recurrent.rnn_step_backward)
rnn = bind(recurrent.rnn_forward, recurrent.rnn_backward)
lstm_step = bind(recurrent.lstm_step_forward, recurrent.lstm_step_backward)
lstm = bind(recurrent.lstm_forward, recurrent.lstm_backward)
word_embedding = bind(recurrent.word_embedding_forward, recurrent.word_embedding_backward, nondiff=("ids",))
temporal_affine = bind(recurrent.temporal_affine_forward, recurrent.temporal_affine_backward)
temporal_softmax_loss = bind(
    recurrent.temporal_softmax_loss_forward,
    recurrent.temporal_softmax_loss_backward,
    nondiff=("labels", "mask"),
)

# Neighbours as one op; `layers.serial` finds them.
_POOL = ("window", "stride", "padding", "dilation")
_CONV = ("stride", "padding", "dilation", "groups", "algorithm")
affine_relu = bind(fused.affine_relu_forward, fused.affine_relu_backward)
bias_relu = bind(fused.bias_relu_forward, fused.bias_relu_backward)
bias_relu_max_pool2d = bind(fused.bias_relu_max_pool2d_forward, fused.bias_relu_max_pool2d_backward, static=_POOL)
batchnorm_relu = bind(fused.batchnorm_relu_forward, fused.batchnorm_relu_backward, static=("eps", "axis_name"))
batchnorm_add_relu = bind(
    fused.batchnorm_add_relu_forward, fused.batchnorm_add_relu_backward, static=("eps", "axis_name")
)
batchnorm_relu_max_pool2d = bind(
    fused.batchnorm_relu_max_pool2d_forward,
    fused.batchnorm_relu_max_pool2d_backward,
    static=("eps", "axis_name", *_POOL),
)
batchnorm_relu_conv2d = bind(
    fused.batchnorm_relu_conv2d_forward, fused.batchnorm_relu_conv2d_backward, static=("eps", "axis_name", *_CONV)
)


# The catalogue

Maker = Callable[[np.random.Generator], Any]


class Sample(NamedTuple):
    """Arguments on which an op is tested: how to draw each array, and the statics."""

    arrays: Mapping[str, Maker | None]
    static: Mapping[str, Any] = {}


class Entry(NamedTuple):
    """All that there is to an op. Tests, benchmarks, `jnet check` and the documentation walk the entries."""

    name: str
    op: Callable[..., Any]
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    reference: Callable[..., Any]
    diff: tuple[str, ...]  # the arguments that have a gradient
    samples: tuple[Sample, ...]
    kinks: tuple[Sample, ...] = ()  # inputs at which a convention decides, the same in `reference`

    def inputs(self, sample: Sample, seed: int = 0, dtype: Any = "float32") -> dict[str, Any]:
        """Draw the sample's arrays, float ones in `dtype`."""
        rng = np.random.default_rng(seed)
        drawn = {name: None if make is None else make(rng) for name, make in sample.arrays.items()}
        return {
            name: jnp.asarray(value, dtype) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value
            for name, value in drawn.items()
        }


def normal(*shape: int) -> Maker:
    """Draw standard normal entries."""
    return lambda rng: rng.standard_normal(shape)


def positive(*shape: int) -> Maker:
    """Draw entries between 0.5 and 2."""
    return lambda rng: rng.uniform(0.5, 2.0, shape)


def labels(rows: int | tuple[int, ...], classes: int) -> Maker:
    """Draw class labels."""
    return lambda rng: rng.integers(0, classes, rows, dtype=np.int32)


def key() -> Maker:
    """Draw a random key."""
    return lambda rng: jax.random.key(int(rng.integers(2**31)))


def exactly(values: Any) -> Maker:
    """Take these values."""
    return lambda rng: np.asarray(values)


_ODD = {"x": normal(5, 3, 4, 6), "gamma": normal(6), "beta": normal(6)}
_ROWS = {"x": normal(9, 7), "gamma": normal(7), "beta": normal(7)}
_ONE = {"x": normal(1, 1), "gamma": normal(1), "beta": normal(1)}
_CONSTANT = {"x": exactly(np.full((4, 2), 3.0)), "gamma": normal(2), "beta": normal(2)}
_FEW = {"x": normal(3, 4, 3, 2), "gamma": normal(2), "beta": normal(2)}  # by chance none at a kink, even in bfloat16
_KINK = Sample({"x": exactly([[-1.0, -0.0, 0.0, 1e-30, -1e-30, 2.0]])})
_CELL = {"wx": normal(3, 2), "wh": normal(2, 2), "b": normal(2)}
_GATES = {"wx": normal(3, 8), "wh": normal(2, 8), "b": normal(8)}
_ELEMENTWISE = (Sample({"x": normal(4, 7)}), Sample({"x": normal(2, 3, 5, 1)}), Sample({"x": normal(0, 3)}))

CATALOGUE: tuple[Entry, ...] = (
    Entry(
        "affine",
        affine,
        affine_forward,
        affine_backward,
        reference.affine,
        ("x", "w", "b"),
        (
            Sample({"x": normal(5, 7), "w": normal(7, 4), "b": normal(4)}),
            Sample({"x": normal(3, 2, 4, 5), "w": normal(40, 6), "b": normal(6)}),
            Sample({"x": normal(1, 1), "w": normal(1, 1), "b": normal(1)}),
            Sample({"x": normal(0, 3), "w": normal(3, 2), "b": normal(2)}),
        ),
    ),
    Entry(
        "relu",
        relu,
        activation.relu_forward,
        activation.relu_backward,
        reference.relu,
        ("x",),
        _ELEMENTWISE,
        (_KINK,),
    ),
    Entry(
        "leaky_relu",
        leaky_relu,
        activation.leaky_relu_forward,
        activation.leaky_relu_backward,
        reference.leaky_relu,
        ("x",),
        (*_ELEMENTWISE, Sample({"x": normal(4, 7)}, {"negative_slope": 0.2})),
        (_KINK,),
    ),
    Entry(
        "sigmoid",
        sigmoid,
        activation.sigmoid_forward,
        activation.sigmoid_backward,
        reference.sigmoid,
        ("x",),
        _ELEMENTWISE,
        (_KINK,),
    ),
    Entry(
        "tanh", tanh, activation.tanh_forward, activation.tanh_backward, reference.tanh, ("x",), _ELEMENTWISE, (_KINK,)
    ),
    Entry(
        "batchnorm",
        batchnorm,
        normalization.batchnorm_forward,
        normalization.batchnorm_backward,
        reference.batchnorm,
        ("x", "gamma", "beta"),
        (Sample(_ROWS), Sample(_ODD, {"eps": 1e-3}), Sample(_ONE)),
        (Sample(_CONSTANT),),
    ),
    Entry(
        "batchnorm_inference",
        batchnorm_inference,
        normalization.batchnorm_inference_forward,
        normalization.batchnorm_inference_backward,
        reference.batchnorm_inference,
        ("x", "gamma", "beta", "mean", "var"),
        (
            Sample({**_ROWS, "mean": normal(7), "var": positive(7)}),
            Sample({**_ODD, "mean": normal(6), "var": positive(6)}, {"eps": 1e-3}),
        ),
    ),
    Entry(
        "layernorm",
        layernorm,
        normalization.layernorm_forward,
        normalization.layernorm_backward,
        reference.layernorm,
        ("x", "gamma", "beta"),
        (Sample(_ROWS), Sample(_ODD, {"eps": 1e-3}), Sample(_ONE)),
        (Sample(_CONSTANT),),
    ),
    Entry(
        "groupnorm",
        groupnorm,
        normalization.groupnorm_forward,
        normalization.groupnorm_backward,
        reference.groupnorm,
        ("x", "gamma", "beta"),
        (
            Sample(_ODD, {"groups": 3}),
            Sample(_ROWS, {"groups": 1}),
            Sample(_ODD, {"groups": 6, "eps": 1e-3}),
            Sample(_ONE, {"groups": 1}),
        ),
        (Sample(_CONSTANT, {"groups": 1}),),
    ),
    Entry(
        "dropout",
        dropout,
        dropout_forward,
        dropout_backward,
        reference.dropout,
        ("x",),
        (
            Sample({"x": normal(9, 7), "key": key()}, {"keep_prob": 0.7}),
            Sample({"x": normal(2, 3, 5), "key": key()}, {"keep_prob": 1.0}),
        ),
    ),
    Entry(
        "conv2d",
        conv2d,
        convolution.conv2d_forward,
        convolution.conv2d_backward,
        reference.conv2d,
        ("x", "w", "b"),
        (
            Sample({"x": normal(2, 7, 6, 3), "w": normal(3, 3, 3, 4), "b": normal(4)}),
            Sample(
                {"x": normal(2, 8, 7, 4), "w": normal(3, 2, 2, 6), "b": None},
                {"stride": (2, 1), "padding": ((1, 2), (0, 1)), "dilation": (1, 2), "groups": 2},
            ),
            Sample(
                {"x": normal(1, 5, 9, 3), "w": normal(2, 4, 1, 6), "b": normal(6)},
                {"stride": 2, "padding": "VALID", "groups": 3},
            ),
            Sample({"x": normal(3, 6, 5, 5), "w": normal(1, 1, 5, 2), "b": normal(2)}, {"stride": 2}),
        ),
    ),
    Entry(
        "max_pool2d",
        max_pool2d,
        pooling.max_pool2d_forward,
        pooling.max_pool2d_backward,
        reference.max_pool2d,
        ("x",),
        (
            Sample({"x": normal(2, 6, 4, 3)}),
            Sample({"x": normal(2, 7, 9, 2)}, {"window": 3, "stride": 2, "padding": "SAME"}),
            Sample({"x": normal(1, 8, 7, 2)}, {"window": (2, 3), "stride": 1, "padding": (1, 0), "dilation": (3, 1)}),
            Sample({"x": normal(1, 7, 8, 1)}, {"window": 2, "stride": 3, "padding": ((0, 1), (1, 1))}),
        ),
        (Sample({"x": exactly(np.tile([0.0, 1.0, 1.0], 12).reshape(1, 6, 6, 1))}, {"window": 3, "stride": 1}),),
    ),
    Entry(
        "avg_pool2d",
        avg_pool2d,
        pooling.avg_pool2d_forward,
        pooling.avg_pool2d_backward,
        reference.avg_pool2d,
        ("x",),
        (
            Sample({"x": normal(2, 6, 4, 3)}),
            Sample({"x": normal(2, 7, 9, 2)}, {"window": 3, "stride": 2, "padding": "SAME"}),
            Sample(
                {"x": normal(1, 8, 7, 2)}, {"window": (2, 3), "stride": 1, "padding": 1, "count_include_pad": False}
            ),
        ),
    ),
    Entry(
        "softmax_cross_entropy",
        softmax_cross_entropy,
        loss.softmax_cross_entropy_forward,
        loss.softmax_cross_entropy_backward,
        reference.softmax_cross_entropy,
        ("logits",),
        (
            Sample({"logits": normal(6, 5), "labels": labels(6, 5)}),
            Sample({"logits": normal(1, 1), "labels": labels(1, 1)}),
        ),
        (Sample({"logits": exactly([[2.0, 2.0, -1.0], [0.0, 0.0, 0.0]]), "labels": exactly([0, 2])}),),
    ),
    Entry(
        "svm_loss",
        svm_loss,
        loss.svm_loss_forward,
        loss.svm_loss_backward,
        reference.svm_loss,
        ("scores",),
        (
            Sample({"scores": normal(6, 5), "labels": labels(6, 5)}),
            Sample({"scores": normal(3, 4), "labels": labels(3, 4)}, {"margin": 0.5}),
        ),
        (Sample({"scores": exactly([[2.0, 1.0, 3.0], [0.0, 0.0, 1.0]]), "labels": exactly([0, 2])}),),
    ),
    Entry(
        "rnn_step",
        rnn_step,
        recurrent.rnn_step_forward,
        recurrent.rnn_step_backward,
        reference.rnn_step,
        ("x", "h", "wx", "wh", "b"),
        (
            Sample({"x": normal(5, 3), "h": normal(5, 2), **_CELL}),
            Sample({"x": normal(0, 3), "h": normal(0, 2), **_CELL}),
        ),
    ),
    Entry(
        "rnn",
        rnn,
        recurrent.rnn_forward,
        recurrent.rnn_backward,
        reference.rnn,
        ("x", "h0", "wx", "wh", "b"),
        (
            Sample({"x": normal(3, 4, 3), "h0": normal(3, 2), **_CELL}),
            Sample({"x": normal(2, 0, 3), "h0": normal(2, 2), **_CELL}),
        ),
    ),
    Entry(
        "lstm_step",
        lstm_step,
        recurrent.lstm_step_forward,
        recurrent.lstm_step_backward,
        reference.lstm_step,
        ("x", "h", "c", "wx", "wh", "b"),
        (Sample({"x": normal(5, 3), "h": normal(5, 2), "c": normal(5, 2), **_GATES}),),
    ),
    Entry(
        "lstm",
        lstm,
        recurrent.lstm_forward,
        recurrent.lstm_backward,
        reference.lstm,
        ("x", "h0", "c0", "wx", "wh", "b"),
        (
            Sample({"x": normal(3, 4, 3), "h0": normal(3, 2), "c0": normal(3, 2), **_GATES}),
            Sample({"x": normal(2, 0, 3), "h0": normal(2, 2), "c0": normal(2, 2), **_GATES}),
        ),
    ),
    Entry(
        "word_embedding",
        word_embedding,
        recurrent.word_embedding_forward,
        recurrent.word_embedding_backward,
        reference.word_embedding,
        ("w",),
        (
            Sample({"ids": labels((4, 3), 5), "w": normal(5, 2)}),
            Sample({"ids": labels((0,), 5), "w": normal(5, 2)}),
        ),
    ),
    Entry(
        "temporal_affine",
        temporal_affine,
        recurrent.temporal_affine_forward,
        recurrent.temporal_affine_backward,
        reference.temporal_affine,
        ("x", "w", "b"),
        (
            Sample({"x": normal(2, 3, 4), "w": normal(4, 5), "b": normal(5)}),
            Sample({"x": normal(2, 0, 4), "w": normal(4, 5), "b": normal(5)}),
        ),
    ),
    Entry(
        "temporal_softmax_loss",
        temporal_softmax_loss,
        recurrent.temporal_softmax_loss_forward,
        recurrent.temporal_softmax_loss_backward,
        reference.temporal_softmax_loss,
        ("logits",),
        (
            Sample(
                {
                    "logits": normal(3, 2, 5),
                    "labels": labels((3, 2), 5),
                    "mask": exactly([[True, False], [True, True], [False, False]]),
                }
            ),
        ),
    ),
    Entry(
        "affine_relu",
        affine_relu,
        fused.affine_relu_forward,
        fused.affine_relu_backward,
        reference.affine_relu,
        ("x", "w", "b"),
        (
            Sample({"x": normal(5, 7), "w": normal(7, 4), "b": normal(4)}),
            Sample({"x": normal(3, 2, 4), "w": normal(8, 6), "b": normal(6)}),
            Sample({"x": normal(0, 3), "w": normal(3, 2), "b": normal(2)}),
        ),
        (Sample({"x": exactly([[0.0], [1.0]]), "w": exactly([[1.0, -1.0]]), "b": exactly([0.0, 1.0])}),),
    ),
    Entry(
        "bias_relu",
        bias_relu,
        fused.bias_relu_forward,
        fused.bias_relu_backward,
        reference.bias_relu,
        ("x", "b"),
        (Sample({"x": normal(2, 3, 4, 5), "b": normal(5)}), Sample({"x": normal(0, 3), "b": normal(3)})),
        (Sample({"x": exactly([[-1.0, 0.0], [1.0, 2.0]]), "b": exactly([1.0, -2.0])}),),
    ),
    Entry(
        "bias_relu_max_pool2d",
        bias_relu_max_pool2d,
        fused.bias_relu_max_pool2d_forward,
        fused.bias_relu_max_pool2d_backward,
        reference.bias_relu_max_pool2d,
        ("x", "b"),
        (
            Sample({"x": normal(2, 6, 5, 3), "b": normal(3)}),
            Sample({"x": normal(2, 5, 6, 2), "b": normal(2)}, {"window": 3, "stride": 2, "padding": 1}),
            Sample({"x": normal(1, 6, 7, 2), "b": normal(2)}, {"window": (2, 3), "stride": 1, "dilation": (1, 2)}),
        ),
        (Sample({"x": exactly(np.ones((1, 4, 4, 2))), "b": exactly([-1.0, 1.0])}),),
    ),
    Entry(
        "batchnorm_relu",
        batchnorm_relu,
        fused.batchnorm_relu_forward,
        fused.batchnorm_relu_backward,
        reference.batchnorm_relu,
        ("x", "gamma", "beta"),
        (Sample(_ROWS), Sample(_FEW, {"eps": 1e-3})),
    ),
    Entry(
        "batchnorm_add_relu",
        batchnorm_add_relu,
        fused.batchnorm_add_relu_forward,
        fused.batchnorm_add_relu_backward,
        reference.batchnorm_add_relu,
        ("x", "gamma", "beta", "shortcut"),
        (
            Sample({**_ROWS, "shortcut": normal(9, 7)}),
            Sample({**_FEW, "shortcut": normal(3, 4, 3, 2)}, {"eps": 1e-3}),
        ),
    ),
    Entry(
        "batchnorm_relu_max_pool2d",
        batchnorm_relu_max_pool2d,
        fused.batchnorm_relu_max_pool2d_forward,
        fused.batchnorm_relu_max_pool2d_backward,
        reference.batchnorm_relu_max_pool2d,
        ("x", "gamma", "beta"),
        (
            Sample(_FEW),
            Sample(_FEW, {"window": 3, "stride": (1, 2), "padding": 1}),
        ),
    ),
    Entry(
        "batchnorm_relu_conv2d",
        batchnorm_relu_conv2d,
        fused.batchnorm_relu_conv2d_forward,
        fused.batchnorm_relu_conv2d_backward,
        reference.batchnorm_relu_conv2d,
        ("x", "gamma", "beta", "w", "b"),
        (
            Sample({**_FEW, "w": normal(3, 3, 2, 4), "b": normal(4)}),
            Sample(
                {**_FEW, "w": normal(3, 2, 1, 4), "b": None},
                {"eps": 1e-3, "stride": (2, 1), "padding": 1, "groups": 2},
            ),
        ),
    ),
)
