"""The course's optimizers, solver, networks and tools: updates, recorded losses, draws, files."""

import io
import os
import pickle
import random

import numpy as np
import pytest

from jnet.compat.cs231n import data_utils, features, gradient_check, image_utils, optim, vis_utils
from jnet.compat.cs231n.classifiers import KNearestNeighbor, LinearSVM, Softmax, neural_net
from jnet.compat.cs231n.classifiers.cnn import ThreeLayerConvNet
from jnet.compat.cs231n.classifiers.fc_net import FullyConnectedNet, TwoLayerNet
from jnet.compat.cs231n.classifiers.linear_svm import svm_loss_naive, svm_loss_vectorized
from jnet.compat.cs231n.classifiers.softmax import softmax_loss_naive, softmax_loss_vectorized
from jnet.compat.cs231n.solver import Solver


def draw(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def close(got, want, tolerance=1e-12):
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(np.abs(want).max(initial=0), 1e-3))


# Update rules


def test_update_rules_follow_the_published_updates():
    start, grads = draw(3, 4), [draw(3, 4, seed=t) for t in range(1, 4)]
    momentum, squares, first, second = (np.zeros((3, 4)) for _ in range(4))
    expected = {name: start.copy() for name in ("sgd", "sgd_momentum", "rmsprop", "adam")}
    got, config = {name: start.copy() for name in expected}, {}
    for t, g in enumerate(grads, start=1):
        expected["sgd"] -= 0.01 * g
        momentum = 0.9 * momentum - 0.01 * g
        expected["sgd_momentum"] += momentum
        squares = 0.99 * squares + 0.01 * g * g
        expected["rmsprop"] -= 0.01 * g / (np.sqrt(squares) + 1e-8)
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
        expected["adam"] -= 0.001 * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        for name in expected:
            got[name], config[name] = getattr(optim, name)(got[name], g, config.get(name))
    for name, value in expected.items():
        close(got[name], value, 1e-13)
    close(config["sgd_momentum"]["velocity"], momentum)
    close(config["rmsprop"]["cache"], squares)
    close(config["adam"]["m"], first)
    close(config["adam"]["v"], second)
    assert config["adam"]["t"] == 3


def test_update_rules_keep_dtypes_and_fill_the_same_dictionary():
    for name in optim.__all__:
        w, config = np.ones(3, np.float32), {"learning_rate": np.float64(0.1)}
        updated, returned = getattr(optim, name)(w, np.ones(3, np.float32), config)
        assert returned is config and updated.dtype == np.float32 and len(config) == {"sgd": 1}.get(name, len(config))
        assert (updated is w) == (name == "sgd")


# Gradient checks


def test_numerical_gradients_put_everything_back(capsys):
    x = draw(2, 3)
    before = x.copy()
    close(gradient_check.eval_numerical_gradient(lambda _: np.sum(x**3), x), 3 * x**2, 1e-8)
    assert capsys.readouterr().out.count("\n") == 6
    close(gradient_check.eval_numerical_gradient_array(lambda x: x, x, before), before, 1e-8)
    with pytest.raises(ZeroDivisionError):
        gradient_check.eval_numerical_gradient(lambda _: 1 / 0, x)
    np.testing.assert_array_equal(x, before)


def test_sparse_check_prints_what_it_finds(capsys):
    x = draw(4, 5)
    random.seed(0)
    assert gradient_check.grad_check_sparse(lambda x: np.sum(x**2), x, 2 * x, num_checks=3) is None
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(line.startswith("numerical: ") for line in lines)
    assert all(float(line.split("relative error: ")[1]) < 1e-6 for line in lines)
    gradient_check.grad_check_sparse(lambda _: 0.0, x, 0 * x, num_checks=1)
    assert "relative error: 0.0" in capsys.readouterr().out


class Blob:
    def __init__(self, *shape):
        self.vals, self.diffs = draw(*shape), draw(*shape, seed=1)


