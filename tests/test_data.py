"""The data sets, their splits and batches, and what a reader of bad files is told."""

import os
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnet import data, shards

ROWS = 20  # the official CIFAR-10 files hold 10,000; the readers are tested on small ones
CIFAR_FILES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


@pytest.fixture(scope="module")
def mnist():
    return data.load("mnist5k")


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def rows_of(*splits):
    """All rows with their labels, as a sorted list: what is left when the order is forgotten."""
    return sorted((s.images[i].tobytes(), int(s.labels[i])) for s in splits for i in range(len(s.labels)))


def message(kind, function, *args, **kwargs):
    """The text of the error that `function` raises, which must be one line."""
    with pytest.raises(kind) as caught:
        function(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500
    return text


# ---- the data sets


def test_mnist5k(mnist):
    assert [s.images.shape for s in mnist[:3]] == [(4000, 28, 28, 1), (500, 28, 28, 1), (500, 28, 28, 1)]
    assert [np.bincount(s.labels).tolist() for s in mnist[:3]] == [[400] * 10, [50] * 10, [50] * 10]
    assert (mnist.name, mnist.num_classes) == ("mnist5k", 10)


def test_digits_are_those_of_scikit_learn(digits):
    official = pytest.importorskip("sklearn.datasets").load_digits()
    images = (official.images / 16).astype(np.float32)[..., None]
    assert rows_of(*digits[:3]) == rows_of(data.Split(images, official.target))
    assert [len(s.labels) for s in digits[:3]] == [1437, 180, 180]
    for split in digits[:3]:
        share = np.bincount(split.labels) - np.bincount(official.target) * len(split.labels) / 1797
        assert np.abs(share).max() <= 1.5


@pytest.mark.parametrize("name", ["digits", "mnist5k"])
def test_splits_are_ready_to_train_on(name):
    dataset = data.load(name, seed=3)
    for split in dataset[:3]:
        assert split.images.dtype == np.float32 and split.labels.dtype == np.int32
        assert split.images.flags.c_contiguous
        assert split.images.min() == 0 and split.images.max() == 1
        data.check_split(split, dataset.num_classes)


def test_seed_chooses_the_split(digits):
    again, other = data.load("digits", seed=0), data.load("digits", seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(digits.test, again.test, strict=True))
    assert rows_of(*digits[:3]) == rows_of(*other[:3])
    assert rows_of(digits.test) != rows_of(other.test)


def test_stratified_order_keeps_shares_in_every_piece():
    labels = np.random.default_rng(0).choice(4, size=1000, p=[0.5, 0.3, 0.15, 0.05])
    order = data.stratified_order(labels, seed=5)
    assert sorted(order) == list(range(1000))
    shares = np.bincount(labels) / 1000
    for first, last in [(0, 40), (40, 200), (333, 666), (990, 1000)]:
        counts = np.bincount(labels[order[first:last]], minlength=4)
        assert np.abs(counts - shares * (last - first)).max() < 2


def test_import_is_light():
    code = (
        "import sys; import jnet.data as d; d.load('digits'); print({'sklearn', 'mlxtend', 'pandas'} & {*sys.modules})"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


# ---- statistics


def test_channel_statistics_and_normalize():
    rng = np.random.default_rng(0)
    images = (rng.normal(size=(5000, 3, 2, 4)) * [1, 0.01, 5, 0] + [0, 100, -3, 0.7]).astype(np.float32)
    statistics = data.channel_statistics(data.Split(images, np.zeros(5000, np.int32)))
    wide = images.astype(np.float64)
    np.testing.assert_allclose(statistics.mean, wide.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(statistics.std[:3], wide.std((0, 1, 2))[:3], rtol=1e-6)
    assert statistics.std[3] == 1
    out = data.normalize(images, statistics)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out.mean((0, 1, 2), dtype=np.float64), 0, atol=1e-3)
    np.testing.assert_allclose(out.std((0, 1, 2), dtype=np.float64), [1, 1, 1, 0], atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_normalize_inside_jit(dtype):
    images = np.random.default_rng(0).uniform(size=(4, 5, 5, 3)).astype(np.float32)
    statistics = data.channel_statistics(data.Split(images, np.zeros(4, np.int32)))
    out = jax.jit(lambda x: data.normalize(x, statistics))(jnp.asarray(images, dtype))
    assert out.dtype == dtype
    expected = (images - statistics.mean) / statistics.std
    np.testing.assert_allclose(out.astype("float32"), expected, atol=5e-2 if dtype == "bfloat16" else 1e-5)


def test_normalize_refuses_integers():
    statistics = data.ChannelStatistics(np.zeros(1, np.float32), np.ones(1, np.float32))
    assert "uint8" in message(ValueError, data.normalize, np.zeros((1, 2, 2, 1), np.uint8), statistics)


# ---- batches


def numbered(rows):
    return data.Split(np.arange(rows, dtype=np.float32).reshape(rows, 1, 1, 1), np.arange(rows, dtype=np.int32))


def test_minibatches_visit_each_row_at_most_once():
    batches = list(data.minibatches(numbered(23), 5, seed=1, epoch=2))
    assert [(x.shape, y.shape) for x, y in batches] == [((5, 1, 1, 1), (5,))] * 4
    assert all(np.array_equal(x.ravel(), y) for x, y in batches)
    assert len(set(np.concatenate([y for _, y in batches]))) == 20


def test_minibatches_depend_on_seed_and_epoch_only():
    def order(seed, epoch):
        return np.concatenate([y for _, y in data.minibatches(numbered(40), 10, seed=seed, epoch=epoch)]).tolist()

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_minibatches_go_on_in_the_middle():
    whole = [y.tolist() for _, y in data.minibatches(numbered(40), 6, seed=4, epoch=7)]
    rest = [y.tolist() for _, y in data.minibatches(numbered(40), 6, seed=4, epoch=7, start=2)]
    assert rest == whole[2:]


def test_stack_holds_the_same_batches():
    x, y = data.stacked_minibatches(numbered(23), 5, seed=1, epoch=2)
    assert x.shape == (4, 5, 1, 1, 1) and y.shape == (4, 5)
    for stacked, single in zip(
        (x, y), zip(*data.minibatches(numbered(23), 5, seed=1, epoch=2), strict=True), strict=True
    ):
        np.testing.assert_array_equal(stacked, np.stack(single))


@pytest.mark.parametrize("batches", [data.minibatches, data.stacked_minibatches])
@pytest.mark.parametrize("size", [0, -1, 24])
def test_batch_size_out_of_range(batches, size):
    text = message(ValueError, batches, numbered(23), size)
    assert f"batch_size: {size}" in text and "23" in text


# ---- bad arguments and bad data


@pytest.mark.parametrize(
    "kwargs, words",
    [
        ({"name": "imagenet"}, ["imagenet", "cifar10, digits, mnist5k, shards"]),
        ({"name": "digits", "root": "/somewhere"}, ["root", "/somewhere", "digits"]),
        ({"name": "digits", "seed": -1}, ["seed: -1"]),
        ({"name": "shards"}, ["root", "write_shards"]),
        ({"name": "cifar10"}, ["root", "CIFAR-10", "https://"]),
    ],
)
def test_bad_arguments(kwargs, words):
    text = message(ValueError, data.load, **kwargs)
    assert all(word in text for word in words)


def bad(images=None, labels=None):
    images = np.zeros((3, 2, 2, 1), np.float32) if images is None else images
    return data.Split(images, np.array([0, 1, 2]) if labels is None else labels)


def with_pixel(value):
    images = np.zeros((3, 2, 2, 1), np.float32)
    images[1, 0, 1, 0] = value
    return images


@pytest.mark.parametrize(
    "split, words",
    [
        (bad(labels=np.array([0, 10, 11])), ["label 10 at index 1", "0 to 9"]),
        (bad(labels=np.array([0, 1, -1], np.int8)), ["label -1 at index 2"]),
        (bad(labels=np.array([0, 2**32 + 1, 1])), ["label 4294967297 at index 1"]),
        (bad(labels=np.array([0, 2**63, 1], np.uint64)), ["label 9223372036854775808 at index 1"]),
        (bad(labels=np.array([0.0, 1.0, 2.0])), ["labels", "float64", "integer"]),
        (bad(labels=np.array([0, 1])), ["(3, 2, 2, 1)", "(2,)"]),
        (bad(np.zeros((0, 2, 2, 1), np.float32), np.zeros(0, np.int32)), ["empty", "at least one"]),
        (bad(with_pixel(np.nan)), ["nan in image 1 at (0, 1, 0)", "finite"]),
        (bad(with_pixel(-np.inf)), ["-inf in image 1 at (0, 1, 0)"]),
    ],
)
def test_check_split_says_which_and_where(split, words):
    text = message(ValueError, data.check_split, split, 10, "train")
    assert text.startswith("train") and all(word in text for word in words)


def test_check_split_finds_a_nan_far_into_the_data():
    images = np.zeros((data._CHUNK_ROWS + 7, 2), np.float32)
    images[-2, 1] = np.nan
    text = message(ValueError, data.check_split, data.Split(images, np.zeros(len(images), np.int32)), 10)
    assert f"image {data._CHUNK_ROWS + 5} at (1,)" in text


def test_damaged_package_file(tmp_path):
    path = tmp_path / "digits.csv"
    for content in ["1,2,3\n", "", "1,2\n3\n", "1,zwei,3\n", "1,300,3\n", "\x1f"]:
        path.write_text(content)
        text = message(ValueError, data._read_csv, path, rows=5, side=2, package="somepackage")
        assert (
            str(path) in text and "5 lines of 4 pixels" in text and "pip install --force-reinstall somepackage" in text
        )


def test_truncated_package_file(tmp_path):
    path = tmp_path / "digits.csv.gz"
    whole = data._package_file("sklearn", "scikit-learn", "datasets/data/digits.csv.gz").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in message(ValueError, data._read_csv, path, rows=1797, side=8, package="scikit-learn")


def test_missing_package_and_missing_file():
    assert "jnet[train]" in message(ModuleNotFoundError, data._package_file, "no_such_module", "no-such", "x.csv")
    assert "reinstall numpy" in message(FileNotFoundError, data._package_file, "numpy", "numpy", "x.csv")


# ---- CIFAR-10


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Six random batches of 20 images: a folder to write into, and `{file: (pixels (20, 3072), labels)}`."""
    monkeypatch.setattr(data, "CIFAR10_ROWS", ROWS)
    rng = np.random.default_rng(0)
    return tmp_path, {
        name: (rng.integers(0, 256, (ROWS, 3072), np.uint8), rng.integers(0, 10, ROWS).tolist()) for name in CIFAR_FILES
    }


def write_binary(folder, batches):
    folder.mkdir(exist_ok=True)
    for name, (images, labels) in batches.items():
        rows = np.concatenate([np.array(labels, np.uint8)[:, None], images], axis=1)
        (folder / f"{name}.bin").write_bytes(rows.tobytes())


def python2_pickle(images, labels):
    """What Python 2 and NumPy 1 wrote into the official files: byte strings, protocol 2."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + text(b"b") + b"tR"
    dtype = b"cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR"
    dtype += b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"".join(b"M" + n.to_bytes(2, "little") for n in images.shape) + b"\x86"
    array += b"(K\x01" + shape + dtype + b"\x89T" + images.size.to_bytes(4, "little") + images.tobytes() + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([n]) for n in labels) + b"e"
    label = text(b"batch_label") + text(b"training batch 1 of 5")
    return b"\x80\x02}(" + label + text(b"labels") + numbers + text(b"data") + array + b"u."


def write_pickles(folder, batches, dump):
    folder.mkdir(exist_ok=True)
    for name, (images, labels) in batches.items():
        (folder / name).write_bytes(dump(images, labels))


def assert_is(dataset, batches):
    images = np.concatenate([batches[name][0] for name in CIFAR_FILES])
    labels = np.concatenate([batches[name][1] for name in CIFAR_FILES])
    nhwc = np.stack([images[:, c * 1024 : (c + 1) * 1024].reshape(-1, 32, 32) for c in range(3)], axis=-1)
    everything = data.Split((nhwc / np.float32(255)).astype(np.float32), labels)
    cut = 5 * ROWS
    assert rows_of(dataset.train, dataset.val) == rows_of(data.Split(everything.images[:cut], labels[:cut]))
    np.testing.assert_array_equal(dataset.test.images, everything.images[cut:])
    np.testing.assert_array_equal(dataset.test.labels, labels[cut:])
    assert len(dataset.val.labels) == cut // 10
    assert all(split.images.flags.c_contiguous for split in dataset[:3])


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-bin"])
def test_cifar10_binary(cifar, inside):
    folder, batches = cifar
    write_binary(folder / inside, batches)
    assert_is(data.load("cifar10", folder, seed=2), batches)


def test_the_pickle_that_these_tests_write_is_one(cifar):
    images, labels = cifar[1]["data_batch_1"]
    batch = pickle.loads(python2_pickle(images, labels), encoding="latin1")
    assert batch["labels"] == labels and batch["batch_label"] == "training batch 1 of 5"
    np.testing.assert_array_equal(batch["data"], images)


DUMPS = {
    "python2": python2_pickle,
    "python3": lambda images, labels: pickle.dumps({"data": images, "labels": labels}, protocol=4),
}


@pytest.mark.parametrize("dump", DUMPS.values(), ids=DUMPS)
@pytest.mark.parametrize("inside", ["", "cifar-10-batches-py"])
def test_cifar10_pickle(cifar, inside, dump):
    folder, batches = cifar
    write_pickles(folder / inside, batches, dump)
    assert_is(data.load("cifar10", str(folder)), batches)


class Calls:
    """Pickles to a call of `function(*args)`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def evil(kind, canary):
    command = f"touch {canary}"
    if kind == "os.system":
        return pickle.dumps(Calls(os.system, command))
    if kind == "inside the dict":
        return pickle.dumps({"data": Calls(eval, f"open({str(canary)!r}, 'w')"), "labels": []})
    if kind == "inside the labels":
        return pickle.dumps({"data": np.zeros((ROWS, 3072), np.uint8), "labels": [Calls(os.system, command)] * ROWS}, 4)
    if kind == "protocol 0":
        return f"cos\nsystem\n(S'{command}'\ntR.".encode()
    if kind == "inst":
        return f"(S'{command}'\nios\nsystem\n.".encode()
    return f"cnumpy.core.multiarray\n_os.system\n(S'{command}'\ntR.".encode()  # a dotted name


@pytest.mark.parametrize("kind", ["os.system", "inside the dict", "inside the labels", "protocol 0", "inst", "dotted"])
def test_malicious_pickle_is_refused_and_not_run(cifar, kind):
    folder, batches = cifar
    write_pickles(folder, batches, python2_pickle)
    canary = folder / "canary"
    (folder / "data_batch_3").write_bytes(evil(kind, canary))
    text = message(ValueError, data.load, "cifar10", folder)
    assert "data_batch_3" in text and "not run" in text and "https://" in text
    assert not canary.exists()
    if kind == "os.system":  # the same bytes do run where pickle is trusted: the test can fail
        pickle.loads(evil(kind, canary))
        assert canary.exists()


def dumped(**batch):
    good = {"data": np.zeros((ROWS, 3072), np.uint8), "labels": [0] * ROWS}
    return pickle.dumps({**good, **batch}, 4)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", ["EOFError"]),
        (b"not a pickle", []),
        (dumped()[:5000], ["truncated"]),
        (pickle.dumps([1, 2]), ["a list"]),
        (pickle.dumps({"labels": [1]}), ["no data"]),
        (dumped(data=[[1, 2]]), []),
        (dumped(data=np.zeros((ROWS, 3072), np.float32)), ["uint8"]),
        (dumped(data=np.asfortranarray(np.zeros((ROWS, 3072), np.uint8))), ["C order"]),
        (dumped(data=np.zeros((ROWS, 3071), np.uint8)), ["(20, 3071)"]),
        (dumped(labels=[0] * (ROWS - 1)), ["19 labels"]),
        (dumped(labels=[0] * (ROWS - 1) + [10]), ["label 10 at index 19"]),
        (dumped(labels=[-1] + [0] * (ROWS - 1)), ["label -1 at index 0"]),
        (dumped(labels=["cat"] * ROWS), ["'cat'"]),
        (dumped(labels=None), []),
    ],
)
def test_damaged_cifar10_pickle(cifar, content, words):
    folder, batches = cifar
    write_pickles(folder, batches, python2_pickle)
    (folder / "test_batch").write_bytes(content)
    text = message(ValueError, data.load, "cifar10", folder)
    assert all(word in text for word in [str(folder / "test_batch"), "20 images of 3072 bytes", "https://", *words])


@pytest.mark.parametrize("size, words", [(ROWS * 3073 - 1, ["61,459 bytes", "61,460"]), (0, ["0 bytes"])])
def test_truncated_cifar10_binary(cifar, size, words):
    folder, batches = cifar
    write_binary(folder, batches)
    os.truncate(folder / "data_batch_2.bin", size)
    text = message(ValueError, data.load, "cifar10", folder)
    assert all(word in text for word in ["data_batch_2.bin", "https://", *words])


def test_cifar10_binary_with_a_wrong_label(cifar):
    folder, batches = cifar
    batches["data_batch_4"][1][7] = 11
    write_binary(folder, batches)
    assert "label 11 at index 7" in message(ValueError, data.load, "cifar10", folder)


def test_cifar10_missing(cifar):
    folder, batches = cifar
    text = message(FileNotFoundError, data.load, "cifar10", folder)
    assert str(folder) in text and "data_batch_1.bin" in text and "https://" in text
    assert "no such folder" in message(FileNotFoundError, data.load, "cifar10", folder / "nowhere")
    write_binary(folder, batches)
    (folder / "data_batch_5.bin").unlink()
    text = message(FileNotFoundError, data.load, "cifar10", folder)
    assert str(folder / "data_batch_5.bin") in text and "https://" in text


def test_cifar10_through_shards(cifar):
    folder, batches = cifar
    write_pickles(folder, batches, python2_pickle)
    dataset = data.load("cifar10", folder)
    shards.write_shards(dataset, folder / "shards", rows_per_shard=30)
    for was, now in zip(dataset[:3], data.load("shards", folder / "shards")[:3], strict=True):
        np.testing.assert_array_equal(now.images[:], was.images)
        np.testing.assert_array_equal(now.labels, was.labels)
