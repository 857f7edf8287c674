"""Shards on disk against the same data in memory, and batches that go on where they stopped."""

import json
import os
import resource
import shutil

import jax
import numpy as np
import pytest

from jnet import data, models, optim, pipeline, shards, train


def dataset_of(images, labels, sizes=(23, 7, 5)):
    val, test = sizes[0], sizes[0] + sizes[1]
    pieces = [slice(0, val), slice(val, test), slice(test, test + sizes[2])]
    return data.Dataset(*(data.Split(images[p], labels[p]) for p in pieces), name="small", num_classes=10)


def random_dataset(kind):
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (35, 4, 3, 2), np.uint8)
    images = {"bytes": levels, "256ths": (levels / np.float32(255)).astype(np.float32)}.get(kind)
    if images is None:
        images = rng.normal(size=(35, 4, 3, 2)).astype(np.float32)
    return dataset_of(images, rng.integers(0, 10, 35).astype(np.int32))


@pytest.fixture
def written(tmp_path):
    dataset = random_dataset("256ths")
    shards.write_shards(dataset, tmp_path / "set", rows_per_shard=5)
    return dataset, tmp_path / "set"


def message(kind, function, *args, **kwargs):
    """The text of the error that `function` raises, which must be one line."""
    with pytest.raises(kind) as caught:
        function(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500
    return text


# ---- shards


@pytest.mark.parametrize("rows_per_shard", [1, 5, 7, 100])
@pytest.mark.parametrize("kind, stored", [("bytes", "uint8"), ("256ths", "uint8"), ("normal", "float32")])
def test_shards_read_like_the_arrays(tmp_path, kind, stored, rows_per_shard):
    dataset = random_dataset(kind)
    shards.write_shards(dataset, tmp_path / "set", rows_per_shard)
    assert json.loads((tmp_path / "set/index.json").read_text())["image_dtype"] == stored
    read = data.load("shards", tmp_path / "set")
    assert (read.name, read.num_classes) == ("small", 10)
    for was, now in zip(dataset[:3], read[:3], strict=True):
        images = was.images / np.float32(255) if kind == "bytes" else was.images
        assert now.images.shape == images.shape and now.images.dtype == now.images[:].dtype == np.float32
        assert (now.images.ndim, now.images.size, now.images.itemsize) == (images.ndim, images.size, 4)
        np.testing.assert_array_equal(np.asarray(now.images), images)
        np.testing.assert_array_equal(now.labels, was.labels)
        assert now.labels.dtype == np.int32
        rows = np.random.default_rng(1).integers(-len(images), len(images), (3, 4))
        for index in (rows, rows[0], slice(2, None, 2), slice(-3, None), slice(0, 0), 4, -1, rows[:0]):
            np.testing.assert_array_equal(now.images[index], images[index])
    shards.verify_shards(tmp_path / "set")


def test_index_out_of_range_or_of_another_kind(written):
    images = shards.open_shards(written[1]).train.images
    assert "23 rows" in message(IndexError, images.__getitem__, 23)
    assert "row -24" in message(IndexError, images.__getitem__, np.array([0, -24]))
    assert "float64" in message(IndexError, images.__getitem__, np.array([0.5]))


def test_statistics_and_minibatches_are_those_of_the_arrays(written):
    dataset, folder = written
    read = shards.open_shards(folder)
    for was, now in zip(data.channel_statistics(dataset.train), data.channel_statistics(read.train), strict=True):
        np.testing.assert_array_equal(was, now)
    for was, now in zip(
        data.stacked_minibatches(dataset.train, 5, seed=1, epoch=2),
        data.stacked_minibatches(read.train, 5, seed=1, epoch=2),
        strict=True,
    ):
        np.testing.assert_array_equal(was, now)


def test_more_shards_than_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_OPEN_FILES", 2)
    dataset = random_dataset("256ths")
    shards.write_shards(dataset, tmp_path / "set", rows_per_shard=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 8, hard))
    try:
        read = shards.open_shards(tmp_path / "set")
        np.testing.assert_array_equal(read.train.images[:], dataset.train.images)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_shards_of_a_memory_mapped_array_and_of_shards(tmp_path, written):
    dataset, folder = written
    np.save(tmp_path / "all.npy", np.concatenate([split.images for split in dataset[:3]]))
    mapped = dataset_of(np.load(tmp_path / "all.npy", mmap_mode="r"), np.concatenate([s.labels for s in dataset[:3]]))
    for number, source in enumerate([mapped, shards.open_shards(folder)]):
        shards.write_shards(source, tmp_path / f"again{number}", rows_per_shard=9)
        read = shards.open_shards(tmp_path / f"again{number}")
        np.testing.assert_array_equal(read.train.images[:], dataset.train.images)


