"""Exercises: batchnorm, layernorm, spatial_batchnorm, spatial_groupnorm.

All four subtract a mean and divide by a deviation, so their usual mistakes are the same. Each sees its input as a
`view` in which the mean runs over whole axes; the mistakes are written once, in that view.
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


def _ingredients(
    x: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    eps: float,
    dout: np.ndarray | None,
    view: tuple[int, ...],
    over: Axes,
    shared: Axes,
    given: tuple[np.ndarray, np.ndarray] | None = None,
) -> Made:
    """Make the parts of the derivation: statistics run over the axes `over` of `view`, gamma is shared over `shared`.

    `given` are a mean and a variance to use in place of the input's own.
    """
    row = tuple(1 if i in shared else n for i, n in enumerate(view))
    m = Made(x=x.reshape(view), gamma=gamma.reshape(row), beta=beta.reshape(row), eps=eps, over=over, shared=shared)
    m.mean = lambda a: a.mean(over, keepdims=True)
    m.sum = lambda a: a.sum(over, keepdims=True)
    m.size = np.prod([view[i] for i in over])
    m.centred = m.x - (given[0].reshape(row) if given else m.mean(m.x))
    m.var = given[1].reshape(row) if given else m.mean(m.centred**2)
    m.rstd = (m.var + eps) ** -0.5
    m.h = m.centred * m.rstd
    m.back = lambda a: a.reshape(x.shape)  # from the view to the shape of x
    m.fold = lambda a: a.sum(shared).reshape(gamma.shape)  # to the shape of gamma
    if dout is not None:
        m.dout = dout.reshape(view)
        m.n = m.dout * m.gamma
        m.plain = dout
    return m


def _out(h: Callable[[Made], Any]) -> Callable[[Made], Any]:
    """Make the output from another normalised input than the right one."""
    return lambda m: m.back(m.gamma * h(m) + m.beta)


def _back(dx: Callable[[Made], Any]) -> Callable[[Made], Any]:
    return lambda m: m.back(dx(m))


def _over(axes_of: Callable[[Made], Axes]) -> Callable[[Made], Any]:
    """Normalise over other axes."""

    def h(m: Made) -> np.ndarray:
        axes = axes_of(m)
        return (m.x - m.x.mean(axes, keepdims=True)) / np.sqrt(m.x.var(axes, keepdims=True) + m.eps)

    return h


def _common_slips(lines: Mapping[str, str]) -> tuple[Slip, ...]:
    """Mistakes of any normalization; `lines` says where the derivation of this one has each step."""
    forward, scale, sums, dx = lines["forward"], lines["scale"], lines["sums"], lines["dx"]
    h, var, mean = lines["h"], lines["var"], lines["mean"]
    return (
        Slip(
            "eps-outside-the-root",
            "out",
            _out(lambda m: m.centred / (np.sqrt(m.var) + m.eps)),
            "eps is added to the standard deviation; it belongs inside the root, added to the variance",
            forward,
        ),
        Slip(
            "eps-forgotten",
            "out",
            _out(lambda m: m.centred / np.sqrt(m.var)),
            "eps is not added to the variance",
            forward,
        ),
        Slip(
            "eps-of-its-own",
            "out",
            _out(lambda m: m.centred / np.sqrt(m.var + 1e-5)),
            "eps is always 1e-5; where the settings have an eps it must be taken from there",
            forward,
        ),
        Slip(
            "unbiased-variance",
            "out",
            _out(lambda m: m.centred / np.sqrt(m.var * m.size / (m.size - 1) + m.eps)),
            "the variance is divided by M - 1; normalization uses the biased one, divided by M",
            forward,
        ),
        Slip(
            "root-forgotten",
            "out",
            _out(lambda m: m.centred / (m.var + m.eps)),
            "the input is divided by the variance, must be divided by its square root",
            forward,
        ),
        Slip("mean-not-subtracted", "out", _out(lambda m: m.x * m.rstd), "the mean is not subtracted from x", forward),
        Slip("not-divided", "out", _out(lambda m: m.centred), "x - mean is not divided by the deviation", forward),
        Slip(
            "mean-of-squares-for-variance",
            "out",
            _out(lambda m: m.centred / np.sqrt(m.mean(m.x**2) + m.eps)),
            "the mean of the squares of x stands for the variance; the mean must be subtracted before squaring",
            forward,
        ),
        Slip(
            "summed-over-everything",
            "out",
            _out(_over(lambda m: tuple(range(m.x.ndim)))),
            "one mean and one variance are used for all of x",
            forward,
        ),
        Slip(
            "gamma-forgotten",
            "out",
            lambda m: m.back(m.h + m.beta),
            "the normalised input is not multiplied by gamma",
            scale,
        ),
        Slip("beta-forgotten", "out", lambda m: m.back(m.gamma * m.h), "beta is not added", scale),
        Slip(
            "gamma-and-beta-exchanged",
            "out",
            lambda m: m.back(m.beta * m.h + m.gamma),
            "beta multiplies and gamma is added; gamma is the scale, beta the shift",
            scale,
        ),
        Slip(
            "mean-path-dropped",
            "dx",
            _back(lambda m: m.rstd * (m.n - m.h * m.mean(m.n * m.h))),
            "the path through the mean is missing: it moves with every x, which subtracts the mean of gamma * dout",
            mean,
        ),
        Slip(
            "variance-path-dropped",
            "dx",
            _back(lambda m: m.rstd * (m.n - m.mean(m.n))),
            "the path through the variance is missing: it moves with every x, which subtracts h * mean(gamma dout h)",
            var,
        ),
        Slip(
            "statistics-taken-as-constants",
            "dx",
            _back(lambda m: m.rstd * m.n),
            "mean and variance are treated as constants: both paths through the statistics are missing",
            dx,
        ),
        Slip(
            "gamma-forgotten",
            "dx",
            _back(lambda m: m.rstd * (m.dout - m.mean(m.dout) - m.h * m.mean(m.dout * m.h))),
            "gamma is forgotten: the gradient of the normalised input is gamma * dout",
            h,
        ),
        Slip(
            "gamma-twice",
            "dx",
            _back(lambda m: m.gamma * m.rstd * (m.n - m.mean(m.n) - m.h * m.mean(m.n * m.h))),
            "gamma is multiplied in twice",
            h,
        ),
        Slip(
            "deviation-forgotten",
            "dx",
            _back(lambda m: m.n - m.mean(m.n) - m.h * m.mean(m.n * m.h)),
            "the factor 1 / deviation is missing",
            dx,
        ),
        Slip(
            "missing-1/N",
            "dx",
            _back(lambda m: m.rstd * (m.n - m.sum(m.n) - m.h * m.sum(m.n * m.h))),
            "a 1/M is missing in both paths through the statistics: they carry means over the M entries, not sums",
            mean,
        ),
        Slip(
            "missing-1/N-in-the-mean",
            "dx",
            _back(lambda m: m.rstd * (m.n - m.sum(m.n) - m.h * m.mean(m.n * m.h))),
            "a 1/M is missing in the path through the mean",
            mean,
        ),
        Slip(
            "missing-1/N-in-the-variance",
            "dx",
            _back(lambda m: m.rstd * (m.n - m.mean(m.n) - m.h * m.sum(m.n * m.h))),
            "a 1/M is missing in the path through the variance",
            var,
        ),
        Slip(
            "variance-path-halved",
            "dx",
            _back(lambda m: m.rstd * (m.n - m.mean(m.n) - 0.5 * m.h * m.mean(m.n * m.h))),
            "the path through the variance is half of what it must be: the square has slope 2 (x - mean)",
            lines["square"],
        ),
        Slip(
            "variance-path-doubled",
            "dx",
            _back(lambda m: m.rstd * (m.n - m.mean(m.n) - 2 * m.h * m.mean(m.n * m.h))),
            "the path through the variance is twice what it must be: the root has slope 1/2",
            var,
        ),
        Slip(
            "variance-path-with-the-wrong-sign",
            "dx",
            _back(lambda m: m.rstd * (m.n - m.mean(m.n) + m.h * m.mean(m.n * m.h))),
            "the path through the variance has the opposite sign: a larger variance makes the output smaller",
            var,
        ),
        Slip(
            "mean-path-with-the-wrong-sign",
            "dx",
            _back(lambda m: m.rstd * (m.n + m.mean(m.n) - m.h * m.mean(m.n * m.h))),
            "the path through the mean has the opposite sign: the mean is subtracted",
            mean,
        ),
        Slip(
            "wrong-power-of-the-deviation",
            "dx",
            _back(lambda m: m.rstd * (m.n - m.mean(m.n)) - m.h * m.mean(m.n * m.h)),
            "the path through the variance has the wrong power of the deviation: (var + eps) ** -0.5 has the slope "
            "-0.5 (var + eps) ** -1.5",
            var,
        ),
        Slip(
            "input-for-normalised",
            "dgamma",
            lambda m: m.fold(m.dout * m.x),
            "dgamma uses x; gamma multiplies the normalised input, so that is what dout is multiplied by",
            sums,
        ),
        Slip(
            "centred-for-normalised",
            "dgamma",
            lambda m: m.fold(m.dout * m.centred),
            "dgamma uses x - mean, which is not yet divided by the deviation",
            sums,
        ),
        Slip(
            "output-for-normalised",
            "dgamma",
            lambda m: m.fold(m.dout * (m.gamma * m.h + m.beta)),
            "dgamma uses the output; gamma multiplies the normalised input, before scale and shift",
            sums,
        ),
        Slip(
            "gamma-of-its-own",
            "dgamma",
            lambda m: m.fold(m.n * m.h),
            "gamma stands in its own gradient; the output is linear in gamma",
            sums,
        ),
        Slip(
            "averaged",
            "dgamma",
            lambda m: m.fold(m.dout * m.h) / m.count,
            "dgamma is a mean, must be a sum: the 1/N of a mean loss is in dout already",
            sums,
        ),
        Slip(
            "input-forgotten",
            "dgamma",
            lambda m: m.fold(m.dout),
            "dgamma is the sum of dout, which is dbeta; dout must be multiplied by the normalised input",
            sums,
        ),
        Slip(
            "not-summed",
            "dgamma",
            lambda m: m.back(m.dout * m.h),
            "dgamma is not summed over the entries that share a gamma",
            sums,
        ),
        Slip(
            "averaged",
            "dbeta",
            lambda m: m.fold(m.dout) / m.count,
            "dbeta is a mean, must be a sum: the 1/N of a mean loss is in dout already",
            sums,
        ),
        Slip(
            "gamma-multiplied-in",
            "dbeta",
            lambda m: m.fold(m.n),
            "dbeta is multiplied by gamma; beta is added after the scaling, so it passes dout as it is",
            sums,
        ),
        Slip(
            "not-summed",
            "dbeta",
            lambda m: m.plain,
            "dbeta is dout itself; beta is added in many entries, so dout is summed over them",
            sums,
        ),
    )


_BATCH_LINES = {
    "forward": r"r = (v+\epsilon)^{-1/2}, \qquad",
    "scale": r"y_i = \gamma h_i + \beta",
    "sums": r"\bar\gamma = \sum_i g_i h_i$, $\bar\beta =",
    "h": r"Let $n_i = \gamma g_i$ be the cotangent of $h_i$",
    "var": r"2. $r = (v+\epsilon)^{-1/2}$ has",
    "square": r"3. $v$ moves with $x_i$",
    "mean": r"4. $m$ is reached from",
    "dx": r"5. $x_i$ is reached from",
}


# batchnorm: train mode with and without the optional settings, and test mode


def _batchnorm_cases(rng: np.random.Generator) -> list[Case]:
    def case(n: int, d: int, spread: float = 3.0, **settings: Any) -> Case:
        args = (spread * rng.standard_normal((n, d)) + 1, rng.standard_normal(d), rng.standard_normal(d), settings)
        return Case(args, rng.standard_normal((n, d)) if settings["mode"] == "train" else None)

    def running(d: int) -> dict[str, Any]:
        return {"running_mean": rng.standard_normal(d), "running_var": rng.uniform(0.5, 2, d)}

    return [
        case(6, 4, mode="train", eps=0.3, momentum=0.8, **running(4)),
        case(5, 3, spread=0.1, mode="train"),
        case(4, 4, mode="train", eps=0.5, **running(4)),
        case(5, 4, mode="test", eps=0.3, **running(4)),
    ]


def _settings(case: Case) -> tuple[float, float, Any, Any]:
    """Return eps, momentum and the running statistics, with the course's defaults."""
    gamma, given = case.args[1], case.args[3]
    zeros = np.zeros(gamma.shape)
    named = (("eps", 1e-5), ("momentum", 0.9), ("running_mean", zeros), ("running_var", zeros))
    eps, momentum, mean, var = (given.get(name, default) for name, default in named)
    return eps, momentum, mean, var


