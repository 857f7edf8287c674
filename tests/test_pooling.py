"""Max- and average-pooling against loops over windows in NumPy, float64."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jnet.formulas.pooling import (
    avg_pool2d_backward,
    avg_pool2d_forward,
    max_pool2d_backward,
    max_pool2d_forward,
)
from jnet.formulas.windows import geometry


def windows(shape, where):
    """Yield each window's place and the pixels of it that lie on the image, in row-major order."""
    for oh, ow in product(*map(range, where.out)):
        pixels = []
        for i, j in product(*map(range, where.window)):
            h = oh * where.stride[0] - where.padding[0][0] + i * where.dilation[0]
            w = ow * where.stride[1] - where.padding[1][0] + j * where.dilation[1]
            if 0 <= h < shape[1] and 0 <= w < shape[2]:
                pixels.append((h, w))
        yield oh, ow, pixels


def max_oracle(x, dout, where):
    """Return (out, dx) of max-pooling, one window at a time."""
    out, dx = np.full((len(x), *where.out, x.shape[3]), -np.inf), np.zeros_like(x)
    for oh, ow, pixels in windows(x.shape, where):
        for n, c in product(range(x.shape[0]), range(x.shape[3])):
            values = [x[n, h, w, c] for h, w in pixels]
            if values:
                nans = [v != v for v in values]
                best = nans.index(True) if any(nans) else values.index(max(values))
                out[n, oh, ow, c] = values[best]
                dx[(n, *pixels[best], c)] += dout[n, oh, ow, c]
    return out, dx


def avg_oracle(x, dout, where, count_include_pad):
    """Return (out, dx) of average-pooling, one window at a time."""
    out, dx = np.zeros((len(x), *where.out, x.shape[3])), np.zeros_like(x)
    for oh, ow, pixels in windows(x.shape, where):
        count = where.window[0] * where.window[1] if count_include_pad else len(pixels)
        for h, w in pixels:
            out[:, oh, ow] += x[:, h, w] / count
            dx[:, h, w] += dout[:, oh, ow] / count
    return out, dx


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def poolings(draw, dilations=pairs):
    """Draw an image and windows over it that fit; ties, infinities and NaN are frequent."""
    window, stride, dilation = draw(pairs), draw(pairs), draw(dilations)
    spans = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
    padding = tuple((draw(st.integers(0, k - 1)), draw(st.integers(0, k - 1))) for k in window)
    size = [draw(st.integers(max(span - sum(pad), 1), 9)) for span, pad in zip(spans, padding, strict=True)]
    values = draw(
        st.sampled_from([[0.0, 1.0], [-np.inf, -1.0], [0.0, np.nan, np.inf, -np.inf], [float(v) for v in range(90)]])
    )
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    x = rng.choice(values, (draw(st.integers(0, 2)), *size, draw(st.integers(1, 3))))
    return x, {"window": window, "stride": stride, "padding": padding}, {"dilation": dilation}, rng


@settings(max_examples=25, deadline=None, derandomize=True)
@given(poolings())
def test_max_pool_agrees_with_loops(case):
    x, static, dilation, rng = case
    static = static | dilation
    out, cache = max_pool2d_forward(jnp.asarray(x), **static)
    dout = rng.standard_normal(out.shape)
    want_out, want_dx = max_oracle(x, dout, geometry("max_pool2d", x.shape[1:3], **static))
    np.testing.assert_array_equal(out, want_out)
    np.testing.assert_allclose(max_pool2d_backward(jnp.asarray(dout), cache, **static), want_dx, atol=1e-14)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(poolings(dilations=st.just((1, 1))), st.booleans())
def test_avg_pool_agrees_with_loops(case, count_include_pad):
    x, static, _, rng = case
    static = static | {"count_include_pad": count_include_pad}
    x = rng.standard_normal(x.shape)
    where = geometry("avg_pool2d", x.shape[1:3], **{k: static[k] for k in ("window", "stride", "padding")})
    out, cache = avg_pool2d_forward(jnp.asarray(x), **static)
    dout = rng.standard_normal(out.shape)
    want_out, want_dx = avg_oracle(x, dout, where, count_include_pad)
    np.testing.assert_allclose(out, want_out, atol=1e-14)
    np.testing.assert_allclose(avg_pool2d_backward(jnp.asarray(dout), cache, **static), want_dx, atol=1e-14)