def test_blobs():
    a, b, out = Blob(2, 2), Blob(2, 2), Blob(2, 2)

    class Net:
        def forward(self):
            out.vals[...] = a.vals * b.vals

    def multiply(a, b, out):
        out.vals[...] = a.vals * b.vals

    for grads in (
        gradient_check.eval_numerical_gradient_blobs(multiply, (a, b), out),
        gradient_check.eval_numerical_gradient_net(Net(), (a, b), out),
    ):
        close(grads[0], b.vals * out.diffs, 1e-8)
        close(grads[1], a.vals * out.diffs, 1e-8)


# Networks


@pytest.mark.parametrize(
    ("normalization", "recorded"),
    [(None, (2.300479089768492, 7.052114776533016)), ("batchnorm", (2.2611955101340957, 6.996533220108303))],
)
def test_recorded_losses_come_back(normalization, recorded):
    np.random.seed(231)
    X = np.random.randn(2, 15)
    y = np.random.randint(10, size=2)
    for reg, loss in zip((0, 3.14), recorded, strict=True):
        options = {"reg": reg, "weight_scale": 5e-2, "normalization": normalization}
        model = FullyConnectedNet([20, 30], input_dim=15, dtype=np.float64, **options)
        close(model.loss(X, y)[0], loss, 4e-16)


@pytest.mark.parametrize(
    "options",
    [
        {"normalization": "layernorm"},
        {"normalization": "batchnorm", "dropout_keep_ratio": 0.7, "seed": 3},
        {"dropout": 0.7, "seed": 3},  # its name until 2020
    ],
)
def test_gradients_of_a_fully_connected_net(options):
    np.random.seed(0)
    model = FullyConnectedNet(
        [4, 3], input_dim=5, num_classes=3, reg=0.1, weight_scale=0.5, dtype=np.float64, **options
    )
    for value in model.params.values():
        value += 0.1 * draw(*value.shape)  # with zero biases, a row that dropout empties sits on relu's kink
    X, y = draw(6, 5), np.arange(6) % 3
    _, grads = model.loss(X, y)
    assert grads.keys() == model.params.keys()
    for name, grad in grads.items():
        numerical = gradient_check.eval_numerical_gradient(lambda _: model.loss(X, y)[0], model.params[name], False)
        np.testing.assert_allclose(grad, numerical, atol=1e-8)
    scores = model.loss(X)
    assert scores.shape == (6, 3)
    np.testing.assert_array_equal(scores, model.loss(X))  # test mode draws nothing


def test_two_dropouts_of_one_seed_have_one_mask():
    np.random.seed(0)
    model = FullyConnectedNet([50, 50], input_dim=5, dropout_keep_ratio=0.5, seed=1)
    assert model.use_dropout and model.dropout_param == {"mode": "train", "p": 0.5, "seed": 1}
    assert not FullyConnectedNet([5]).use_dropout
    assert model.params["W1"].dtype == np.float32 and model.loss(draw(3, 5), np.arange(3))[1]["W1"].dtype == np.float32


def test_convolutional_net():
    np.random.seed(0)
    model = ThreeLayerConvNet(
        (2, 6, 4), num_filters=3, filter_size=3, hidden_dim=5, num_classes=4, dtype=np.float64, weight_scale=0.3
    )
    shapes = {"W1": (3, 2, 3, 3), "b1": (3,), "W2": (18, 5), "b2": (5,), "W3": (5, 4), "b3": (4,)}
    assert {name: value.shape for name, value in model.params.items()} == shapes
    X, y = draw(3, 2, 6, 4), np.array([0, 3, 1])
    without, _ = model.loss(X, y)
    model.reg = 0.5
    loss, grads = model.loss(X, y)
    close(loss - without, 0.25 * sum(np.sum(model.params[name] ** 2) for name in ("W1", "W2", "W3")))
    for name, grad in grads.items():
        numerical = gradient_check.eval_numerical_gradient(
            lambda _: model.loss(X, y)[0], model.params[name], False, 1e-6
        )
        np.testing.assert_allclose(grad, numerical, atol=1e-8)
    assert model.loss(X).shape == (3, 4)


