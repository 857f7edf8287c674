"""Mixed precision, augmentation, standardization, smoothing, accumulation, averages, logs, and the hunt for NaN."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnet import adapt, augment, build, cli, config, custom_vjp, data, layers, optim, probe, train
from tests.test_train import SHAPE, close, dataset, small_net

TINY = "--data digits --model fully_connected_net --widths 8 --epochs 2 --batch-size 200".split()


@pytest.fixture(scope="module")
def rows():
    return dataset()


# ---- mixed precision


def test_mixed_precision_keeps_parameters_statistics_and_scores_float32(rows):
    seen = []
    spy = layers.Layer(lambda key, shape: ({}, {}, shape), lambda p, s, x, **_: (seen.append(x.dtype) or x, s), "spy")
    model = adapt.mixed_precision(layers.serial(layers.affine(8), layers.batchnorm(), spy, layers.affine(3)))
    optimizer = optim.adam(1e-2)
    state = train.create_state(model, optimizer, jax.random.key(0), SHAPE)
    new, metrics = train.make_train_step(model, optimizer)(state, (rows.train.images, rows.train.labels))
    assert seen == [jnp.bfloat16]
    floats = [leaf.dtype for leaf in jax.tree.leaves(new) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert set(floats) == {jnp.dtype("float32")} and metrics["loss"].dtype == jnp.float32


def test_mixed_precision_learns_as_well(rows):
    results = []
    for model in (small_net(normalization="batchnorm"), adapt.mixed_precision(small_net(normalization="batchnorm"))):
        result = train.fit(model, rows, optim.adam(3e-2), epochs=8, batch_size=9)
        results.append(train.evaluate(model, result.best.params, result.best.model_state, rows.test)["accuracy"])
    assert results[0] == results[1] == 1.0


# ---- what stands before the first layer


def test_standardization_uses_the_training_split_only_and_is_saved_with_the_model(rows):
    statistics = data.channel_statistics(rows.train)
    layer = adapt.input_layer(statistics)
    _, state, shape = layer.init(jax.random.key(0), SHAPE)
    assert (
        shape == SHAPE
        and close(state["mean"], rows.train.images.mean())
        and close(state["std"], rows.train.images.std())
    )
    out, same = layer.apply({}, state, rows.val.images)
    assert close(out, (rows.val.images - rows.train.images.mean()) / rows.train.images.std()) and same is state


def test_augmentation_is_for_training_only_and_differs_from_step_to_step(rows):
    layer = adapt.input_layer(augmentation=augment.random_flip)
    _, state, _ = layer.init(jax.random.key(0), SHAPE)
    x = rows.train.images
    plain, _ = layer.apply({}, state, x)
    drawn = [layer.apply({}, state, x, train=True, key=jax.random.key(seed))[0] for seed in range(2)]
    assert np.array_equal(plain, x) and not np.array_equal(drawn[0], drawn[1])
    assert np.array_equal(np.where(np.all(drawn[0] == x, axis=(1, 2, 3), keepdims=True), x, x[:, :, ::-1]), drawn[0])
    with pytest.raises(ValueError, match="key is None"):
        layer.apply({}, state, x, train=True)


# ---- the loss


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_smoothed_loss_is_the_cross_entropy_of_smoothed_labels(dtype):
    rng = np.random.default_rng(0)
    logits, labels = jnp.asarray(rng.normal(size=(5, 4)), dtype), np.array([0, 3, 1, 1, 2])
    share = 0.9 * np.eye(4)[labels] + 0.1 / 4

    def expected(z):
        return -jnp.mean(jnp.sum(share * jax.nn.log_softmax(z), axis=1))

    exact = logits.astype(jnp.float64)
    loss, grad = jax.value_and_grad(train.smoothed_cross_entropy(0.1))(logits, labels)
    tolerance = 1e-12 if dtype == "float64" else 5e-3
    assert close(loss, expected(exact), tolerance) and close(
        grad.astype("float64"), jax.grad(expected)(exact), tolerance
    )
    assert grad.dtype == logits.dtype and loss.dtype == (jnp.float64 if dtype == "float64" else jnp.float32)
    assert np.isnan(train.smoothed_cross_entropy(0.1)(logits, np.array([0, 4, 0, 0, 0])))


# ---- the optimizer that the options make


def updates(settings, steps=3):
    """Parameters after some steps on fixed gradients."""
    optimizer = build.build_optimizer(settings, steps)
    params = {"w": jnp.array([3.0, -4.0]), "b": jnp.array([1.0])}
    state, path = optimizer.init(params), []
    for step in range(steps):
        grads = jax.tree.map(lambda p: (step + 1.0) * p, params)  # noqa: B023
        change, state = optimizer.update(grads, state, params)
        params = optim.apply_updates(params, change)
        path.append(params)
    return path, state


SGD = {"optimizer": "sgd", "learning_rate": 0.1, "schedule": "constant"}


def test_clip_bounds_the_step():
    path, _ = updates(config.TrainConfig(**SGD, clip=1.0))
    length = np.sqrt(26.0)
    assert close(path[0]["w"], np.array([3.0, -4.0]) * (1 - 0.1 / length))


def test_weight_decay_skips_biases():
    settings = config.TrainConfig(**SGD, weight_decay=0.5)
    path, _ = updates(settings)
    assert close(path[0], {"w": np.array([3.0, -4.0]) * (1 - 0.1 - 0.1 * 0.5), "b": np.array([0.9])})
    decayed = build.build_optimizer(
        config.TrainConfig(optimizer="adamw", learning_rate=0.1, weight_decay=0.5, warmup=0), 9
    )
    params = {"w": jnp.ones(2), "b": jnp.ones(2)}
    change, _ = decayed.update(jax.tree.map(jnp.zeros_like, params), decayed.init(params), params)
    assert close(change, {"w": np.full(2, -0.05), "b": np.zeros(2)})


def test_accumulation_steps_with_the_mean_of_batches():
    path, _ = updates(config.TrainConfig(**SGD, accumulate=2), steps=2)
    assert close(path[0]["w"], np.array([3.0, -4.0])) and close(path[1]["w"], np.array([3.0, -4.0]) * (1 - 0.1 * 1.5))


def test_ema_averages_what_the_steps_leave():
    path, state = updates(config.TrainConfig(**SGD, ema=0.5), steps=2)
    expected = (0.25 * path[0]["w"] + 0.5 * path[1]["w"]) / 0.75
    assert close(optim.averaged_params(state)["w"], expected)


# ---- looking inside


def deep():
    block = layers.residual(layers.serial(layers.conv2d(2, 3), layers.batchnorm()), layers.conv2d(2, 1))
    return layers.serial(block, layers.relu(), layers.dropout(0.8), layers.flatten(), layers.affine(3))


NAMES = [
    "00_residual/body/00_conv2d",
    "00_residual/body/01_batchnorm",
    "00_residual/shortcut",
    "01_relu",
    "02_dropout",
    "03_flatten",
    "04_affine",
]


def prepared(model, rows):
    state = train.create_state(model, optim.sgd(0.1), jax.random.key(0), SHAPE)
    return state, (rows.train.images[:6], rows.train.labels[:6])


@pytest.mark.parametrize("wrap", [lambda model: model, adapt.mixed_precision])
def test_layer_norms_are_those_of_the_step(rows, wrap):
    model = wrap(deep())
    state, (x, y) = prepared(model, rows)
    norms = probe.layer_norms(model, custom_vjp.softmax_cross_entropy)(state, (x, y))
    assert sorted(norms) == sorted(NAMES)

    def objective(params):
        logits, _ = model.apply(params, state.model_state, x, train=True, key=jax.random.fold_in(state.key, state.step))
        return custom_vjp.softmax_cross_entropy(logits, y), logits

    grads, logits = jax.grad(objective, has_aux=True)(state.params)
    assert close(norms["04_affine"].activation, jnp.linalg.norm(logits.astype(jnp.float32)), 1e-3)
    assert close(norms["04_affine"].weights, optim.global_norm(grads["04_affine"]), 1e-3)
    slope = jax.grad(lambda z: custom_vjp.softmax_cross_entropy(z, y))(logits)
    assert close(norms["04_affine"].gradient, jnp.linalg.norm(slope.astype(jnp.float32)), 1e-2)
    assert float(norms["01_relu"].weights) == 0 < float(norms["00_residual/body/00_conv2d"].weights)


def spoilt_layer(forward):
    """A layer that gives NaN in one pass."""

    @jax.custom_vjp
    def same(x):
        return x * jnp.nan if forward else x

    same.defvjp(lambda x: (same(x), None), lambda _, dout: (dout * (1.0 if forward else jnp.nan),))
    return layers.Layer(lambda key, shape: ({}, {}, shape), lambda p, s, x, **_: (same(x), s), "spoilt")


@pytest.mark.parametrize(
    ("forward", "where"), [(True, "the forward pass of 02_spoilt"), (False, "the backward pass of 02_spoilt")]
)
def test_debug_nans_names_the_layer_and_the_pass(rows, forward, where):
    model = layers.serial(layers.affine(4), layers.relu(), spoilt_layer(forward), layers.relu(), layers.affine(3))
    message = f"^step 1: the first value that is not finite is in {where}$"
    with pytest.raises(FloatingPointError, match=message):
        train.fit(model, rows, optim.sgd(0.1), epochs=1, batch_size=9, debug_nans=True)


def test_debug_nans_finds_spoilt_parameters_and_is_silent_otherwise(rows):
    model = deep()
    state, batch = prepared(model, rows)
    loss = custom_vjp.softmax_cross_entropy
    assert probe.first_not_finite(model, loss, state, batch) is None
    state.params["00_residual"]["shortcut"]["w"] += jnp.inf
    assert probe.first_not_finite(model, loss, state, batch) == "the forward pass of 00_residual/shortcut"
    with pytest.raises(FloatingPointError, match=r"^step \d+: .* is in the (for|back)ward pass of"):
        train.fit(small_net(), rows, optim.sgd(1e20), epochs=2, batch_size=9, debug_nans=True)
    plain = train.fit(small_net(), rows, optim.sgd(0.1), epochs=1, batch_size=9, steps_per_call=1)
    watched = train.fit(small_net(), rows, optim.sgd(0.1), epochs=1, batch_size=9, debug_nans=True)
    assert close(plain.state.params, watched.state.params, 0)


# ---- all of it from the command line


def test_every_feature_together(capsys, tmp_path):
    options = (
        "--precision bf16 --standardize --augment-crop 1 --augment-flip --augment-cutout 2 --accumulate 2 --ema 0.9"
        " --label-smoothing 0.1 --clip 1 --weight-decay 0.01 --optimizer adamw --warmup 0.2 --tensorboard --norms"
        " --profile 3"
    ).split()
    assert cli.run(["train", *TINY, *options, "--out", str(tmp_path / "run")]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert cli.run(["evaluate", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.splitlines() == [last]
    assert list((tmp_path / "run/tensorboard").iterdir()) and list((tmp_path / "run/profile").rglob("*.xplane.pb"))
    with (tmp_path / "run/norms.csv").open() as file:
        norms = list(csv.DictReader(file))
    names = ["00_input", "01_affine", "02_batchnorm", "03_relu", "04_affine"]
    assert [row["layer"] for row in norms] == 2 * names and all(float(row["activation"]) > 0 for row in norms)
    again = ["--config", str(tmp_path / "run/config.json"), "--profile", "0", "--no-tensorboard"]
    assert cli.run(["train", *again, "--out", str(tmp_path / "again")]) == 0
    for name in ("metrics.csv", "norms.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


BAD = {
    "--clip 0": "--clip: 0.0; must be a number above 0, or None",
    "--ema 1": "--ema: 1.0; must be above 0 and below 1, or None",
    "--label-smoothing 1": "--label-smoothing: 1.0; must be at least 0 and below 1",
    "--weight-decay -1": "--weight-decay: -1.0; must be at least 0, or None",
    "--accumulate 0": "--accumulate: 0; must be at least 1",
    "--augment-crop -1": "--augment-crop: -1; must be at least 0",
    "--augment-cutout 9": "cutout: size is 9; must be from 1 to 8, the shorter side of the image",
    "--precision fp8": "--precision: 'fp8'; must be one of 'float32', 'bf16'",
    "--warmup 1": "--warmup: 1.0; must be at least 0 and below 1",
    "--profile -2": "--profile: -2; must be at least 0",
    "--data shards": "--data-dir: not given; must be the folder of the shards",
}


@pytest.mark.parametrize("options", BAD)
def test_values_out_of_range_get_one_line(capsys, monkeypatch, tmp_path, options):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["train", *TINY, *options.split()]) == 2
    out, errors = capsys.readouterr()
    assert out == "" and errors == f"jnet train: {BAD[options]}\n" and not list(tmp_path.iterdir())