def _batch_ingredients(case: Case, last: Callable[[Any], Any] = lambda a: a) -> Made:
    """Make the ingredients; `last` moves the channels of an image to the last axis, and is undone by `first`."""
    x, gamma, beta, given = case.args
    eps, momentum, mean, var = _settings(case)
    axes = (0,) if x.ndim == 2 else (0, 2, 3)
    testing = given["mode"] == "test"
    m = _ingredients(x, gamma, beta, eps, case.dout, x.shape, axes, axes, (mean, var) if testing else None)
    m.count, m.testing = m.size, testing
    m.momentum, m.old = momentum, {"running_mean": mean, "running_var": var}
    m.new = {"running_mean": m.x.mean(axes), "running_var": m.x.var(axes)}
    if m.testing:
        right = right_results(
            lambda x: _first(ops.batchnorm_inference(last(x), gamma, beta, mean, var, eps), x.ndim), (), (x,), None
        )
        m.right = right | m.old
    else:
        right = right_results(
            lambda *a: _first(ops.batchnorm(last(a[0]), *a[1:], eps)[0], x.ndim), _NAMES, case.args[:3], case.dout
        )
        m.right = right | {k: momentum * m.old[k] + (1 - momentum) * m.new[k] for k in m.old}
    return m


def _first(a: Any, rank: int) -> Any:
    """Move the channels of an image back to the second axis."""
    return a if rank == 2 else a.transpose(0, 3, 1, 2)


