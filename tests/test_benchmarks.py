"""Each benchmark command runs, and refuses what it cannot compare. Nothing here is a measurement."""

import math

import jax
import jax.numpy as jnp
import pytest

from benchmarks import contenders, measure, report, results, scaling, steps, workloads
from benchmarks.__main__ import main
from benchmarks.ops import jax_side, native
from benchmarks.ops.cases import CASES
from jnet.custom_vjp import CATALOGUE

TINY = workloads.Workload("three_layer", (2, 4), 16, (4, 4, 3))
QUICK = ("--repeat", "1", "--seconds", "0.001")


def test_every_op_has_shapes_and_a_native_rival():
    assert set(CASES) == {entry.name for entry in CATALOGUE}
    for entry in CATALOGUE:
        assert hasattr(native, entry.name), entry.name


def test_percentiles():
    assert measure.summarise([float(n) for n in range(11)]) == (2.0, 5.0, 8.0, 11)


def test_exponent_of_a_power():
    assert math.isclose(scaling.exponent([1, 2, 4], [3, 12, 48]), 2.0)


def test_what_is_asked_for_is_checked():
    assert contenders.parse("torch:compile:channels_last") == ("torch", {"compile", "channels_last"})
    for arguments, message in {
        ("steps", "--contenders", "keras"): "'keras' is not one of",
        ("steps", "--contenders", "flax:compile"): "'compile' is not one of flax's",
        ("steps", "--workload", "alexnet"): "workload is 'alexnet'",
        ("ops", "--op", "attention"): "op is 'attention'",
        ("scaling", "--axis", "height"): "axis is 'height'",
        ("scaling", "--points", "1"): "points is 1",
    }.items():
        with pytest.raises(ValueError, match=message):
            main(list(arguments))


def test_jnet_races_its_plain_twin():
    names = ("jnet:scan", "jnet:reference")
    rows = steps.race(TINY, names, "tuned", "float32", rounds=1, seconds=0.01)
    assert [row["error"] for row in rows] == ["", ""]
    assert len({row["parameters"] for row in rows}) == 1
    assert all(0 < row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"] for row in rows)
    assert rows[0]["first_loss"] == pytest.approx(rows[1]["first_loss"], rel=1e-4)
    fastest = steps.fastest(rows, "jnet")
    assert fastest is not None and fastest["contender"] != "jnet:reference"


def test_a_contender_that_fails_has_an_error_and_no_time():
    (row,) = steps.race(TINY._replace(widths=(0, 4)), ("jnet",), "default", "float32", rounds=1, seconds=0.01)
    assert "features is 0" in row["error"] and "p50_ms" not in row


def test_another_network_or_a_rising_loss_is_told():
    row = {"parameters": 3, "first_loss": 2.0, "last_loss": 2.5}
    assert "loss went from 2 to 2.5" in steps._doubt(row, 3)
    assert "3 parameters" in steps._doubt(row, 4)


def test_ops_prints_a_line_a_mode(capsys):
    main(["ops", "--op", "softmax_cross_entropy", "--case", "0", "--side", "jnet", "native", "--rounding", *QUICK])
    printed = capsys.readouterr().out
    assert printed.count("128x10") >= 3
    assert "GF/s in a large matrix product" in printed


def test_scaling_fits_exponents(capsys, monkeypatch):
    monkeypatch.setitem(scaling.SWEEPS, "batch", {n: TINY._replace(batch=n) for n in (16, 32)})
    main(["scaling", "--axis", "batch", "--contenders", "jnet", "--points", "2", *QUICK])
    assert "exponent of time" in capsys.readouterr().out


def test_rows_of_one_race_are_replaced_together(tmp_path):
    path = tmp_path / "rows.csv"
    old = [{"race": "a", "who": "jnet", "ms": 1.5}, {"race": "a", "who": "flax", "ms": 2.0}, {"race": "b", "ms": 3.0}]
    results.save(path, old, ("race",))
    results.save(path, [{"race": "a", "who": "jnet", "ms": 1.0, "error": ""}], ("race",))
    rows = results.load(path)
    assert [(row["race"], row["who"], row["ms"]) for row in rows] == [("b", None, 3.0), ("a", "jnet", 1.0)]


def test_a_commit_is_no_number(tmp_path):
    results.save(tmp_path / "rows.csv", [{"commit": "61234e567"}], ("commit",))
    assert results.load(tmp_path / "rows.csv") == [{"commit": "61234e567"}]


def test_the_tables_are_those_of_the_processor_measured_last():
    rows = [{"device": device} for device in ("Xeon, AVX-512", "EPYC, AVX-512", "NVIDIA H100")]
    assert results.of_last_cpu(rows) == rows[1:2]
    assert results.of_last_cpu(rows[2:]) == []


def test_the_same_program_is_told_by_its_text_without_names():
    def text(function, name):
        def call(x):
            return function(x)

        call.__name__ = name
        return jax_side._nameless(jax.jit(call).lower(jnp.ones(3)).compile().as_text())

    assert text(lambda x: jnp.maximum(x, 0), "mine") == text(jax.nn.relu, "theirs") != text(jnp.tanh, "mine")


def test_the_documents_have_the_tables_of_the_csvs(capsys):
    main(["report", "--check"])


def test_the_plots_are_drawn_from_the_csvs(tmp_path):
    pytest.importorskip("matplotlib", reason="plots come with the extra `train`")
    report.draw(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"performance_{n}.png" for n in ("steps", "ops", "scaling")}


def test_a_document_that_differs_is_told(tmp_path, monkeypatch):
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- benchmarks:growth -->\nold\n<!-- /benchmarks -->\nafter\n")
    with pytest.raises(SystemExit, match=r"page\.md is not what the CSVs say"):
        report._update(path, check=True)
    report._update(path, check=False)
    report._update(path, check=True)
    assert "old" not in path.read_text() and path.read_text().endswith("after\n")


@pytest.mark.slow
@pytest.mark.parametrize("network", ["fc", "three_layer", "vgg", "resnet"])
def test_the_rivals_train_the_same_network(network):
    for package in ("flax", "optax", "equinox", "torch"):
        pytest.importorskip(package)
    if network == "fc":  # of a size at which 48 steps lower the loss by more than dropout's noise
        workload = workloads.Workload(network, (256, 256), 256, (64,))
    else:
        workload = workloads.Workload(network, (4, 8), 64, (8, 8, 3), depth=2)
    names = ("jnet", "flax:reduce", "equinox", "torch", "torch:channels_last")
    rows = steps.race(workload, names, "tuned", "float32", rounds=1, seconds=0.01)
    assert [row["error"] for row in rows] == [""] * len(names)
