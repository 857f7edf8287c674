"""Products and convolutions by oneDNN: against float64, and that the plain form is taken wherever it must be."""

from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax

from jnet import custom_vjp, reference
from jnet.formulas import onednn
from jnet.formulas.windows import geometry

pytestmark = pytest.mark.skipif(
    not onednn.available(jnp.float32), reason="oneDNN is not to be had here: another processor or version of jaxlib"
)

SHAPES = {  # of a and b
    (False, False): ((7, 5), (5, 9)),
    (True, False): ((5, 7), (5, 9)),
    (False, True): ((7, 5), (9, 5)),
    (True, True): ((5, 7), (9, 5)),
}


@pytest.fixture(autouse=True)
def no_product_is_tiny(monkeypatch):
    monkeypatch.setattr(onednn, "TINY", 0)


def normal(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def assert_close(got, want, tolerance=2e-6):
    assert got.dtype == jnp.float32 and got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * float(np.max(np.abs(want), initial=1e-30)))


def product64(a, b, transpose_a, transpose_b):
    a, b = (np.swapaxes(np.asarray(v, np.float64), -1, -2) if t else np.asarray(v, np.float64)
            for v, t in ((a, transpose_a), (b, transpose_b)))  # fmt: skip
    return a @ b


def uses_onednn(function, *args):
    fresh = jax.jit(lambda *args: function(*args))  # a function that was traced before is not traced again
    return "onednn$" in fresh.lower(*args).as_text()


@pytest.mark.parametrize("stack", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("transposed", SHAPES, ids=str)
def test_products(transposed, stack):
    a, b = normal(0, *((*stack, *shape) for shape in SHAPES[transposed]))
    matmul = partial(onednn.matmul, transpose_a=transposed[0], transpose_b=transposed[1])
    assert uses_onednn(matmul, a, b)
    for got in (matmul(a, b), jax.jit(matmul)(a, b)):
        assert_close(got, product64(a, b, *transposed))


@st.composite
def convolutions(draw):
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels, filters = (groups * draw(st.integers(1, 20)) for _ in range(2))
    window, size = draw(st.tuples(*[st.integers(1, 7)] * 2)), draw(st.tuples(*[st.integers(1, 18)] * 2))
    stride, dilation = (draw(st.tuples(*[st.integers(1, 3)] * 2)) for _ in range(2))
    sides = st.tuples(st.integers(0, 7), st.integers(0, 7))
    try:
        where = geometry("conv2d", size, window, stride, draw(st.tuples(sides, sides)), dilation)
    except ValueError:
        assume(False)
    return (draw(st.integers(1, 3)), *size, channels), (*window, channels // groups, filters), where, groups


@settings(max_examples=60, deadline=None, derandomize=True)
@given(convolutions())
def test_convolutions(case):
    x_shape, w_shape, where, groups = case
    x, w = normal(1, x_shape, w_shape)
    want = lax.conv_general_dilated(
        x.astype(jnp.float64), w.astype(jnp.float64), where.stride, where.padding,
        rhs_dilation=where.dilation, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
    )  # fmt: skip
    assert_close(onednn.convolution(x, w, where, groups), want, 5e-6)


def test_padding_of_a_whole_window_or_of_less_than_nothing_is_left_to_xla():
    x, w = normal(2, (1, 6, 6, 2), (3, 3, 2, 4))
    where = geometry("conv2d", (6, 6), 3, 1, 1)
    assert uses_onednn(lambda x, w: onednn.convolution(x, w, where, 1), x, w)
    for sides, out in (((3, 0), 7), ((-1, 1), 4)):
        odd = where._replace(padding=(sides, (1, 1)), out=(out, 6))
        assert not uses_onednn(lambda x, w, odd=odd: onednn.convolution(x, w, odd, 1), x, w)


def test_where_the_plain_form_is_taken(monkeypatch):
    a, b = normal(3, (4, 5), (5, 6))
    assert uses_onednn(onednn.matmul, a, b)
    assert not uses_onednn(onednn.matmul, a.astype(jnp.float64), b.astype(jnp.float64))
    assert not uses_onednn(onednn.matmul, a.astype(jnp.bfloat16), b.astype(jnp.bfloat16))
    assert not uses_onednn(onednn.matmul, a[:0], b)
    exported = jax.export.export(jax.jit(onednn.matmul), platforms=("cpu", "cuda"))(a, b)
    assert "onednn$" not in exported.mlir_module()
    assert_close(exported.call(a, b), product64(a, b, False, False))
    monkeypatch.setattr(onednn, "TESTED", ("0.0.1",))
    assert not uses_onednn(onednn.matmul, a, b)
    monkeypatch.undo()
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert not uses_onednn(onednn.matmul, a, b)


def test_bfloat16_sums_in_float32():
    a, b = jnp.ones((1, 4096), jnp.bfloat16), jnp.ones((4096, 1), jnp.bfloat16)
    assert onednn.matmul(a, b).dtype == jnp.float32 and onednn.matmul(a, b).item() == 4096


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 1)], ids=str)
def test_vmap(axes):
    a, b = normal(4, *[(3, 4, 5) if axis is not None else (4, 5) for axis in axes])
    if axes[1] == 1:
        b = b.swapaxes(0, 1)
    matmul = partial(onednn.matmul, transpose_b=True)
    want = jax.vmap(lambda a, b: a @ b.T, axes)(a.astype(jnp.float64), b.astype(jnp.float64))
    assert_close(jax.jit(jax.vmap(matmul, axes))(a, b), want)


