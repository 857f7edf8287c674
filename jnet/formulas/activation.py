"""Elementwise activations: relu, leaky_relu, sigmoid, tanh."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jnet.formulas.precision import widen
from jnet.formulas.validate import require_float

__all__ = [
    "LeakyReluCache",
    "ReluCache",
    "SigmoidCache",
    "TanhCache",
    "leaky_relu_backward",
    "leaky_relu_forward",
    "relu_backward",
    "relu_forward",
    "sigmoid_backward",
    "sigmoid_forward",
    "tanh_backward",
    "tanh_forward",
]


class ReluCache(NamedTuple):
    """What the backward pass of `relu` needs: one bit of information an element."""

    positive: Array  # shape of x, bool


def relu_forward(x: Array) -> tuple[Array, ReluCache]:
    r"""Rectify: `max(x, 0)`, elementwise, any shape.

    **Forward.** $y = \max(x, 0)$.

    **Backward.** $y$ is the identity where $x > 0$ and constant where $x < 0$, so with $g = \partial L/\partial y$

    $$ \bar x = g \,[x > 0]. $$

    **Kept:** the mask $[x > 0]$, one byte an element where a copy of `x` takes four.

    **At the kink** $x = 0$ any slope in [0, 1] is a subgradient; jnet takes 0, as torch and the course do.
    (`jnp.maximum` has 1/2.) The gradient is selected, not multiplied: an infinite cotangent leaves 0 where the unit
    is off. NaN goes through forward.

    Reference: Nair & Hinton 2010, "Rectified linear units improve restricted Boltzmann machines".
    """
    require_float("relu", x=x)
    return jnp.maximum(x, jnp.zeros((), x.dtype)), ReluCache(x > 0)


def relu_backward(dout: Array, cache: ReluCache) -> Array:
    """Return `dx`: `dout` where the input was positive, 0 elsewhere."""
    return jnp.where(cache.positive, dout, jnp.zeros((), dout.dtype))


class LeakyReluCache(NamedTuple):
    """What the backward pass of `leaky_relu` needs."""

    positive: Array  # shape of x, bool


def leaky_relu_forward(x: Array, *, negative_slope: float = 0.01) -> tuple[Array, LeakyReluCache]:
    r"""Rectify, with a small slope below zero: `x` where `x > 0`, else `negative_slope * x`.

    **Forward.** $y = x$ where $x > 0$, else $y = \alpha x$.

    **Backward.** The slope is 1 or $\alpha$: $\bar x = g$ where $x > 0$, else $\alpha g$.

    **Kept:** the mask $[x > 0]$, one byte an element.

    **At the kink** $x = 0$ the slope is $\alpha$.

    Reference: Maas, Hannun & Ng 2013, "Rectifier nonlinearities improve neural network acoustic models".
    """
    require_float("leaky_relu", x=x)
    positive = x > 0
    return jnp.where(positive, x, negative_slope * x), LeakyReluCache(positive)


def leaky_relu_backward(dout: Array, cache: LeakyReluCache, *, negative_slope: float) -> Array:
    """Return `dx`: `dout` where the input was positive, `negative_slope * dout` elsewhere."""
    return jnp.where(cache.positive, dout, negative_slope * dout)


class SigmoidCache(NamedTuple):
    """What the backward pass of `sigmoid` needs: its output."""

    out: Array  # shape of x


def sigmoid_forward(x: Array) -> tuple[Array, SigmoidCache]:
    r"""Logistic function, `1 / (1 + exp(-x))`, elementwise; right at any finite or infinite x.

    **Forward.** $y = 1 / (1 + e^{-x})$. Far below zero the exponential overflows to infinity, and $1/\infty = 0$ is the
    right result; the other familiar form, $e^x / (1 + e^x)$, is the one that gives $\infty/\infty$ far above zero.

    **Backward.** Write $y = (1+e^{-x})^{-1}$:

    $$ \frac{dy}{dx} = \frac{e^{-x}}{(1+e^{-x})^2} = \frac{1}{1+e^{-x}} \cdot \frac{e^{-x}}{1+e^{-x}} = y\,(1-y),
       \qquad \bar x = g\, y\,(1 - y). $$

    **Kept:** the output, which the next layer keeps anyway; the input is not needed.

    Reference: Rumelhart, Hinton & Williams 1986, doi:10.1038/323533a0.
    """
    require_float("sigmoid", x=x)
    out = (1.0 / (1.0 + jnp.exp(-widen(x)))).astype(x.dtype)
    return out, SigmoidCache(out)


def sigmoid_backward(dout: Array, cache: SigmoidCache) -> Array:
    """Return `dx = dout * out * (1 - out)`."""
    out = widen(cache.out)
    return (widen(dout) * out * (1.0 - out)).astype(dout.dtype)


class TanhCache(NamedTuple):
    """What the backward pass of `tanh` needs: its output."""

    out: Array  # shape of x


def tanh_forward(x: Array) -> tuple[Array, TanhCache]:
    r"""Hyperbolic tangent, elementwise.

    **Forward.** $y = \tanh x = \sinh x / \cosh x$.

    **Backward.** By the quotient rule $dy/dx = (\cosh^2 x - \sinh^2 x)/\cosh^2 x = 1 - y^2$, so

    $$ \bar x = g\,(1 - y^2) = g\,(1 - y)(1 + y); $$

    the product form rounds less where $|y|$ is close to 1.

    **Kept:** the output, which the next layer keeps anyway.

    Reference: LeCun, Bottou, Orr & Müller 1998, "Efficient BackProp", section 4.4.
    """
    require_float("tanh", x=x)
    out = jnp.tanh(x)
    return out, TanhCache(out)


def tanh_backward(dout: Array, cache: TanhCache) -> Array:
    """Return `dx = dout * (1 - out) * (1 + out)`."""
    out = widen(cache.out)
    return (widen(dout) * (1.0 - out) * (1.0 + out)).astype(dout.dtype)
