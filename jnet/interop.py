"""Doors to other libraries: safetensors, PyTorch weights, StableHLO and ONNX, each from and to plain bytes or arrays.

A network is `(model, params, model_state)`. Every function here is pure, what it returns is written and read with
`pathlib`, and no format holds code to run:

>>> import jax, jnet
>>> model = jnet.models.fully_connected_net([8], num_classes=3, normalization="batchnorm")
>>> params, model_state, _ = model.init(jax.random.key(0), (5,))
>>> content = to_safetensors(params, model_state, {"hidden_dims": [8]})  # Path("net.safetensors").write_bytes(content)
>>> from_safetensors(content).config
{'hidden_dims': [8]}

The libraries behind the doors are optional: `pip install 'jnet[interop]'` for safetensors, `'jnet[onnx]'` for ONNX.
StableHLO needs JAX alone, and PyTorch is needed by nobody but the user of its weights.
"""

import importlib
import json
import logging
import math
from collections.abc import Callable, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jnet import reference
from jnet.formulas.windows import geometry
from jnet.layers import Layer, with_ops

__all__ = [
    "FORMATS",
    "Weights",
    "export",
    "from_safetensors",
    "from_torch",
    "to_onnx",
    "to_safetensors",
    "to_stablehlo",
    "to_torch",
]

Params = Any  # nested dicts of arrays
State = Any  # nested dicts of arrays
Shape = tuple[int, ...]


def export(
    kind: str, model: Layer, params: Params, model_state: State, input_shape: Shape, config: Mapping[str, Any]
) -> bytes:
    """Return a trained network as the content of a file of one of `FORMATS`; `input_shape` has no batch axis.

    `stablehlo` and `onnx` hold the network and its weights, `safetensors` the weights and `config`, and `torch` the
    weights as a PyTorch `state_dict` in safetensors, for `load_state_dict(safetensors.torch.load_file(...))`.
    """
    if kind == "stablehlo":
        return to_stablehlo(model, params, model_state, input_shape)
    if kind == "onnx":
        return to_onnx(model, params, model_state, input_shape)
    if kind == "safetensors":
        return to_safetensors(params, model_state, config)
    if kind == "torch":
        return _library("safetensors.numpy", "interop").save(to_torch(model, params, model_state, input_shape))
    raise ValueError(f"format is {kind!r}; it must be one of {', '.join(FORMATS)}")


FORMATS = {
    "stablehlo": ".stablehlo",
    "onnx": ".onnx",
    "safetensors": ".safetensors",
    "torch": ".torch.safetensors",
}
"""What `export` can write, and how its files are called."""


# safetensors


class Weights(NamedTuple):
    """What a safetensors file of jnet holds."""

    params: Params
    model_state: State
    config: dict[str, Any]


def to_safetensors(params: Params, model_state: State, config: Mapping[str, Any]) -> bytes:
    """Return parameters and running statistics in the safetensors format, `config` as JSON in its header.

    A tensor's name is its path, as `params/00_conv2d/w` and `model_state/01_batchnorm/mean`. Dtypes are kept.
    """
    tensors = {
        f"{tree}/{path}": np.asarray(leaf)
        for tree, leaves in (("params", params), ("model_state", model_state))
        for path, leaf in _flatten(leaves).items()
    }
    header = {"format": "jnet", "config": json.dumps(dict(config))}
    return _library("safetensors.numpy", "interop").save(tensors, header)


def from_safetensors(content: bytes) -> Weights:
    """Read what `to_safetensors` made. Raises `ValueError` for damaged content and for files of other origin."""
    safetensors = _library("safetensors", "interop")
    try:
        views = safetensors.deserialize(content)
    except safetensors.SafetensorError as error:
        raise ValueError(f"content is not a whole safetensors file ({error})") from None
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    if header.get("format") != "jnet":
        raise ValueError("content has no jnet header; read PyTorch weights with safetensors and `from_torch`")
    tree = _unflatten({name: _array(view) for name, view in views})
    return Weights(tree.get("params", {}), tree.get("model_state", {}), json.loads(header["config"]))


