"""Exercises: batchnorm, layernorm, spatial_batchnorm, spatial_groupnorm.

All four subtract a mean and divide by a deviation, so they share their passes and most mistakes. Each sees its input in
a `view` in which the mean runs over whole axes. A pass is written once, as a function of its nodes (the mean, the
deviation, the path through the variance, ...); a mistake is that pass with another value at a node.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jnet import custom_vjp as ops
from jnet.formulas.normalization import batchnorm_forward, groupnorm_forward, layernorm_forward
from jnet.grading.dense import right_results
from jnet.grading.record import Case, Exercise, Made, Slip, by_case

__all__ = ["BATCHNORM", "LAYERNORM", "SPATIAL_BATCHNORM", "SPATIAL_GROUPNORM"]

_NAMES = ("dx", "dgamma", "dbeta")
Axes = tuple[int, ...]
Node = Any  # a value, or a function that makes it of the right nodes


# The passes


def _out(m: Made) -> np.ndarray:
    return m.back(m.gamma * ((m.x - m.mean) / m.deviation) + m.beta)


def _dx(m: Made) -> np.ndarray:
    n = m.dout * m.gamma
    mean, along_h = (a.mean(m.over, keepdims=True) for a in (n, n * m.h))
    return m.back(m.scale * (n - m.mean_path * mean - m.variance_path * m.h * along_h))


def _running(old: str, new: str) -> Callable[[Made], Any]:
    """Average a running statistic; test mode leaves it alone."""
    return lambda m: None if m.testing else m.momentum * getattr(m, old) + (1 - m.momentum) * getattr(m, new)


_PASSES: Mapping[str, Callable[[Made], Any]] = {
    "out": _out,
    "dx": _dx,
    "dgamma": lambda m: m.fold(m.dout * m.h),
    "dbeta": lambda m: m.fold(m.dout),
    "running_mean": _running("old_mean", "batch_mean"),
    "running_var": _running("old_var", "batch_var"),
}


def _nodes(case: Case, op: Any, eps: float, view: Axes, over: Axes, shared: Axes, given: Any = None) -> Made:
    """Make the nodes of the passes: statistics run over the axes `over` of `view`, gamma is shared over `shared`.

    `op` gives the right results. `given` are a mean and a variance to use in place of the input's own.
    """
    x, gamma, beta = case.args[:3]
    row = tuple(1 if i in shared else n for i, n in enumerate(view))
    m = Made(x=x.reshape(view), gamma=gamma.reshape(row), beta=beta.reshape(row), eps=eps, over=over)
    m.right = right_results(op, _NAMES, (x, gamma, beta), case.dout)
    m.dout = np.zeros(view) if case.dout is None else case.dout.reshape(view)
    own = (statistic(m.x, over, keepdims=True) for statistic in (np.mean, np.var))
    m.mean, m.var = (a.reshape(row) for a in given) if given else own
    m.deviation = np.sqrt(m.var + eps)
    m.h = (m.x - m.mean) / m.deviation
    m.scale, m.mean_path, m.variance_path = 1 / m.deviation, 1.0, 1.0
    m.size = np.prod([view[i] for i in over])  # of a mean
    m.count = np.prod([view[i] for i in shared])  # of entries that share a gamma
    m.back = lambda a: a.reshape(x.shape)  # from the view to the shape of x
    m.fold = lambda a: a.sum(shared).reshape(gamma.shape)
    return m


# Mistakes: name, result, nodes, sentence, step of the derivation

Row = tuple[str, str, Mapping[str, Node], str, str]


def _slips(lines: Mapping[str, str], *rows: Row) -> tuple[Slip, ...]:
    """Make slips of rows; `lines` says where the derivation has each step."""
    return tuple(
        Slip(name, part, _changed(_PASSES[part], nodes), words, lines[step]) for name, part, nodes, words, step in rows
    )


def _changed(run: Callable[[Made], Any], nodes: Mapping[str, Node]) -> Callable[[Made], Any]:
    """Run a pass with other values at some nodes."""

    def wrong(m: Made) -> Any:
        return run(Made(**vars(m) | {name: node(m) if callable(node) else node for name, node in nodes.items()}))

    return wrong


def _statistics(axes: Axes | None) -> Mapping[str, Node]:
    """Normalise by the input's own mean and deviation over `axes`; None: over all."""
    return {
        "mean": lambda m: m.x.mean(axes, keepdims=True),
        "deviation": lambda m: np.sqrt(m.x.var(axes, keepdims=True) + m.eps),
    }


