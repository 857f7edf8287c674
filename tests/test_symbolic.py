"""Each derivation, checked by SymPy on a small case: the formula of its page, written out on symbols, is the gradient.

A derivation below takes symbols and returns the result of an op and its cotangents by the page's formula. Two things
are asked of it: that each cotangent is what SymPy gets by differentiating the result, and that the shipped pair
computes the same numbers. The pages of the book show these functions from here.
"""

import inspect
import random
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any, NamedTuple

import jax
import mpmath
import numpy as np
import pytest
import sympy

from jnet import custom_vjp

DIGITS = 40  # of the arithmetic at the points where a difference is not simplified to zero
ENTRIES = {entry.name: entry for entry in custom_vjp.CATALOGUE}


class Derivation(NamedTuple):
    op: str
    formula: Callable[..., Any]  # (g, *symbols, *fixed, **static) -> (out or outs, cotangents in order)
    shapes: Mapping[str, tuple[int, ...]]  # of the arguments that have a gradient
    fixed: Mapping[str, Any]  # labels, keys, masks
    static: Mapping[str, Any]


DERIVATIONS: list[Derivation] = []


def derivation(op: str, *, fixed: Mapping[str, Any] | None = None, static: Mapping[str, Any] | None = None, **shapes):
    """List a function as the derivation of an op, on arguments of these shapes."""

    def add(formula):
        DERIVATIONS.append(Derivation(op, formula, shapes, fixed or {}, static or {}))
        return formula

    return add


def elementwise(function):
    return np.vectorize(function, otypes=[object])


exp, log, tanh, sqrt = map(elementwise, (sympy.exp, sympy.log, sympy.tanh, sympy.sqrt))
is_positive = elementwise(lambda x: sympy.Piecewise((1, x > 0), (0, True)))
maximum = elementwise(sympy.Max)


# --8<-- [start:affine]
@derivation("affine", x=(2, 3), w=(3, 2), b=(2,))
def affine(g, x, w, b):
    y = x @ w + b
    return y, (g @ w.T, x.T @ g, g.sum(axis=0))


# --8<-- [end:affine]


# --8<-- [start:relu]
@derivation("relu", x=(6,))
def relu(g, x):
    return maximum(x, 0), (g * is_positive(x),)


# --8<-- [end:relu]


# --8<-- [start:leaky_relu]
@derivation("leaky_relu", x=(6,), static={"negative_slope": 0.25})
def leaky_relu(g, x, negative_slope):
    slope = is_positive(x) + negative_slope * (1 - is_positive(x))
    return maximum(x, 0) - negative_slope * maximum(-x, 0), (g * slope,)


# --8<-- [end:leaky_relu]


# --8<-- [start:sigmoid]
@derivation("sigmoid", x=(3,))
def sigmoid(g, x):
    y = 1 / (1 + exp(-x))
    return y, (g * y * (1 - y),)


# --8<-- [end:sigmoid]


# --8<-- [start:tanh]
@derivation("tanh", x=(3,))
def hyperbolic_tangent(g, x):
    y = (exp(x) - exp(-x)) / (exp(x) + exp(-x))
    return y, (g * (1 - y) * (1 + y),)


# --8<-- [end:tanh]


# --8<-- [start:batchnorm]
@derivation("batchnorm", x=(3, 2), gamma=(2,), beta=(2,), static={"eps": 0.25})
def batchnorm(g, x, gamma, beta, eps):
    g, mu, nu = g  # cotangents of the result, the mean and the variance
    size = len(x)
    m = x.sum(axis=0) / size
    v = ((x - m) ** 2).sum(axis=0) / size
    r = 1 / sqrt(v + eps)
    h = (x - m) * r
    n = gamma * g
    dx = r * (n - n.sum(axis=0) / size - h * (n * h).sum(axis=0) / size) + mu / size + 2 * (x - m) * nu / size
    return (gamma * h + beta, m, v), (dx, (g * h).sum(axis=0), g.sum(axis=0))