def _running(case: Case, after: Mapping[str, Any], out: Any) -> dict[str, Any]:
    """Return the running statistics that forward left in its settings."""
    zeros = np.zeros(case.args[1].shape)
    return {name: after["bn_param"].get(name, zeros) for name in ("running_mean", "running_var")}


def _training(wrong: Callable[[Made], Any]) -> Callable[[Made], Any]:
    return lambda m: None if m.testing else wrong(m)


def _mix(name: str, share: Callable[[Made], float], new: Callable[[Made], Any]) -> Callable[[Made], Any]:
    return _training(lambda m: share(m) * m.old[name] + (1 - share(m)) * new(m))


def _running_slips(line: str) -> tuple[Slip, ...]:
    """Mistakes of the running statistics and of test mode."""
    swapped = "momentum weighs the batch; running = momentum * running + (1 - momentum) * batch"
    never = "is not updated in train mode, or not written back into bn_param"
    replaced = "is replaced by that of the batch, must be averaged with momentum"

    def batch(name: str) -> Callable[[Made], Any]:
        return lambda m: m.new[name]

    both = [
        slip
        for name in ("running_mean", "running_var")
        for slip in (
            Slip("momentum-swapped", name, _mix(name, lambda m: 1 - m.momentum, batch(name)), swapped, line),
            Slip("never-updated", name, _training(lambda m, name=name: m.old[name]), f"{name} {never}", line),
            Slip("not-averaged", name, _training(batch(name)), f"{name} {replaced}", line),
        )
    ]
    others = (lambda m: m.new["running_var"] * m.size / (m.size - 1)), (lambda m: np.sqrt(m.new["running_var"]))
    return (
        *both,
        Slip(
            "unbiased-variance",
            "running_var",
            _mix("running_var", lambda m: m.momentum, others[0]),
            "the running variance averages the unbiased variance; the biased one, divided by M, is used throughout",
            line,
        ),
        Slip(
            "deviation-for-variance",
            "running_var",
            _mix("running_var", lambda m: m.momentum, others[1]),
            "the running variance averages the standard deviation, must average the variance",
            line,
        ),
        Slip(
            "batch-statistics-at-test-time",
            "out",
            lambda m: _out(_over(lambda m: m.over))(m) if m.testing else None,
            "test mode normalises by the batch; it must use the running mean and variance",
            line,
        ),
    )


