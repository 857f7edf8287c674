"""Exercises: conv, max_pool, in the course's layout: images NCHW, filters FCHW."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jnet import custom_vjp as ops
from jnet.formulas.convolution import conv2d_forward
from jnet.formulas.pooling import max_pool2d_forward
from jnet.grading.dense import right_results
from jnet.grading.record import Case, Exercise, Made, Slip, by_case

__all__ = ["CONV", "MAX_POOL"]


def _places(image: tuple[int, ...], window: tuple[int, int], stride: int) -> Iterator[tuple[int, int, Any]]:
    """Yield each window: its output row and column, and the slices of the image that it covers."""
    height, width = image
    for i in range((height - window[0]) // stride + 1):
        for j in range((width - window[1]) // stride + 1):
            rows, columns = (slice(k * stride, k * stride + n) for k, n in zip((i, j), window, strict=True))
            yield i, j, (..., rows, columns)


# conv


def _conv_cases(rng: np.random.Generator) -> list[Case]:
    def case(x: tuple[int, ...], w: tuple[int, ...], stride: int, pad: int) -> Case:
        args = (
            rng.standard_normal(x),
            rng.standard_normal(w),
            rng.standard_normal(w[0]),
            {"stride": stride, "pad": pad},
        )
        out = [(n + 2 * pad - k) // stride + 1 for n, k in zip(x[2:], w[2:], strict=True)]
        return Case(args, rng.standard_normal((x[0], w[0], *out)))

    return [
        case((2, 3, 5, 7), (4, 3, 3, 3), 2, 1),
        case((2, 2, 4, 5), (3, 2, 2, 3), 1, 1),
        case((3, 2, 4, 4), (2, 2, 3, 3), 1, 0),
    ]


@by_case
def _conv(case: Case) -> Made:
    x, w, b, settings = case.args
    stride, pad = settings["stride"], settings["pad"]

    def op(x: Any, w: Any, b: Any) -> Any:
        out = ops.conv2d(x.transpose(0, 2, 3, 1), w.transpose(2, 3, 1, 0), b, stride=stride, padding=pad)
        return out.transpose(0, 3, 1, 2)

    m = Made(x=x, w=w, b=b, dout=case.dout, stride=stride, pad=pad, right={})
    m.padded = _padded(x, pad)
    m.right = right_results(op, ("dx", "dw", "db"), case.args[:3], case.dout)
    return m


def _padded(x: np.ndarray, pad: int, mode: str = "constant", sides: tuple[int, int] = (1, 1)) -> np.ndarray:
    width = (sides[0] * pad, sides[1] * pad)
    return np.pad(x, ((0, 0), (0, 0), width, width), mode=mode)  # pyright: ignore[reportArgumentType, reportCallIssue]


def _correlate(x: np.ndarray, w: np.ndarray, stride: int) -> np.ndarray | None:
    """Slide filters over padded images, without bias."""
    if x.shape[2] < w.shape[2] or x.shape[3] < w.shape[3]:
        return None
    out = {(i, j): np.einsum("nchw,fchw->nf", x[at], w) for i, j, at in _places(x.shape[2:], w.shape[2:], stride)}
    rows, columns = (1 + max(place[axis] for place in out) for axis in (0, 1))
    return np.stack([out[i, j] for i in range(rows) for j in range(columns)], -1).reshape(len(x), len(w), rows, columns)


def _conv_out(x: Callable[[Made], np.ndarray], w: Callable[[Made], np.ndarray] = lambda m: m.w, stride: Any = None):
    """Make the output from another image, other filters or another stride than the right ones."""

    def wrong(m: Made) -> np.ndarray | None:
        out = _correlate(x(m), w(m), stride or m.stride)
        return None if out is None else out + m.b.reshape(1, -1, 1, 1)

    return wrong


def _scattered(m: Made, w: np.ndarray, add: bool = True) -> np.ndarray:
    """Gather the gradient of the padded image window by window, adding or, wrongly, assigning."""
    dx = np.zeros(m.padded.shape)
    for i, j, at in _places(dx.shape[2:], m.w.shape[2:], m.stride):
        part = np.einsum("nf,fchw->nchw", m.dout[:, :, i, j], w)
        dx[at] = dx[at] + part if add else part
    return dx


def _cut(m: Made, dx: np.ndarray, top: int | None = None) -> np.ndarray:
    """Take the image out of the padded one, at `top` from its upper left corner."""
    top = m.pad if top is None else top
    return dx[:, :, top : top + m.x.shape[2], top : top + m.x.shape[3]]


def _correlated(m: Made, x: np.ndarray, keep: Callable[[Any, Any], Any] = np.add) -> np.ndarray:
    """Gather the gradient of the filters window by window."""
    dw = np.zeros(m.w.shape)
    for i, j, at in _places(x.shape[2:], m.w.shape[2:], m.stride):
        dw = keep(dw, np.einsum("nf,nchw->fchw", m.dout[:, :, i, j], x[at]))
    return dw


def _transposed_taps(m: Made) -> np.ndarray:
    return m.w.transpose(0, 1, 3, 2)


def _if_padded(wrong: Callable[[Made], Any]) -> Callable[[Made], Any]:
    return lambda m: wrong(m) if m.pad else None


def _maybe(wrong: Callable[[Made], Any], ready: Callable[[Made], bool]) -> Callable[[Made], Any]:
    return lambda m: wrong(m) if ready(m) else None


_Y, _OUTSIDE = r"$$y_{n,o,q,f} = b_f", "$x = 0$ outside the image"
_DB, _DW, _DX = r"as $b$ is added to each row", r"$\bar W = X^\top G$", r"$\bar X = G W^\top$"
_COPIES = "pixel is the sum over its copies"


def _square(m: Made) -> bool:
    return m.w.shape[2] == m.w.shape[3]


CONV = Exercise(
    op="conv",
    arguments=("x", "w", "b", "conv_param"),
    gradients=("dx", "dw", "db"),
    derivation=conv2d_forward,
    cases=_conv_cases,
    make=_conv,
    axes={"out": "NFHW", "dx": "NCHW", "dw": "FCHW"},
    slips=(
        Slip("bias-forgotten", "out", lambda m: m.right["out"] - m.b.reshape(1, -1, 1, 1),
             "the bias b is not added", _Y),
        Slip("filters-flipped", "out", _conv_out(lambda m: m.padded, lambda m: m.w[:, :, ::-1, ::-1]),
             "the filters are turned by 180 degrees; the course's convolution is a correlation, without a flip", _Y),
        Slip("taps-transposed", "out", _maybe(_conv_out(lambda m: m.padded, _transposed_taps), _square),
             "rows and columns of the filters are exchanged", _Y),
        Slip("padding-forgotten", "out", _conv_out(lambda m: m.x), "the image is not padded", _OUTSIDE),
        Slip("padded-on-one-side", "out", _conv_out(lambda m: _padded(m.x, m.pad, sides=(2, 0))),
             "all of the padding is at the top and left; pad belongs on each side", _OUTSIDE),
        Slip("padded-on-one-side", "out", _conv_out(lambda m: _padded(m.x, m.pad, sides=(0, 2))),
             "all of the padding is at the bottom and right; pad belongs on each side", _OUTSIDE),
        Slip("padding-not-zero", "out", _conv_out(lambda m: _padded(m.x, m.pad, "edge")),
             "the image is padded with its border, must be padded with zeros", _OUTSIDE),
        Slip("padding-not-zero", "out", _conv_out(lambda m: _padded(m.x, m.pad, "reflect")),
             "the image is padded with its reflection, must be padded with zeros", _OUTSIDE),
        Slip("stride-ignored", "out", _conv_out(lambda m: m.padded, stride=1),
             "the windows move by 1 whatever the stride", _Y),
        Slip("one-channel-only", "out", _conv_out(lambda m: m.padded[:, :1], lambda m: m.w[:, :1]),
             "only the first channel is seen; the sum runs over all channels", _Y),
        Slip("averaged-over-the-window", "out",
             lambda m: _correlate(m.padded, m.w, m.stride) / m.w[0].size + m.b.reshape(1, -1, 1, 1),
             "the products are averaged over the window, must be summed", _Y),
        Slip("assigned-where-windows-overlap", "dx", lambda m: _cut(m, _scattered(m, m.w, add=False)),
             "windows that overlap overwrite each other's gradient: it must be added, += and not =", _COPIES),
        Slip("padding-kept", "dx", _if_padded(lambda m: _scattered(m, m.w)),
             "dx still has the padding; the border that was added must be cut off again", _COPIES),
        Slip("padding-sliced-off-wrongly", "dx", _if_padded(lambda m: _cut(m, _scattered(m, m.w), 0)),
             "the padding is cut off at the bottom and right only; the image starts at row and column pad", _COPIES),
        Slip("padding-sliced-off-wrongly", "dx", _if_padded(lambda m: _cut(m, _scattered(m, m.w), 2 * m.pad)),
             "the padding is cut off at the top and left only; the image starts at row and column pad", _COPIES),
        Slip("filters-flipped", "dx", lambda m: _cut(m, _scattered(m, m.w[:, :, ::-1, ::-1])),
             "the filters are turned by 180 degrees; each tap sends dout back to the pixel that it met", _DX),
        Slip("taps-transposed", "dx", _maybe(lambda m: _cut(m, _scattered(m, _transposed_taps(m))), _square),
             "rows and columns of the filters are exchanged", _DX),
        Slip("averaged-over-the-batch", "dx", lambda m: m.right["dx"] / len(m.x),
             "dx is divided by N; the 1/N of a mean loss is in dout already", _DX),
        Slip("averaged-over-the-batch", "dw", lambda m: m.right["dw"] / len(m.x),
             "dw is divided by N; the 1/N of a mean loss is in dout already, so dw is a plain sum", _DW),
        Slip("last-window-only", "dw", lambda m: _correlated(m, m.padded, lambda old, new: new),
             "dw holds the last window only: each window must be added, += and not =", _DW),
        Slip("last-image-only", "dw", lambda m: m.right["dw"] - _without_last(m),
             "dw holds the last image only: the images of the batch must be added", _DW),
        Slip("filters-flipped", "dw", lambda m: m.right["dw"][:, :, ::-1, ::-1], "dw is turned by 180 degrees", _DW),
        Slip("unpadded-input", "dw", _if_padded(lambda m: _unpadded(m)),
             "dw is made from the input without its padding, so each tap meets the wrong pixel", _DW),
        Slip("not-summed-over-positions", "db", lambda m: m.dout.sum(0),
             "db is summed over the batch only; the bias is added at every position, so those are summed too", _DB),
        Slip("not-summed-over-the-batch", "db", lambda m: m.dout.sum((2, 3)),
             "db is summed over the positions only, must be summed over the batch too", _DB),
        Slip("averaged", "db", lambda m: m.dout.mean((0, 2, 3)),
             "db is a mean, must be a sum: the 1/N of a mean loss is in dout already", _DB),
        Slip("averaged-over-the-batch", "db", lambda m: m.right["db"] / len(m.x),
             "db is divided by N; the 1/N of a mean loss is in dout already", _DB),
        Slip("summed-over-everything", "db", lambda m: m.dout.sum(),
             "db is one number; each filter has a bias of its own", _DB),
    ),
)  # fmt: skip


def _without_last(m: Made) -> np.ndarray:
    rest = Made(**{**vars(m), "dout": np.concatenate([m.dout[:-1], 0 * m.dout[-1:]])})
    return _correlated(rest, m.padded)


def _unpadded(m: Made) -> np.ndarray:
    """Read windows from the image itself as if it were the padded one; what lies beyond its end counts as zero."""
    shifted = np.zeros(m.padded.shape)
    shifted[:, :, : m.x.shape[2], : m.x.shape[3]] = m.x
    return _correlated(m, shifted)


# max_pool


def _pool_cases(rng: np.random.Generator) -> list[Case]:
    """Draw inputs without ties: at a tie any share of the gradient is right."""

    def case(x: tuple[int, ...], height: int, width: int, stride: int) -> Case:
        settings = {"pool_height": height, "pool_width": width, "stride": stride}
        out = [(n - k) // stride + 1 for n, k in zip(x[2:], (height, width), strict=True)]
        return Case((rng.standard_normal(x), settings), rng.standard_normal((*x[:2], *out)))

    return [case((2, 3, 4, 6), 2, 2, 2), case((2, 2, 5, 6), 3, 3, 1), case((2, 2, 4, 7), 2, 3, 2)]


@by_case
def _pool(case: Case) -> Made:
    x, settings = case.args
    window, stride = (settings["pool_height"], settings["pool_width"]), settings["stride"]

    def op(x: Any) -> Any:
        return ops.max_pool2d(x.transpose(0, 2, 3, 1), window, stride).transpose(0, 3, 1, 2)

    right = right_results(op, ("dx",), (x,), case.dout)
    return Made(x=x, dout=case.dout, window=window, stride=stride, right=right)


def _pooled(reduce: Callable[[np.ndarray], np.ndarray], stride: Callable[[Made], int] = lambda m: m.stride) -> Any:
    """Reduce each window otherwise than to its largest entry, or move by another stride."""

    def wrong(m: Made) -> np.ndarray:
        found = {(i, j): reduce(m.x[at]) for i, j, at in _places(m.x.shape[2:], m.window, stride(m))}
        rows, columns = (1 + max(place[axis] for place in found) for axis in (0, 1))
        return np.stack([found[i, j] for i in range(rows) for j in range(columns)], -1).reshape(
            *m.x.shape[:2], rows, columns
        )

    return wrong


def _pooled_back(slope: Callable[[np.ndarray, np.ndarray], np.ndarray], add: bool = True) -> Callable[[Made], Any]:
    """Send `slope(window, dout)` back to each window, adding or, wrongly, assigning."""

    def wrong(m: Made) -> np.ndarray:
        dx = np.zeros(m.x.shape)
        for i, j, at in _places(m.x.shape[2:], m.window, m.stride):
            part = slope(m.x[at], m.dout[:, :, i, j][:, :, None, None])
            dx[at] = dx[at] + part if add else part
        return dx

    return wrong


def _is_max(window: np.ndarray) -> np.ndarray:
    return window == window.max((2, 3), keepdims=True)


def _assigned_at_the_maximum(m: Made) -> np.ndarray:
    """Assign dout to the maximum of each window and leave the rest of the window as it is."""
    dx = np.zeros(m.x.shape)
    for i, j, at in _places(m.x.shape[2:], m.window, m.stride):
        dx[at] = np.where(_is_max(m.x[at]), m.dout[:, :, i, j][:, :, None, None], dx[at])
    return dx


_LARGEST, _WHERE, _SUM = r"$y_o = \max_i x_{o s - P + i d}$", "1. $y_o$ is the entry under tap", "2. To scatter each"

MAX_POOL = Exercise(
    op="max_pool",
    arguments=("x", "pool_param"),
    gradients=("dx",),
    derivation=max_pool2d_forward,
    cases=_pool_cases,
    make=_pool,
    axes={"out": "NCHW", "dx": "NCHW"},
    slips=(
        Slip("averaged", "out", _pooled(lambda w: w.mean((2, 3))),
             "each window is averaged, must give its largest entry", _LARGEST),
        Slip("smallest-for-largest", "out", _pooled(lambda w: w.min((2, 3))),
             "each window gives its smallest entry, must give its largest", _LARGEST),
        Slip("largest-magnitude", "out", _pooled(lambda w: np.abs(w).max((2, 3))),
             "each window gives the largest absolute value, must give the largest entry", _LARGEST),
        Slip("summed", "out", _pooled(lambda w: w.sum((2, 3))),
             "each window is summed, must give its largest entry", _LARGEST),
        Slip("stride-ignored", "out", _pooled(lambda w: w.max((2, 3)), lambda m: 1),
             "the windows move by 1 whatever the stride", _LARGEST),
        Slip("stride-of-the-window", "out", _pooled(lambda w: w.max((2, 3)), lambda m: m.window[0]),
             "the windows move by their own height, must move by the stride", _LARGEST),
        Slip("channels-mixed", "out",
             lambda m: np.broadcast_to(m.right["out"].max(1, keepdims=True), m.right["out"].shape),
             "the maximum is taken over the channels too; each channel is pooled by itself", _LARGEST),
        Slip("assigned-where-windows-overlap", "dx", _pooled_back(lambda w, d: _is_max(w) * d, add=False),
             "windows that overlap overwrite each other's gradient: it must be added, += and not =", _SUM),
        Slip("assigned-where-windows-overlap", "dx", _assigned_at_the_maximum,
             "a pixel that is the maximum of several windows gets one window's gradient only: add, += and not =", _SUM),
        Slip("whole-window", "dx", _pooled_back(lambda w, d: np.ones(w.shape) * d),
             "every pixel of a window gets its gradient; only the largest one does", _WHERE),
        Slip("averaged-over-the-window", "dx", _pooled_back(lambda w, d: np.ones(w.shape) * d / w[0, 0].size),
             "the gradient is shared out over the window, as in average pooling; it goes to the largest entry alone",
             _WHERE),
        Slip("dout-forgotten", "dx", _pooled_back(lambda w, d: _is_max(w) * 1.0),
             "dx is the mask of the largest entries alone; by the chain rule it is multiplied by dout", _WHERE),
        Slip("value-for-slope", "dx", _pooled_back(lambda w, d: _is_max(w) * w * d),
             "dout is multiplied by the largest entry; the slope of a maximum is 1 there", _WHERE),
        Slip("forward-for-backward", "dx", _pooled_back(lambda w, d: _is_max(w) * w),
             "dx holds the largest entries, must hold dout at their places", _WHERE),
        Slip("smallest-for-largest", "dx", _pooled_back(lambda w, d: (w == w.min((2, 3), keepdims=True)) * d),
             "the gradient goes to the smallest entry of each window, must go to the largest", _WHERE),
        Slip("first-entry", "dx", _pooled_back(lambda w, d: _corner(w) * d),
             "the gradient goes to the first entry of each window, must go to the largest", _WHERE),
        Slip("channels-mixed", "dx", _pooled_back(lambda w, d: (w == w.max((1, 2, 3), keepdims=True)) * d),
             "the largest entry is looked for over the channels too; each channel is pooled by itself", _WHERE),
    ),
)  # fmt: skip


def _corner(window: np.ndarray) -> np.ndarray:
    mask = np.zeros(window.shape)
    mask[..., 0, 0] = 1
    return mask
