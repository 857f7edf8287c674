"""Layers: pairs of pure functions over parameter pytrees, and the combinators that make a network of them.

A layer holds parameters; the derivatives are its op's. `init` makes what it needs, `apply` uses it:

>>> import jax, jax.numpy as jnp
>>> layer = serial(affine(8), relu(), affine(3))
>>> params, state, shape = layer.init(jax.random.key(0), (5,))
>>> out, state = layer.apply(params, state, jnp.ones((2, 5)))
>>> out.shape, shape, sorted(params)
((2, 3), (3,), ['00_affine', '02_affine'])

A layer of your own is one function that returns a `Layer`; nothing is registered anywhere.
"""

import contextvars
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jnet import custom_vjp
from jnet.formulas.validate import require
from jnet.formulas.windows import Padding, pair

__all__ = [
    "FUSIONS",
    "Layer",
    "affine",
    "avg_pool2d",
    "batchnorm",
    "conv2d",
    "dropout",
    "embedding",
    "flatten",
    "global_avg_pool",
    "groupnorm",
    "layernorm",
    "leaky_relu",
    "lstm",
    "max_pool2d",
    "relu",
    "residual",
    "rnn",
    "serial",
    "sigmoid",
    "tanh",
    "with_ops",
]

Params = Any  # a pytree of arrays
State = Any  # a pytree of arrays: running statistics
Shape = tuple[int, ...]


class Layer(NamedTuple):
    """A layer: how to make its parameters, how to apply it, and what it is."""

    init: Callable[..., tuple[Params, State, Shape]]
    """`init(key, input_shape) -> (params, state, output_shape)`, shapes without the batch axis."""
    apply: Callable[..., tuple[Array, State]]
    """`apply(params, state, x, *, train=False, key=None) -> (out, state)`; `key` feeds dropout when training."""
    name: str = "layer"
    """What kind of layer it is: the word in the parameters' paths."""
    hyper: Mapping[str, Any] = {}
    """The hyper-parameters it was made with, for summaries."""
    children: Mapping[str, "Layer"] = {}
    """The layers it is made of, by the key of their parameters."""


_OPS: contextvars.ContextVar[Any] = contextvars.ContextVar("jnet_ops", default=custom_vjp)


def with_ops(layer: Layer, ops: ModuleType) -> Layer:
    """Return the same layer evaluated on another module of ops: `with_ops(model, jnet.reference)` is the plain twin.

    `ops` has the names of `jnet.custom_vjp`. The seam is in the returned layer alone; parameters are interchangeable.
    """

    def apply(params, state, x, *, train=False, key=None):
        token = _OPS.set(ops)
        try:
            return layer.apply(params, state, x, train=train, key=key)
        finally:
            _OPS.reset(token)

    return layer._replace(apply=apply)


# Layers with weights


def affine(features: int, *, weight_scale: float | None = None) -> Layer:
    """Fully connected layer: `(d1, ..., dk) -> (features,)`, trailing axes flattened; parameters `w, b`.

    Weights are normal with deviation `weight_scale`, by default He's sqrt(2 / fan_in) (He et al. 2015,
    arXiv:1502.01852).
    """
    require(features > 0, f"affine: features is {features}; it must be at least 1")

    def init(key, shape):
        size = math.prod(shape)
        w = _normal(key, (size, features), size, weight_scale)
        return {"w": w, "b": jnp.zeros(features, jnp.float32)}, {}, (features,)

    def apply(params, state, x, *, train=False, key=None):
        del train, key
        return _OPS.get().affine(x, params["w"], params["b"]), state

    return _own(Layer(init, apply, "affine", {"features": features}))


