"""The grader names every planted mistake, accuses no right pair, and survives whatever a student's code does."""

import inspect
import json
import textwrap
from pathlib import Path

import numpy as np
import pytest

import jnet
from jnet import cli
from jnet.grading import EXERCISES, grade, main
from jnet.grading.compare import describe
from jnet.grading.judging import fixed_cases, judge
from jnet.grading.record import Slip, point
from tests import students

SLIPS = [(op, slip) for op, exercise in EXERCISES.items() for slip in exercise.slips]


def names(report):
    return [(mistake.name, mistake.gradient) for mistake in report.mistakes]


def planted(exercise, slip: Slip):
    """A pair that is right but for one slip: it looks its case up by the first array."""

    def case_of(args):
        cases = fixed_cases(exercise.cases, 0)
        return next(c for c in cases if c.args[0].shape == args[0].shape and np.array_equal(c.args[0], args[0]))

    def result(made, part):
        wrong = slip.wrong(made) if slip.part == part else None
        return np.array(made.right[part] if wrong is None else wrong, np.float64)

    def loss(x, y):
        made = exercise.make(case_of((x, y)), {})
        return result(made, "loss"), result(made, "dx")

    def forward(*args):
        case = case_of(args)
        seen = {"out": students.dropout_forward(*args)[0]} if exercise.op == "dropout" else {}
        made = exercise.make(case, seen)
        for part in set(exercise.parts) & {"running_mean", "running_var"}:
            args[3][part] = result(made, part)
        return result(made, "out"), (case, seen)

    def backward(dout, cache):
        made = exercise.make(*cache)
        grads = tuple(result(made, name) for name in exercise.gradients)
        return grads if len(grads) > 1 else grads[0]

    return (loss, None) if exercise.is_loss else (forward, backward)


# What a dropout pair draws cannot be planted in its results; test_a_mistake_in_code plants these.
DRAWS = ("share kept", "draws", "dropped-at-test-time", "another-mask-drawn")


@pytest.mark.parametrize(
    ("op", "slip"),
    [
        pytest.param(op, slip, id=f"{op}-{slip.part}-{slip.name}")
        for op, slip in SLIPS
        if slip.part not in DRAWS and slip.name not in DRAWS
    ],
)
def test_every_slip_is_named_and_nothing_else(op, slip):
    exercise = EXERCISES[op]
    report = judge(exercise, *planted(exercise, slip))
    assert names(report) == [(slip.name, slip.part)]
    mistake = report.mistakes[0]
    assert mistake.sentence == slip.sentence
    assert slip.line in inspect.getdoc(exercise.derivation) or slip.line in exercise.derivation.__doc__
    assert mistake.pointer.startswith("jnet/formulas/") and exercise.derivation.__name__ in mistake.pointer


def test_each_op_has_at_least_four_mistakes_of_its_gradients_and_one_of_its_result():
    for exercise in EXERCISES.values():
        gradients = {s.name for s in exercise.slips if s.part in exercise.gradients}
        assert len(gradients) >= 4 and len(gradients) < len({(s.name, s.part) for s in exercise.slips}), exercise.op


def test_a_pointer_leads_to_the_line():
    pointer = point(EXERCISES["batchnorm"].derivation, "4. $m$ is reached from")
    path, rest = pointer.split(":", 1)
    number = int(rest.split(" ")[0])
    lines = (Path(jnet.__path__[0]).parent / path).read_text().splitlines()
    assert "4. $m$ is reached from" in lines[number - 1] and pointer.endswith(lines[number - 1].strip())


# Right pairs


@pytest.mark.parametrize("op", EXERCISES)
@pytest.mark.parametrize("seed", [0, 1])
def test_no_right_pair_of_loops_is_accused(op, seed):
    report = grade(op, *students.pair(op), seed=seed)
    assert report.ok and report.right, str(report)


@pytest.mark.parametrize("style", [students.einsum_style, students.jax_style])
def test_no_right_pair_of_another_style_is_accused(style):
    graded = 0
    for op in EXERCISES:
        forward = getattr(style, op if op.endswith("_loss") else f"{op}_forward", None)
        if forward is not None:
            report = grade(op, forward, getattr(style, f"{op}_backward", None))
            assert report.ok, str(report)
            graded += 1
    assert graded >= 4