_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "BOOL": "bool"}
_DTYPES |= {
    f"{kind}{bits}": f"{name}{bits}" for kind, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)
}


def _array(view: Mapping[str, Any]) -> Array:
    """Return one tensor; safetensors' own reader for NumPy knows no bfloat16."""
    return jnp.array(np.frombuffer(view["data"], jnp.dtype(_DTYPES[view["dtype"]])).reshape(view["shape"]))


def _flatten(tree: Any) -> dict[str, Any]:
    """Return path -> leaf, paths joined with slashes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for path, _ in leaves:
        if not all(isinstance(key, jax.tree_util.DictKey) and "/" not in str(key.key) for key in path):
            raise ValueError(f"params must be nested dicts with keys free of '/', got {jax.tree_util.keystr(path)}")
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


# PyTorch


def to_torch(
    model: Layer,
    params: Params,
    model_state: State,
    input_shape: Shape,
    like: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    r"""Return the weights as a PyTorch `state_dict` of float32 NumPy arrays.

    Names are those of `torch.nn.Sequential` with a module at each position of the model (`residual` has `body` and
    `shortcut`), or those of `like`, the `state_dict` of a module whose layers were registered in the model's order:

        module.load_state_dict({k: torch.as_tensor(v) for k, v in to_torch(..., like=module.state_dict()).items()})

    PyTorch's images are NCHW, so filters go from HWIO to OIHW, and whatever follows a flattened image (`input_shape`
    says its shape) from (H, W, C) order to (C, H, W). `rnn` and `lstm` are `torch.nn.RNN` and `LSTM` of one layer with
    `batch_first=True`; of their two biases one is jnet's and one is zero.

    What a `state_dict` does not hold must be set in the module: `eps`, and batch normalization's `momentum`, which is
    1 - jnet's. (PyTorch's own training moves the running variance towards the unbiased one, n / (n - 1) times jnet's.)
    `"SAME"` padding with a stride pads at the bottom and right, as XLA does, where PyTorch pads both sides alike.
    """
    slots = _slots(model, input_shape)
    names = [slot.name for slot in slots] if like is None else _names_in(like, slots)
    trees = {"params": _flatten(params), "model_state": _flatten(model_state)}
    weights = {}
    for slot, name in zip(slots, names, strict=True):
        array = np.asarray(trees[slot.tree][slot.path], np.float32)
        weights[name] = np.array(slot.to_torch(array), order="C")  # a copy: torch trains in place
        if slot.entry == "running_var":
            weights[name.removesuffix("running_var") + "num_batches_tracked"] = np.array(0)
    return weights


def from_torch(model: Layer, state_dict: Mapping[str, Any], input_shape: Shape) -> tuple[Params, State]:
    """Return `(params, model_state)` of `model`, float32, from a PyTorch `state_dict` of tensors or arrays.

    Modules are taken by name where the names are those of `to_torch`, else in the order of the `state_dict`, which must
    be that of the model's layers. Shapes are checked against `input_shape`, without the batch axis. Raises `ValueError`
    naming both sides where something does not fit. See `to_torch` for what a `state_dict` does not hold.
    """
    slots = _slots(model, input_shape)
    trees: dict[str, dict[str, Array]] = {"params": {}, "model_state": {}}
    for slot, name in zip(slots, _names_in(state_dict, slots), strict=True):
        array = _to_numpy(state_dict[name])
        if array.shape != slot.torch_shape:
            wanted = f"{slot.torch_shape} for {slot.tree}/{slot.path}"
            raise ValueError(f"{name} has shape {array.shape}; it must be {wanted}")
        array = jnp.array(slot.from_torch(array), jnp.float32)  # a copy: torch trains in place
        leaves = trees[slot.tree]
        leaves[slot.path] = leaves[slot.path] + array if slot.path in leaves else array  # two biases there, one here
    return _unflatten(trees["params"]), _unflatten(trees["model_state"])


class _Slot(NamedTuple):
    """One array of a model and its counterpart in a `state_dict`."""

    tree: str  # "params" or "model_state"
    path: str  # in that tree, as 00_conv2d/w
    module: str  # torch.nn.Sequential's name of the module, as 0 or 3.body.1
    entry: str  # the array's name in the module, as weight
    torch_shape: Shape
    to_torch: Callable[[np.ndarray], np.ndarray]
    from_torch: Callable[[np.ndarray], np.ndarray]

    @property
    def name(self) -> str:
        return f"{self.module}.{self.entry}" if self.module else self.entry


_AFFINE = {"weight": ("params", "w"), "bias": ("params", "b")}
_NORM = {"weight": ("params", "gamma"), "bias": ("params", "beta")}
_RECURRENT = {
    "weight_ih_l0": ("params", "wx"),
    "weight_hh_l0": ("params", "wh"),
    "bias_ih_l0": ("params", "b"),
    "bias_hh_l0": ("params", "b"),
}
_ENTRIES = {
    "affine": _AFFINE,
    "conv2d": _AFFINE,
    "embedding": {"weight": ("params", "w")},
    "rnn": _RECURRENT,
    "lstm": _RECURRENT,
    "layernorm": _NORM,
    "groupnorm": _NORM,
    "batchnorm": _NORM | {"running_mean": ("model_state", "mean"), "running_var": ("model_state", "var")},
}
_PER_CHANNEL = ("relu", "leaky_relu", "sigmoid", "tanh", "dropout", "max_pool2d", "avg_pool2d", "global_avg_pool")


def _slots(model: Layer, input_shape: Shape) -> list[_Slot]:
    """Return the slots of every array of `model`, in the order of its layers."""
    slots: list[_Slot] = []
    _walk(model, tuple(input_shape), None, (), slots)
    return slots


def _walk(layer: Layer, shape: Shape, image: Shape | None, keys: tuple[str, ...], slots: list[_Slot]) -> tuple:
    """Append the slots of `layer`; return the shape of its output and the `image` that its last axis is flattened from.

    `image` is the one thing to know about an input beyond its shape: (H, W, C), whose order PyTorch has otherwise.
    """
    if layer.name == "residual":
        ends = [_walk(child, shape, image, (*keys, name), slots) for name, child in layer.children.items()]
        if len({*ends, *([(shape, image)] if len(ends) == 1 else [])}) != 1:
            raise ValueError(f"{'/'.join(keys)}: body and shortcut order a flattened image differently; PyTorch cannot")
        return ends[0]
    if layer.name == "serial":
        for name, child in layer.children.items():
            shape, image = _walk(child, shape, image, (*keys, name), slots)
        return shape, image
    params, state, out_shape = _shapes(layer, shape)
    if layer.name == "flatten":
        return out_shape, shape if len(shape) == 3 else image
    if layer.name in _PER_CHANNEL:
        return out_shape, image
    if layer.name not in _ENTRIES:
        raise ValueError(f"{'/'.join(keys)}: a layer {layer.name!r} has no counterpart in PyTorch")
    if layer.name == "groupnorm" and image is not None:
        raise ValueError(f"{'/'.join(keys)}: groups of a flattened image are other groups in PyTorch's order")
    if layer.name == "embedding" and len(out_shape) == 3:
        raise ValueError(f"{'/'.join(keys)}: gives {out_shape}, which cannot be told from an image (H, W, C)")
    module = ".".join(key if key in ("body", "shortcut") else str(int(key.split("_")[0])) for key in keys)
    for entry, (tree, name) in _ENTRIES[layer.name].items():
        leaves = {"params": params, "model_state": state}[tree]
        if name in leaves:  # a convolution may have no bias
            there, back = _transforms(layer.name, entry, shape if layer.name == "affine" and len(shape) == 3 else image)
            torch_shape = there(np.empty(leaves[name].shape, np.bool_)).shape
            slots.append(_Slot(tree, "/".join((*keys, name)), module, entry, torch_shape, there, back))
    return out_shape, image if layer.name in ("layernorm", "batchnorm") else None


def _transforms(kind: str, entry: str, image: Shape | None) -> tuple[Callable, Callable]:
    """Return the maps of one array to PyTorch's layout and back."""
    if kind == "conv2d" and entry == "weight":
        return lambda w: w.transpose(3, 2, 0, 1), lambda w: w.transpose(2, 3, 1, 0)  # HWIO, OIHW
    if kind == "embedding":
        return lambda w: w, lambda w: w
    if entry == "bias_hh_l0":  # is added to the other bias
        return np.zeros_like, _swap_last_gates if kind == "lstm" else np.transpose
    if kind == "lstm":
        return lambda w: _swap_last_gates(w).T, lambda w: _swap_last_gates(w.T)
    if image is None or (kind, entry) == ("affine", "bias"):
        return np.transpose, np.transpose  # (D, M) and (M, D); a vector stays what it is
    order = np.arange(math.prod(image)).reshape(image).transpose(2, 0, 1).ravel()  # PyTorch's i-th is our order[i]-th
    return lambda w: w[order].T, lambda w: w.T[np.argsort(order)]


