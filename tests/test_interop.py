"""What leaves through a door comes back the same, and what does not fit is refused in one line."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnet import interop, layers, models

IMAGE = (8, 6, 3)
MODELS = {
    "fully_connected_net": models.fully_connected_net([12], normalization="layernorm", dropout_keep_ratio=0.5),
    "three_layer_conv_net": models.three_layer_conv_net(4, 3, 8),
    "vgg": models.vgg((4, 8)),
    "resnet": models.resnet((4, 8), 1),
    "pools": layers.serial(
        layers.max_pool2d(3, 2, padding=1, dilation=2),
        layers.avg_pool2d(2, 1, "SAME", count_include_pad=False),
        layers.avg_pool2d((1, 2), padding=((0, 1), (0, 0))),
        layers.sigmoid(),
        layers.affine(3),
    ),
}


def trained(model, shape=IMAGE):
    """Parameters and running statistics that have all moved away from where they start."""
    params, state = jax.eval_shape(lambda key: model.init(key, shape)[:2], jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(0.1, 0.3, p.shape), p.dtype), params)
    return params, jax.tree.map(lambda s: jnp.asarray(rng.uniform(0.5, 2, s.shape), s.dtype), state)


def images(rows):
    return np.random.default_rng(1).normal(size=(rows, *IMAGE)).astype(np.float32)


def assert_same(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert jax.tree.map(lambda a: a.dtype, got) == jax.tree.map(lambda a: a.dtype, want)


# --- safetensors ------------------------------------------------------------------------------------------------------


def safetensors_of(name="resnet", config=None):
    return interop.to_safetensors(*trained(MODELS[name]), config or {})


@pytest.mark.parametrize("name", MODELS)
def test_safetensors_round_trip(name):
    pytest.importorskip("safetensors")
    params, state = trained(MODELS[name])
    config = {"model": name, "widths": [4, 8], "rate": 0.1, "name": "größe"}
    back = interop.from_safetensors(interop.to_safetensors(params, state, config))
    assert back.config == config
    assert_same((back.params, back.model_state), (params, state))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64, jnp.int32])
def test_safetensors_keep_dtypes(dtype):
    pytest.importorskip("safetensors")
    params = {"a": {"w": jnp.arange(6, dtype=dtype).reshape(2, 3).T}, "empty": jnp.zeros((0, 2), dtype)}
    assert_same(interop.from_safetensors(interop.to_safetensors(params, {}, {})).params, params)


def test_safetensors_can_be_read_by_others():
    load = pytest.importorskip("safetensors.numpy").load
    content = safetensors_of("vgg", {"widths": [4, 8]})
    tensors = load(content)
    assert tensors["params/00_conv2d/w"].shape == (3, 3, 3, 4)
    assert tensors["model_state/01_batchnorm/var"].dtype == np.float32
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["__metadata__"] == {"format": "jnet", "config": '{"widths": [4, 8]}'}


def test_damaged_safetensors_are_refused():
    pytest.importorskip("safetensors")
    content = safetensors_of()
    for damaged in (b"", b"no tensors", content[:-1], content[:100], content + b"x"):
        with pytest.raises(ValueError, match=r"^content is not a whole safetensors file \(.*\)$"):
            interop.from_safetensors(damaged)


def test_safetensors_of_others_are_refused():
    save = pytest.importorskip("safetensors.numpy").save
    with pytest.raises(ValueError, match=r"^content has no jnet header; read PyTorch weights with .* `from_torch`$"):
        interop.from_safetensors(save({"weight": np.ones(2)}))


def test_params_that_have_no_path_are_refused():
    for params in ({"a/b": jnp.ones(1)}, (jnp.ones(1),)):
        with pytest.raises(ValueError, match="must be nested dicts with keys free of '/'"):
            interop.to_safetensors(params, {}, {})


# --- PyTorch's names and orders; tests/peers holds them to real modules -----------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_torch_round_trip(name):
    params, state = trained(MODELS[name])
    weights = interop.to_torch(MODELS[name], params, state, IMAGE)
    assert_same(interop.from_torch(MODELS[name], weights, IMAGE), (params, state))
    for key, value in weights.items():
        assert value.flags["C_CONTIGUOUS"] and value.flags["WRITEABLE"], key


def test_torch_modules_of_other_names_are_taken_in_order():
    model = MODELS["resnet"]
    params, state = trained(model)
    weights = interop.to_torch(model, params, state, IMAGE)
    renamed = {f"net.layer_{key.replace('.', '_', key.count('.') - 1)}": value for key, value in weights.items()}
    assert not renamed.keys() & weights.keys()
    assert_same(interop.from_torch(model, renamed, IMAGE), (params, state))
    assert list(interop.to_torch(model, params, state, IMAGE, like=renamed)) == list(renamed)


def test_torch_takes_names_before_order():
    """A file of safetensors is sorted by name, 10 before 2."""
    model = layers.serial(*(layers.affine(144) for _ in range(12)))
    params, state = trained(model)
    weights = interop.to_torch(model, params, state, IMAGE)
    by_name = dict(sorted(weights.items()))
    assert list(by_name)[2] == "1.bias" and list(by_name)[4] == "10.bias"
    assert_same(interop.from_torch(model, by_name, IMAGE), (params, state))


def refuse(message, function, *arguments):
    with pytest.raises(ValueError) as error:
        function(*arguments)
    assert str(error.value) == message


def test_torch_weights_that_do_not_fit_are_refused():
    model = MODELS["vgg"]
    weights = interop.to_torch(model, *trained(model), IMAGE)
    refuse(
        "3.weight has shape (8, 3, 3, 3); it must be (8, 4, 3, 3) for params/03_conv2d/w",
        *(interop.from_torch, model, {**weights, "3.weight": np.ones((8, 3, 3, 3))}, IMAGE),
    )
    refuse(
        "8.weight has shape (10, 96); it must be (10, 16) for params/08_affine/w",
        *(interop.from_torch, model, weights, (4, 3, 3)),
    )
    without_last = {key: value for key, value in weights.items() if not key.startswith("8.")}
    refuse(
        "state_dict has 4 modules with weights; the model has 5 such layers",
        *(interop.from_torch, model, without_last, IMAGE),
    )
    refuse(
        "state_dict has 0 with weight, bias where 00_conv2d/w needs weight; "
        "modules must come in the order of the model's layers",
        *(interop.from_torch, model, {"0.weight": weights["0.weight"], "0.bias": np.ones(4), **weights}, IMAGE),
    )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            layers.serial(layers.flatten(), layers.groupnorm(2)),
            "01_groupnorm: groups of a flattened image are other groups in PyTorch's order",
        ),
        (
            layers.serial(layers.flatten(), layers.residual(layers.affine(144))),
            "01_residual: body and shortcut order a flattened image differently; PyTorch cannot",
        ),
        (
            layers.serial(layers.relu()._replace(name="swish")),
            "00_swish: a layer 'swish' has no counterpart in PyTorch",
        ),
        (
            layers.serial(layers.embedding(5, 2)),
            "00_embedding: gives (8, 6, 2), which cannot be told from an image (H, W, C)",
        ),
    ],
)
def test_layers_without_a_counterpart_are_refused(model, message):
    shape = IMAGE[:2] if "embedding" in message else IMAGE
    refuse(message, interop.to_torch, model, *trained(model, shape), shape)


# --- StableHLO --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_stablehlo_has_a_symbolic_batch(name):
    model = MODELS[name]
    params, state = trained(model)
    artifact = jax.export.deserialize(bytearray(interop.to_stablehlo(model, params, state, IMAGE)))
    assert str(artifact.in_avals[0].shape) == "(batch, 8, 6, 3)"
    assert set(artifact.platforms) == {"cpu", "cuda", "rocm", "tpu"}
    for rows in (1, 5):
        want = model.apply(params, state, images(rows))[0]
        np.testing.assert_allclose(artifact.call(images(rows)), want, rtol=2e-5, atol=2e-5)


def test_stablehlo_needs_no_jnet_to_run(tmp_path):
    model = MODELS["vgg"]
    params, state = trained(model)
    (tmp_path / "net.stablehlo").write_bytes(interop.to_stablehlo(model, params, state, IMAGE))
    np.save(tmp_path / "images.npy", images(2))
    example = (Path(__file__).parents[1] / "examples" / "load_stablehlo.py").read_text()
    loader = example + "\nassert 'jnet' not in sys.modules\n"
    command = [sys.executable, "-c", loader, "net.stablehlo", "images.npy"]
    printed = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    probabilities = np.asarray(jax.nn.softmax(model.apply(params, state, images(2))[0]))
    for line, row in zip(printed.splitlines(), probabilities, strict=True):
        label, probability = line.split()
        assert int(label) == row.argmax() and abs(float(probability) - row.max()) < 1e-3


# --- ONNX, and the one function behind `jnet export` ------------------------------------------------------------------


def test_words_go_through_stablehlo():
    model = layers.serial(layers.embedding(7, 6), layers.lstm(4), layers.rnn(3), layers.affine(2))
    params, state = trained(model, shape=(5,))
    artifact = jax.export.deserialize(bytearray(interop.to_stablehlo(model, params, state, (5,), "int32")))
    words = np.arange(15, dtype=np.int32).reshape(3, 5) % 7
    np.testing.assert_allclose(artifact.call(words), model.apply(params, state, words)[0], rtol=2e-5, atol=2e-5)


@pytest.mark.slow
def test_onnx_that_cannot_be_had_is_refused(monkeypatch):
    jax2onnx = pytest.importorskip("jax2onnx")
    model = layers.affine(3)
    params, state = trained(model)

    foreign = layers.Layer(model.init, lambda p, s, x, **_: (jax.pure_callback(np.sin, x, x), s))
    with pytest.raises(ValueError, match=r"^model cannot be written as ONNX: .*pure_callback[^\n]*$"):
        interop.to_onnx(foreign, params, state, IMAGE)

    convert = jax2onnx.to_onnx
    monkeypatch.setattr(jax2onnx, "to_onnx", lambda f, inputs: convert(lambda x: 1.01 * f(x), inputs=inputs))
    with pytest.raises(ValueError, match=r"^model cannot be written as ONNX: .* off by 1.0e-02 of the largest$"):
        interop.to_onnx(model, params, state, IMAGE)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_onnx_gives_the_same_scores(name):
    pytest.importorskip("jax2onnx")
    runtime = pytest.importorskip("onnxruntime")
    model = MODELS[name]
    params, state = trained(model)
    session = runtime.InferenceSession(interop.to_onnx(model, params, state, IMAGE))
    (source,) = session.get_inputs()
    assert source.shape[1:] == list(IMAGE)
    for rows in (1, 3):
        (scores,) = session.run(None, {source.name: images(rows)})
        np.testing.assert_allclose(scores, model.apply(params, state, images(rows))[0], rtol=2e-5, atol=2e-5)


def test_export_knows_its_formats():
    pytest.importorskip("safetensors")
    model = MODELS["vgg"]
    params, state = trained(model)
    assert interop.from_safetensors(interop.export("safetensors", model, params, state, IMAGE, {"seed": 1})).config == {
        "seed": 1
    }
    weights = importlib.import_module("safetensors.numpy").load(
        interop.export("torch", model, params, state, IMAGE, {})
    )
    assert_same(interop.from_torch(model, weights, IMAGE), (params, state))
    refuse(
        "format is 'pickle'; it must be one of stablehlo, onnx, safetensors, torch",
        *(interop.export, "pickle", model, params, state, IMAGE, {}),
    )


def test_missing_libraries_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    model = MODELS["vgg"]
    params, state = trained(model)
    with pytest.raises(ImportError, match=r"^safetensors is not installed; pip install 'jnet\[interop\]'$"):
        interop.to_safetensors(params, state, {})
    with pytest.raises(ImportError, match=r"^jax2onnx is not installed; pip install 'jnet\[onnx\]'$"):
        interop.to_onnx(model, params, state, IMAGE)