def test_the_alternative_backward_of_batchnorm_is_right():
    assert grade("batchnorm", students.batchnorm_forward, students.batchnorm_backward_alt).ok


# Mistakes in code, as students make them: (op, a piece of the code, what stands in its place, name, result)

PLANTED = [
    ("affine", "+ b[m]", "", "bias-forgotten", "out"),
    ("affine", "dout[n, m] * rows[n]", "dout[n, m] * rows[n] / len(x)", "averaged-over-the-batch", "dw"),
    ("affine", "return dx, dw, db", "return drows, dw, db", "left-flat", "dx"),
    ("affine", "return dx, dw, db", "return dx, dw, dout", "not-summed-over-the-batch", "db"),
    ("affine", "return dx, dw, db", "return dx, dw, db[None]", "shape-that-broadcasts", "db"),
    ("affine", "return dx, dw, db", "return dx, dw.T, db", "transposed", "dw"),
    ("affine", "return dx, dw, db", "return dx, db, dw", "swapped", "dw"),
    ("affine", "return dx, dw, db", "return -dx, dw, db", "sign-flipped", "dx"),
    ("relu", "dout * (x > 0)", "dout * (dout > 0)", "mask-of-the-wrong-tensor", "dx"),
    ("relu", "dout * (x > 0)", "dout * np.maximum(x, 0)", "value-for-slope", "dx"),
    ("relu", "dout * (x > 0)", "dout", "mask-forgotten", "dx"),
    ("relu", "np.maximum(0, x)", "np.abs(x)", "absolute-value", "out"),
    ("batchnorm", "np.sqrt(var + eps)", "np.sqrt(var) + eps", "eps-outside-the-root", "out"),
    ("batchnorm", "(centred**2).mean(axis=0)", "x.var(axis=0, ddof=1)", "unbiased-variance", "out"),
    ("batchnorm", "dx = dcentred + dmean / n", "dx = dcentred", "mean-path-dropped", "dx"),
    ("batchnorm", "dcentred = dcentred + 2 * centred * dsquare", "pass", "variance-path-dropped", "dx"),
    ("batchnorm", "dcentred + 2 * centred", "dcentred + centred", "variance-path-halved", "dx"),
    ("batchnorm", "dvar = 0.5 * dstd / std", "dvar = dstd / std", "variance-path-doubled", "dx"),
    ("batchnorm", "dsquare = dvar / n", "dsquare = dvar", "missing-1/N-in-the-variance", "dx"),
    ("batchnorm", "dmean / n", "dmean", "missing-1/N-in-the-mean", "dx"),
    ("batchnorm", "dxhat = gamma * dout", "dxhat = dout", "gamma-forgotten", "dx"),
    ("batchnorm", "(dout * xhat).sum(axis=0)", "(dout * centred).sum(axis=0)", "centred-for-normalised", "dgamma"),
    ("batchnorm", "dout.sum(axis=0)", "dout.mean(axis=0)", "averaged", "dbeta"),
    ("batchnorm", "= momentum * running_mean + (1 - momentum)", "= (1 - momentum) * running_mean + momentum",
     "momentum-swapped", "running_mean"),
    ("batchnorm", "(x - running_mean) / scale", "(x - x.mean(0)) / np.sqrt(x.var(0) + eps)",
     "batch-statistics-at-test-time", "out"),
    ("layernorm", "dxhat = dout * gamma", "dxhat = dout", "gamma-forgotten", "dx"),
    ("layernorm", "axis=1", "axis=0", "normalised-over-the-wrong-axis", "out"),
    ("layernorm", "np.sum(dout, axis=0)", "np.sum(dout, axis=1)", "summed-over-the-wrong-axis", "dbeta"),
    ("layernorm", "- dxhat.mean(1, keepdims=True)", "", "mean-path-dropped", "dx"),
    ("dropout", "< p) / p", "< p)", "not-scaled", "out"),
    ("dropout", "< p) / p", "< 1 - p) / (1 - p)", "keep-and-drop-exchanged", "share kept"),
    ("dropout", "np.random.rand(*x.shape)", "1", "everything-dropped", "share kept"),
    ("dropout", "np.random.rand(*x.shape)", "0 * x", "nothing-dropped", "share kept"),
    ("dropout", "np.random.rand(*x.shape)", "np.random.rand(x.shape[1])", "one-draw-for-many", "draws"),
    ("dropout", 'if mode == "train":', "if True:", "dropped-at-test-time", "out"),
    ("dropout", "dx = dout * mask", "dx = dout * mask / dropout_param['p']", "scaled-twice", "dx"),
    ("dropout", "dx = dout * mask", "dx = dout", "mask-forgotten", "dx"),
    ("dropout", "dout * mask", "dout * (np.random.rand(*dout.shape) < 0.7) / 0.7", "another-mask-drawn", "dx"),
    ("conv", "[:, :, pad : pad + H, pad : pad + W]", "[:, :, :H, :W]", "padding-sliced-off-wrongly", "dx"),
    ("conv", "dx = dpadded[:, :, pad : pad + H, pad : pad + W]", "dx = dpadded", "padding-kept", "dx"),
    ("conv", "w[f]) + b[f]", "w[f, :, ::-1, ::-1]) + b[f]", "filters-flipped", "out"),
    ("conv", "dout[n, f, i, j] * w[f]", "dout[n, f, i, j] * w[f, :, ::-1, ::-1]", "filters-flipped", "dx"),
    ("conv", "db[f] +=", "db[f] += 1 / dout.size * len(b) *", "averaged", "db"),
    ("max_pool", "] += dout", "] = dout", "assigned-where-windows-overlap", "dx"),
    ("max_pool", ".max(axis=(2, 3))", ".mean(axis=(2, 3))", "averaged", "out"),
    ("max_pool", "window.argmax()", "window.argmin()", "smallest-for-largest", "dx"),
    ("max_pool", "+= dout[n, c, i, j]", "+= 1", "dout-forgotten", "dx"),
    ("spatial_batchnorm", "rows = x.transpose(0, 2, 3, 1).reshape(-1, C)", "rows = x.reshape(-1, C)",
     "channels-not-moved", "out"),
    ("spatial_groupnorm", "x.reshape(N * G, -1)", "x.reshape(N, -1)", "all-channels-in-one-group", "out"),
    ("spatial_groupnorm", "(gamma * dout)", "dout", "gamma-forgotten", "dx"),
    ("spatial_groupnorm", "= dout.sum(axis=(0, 2, 3), keepdims=True)", "= dout.sum((0, 2, 3))",
     "shape-that-broadcasts", "dbeta"),
    ("softmax_loss", "dx[np.arange(N), y] -= 1", "pass", "label-not-subtracted", "dx"),
    ("softmax_loss", "dx /= N", "pass", "not-divided-by-N", "dx"),
    ("softmax_loss", ".sum() / N", ".sum()", "not-divided-by-N", "loss"),
    ("softmax_loss", "shifted = x - x.max(axis=1, keepdims=True)", "shifted = x", "overflows", "loss"),
    ("svm_loss", "dx[n, y[n]] -= 1", "pass", "label-forgotten", "dx"),
    ("svm_loss", "continue", "pass", "label-counted", "loss"),
    ("svm_loss", "return loss / N", "return loss", "not-divided-by-N", "loss"),
    ("svm_loss", "+ 1\n", "\n", "margin-forgotten", "loss"),
]  # fmt: skip