def test_a_real_data_set_through_shards(tmp_path):
    dataset = data.load("mnist5k")
    shards.write_shards(dataset, tmp_path / "mnist", rows_per_shard=1000)
    size = sum(file.stat().st_size for file in (tmp_path / "mnist").iterdir())
    assert size < 5000 * 28 * 28 * 1.02  # a byte a pixel
    read = shards.open_shards(tmp_path / "mnist")
    for was, now in zip(dataset[:3], read[:3], strict=True):
        np.testing.assert_array_equal(now.images[:], was.images)


def test_fit_from_shards_is_fit_from_memory(written):
    """The training loop takes shards for arrays, and ends with the same bits."""
    dataset, folder = written
    model = models.fully_connected_net([5], num_classes=10)
    results = [
        train.fit(model, d, optim.adam(1e-2), epochs=2, batch_size=5) for d in (dataset, shards.open_shards(folder))
    ]
    assert results[0].history == results[1].history
    jax.tree.map(np.testing.assert_array_equal, results[0].state.params, results[1].state.params)


def test_writer_refuses(tmp_path, written):
    dataset, folder = written
    assert "rows_per_shard: 0" in message(ValueError, shards.write_shards, dataset, tmp_path / "new", 0)
    assert str(folder) in message(FileExistsError, shards.write_shards, dataset, folder)
    wrong = dataset._replace(val=dataset.val._replace(labels=dataset.val.labels + 10))
    assert "val labels" in message(ValueError, shards.write_shards, wrong, tmp_path / "new")
    wrong = dataset._replace(test=dataset.test._replace(images=dataset.test.images[:, 1:]))
    assert "test images" in message(ValueError, shards.write_shards, wrong, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_writer_leaves_nothing_when_it_fails(tmp_path, monkeypatch):
    def fail_late(file, array):
        if "test" in str(file):
            raise OSError(28, "No space left on device")
        np_save(file, array)

    np_save = np.save
    monkeypatch.setattr(np, "save", fail_late)
    with pytest.raises(OSError, match="No space left"):
        shards.write_shards(random_dataset("bytes"), tmp_path / "set")
    assert not list(tmp_path.iterdir())


def test_writer_names_what_an_interrupted_one_left(tmp_path):
    (tmp_path / "set.partial").mkdir()
    text = message(FileExistsError, shards.write_shards, random_dataset("bytes"), tmp_path / "set")
    assert "set.partial" in text and "delete it" in text


def cut(path):
    os.truncate(path, path.stat().st_size - 1)


def save(array):
    return lambda path: np.save(path, array)


DAMAGE = {
    "missing images": ("val-00001-images.npy", os.remove, FileNotFoundError, "no such file"),
    "missing labels": ("train-00002-labels.npy", os.remove, FileNotFoundError, "no such file"),
    "short images": ("train-00004-images.npy", cut, ValueError, "damaged"),
    "short labels": ("train-00000-labels.npy", cut, ValueError, "damaged"),
    "empty": ("test-00000-images.npy", lambda path: os.truncate(path, 0), ValueError, "damaged"),
    "not npy": ("test-00000-images.npy", lambda path: path.write_text("hello"), ValueError, "damaged"),
    "a pickle": ("test-00000-images.npy", save(np.array([{}])), ValueError, "damaged"),
    "too few": ("train-00000-images.npy", save(np.zeros((4, 4, 3, 2), np.uint8)), ValueError, "(4, 4, 3, 2)"),
    "dtype": ("train-00000-images.npy", save(np.zeros((5, 4, 3, 2), np.int8)), ValueError, "int8"),
    "label": ("train-00001-labels.npy", save(np.full(5, 10, np.int32)), ValueError, "label 10 at index 5"),
    "missing index": ("index.json", os.remove, FileNotFoundError, "write_shards"),
    "index not JSON": ("index.json", cut, ValueError, "damaged"),
    "index of another kind": ("index.json", lambda path: path.write_text("[1]"), ValueError, "damaged"),
    "index of the future": (
        "index.json",
        lambda path: path.write_text('{"format": "jnet shards 2"}'),
        ValueError,
        "shards 2",
    ),
}


@pytest.mark.parametrize("name, harm, kind, words", DAMAGE.values(), ids=DAMAGE)
def test_damaged_shards(written, name, harm, kind, words):
    _, folder = written
    path = folder / name
    if name == "index.json" and harm is cut:
        path.write_text(path.read_text()[:-5])
    else:
        harm(path)
    text = message(kind, shards.open_shards, folder)
    assert words in text and (name in text or "train labels" in text) and str(folder) in text


def test_index_with_wrong_numbers(written):
    _, folder = written
    index = json.loads((folder / "index.json").read_text())
    for change in [{"rows_per_shard": 0}, {"num_classes": "ten"}, {"image_dtype": "object"}, {"image_shape": 3}]:
        (folder / "index.json").write_text(json.dumps({**index, **change}))
        assert "index.json: damaged" in message(ValueError, shards.open_shards, folder)


def test_verify_finds_one_wrong_bit(written):
    _, folder = written
    path = folder / "train-00003-images.npy"
    content = bytearray(path.read_bytes())
    content[-7] ^= 4
    path.write_bytes(content)
    shards.open_shards(folder)
    assert "train-00003-images.npy" in message(ValueError, shards.verify_shards, folder)


def test_a_shard_lost_under_way_is_named(written):
    _, folder = written
    iterator = pipeline.batches(shards.open_shards(folder).train, 23)
    shutil.rmtree(folder)
    assert "train-0000" in message(FileNotFoundError, next, iterator)


# ---- the pipeline


def take(iterator, count=None):
    out = []
    for batch in iterator:
        out.append(batch)
        if len(out) == count:
            break
    return out


def assert_same(first, second):
    assert len(first) == len(second)
    for (x, y), (again_x, again_y) in zip(first, second, strict=True):
        np.testing.assert_array_equal(x, again_x)
        np.testing.assert_array_equal(y, again_y)


@pytest.mark.parametrize("threads, ahead", [(1, 1), (2, 4), (5, 3)])
def test_batches_are_those_of_memory(written, threads, ahead):
    dataset, folder = written
    expected = [batch for epoch in range(3) for batch in data.minibatches(dataset.train, 5, seed=9, epoch=epoch)]
    for split in (dataset.train, shards.open_shards(folder).train):
        assert_same(take(pipeline.batches(split, 5, seed=9, epochs=3, threads=threads, ahead=ahead)), expected)


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 6, 12])
def test_goes_on_bit_for_bit(written, stop):
    split = shards.open_shards(written[1]).train
    whole = take(pipeline.batches(split, 5, seed=2, epochs=3))
    assert len(whole) == 12
    iterator = pipeline.batches(split, 5, seed=2, epochs=3)
    if stop:
        take(iterator, stop)
    state = json.loads(json.dumps(iterator.get_state()))
    fresh = pipeline.batches(split, 5, seed=2, epochs=3)
    fresh.set_state(state)
    assert_same(take(fresh), whole[stop:])
    take(iterator, 2)
    iterator.set_state(state)  # and back in the same iterator, whatever it has read ahead
    assert_same(take(iterator), whole[stop:])