_RUNNING = "The outputs are $y$, $m$ and $v$ (biased)"

BATCHNORM = Exercise(
    op="batchnorm",
    arguments=("x", "gamma", "beta", "bn_param"),
    gradients=_NAMES,
    derivation=batchnorm_forward,
    cases=_batchnorm_cases,
    make=by_case(_batch_ingredients),
    extras=_running,
    axes={"out": "ND", "dx": "ND"},
    slips=(
        *_common_slips(_BATCH_LINES),
        *_running_slips(_RUNNING),
        Slip(
            "normalised-over-the-wrong-axis",
            "out",
            _out(_over(lambda m: (1,))),
            "mean and variance are taken over each row; batchnorm takes them over the batch, axis 0",
            _BATCH_LINES["forward"],
        ),
        Slip(
            "summed-over-the-wrong-axis",
            "dgamma",
            lambda m: (m.dout * m.h).sum(1),
            "dgamma is summed over axis 1, must be summed over the batch, axis 0",
            _BATCH_LINES["sums"],
        ),
        Slip(
            "summed-over-the-wrong-axis",
            "dbeta",
            lambda m: m.dout.sum(1),
            "dbeta is summed over axis 1, must be summed over the batch, axis 0",
            _BATCH_LINES["sums"],
        ),
    ),
)