def test_derivatives_of_every_order_and_mode():
    x, w = normal(5, (2, 4, 4, 2), (2, 2, 2, 3))
    where = geometry("conv2d", (4, 4), 2)

    def energy(x, w):
        return jnp.sum(onednn.convolution(x, w, where, 1) ** 2)

    def energy64(x, w):
        x, w = x.astype(jnp.float64), w.astype(jnp.float64)
        return jnp.sum(lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")) ** 2)

    for derivative in (jax.grad, jax.jacfwd, lambda f: jax.jacrev(jax.jacrev(f))):
        assert_close(derivative(energy)(x, w), derivative(energy64)(x, w))


def test_many_at_once_in_a_loop():
    """A loop of calls that wait for each other, run again and again: the threads neither stop nor mix."""
    a, b = normal(6, (8, 33, 17), (17, 17))

    @jax.jit
    def powers(a, b):
        return lax.scan(lambda v, _: (jnp.tanh(onednn.matmul(v, jnp.broadcast_to(b, (8, 17, 17)))), None), a, None, 50)[
            0
        ]

    first = powers(a, b)
    for _ in range(20):
        np.testing.assert_array_equal(powers(a, b), first)


@pytest.mark.parametrize("varying", ["a", "b"])
def test_shard_map_on_one_device(varying):
    """The result varies where either operand does."""
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec, whole = jax.P("d"), jax.P()
    a, b = normal(7, (4, 5), (5, 6))
    specs = (spec, whole) if varying == "a" else (whole, spec)
    product = jax.shard_map(onednn.matmul, mesh=mesh, in_specs=specs, out_specs=spec)
    assert_close(jax.jit(product)(a, b), product64(a, b, False, False))


def test_what_is_left_to_xla(monkeypatch):
    a, b = normal(8, (4, 5), (5, 6))
    monkeypatch.setattr(onednn, "LARGE", 30)
    assert not uses_onednn(onednn.matmul, a, b)
    assert_close(onednn.matmul(a, b), product64(a, b, False, False))
    assert uses_onednn(partial(onednn.matmul, transpose_b=True), a, b.T)
    assert uses_onednn(onednn.matmul, a, b[:, :5])
    monkeypatch.setattr(onednn, "TINY", 5)
    assert not uses_onednn(onednn.matmul, a[:, :4], b[:4, :5])
    assert uses_onednn(onednn.matmul, a[:, :4], b[:4])
    monkeypatch.setattr(onednn, "TINY", 0)
    monkeypatch.setattr(onednn, "LONG", 4)
    monkeypatch.setattr(onednn, "FEW", 121)
    assert not uses_onednn(partial(onednn.matmul, transpose_b=True), a, b.T)
    assert uses_onednn(partial(onednn.matmul, transpose_b=True), a[:3], b.T)
    assert uses_onednn(onednn.matmul, a[None], b[None])


def test_affine():
    """The products that the layers ask for: their contracts have tiny ones, which are XLA's."""
    x, w, b, g = normal(9, (7, 5), (5, 9), (9,), (7, 9))

    def both(op):
        return jax.jit(lambda x, w, b, g: (lambda out, pull: (out, *pull(g)))(*jax.vjp(op, x, w, b)))

    by_hand = both(custom_vjp.affine)
    assert by_hand.lower(x, w, b, g).as_text().count("onednn$") == 3
    for got, want in zip(by_hand(x, w, b, g), both(reference.affine)(x, w, b, g), strict=True):
        assert_close(got, want)