def _swap_last_gates(w: np.ndarray) -> np.ndarray:
    """Turn columns in the order i, f, o, g into PyTorch's i, f, g, o, and back."""
    i, f, o, g = np.split(w, 4, axis=-1)
    return np.concatenate((i, f, g, o), axis=-1)


def _names_in(state_dict: Mapping[str, Any], slots: list[_Slot]) -> list[str]:
    """Return each slot's name in `state_dict`: its own if those are the names there, else the next in order."""
    present = [name for name in state_dict if not name.endswith("num_batches_tracked")]
    own = [slot.name for slot in slots]
    if set(present) == set(own):
        return own
    theirs, ours = _by_module(present), _by_module(own)
    for (their_module, their_entries), (our_module, our_entries) in zip(theirs.items(), ours.items(), strict=False):
        if set(their_entries) != set(our_entries):
            path = next(slot.path for slot in slots if slot.module == our_module)
            raise ValueError(
                f"state_dict has {their_module} with {', '.join(their_entries)} where {path} needs "
                f"{', '.join(our_entries)}; modules must come in the order of the model's layers"
            )
    if len(theirs) != len(ours):
        raise ValueError(f"state_dict has {len(theirs)} modules with weights; the model has {len(ours)} such layers")
    modules = dict(zip(ours, theirs, strict=True))
    return [slot._replace(module=modules[slot.module]).name for slot in slots]