def test_two_layer_nets(tmp_path, monkeypatch, capsys):
    X, y = draw(5, 4), np.array([0, 1, 2, 2, 1])
    np.random.seed(0)
    early = neural_net.TwoLayerNet(4, 10, 3, std=0.1)
    np.random.seed(0)
    late = TwoLayerNet(4, 10, 3, weight_scale=0.1, reg=0.1)
    for name, value in early.params.items():
        np.testing.assert_array_equal(value, late.params[name])
    np.testing.assert_array_equal(early.loss(X), late.loss(X))
    loss, grads = early.loss(X, y, reg=0.05)  # without the 1/2 that later versions have
    late_loss, late_grads = late.loss(X, y)
    close(loss, late_loss)
    for name, grad in grads.items():
        close(grad, late_grads[name])
        numerical = gradient_check.eval_numerical_gradient(lambda _: late.loss(X, y)[0], late.params[name], False)
        np.testing.assert_allclose(grad, numerical, atol=1e-8)
    history = early.train(X, y, X, y, learning_rate=0.3, reg=0.0, num_iters=101, batch_size=5, verbose=True)
    assert "iteration 100 / 101: loss " in capsys.readouterr().out
    assert history["loss_history"][-1] < 0.7 * history["loss_history"][0]
    assert len(history["val_acc_history"]) == 101 and early.predict(X).shape == (5,)

    monkeypatch.setattr("jnet.compat.cs231n.classifiers.fc_net._SAVED", tmp_path)
    late.save("net.npy")
    other = TwoLayerNet(4, 10, 3)
    assert other.load("net.npy") and not other.load("nothing.npy")
    np.testing.assert_array_equal(other.params["W1"], late.params["W1"])


@pytest.mark.parametrize(
    ("naive", "vectorized", "kind"),
    [(softmax_loss_naive, softmax_loss_vectorized, Softmax), (svm_loss_naive, svm_loss_vectorized, LinearSVM)],
)
def test_linear_classifiers(naive, vectorized, kind, capsys):
    X, y, W = draw(60, 4), np.arange(60) % 3, 0.1 * draw(4, 3)
    X[np.arange(60), y] += 3
    loss, dW = vectorized(W, X, y, 0.1)
    close(naive(W, X, y, 0.1)[0], loss)
    close(loss - vectorized(W, X, y, 0.0)[0], 0.1 * np.sum(W * W))  # without 1/2
    close(dW, gradient_check.eval_numerical_gradient(lambda W: vectorized(W, X, y, 0.1)[0], W, False), 1e-7)
    np.random.seed(0)
    classifier = kind()
    losses = classifier.train(X, y, learning_rate=0.1, num_iters=60, batch_size=20, verbose=True)
    assert "iteration 0 / 60: loss " in capsys.readouterr().out
    assert len(losses) == 60 and np.mean(classifier.predict(X) == y) > 0.9
    np.random.seed(0)
    W = 0.001 * np.random.randn(4, 3)
    rows = np.random.choice(60, 20)
    close(losses[0], vectorized(W, X[rows], y[rows], 1e-5)[0])