# layernorm


def _layernorm_cases(rng: np.random.Generator) -> list[Case]:
    def case(n: int, d: int, spread: float = 3.0, **settings: float) -> Case:
        args = (spread * rng.standard_normal((n, d)) + 1, rng.standard_normal(d), rng.standard_normal(d), settings)
        return Case(args, rng.standard_normal((n, d)))

    return [case(4, 6, eps=0.3), case(5, 3, spread=0.1), case(4, 4, eps=0.5)]


@by_case
def _layernorm(case: Case) -> Made:
    x, gamma, beta, settings = case.args
    eps = settings.get("eps", 1e-5)
    m = _ingredients(x, gamma, beta, eps, case.dout, x.shape, (1,), (0,))
    m.count = len(x)
    m.right = right_results(lambda *a: ops.layernorm(*a, eps), _NAMES, case.args[:3], case.dout)
    return m


_LAYER_LINES = {
    "forward": "Per row, over its $C$ entries",
    "scale": r"(v+\epsilon)^{-1/2}$, $h = (x-m)\,r$, $y = \gamma h + \beta$",
    "sums": "are shared by the rows",
    "h": r"Let $n = \gamma g$ be the cotangent of $h$",
    "var": r"\bar x = r\,\bigl(n - \langle n\rangle",
    "square": r"\bar x = r\,\bigl(n - \langle n\rangle",
    "mean": r"\bar x = r\,\bigl(n - \langle n\rangle",
    "dx": r"\bar x = r\,\bigl(n - \langle n\rangle",
}
_INSIDE = r"varies along the axis of the mean, so it stays inside"


def _gamma_outside(m: Made) -> np.ndarray:
    return m.gamma * m.rstd * (m.dout - m.mean(m.dout) - m.h * m.mean(m.dout * m.h))


