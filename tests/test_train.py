"""The step, the scanned epoch, and `fit`: what they compute, what they refuse, what they never do twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnet import data, layers, models, optim, train
from jnet.compiling import CONCURRENT
from jnet.custom_vjp import softmax_cross_entropy

SHAPE = (4, 4, 1)


def dataset(rows=(46, 17, 9), classes=3, seed=0):
    """Images that can be learnt: the class brightens its own row of pixels."""
    rng = np.random.default_rng(seed)
    splits = []
    for count in rows:
        labels = rng.integers(0, classes, count).astype(np.int32)
        images = 0.1 * rng.normal(size=(count, *SHAPE)).astype(np.float32)
        images[np.arange(count), labels] += 1.0
        splits.append(data.Split(images, labels))
    return data.Dataset(*splits, name="rows", num_classes=classes)


@pytest.fixture(scope="module")
def rows():
    return dataset()


def small_net(**options):
    return models.fully_connected_net([8], 3, **options)


def same_bits(a, b):
    a, b = (jax.tree.leaves(jax.tree.map(np.asarray, tree._replace(key=0))) for tree in (a, b))
    return all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))


def close(a, b, tolerance=1e-5):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.allclose(x, y, rtol=tolerance, atol=tolerance) for x, y in pairs)


def batch_of(rows, size=6):
    return rows.train.images[:size], rows.train.labels[:size]


# ---- the step


def test_step_moves_the_parameters_by_what_the_optimizer_says(rows):
    model, optimizer = small_net(), optim.sgd(0.1)
    state = train.create_state(model, optimizer, jax.random.key(0), SHAPE)
    x, y = batch_of(rows)

    def objective(params):
        return models_loss(model, params, x, y)

    value, grads = jax.value_and_grad(objective)(state.params)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads)
    new, metrics = train.make_train_step(model, optimizer)(state, (x, y))
    assert close(new.params, expected) and close(metrics["loss"], value)
    assert int(new.step) == 1 and metrics["loss"].dtype == metrics["accuracy"].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(new.params)} == {jnp.dtype("float32")}


def models_loss(model, params, x, y):
    return softmax_cross_entropy(model.apply(params, {}, x)[0], y)


def test_reg_counts_weights_only(rows):
    model, optimizer = small_net(), optim.sgd(0.0)
    losses = []
    for reg in (0.0, 0.5):
        state = train.create_state(model, optimizer, jax.random.key(0), SHAPE)
        biased = jax.tree_util.tree_map_with_path(
            lambda p, leaf: leaf + 1.0 if p[-1].key == "b" else leaf, state.params
        )
        weights = [leaf["w"] for leaf in biased.values()]
        expected = 0.5 * 0.5 * float(sum(jnp.sum(w**2) for w in weights))
        _, metrics = train.make_train_step(model, optimizer, reg=reg)(state._replace(params=biased), batch_of(rows))
        losses.append(float(metrics["loss"]))
    assert losses[1] - losses[0] == pytest.approx(expected, rel=1e-5)


def test_scanned_epoch_is_the_same_steps(rows):
    model, optimizer = small_net(normalization="batchnorm", dropout_keep_ratio=0.7), optim.adam(1e-2)
    xs, ys = data.stacked_minibatches(rows.train, 9)
    step, epoch = train.make_train_step(model, optimizer), train.make_train_epoch(model, optimizer)
    one = train.create_state(model, optimizer, jax.random.key(3), SHAPE)
    losses = []
    for x, y in zip(xs, ys, strict=True):
        one, metrics = step(one, (x, y))
        losses.append(float(metrics["loss"]))
    many, metrics = epoch(train.create_state(model, optimizer, jax.random.key(3), SHAPE), (xs, ys))
    assert close(many.params, one.params) and close(many.model_state, one.model_state)
    assert metrics["loss"].shape == (5,) and close(metrics["loss"], np.array(losses))


def test_steps_do_not_recompile_and_donate_their_state(rows):
    model, optimizer = small_net(normalization="batchnorm"), optim.adam(optim.cosine_schedule(1e-2, 10))
    step = train.make_train_step(model, optimizer)
    state = train.create_state(model, optimizer, jax.random.key(0), SHAPE)
    for _ in range(3):
        before, (state, _) = state, step(state, batch_of(rows))
    assert step._in_blocks._cache_size() + step._whole._cache_size() == 1
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))


def test_dropout_differs_from_step_to_step_and_not_from_run_to_run(rows):
    model, optimizer = small_net(dropout_keep_ratio=0.5), optim.sgd(0.0)
    step = train.make_train_step(model, optimizer)
    runs = []
    for _ in range(2):
        state = train.create_state(model, optimizer, jax.random.key(0), SHAPE)
        losses = []
        for _ in range(3):
            state, metrics = step(state, batch_of(rows))
            losses.append(float(metrics["loss"]))
        runs.append(losses)
    assert runs[0] == runs[1] and len(set(runs[0])) == 3


def test_evaluate_counts_each_image_once(rows, monkeypatch):
    monkeypatch.setattr(train, "EVAL_BATCH", 5)  # 17 images: the last batch is filled up with 3
    model = small_net()
    params, model_state, _ = model.init(jax.random.key(1), SHAPE)
    found = train.evaluate(model, params, model_state, rows.val)
    logits, _ = model.apply(params, model_state, rows.val.images)
    assert found["accuracy"] == np.mean(np.argmax(logits, 1) == rows.val.labels)
    assert found["loss"] == pytest.approx(float(models_loss(model, params, *rows.val)), rel=1e-6)


@pytest.mark.parametrize("options", [*train.COMPILER_OPTIONS.values(), CONCURRENT], ids=str)
def test_compiler_options_are_accepted(options):
    """Those of the other backends too: XLA reads them all, whatever it compiles for."""
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2
    assert jax.default_backend() in train.COMPILER_OPTIONS


# ---- fit


def fit(rows, model=None, optimizer=None, **options):
    options = {"epochs": 2, "batch_size": 9, "seed": 0, **options}
    return train.fit(model or small_net(), rows, optimizer or optim.adam(1e-2), **options)


def test_fit_learns_and_keeps_the_best(rows):
    result = fit(rows, epochs=12, optimizer=optim.adam(3e-2))
    assert [row["epoch"] for row in result.history] == list(range(1, 13))
    assert result.history[-1]["step"] == int(result.state.step) == 12 * 5
    assert result.history[-1]["train_loss"] < 0.2 < result.history[0]["train_loss"]
    keys = [(row["val_accuracy"], -row["val_loss"]) for row in result.history]
    assert result.best.epoch == 1 + keys.index(max(keys))
    again = train.evaluate(small_net(), result.best.params, result.best.model_state, rows.val)
    assert again["accuracy"] == result.best.val_accuracy > 0.9


def test_fit_is_decided_by_its_seed(rows):
    first, second, other = fit(rows), fit(rows), fit(rows, seed=1)
    assert same_bits(first.state, second.state) and first.history == second.history
    assert not same_bits(first.state, other.state)


@pytest.mark.parametrize("steps_per_call", [1, 3, 5])
def test_fit_is_the_same_however_many_steps_a_call_has(rows, steps_per_call):
    reports = []
    result = fit(rows, steps_per_call=steps_per_call, report=reports.append)
    assert close(result.state.params, fit(rows, steps_per_call=2).state.params)
    assert [report.step for report in reports][-1] == reports[0].steps == 10
    assert [report.epoch for report in reports if report.finished] == [1, 2]
    calls = {1: 5, 3: 3, 5: 1}  # an epoch of 5 steps: 3 + 1 + 1
    assert len(reports) == 2 * calls[steps_per_call]


@pytest.mark.parametrize("steps_per_call", [1, 2])
def test_fit_is_the_same_with_images_on_the_device_and_on_the_host(rows, monkeypatch, steps_per_call):
    assert train.is_held(rows.train)
    held = fit(rows, steps_per_call=steps_per_call)
    monkeypatch.setattr(train, "HELD_BYTES", 0)
    assert not train.is_held(rows.val)
    cut = fit(rows, steps_per_call=steps_per_call)
    assert close(held.state.params, cut.state.params)
    assert [row["step"] for row in held.history] == [row["step"] for row in cut.history]
    assert close(held.history, cut.history)


def test_fit_judges_the_moving_average_where_there_is_one(rows):
    optimizer = optim.chain(optim.sgd(0.3), optim.ema(0.9))
    result = fit(rows, optimizer=optimizer, epochs=3)
    assert result.best.epoch == 3
    assert close(result.best.params, optim.averaged_params(result.state.opt_state))
    assert not close(result.best.params, result.state.params)


def test_convolutions_are_not_scanned_on_a_cpu(rows):
    conv = layers.serial(layers.residual(layers.conv2d(1, 3)), layers.flatten(), layers.affine(3))
    assert train.steps_in_one_call(conv, rows.train, 9) == 1
    assert train.steps_in_one_call(small_net(), rows.train, 9) == 5


def test_first_loss_that_is_not_finite_stops_the_run(rows):
    with pytest.raises(FloatingPointError, match=r"^loss: (nan|inf) at step [23], epoch 1; must be finite"):
        fit(rows, optimizer=optim.sgd(1e30))


def spoilt(rows, split="train", **changes):
    return rows._replace(**{split: getattr(rows, split)._replace(**changes)})


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda r: spoilt(r, images=r.train.images[:0], labels=r.train.labels[:0]), {}, "train: the data set is empty"),
        (lambda r: spoilt(r, "val", labels=r.val.labels + 1), {}, "val labels: label 3 at index"),
        (lambda r: spoilt(r, "test", images=r.test.images * np.float32("nan")), {}, "test images: nan in image 0"),
        (lambda r: r, {"batch_size": 47}, "batch_size: 47; must be from 1 to the number of training images, 46"),
        (lambda r: r, {"batch_size": 0}, "batch_size: 0; must be 1 or more"),
        (lambda r: r, {"epochs": 0}, "epochs: 0; must be 1 or more"),
        (lambda r: r, {"model": models.fully_connected_net([8], 4)}, r"must make \(3,\), its classes"),
    ],
)
def test_fit_refuses_what_cannot_be_learnt(rows, change, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        fit(change(rows), **options)
    assert "\n" not in str(caught.value)