def conv2d(
    features: int,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    use_bias: bool = True,
    *,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    weight_scale: float | None = None,
    algorithm: str = "auto",
) -> Layer:
    """Convolution of NHWC images: `(H, W, C) -> (OH, OW, features)`; parameters `w`, HWIO, and `b`.

    Weights are normal with deviation `weight_scale`, by default He's sqrt(2 / fan_in). The other arguments are those of
    `custom_vjp.conv2d`.
    """
    require(features > 0, f"conv2d: features is {features}; it must be at least 1")
    static = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "algorithm": algorithm}

    def init(key, shape):
        require(len(shape) == 3, f"conv2d: the input shape is {shape}; it must be (H, W, C)")
        window = (*pair(kernel_size), shape[-1] // groups)
        params = {"w": _normal(key, (*window, features), math.prod(window), weight_scale)}
        if use_bias:
            params["b"] = jnp.zeros(features, jnp.float32)
        return params, {}, _output_shape(lambda x: apply(params, {}, x)[0], shape)

    def apply(params, state, x, *, train=False, key=None):
        del train, key
        return _OPS.get().conv2d(x, params["w"], params.get("b"), **static), state

    hyper = {"features": features, "kernel_size": kernel_size, "use_bias": use_bias, **static}
    return _own(Layer(init, apply, "conv2d", hyper))


# Normalization


def batchnorm(momentum: float = 0.9, eps: float = 1e-5, *, groups: int = 1, axis_name: str | None = None) -> Layer:
    """Batch normalization over all axes but the last; parameters `gamma, beta`, state `mean, var`.

    In training the batch is normalised by its own statistics, and `running = momentum * running + (1 - momentum) *
    batch` with the biased variance; otherwise by the running ones. Statistics are float32 or wider.

    With `groups` the batch falls into that many parts, each normalised by itself ("ghost batch normalization", Hoffer
    et al. 2017, arXiv:1705.08741); the running statistics see the parts' mean. With `axis_name`, inside `shard_map`,
    the statistics are those of all devices along that mesh axis; under `jit` with a sharded batch they are without
    it.
    """
    require(0.0 <= momentum <= 1.0, f"batchnorm: momentum is {momentum}; it must be in [0, 1]")
    require(groups > 0, f"batchnorm: groups is {groups}; it must be at least 1")

    def init(key, shape):
        del key
        channels = shape[-1:]
        state = {"mean": jnp.zeros(channels, jnp.float32), "var": jnp.ones(channels, jnp.float32)}
        return _scale_and_shift(channels), state, shape

    def normalize(x, gamma, beta):
        return _OPS.get().batchnorm(x, gamma, beta, eps=eps, axis_name=axis_name)

    def normalize_by_group(x, gamma, beta):
        rows = x.shape[0]
        require(rows % groups == 0, f"batchnorm: groups is {groups}; it must divide the {rows} rows of the batch")
        parts = x.reshape(groups, rows // groups, *x.shape[1:])
        out, mean, var = jax.vmap(normalize, in_axes=(0, None, None))(parts, gamma, beta)
        return out.reshape(x.shape), jnp.mean(mean, axis=0), jnp.mean(var, axis=0)

    def apply(params, state, x, *, train=False, key=None):
        del key
        gamma, beta = params["gamma"], params["beta"]
        if not train:
            return _OPS.get().batchnorm_inference(x, gamma, beta, state["mean"], state["var"], eps=eps), state
        out, mean, var = (normalize if groups == 1 else normalize_by_group)(x, gamma, beta)
        return out, running_statistics(state, mean, var, momentum)

    hyper = {"momentum": momentum, "eps": eps, "groups": groups, "axis_name": axis_name}
    return _own(Layer(init, apply, "batchnorm", hyper))


def running_statistics(state: State, mean: Array, var: Array, momentum: float) -> State:
    """Return the running mean and variance moved towards a batch's, which are constants to the gradient."""
    batch = {"mean": mean, "var": var}
    return jax.tree.map(
        lambda running, new: momentum * running + (1 - momentum) * jax.lax.stop_gradient(new).astype(running.dtype),
        state,
        batch,
    )


def layernorm(eps: float = 1e-5) -> Layer:
    """Layer normalization over the last axis; parameters `gamma, beta`."""

    def init(key, shape):
        del key
        return _scale_and_shift(shape[-1:]), {}, shape

    def apply(params, state, x, *, train=False, key=None):
        del train, key
        return _OPS.get().layernorm(x, params["gamma"], params["beta"], eps=eps), state

    return Layer(init, apply, "layernorm", {"eps": eps})


def groupnorm(groups: int, eps: float = 1e-5) -> Layer:
    """Group normalization, `groups` groups of contiguous channels; parameters `gamma, beta`."""

    def init(key, shape):
        del key
        divides = groups > 0 and shape[-1] % groups == 0
        require(divides, f"groupnorm: groups is {groups}; it must divide the {shape[-1]} channels of the input {shape}")
        return _scale_and_shift(shape[-1:]), {}, shape

    def apply(params, state, x, *, train=False, key=None):
        del train, key
        return _OPS.get().groupnorm(x, params["gamma"], params["beta"], groups=groups, eps=eps), state

    return Layer(init, apply, "groupnorm", {"groups": groups, "eps": eps})


# Recurrent layers


def embedding(vocabulary: int, features: int, *, weight_scale: float = 0.01) -> Layer:
    """The vector of each word: integer ids `(d1, ..., dk) -> (d1, ..., dk, features)`; parameter `w`.

    Vectors are normal with deviation `weight_scale`.
    """
    sizes = vocabulary > 0 and features > 0
    require(sizes, f"embedding: vocabulary is {vocabulary} and features is {features}; both must be at least 1")

    def init(key, shape):
        return {"w": _normal(key, (vocabulary, features), vocabulary, weight_scale)}, {}, (*shape, features)

    def apply(params, state, x, *, train=False, key=None):
        del train, key
        return _OPS.get().word_embedding(x, params["w"]), state

    return Layer(init, apply, "embedding", {"vocabulary": vocabulary, "features": features})


def rnn(features: int) -> Layer:
    """Vanilla recurrent network from a zero state: `(T, D) -> (T, features)`, all states; parameters `wx, wh, b`.

    Weights are normal with deviation 1 / sqrt(fan_in): about the slope of tanh at 0.
    """

    def states(x, params):
        h0 = jnp.zeros((x.shape[0], features), x.dtype)
        return _OPS.get().rnn(x, h0, params["wx"], params["wh"], params["b"])

    return _recurrent("rnn", features, 1, states)


def lstm(features: int) -> Layer:
    """Long short-term memory from a zero state: `(T, D) -> (T, features)`, all states; parameters `wx, wh, b`.

    The columns of the weights are the gates i, f, o, g. Weights are normal with deviation 1 / sqrt(fan_in).
    """

    def states(x, params):
        zero = jnp.zeros((x.shape[0], features), x.dtype)
        return _OPS.get().lstm(x, zero, zero, params["wx"], params["wh"], params["b"])[0]

    return _recurrent("lstm", features, 4, states)


def _recurrent(name: str, features: int, gates: int, states: Callable[[Array, Params], Array]) -> Layer:
    """Make the layer of a recurrent cell with `gates` times `features` columns in its weights."""
    require(features > 0, f"{name}: features is {features}; it must be at least 1")

    def init(key, shape):
        require(len(shape) == 2, f"{name}: the input shape is {shape}; it must be (T, D)")
        of_x, of_h = jax.random.split(key)
        width = gates * features
        params = {
            "wx": _normal(of_x, (shape[1], width), shape[1], max(shape[1], 1) ** -0.5),
            "wh": _normal(of_h, (features, width), features, features**-0.5),
            "b": jnp.zeros(width, jnp.float32),
        }
        return params, {}, (shape[0], features)

    def apply(params, state, x, *, train=False, key=None):
        del train, key
        return states(x, params), state

    return Layer(init, apply, name, {"features": features})


# Layers without parameters


def relu() -> Layer:
    """`max(x, 0)`."""
    return _plain("relu", lambda x: _OPS.get().relu(x))


def leaky_relu(negative_slope: float = 0.01) -> Layer:
    """`x` where positive, else `negative_slope * x`."""
    return _plain("leaky_relu", lambda x: _OPS.get().leaky_relu(x, negative_slope), negative_slope=negative_slope)


def sigmoid() -> Layer:
    """Logistic function."""
    return _plain("sigmoid", lambda x: _OPS.get().sigmoid(x))


def tanh() -> Layer:
    """Hyperbolic tangent."""
    return _plain("tanh", lambda x: _OPS.get().tanh(x))


def max_pool2d(
    window: int | Sequence[int] = 2,
    stride: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
    dilation: int | Sequence[int] = 1,
) -> Layer:
    """Max-pooling of NHWC images; the arguments are those of `custom_vjp.max_pool2d`."""
    static = {"window": window, "stride": stride, "padding": padding, "dilation": dilation}
    return _plain("max_pool2d", lambda x: _OPS.get().max_pool2d(x, **static), **static)


def avg_pool2d(
    window: int | Sequence[int] = 2,
    stride: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
) -> Layer:
    """Average-pooling of NHWC images; the arguments are those of `custom_vjp.avg_pool2d`."""
    static = {"window": window, "stride": stride, "padding": padding, "count_include_pad": count_include_pad}
    return _plain("avg_pool2d", lambda x: _OPS.get().avg_pool2d(x, **static), **static)


def global_avg_pool() -> Layer:
    """Mean over the image: `(H, W, C) -> (C,)`."""
    return _plain("global_avg_pool", lambda x: _OPS.get().avg_pool2d(x, x.shape[1:3])[:, 0, 0, :])


def flatten() -> Layer:
    """`(d1, ..., dk) -> (d1 * ... * dk,)`."""
    return _plain("flatten", lambda x: x.reshape(x.shape[0], math.prod(x.shape[1:])))


def dropout(keep_prob: float) -> Layer:
    """Inverted dropout: in training keep each unit with probability `keep_prob`, in (0, 1]; else the identity."""
    require(0.0 < keep_prob <= 1.0, f"dropout: keep_prob is {keep_prob}; it must be in (0, 1]")

    def init(key, shape):
        del key
        return {}, {}, shape

    def apply(params, state, x, *, train=False, key=None):
        del params
        if not train or keep_prob == 1.0:
            return x, state
        require(key is not None, "dropout: key is None; it must be a random key when train=True")
        return _OPS.get().dropout(x, key, keep_prob), state

    return Layer(init, apply, "dropout", {"keep_prob": keep_prob})


# Combinators


def serial(*layers: Layer) -> Layer:
    """Apply `layers` one after the other.

    Parameters and state are dicts keyed by position and kind, `00_conv2d, 01_batchnorm, ...`; a child that has none
    has no entry. Each child gets a key of its own. In training, neighbours that `FUSIONS` lists run as one op, with the
    results and the gradients that they have apart.
    """
    children = {f"{position:02d}_{layer.name}": layer for position, layer in enumerate(layers)}
    names, fused, apart = list(children), _fuse(layers), [_apart(layer) for layer in layers]

    def init(key, shape):
        params, state = {}, {}
        for position, (name, layer) in enumerate(children.items()):
            params[name], state[name], shape = layer.init(jax.random.fold_in(key, position), shape)
        return _occupied(params), _occupied(state), shape

    def apply(params, state, x, *, train=False, key=None):
        position, new_state, keys = 0, {}, _keys(key, len(names))
        for step in fused if train else apart:
            these = slice(position, position + step.length)
            own = names[these]
            x, states = step.apply(
                [params.get(n, {}) for n in own], [state.get(n, {}) for n in own], x, train, keys[these]
            )
            new_state.update(zip(own, states, strict=True))
            position += step.length
        return x, _occupied(new_state)

    return _own(Layer(init, apply, "serial", {}, children))


def _keys(key: Array | None, children: int) -> list[Array | None]:
    """Return `fold_in(key, position)` for each child, in one draw: on a CPU each draw is a loop of its own."""
    if key is None:
        return [None] * children
    return list(jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(children)))


def residual(body: Layer, shortcut: Layer | None = None) -> Layer:
    """`body(x) + shortcut(x)`, the shortcut being the identity unless given; keys `body`, `shortcut`.

    Reference: He, Zhang, Ren & Sun 2015, arXiv:1512.03385.
    """
    children = {"body": body} if shortcut is None else {"body": body, "shortcut": shortcut}

    def init(key, shape):
        params, state, shapes = {}, {}, {"shortcut": shape}
        for position, (name, layer) in enumerate(children.items()):
            params[name], state[name], shapes[name] = layer.init(jax.random.fold_in(key, position), shape)
        fits = shapes["body"] == shapes["shortcut"]
        require(fits, f"residual: body gives {shapes['body']}; it must give {shapes['shortcut']}, as the shortcut does")
        return _occupied(params), _occupied(state), shapes["body"]

    def apply(params, state, x, *, train=False, key=None):
        (out, added), new_state = _branches(children, params, state, x, train, key)
        return out + added, new_state

    return _own(Layer(init, apply, "residual", {}, children))


def _branches(children: Mapping[str, Layer], params: Params, state: State, x: Array, train: bool, key: Array | None):
    """Apply the body and the shortcut of `residual` to x: `((body, shortcut), state)`."""
    out, new_state = {"shortcut": x}, {}
    for (name, layer), own_key in zip(children.items(), _keys(key, len(children)), strict=True):
        out[name], new_state[name] = layer.apply(params.get(name, {}), state.get(name, {}), x, train=train, key=own_key)
    return (out["body"], out["shortcut"]), _occupied(new_state)


# Neighbours as one op


class _Step(NamedTuple):
    """One or several children of `serial`: how many, and how to apply them."""

    length: int
    apply: Callable[[Sequence[Params], Sequence[State], Array, bool, Sequence[Array | None]], tuple[Array, list[State]]]
    """`apply(params, states, x, train, keys) -> (out, states)`, with an entry a child."""


def _fuse(layers: Sequence[Layer]) -> list[_Step]:
    """Cut the layers into steps, at each place by the first of `FUSIONS` that fits."""
    steps: list[_Step] = []
    while rest := layers[sum(step.length for step in steps) :]:
        steps.append(next(filter(None, (_fusion(kinds, rest) for kinds in FUSIONS)), _apart(rest[0])))
    return steps


def _fusion(kinds: tuple[str, ...], layers: Sequence[Layer]) -> _Step | None:
    """Return the first of `layers` as one step, if they are of these kinds and the fusion takes them."""
    first = layers[: len(kinds)]
    if tuple(map(_kind, first)) != kinds:
        return None
    apply = FUSIONS[kinds](*first)
    return None if apply is None else _Step(len(kinds), apply)


def _apart(layer: Layer) -> _Step:
    def apply(params, states, x, train, keys):
        out, state = layer.apply(params[0], states[0], x, train=train, key=keys[0])
        return out, [state]

    return _Step(1, apply)


def _own(layer: Layer) -> Layer:
    """Mark `apply` as the one that this module gave to a layer of this name, so that `serial` may know what it does."""
    vars(layer.apply)["kind"] = layer.name
    return layer


def _kind(layer: Layer) -> str:
    """Return what is known of `apply`: nothing if somebody else wrote it, whatever the layer's name."""
    return getattr(layer.apply, "kind", "")


def _fuse_affine_relu(affine: Layer, relu: Layer):
    del affine, relu

    def apply(params, states, x, train, keys):
        del train, keys
        return _OPS.get().affine_relu(x, params[0]["w"], params[0]["b"]), states

    return apply


def _fuse_conv2d_relu(conv: Layer, relu: Layer):
    del relu
    return _biased(conv, lambda y, b: _OPS.get().bias_relu(y, b))


def _fuse_conv2d_relu_max_pool2d(conv: Layer, relu: Layer, pool: Layer):
    del relu
    if not _unpadded(pool):
        return None
    return _biased(conv, lambda y, b: _OPS.get().bias_relu_max_pool2d(y, b, **pool.hyper))


def _biased(conv: Layer, finish: Callable[[Array, Array], Array]):
    """Convolve without the bias, which `finish` adds."""
    if not conv.hyper["use_bias"]:
        return None

    def apply(params, states, x, train, keys):
        del train, keys
        y = _OPS.get().conv2d(x, params[0]["w"], None, **_convolution(conv))
        return finish(y, params[0]["b"]), states

    return apply


def _fuse_batchnorm_relu(norm: Layer, relu: Layer):
    del relu
    return _normalized(norm, lambda ops, _: ops.batchnorm_relu) if _undivided(norm) else None


def _fuse_batchnorm_relu_conv2d(norm: Layer, relu: Layer, conv: Layer):
    del relu

    def op(ops, params):
        w, b = params[2]["w"], params[2].get("b")
        return lambda *args, **static: ops.batchnorm_relu_conv2d(*args, w, b, **static, **_convolution(conv))

    return _normalized(norm, op) if _undivided(norm) else None


def _fuse_batchnorm_relu_max_pool2d(norm: Layer, relu: Layer, pool: Layer):
    del relu
    if not (_undivided(norm) and _unpadded(pool)):
        return None
    return _normalized(norm, lambda ops, _: functools.partial(ops.batchnorm_relu_max_pool2d, **pool.hyper))


def _normalized(norm: Layer, op: Callable[[Any, Sequence[Params]], Callable[..., Any]]):
    """Apply `op(ops, params)(x, gamma, beta) -> (out, mean, var)` and move the running statistics."""

    def apply(params, states, x, train, keys):
        del train, keys
        gamma, beta = params[0]["gamma"], params[0]["beta"]
        statics = {name: norm.hyper[name] for name in ("eps", "axis_name")}
        out, mean, var = op(_OPS.get(), params)(x, gamma, beta, **statics)
        return out, [running_statistics(states[0], mean, var, norm.hyper["momentum"]), *states[1:]]

    return apply


def _fuse_residual_relu(block: Layer, relu: Layer):
    """Take the batch normalization that ends the body out of it, to be one with the sum and relu."""
    del relu
    body = list(block.children["body"].children.items())
    if _kind(block.children["body"]) != "serial" or not body:
        return None
    name, norm = body[-1]
    if _kind(norm) != "batchnorm" or not _undivided(norm):
        return None
    whole = block._replace(children={**block.children, "body": serial(*(layer for _, layer in body[:-1]))})

    def apply(params, states, x, train, keys):
        (params, _), (state, _), (key, _) = params, states, keys
        (head, shortcut), new_state = _branches(whole.children, params, state, x, train, key)
        finish = _normalized(norm, lambda ops, _: functools.partial(ops.batchnorm_add_relu, shortcut=shortcut))
        out, (statistics,) = finish([params["body"][name]], [state["body"][name]], head, train, [None])
        return out, [{**new_state, "body": {**new_state.get("body", {}), name: statistics}}, {}]

    return apply


def _undivided(norm: Layer) -> bool:
    """Whether the batch is normalised as a whole."""
    return norm.hyper["groups"] == 1


def _convolution(conv: Layer) -> dict[str, Any]:
    return {name: conv.hyper[name] for name in ("stride", "padding", "dilation", "groups", "algorithm")}


def _unpadded(pool: Layer) -> bool:
    """Whether no window of the pool can lie on padding alone, whose maximum is minus infinity."""
    return pool.hyper["padding"] in ("VALID", 0, (0, 0), ((0, 0), (0, 0)))


# Which neighbours run as one op, the longer first. A fusion may decline, as for a convolution without a bias.
FUSIONS: dict[tuple[str, ...], Callable[..., Any]] = {
    ("batchnorm", "relu", "conv2d"): _fuse_batchnorm_relu_conv2d,
    ("batchnorm", "relu", "max_pool2d"): _fuse_batchnorm_relu_max_pool2d,
    ("batchnorm", "relu"): _fuse_batchnorm_relu,
    ("conv2d", "relu", "max_pool2d"): _fuse_conv2d_relu_max_pool2d,
    ("conv2d", "relu"): _fuse_conv2d_relu,
    ("affine", "relu"): _fuse_affine_relu,
    ("residual", "relu"): _fuse_residual_relu,
}


def _plain(name: str, function: Callable[[Array], Array], **hyper: Any) -> Layer:
    """Make a layer without parameters or state of a function of the input alone."""

    def init(key, shape):
        del key
        return {}, {}, _output_shape(function, shape)

    def apply(params, state, x, *, train=False, key=None):
        del params, train, key
        return function(x), state

    return _own(Layer(init, apply, name, hyper))


def _output_shape(function: Callable[[Array], Array], shape: Shape) -> Shape:
    """Return the shape of one result, without running anything."""
    return jax.eval_shape(function, jax.ShapeDtypeStruct((1, *shape), jnp.float32)).shape[1:]


def _normal(key: Array, shape: Shape, fan_in: int, deviation: float | None) -> Array:
    """Return normal weights of the given deviation, by default He's for a layer followed by relu."""
    deviation = math.sqrt(2.0 / max(fan_in, 1)) if deviation is None else deviation
    return deviation * jax.random.normal(key, shape, jnp.float32)


def _scale_and_shift(channels: Shape) -> Params:
    return {"gamma": jnp.ones(channels, jnp.float32), "beta": jnp.zeros(channels, jnp.float32)}


def _occupied(tree: dict[str, Any]) -> dict[str, Any]:
    """Drop the children that hold nothing, so that a checkpoint's paths are those of arrays."""
    return {name: child for name, child in tree.items() if child}