def _sum(axes: Axes) -> Mapping[str, Node]:
    """Sum a gradient of gamma or beta over `axes`; groupnorm's, in a view of five axes, keeps those of the image."""
    return {"fold": lambda m: lambda a: m.back(a).sum(axes, keepdims=m.x.ndim == 5)}


_AVERAGED = {"fold": lambda m: lambda a: m.fold(a) / m.count}
_NOT_SUMMED = {"fold": lambda m: m.back}
_INTO_SCALE = {"scale": lambda m: m.gamma * m.scale}

_COMMON: tuple[Row, ...] = (
    ("eps-outside-the-root", "out", {"deviation": lambda m: np.sqrt(m.var) + m.eps},
     "eps is added to the standard deviation; it belongs inside the root, added to the variance", "forward"),
    ("eps-forgotten", "out", {"deviation": lambda m: np.sqrt(m.var)}, "eps is not added to the variance", "forward"),
    ("eps-of-its-own", "out", {"deviation": lambda m: np.sqrt(m.var + 1e-5)},
     "eps is always 1e-5; where the settings have an eps it must be taken from there", "forward"),
    ("unbiased-variance", "out", {"deviation": lambda m: np.sqrt(m.var * m.size / (m.size - 1) + m.eps)},
     "the variance is divided by M - 1; normalization uses the biased one, divided by M", "forward"),
    ("root-forgotten", "out", {"deviation": lambda m: m.var + m.eps},
     "the input is divided by the variance, must be divided by its square root", "forward"),
    ("mean-not-subtracted", "out", {"mean": 0.0}, "the mean is not subtracted from x", "forward"),
    ("not-divided", "out", {"deviation": 1.0}, "x - mean is not divided by the deviation", "forward"),
    ("mean-of-squares-for-variance", "out",
     {"deviation": lambda m: np.sqrt((m.x**2).mean(m.over, keepdims=True) + m.eps)},
     "the mean of the squares of x stands for the variance; the mean must be subtracted before squaring", "forward"),
    ("summed-over-everything", "out", _statistics(None), "one mean and one variance are used for all of x", "forward"),
    ("gamma-forgotten", "out", {"gamma": 1.0}, "the normalised input is not multiplied by gamma", "scale"),
    ("beta-forgotten", "out", {"beta": 0.0}, "beta is not added", "scale"),
    ("gamma-and-beta-exchanged", "out", {"gamma": lambda m: m.beta, "beta": lambda m: m.gamma},
     "beta multiplies and gamma is added; gamma is the scale, beta the shift", "scale"),
    ("mean-path-dropped", "dx", {"mean_path": 0},
     "the path through the mean is missing: it moves with every x, which subtracts the mean of gamma * dout", "mean"),
    ("variance-path-dropped", "dx", {"variance_path": 0},
     "the path through the variance is missing: it moves with every x, which subtracts h * mean(gamma dout h)", "var"),
    ("statistics-taken-as-constants", "dx", {"mean_path": 0, "variance_path": 0},
     "mean and variance are treated as constants: both paths through the statistics are missing", "dx"),
    ("gamma-forgotten", "dx", {"gamma": 1.0},
     "gamma is forgotten: the gradient of the normalised input is gamma * dout", "h"),
    ("gamma-twice", "dx", _INTO_SCALE, "gamma is multiplied in twice", "h"),
    ("deviation-forgotten", "dx", {"scale": 1.0}, "the factor 1 / deviation is missing", "dx"),
    ("missing-1/N", "dx", {"mean_path": lambda m: m.size, "variance_path": lambda m: m.size},
     "a 1/M is missing in both paths through the statistics: they carry means over the M entries, not sums", "mean"),
    ("missing-1/N-in-the-mean", "dx", {"mean_path": lambda m: m.size},
     "a 1/M is missing in the path through the mean", "mean"),
    ("missing-1/N-in-the-variance", "dx", {"variance_path": lambda m: m.size},
     "a 1/M is missing in the path through the variance", "var"),
    ("variance-path-halved", "dx", {"variance_path": 0.5},
     "the path through the variance is half of what it must be: the square has slope 2 (x - mean)", "square"),
    ("variance-path-doubled", "dx", {"variance_path": 2},
     "the path through the variance is twice what it must be: the root has slope 1/2", "var"),
    ("variance-path-with-the-wrong-sign", "dx", {"variance_path": -1},
     "the path through the variance has the opposite sign: a larger variance makes the output smaller", "var"),
    ("mean-path-with-the-wrong-sign", "dx", {"mean_path": -1},
     "the path through the mean has the opposite sign: the mean is subtracted", "mean"),
    ("wrong-power-of-the-deviation", "dx", {"variance_path": lambda m: m.deviation},
     "the path through the variance has the wrong power of the deviation: (var + eps) ** -0.5 has the slope "
     "-0.5 (var + eps) ** -1.5", "var"),
    ("input-for-normalised", "dgamma", {"h": lambda m: m.x},
     "dgamma uses x; gamma multiplies the normalised input, so that is what dout is multiplied by", "sums"),
    ("centred-for-normalised", "dgamma", {"h": lambda m: m.x - m.mean},
     "dgamma uses x - mean, which is not yet divided by the deviation", "sums"),
    ("output-for-normalised", "dgamma", {"h": lambda m: m.gamma * m.h + m.beta},
     "dgamma uses the output; gamma multiplies the normalised input, before scale and shift", "sums"),
    ("gamma-of-its-own", "dgamma", {"h": lambda m: m.gamma * m.h},
     "gamma stands in its own gradient; the output is linear in gamma", "sums"),
    ("averaged", "dgamma", _AVERAGED,
     "dgamma is a mean, must be a sum: the 1/N of a mean loss is in dout already", "sums"),
    ("input-forgotten", "dgamma", {"h": 1.0},
     "dgamma is the sum of dout, which is dbeta; dout must be multiplied by the normalised input", "sums"),
    ("not-summed", "dgamma", _NOT_SUMMED, "dgamma is not summed over the entries that share a gamma", "sums"),
    ("averaged", "dbeta", _AVERAGED,
     "dbeta is a mean, must be a sum: the 1/N of a mean loss is in dout already", "sums"),
    ("gamma-multiplied-in", "dbeta", {"dout": lambda m: m.dout * m.gamma},
     "dbeta is multiplied by gamma; beta is added after the scaling, so it passes dout as it is", "sums"),
    ("not-summed", "dbeta", _NOT_SUMMED,
     "dbeta is dout itself; beta is added in many entries, so dout is summed over them", "sums"),
)  # fmt: skip


