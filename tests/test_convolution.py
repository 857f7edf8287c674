"""conv2d: every algorithm against float64 autodiff of XLA's convolution, over the shapes that Hypothesis finds."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax

from jnet.formulas import onednn
from jnet.formulas.convolution import (
    conv2d_backward,
    conv2d_forward,
    depthwise,
    im2col,
    rule,
    split,
    winograd,
)
from jnet.formulas.windows import geometry, pair

EXACT = ("auto", "im2col", "xla")


def reference(x, w, b, stride=1, padding="SAME", dilation=1, groups=1):
    out = lax.conv_general_dilated(
        x,
        w,
        pair(stride),
        geometry("reference", x.shape[1:3], w.shape[:2], stride, padding, dilation).padding,
        rhs_dilation=pair(dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    return out if b is None else out + b.reshape(1, 1, 1, -1)


def normal(seed, *shapes, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def run(x, w, b, dout_seed, **static):
    """Forward and backward in one compiled call: `(out, dx, dw, db)`."""

    @jax.jit
    def both(x, w, b):
        out, cache = conv2d_forward(x, w, b, **static)
        (dout,) = normal(dout_seed, out.shape, dtype=out.dtype)
        return out, *conv2d_backward(dout, cache, **static)

    return both(x, w, b)


def oracle(x, w, b, dout_seed, **static):
    """The same from autodiff in float64."""
    static.pop("algorithm", None)

    @jax.jit
    def both(x, w, b):
        out, vjp = jax.vjp(partial(reference, **static), x, w, b)
        (dout,) = normal(dout_seed, out.shape)
        return out, *vjp(dout)

    return both(*(None if v is None else v.astype(jnp.float64) for v in (x, w, b)))


@pytest.mark.parametrize(
    "static",
    [
        {"stride": 1, "padding": 1},
        {"stride": 2, "padding": ((0, 1), (2, 1))},
        {"stride": (2, 1), "padding": "SAME", "dilation": 2},
        {"stride": 2, "padding": 1, "groups": 3},
    ],
    ids=str,
)
def test_what_other_backends_are_given(monkeypatch, static):
    x, w, b = normal(0, (2, 7, 8, 6), (3, 3, 6 // static.get("groups", 1), 9), (9,))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jax.clear_caches()  # of what was traced for this one
    got = run(x, w, b, 1, **static)
    monkeypatch.undo()
    jax.clear_caches()
    for mine, exact in zip(got, oracle(x, w, b, 1, **static), strict=True):
        np.testing.assert_allclose(mine, exact, rtol=1e-10, atol=1e-10)


def assert_close(got, want, tolerance):
    for a, b in zip(got, want, strict=True):
        if b is None:
            assert a is None
            continue
        assert a.shape == b.shape
        scale = np.max(np.abs(b), initial=0.0) + 1e-30
        np.testing.assert_allclose(a.astype(jnp.float64) / scale, b / scale, rtol=0, atol=tolerance)


sides = st.tuples(st.integers(0, 3), st.integers(0, 3))


@st.composite
def cases(draw):
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels = groups * draw(st.integers(1, 2))
    filters = groups * draw(st.integers(1, 2))
    window = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    size = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    static = {
        "stride": draw(st.one_of(st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3)))),
        "dilation": draw(st.one_of(st.integers(1, 2), st.tuples(st.integers(1, 3), st.integers(1, 2)))),
        "padding": draw(
            st.one_of(st.sampled_from(["SAME", "VALID"]), st.integers(0, 3), sides, st.tuples(sides, sides))
        ),
        "groups": groups,
    }
    try:
        geometry("conv2d", size, window, static["stride"], static["padding"], static["dilation"])
    except ValueError:
        assume(False)
    shapes = (draw(st.integers(0, 2)), *size, channels), (*window, channels // groups, filters)
    return shapes, draw(st.booleans()), static


@settings(max_examples=20, deadline=None, derandomize=True)
@given(cases())
def test_every_exact_algorithm_equals_autodiff(case):
    shapes, bias, static = case
    x, w = normal(0, *shapes)
    b = normal(1, (shapes[1][-1],))[0] if bias else None
    want = oracle(x, w, b, 2, **static)
    for algorithm in ("im2col", "xla"):
        assert_close(run(x, w, b, 2, algorithm=algorithm, **static), want, 1e-12)


@pytest.mark.parametrize("size", [(5, 7), (6, 8), (1, 2)], ids=str)
@pytest.mark.parametrize("algorithm", EXACT)
def test_windows_of_one_tap_keep_the_pixels_that_they_read(algorithm, size):
    x, w, b = normal(4, (2, *size, 4), (1, 1, 2, 6), (6,))
    static = {"stride": (2, 3), "groups": 2, "padding": "VALID"}
    out, cache = conv2d_forward(x, w, b, algorithm=algorithm, **static)
    assert cache.x.shape == (*out.shape[:3], 4)
    for padding in ("VALID", 1):  # a border of zeros is read too, and then nothing is left out
        static["padding"] = padding
        assert_close(run(x, w, b, 5, algorithm=algorithm, **static), oracle(x, w, b, 5, **static), 1e-12)


@pytest.mark.parametrize("algorithm", EXACT)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(jnp.float32, 2e-5), (jnp.bfloat16, 5e-2), (jnp.float16, 1e-2)], ids=str
)
def test_dtypes(dtype, tolerance, algorithm):
    x, w, b = normal(3, (2, 6, 5, 4), (3, 3, 2, 6), (6,))
    x, w, b = x.astype(dtype), w.astype(jnp.float32), b.astype(jnp.float64)
    got = run(x, w, b, 4, groups=2, stride=2, algorithm=algorithm)
    assert [v.dtype for v in got] == [dtype, dtype, jnp.float32, jnp.float64]
    assert_close(got, oracle(x, w, b, 4, groups=2, stride=2), tolerance)


@pytest.mark.parametrize("algorithm", EXACT)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16], ids=str)
def test_low_precision_sums_are_kept_in_float32(dtype, algorithm):
    # Ones added up in bfloat16 stop at 256, in float16 at 2048.
    x, w = jnp.ones((1, 1, 2, 2048), dtype), jnp.ones((1, 2, 2048, 1), dtype)
    out, _ = conv2d_forward(x, w, padding="VALID", algorithm=algorithm)
    assert out.item() == 4096
    x, w = jnp.ones((4, 32, 32, 1), dtype), jnp.ones((1, 1, 1, 1), dtype)
    out, cache = conv2d_forward(x, w, jnp.zeros(1, dtype), algorithm=algorithm)
    _, dw, db = conv2d_backward(jnp.ones_like(out), cache, algorithm=algorithm)
    assert dw.item() == db.item() == 4096  # type: ignore[union-attr]


@pytest.mark.parametrize("algorithm", EXACT)
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16], ids=str)
def test_the_backward_is_differentiable(dtype, algorithm):
    x, w, dout, tangent = normal(5, (1, 5, 4, 2), (3, 2, 2, 2), (1, 3, 2, 2), (1, 5, 4, 2), dtype=dtype)
    static = {"stride": 2, "algorithm": algorithm}

    def dw(x, w):
        return conv2d_backward(dout, conv2d_forward(x, w, **static)[1], **static)[1]

    # dw is linear in x: its derivative along `tangent` is dw at `tangent`.
    _, vjp = jax.vjp(lambda x: dw(x, w), x)
    cotangent = jnp.ones_like(w)
    np.testing.assert_allclose(
        jnp.vdot(vjp(cotangent)[0], tangent).astype(jnp.float64),
        jnp.vdot(cotangent, dw(tangent, w)).astype(jnp.float64),
        rtol=1e-9 if dtype == jnp.float64 else 5e-2,
    )


SIZES = [((4, 4), "SAME"), ((5, 9), "VALID"), ((3, 7), ((0, 1), (2, 0))), ((6, 5), ((5, 0), (0, 4)))]


def gradients(module, x, w, dout, where):
    return [
        module.forward(x, w, where, 1),
        module.input_gradient(dout, w, where, 1),
        module.weight_gradient(x, dout, where, 1),
    ]


def same_by(size, window, padding, channels=3, images=2, stride=1):
    """Images, filters, a cotangent, their geometry, and what autodiff says in float64."""
    x, w = normal(0, (images, *size, channels), (*window, channels, 5))
    out, vjp = jax.vjp(partial(reference, b=None, padding=padding, stride=stride), x, w)
    (dout,) = normal(1, out.shape)
    return x, w, dout, geometry("conv2d", size, window, stride, padding), [out, *vjp(dout)]


@pytest.mark.parametrize(("size", "padding"), SIZES)
def test_winograd_is_exact_but_for_rounding(size, padding):
    x, w, dout, where, want = same_by(size, (3, 3), padding)
    assert_close(gradients(winograd, x, w, dout, where), want, 1e-12)
    assert_close(winograd.backward(x, w, dout, where), want[1:], 1e-12)


@pytest.mark.parametrize("channels", [3, 5])
@pytest.mark.parametrize(("size", "padding"), SIZES)
def test_split_windows(size, padding, channels):
    window = (3, 3) if channels == 3 else (2, 4)
    x, _, dout, where, want = same_by(size, window, padding, channels)
    assert_close([split.weight_gradient(x, dout, where, 1)], want[2:], 1e-12)


@pytest.mark.parametrize(("size", "padding"), SIZES)
def test_a_filter_for_each_channel(size, padding):
    static = {"stride": (2, 1), "padding": padding, "dilation": (1, 2), "groups": 3}
    x, w, b = normal(11, (2, *size, 3), (3, 2, 1, 3), (3,))
    assert depthwise.suits(3, 3, 3) and not depthwise.suits(3, 6, 3)
    assert_close(run(x, w, b, 12, **static), oracle(x, w, b, 12, **static), 1e-12)


def test_images_in_parts(monkeypatch):
    monkeypatch.setattr(winograd, "TOO_MANY_BYTES", 0)
    monkeypatch.setattr(winograd, "PART_BYTES", 8_000)
    monkeypatch.setattr(split, "IMAGES", 2)
    x, w, dout, where, want = same_by((5, 4), (3, 3), "SAME", images=6)
    assert "scan" in str(jax.make_jaxpr(lambda x: winograd.forward(x, w, where, 1))(x))
    assert_close(gradients(winograd, x, w, dout, where), want, 1e-12)
    assert_close(winograd.backward(x, w, dout, where), want[1:], 1e-12)
    assert_close([split.weight_gradient(x, dout, where, 1)], want[2:], 1e-12)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("images", [6, 7])  # 7 is prime: an image a part
def test_windows_in_parts(monkeypatch, images, groups):
    x, w, dout, where, want = same_by((7, 6), (3, 2), "SAME", images=images, stride=2)
    if groups > 1:  # each group of channels with its own filters
        w, dout = w[:, :, : 3 // groups, :3], dout[..., :3]
        want = jax.vjp(lambda x, w: reference(x, w, None, padding="SAME", stride=2, groups=groups), x, w)[1](dout)
    bytes_of_an_image = x.dtype.itemsize * 3 * 2 * where.out[0] * where.out[1] * x.shape[-1]
    monkeypatch.setattr(im2col, "PART_BYTES", 2 * bytes_of_an_image)
    assert "scan" in str(jax.make_jaxpr(lambda x: im2col.weight_gradient(x, dout, where, groups))(x))
    assert_close([im2col.weight_gradient(x, dout, where, groups)], want[-1:], 1e-12)


def test_rounding_of_winograd_is_bounded():
    x, w, b = normal(6, (4, 16, 16, 64), (3, 3, 64, 64), (64,), dtype=np.float32)
    got = run(x, w, b, 7, algorithm="winograd")
    assert {v.dtype for v in got} == {np.dtype(np.float32)}
    assert_close(got, oracle(x, w, b, 7), 3e-5)


def test_the_rule(monkeypatch):
    def auto(direction, window, channels, filters, *, images=128, size=32, stride=1, groups=1, dtype=np.float32):
        where = geometry("conv2d", (size, size), window, stride, "SAME")
        return rule.choose(direction, images, where, channels, filters, groups, dtype, "auto")

    def each(*args, **options):
        return [auto(direction, *args, **options) for direction in ("forward", "input_gradient", "weight_gradient")]

    assert each(3, 64, 128) == ["winograd"] * 3
    assert each(3, 64, 64) == each(3, 32, 128) == ["xla", "winograd", "winograd"]
    assert each(3, 64, 64, dtype=np.float64) == ["xla"] * 3
    assert each(3, 64, 64, dtype=np.float64, stride=2) == ["xla", "im2col", "im2col"]
    assert each(3, 64, 64, images=1, size=4) == ["xla"] * 3
    assert each(3, 64, 64, groups=2) == ["xla"] * 3
    assert each(3, 64, 64, groups=64)[2] == "depthwise"
    assert each(3, 64, 64, groups=64, dtype=np.float64) == ["depthwise"] * 3
    assert each(9, 64, 64, groups=64) == ["xla"] * 3
    assert each(3, 16, 16) == ["xla", "xla", "split"]
    assert each(7, 3, 32) == ["xla"] * 3
    assert each(3, 3, 64) == ["xla", "im2col", "xla"]
    assert each(1, 64, 64) == ["xla", "xla", "im2col"]
    assert each(1, 16, 32, stride=2, images=2) == ["xla", "xla", "im2col"]
    assert each(3, 16, 32, stride=2) == ["xla", "im2col", "im2col"]
    assert each(7, 16, 32, stride=2) == ["xla", "im2col", "xla"]
    assert each(3, 64, 64, stride=2) == ["xla", "im2col", "xla"]
    monkeypatch.setattr(onednn, "TESTED", ())
    assert each(3, 64, 64, groups=64) == ["depthwise"] * 3


@pytest.mark.parametrize(("filters", "algorithm"), [(16, "split"), (32, "winograd")])
def test_auto_where_it_takes_the_fast_paths(filters, algorithm):
    x, w = normal(8, (64, 20, 20, filters), (3, 3, filters, filters), dtype=np.float32)
    where = geometry("conv2d", x.shape[1:3], 3, 1, "SAME")
    assert rule.choose("weight_gradient", len(x), where, filters, filters, 1, x.dtype, "auto") == algorithm
    assert_close(run(x, w, None, 9), oracle(x, w, None, 9), 2e-5)


def test_auto_where_it_strides():
    x, w = normal(8, (128, 33, 32, 16), (3, 3, 16, 32), dtype=np.float32)
    assert_close(run(x, w, None, 9, stride=2), oracle(x, w, None, 9, stride=2), 2e-5)


def test_no_convolution_in_a_loop_has_the_batch_for_its_channels():
    x, w = normal(10, (3, 2, 5, 5, 2), (3, 3, 2, 2), dtype=np.float32)

    def step(w, x):
        out, cache = conv2d_forward(x, w, algorithm="xla")
        return w + conv2d_backward(out, cache, algorithm="xla")[1], None

    compiled = jax.jit(lambda w, x: lax.scan(step, w, x)[0]).lower(w, x).compile().as_text()
    labels = {line.split("dim_labels=")[1].split(",")[0] for line in compiled.splitlines() if "dim_labels=" in line}
    assert labels <= {"b01f_01io->b01f"}


X, W = (2, 6, 5, 4), (3, 3, 4, 6)


@pytest.mark.parametrize(
    ("shapes", "static", "message"),
    [
        ((X[1:], W), {}, r"x has shape \(6, 5, 4\); it must be \(N, H, W, C\)"),
        ((X, W[1:]), {}, r"w has shape \(3, 4, 6\); it must be \(HH, WW, C // groups, F\)"),
        ((X, (3, 3, 3, 6)), {}, r"w has shape \(3, 3, 3, 6\); it must be \(3, 3, 4, 6\)"),
        ((X, W, (5,)), {}, r"b has shape \(5,\); it must be \(6,\)"),
        ((X, W), {"groups": 3}, "groups is 3; it must divide the 4 channels of x and the 6 filters of w"),
        ((X, (9, 3, 4, 6)), {"padding": 1}, r"window \(9, 3\).* must fit into the padded image \(8, 7\)"),
        ((X, W), {"stride": 0}, "stride is 0; it must be 1 or more"),
        ((X, W), {"stride": (1, 2, 3)}, r"stride is \(1, 2, 3\); it must be an int or a pair of ints"),
        ((X, W), {"dilation": -1}, "dilation is -1; it must be 1 or more"),
        ((X, W), {"padding": "FULL"}, "padding is 'FULL'; it must be 'SAME', 'VALID', an int"),
        ((X, W), {"padding": -1}, "padding is .*; it must be 0 or more on each side"),
        ((X, W), {"algorithm": "winograd"}, r"algorithm is 'winograd' with filters \(3, 3\).* and float64; it must be"),
        ((X, W), {"algorithm": "fft"}, "algorithm is 'fft'; it must be one of auto, im2col"),
    ],
)
def test_errors_name_the_argument(shapes, static, message):
    with pytest.raises(ValueError, match=rf"^conv2d: {message}") as caught:
        conv2d_forward(*normal(0, *shapes), **static)
    assert "\n" not in str(caught.value)


def test_integers_are_refused():
    with pytest.raises(TypeError, match="conv2d: x has dtype int32; it must be a floating dtype"):
        conv2d_forward(jnp.ones(X, jnp.int32), jnp.ones(W))