# --8<-- [end:batchnorm]


# --8<-- [start:batchnorm_inference]
@derivation("batchnorm_inference", x=(2, 2), gamma=(2,), beta=(2,), mean=(2,), var=(2,), static={"eps": 8.0})
def batchnorm_inference(g, x, gamma, beta, m, v, eps):
    r = 1 / sqrt(v + eps)
    h = (x - m) * r
    dgamma, dbeta = (g * h).sum(axis=0), g.sum(axis=0)
    return gamma * h + beta, (gamma * r * g, dgamma, dbeta, -gamma * r * dbeta, -gamma * r**2 * dgamma / 2)


# --8<-- [end:batchnorm_inference]


# --8<-- [start:layernorm]
@derivation("layernorm", x=(2, 3), gamma=(3,), beta=(3,), static={"eps": 0.25})
def layernorm(g, x, gamma, beta, eps):
    def mean(values):
        return values.sum(axis=1, keepdims=True) / values.shape[1]

    r = 1 / sqrt(mean((x - mean(x)) ** 2) + eps)
    h = (x - mean(x)) * r
    n = gamma * g
    return gamma * h + beta, (r * (n - mean(n) - h * mean(n * h)), (g * h).sum(axis=0), g.sum(axis=0))


# --8<-- [end:layernorm]