def _sum_slips(name: str, axes: Axes, words: str) -> tuple[Row, ...]:
    """Write the rows of gradients of gamma and beta that are summed over the wrong axes."""
    return tuple((name, f"d{of}", _sum(axes), words.format(of), "sums") for of in ("gamma", "beta"))


def _case(
    rng: np.random.Generator,
    shape: Axes,
    settings: Mapping[str, Any],
    spread: float = 3.0,
    vector: Axes | None = None,
    groups: tuple[int, ...] = (),
) -> Case:
    """Draw a case whose gamma and beta have the shape `vector`, by default that of the second axis."""
    vector = vector or shape[1:2]
    args = (spread * rng.standard_normal(shape) + 1, rng.standard_normal(vector), rng.standard_normal(vector))
    dout = None if settings.get("mode") == "test" else rng.standard_normal(shape)
    return Case((*args, *groups, settings), dout)


# batchnorm and spatial_batchnorm: train mode with and without the optional settings, and test mode


def _batchnorm_cases(train: tuple[Axes, ...], bare: Axes, test: Axes) -> Callable[[np.random.Generator], list[Case]]:
    def cases(rng: np.random.Generator) -> list[Case]:
        def case(mode: str, shape: Axes) -> Case:
            mean, var = rng.standard_normal(shape[1]), rng.uniform(0.5, 2, shape[1])
            settings = {"mode": mode, "eps": 0.3, "momentum": 0.8, "running_mean": mean, "running_var": var}
            return _case(rng, shape, settings)

        plain = _case(rng, bare, {"mode": "train"}, spread=0.1)
        return [*(case("train", shape) for shape in train), plain, case("test", test)]

    return cases