LAYERNORM = Exercise(
    op="layernorm",
    arguments=("x", "gamma", "beta", "ln_param"),
    gradients=_NAMES,
    derivation=layernorm_forward,
    cases=_layernorm_cases,
    make=_layernorm,
    axes={"out": "ND", "dx": "ND"},
    slips=(
        *_common_slips(_LAYER_LINES),
        Slip(
            "gamma-outside-the-means",
            "dx",
            _back(_gamma_outside),
            "gamma is taken out of the means, as batchnorm may; here it varies along the row and must stay inside",
            _INSIDE,
        ),
        Slip(
            "normalised-over-the-wrong-axis",
            "out",
            _out(_over(lambda m: (0,))),
            "mean and variance are taken over the batch; layernorm takes them over each row, axis 1",
            _LAYER_LINES["forward"],
        ),
        Slip(
            "differentiated-over-the-wrong-axis",
            "dx",
            _back(lambda m: m.rstd * (m.n - m.n.mean(0) - m.h * (m.n * m.h).mean(0))),
            "the means of the backward pass run over the batch, must run over each row",
            _LAYER_LINES["dx"],
        ),
        Slip(
            "summed-over-the-wrong-axis",
            "dgamma",
            lambda m: (m.dout * m.h).sum(1),
            "dgamma is summed over each row, must be summed over the batch: the rows share gamma",
            _LAYER_LINES["sums"],
        ),
        Slip(
            "summed-over-the-wrong-axis",
            "dbeta",
            lambda m: m.dout.sum(1),
            "dbeta is summed over each row, must be summed over the batch: the rows share beta",
            _LAYER_LINES["sums"],
        ),
    ),
)


# spatial_batchnorm


def _spatial_cases(rng: np.random.Generator) -> list[Case]:
    def case(shape: tuple[int, ...], spread: float = 3.0, **settings: Any) -> Case:
        c = shape[1]
        args = (spread * rng.standard_normal(shape) + 1, rng.standard_normal(c), rng.standard_normal(c), settings)
        return Case(args, rng.standard_normal(shape) if settings["mode"] == "train" else None)

    def running(c: int) -> dict[str, Any]:
        return {"running_mean": rng.standard_normal(c), "running_var": rng.uniform(0.5, 2, c)}

    return [
        case((2, 3, 4, 5), mode="train", eps=0.3, momentum=0.8, **running(3)),
        case((3, 2, 3, 2), spread=0.1, mode="train"),
        case((2, 3, 4, 5), mode="test", eps=0.3, **running(3)),
    ]


@by_case
def _spatial_batchnorm(case: Case) -> Made:
    return _batch_ingredients(case, last=lambda a: a.transpose(0, 2, 3, 1))


# The course sees an image as (N H W, C) rows, so that batchnorm serves. The channels must be moved to the last axis
# first, and back at the end; a bare reshape mixes them.


def _bare(a: np.ndarray) -> np.ndarray:
    return a.reshape(-1, a.shape[1])


def _moved(a: np.ndarray) -> np.ndarray:
    return a.transpose(0, 2, 3, 1).reshape(-1, a.shape[1])


def _bare_back(m: Made, rows: np.ndarray) -> np.ndarray:
    return rows.reshape(m.x.shape)


def _moved_back(m: Made, rows: np.ndarray) -> np.ndarray:
    n, c, height, width = m.x.shape
    return rows.reshape(n, height, width, c).transpose(0, 3, 1, 2)


def _rows_out(into: Callable[[Any], Any], back: Callable[[Made, Any], Any]) -> Callable[[Made], Any]:
    def wrong(m: Made) -> np.ndarray:
        rows = into(m.x)
        mean, var = tuple(m.old.values()) if m.testing else (rows.mean(0), rows.var(0))
        return back(m, (rows - mean) / np.sqrt(var + m.eps) * m.gamma.reshape(-1) + m.beta.reshape(-1))

    return wrong


def _rows_dx(into: Callable[[Any], Any], back: Callable[[Made, Any], Any]) -> Callable[[Made], Any]:
    def wrong(m: Made) -> np.ndarray:
        n, h = into(m.dout) * m.gamma.reshape(-1), _moved(m.h)
        return back(m, m.rstd.reshape(-1) * (n - n.mean(0) - h * (n * h).mean(0)))

    return wrong


_NOT_MOVED = "{} is reshaped to (N*H*W, C) without moving the channels to the last axis first: channels are mixed"
_NOT_BACK = "the rows are reshaped to (N, C, H, W) directly; reshape to (N, H, W, C), then move the channels back"