def test_nearest_neighbours():
    classifier, X = KNearestNeighbor(), draw(7, 3)
    classifier.train(draw(20, 3, seed=1), np.arange(20) % 4)
    distances = classifier.compute_distances_two_loops(X)
    close(classifier.compute_distances_one_loop(X), distances)
    close(classifier.compute_distances_no_loops(X), distances)
    np.testing.assert_array_equal(classifier.predict(X, num_loops=2), np.argmin(distances, axis=1) % 4)
    classifier.train(np.array([[0], [1], [2], [250]], np.uint8), np.array([5, 3, 3, 5]))  # bytes do not wrap
    np.testing.assert_array_equal(classifier.predict(np.array([[0], [249]], np.uint8)), [5, 5])
    np.testing.assert_array_equal(classifier.predict(np.array([[0]]), k=2), [3])  # a tie: the smaller label
    np.testing.assert_array_equal(classifier.predict(np.array([[0]]), k=3), [3])
    with pytest.raises(ValueError, match="Invalid value 3 for num_loops"):
        classifier.predict(X, num_loops=3)


# Solver


def clusters(rows, seed):
    y = np.arange(rows) % 3
    return draw(rows, 4, seed=seed) + 3 * np.eye(3, 4)[y], y


def solver(**options):
    (X_train, y_train), (X_val, y_val) = clusters(30, 1), clusters(12, 2)
    np.random.seed(4)
    model = TwoLayerNet(4, 8, 3, weight_scale=0.1)
    data = {"X_train": X_train, "y_train": y_train, "X_val": X_val, "y_val": y_val}
    options = {"optim_config": {"learning_rate": 0.1}, "num_epochs": 3, "batch_size": 10, **options}
    return Solver(model, data, **options)


def test_solver_draws_and_records_as_the_course_does(capsys):
    run = solver(lr_decay=0.5, print_every=4, num_train_samples=5, num_val_samples=6)
    run.train()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "(Iteration 1 / 9) loss",
        "(Epoch 0 / 3) train acc",
        "(Epoch 1 / 3) train acc",
        "(Iteration 5 / 9) loss",
        "(Epoch 2 / 3) train acc",
        "(Iteration 9 / 9) loss",
        "(Epoch 3 / 3) train acc",
    ]
    assert len(run.loss_history) == 9 and len(run.train_acc_history) == len(run.val_acc_history) == 4
    assert run.epoch == 3 and run.optim_configs["W1"]["learning_rate"] == 0.1 * 0.5**3
    assert run.best_val_acc == max(run.val_acc_history) and run.model.params is run.best_params

    again = solver()
    rows = []
    for step in range(9):  # the same draws, written out
        rows.append(np.random.choice(30, 10))
        if step in (0, 2, 5, 8):
            np.random.choice(30, 5), np.random.choice(12, 6)
    for chosen, recorded in zip(rows[:3], run.loss_history, strict=False):
        loss, grads = again.model.loss(again.X_train[chosen], again.y_train[chosen])
        close(loss, recorded, 1e-15)
        for name, grad in grads.items():
            again.model.params[name] -= 0.1 * grad


def test_solver_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match='Unrecognized arguments "learning_rate"'):
        solver(learning_rate=0.1)
    with pytest.raises(ValueError, match='Invalid update_rule "newton"'):
        solver(update_rule="newton")


def test_checkpoints_are_read_back_without_running_them(tmp_path, capsys):
    run = solver(checkpoint_name=str(tmp_path / "run"), update_rule="adam", optim_config={"learning_rate": 0.01})
    run.train()
    assert f'Saving checkpoint to "{tmp_path}/run_epoch_1.pkl"' in capsys.readouterr().out
    (tmp_path / "README.txt").write_text("not a model")
    models = data_utils.load_models(tmp_path)
    assert sorted(models) == [f"run_epoch_{n}.pkl" for n in range(4)]
    model = models["run_epoch_3.pkl"]
    assert isinstance(model, TwoLayerNet) and model.params.keys() == run.model.params.keys()
    with open(tmp_path / "run_epoch_3.pkl", "rb") as file:
        assert data_utils.load_pickle(file)["update_rule"] is optim.adam


class Shell:
    def __reduce__(self):
        return os.system, ("exit 1",)