def _last(a: Any) -> Any:
    """Move the channels of an image to the last axis."""
    return a if a.ndim == 2 else a.transpose(0, 2, 3, 1)


def _second(a: Any) -> Any:
    """Move them back."""
    return a if a.ndim == 2 else a.transpose(0, 3, 1, 2)


@by_case
def _batchnorm(case: Case) -> Made:
    x, gamma, _, given = case.args
    zeros, axes, testing = np.zeros(gamma.shape), (0, *range(2, x.ndim)), given["mode"] == "test"
    mean, var = given.get("running_mean", zeros), given.get("running_var", zeros)
    eps = given.get("eps", 1e-5)

    def op(*args: Any) -> Any:
        args = (_last(args[0]), *args[1:])
        return _second(ops.batchnorm_inference(*args, mean, var, eps) if testing else ops.batchnorm(*args, eps)[0])

    m = _nodes(case, op, eps, x.shape, axes, axes, (mean, var) if testing else None)
    m.testing, m.momentum, m.old_mean, m.old_var = testing, given.get("momentum", 0.9), mean, var
    m.batch_mean, m.batch_var = x.mean(axes), x.var(axes)
    for name, old in (("running_mean", mean), ("running_var", var)):
        m.right[name] = old if testing else _PASSES[name](m)
    return m


def _seen_running(case: Case, after: Mapping[str, Any], out: Any) -> dict[str, Any]:
    """Return the running statistics that forward left in its settings."""
    zeros = np.zeros(case.args[1].shape)
    return {name: after["bn_param"].get(name, zeros) for name in ("running_mean", "running_var")}


_BATCH_LINES = {
    "forward": r"r = (v+\epsilon)^{-1/2}, \qquad",
    "scale": r"y_i = \gamma h_i + \beta",
    "sums": r"\bar\gamma = \sum_i g_i h_i$, $\bar\beta =",
    "h": r"Let $n_i = \gamma g_i$ be the cotangent of $h_i$",
    "var": r"2. $r = (v+\epsilon)^{-1/2}$ has",
    "square": r"3. $v$ moves with $x_i$",
    "mean": r"4. $m$ is reached from",
    "dx": r"5. $x_i$ is reached from",
    "running": "The outputs are $y$, $m$ and $v$ (biased)",
}