def test_orbax_saves_the_iterator(written, tmp_path):
    checkpoint = pytest.importorskip("orbax.checkpoint")
    grain = pytest.importorskip("grain")
    split = shards.open_shards(written[1]).train
    iterator = pipeline.batches(split, 5, epochs=2)
    take(iterator, 5)
    with checkpoint.CheckpointManager(tmp_path / "run") as manager:
        manager.save(5, args=checkpoint.args.Composite(batches=grain.checkpoint.CheckpointSave(iterator)))
    rest = take(iterator)
    fresh = pipeline.batches(split, 5, epochs=2)
    with checkpoint.CheckpointManager(tmp_path / "run") as manager:
        manager.restore(5, args=checkpoint.args.Composite(batches=grain.checkpoint.CheckpointRestore(fresh)))
    assert_same(take(fresh), rest)


def test_state_of_another_run_is_refused(written):
    split = written[0].train
    state = pipeline.batches(split, 5, seed=1).get_state()
    text = message(ValueError, pipeline.batches(split, 4, seed=2).set_state, state)
    assert "batch_size 5, here 4" in text and "seed 1, here 2" in text and "rows" not in text


@pytest.mark.parametrize("wrong", [{"batch_size": 24}, {"batch_size": 0}, {"epochs": 0}, {"threads": 0}, {"ahead": 0}])
def test_bad_arguments(written, wrong):
    (name, value), *_ = wrong.items()
    text = message(ValueError, pipeline.batches, written[0].train, **{"batch_size": 5, **wrong})
    assert text.startswith(f"{name}: {value}; must be")