# --8<-- [start:groupnorm]
@derivation("groupnorm", x=(1, 2, 4), gamma=(4,), beta=(4,), static={"groups": 2, "eps": 0.25})
def groupnorm(g, x, gamma, beta, groups, eps):
    def mean(values):  # over the positions and over the channels of a group, spread to all of them again
        by_group = values.reshape(len(x), -1, groups, x.shape[-1] // groups)
        means = by_group.sum(axis=(1, 3), keepdims=True) / (by_group.shape[1] * by_group.shape[3])
        return (means + 0 * by_group).reshape(x.shape)

    r = 1 / sqrt(mean((x - mean(x)) ** 2) + eps)
    h = (x - mean(x)) * r
    n = gamma * g
    return gamma * h + beta, (r * (n - mean(n) - h * mean(n * h)), (g * h).sum(axis=(0, 1)), g.sum(axis=(0, 1)))


# --8<-- [end:groupnorm]


# --8<-- [start:dropout]
@derivation("dropout", x=(2, 3), fixed={"key": jax.random.key(0)}, static={"keep_prob": 0.5})
def dropout(g, x, key, keep_prob):
    mask = np.where(custom_vjp.dropout(np.ones(x.shape), key, float(keep_prob)) > 0, 1, 0)
    return x * mask / keep_prob, (g * mask / keep_prob,)


# --8<-- [end:dropout]


# --8<-- [start:conv2d]
@derivation("conv2d", x=(1, 3, 4, 2), w=(2, 2, 2, 2), b=(2,), static={"stride": 2, "padding": 1, "dilation": 2})
def conv2d(g, x, w, b, stride, padding, dilation):
    y, dx, dw = 0 * g + b, 0 * x, 0 * w
    for n, o, q, f, i, j, c in product(*map(range, (*g.shape, *w.shape[:3]))):
        row, column = stride * o + dilation * i - padding, stride * q + dilation * j - padding
        if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
            y[n, o, q, f] += x[n, row, column, c] * w[i, j, c, f]
            dw[i, j, c, f] += x[n, row, column, c] * g[n, o, q, f]
            dx[n, row, column, c] += g[n, o, q, f] * w[i, j, c, f]
    return y, (dx, dw, g.sum(axis=(0, 1, 2)))


# --8<-- [end:conv2d]


# --8<-- [start:max_pool2d]
@derivation("max_pool2d", x=(1, 3, 3, 1), static={"window": 2, "stride": 1})
def max_pool2d(g, x, window, stride):
    y, dx = 0 * g, 0 * x
    for n, o, q, c in product(*map(range, g.shape)):
        places = [(n, o * stride + i, q * stride + j, c) for i, j in product(range(window), repeat=2)]
        y[n, o, q, c] = sympy.Max(*(x[place] for place in places))
        for place in places:  # the winner is where nothing in the window is larger
            largest = sympy.And(*(x[place] >= x[other] for other in places if other != place))
            dx[place] += sympy.Piecewise((g[n, o, q, c], largest), (0, True))
    return y, (dx,)


# --8<-- [end:max_pool2d]


# --8<-- [start:avg_pool2d]
@derivation("avg_pool2d", x=(1, 3, 4, 1), static={"window": 2, "stride": 1})
def avg_pool2d(g, x, window, stride):
    y, dx = 0 * g, 0 * x
    for n, o, q, c in product(*map(range, g.shape)):
        rows, columns = slice(o * stride, o * stride + window), slice(q * stride, q * stride + window)
        y[n, o, q, c] = x[n, rows, columns, c].sum() / window**2
        dx[n, rows, columns, c] += g[n, o, q, c] / window**2
    return y, (dx,)


# --8<-- [end:avg_pool2d]


# --8<-- [start:softmax_cross_entropy]
@derivation("softmax_cross_entropy", logits=(2, 3), fixed={"labels": np.array([2, 0])})
def softmax_cross_entropy(g, s, labels):
    rows = np.arange(len(s))
    p = exp(s) / exp(s).sum(axis=1, keepdims=True)
    loss = -log(p[rows, labels]).sum() / len(s)
    dlogits = p.copy()
    dlogits[rows, labels] = -(p.sum(axis=1) - p[rows, labels])  # minus the sum of the others
    return np.array(loss), (g * dlogits / len(s),)


# --8<-- [end:softmax_cross_entropy]


# --8<-- [start:svm_loss]
@derivation("svm_loss", scores=(2, 4), fixed={"labels": np.array([3, 1])}, static={"margin": 1.0})
def svm_loss(g, s, labels, margin):
    rows = np.arange(len(s))
    excess = s - s[rows, labels][:, None] + margin
    excess[rows, labels] = 0 * g
    loss = maximum(excess, 0).sum() / len(s)
    violated = is_positive(excess)
    violated[rows, labels] = -violated.sum(axis=1)
    return np.array(loss), (g * violated / len(s),)


# --8<-- [end:svm_loss]


# --8<-- [start:rnn_step]
@derivation("rnn_step", x=(2, 2), h=(2, 2), wx=(2, 2), wh=(2, 2), b=(2,))
def rnn_step(g, x, h, wx, wh, b):
    y = tanh(x @ wx + h @ wh + b)
    da = g * (1 - y) * (1 + y)
    return y, (da @ wx.T, da @ wh.T, x.T @ da, h.T @ da, da.sum(axis=0))


# --8<-- [end:rnn_step]


# --8<-- [start:rnn]
@derivation("rnn", x=(1, 2, 1), h0=(1, 1), wx=(1, 1), wh=(1, 1), b=(1,))
def rnn(g, x, h0, wx, wh, b):
    states, da = [h0], []
    for t in range(x.shape[1]):
        states.append(tanh(x[:, t] @ wx + states[t] @ wh + b))
    dh = 0 * h0
    for t in reversed(range(x.shape[1])):
        da.insert(0, (g[:, t] + dh) * (1 - states[t + 1]) * (1 + states[t + 1]))
        dh = da[0] @ wh.T
    dx = np.stack([a @ wx.T for a in da], axis=1)
    dwx = sum(x[:, t].T @ da[t] for t in range(len(da)))
    dwh = sum(states[t].T @ da[t] for t in range(len(da)))
    return np.stack(states[1:], axis=1), (dx, dh, dwx, dwh, sum(a.sum(axis=0) for a in da))


# --8<-- [end:rnn]


# --8<-- [start:lstm_step]
def lstm_cell(a, c):
    i, f, o, k = np.split(a, 4, axis=1)
    i, f, o, k = 1 / (1 + exp(-i)), 1 / (1 + exp(-f)), 1 / (1 + exp(-o)), tanh(k)
    c = f * c + i * k
    return o * tanh(c), c, (i, f, o, k)


def lstm_cell_backward(p, q, c, next_c, gates):
    i, f, o, k = gates
    t = tanh(next_c)
    dc = q + p * o * (1 - t**2)
    da = dc * k * i * (1 - i), dc * c * f * (1 - f), p * t * o * (1 - o), dc * i * (1 - k**2)
    return np.concatenate(da, axis=1), dc * f


@derivation("lstm_step", x=(1, 1), h=(1, 1), c=(1, 1), wx=(1, 4), wh=(1, 4), b=(4,))
def lstm_step(g, x, h, c, wx, wh, b):
    next_h, next_c, gates = lstm_cell(x @ wx + h @ wh + b, c)
    da, dc = lstm_cell_backward(*g, c, next_c, gates)
    return (next_h, next_c), (da @ wx.T, da @ wh.T, dc, x.T @ da, h.T @ da, da.sum(axis=0))


# --8<-- [end:lstm_step]


# --8<-- [start:lstm]
@derivation("lstm", x=(1, 2, 1), h0=(1, 1), c0=(1, 1), wx=(1, 4), wh=(1, 4), b=(4,))
def lstm(g, x, h0, c0, wx, wh, b):
    g, dc = g  # cotangents of all states and of the last cell
    h, c, gates, da = [h0], [c0], [], []
    for t in range(x.shape[1]):
        new = lstm_cell(x[:, t] @ wx + h[t] @ wh + b, c[t])
        for kept, value in zip((h, c, gates), new, strict=True):
            kept.append(value)
    dh = 0 * h0
    for t in reversed(range(x.shape[1])):
        a, dc = lstm_cell_backward(g[:, t] + dh, dc, c[t], c[t + 1], gates[t])
        dh = a @ wh.T
        da.insert(0, a)
    dx = np.stack([a @ wx.T for a in da], axis=1)
    dwx = sum(x[:, t].T @ da[t] for t in range(len(da)))
    dwh = sum(h[t].T @ da[t] for t in range(len(da)))
    return (np.stack(h[1:], axis=1), c[-1]), (dx, dh, dc, dwx, dwh, sum(a.sum(axis=0) for a in da))


# --8<-- [end:lstm]


# --8<-- [start:word_embedding]
@derivation("word_embedding", fixed={"ids": np.array([[0, 2], [2, 1]])}, w=(4, 2))
def word_embedding(g, w, ids):
    dw = 0 * w
    for place in np.ndindex(ids.shape):
        dw[ids[place]] += g[place]
    return w[ids], (dw,)


# --8<-- [end:word_embedding]


# --8<-- [start:temporal_affine]
@derivation("temporal_affine", x=(2, 2, 2), w=(2, 2), b=(2,))
def temporal_affine(g, x, w, b):
    return x @ w + b, (g @ w.T, sum(a.T @ d for a, d in zip(x, g, strict=True)), g.sum(axis=(0, 1)))


# --8<-- [end:temporal_affine]


# --8<-- [start:temporal_softmax_loss]
@derivation(
    "temporal_softmax_loss",
    logits=(2, 2, 2),
    fixed={"labels": np.array([[1, 0], [0, 0]]), "mask": np.array([[True, True], [True, False]])},
)
def temporal_softmax_loss(g, s, labels, mask):
    p = exp(s) / exp(s).sum(axis=2, keepdims=True)
    is_label = np.where(labels[:, :, None] == np.arange(s.shape[2]), 1, 0)
    weight = np.where(mask, 1, 0)
    loss = -(log((p * is_label).sum(axis=2)) * weight).sum() / len(s)
    return np.array(loss), (g * (p - is_label) * weight[:, :, None] / len(s),)


# --8<-- [end:temporal_softmax_loss]


# --8<-- [start:fused]
@derivation("bias_relu", x=(2, 2), b=(2,))
def bias_relu(g, x, b):
    y, (dx,) = relu(g, x + b)
    return y, (dx, dx.sum(axis=0))


@derivation("affine_relu", x=(2, 2), w=(2, 2), b=(2,))
def affine_relu(g, x, w, b):
    y, (dz,) = relu(g, x @ w + b)
    return y, affine(dz, x, w, b)[1]


@derivation("bias_relu_max_pool2d", x=(1, 3, 2, 1), b=(1,), static={"window": 2, "stride": 1})
def bias_relu_max_pool2d(g, x, b, window, stride):
    y, (dy,) = relu(g, max_pool2d(g, x, window, stride)[0] + b)  # the pool first
    return y, (max_pool2d(dy, x, window, stride)[1][0], dy.sum(axis=(0, 1, 2)))


@derivation("batchnorm_relu", x=(3, 2), gamma=(2,), beta=(2,), static={"eps": 0.25})
def batchnorm_relu(g, x, gamma, beta, eps):
    (z, m, v), _ = batchnorm(g, x, gamma, beta, eps)
    y, (dz,) = relu(g[0], z)
    return (y, m, v), batchnorm((dz, *g[1:]), x, gamma, beta, eps)[1]


@derivation("batchnorm_add_relu", x=(3, 1), gamma=(1,), beta=(1,), shortcut=(3, 1), static={"eps": 0.25})
def batchnorm_add_relu(g, x, gamma, beta, shortcut, eps):
    (z, m, v), _ = batchnorm(g, x, gamma, beta, eps)
    y, (dz,) = relu(g[0], z + shortcut)
    return (y, m, v), (*batchnorm((dz, *g[1:]), x, gamma, beta, eps)[1], dz)


@derivation(
    "batchnorm_relu_max_pool2d",
    x=(1, 2, 3, 1),
    gamma=(1,),
    beta=(1,),
    static={"eps": 0.25, "window": 2, "stride": 1},
)
def batchnorm_relu_max_pool2d(g, x, gamma, beta, eps, window, stride):
    rows = x.reshape(-1, x.shape[-1])
    (z, m, v), _ = batchnorm((0 * rows, *g[1:]), rows, gamma, beta, eps)
    largest, _ = max_pool2d(g[0], z.reshape(x.shape), window, stride)
    y, (dy,) = relu(g[0], largest)
    _, (dz,) = max_pool2d(dy, z.reshape(x.shape), window, stride)
    dx, dgamma, dbeta = batchnorm((dz.reshape(rows.shape), *g[1:]), rows, gamma, beta, eps)[1]
    return (y, m, v), (dx.reshape(x.shape), dgamma, dbeta)


@derivation(
    "batchnorm_relu_conv2d",
    x=(1, 2, 2, 1),
    gamma=(1,),
    beta=(1,),
    w=(2, 1, 1, 1),
    b=(1,),
    static={"eps": 0.25, "stride": 1, "padding": 0, "dilation": 1},
)
def batchnorm_relu_conv2d(g, x, gamma, beta, w, b, eps, stride, padding, dilation):
    rows = x.reshape(-1, x.shape[-1])
    (z, m, v), _ = batchnorm((0 * rows, *g[1:]), rows, gamma, beta, eps)
    a, _ = relu(z, z)
    y, (da, dw, db) = conv2d(g[0], a.reshape(x.shape), w, b, stride, padding, dilation)
    _, (dz,) = relu(da.reshape(rows.shape), z)
    dx, dgamma, dbeta = batchnorm((dz, *g[1:]), rows, gamma, beta, eps)[1]
    return (y, m, v), (dx.reshape(x.shape), dgamma, dbeta, dw, db)


# --8<-- [end:fused]


def symbols(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of real symbols."""
    places = [sympy.Symbol("_".join([name, *map(str, index)]), real=True) for index in np.ndindex(shape)]
    return np.array(places, object).reshape(shape)


def leaves(tree) -> list[np.ndarray]:
    return [np.asarray(leaf, object) for leaf in (tree if isinstance(tree, tuple) else (tree,))]


def written_out(case: Derivation):
    """The arguments, the cotangents of the results, the results and the formula's gradients, all as symbols."""
    args = {name: symbols(name, shape) for name, shape in case.shapes.items()}
    exact = {name: sympy.Rational(v) if isinstance(v, float) else v for name, v in case.static.items()}
    shipped = {name: np.zeros(shape) for name, shape in case.shapes.items()}
    out = jax.eval_shape(lambda **arrays: ENTRIES[case.op].forward(**arrays, **case.fixed, **case.static)[0], **shipped)
    if isinstance(out, tuple):
        g = tuple(symbols(f"g{number}", leaf.shape) for number, leaf in enumerate(out))
    else:
        g = symbols("g", out.shape)
    results, gradients = case.formula(g, *args.values(), **case.fixed, **exact)
    return args, g, leaves(results), dict(zip(args, leaves(gradients), strict=True))


def random_point(seed: int, count: int) -> list[sympy.Rational]:
    """Distinct rational numbers of both signs, so that no comparison is undecided."""
    return [sympy.Rational(n, 53) for n in random.Random(seed).sample([n for n in range(-97, 98) if n], count)]


def evaluate(expressions, everything, point) -> list[mpmath.mpf]:
    """The expressions with 40 digits, at a point for the symbols in `everything`."""
    step = {"Heaviside": lambda x, at_zero=None: int(x > 0)}
    function = sympy.lambdify(everything, expressions, [step, "mpmath"], cse=True)
    with mpmath.workdps(DIGITS):
        return function(*(mpmath.mpf(number.p) / number.q for number in point))


every_derivation = pytest.mark.parametrize("case", DERIVATIONS, ids=lambda case: case.op)


@every_derivation
def test_the_formula_is_the_symbolic_gradient(case):
    args, g, results, gradients = written_out(case)
    loss = sum(np.sum(d * y) for d, y in zip(leaves(g), results, strict=True))
    everything = [symbol for array in (*args.values(), *leaves(g)) for symbol in array.flat]
    differences = []
    for name, array in args.items():
        assert gradients[name].shape == array.shape, name
        pairs = zip(array.flat, gradients[name].flat, strict=True)
        differences += [sympy.diff(loss, symbol) - gradient for symbol, gradient in pairs]
    if all(difference.is_polynomial() for difference in differences):
        assert all(sympy.expand(difference) == 0 for difference in differences)
        return
    for seed in (0, 1):
        errors = evaluate(differences, everything, random_point(seed, len(everything)))
        assert max(map(abs, errors)) < 10.0 ** (8 - DIGITS)


@every_derivation
def test_the_shipped_pair_computes_the_formula(case):
    args, g, results, gradients = written_out(case)
    everything = [symbol for array in (*args.values(), *leaves(g)) for symbol in array.flat]
    point = random_point(2, len(everything))
    at_point = dict(zip(everything, map(float, point), strict=True))

    def numbers(array):
        return np.array([at_point[symbol] for symbol in array.flat]).reshape(array.shape)

    entry = ENTRIES[case.op]
    needed = {
        name: value for name, value in case.static.items() if name in inspect.signature(entry.backward).parameters
    }

    @jax.jit
    def pair(arrays, g):
        out, cache = entry.forward(**arrays, **case.fixed, **case.static)
        return out, entry.backward(g, cache, **needed)

    out, got = pair({name: numbers(array) for name, array in args.items()}, jax.tree.map(numbers, g))
    expressions = [e for array in (*results, *gradients.values()) for e in array.flat]
    shipped = np.concatenate([np.ravel(np.asarray(leaf, float)) for leaf in (*leaves(out), *leaves(got))])
    np.testing.assert_allclose(
        shipped, np.array(evaluate(expressions, everything, point), float), rtol=1e-12, atol=1e-13
    )


def test_every_op_has_a_derivation():
    assert {case.op for case in DERIVATIONS} == set(ENTRIES)