def _batch_slips(axes: Axes) -> tuple[Slip, ...]:
    """Mistakes of any normalization, of the running statistics and of test mode."""
    kinds = [
        row
        for name in ("running_mean", "running_var")
        for row in (
            ("momentum-swapped", name, {"momentum": lambda m: 1 - m.momentum},
             "momentum weighs the batch; running = momentum * running + (1 - momentum) * batch", "running"),
            ("never-updated", name, {"momentum": 1.0},
             f"{name} is not updated in train mode, or not written back into bn_param", "running"),
            ("not-averaged", name, {"momentum": 0.0},
             f"{name} is replaced by that of the batch, must be averaged with momentum", "running"),
        )
    ]  # fmt: skip
    return _slips(
        _BATCH_LINES,
        *_COMMON,
        *kinds,
        ("unbiased-variance", "running_var", {"batch_var": lambda m: m.batch_var * m.size / (m.size - 1)},
         "the running variance averages the unbiased variance; the biased one, divided by M, is used throughout",
         "running"),
        ("deviation-for-variance", "running_var", {"batch_var": lambda m: np.sqrt(m.batch_var)},
         "the running variance averages the standard deviation, must average the variance", "running"),
        ("batch-statistics-at-test-time", "out", _statistics(axes),
         "test mode normalises by the batch; it must use the running mean and variance", "running"),
    )  # fmt: skip


BATCHNORM = Exercise(
    op="batchnorm",
    arguments=("x", "gamma", "beta", "bn_param"),
    gradients=_NAMES,
    derivation=batchnorm_forward,
    cases=_batchnorm_cases(train=((6, 4), (4, 4)), bare=(5, 3), test=(5, 4)),
    make=_batchnorm,
    extras=_seen_running,
    axes={"out": "ND", "dx": "ND"},
    slips=(
        *_batch_slips((0,)),
        *_slips(
            _BATCH_LINES,
            ("normalised-over-the-wrong-axis", "out", _statistics((1,)),
             "mean and variance are taken over each row; batchnorm takes them over the batch, axis 0", "forward"),
            *_sum_slips("summed-over-the-wrong-axis", (1,),
                        "d{} is summed over axis 1, must be summed over the batch, axis 0"),
        ),
    ),
)  # fmt: skip


# The course sees an image as (N H W, C) rows, so that batchnorm serves. The channels must be moved to the last axis
# first, and back at the end; a bare reshape mixes them.


def _bare(a: np.ndarray) -> np.ndarray:
    return a.reshape(-1, a.shape[1])


def _moved(a: np.ndarray) -> np.ndarray:
    return _last(a).reshape(-1, a.shape[1])


def _moved_back(m: Made, rows: np.ndarray) -> np.ndarray:
    n, c, height, width = m.x.shape
    return _second(rows.reshape(n, height, width, c))


def _rows(into: Callable[[Any], Any], back: Callable[[Made, Any], Any] = lambda m, rows: m.back(rows)) -> Any:
    """Run a pass on rows that are made by `into` and put back by `back`."""
    return {
        **{name: lambda m, name=name: getattr(m, name).reshape(-1) for name in ("gamma", "beta", "scale")},
        **{name: lambda m, name=name: into(getattr(m, name)) for name in ("x", "dout")},
        "mean": lambda m: m.mean.reshape(-1) if m.testing else into(m.x).mean(0),
        "deviation": lambda m: m.deviation.reshape(-1) if m.testing else np.sqrt(into(m.x).var(0) + m.eps),
        "batch_mean": lambda m: into(m.x).mean(0),
        "batch_var": lambda m: into(m.x).var(0),
        "h": lambda m: _moved(m.h),
        "over": (0,),
        "back": lambda m: lambda rows: back(m, rows),
        "fold": lambda m: lambda rows: rows.sum(0),
    }