@pytest.mark.parametrize("thing", [Shell(), np.array([Shell(), None]), os.system, pickle.loads, np.load])
def test_a_pickle_that_wants_more_is_refused(thing):
    with pytest.raises(pickle.UnpicklingError, match="the file asks for"):
        data_utils.load_pickle(io.BytesIO(pickle.dumps({"data": thing})))


@pytest.mark.parametrize("protocol", [4, 5])
def test_a_pickle_of_data_is_read(protocol):
    data = {"a": np.arange(3.0), "b": [np.float32(2), "text"], "c": np.dtype("int16"), "d": np.array([{1: 2}])}
    back = data_utils.load_pickle(io.BytesIO(pickle.dumps(data, protocol)))
    np.testing.assert_array_equal(back["a"], data["a"])
    assert back["b"] == data["b"] and back["c"] == data["c"] and back["d"][0] == {1: 2}


# Data files and pictures


def test_cifar_is_laid_out_as_the_course_has_it(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (10000, 3072), dtype=np.uint8)
    with open(tmp_path / "data_batch_1", "wb") as file:
        pickle.dump({"data": images, "labels": (np.arange(10000) % 10).tolist()}, file, protocol=4)
    X, y = data_utils.load_CIFAR_batch(tmp_path / "data_batch_1")
    assert X.shape == (10000, 32, 32, 3) and X.dtype == np.float64 and y.dtype == np.int64
    assert X[7, 3, 4, 1] == images[7, 1024 + 3 * 32 + 4] and y[13] == 3
    with pytest.raises(FileNotFoundError, match="test_batch"):
        data_utils.load_CIFAR_batch(tmp_path / "test_batch")

    small = X[:60], y[:60], X[60:80], y[60:80]
    monkeypatch.setattr(data_utils, "load_CIFAR10", lambda root: tuple(part.copy() for part in small))
    data = data_utils.get_CIFAR10_data(num_training=40, num_validation=15, num_test=10)
    assert {name: value.shape for name, value in data.items() if name[0] == "X"} == {
        "X_train": (40, 3, 32, 32),
        "X_val": (15, 3, 32, 32),
        "X_test": (10, 3, 32, 32),
    }
    close(data["X_train"].mean(axis=0), np.zeros((3, 32, 32)), 1e-9)
    close(data["X_val"][2], (X[42] - X[:40].mean(axis=0)).transpose(2, 0, 1))
    np.testing.assert_array_equal(data["y_val"], y[40:55])
    raw = data_utils.get_CIFAR10_data(40, 15, 10, subtract_mean=False)
    np.testing.assert_array_equal(raw["X_test"], X[60:70].transpose(0, 3, 1, 2))


def test_tiny_imagenet(tmp_path):
    from PIL import Image

    def picture(path, value, gray=False):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((64, 64) if gray else (64, 64, 3), value, np.uint8)).save(path)

    for label, name in enumerate(["n1", "n2"]):
        boxes = []
        for i in range(2):
            picture(tmp_path / "train" / name / "images" / f"{name}_{i}.png", 10 * label + i, gray=i == 1)
            boxes.append(f"{name}_{i}.png\t0\t0\t9\t9\n")
        (tmp_path / "train" / name / f"{name}_boxes.txt").write_text("".join(boxes))
    picture(tmp_path / "val" / "images" / "v.png", 7)
    (tmp_path / "val" / "val_annotations.txt").write_text("v.png\tn2\t0\t0\t9\t9\n")
    picture(tmp_path / "test" / "images" / "t.png", 9)
    (tmp_path / "wnids.txt").write_text("n1\nn2\n")
    (tmp_path / "words.txt").write_text("n1\tcat, puss\nn2\tdog\n")
    data = data_utils.load_tiny_imagenet(tmp_path)
    assert data["class_names"] == [["cat", "puss"], ["dog"]] and data["y_test"] is None
    np.testing.assert_array_equal(data["y_train"], [0, 0, 1, 1])
    np.testing.assert_array_equal(data["X_train"][:, 0, 5, 5], np.array([0, 1, 10, 11]) - 5.5)
    assert data["X_train"].dtype == np.float32 and data["y_val"] == [1] and data["X_val"][0, 2, 0, 0] == 1.5
    (tmp_path / "test" / "test_annotations.txt").write_text("t.png\tn1\n")
    assert data_utils.load_tiny_imagenet(tmp_path, subtract_mean=False)["y_test"] == [0]


