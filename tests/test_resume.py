"""A run that is stopped, killed or damaged goes on as if nothing had happened, or says why it cannot."""

import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

from jnet import checkpoint, models, optim, train
from tests.test_train import dataset, same_bits, small_net

OPTIMIZER = optim.chain(optim.clip_by_global_norm(1.0), optim.adam(optim.cosine_schedule(1e-2, 20)), optim.ema(0.9))


@pytest.fixture(scope="module")
def rows():
    return dataset()


class Killed(Exception):
    pass


def fit(rows, folder=None, stop_after=None, model=None, **options):
    """Train 4 epochs of 5 steps, two in a call, saving each 2 steps; raise `Killed` after `stop_after` calls."""
    calls = []

    def report(event):
        calls.append(event.step)
        if len(calls) == stop_after:
            raise Killed

    options = {"epochs": 4, "batch_size": 9, "save_every": 2, "report": report, **options}
    model = model or small_net(normalization="batchnorm", dropout_keep_ratio=0.8)
    return train.fit(model, rows, OPTIMIZER, checkpoint_dir=folder, **options)


@pytest.fixture(scope="module")
def undisturbed(rows):
    return fit(rows)


def assert_same_run(one, other):
    assert same_bits(one.state, other.state)
    assert one.history == other.history
    assert one.best[2:] == other.best[2:]
    for a, b in zip(jax.tree.leaves(one.best[:2]), jax.tree.leaves(other.best[:2]), strict=True):
        assert np.array_equal(a, b)


def test_stopped_run_ends_with_the_same_bits(rows, undisturbed, tmp_path):
    for stop_after in (2, 3, 5):  # calls are of steps 1-2, 3-4, 5 | 6-7, 8-9, 10 | ...
        with pytest.raises(Killed):
            fit(rows, tmp_path, stop_after)
    assert_same_run(fit(rows, tmp_path), undisturbed)
    assert_same_run(fit(rows, tmp_path), undisturbed)  # and once more, when nothing is left to do


def test_only_the_newest_checkpoints_are_kept(rows, tmp_path):
    fit(rows, tmp_path, keep=2)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [19, 20]


def test_no_pickle_is_written(rows, tmp_path):
    fit(rows, tmp_path, epochs=1)
    for path in filter(Path.is_file, tmp_path.rglob("*")):
        assert path.suffix not in (".pkl", ".pickle") and not path.read_bytes().startswith(b"\x80")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_stops(rows, undisturbed, tmp_path, number):
    handler = signal.getsignal(number)

    def interrupt(event):
        if event.step == 7:
            signal.raise_signal(number)

    with pytest.raises(train.Interrupted, match=f"stopped by {number.name} after step 7; saved in") as caught:
        fit(rows, tmp_path, report=interrupt)
    assert caught.value.number == number and signal.getsignal(number) is handler
    assert_same_run(fit(rows, tmp_path), undisturbed)