_NOT_MOVED = "{} is reshaped to (N*H*W, C) without moving the channels to the last axis first: channels are mixed"
_NOT_BACK = "the rows are reshaped to (N, C, H, W) directly; reshape to (N, H, W, C), then move the channels back"
_CHANNELS: tuple[Row, ...] = (
    *(("channels-not-moved", name, _rows(_bare), _NOT_MOVED.format("x"), "running")
      for name in ("running_mean", "running_var")),
    ("channels-not-moved", "out", _rows(_bare), _NOT_MOVED.format("x"), "forward"),
    ("channels-not-moved", "out", _rows(_bare, _moved_back), _NOT_MOVED.format("x"), "forward"),
    ("channels-not-moved-back", "out", _rows(_moved), _NOT_BACK, "forward"),
    ("channels-not-moved", "dx", _rows(_bare), _NOT_MOVED.format("dout"), "dx"),
    ("channels-not-moved", "dx", _rows(_bare, _moved_back), _NOT_MOVED.format("dout"), "dx"),
    ("channels-not-moved-back", "dx", _rows(_moved), _NOT_BACK, "dx"),
    *(("channels-not-moved", name, _rows(_bare), _NOT_MOVED.format("dout"), "sums") for name in ("dgamma", "dbeta")),
)  # fmt: skip

SPATIAL_BATCHNORM = Exercise(
    op="spatial_batchnorm",
    arguments=("x", "gamma", "beta", "bn_param"),
    gradients=_NAMES,
    derivation=batchnorm_forward,
    cases=_batchnorm_cases(train=((2, 3, 4, 5),), bare=(3, 2, 3, 2), test=(2, 3, 4, 5)),
    make=_batchnorm,
    extras=_seen_running,
    axes={"out": "NCHW", "dx": "NCHW"},
    slips=(
        *_batch_slips((0, 2, 3)),
        *_slips(
            _BATCH_LINES,
            *_CHANNELS,
            ("normalised-over-the-batch-only", "out", _statistics((0,)),
             "each pixel has statistics of its own; a channel is normalised over batch, height and width together",
             "forward"),
            ("normalised-an-image-at-a-time", "out", _statistics((2, 3)),
             "each image is normalised by itself; a channel is normalised over batch, height and width together",
             "forward"),
            ("divided-by-the-batch-size", "dx",
             dict.fromkeys(("mean_path", "variance_path"), lambda m: m.size / len(m.x)),
             "the means of the backward pass are divided by N; a channel has M = N * H * W entries", "mean"),
            *_sum_slips("summed-over-the-batch-only", (0,),
                        "d{} is summed over the batch only, must be summed over height and width too"),
        ),
    ),
)  # fmt: skip


# layernorm


def _layernorm_cases(rng: np.random.Generator) -> list[Case]:
    return [_case(rng, (4, 6), {"eps": 0.3}), _case(rng, (5, 3), {}, spread=0.1), _case(rng, (4, 4), {"eps": 0.5})]


@by_case
def _layernorm(case: Case) -> Made:
    eps = case.args[3].get("eps", 1e-5)
    return _nodes(case, lambda *args: ops.layernorm(*args, eps), eps, case.args[0].shape, (1,), (0,))


_BRACKET = r"\bar x = r\,\bigl(n - \langle n\rangle"
_LAYER_LINES = dict.fromkeys(("var", "square", "mean", "dx"), _BRACKET) | {
    "forward": "Per row, over its $C$ entries",
    "scale": r"(v+\epsilon)^{-1/2}$, $h = (x-m)\,r$, $y = \gamma h + \beta$",
    "sums": "are shared by the rows",
    "h": r"Let $n = \gamma g$ be the cotangent of $h$",
    "inside": "varies along the axis of the mean, so it stays inside",
}

LAYERNORM = Exercise(
    op="layernorm",
    arguments=("x", "gamma", "beta", "ln_param"),
    gradients=_NAMES,
    derivation=layernorm_forward,
    cases=_layernorm_cases,
    make=_layernorm,
    axes={"out": "ND", "dx": "ND"},
    slips=_slips(
        _LAYER_LINES,
        *_COMMON,
        ("gamma-outside-the-means", "dx", {"gamma": 1.0, **_INTO_SCALE},
         "gamma is taken out of the means, as batchnorm may; here it varies along the row and must stay inside",
         "inside"),
        ("normalised-over-the-wrong-axis", "out", _statistics((0,)),
         "mean and variance are taken over the batch; layernorm takes them over each row, axis 1", "forward"),
        ("differentiated-over-the-wrong-axis", "dx", {"over": (0,)},
         "the means of the backward pass run over the batch, must run over each row", "dx"),
        *_sum_slips("summed-over-the-wrong-axis", (1,),
                    "d{0} is summed over each row, must be summed over the batch: the rows share {0}"),
    ),
)  # fmt: skip