def test_what_cannot_be_planted_in_results_is_planted_in_code():
    draws = {(op, slip.name, slip.part) for op, slip in SLIPS if slip.part in DRAWS or slip.name in DRAWS}
    assert len(draws) == 6 and draws <= {(op, name, part) for op, _, _, name, part in PLANTED}


@pytest.mark.parametrize(("op", "old", "new", "name", "part"), PLANTED)
def test_a_mistake_in_code(op, old, new, name, part):
    report = grade(op, *students.rewrite(op, old, new))
    assert not report.ok
    assert part in {mistake.gradient for mistake in report.mistakes}, str(report)
    if name is not None:
        assert (name, part) in names(report), str(report)
    # what a mistake in the forward pass does to the gradients is not told twice
    parts = [mistake.gradient for mistake in report.mistakes]
    assert len(parts) == len(set(parts)), str(report)


def test_only_what_is_wrong_is_accused():
    """A mistake in one result leaves the others right, and a right derivative of a wrong forward pass is no mistake."""
    dropped = grade("batchnorm", *students.rewrite("batchnorm", "dx = dcentred + dmean / n", "dx = dcentred"))
    assert names(dropped) == [("mean-path-dropped", "dx")]
    assert set(dropped.right) == {"out", "running_mean", "running_var", "dgamma", "dbeta"}
    unrooted = grade("relu", lambda x: (x**2, x), lambda dout, x: 2 * x * dout)
    assert [part for _, part in names(unrooted)] == ["out"]


