"""The course's fast layers at its notebook's sizes, against plain NumPy: `python -m benchmarks.course`.

Forward and backward together, float64 as in the notebook, everything in NumPy arrays at the call and at the return. The
first call, which compiles, is timed by itself in a fresh process. The table goes to `benchmarks/results/course.csv`.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import measure, results

CONV = {"stride": 2, "pad": 1}
POOL = {"pool_height": 2, "pool_width": 2, "stride": 2}


# Plain NumPy, loop by loop


def conv_loops(x, w, b, dout):
    (n, _, hh, ww), (f, _, wh, wd) = x.shape, w.shape
    stride, pad = CONV["stride"], CONV["pad"]
    xp = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    oh, ow = 1 + (hh + 2 * pad - wh) // stride, 1 + (ww + 2 * pad - wd) // stride
    out, dxp, dw = np.empty((n, f, oh, ow)), np.zeros_like(xp), np.zeros_like(w)
    for image in range(n):
        for filt in range(f):
            for i in range(oh):
                for j in range(ow):
                    here = np.s_[image, :, i * stride : i * stride + wh, j * stride : j * stride + wd]
                    out[image, filt, i, j] = np.sum(xp[here] * w[filt]) + b[filt]
    for image in range(n):
        for filt in range(f):
            for i in range(oh):
                for j in range(ow):
                    here = np.s_[image, :, i * stride : i * stride + wh, j * stride : j * stride + wd]
                    dxp[here] += dout[image, filt, i, j] * w[filt]
                    dw[filt] += dout[image, filt, i, j] * xp[here]
    return out, dxp[:, :, pad : pad + hh, pad : pad + ww], dw, dout.sum(axis=(0, 2, 3))


def pool_loops(x, dout):
    size, stride = POOL["pool_height"], POOL["stride"]
    n, c, oh, ow = dout.shape
    out, dx = np.empty_like(dout), np.zeros_like(x)
    for image in range(n):
        for channel in range(c):
            for i in range(oh):
                for j in range(ow):
                    here = np.s_[image, channel, i * stride : i * stride + size, j * stride : j * stride + size]
                    out[image, channel, i, j] = np.max(x[here])
    for image in range(n):
        for channel in range(c):
            for i in range(oh):
                for j in range(ow):
                    row, column = np.unravel_index(
                        np.argmax(x[image, channel, i * stride :, j * stride :][:size, :size]), (size, size)
                    )
                    dx[image, channel, i * stride + row, j * stride + column] += dout[image, channel, i, j]
    return out, dx


# NumPy with the windows as columns of a matrix


def conv_im2col(x, w, b, dout):
    (n, c, hh, ww), (f, _, wh, wd) = x.shape, w.shape
    stride, pad = CONV["stride"], CONV["pad"]
    xp = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(xp, (wh, wd), axis=(2, 3))[:, :, ::stride, ::stride]
    oh, ow = windows.shape[2:4]
    cols = windows.transpose(1, 4, 5, 0, 2, 3).reshape(c * wh * wd, n * oh * ow)
    out = (w.reshape(f, -1) @ cols + b[:, None]).reshape(f, n, oh, ow).transpose(1, 0, 2, 3).copy()
    rows = dout.transpose(1, 0, 2, 3).reshape(f, -1)
    dw = (rows @ cols.T).reshape(w.shape)
    dcols = (w.reshape(f, -1).T @ rows).reshape(c, wh, wd, n, oh, ow)
    dxp = np.zeros((c, n, *xp.shape[2:]))
    for i in range(wh):
        for j in range(wd):
            dxp[:, :, i : i + stride * oh : stride, j : j + stride * ow : stride] += dcols[:, i, j]
    return out, dxp[:, :, pad : pad + hh, pad : pad + ww].transpose(1, 0, 2, 3).copy(), dw, rows.sum(axis=1)


def pool_im2col(x, dout):
    n, c, oh, ow = dout.shape
    size = POOL["pool_height"]
    cols = x.reshape(n, c, oh, size, ow, size).transpose(3, 5, 0, 1, 2, 4).reshape(size * size, -1)
    winner, every = np.argmax(cols, axis=0), np.arange(cols.shape[1])
    dcols = np.zeros_like(cols)
    dcols[winner, every] = dout.ravel()
    dx = dcols.reshape(size, size, n, c, oh, ow).transpose(2, 3, 4, 0, 5, 1).reshape(x.shape)
    return cols[winner, every].reshape(dout.shape), dx


# jnet under the course's names


def conv_jnet(x, w, b, dout):
    from jnet.compat.cs231n.fast_layers import conv_backward_fast, conv_forward_fast

    out, cache = conv_forward_fast(x, w, b, CONV)
    return out, *conv_backward_fast(dout, cache)


def pool_jnet(x, dout):
    from jnet.compat.cs231n.fast_layers import max_pool_backward_fast, max_pool_forward_fast

    out, cache = max_pool_forward_fast(x, POOL)
    return out, max_pool_backward_fast(dout, cache)


def conv_arrays():
    """The notebook's: 100 images 3x31x31, 25 filters 3x3, stride 2."""
    rng = np.random.default_rng(231)
    return [rng.standard_normal(shape) for shape in [(100, 3, 31, 31), (25, 3, 3, 3), (25,), (100, 25, 16, 16)]]


def pool_arrays():
    """The notebook's: 100 images 3x32x32, windows 2x2 side by side."""
    rng = np.random.default_rng(231)
    return [rng.standard_normal(shape) for shape in [(100, 3, 32, 32), (100, 3, 16, 16)]]


WORK: dict[str, tuple[Callable[[], list], dict[str, Callable[..., Any]]]] = {
    "conv": (conv_arrays, {"loops": conv_loops, "im2col": conv_im2col, "jnet": conv_jnet}),
    "max_pool": (pool_arrays, {"loops": pool_loops, "im2col": pool_im2col, "jnet": pool_jnet}),
}


def measured(layer: str, seconds: float) -> results.Row:
    """One row: the medians in seconds, the ratios, and the first call in a process of its own."""
    make, contenders = WORK[layer]
    arrays = make()
    for got, want in zip(contenders["jnet"](*arrays), contenders["im2col"](*arrays), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-10)
    times = {
        name: measure.summarise(measure.repeat(lambda call=call: call(*arrays), 0.0 if name == "loops" else seconds))
        for name, call in contenders.items()
    }
    row: results.Row = {"layer": layer, **{f"{name}_s": timing.p50 for name, timing in times.items()}}
    row |= {f"{name}/jnet": times[name].p50 / times["jnet"].p50 for name in ("loops", "im2col")}
    return {**row, "first_call_s": first_call(layer)}


def first_call(layer: str) -> float:
    """Seconds from calling the layer, forward and backward, to its result, where nothing was compiled before."""
    program = (
        "import time, jax, numpy as np; from benchmarks import course; import jnet.compat.cs231n.fast_layers;"
        "jax.devices(); "
        f"make, contenders = course.WORK[{layer!r}]; arrays = make(); start = time.perf_counter();"
        "contenders['jnet'](*arrays); print(time.perf_counter() - start)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(run.stdout)


def main(seconds: float = 3.0) -> None:
    """Measure both layers, print the table and keep it."""
    start = time.perf_counter()
    rows = [measured(layer, seconds) for layer in WORK]
    columns = list(rows[0])
    print("".join(f"{column:>15}" for column in columns))
    for row in rows:
        print("".join(f"{value:>15.4g}" if isinstance(value, float) else f"{value:>15}" for value in row.values()))
    results.save(results.FOLDER / "course.csv", [{**row, **measure.setting()} for row in rows], group=("layer",))
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