def test_a_window_of_minus_infinity_sends_its_gradient_to_a_pixel_and_not_to_the_padding():
    x = jnp.full((1, 2, 2, 1), -jnp.inf)
    _, cache = max_pool2d_forward(x, window=2, stride=2, padding=1)
    dx = max_pool2d_backward(jnp.ones((1, 2, 2, 1)), cache, window=2, stride=2, padding=1)
    np.testing.assert_array_equal(dx, np.ones((1, 2, 2, 1)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes_are_those_of_the_input(dtype):
    def both(forward, backward, x):
        out, cache = forward(x, window=3, stride=1, padding=1)
        return out, backward(out, cache, window=3, stride=1, padding=1)

    x = jnp.zeros((2, 5, 4, 3), dtype)
    for pair in ((max_pool2d_forward, max_pool2d_backward), (avg_pool2d_forward, avg_pool2d_backward)):
        assert {result.dtype for result in jax.eval_shape(lambda x, pair=pair: both(*pair, x), x)} == {x.dtype}


def test_one_byte_an_output_is_kept():
    x = jnp.zeros((2, 8, 8, 4), jnp.float32)
    out, cache = max_pool2d_forward(x)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(cache)) == out.size
    for window, dtype in (((2, 127), jnp.uint8), ((15, 17), jnp.uint16)):
        cache = jax.eval_shape(lambda x, window=window: max_pool2d_forward(x, window=window, padding=(9, 64))[1], x)
        assert cache.winner.dtype == dtype
    _, cache = avg_pool2d_forward(x)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(cache)) == 0


def test_the_index_is_stored_and_the_image_is_not_read_again():
    """What `optimization_barrier` does not do: the backward pass has the winners for its operand, not x."""

    @jax.jit
    def both(x, dout):
        out, cache = max_pool2d_forward(x)
        return out, max_pool2d_backward(dout, cache)

    x = jnp.zeros((8, 8, 8, 16), jnp.float32)
    text = both.lower(x, x[:, ::2, ::2]).compile().as_text()
    assert text is not None
    entry = text[text.index("ENTRY") :]
    readers = [line for line in entry.splitlines() if "(%x" in line or ", %x" in line]
    assert len([line for line in readers if "parameter(" not in line and "ENTRY" not in line]) == 1


@pytest.mark.parametrize("static", [{}, {"window": 3, "stride": 2, "padding": 1}])
def test_vmap_is_a_loop(static):
    x = jax.random.normal(jax.random.key(0), (3, 2, 6, 5, 2))

    def square(x):
        out, cache = max_pool2d_forward(x, **static)
        return max_pool2d_backward(out**2, cache, **static)

    np.testing.assert_array_equal(jax.jit(jax.vmap(square))(x)[1], square(x[1]))


def test_the_backward_pass_is_differentiable():
    x = jax.random.normal(jax.random.key(0), (2, 6, 5, 2))

    def sum_of_fourth_powers(x):
        out, cache = max_pool2d_forward(x)
        return jnp.sum(max_pool2d_backward(out**2, cache) ** 2)

    out, cache = max_pool2d_forward(x)
    slope = jax.jit(jax.grad(sum_of_fourth_powers))(x)
    np.testing.assert_allclose(slope, max_pool2d_backward(4 * out**3, cache), atol=1e-12)


@pytest.mark.parametrize(
    ("static", "message"),
    [
        ({"window": 9}, "max_pool2d: window (9, 9) with dilation (1, 1) spans (9, 9)"),
        ({"window": 0}, "max_pool2d: window is 0"),
        ({"stride": 0}, "max_pool2d: stride is 0"),
        ({"padding": -1}, "max_pool2d: padding is ((-1, -1), (-1, -1))"),
        ({"dilation": 0}, "max_pool2d: dilation is 0"),
    ],
)
def test_errors_name_the_argument(static, message):
    with pytest.raises(ValueError) as error:
        max_pool2d_forward(jnp.zeros((1, 4, 4, 1)), **static)
    assert message in str(error.value)
    with pytest.raises(ValueError, match=r"avg_pool2d: x has shape \(4, 4\); it must be \(N, H, W, C\)"):
        avg_pool2d_forward(jnp.zeros((4, 4)))
