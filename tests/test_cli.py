"""The command line as a user meets it: runs that leave what they promise, and one line for each mistake."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import jnet
from jnet import cli, config, data, runs

TINY = "--data digits --model fully_connected_net --widths 8 --epochs 2 --batch-size 200".split()


def run(capsys, *arguments):
    """Exit code and the lines of stdout and stderr."""
    code = cli.run([str(argument) for argument in arguments])
    out, errors = capsys.readouterr()
    return code, out.splitlines(), errors.splitlines()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert cli.run(["train", *TINY, "--out", str(folder)]) == 0
    return folder


def test_a_run_leaves_all_that_it_promises(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {"config.json", "checkpoints", "metrics.csv", "curves.png", "filters.png", "params", "result.json"}
    with (finished / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "step", "train_loss", "train_accuracy", "val_loss", "val_accuracy"]
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for name in ("curves.png", "filters.png"):
        with Image.open(finished / name) as image:
            assert min(image.size) > 100 and len(np.unique(np.asarray(image))) > 20
    settings = json.loads((finished / "config.json").read_text())
    assert settings["model"] == "fully_connected_net" and settings["widths"] == [8]
    assert set(settings) == set(config.TrainConfig.__dataclass_fields__)


def test_train_prints_plain_lines_and_evaluate_repeats_the_accuracy(capsys, tmp_path):
    code, lines, errors = run(capsys, "train", *TINY, "--out", tmp_path / "run")
    assert code == 0 and errors == []
    assert lines[0] == f"fully_connected_net on digits, 14 steps, to {tmp_path / 'run'}"
    assert lines[1].startswith("epoch 1/2  train loss ") and lines[2].startswith("epoch 2/2  train loss ")
    assert len(lines) == 5 and lines[-1].startswith("test accuracy 0.")
    assert run(capsys, "evaluate", tmp_path / "run") == (0, [lines[-1]], [])


def test_config_repeats_a_run_exactly(capsys, finished, tmp_path):
    code, _, _ = run(capsys, "train", "--config", finished / "config.json", "--out", tmp_path / "again")
    assert code == 0
    for name in ("config.json", "metrics.csv", "result.json"):
        assert (tmp_path / "again" / name).read_bytes() == (finished / name).read_bytes()
    code, _, _ = run(capsys, "train", "--config", finished / "config.json", "--seed", 1, "--out", tmp_path / "other")
    assert code == 0 and json.loads((tmp_path / "other/config.json").read_text())["seed"] == 1


def test_resume_of_a_finished_run_says_the_same_again(capsys, finished):
    before = (finished / "metrics.csv").read_bytes()
    code, lines, _ = run(capsys, "train", "--resume", finished)
    assert code == 0 and (finished / "metrics.csv").read_bytes() == before
    assert lines[-1] == run(capsys, "evaluate", finished)[1][0]


def test_damaged_checkpoint_is_one_line_and_the_run_goes_on(capsys, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    newest = max(int(path.name) for path in (folder / "checkpoints").iterdir())
    shutil.copytree(folder / f"checkpoints/{newest}", folder / f"checkpoints/{newest + 1}")
    (folder / f"checkpoints/{newest + 1}/facts/metadata").write_bytes(b"{")
    code, lines, errors = run(capsys, "train", "--resume", folder)
    assert code == 0 and lines[-1].startswith("test accuracy") and len(errors) == 1
    assert errors[0].startswith(f"jnet train: warning: {folder / f'checkpoints/{newest + 1}'}: damaged (")


def test_runs_without_a_name_get_the_next_free_one(monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    settings = config.TrainConfig(data="digits")
    for name in ("digits-vgg-0", "digits-vgg-0-2", "digits-vgg-0-3"):
        folder = runs.new_folder(settings, None)
        assert folder == tmp_path / name
        folder.mkdir()


def test_predict_names_classes_with_probabilities(capsys, finished, tmp_path):
    test = data.load("digits").test
    files = []
    for index in range(3):
        files.append(tmp_path / f"{index}.png")
        Image.fromarray((test.images[index, :, :, 0] * 255).astype(np.uint8)).save(files[-1])
    code, lines, errors = run(capsys, "predict", finished, *files, "--top", 10)
    assert code == 0 and errors == [] and len(lines) == 3
    for file, line in zip(files, lines, strict=True):
        name, classes = line.split(": ")
        shares = [part.split(" ") for part in classes.split(", ")]
        assert name == str(file) and {label for label, _ in shares} == set("0123456789")
        percents = [float(share.rstrip("%")) for _, share in shares]
        assert sum(percents) == pytest.approx(100, abs=1.0) and percents == sorted(percents, reverse=True)


def test_export_writes_each_format(capsys, finished, tmp_path):
    code, lines, errors = run(capsys, "export", finished, "--out", tmp_path / "net.stablehlo")
    assert (code, errors) == (0, []) and lines == [f"{tmp_path / 'net.stablehlo'}"]
    from jax import export

    loaded = export.deserialize(bytearray((tmp_path / "net.stablehlo").read_bytes()))
    images = data.load("digits").test.images[:4]
    expected = runs.load(finished)
    assert np.allclose(
        loaded.call(images), expected.model.apply(expected.params, expected.model_state, images)[0], atol=1e-5
    )


def test_summary_prints_a_line_a_layer(capsys):
    code, lines, _ = run(capsys, "summary", "--model", "fully_connected_net", "--widths", 8, "--input-shape", 4, 4, 1)
    assert code == 0
    table = {line.split()[0]: line.split()[1:] for line in lines if not line.startswith("-")}
    assert table["00_affine"][:3] == ["8", "136", "128"]  # 16 x 8 weights and 8 biases
    assert table["total"][1] == str(136 + 16 + 90)
    assert int(table["02_relu"][3]) == 50 * 8  # one byte an element by hand, autodiff keeps more
    assert int(table["02_relu"][4].replace(",", "")) > int(table["02_relu"][3])


def test_check_prints_a_line_an_op(capsys):
    code, lines, _ = run(capsys, "check", "relu", "softmax_cross_entropy")
    assert code == 0 and [line.split()[0] for line in lines] == ["op", "relu", "softmax_cross_entropy"]
    for line in lines[1:]:
        errors = [float(number) for number in line.split()[1:4]]
        assert errors[0] <= 1e-12 and errors[1] <= 2e-5 and errors[2] <= 5e-2 and line.endswith("ok")


def test_check_rejects_a_wrong_gradient(capsys, monkeypatch):
    from jnet import custom_vjp

    entry = next(entry for entry in custom_vjp.CATALOGUE if entry.name == "tanh")
    wrong = entry._replace(op=lambda x: entry.op(x) * (1 + 1e-4) - 1e-4 * entry.reference(x))
    monkeypatch.setattr(custom_vjp, "CATALOGUE", (wrong._replace(op=lambda x: 1.0001 * entry.op(x)),))
    code, lines, errors = run(capsys, "check")
    assert (
        code == 1
        and lines[1].endswith("WRONG")
        and errors == ["jnet check: gradients not within what is allowed: tanh"]
    )


def test_version_and_help(capsys):
    assert run(capsys, "--version") == (0, [f"jnet {jnet.__version__}"], [])
    code, lines, _ = run(capsys, "--help")
    text = "\n".join(lines)
    assert code == 0 and all(name in text for name in ("train", "evaluate", "summary", "check", "bench", "predict"))


def test_help_names_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.run(["train", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert stopped.value.code == 0
    for name in config.TrainConfig.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text


# ---- mistakes


MISTAKES = [
    ("train --epochs 0", "--epochs: 0; must be at least 1"),
    ("train --epochs many", "--epochs: 'many'; must be an integer"),
    ("train --learning-rate nan", "--learning-rate: nan; must be a number above 0"),
    ("train --learning-rate fast", "--learning-rate: 'fast'; must be a number"),
    ("train --dropout-keep 0", "--dropout-keep: 0.0; must be above 0 and at most 1"),
    ("train --dropout-keep 1.5", "--dropout-keep: 1.5; must be above 0 and at most 1"),
    ("train --data imagenet", "--data: 'imagenet'; must be one of 'mnist5k', 'digits', 'cifar10'"),
    ("train --epoch 3", "Unrecognized options: --epoch, 3; perhaps you meant --epochs"),
    ("train --batch-size 4001", "batch_size: 4001; must be from 1 to the number of training images, 4000"),
    ("train --data cifar10", "--data-dir: not given; must be the folder that holds CIFAR-10"),
    ("train --data cifar10 --data-dir nowhere", "nowhere: no such folder"),
    ("train --normalization groupnorm --model resnet", "--normalization: groupnorm; must be batchnorm for resnet"),
    ("train --data digits --widths 8 8 8 8 8 8 8 8 8 8", "max_pool2d: "),
    ("train --resume nowhere", "nowhere/config.json: no such file"),
    ("train --config nowhere.json", "nowhere.json: no such file"),
    ("train --reg -1", "--reg: -1.0; must be a number of at least 0"),
    ("train --seed -1", "--seed: -1; must be at least 0"),
    ("train --save-every 0", "--save-every: 0; must be at least 1, or None"),
    ("evaluate nowhere", "nowhere: no such folder"),
    ("evaluate", "an argument is missing: The run's folder"),
    ("predict nowhere image.png", "nowhere: no such folder"),
    ("summary --input-shape 0 4 1", "--input-shape: (0, 4, 1); must be at least 1"),
    ("check relu6", "ops: relu6; must be among affine, "),
    ("fly", "command: fly; must be one of train, evaluate, "),
]


@pytest.mark.parametrize(("command", "message"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_a_mistake_gets_one_line_and_nothing_is_written(capsys, monkeypatch, tmp_path, command, message):
    monkeypatch.chdir(tmp_path)
    code, lines, errors = run(capsys, *command.split())
    assert (code, lines) == (2, []) and len(errors) == 1
    assert errors[0].startswith(f"jnet {command.split()[0]}: ") and message in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_files_of_a_run_that_are_spoilt_are_named(capsys, finished, tmp_path):
    def spoilt(name, content):
        folder = shutil.copytree(finished, tmp_path / name.replace("/", "-"))
        (folder / name).write_bytes(content)
        return folder / name

    broken = spoilt("config.json", b"{")
    assert str(broken) in (message := run(capsys, "evaluate", broken.parent)[2][0]) and "not JSON" in message
    broken.write_text('{"epochs": "ten"}')
    assert "--epochs: 'ten'; must be int" in run(capsys, "train", "--config", broken)[2][0]
    broken.write_text('{"speed": 1}')
    assert "unknown option 'speed'" in run(capsys, "train", "--config", broken)[2][0]
    broken = spoilt("result.json", b"[]")
    assert f"{broken}: damaged" in run(capsys, "evaluate", broken.parent)[2][0]
    broken.unlink()
    assert "has not ended: jnet train --resume" in run(capsys, "evaluate", broken.parent)[2][0]


def test_out_must_be_new_and_resume_keeps_its_options(capsys, finished):
    code, _, errors = run(capsys, "train", *TINY, "--out", finished)
    assert code == 2 and "must be a new or an empty folder" in errors[0]
    code, _, errors = run(capsys, "train", "--resume", finished, "--epochs", 3)
    assert code == 2 and "--epochs: 3; must be left out with --resume: the run goes on with its own, 2" in errors[0]


def test_loss_that_is_not_finite_ends_the_run_with_one_line(capsys, tmp_path):
    code, _, errors = run(
        capsys, "train", *TINY, "--optimizer", "sgd", "--learning-rate", 1e30, "--out", tmp_path / "r"
    )
    assert code == 1 and len(errors) == 1
    assert "jnet train: loss: " in errors[0] and "at step 2, epoch 1; must be finite" in errors[0]


def test_real_process_shows_no_traceback_and_tunes_the_allocator(tmp_path):
    command = [sys.executable, "-m", "jnet", "train", "--verbose", "--epochs", "0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr == "jnet train: --epochs: 0; must be at least 1\n"
    tuned = "allocator tuned: GLIBC_TUNABLES=glibc.malloc.hugetlb=1 MALLOC_MMAP_MAX_=0 MALLOC_TOP_PAD_="
    assert done.stdout.startswith(tuned) is sys.platform.startswith("linux")