# Unknown mistakes


def off(change):
    """An affine pair whose dw is changed."""

    def backward(dout, cache):
        dx, dw, db = students.affine_backward(dout, cache)
        return dx, change(dw), db

    return students.affine_forward, backward


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda d: 3 * d, "every entry is 3 times what it must be"),
        (lambda d: d + 0.5, "every entry is 0.5 too large"),
        (lambda d: 0 * d, "it is all zeros"),
        (lambda d: d * np.arange(1, d.shape[1] + 1), "each index of axis 1 (M) has a wrong factor of its own: 1, 2"),
        (lambda d: d * (np.arange(d.shape[1]) != 1), "each index of axis 1 (M) has a wrong factor of its own"),
        (lambda d: d + np.eye(*d.shape), "entries are wrong; at [0, 0]"),
        (lambda d: d / 0 if d.any() else d, "entries are nan or infinite, the first at [0, 0]"),
        (lambda d: d[:, :1], "NumPy would broadcast it to"),
        (lambda d: d.reshape(-1)[:-1], "its shape is (29,), must be (6, 5)"),
        (lambda d: np.where(np.arange(d.shape[0])[:, None] == 1, d**3, d), "it is wrong only at index 1 of axis 0 (D)"),
    ],
)
def test_an_unknown_mistake_is_reported_with_its_pattern(change, pattern):
    (mistake,) = grade("affine", *off(change)).mistakes
    assert (mistake.name, mistake.gradient) == ("unknown", "dw")
    assert pattern in mistake.sentence


def test_the_border_is_told():
    x = np.arange(32.0).reshape(1, 2, 4, 4) ** 1.5
    got = x.copy()
    got[:, :, 0], got[:, :, :, -1] = 7, 3
    assert describe(got, x, "NCHW") == "it is wrong only on the border of the image"


# Code that breaks


def broken(op="relu", forward=None, backward=None):
    right = students.pair(op)
    return grade(op, forward or right[0], backward or right[1])


def clobber(x):
    x *= 2
    return np.maximum(x, 0) / 2, x


def overwrite(dout, x):
    dout[x <= 0] = 0
    return dout


def consume(dout, cache):
    cache[0] *= dout
    return cache[0]


