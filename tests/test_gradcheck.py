"""The checker passes what is right, in every dtype, and says where and by how much anything else is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnet.gradcheck import GradientError, assert_vjp, check_pair, check_vjp, numerical_vjp

RNG = np.random.default_rng(7)
X, W = RNG.standard_normal((4, 3)), RNG.standard_normal((3, 2))


def rule(forward, backward):
    """A custom_vjp of `forward(*args)` with `backward(args, dout) -> cotangents`."""
    f = jax.custom_vjp(forward)
    f.defvjp(lambda *args: (forward(*args), args), backward)
    return f


def product(x, w):
    return x @ w


def product_backward(args, dout, scale=1.0):
    x, w = args
    return (dout @ w.T).astype(x.dtype), (scale * (x.T @ dout)).astype(w.dtype)


def traced(x):
    return isinstance(x, jax.core.Tracer)


def failed(report):
    """(check, dtype, argument) of every row that failed."""
    return {(row.check, row.dtype, row.argument) for row in report.failures}


def test_a_right_rule_passes_every_check_in_every_dtype():
    report = check_vjp(rule(product, product_backward), (X, W), reference=product)
    assert report.ok, report
    checks = {row.check for row in report.rows}
    assert checks == {"differences", "reference", "linearity", "cotangent", "second order", "jit"}
    assert {row.dtype for row in report.rows} == {"float64", "float32", "bfloat16", "float16"}
    report.raise_if_failed()


def test_a_tenth_of_a_percent_fails_in_float32_and_is_below_bfloat16():
    def wrong(args, dout):
        return product_backward(args, dout, scale=1.001)

    report = check_vjp(rule(product, wrong), (X, W), reference=product, second_order=False)
    assert {("reference", "float64", "w"), ("reference", "float32", "w")} <= failed(report)
    assert not any(dtype in ("bfloat16", "float16") or argument == "x" for _, dtype, argument in failed(report))


def test_the_report_says_which_entry_what_was_expected_and_what_was_got():
    def wrong(args, dout):
        dx, dw = product_backward(args, dout)
        return dx.at[2, 1].multiply(3.0), dw

    report = check_vjp(rule(product, wrong), (X, W), dtypes=("float64",), second_order=False)
    row = next(row for row in report.failures if row.check == "differences")
    assert (row.argument, row.shape, row.at) == ("x", (4, 3), (2, 1))
    assert row.got == pytest.approx(3 * row.expected)
    with pytest.raises(GradientError, match=r"x +\(4,3\) +\[2,1\]"):
        report.raise_if_failed()
    with pytest.raises(GradientError):
        assert_vjp(rule(product, wrong), (X, W), dtypes=("float64",), second_order=False)


def test_a_cotangent_of_another_dtype_fails():
    wide = rule(product, lambda args, dout: tuple(d.astype(jnp.float32) for d in product_backward(args, dout)))
    report = check_vjp(wide, (X, W), dtypes=("float32", "bfloat16"), second_order=False)
    assert failed(report) == {("cotangent", "bfloat16", "x"), ("cotangent", "bfloat16", "w")}
    assert "float32, must be bfloat16" in str(report)


def test_a_cotangent_of_another_shape_is_a_row_and_not_a_crash():
    flat = rule(product, lambda args, dout: (dout @ args[1].T, (args[0].T @ dout).reshape(-1)))
    report = check_vjp(flat, (X, W), dtypes=("float64",))
    assert not report.ok and "shape" in str(report)


@pytest.mark.parametrize(
    "bend", [lambda d: jnp.clip(d, -3, 3), lambda d: d + 1e-6, lambda d: d * jnp.abs(d)], ids=["clip", "add", "square"]
)
def test_a_rule_that_is_not_linear_in_the_cotangent_fails(bend):
    f = rule(product, lambda args, dout: product_backward(args, bend(dout)))
    assert ("linearity", "float64", "x") in failed(check_vjp(f, (X, W), dtypes=("float64",), second_order=False))


def test_a_rule_that_cannot_be_differentiated_fails_at_second_order_only():
    def detached(args, dout):
        return product_backward(jax.lax.stop_gradient(args), dout)

    report = check_vjp(rule(product, detached), (X, W), dtypes=("float64",))
    assert {check for check, _, _ in failed(report)} == {"second order"}
    assert check_vjp(rule(product, detached), (X, W), dtypes=("float64",), second_order=False).ok


def test_a_rule_that_depends_on_compilation_fails():
    f = rule(jnp.sin, lambda args, dout: (dout * jnp.cos(args[0]) * (1.0 + 1e-3 * traced(dout)),))
    report = check_vjp(f, (X,), dtypes=("float64",), second_order=False)
    assert ("jit", "float64", "x") in failed(report)


# Kinks


def relu(x):
    return jnp.where(x > 0, x, jnp.zeros((), x.dtype))


def relu_with(slope_at_zero):
    return rule(relu, lambda a, d: ((d * jnp.where(a[0] == 0, slope_at_zero, a[0] > 0).astype(d.dtype)),))


AT_ZERO = np.array([[0.0, 1e-7, -1e-7], [2.0, -3.0, 0.4]])


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0])
def test_kinks_are_reported_apart(slope):
    report = check_vjp(relu_with(slope), (AT_ZERO,))
    assert report.ok, report
    assert {kink.at for kink in report.kinks} == {(0, 0), (0, 1), (0, 2)}
    assert "3 entries at a kink" in str(report)


def test_a_gradient_beyond_both_sides_of_a_kink_fails():
    report = check_vjp(relu_with(2.0), (AT_ZERO,), dtypes=("float64",), second_order=False)
    assert {row.check for row in report.failures} == {"kink"} and report.failures[0].at == (0, 0)


def test_a_reference_states_the_convention_at_a_kink():
    assert check_vjp(relu_with(0.0), (AT_ZERO,), reference=relu).ok
    assert ("reference", "float32", "x") in failed(check_vjp(relu_with(1.0), (AT_ZERO,), reference=relu))


def test_strong_curvature_is_no_kink():
    report = check_vjp(lambda x: jnp.exp(40 * x), (np.linspace(-1, 1, 5),), dtypes=("float64",), second_order=False)
    assert report.ok and not report.kinks, report


def test_rounding_across_a_kink_in_a_narrow_dtype_is_no_error():
    """bfloat16 cannot tell 1 + x > 1 from 1 + x == 1 for a small x."""

    def f(x):
        return relu((x + 1.0) - 1.0)

    x = np.array([2.0**-10, 0.5, -0.5])
    for reference in (None, f):
        report = check_vjp(f, (x,), dtypes=("bfloat16",), reference=reference, second_order=False)
        assert report.ok, report
        assert [kink.at for kink in report.kinks] == [(0,)]


# Arguments of every kind


def test_arguments_by_name_pytrees_labels_keys_and_statics():
    def loss(params, y, key, *, power):
        noise = jax.random.normal(key, (3, 1), jnp.float32).astype(params["w"].dtype)
        scores = params["w"] * noise + params["b"].reshape(1, 2)
        return jnp.sum(scores[jnp.arange(3), y] ** power), {"aux": scores, "hits": y + 1}

    params = {"w": RNG.standard_normal((3, 2)), "b": RNG.standard_normal(2)}
    args = {"params": params, "y": np.array([0, 1, 1]), "key": jax.random.key(0)}
    report = check_vjp(loss, args, static={"power": 3})
    assert report.ok, report
    assert {row.argument for row in report.rows} >= {"params['b']", "params['w']"}


def test_larger_arguments_are_sampled_and_the_report_says_so():
    report = check_vjp(jnp.sin, (np.linspace(0, 1, 50),), dtypes=("float64",), limit=20)
    assert report.ok and "20 random entries of x's 50" in str(report)


def test_zero_size_arguments():
    assert check_vjp(lambda x: 2 * x, (np.zeros((0, 3)),)).ok


def test_works_without_x64_and_leaves_it_off():
    with jax.enable_x64(False):
        x = jnp.ones(3)
        assert check_vjp(jnp.tanh, (x,), dtypes=("float64", "float32")).ok
        assert numerical_vjp(jnp.tanh, (x,), x)[0].dtype == np.float64
        assert jnp.ones(1).dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_vjp(jnp.sin, (np.arange(3),)), "at least one floating-point array"),
        (lambda: check_vjp(lambda x: x > 0, (X,)), "must return at least one floating-point array"),
        (lambda: check_vjp(jnp.sin, (X,), dtypes=("float8",)), "dtypes must be some of"),
        (lambda: numerical_vjp(jnp.sin, (X,), X[0]), r"dout must have the shapes .*\(4, 3\).*\(3,\)"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_error_of_the_forward_pass_is_raised():
    with pytest.raises(TypeError, match="dot_general"):
        check_vjp(product, (X, X))


# numerical_vjp and NumPy


def loops(x, w):
    """A NumPy function that no tracer survives."""
    out = np.zeros((x.shape[0], w.shape[1]))
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = float(np.tanh(x[i] @ w[:, j]))
    return out


def test_numpy_and_jax_functions_have_the_same_differences():
    dout = RNG.standard_normal((4, 2))
    by_loop = numerical_vjp(loops, (X, W), dout)
    compiled = numerical_vjp(lambda x, w: jnp.tanh(x @ w), (X, W), dout)
    exact = jax.vjp(lambda x, w: jnp.tanh(x @ w), X, W)[1](dout)
    for a, b, c in zip(by_loop, compiled, exact, strict=True):
        np.testing.assert_allclose(a, c, atol=1e-9)
        np.testing.assert_allclose(b, c, atol=1e-9)


def test_numerical_vjp_keeps_the_structure_of_its_arguments():
    slopes = numerical_vjp(lambda p, y: p["a"] ** 2 * y, ({"a": X[0]}, np.arange(3)), np.ones(3))
    np.testing.assert_allclose(slopes[0]["a"], 2 * X[0] * np.arange(3), atol=1e-9)
    assert slopes[1] is None


def course_forward(x, w, settings):
    settings["seen"] = True
    return loops(x, w), (x, w, settings)


def course_backward(dout, cache):
    x, w, _ = cache
    slope = dout * (1 - np.tanh(x @ w) ** 2)
    return slope @ w.T, x.T @ slope


def test_check_pair_passes_a_right_pair():
    report = check_pair(course_forward, course_backward, (X, W, {"eps": 1e-5}))
    assert report.ok, report
    assert {row.argument for row in report.rows} == {"x", "w", ""}


@pytest.mark.parametrize(
    ("backward", "check"),
    [
        (lambda dout, cache: course_backward(dout, cache)[::-1], "gradients"),
        (lambda dout, cache: course_backward(dout, cache)[0], "gradients"),
        (lambda dout, cache: tuple(d.astype(np.float32) for d in course_backward(dout, cache)), "gradients"),
        (lambda dout, cache: tuple(1.0001 * d for d in course_backward(dout, cache)), "differences"),
        (lambda dout, cache: course_backward(dout, (cache[0].__imul__(2), *cache[1:])), "cache"),
        (lambda dout, cache: course_backward(np.multiply(dout, 2, out=dout), cache), "inputs"),
        (lambda dout, cache: 1 / 0, "backward"),
    ],
    ids=["swapped", "too few", "dtype", "factor", "cache changed", "dout changed", "raises"],
)
def test_check_pair_rejects(backward, check):
    report = check_pair(course_forward, backward, (X, W, {}))
    assert check in {row.check for row in report.failures}, report


def test_check_pair_takes_a_loss_and_jax_functions():
    forward = lambda x, y: (jnp.mean(jax.nn.logsumexp(x, 1) - x[jnp.arange(4), y]), jax.nn.softmax(x))  # noqa: E731
    y = np.array([0, 2, 1, 1])
    onehot = np.eye(3)[y]
    assert check_pair(forward, lambda dout, p: dout * (p - onehot) / 4, (X, y)).ok
    assert not check_pair(forward, lambda dout, p: dout * (p - onehot), (X, y)).ok