def _by_module(names: list[str]) -> dict[str, list[str]]:
    modules: dict[str, list[str]] = {}
    for name in names:
        module, _, entry = name.rpartition(".")
        modules.setdefault(module, []).append(entry)
    return modules


def _to_numpy(value: Any) -> np.ndarray:
    """Return an array, or a PyTorch tensor of any device and dtype, as float32."""
    return np.asarray(value.detach().cpu().float() if hasattr(value, "detach") else value, np.float32)


def _shapes(layer: Layer, shape: Shape) -> tuple[Params, State, Shape]:
    """Return the shapes of a layer's parameters, state and output, without computing anything."""
    out_shape: list[Shape] = []

    def init(key):
        params, state, out = layer.init(key, shape)
        out_shape.append(out)
        return params, state

    return *jax.eval_shape(init, jax.random.key(0)), tuple(out_shape[0])


# StableHLO and ONNX


def to_stablehlo(model: Layer, params: Params, model_state: State, input_shape: Shape, dtype: str = "float32") -> bytes:
    """Return the network as a StableHLO artifact of `jax.export`: inputs `(batch, *input_shape)` to scores.

    The batch size is symbolic, the weights are inside, CPU, CUDA, ROCm and TPU are served, and whoever loads it needs
    JAX but not jnet: `jax.export.deserialize(bytearray(content)).call(inputs)`. A model of
    words takes `dtype="int32"`.
    """
    from jax import export as jax_export

    (batch,) = jax_export.symbolic_shape("batch")
    inputs = jax.ShapeDtypeStruct((batch, *input_shape), dtype)
    predict = jax.jit(_predictor(model, params, model_state))
    return bytes(jax_export.export(predict, platforms=("cpu", "cuda", "rocm", "tpu"))(inputs).serialize())