# spatial_groupnorm: in the view (N, G, C / G, H, W)


def _groupnorm_cases(rng: np.random.Generator) -> list[Case]:
    return [
        _case(rng, (2, 6, 3, 2), {"eps": 0.3}, vector=(1, 6, 1, 1), groups=(3,)),
        _case(rng, (2, 4, 2, 3), {}, spread=0.1, vector=(1, 4, 1, 1), groups=(2,)),
    ]


@by_case
def _groupnorm(case: Case) -> Made:
    x, _, _, groups, settings = case.args
    eps = settings.get("eps", 1e-5)

    def op(x: Any, gamma: Any, beta: Any) -> Any:
        return _second(ops.groupnorm(_last(x), gamma.reshape(-1), beta.reshape(-1), groups, eps))

    return _nodes(case, op, eps, (len(x), groups, x.shape[1] // groups, *x.shape[2:]), (2, 3, 4), (0, 3, 4))


def _interleaved(statistic: Callable[..., np.ndarray]) -> Callable[[Made], np.ndarray]:
    """Take a statistic of the channels c, c + G, c + 2 G, ... in place of contiguous ones."""

    def taken(m: Made) -> np.ndarray:
        n, groups, each, height, width = m.x.shape
        x = m.x.reshape(n, each, groups, height, width)
        return np.broadcast_to(statistic(x, (1, 3, 4), keepdims=True), x.shape).reshape(m.x.shape)

    return taken


_GROUP_LINES = (
    dict.fromkeys(("forward", "scale"), r"group: $m = \langle x\rangle$")
    | dict.fromkeys(("sums", "h", "var", "square", "mean", "dx"), r"n = \gamma g, \qquad \bar x")
    | {"inside": "varies inside the group"}
)

SPATIAL_GROUPNORM = Exercise(
    op="spatial_groupnorm",
    arguments=("x", "gamma", "beta", "G", "gn_param"),
    gradients=_NAMES,
    derivation=groupnorm_forward,
    cases=_groupnorm_cases,
    make=_groupnorm,
    axes={"out": "NCHW", "dx": "NCHW"},
    slips=_slips(
        _GROUP_LINES,
        *_COMMON,
        ("gamma-outside-the-means", "dx", {"gamma": 1.0, **_INTO_SCALE},
         "gamma is taken out of the means, as batchnorm may; here it varies inside a group and must stay inside",
         "inside"),
        ("groups-interleaved", "out",
         {"mean": _interleaved(np.mean), "deviation": lambda m: np.sqrt(_interleaved(np.var)(m) + m.eps)},
         "a group is made of every G-th channel; groups are contiguous channels", "forward"),
        ("grouped-over-the-batch", "out", _statistics((0, 2, 3, 4)),
         "the statistics run over the batch too; each example is normalised by itself", "forward"),
        ("all-channels-in-one-group", "out", _statistics((1, 2, 3, 4)),
         "all channels of an example are normalised together; each group has its own mean and variance", "forward"),
        ("a-group-a-channel", "out", _statistics((3, 4)),
         "each channel is normalised by itself; the C / G channels of a group share mean and variance", "forward"),
        ("differentiated-over-the-positions-only", "dx", {"over": (3, 4)},
         "the means of the backward pass run over height and width only, must run over the group's channels too", "dx"),
        *_sum_slips("summed-over-the-batch-only", (0,),
                    "d{} is summed over the batch only, must be summed over height and width too"),
    ),
)  # fmt: skip