def test_imagenet_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(data_utils, "_HERE", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"imagenet_val_25\.npz"):
        data_utils.load_imagenet_val()
    (tmp_path / "datasets").mkdir()
    stored = {"X": np.zeros((3, 2, 2, 3)), "y": np.arange(3), "label_map": np.array({0: "cat"})}
    np.savez(tmp_path / "datasets" / "imagenet_val_25.npz", **stored)
    X, y, names = data_utils.load_imagenet_val(num=2)
    assert X.shape == (2, 2, 2, 3) and y.tolist() == [0, 1] and names == {0: "cat"}


def test_grids_of_images():
    images = np.stack([np.full((2, 3, 1), value, float) for value in (5, 6, 7)])
    images[1, 0, 0] = 2
    grid = vis_utils.visualize_grid(images)
    assert grid.shape == (5, 7, 1) and np.isfinite(grid).all()
    np.testing.assert_array_equal(grid[:2, 4:, 0], [[0, 255, 255], [255, 255, 255]])
    grid = vis_utils.vis_grid(images)
    assert grid.shape == (6, 8, 1) and grid.min() == 0 and grid.max() == 1
    assert grid[0, 0, 0] == 0.6 and grid[3, 0, 0] == 1.0
    assert vis_utils.vis_nn([list(images), list(images)]).shape == (6, 12, 1)


def test_features():
    ramp = np.tile(np.arange(16.0), (16, 1))  # gradients point right: 90 degrees, the fifth bin
    histogram = features.hog_feature(ramp).reshape(2, 2, 9)
    assert histogram[..., 4].min() > 0.5 and not np.delete(histogram, 4, axis=2).any()
    close(features.hog_feature(np.stack([ramp] * 3, axis=2)).reshape(2, 2, 9), 1.03 * histogram)  # the course's weights
    red = np.zeros((4, 4, 3))
    red[..., 0] = 255
    hue = features.color_histogram_hsv(red, nbin=5)
    close(hue, np.array([1.0, 0, 0, 0, 0]))
    both = [features.hog_feature, lambda image: features.color_histogram_hsv(image, nbin=5)]
    extracted = features.extract_features(np.stack([np.stack([ramp] * 3, axis=2)] * 2), both)
    assert extracted.shape == (2, 36 + 5)
    assert features.extract_features(np.zeros((0, 4, 4, 3)), both).size == 0


def test_images(tmp_path, capsys):
    from PIL import Image

    image = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    np.testing.assert_array_equal(image_utils.load_image(tmp_path / "image.png"), image)
    assert image_utils.load_image(tmp_path / "image.png", size=12).shape == (12, 18, 3)
    np.testing.assert_array_equal(image_utils.image_from_url((tmp_path / "image.png").as_uri()), image)
    assert image_utils.image_from_url((tmp_path / "none.png").as_uri()) is None
    assert "URL Error: " in capsys.readouterr().out
    back = image_utils.deprocess_image(image_utils.preprocess_image(image))
    assert np.abs(back.astype(int) - image).max() <= 1
    stretched = image_utils.deprocess_image(image_utils.preprocess_image(image), rescale=True)
    assert stretched.min() == 0 and stretched.max() == 255
    batch = draw(1, 3, 5, 5)
    blurred = image_utils.blur_image(batch)
    weights = np.array([[1, 2, 1], [2, 188, 2], [1, 2, 1]]) / 200
    close(blurred[0, :, 2, 3], np.einsum("cij,ij->c", batch[0, :, 1:4, 2:5], weights))