def to_onnx(model: Layer, params: Params, model_state: State, input_shape: Shape, dtype: str = "float32") -> bytes:
    """Return the network as an ONNX model: inputs `(batch, *input_shape)`, images NHWC, to scores.

    What jax2onnx makes is run by ONNX Runtime and compared before it is handed out. Raises `ValueError` with the reason
    where a layer cannot be converted or does not give the same there.
    """
    jax2onnx, runtime = _library("jax2onnx", "onnx"), _library("onnxruntime", "onnx")
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns of value types that it then leaves out
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors; it warns of constants that nobody uses
    predict = _predictor(model, params, model_state)
    try:
        inputs = jax.ShapeDtypeStruct(("batch", *input_shape), dtype)  # pyright: ignore[reportArgumentType]
        content = jax2onnx.to_onnx(predict, inputs=[inputs]).SerializeToString()
        session = runtime.InferenceSession(content, options)
        probe = np.linspace(-1, 1, 2 * math.prod(input_shape)).reshape(2, *input_shape).astype(dtype)
        (scores,) = session.run(None, {session.get_inputs()[0].name: probe})
    except Exception as error:  # whatever a converter and a runtime of a hundred operations raise
        raise ValueError(f"model cannot be written as ONNX: {' '.join(str(error).split())}") from None
    wanted = np.asarray(predict(jnp.asarray(probe)))
    same_shape = scores.shape == wanted.shape
    off = np.abs(scores - wanted).max() / max(np.abs(wanted).max(), 1e-30) if same_shape else np.inf
    if not off <= 1e-4:
        raise ValueError(f"model cannot be written as ONNX: its scores would be off by {off:.1e} of the largest")
    return content


def _predictor(model: Layer, params: Params, model_state: State) -> Callable[[Array], Array]:
    """Return images -> scores on operations that every compiler knows; derivatives and their rules stay behind."""
    plain = with_ops(model, cast(ModuleType, _INFERENCE_OPS))
    return lambda images: plain.apply(params, model_state, images)[0]


def _max_pool2d(x, window=2, stride=None, padding="VALID", dilation=1):
    """Pool with one `reduce_window`; the reference finds the winners' positions, for the sake of its derivative.

    Over planes (N C, H, W): jax2onnx takes every axis for one of space, of which ONNX Runtime has three.
    """
    n, _, _, c = x.shape
    where = geometry("max_pool2d", x.shape[1:3], window, window if stride is None else stride, padding, dilation)
    largest = lax.reduce_window(
        jnp.moveaxis(x, 3, 1).reshape(n * c, *where.size),
        -jnp.inf,
        lax.max,
        window_dimensions=(1, *where.window),
        window_strides=(1, *where.stride),
        padding=((0, 0), *where.padding),
        window_dilation=(1, *where.dilation),
    )
    return jnp.moveaxis(largest.reshape(n, c, *where.out), 1, 3)


_INFERENCE_OPS = SimpleNamespace(**{**vars(reference), "max_pool2d": _max_pool2d})


def _library(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ImportError(f"{name.split('.')[0]} is not installed; pip install 'jnet[{extra}]'") from None