def test_damaged_newest_checkpoint_is_skipped_with_a_warning(rows, undisturbed, tmp_path):
    with pytest.raises(Killed):
        fit(rows, tmp_path, stop_after=5)  # steps 2, 4 and 7 are saved, 9 is not
    newest = max(tmp_path.iterdir(), key=lambda path: int(path.name))
    largest = max(filter(Path.is_file, newest.rglob("*")), key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    largest.write_bytes(content[: len(content) // 2])
    with pytest.warns(checkpoint.CheckpointWarning, match=rf"{newest}: damaged .*; skipped"):
        assert_same_run(fit(rows, tmp_path), undisturbed)


def tree():
    return {"a": {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, "key": jax.random.key(1), "n": np.int32(4)}


def saved(folder, steps=(1, 2)):
    checkpoints = checkpoint.Checkpoints(folder, keep=3)
    for step in steps:
        checkpoints.save(step, tree(), {"step": step})
    checkpoints.close()
    return folder


def restored(folder, like):
    """What `restore` gives, and what it warned of."""
    checkpoints = checkpoint.Checkpoints(folder, keep=3)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            return checkpoints.restore(like), [str(warning.message) for warning in warned]
        finally:
            checkpoints.close()


def like(**changes):
    return jax.eval_shape(lambda: {**tree(), **changes})


# Where a read fails midway, other reads of Orbax answer to an event loop that it has closed by then.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "gone"])
def test_no_file_of_a_checkpoint_can_be_damaged_unseen(tmp_path, damage):
    """Each file in turn: the newest checkpoint still reads back whole, or the one before is used, with a warning."""
    saved(tmp_path)
    fallen_back = 0
    for path in sorted(filter(Path.is_file, (tmp_path / "2").rglob("*"))):
        content = path.read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]
        path.write_bytes({"cut": content[:middle], "flip": flipped}.get(damage, b""))
        if damage == "gone":
            path.unlink()
        found, warned = restored(tmp_path, like())
        assert found.facts == {"step": found.step}
        assert np.array_equal(found.arrays["a"]["w"], tree()["a"]["w"])
        assert [f"{tmp_path / '2'}: damaged" in line for line in warned] == [True] * (found.step == 1)
        fallen_back += found.step == 1
        path.write_bytes(content)
    assert fallen_back >= 3


def test_half_written_checkpoint_is_named_and_skipped(tmp_path):
    (saved(tmp_path) / "3.orbax-checkpoint-tmp").mkdir()
    found, warned = restored(tmp_path, like())
    assert found.step == 2 and warned == [f"{tmp_path / '3.orbax-checkpoint-tmp'}: half-written; skipped"]


def test_no_whole_checkpoint_at_all_is_an_error(tmp_path):
    for path in filter(Path.is_file, (saved(tmp_path, steps=(1,)) / "1").rglob("*")):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="no checkpoint in it can be read"):
        restored(tmp_path, like())


def test_checkpoint_of_another_model_is_refused_with_what_differs(tmp_path):
    other = like(a={"w": np.zeros((2, 4), np.float32), "b": np.zeros(4, np.float32)}, n=np.int64(4))
    with pytest.raises(ValueError, match="of another model: ") as caught:
        restored(saved(tmp_path), other)
    differing = str(caught.value).split("of another model: ")[1].split("; ")
    assert differing == [
        "a/b float32(4,) is missing",
        "a/w is float32(2, 3), must be float32(2, 4)",
        "n is int32(), must be int64()",
    ]


def test_run_of_another_order_or_width_is_refused(rows, tmp_path):
    fit(rows, tmp_path, epochs=1)
    with pytest.raises(ValueError, match=r"of another run: batch_size 9, here 8; seed 0, here 5$"):
        fit(rows, tmp_path, batch_size=8, seed=5)
    with pytest.raises(ValueError, match=r"of another model: .*state/params/00_affine/w is float32"):
        fit(rows, tmp_path, model=models.fully_connected_net([9], 3, normalization="batchnorm"))


def test_saved_parameters_are_checked(tmp_path):
    checkpoint.save_tree(tmp_path / "params", tree())
    assert np.array_equal(checkpoint.load_tree(tmp_path / "params", like())["a"]["w"], tree()["a"]["w"])
    with pytest.raises(FileNotFoundError, match="no such folder"):
        checkpoint.load_tree(tmp_path / "nothing", like())
    with pytest.raises(ValueError, match="of another model"):
        checkpoint.load_tree(tmp_path / "params", like(n=np.int64(4)))
    for path in filter(Path.is_file, (tmp_path / "params").rglob("*")):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.load_tree(tmp_path / "params", like())


# ---- real processes


COMMAND = [sys.executable, "-m", "jnet", "train"]
OPTIONS = (
    "--data digits --model fully_connected_net --widths 16 --epochs 25 --save-every 9 --normalization batchnorm".split()
)


def start(arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [*COMMAND, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, process, seconds=120.0):
    """Poll often: a save takes some hundredths of a second."""
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.001)


def results(folder):
    from jnet import runs

    run = runs.load(folder)
    return (folder / "metrics.csv").read_bytes(), jax.tree.leaves(jax.tree.map(np.asarray, run[2:4]))


@pytest.mark.slow
def test_twenty_kills(tmp_path):
    """SIGKILL at random moments, every second one during a save; then the run ends as one that was left alone."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    undisturbed = start([*OPTIONS, "--out", str(whole)])
    undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0
    rng = random.Random(0)
    kills = kills_while_saving = 0
    while kills < 20:
        if (broken / "result.json").exists():  # ended before it could be killed often enough
            broken = tmp_path / f"broken{kills}"
        resume = (broken / "config.json").exists()
        process = start(["--resume", str(broken)] if resume else [*OPTIONS, "--out", str(broken)])
        newest = max(checkpoints(broken), default=0)
        if kills % 2:
            wait_for(lambda: any(broken.glob("checkpoints/*.orbax-checkpoint-tmp*")), process)  # noqa: B023
        else:
            wait_for(lambda: max(checkpoints(broken), default=0) > newest, process)  # noqa: B023
            time.sleep(rng.uniform(0.0, 0.2))
        alive = process.poll() is None
        process.kill()
        process.communicate()
        kills += alive
        kills_while_saving += alive and any(broken.glob("checkpoints/*.orbax-checkpoint-tmp*"))
    assert kills_while_saving >= 3
    for folder in tmp_path.iterdir():
        if not (folder / "result.json").exists():
            process = start(["--resume", str(folder)])
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
        metrics, arrays = results(folder)
        expected_metrics, expected_arrays = results(whole)
        assert metrics == expected_metrics
        assert all(np.array_equal(a, b) for a, b in zip(arrays, expected_arrays, strict=True))


def checkpoints(folder):
    return [int(path.name) for path in folder.glob("checkpoints/*") if path.name.isdigit()]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_command_says_how_to_go_on(tmp_path, number):
    folder = tmp_path / "run"
    process = start([*OPTIONS, "--epochs", "1000", "--out", str(folder)])
    wait_for(lambda: checkpoints(folder), process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert errors.count("\n") == 1 and "Traceback" not in errors
    assert f"stopped by {number.name} after step " in errors
    assert errors.rstrip().endswith(f"go on with: jnet train --resume {folder}")
    newest = max(checkpoints(folder))
    assert f"after step {newest};" in errors