def _channel_slips() -> tuple[Slip, ...]:
    forward, sums, dx = (_BATCH_LINES[name] for name in ("forward", "sums", "dx"))
    running = [
        Slip(
            "channels-not-moved",
            name,
            _mix(name, lambda m: m.momentum, lambda m, i=i: (_bare(m.x).mean(0), _bare(m.x).var(0))[i]),
            _NOT_MOVED.format("x"),
            _RUNNING,
        )
        for i, name in enumerate(("running_mean", "running_var"))
    ]
    return (
        *running,
        Slip("channels-not-moved", "out", _rows_out(_bare, _bare_back), _NOT_MOVED.format("x"), forward),
        Slip("channels-not-moved", "out", _rows_out(_bare, _moved_back), _NOT_MOVED.format("x"), forward),
        Slip("channels-not-moved-back", "out", _rows_out(_moved, _bare_back), _NOT_BACK, forward),
        Slip("channels-not-moved", "dx", _rows_dx(_bare, _bare_back), _NOT_MOVED.format("dout"), dx),
        Slip("channels-not-moved", "dx", _rows_dx(_bare, _moved_back), _NOT_MOVED.format("dout"), dx),
        Slip("channels-not-moved-back", "dx", _rows_dx(_moved, _bare_back), _NOT_BACK, dx),
        Slip(
            "channels-not-moved",
            "dgamma",
            lambda m: (_bare(m.dout) * _moved(m.h)).sum(0),
            _NOT_MOVED.format("dout"),
            sums,
        ),
        Slip("channels-not-moved", "dbeta", lambda m: _bare(m.dout).sum(0), _NOT_MOVED.format("dout"), sums),
    )


SPATIAL_BATCHNORM = Exercise(
    op="spatial_batchnorm",
    arguments=("x", "gamma", "beta", "bn_param"),
    gradients=_NAMES,
    derivation=batchnorm_forward,
    cases=_spatial_cases,
    make=_spatial_batchnorm,
    extras=_running,
    axes={"out": "NCHW", "dx": "NCHW"},
    slips=(
        *_common_slips(_BATCH_LINES),
        *_running_slips(_RUNNING),
        *_channel_slips(),
        Slip(
            "normalised-over-the-batch-only",
            "out",
            _out(_over(lambda m: (0,))),
            "each pixel has statistics of its own; a channel is normalised over batch, height and width together",
            _BATCH_LINES["forward"],
        ),
        Slip(
            "normalised-an-image-at-a-time",
            "out",
            _out(_over(lambda m: (2, 3))),
            "each image is normalised by itself; a channel is normalised over batch, height and width together",
            _BATCH_LINES["forward"],
        ),
        Slip(
            "divided-by-the-batch-size",
            "dx",
            _back(lambda m: m.rstd * (m.n - (m.sum(m.n) + m.h * m.sum(m.n * m.h)) / len(m.x))),
            "the means of the backward pass are divided by N; a channel has M = N * H * W entries",
            _BATCH_LINES["mean"],
        ),
        Slip(
            "summed-over-the-batch-only",
            "dgamma",
            lambda m: (m.dout * m.h).sum(0),
            "dgamma is summed over the batch only, must be summed over height and width too",
            _BATCH_LINES["sums"],
        ),
        Slip(
            "summed-over-the-batch-only",
            "dbeta",
            lambda m: m.dout.sum(0),
            "dbeta is summed over the batch only, must be summed over height and width too",
            _BATCH_LINES["sums"],
        ),
    ),
)


# spatial_groupnorm: in the view (N, G, C / G, H, W)


def _groupnorm_cases(rng: np.random.Generator) -> list[Case]:
    def case(shape: tuple[int, ...], groups: int, spread: float = 3.0, **settings: float) -> Case:
        vector = (1, shape[1], 1, 1)
        args = (
            spread * rng.standard_normal(shape) + 1,
            rng.standard_normal(vector),
            rng.standard_normal(vector),
            groups,
            settings,
        )
        return Case(args, rng.standard_normal(shape))

    return [case((2, 6, 3, 2), 3, eps=0.3), case((2, 4, 2, 3), 2, spread=0.1)]