@pytest.mark.parametrize(
    ("report", "name", "words"),
    [
        (lambda: broken(forward=lambda x: x @ x), "raises", "forward raised ValueError: matmul"),
        (lambda: broken(forward=lambda x: exit()), "raises", "forward raised SystemExit"),
        (lambda: broken(backward=lambda dout, x: dout[99]), "raises", "backward raised IndexError"),
        (lambda: broken(forward=lambda x: None), "not-written", "returns None, must return (out, cache)"),
        (lambda: broken(backward=lambda dout, x: None), "not-written", "returns None, must return dx"),
        (lambda: broken(forward=lambda x: np.maximum(x, 0)), "return-count", "must return (out, cache)"),
        (lambda: broken(forward=lambda x: (x, x, x)), "return-count", "returns 3 values, must return (out, cache)"),
        (lambda: broken(backward=lambda d, x: (d * (x > 0),)), "return-count", "1 value in a tuple, must return dx"),
        (lambda: broken("affine", backward=lambda d, c: d), "return-count", "1 value, must return (dx, dw, db)"),
        (lambda: broken(forward=lambda x: ("text", x)), "not-an-array", "out is of type str, must be an array"),
        (lambda: broken(forward=clobber), "input-changed", "forward writes into its argument x"),
        (lambda: broken(backward=overwrite), "input-changed", "backward writes into dout"),
        (lambda: broken(forward=lambda x: (np.maximum(x, 0), [1.0 * (x > 0)]), backward=consume), "cache-changed",
         "a second run"),
        (lambda: broken(backward=lambda d, x: (d * (x > 0)).astype(np.float32)), "narrow-dtype", "dx is float32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_code_that_breaks_is_explained(report, name, words):
    report = report()
    assert name in [mistake.name for mistake in report.mistakes], str(report)
    assert words in str(report)
    assert "unknown" not in str(report)


def test_an_error_names_the_line_of_the_students_code():
    report = broken(backward=lambda dout, x: dout[99])
    assert "dout[99]" in str(report) and "at line" in str(report)


def test_random_numbers_of_the_caller_are_left_alone():
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.rand()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    grade("dropout", *students.pair("dropout"))
    assert np.random.rand() == expected  # noqa: NPY002


def test_the_report_reads_well():
    text = str(grade("affine", *students.rewrite("affine", "+ b[m]", "")))
    assert text.startswith(
        "affine: 1 mistake\n  out: bias-forgotten\n      the bias b is not added\n      see jnet/formulas/affine.py:"
    )
    assert text.endswith("right: dx, dw, db")
    assert str(grade("relu", *students.pair("relu"))) == "relu: right\n  right: out, dx"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: grade("linear", *students.pair("relu")), "op must be one of affine, relu"),
        (lambda: grade("relu", students.relu_forward), "backward must be a function, got None"),
        (lambda: grade("svm_loss", *students.pair("relu")), "backward must be None: a loss is one function"),
    ],
)
def test_wrong_calls(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# The score sheet


FILE = """
import numpy as np
print("noise")
{relu_forward}
def relu_backward(dout, cache):
    print("more noise")
    return dout
{softmax_loss}
def layernorm_forward(x, gamma, beta, ln_param):
    import time
    time.sleep(1000)
def layernorm_backward(dout, cache):
    return None
def dropout_forward(x, dropout_param):
    import os
    os._exit(3)
def dropout_backward(dout, cache):
    return dout
def conv_forward_naive(x, w, b, conv_param):
    pass
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("student") / "layers.py"
    sources = {n: textwrap.dedent(inspect.getsource(getattr(students, n))) for n in ("relu_forward", "softmax_loss")}
    path.write_text(FILE.format(**sources))
    return path


def test_a_file_is_graded_whatever_its_functions_do(file, capfd):
    assert cli.run(["grade", "--json", "--time-limit", "12", str(file)]) == 1
    sheet = json.loads(capfd.readouterr().out)
    assert (sheet["right"], sheet["graded"]) == (1, 5)
    found = {task["functions"]: [m["name"] for m in task["mistakes"]] for task in sheet["tasks"]}
    assert found == {
        "relu_forward, relu_backward": ["mask-forgotten"],
        "softmax_loss": [],
        "layernorm_forward, layernorm_backward": ["did-not-finish"],
        "dropout_forward, dropout_backward": ["did-not-finish"],
        "conv_forward_naive, conv_backward_naive": ["not-written"],
    }
    sentences = {m["sentence"] for task in sheet["tasks"] for m in task["mistakes"]}
    assert {"grading it did not finish within 12 s", "grading it ended Python with exit code 3"} <= sentences


def test_the_text_of_a_sheet(tmp_path, capfd):
    path = tmp_path / "mine.py"
    path.write_text("import numpy as np\n" + textwrap.dedent(inspect.getsource(students.svm_loss)))
    assert cli.run(["grade", str(path)]) == 0
    assert capfd.readouterr().out == f"{path}: 1 of 1 right\n\n  svm_loss  right\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "import nothing_of_that_name",
            "loading it raised ModuleNotFoundError: No module named 'nothing_of_that_name'",
        ),
        ("x = 1", "must define functions of the course, such as affine_forward, affine_backward"),
        (None, "must be an existing Python file"),
    ],
)
def test_files_that_cannot_be_graded(tmp_path, text, words):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=f"file: .*mine.py; {words}"):
        main(path)