@by_case
def _groupnorm(case: Case) -> Made:
    x, gamma, beta, groups, settings = case.args
    n, c, height, width = x.shape
    eps = settings.get("eps", 1e-5)
    view = (n, groups, c // groups, height, width)
    m = _ingredients(x, gamma, beta, eps, case.dout, view, (2, 3, 4), (0, 3, 4))
    m.count = n * height * width

    def op(x: Any, gamma: Any, beta: Any) -> Any:
        out = ops.groupnorm(x.transpose(0, 2, 3, 1), gamma.reshape(-1), beta.reshape(-1), groups, eps)
        return out.transpose(0, 3, 1, 2)

    m.right = right_results(op, _NAMES, case.args[:3], case.dout)
    return m


def _interleaved(m: Made) -> np.ndarray:
    """Normalise groups of channels c, c + G, c + 2 G, ... in place of contiguous ones."""
    n, groups, each, height, width = m.x.shape
    x = m.x.reshape(n, each, groups, height, width)
    h = (x - x.mean((1, 3, 4), keepdims=True)) / np.sqrt(x.var((1, 3, 4), keepdims=True) + m.eps)
    return h.reshape(m.x.shape)


_GROUP_LINES = {
    "forward": r"group: $m = \langle x\rangle$",
    "scale": r"group: $m = \langle x\rangle$",
    "sums": r"n = \gamma g, \qquad \bar x",
    "h": r"n = \gamma g, \qquad \bar x",
    "var": r"n = \gamma g, \qquad \bar x",
    "square": r"n = \gamma g, \qquad \bar x",
    "mean": r"n = \gamma g, \qquad \bar x",
    "dx": r"n = \gamma g, \qquad \bar x",
}

SPATIAL_GROUPNORM = Exercise(
    op="spatial_groupnorm",
    arguments=("x", "gamma", "beta", "G", "gn_param"),
    gradients=_NAMES,
    derivation=groupnorm_forward,
    cases=_groupnorm_cases,
    make=_groupnorm,
    axes={"out": "NCHW", "dx": "NCHW"},
    slips=(
        *_common_slips(_GROUP_LINES),
        Slip(
            "gamma-outside-the-means",
            "dx",
            _back(_gamma_outside),
            "gamma is taken out of the means, as batchnorm may; here it varies inside a group and must stay inside",
            "varies inside the group",
        ),
        Slip(
            "groups-interleaved",
            "out",
            _out(_interleaved),
            "a group is made of every G-th channel; groups are contiguous channels",
            _GROUP_LINES["forward"],
        ),
        Slip(
            "grouped-over-the-batch",
            "out",
            _out(_over(lambda m: (0, 2, 3, 4))),
            "the statistics run over the batch too; each example is normalised by itself",
            _GROUP_LINES["forward"],
        ),
        Slip(
            "all-channels-in-one-group",
            "out",
            _out(_over(lambda m: (1, 2, 3, 4))),
            "all channels of an example are normalised together; each group has its own mean and variance",
            _GROUP_LINES["forward"],
        ),
        Slip(
            "a-group-a-channel",
            "out",
            _out(_over(lambda m: (3, 4))),
            "each channel is normalised by itself; the C / G channels of a group share mean and variance",
            _GROUP_LINES["forward"],
        ),
        Slip(
            "differentiated-over-the-positions-only",
            "dx",
            _back(
                lambda m: (
                    m.rstd * (m.n - m.n.mean((3, 4), keepdims=True) - m.h * (m.n * m.h).mean((3, 4), keepdims=True))
                )
            ),
            "the means of the backward pass run over height and width only, must run over the group's channels too",
            _GROUP_LINES["dx"],
        ),
        Slip(
            "summed-over-the-batch-only",
            "dgamma",
            lambda m: m.back(m.dout * m.h).sum(0, keepdims=True),
            "dgamma is summed over the batch only, must be summed over height and width too",
            _GROUP_LINES["sums"],
        ),
        Slip(
            "summed-over-the-batch-only",
            "dbeta",
            lambda m: m.plain.sum(0, keepdims=True),
            "dbeta is summed over the batch only, must be summed over height and width too",
            _GROUP_LINES["sums"],
        ),
    ),
)
