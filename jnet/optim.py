r"""Optimizers and learning-rate schedules, in the `(init, update)` protocol that JAX users know.

An `Optimizer` is a pair of pure functions. `init(params)` makes the state, a pytree of arrays; `update(grads, state,
params)` returns what must be *added* to the parameters, and the next state. Nothing lives anywhere else, so a step can
be jitted, scanned, vmapped, donated and checkpointed:

>>> optimizer = adam(cosine_schedule(1e-3, steps=1000, warmup_steps=100))
>>> params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
>>> state = optimizer.init(params)
>>> grads = jax.tree.map(jnp.ones_like, params)
>>> updates, state = optimizer.update(grads, state, params)
>>> params = apply_updates(params, updates)

The named optimizers are chains of blocks; each block carries its own mathematics. Throughout, $g$ is the gradient,
$\eta_t$ the learning rate and $t$ counts from 1; a schedule is asked for `step = t - 1`, so first for 0. Updates have
the gradient's dtype. What is carried from step to step is kept in float32 or wider: bfloat16 cannot hold a slow
average.
"""

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

PyTree: TypeAlias = Any  # of arrays: parameters, gradients, updates and states
Schedule: TypeAlias = Callable[[Any], Any]  # step, counted from 0 -> learning rate
Mask: TypeAlias = PyTree | Callable[[PyTree], PyTree]  # booleans in the structure of the parameters


class Optimizer(NamedTuple):
    """A pair of pure functions; so is every block that optimizers are chained from."""

    init: Callable[[PyTree], PyTree]  # params -> state
    update: Callable[..., tuple[PyTree, PyTree]]  # (grads, state, params=None) -> (updates, state)


def apply_updates(params: PyTree, updates: PyTree) -> PyTree:
    """Add `updates` to `params`, leaf by leaf; each sum has its parameter's dtype."""

    def add(p, u):
        wide = _wide(p, u)
        return (_cast(p, wide) + _cast(u, wide)).astype(jnp.result_type(p))

    return jax.tree.map(add, params, updates)


def chain(*blocks: Optimizer) -> Optimizer:
    """Apply `blocks` one after the other, each to the updates of the one before it.

    The state is the tuple of their states. Optax's transformations are blocks too.
    """

    def init(params):
        return tuple(block.init(params) for block in blocks)

    def update(grads, state, params=None):
        states = []
        for block, block_state in zip(blocks, state, strict=True):
            grads, block_state = block.update(grads, block_state, params)
            states.append(block_state)
        return grads, tuple(states)

    return Optimizer(init, update)


# --- The optimizers ---------------------------------------------------------------------------------------------------


def sgd(learning_rate: float | Schedule) -> Optimizer:
    r"""Gradient descent, $w \leftarrow w - \eta_t g$ (Robbins & Monro 1951)."""
    return scale_by_learning_rate(learning_rate)


def sgd_momentum(learning_rate: float | Schedule, momentum: float = 0.9, nesterov: bool = False) -> Optimizer:
    r"""Gradient descent with a velocity: $v \leftarrow \mu v - \eta_t g$, $w \leftarrow w + v$; see `velocity`.

    The rate stands *inside* the velocity. Under a schedule this differs from optimizers that average bare gradients and
    multiply by $\eta_t$ last: here a lower rate does not slow down the motion that is already there.
    """
    return chain(scale_by_learning_rate(learning_rate), velocity(momentum, nesterov))


def rmsprop(learning_rate: float | Schedule, decay_rate: float = 0.99, eps: float = 1e-8) -> Optimizer:
    r"""$w \leftarrow w - \eta_t\, g / (\sqrt{s} + \epsilon)$ with $s$ a moving average of $g^2$; see `scale_by_rms`."""
    return chain(scale_by_rms(decay_rate, eps), scale_by_learning_rate(learning_rate))


def adam(learning_rate: float | Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Optimizer:
    r"""$w \leftarrow w - \eta_t\, \hat m / (\sqrt{\hat s} + \epsilon)$; see `scale_by_adam`."""
    return chain(scale_by_adam(b1, b2, eps), scale_by_learning_rate(learning_rate))


def adamw(
    learning_rate: float | Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    mask: Mask | None = None,
) -> Optimizer:
    r"""Adam with decoupled weight decay, $w \leftarrow w - \eta_t(\hat m / (\sqrt{\hat s} + \epsilon) + \lambda w)$.

    The decay joins after the moments, so it is not divided by $\sqrt{\hat s}$ as L2 regularisation would be. `mask` as
    in `add_decayed_weights`. Reference: Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2.
    """
    decay = add_decayed_weights(weight_decay, mask)
    return chain(scale_by_adam(b1, b2, eps), decay, scale_by_learning_rate(learning_rate))


# --- Their blocks -----------------------------------------------------------------------------------------------------


class LearningRateState(NamedTuple):
    """How often the schedule was asked."""

    step: Array  # () int32: an array, so that counting never recompiles


def scale_by_learning_rate(learning_rate: float | Schedule) -> Optimizer:
    r"""Multiply by $-\eta_t$. `learning_rate` is a number or a schedule `step -> rate`, first asked for step 0."""
    schedule = learning_rate if callable(learning_rate) else constant_schedule(learning_rate)

    def init(params):
        del params
        return LearningRateState(_zero_steps())

    def update(grads, state, params=None):
        del params
        rate = jnp.asarray(schedule(state.step))

        def scale(g):
            return (-rate.astype(_wide(g)) * _cast(g, _wide(g))).astype(jnp.result_type(g))

        return jax.tree.map(scale, grads), LearningRateState(state.step + 1)

    return Optimizer(init, update)


class VelocityState(NamedTuple):
    """The running velocity."""

    velocity: PyTree  # like params, float32 or wider


def velocity(momentum: float = 0.9, nesterov: bool = False) -> Optimizer:
    r"""Give the incoming step $u$ a momentum: $v \leftarrow \mu v + u$ from $v = 0$; the update is $v$.

    In `sgd_momentum`, $u = -\eta_t g$. Nesterov's form takes the gradient where the momentum is about to carry the
    parameters, at $w' = w + \mu v$. Those are the parameters that the network sees, so the update is written for them:
    $w'_{t+1} - w'_t = (w_{t+1} - w_t) + \mu v_{t+1} - \mu v_t = v_{t+1} + \mu v_{t+1} - (v_{t+1} - u) = \mu v_{t+1} +
    u$.

    Reference: Sutskever, Martens, Dahl & Hinton 2013, "On the importance of initialization and momentum in deep
    learning", equations 1-4.
    """
    _check("momentum", momentum, _FRACTION)

    def init(params):
        return VelocityState(_zeros(params))

    def update(grads, state, params=None):
        del params
        new = jax.tree.map(lambda v, u: momentum * v + _cast(u, v.dtype), state.velocity, grads)

        def step(v, u):
            return (momentum * v + _cast(u, v.dtype) if nesterov else v).astype(jnp.result_type(u))

        return jax.tree.map(step, new, grads), VelocityState(new)

    return Optimizer(init, update)


class RmsState(NamedTuple):
    """The moving average of the squared gradient."""

    square: PyTree  # like params, float32 or wider


def scale_by_rms(decay_rate: float = 0.99, eps: float = 1e-8) -> Optimizer:
    r"""Divide the gradient by its running root mean square.

    $s \leftarrow \rho s + (1 - \rho) g^2$ from $s = 0$; the update is $g / (\sqrt{s} + \epsilon)$, $\epsilon$ outside
    the root. $s$ is not corrected for its start at zero: the first step has length $\eta /
    \sqrt{1 - \rho}$. Reference: Hinton, Srivastava & Swersky 2012, "Neural networks for machine learning", lecture 6e.
    """
    _check("decay_rate", decay_rate, _FRACTION)
    _check("eps", eps, _POSITIVE)

    def init(params):
        return RmsState(_zeros(params))

    def update(grads, state, params=None):
        del params
        square = jax.tree.map(lambda s, g: _average(decay_rate, s, _cast(g, s.dtype) ** 2), state.square, grads)

        def scale(s, g):
            return (_cast(g, s.dtype) / (jnp.sqrt(s) + eps)).astype(jnp.result_type(g))

        return jax.tree.map(scale, square, grads), RmsState(square)

    return Optimizer(init, update)


class AdamState(NamedTuple):
    """Adam's moments and the count that corrects them."""

    step: Array  # () int32: an array, so that counting never recompiles
    mean: PyTree  # like params, float32 or wider
    square: PyTree  # like params, float32 or wider


def scale_by_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Optimizer:
    r"""Divide the gradient's running mean by its running root mean square, both corrected for their start.

    $m \leftarrow \beta_1 m + (1 - \beta_1) g$ and $s \leftarrow \beta_2 s + (1 - \beta_2) g^2$, both from 0.
    The start at zero makes both too small by $1 - \beta^t$, since $\sum_{i \le t} (1-\beta)\beta^{t-i} = 1 - \beta^t$.
    Hence $\hat m = m / (1 - \beta_1^t)$, $\hat s = s / (1 - \beta_2^t)$ and the update $\hat m / (\sqrt{\hat s} +
    \epsilon)$, with $\epsilon$ outside the root and $t = 1$ at the first step.

    Reference: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1.
    """
    _check("b1", b1, _FRACTION)
    _check("b2", b2, _FRACTION)
    _check("eps", eps, _POSITIVE)

    def init(params):
        return AdamState(_zero_steps(), _zeros(params), _zeros(params))

    def update(grads, state, params=None):
        del params
        step = state.step + 1
        mean = jax.tree.map(lambda m, g: _average(b1, m, _cast(g, m.dtype)), state.mean, grads)
        square = jax.tree.map(lambda s, g: _average(b2, s, _cast(g, s.dtype) ** 2), state.square, grads)
        unbias_mean, unbias_square = 1 / _weight_so_far(b1, step), 1 / _weight_so_far(b2, step)

        def scale(m, s, g):
            root = jnp.sqrt(s * unbias_square.astype(s.dtype))
            return (m * unbias_mean.astype(m.dtype) / (root + eps)).astype(jnp.result_type(g))

        return jax.tree.map(scale, mean, square, grads), AdamState(step, mean, square)

    return Optimizer(init, update)


def add_decayed_weights(wd: float, mask: Mask | None = None) -> Optimizer:
    r"""Add $\lambda w$ to the update of every leaf, or of those where `mask` is True. `update` needs `params`.

    `mask` is a tree of booleans in the structure of the parameters, or a function that makes one from them, such as
    `decay_weights_only`. Before `scale_by_learning_rate` in a chain, the decay is multiplied by the learning rate.
    """
    _check("wd", wd, _NOT_NEGATIVE)

    def init(params):
        del params
        return ()

    def update(grads, state, params=None):
        _need_params("add_decayed_weights", params)
        keep = mask(params) if callable(mask) else mask
        if keep is None:
            keep = jax.tree.map(lambda _: True, params)
        if jax.tree.structure(keep) != jax.tree.structure(params):
            differing = sorted(set(_paths(keep)) ^ set(_paths(params))) or ["its containers"]
            raise ValueError(f"mask must have the structure of params, but differs at {differing[0]}")

        def decay(g, p, decayed):
            wide = _wide(g, p)
            return (_cast(g, wide) + wd * _cast(p, wide)).astype(jnp.result_type(g)) if decayed else g

        return jax.tree.map(decay, grads, params, keep), state

    return Optimizer(init, update)


def decay_weights_only(params: PyTree) -> PyTree:
    """Make the mask that decays weights, the leaves named `w`, and leaves biases, scales and shifts alone.

    >>> decay_weights_only({"affine": {"w": 1.0, "b": 0.0}, "norm": {"gamma": 1.0, "beta": 0.0}})
    {'affine': {'b': False, 'w': True}, 'norm': {'beta': False, 'gamma': False}}
    """

    def is_weight(path, _):
        return bool(path) and jax.tree_util.keystr(path[-1:], simple=True) == "w"

    mask = jax.tree_util.tree_map_with_path(is_weight, params)
    leaves = jax.tree.leaves(mask)
    if leaves and not any(leaves):
        raise ValueError(f"params must hold a leaf named 'w' for decay_weights_only, got {', '.join(_paths(params))}")
    return mask


def global_norm(tree: PyTree) -> Array:
    """Return the Euclidean norm of all leaves together: (), float32 or wider. Its gradient at zero is zero, not NaN."""
    total = sum((jnp.sum(_cast(x, _wide(x)) ** 2) for x in jax.tree.leaves(tree)), jnp.zeros((), jnp.float32))
    zero = total == 0  # not `> 0`: a NaN must go through
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, total)))


def clip_by_global_norm(c: float) -> Optimizer:
    r"""Shrink the whole update to norm $c$ where it is longer: multiply it by $c / \max(c, \|g\|)$.

    The divisor is never zero. A NaN stays visible. Squares that overflow float32 (entries beyond 1e19) make the norm
    infinite and the update zero. Reference: Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063, algorithm 1.
    """
    _check("c", c, _POSITIVE)

    def init(params):
        del params
        return ()

    def update(grads, state, params=None):
        del params
        factor = c / jnp.maximum(global_norm(grads), c)

        def scale(g):
            return (factor.astype(_wide(g)) * _cast(g, _wide(g))).astype(jnp.result_type(g))

        return jax.tree.map(scale, grads), state

    return Optimizer(init, update)


# --- Around a whole optimizer -----------------------------------------------------------------------------------------


class AccumulateState(NamedTuple):
    """The gradients gathered so far, and the state of the optimizer that waits for them."""

    micro_step: Array  # () int32: gradients gathered since the last real step, in [0, every)
    total: PyTree  # like params, float32 or wider: their sum
    inner: PyTree  # the wrapped optimizer's state


def accumulate(optimizer: Optimizer, every: int) -> Optimizer:
    """Take one step of `optimizer` with the mean of each `every` gradients, for batches that do not fit in memory.

    In between the updates are zero and the inner state stands still, so a schedule counts real steps. The mean over
    minibatches of equal size is the gradient of a mean loss over all of them together (batch statistics aside).
    """
    _check("every", every, _COUNT)

    def init(params):
        return AccumulateState(_zero_steps(), _zeros(params), optimizer.init(params))

    def update(grads, state, params=None):
        total = jax.tree.map(lambda t, g: t + _cast(g, t.dtype), state.total, grads)

        def take(inner):
            mean = jax.tree.map(lambda t, g: (t / every).astype(jnp.result_type(g)), total, grads)
            updates, inner = optimizer.update(mean, inner, params)
            return updates, jax.tree.map(jnp.zeros_like, total), inner

        def wait(inner):
            return jax.tree.map(jnp.zeros_like, grads), total, inner

        micro_step = (state.micro_step + 1) % every
        updates, total, inner = jax.lax.cond(micro_step == 0, take, wait, state.inner)
        return updates, AccumulateState(micro_step, total, inner)

    return Optimizer(init, update)


class EmaState(NamedTuple):
    """The averaged parameters, ready for use at any step."""

    step: Array  # () int32
    average: PyTree  # like params, float32 or wider


def ema(decay: float) -> Optimizer:
    r"""Keep an exponential moving average of the *parameters*; updates pass unchanged.

    As the last link of a chain it sees what will be added, so it averages the parameters after each step, and the
    training loop needs nothing new: `averaged_params(opt_state)` finds the average. A loop that keeps its own state may
    call `init` and `update` of this block by itself.

    The average is a weighted mean of the parameters after steps $1..t$ with weights $\propto d^{t-i}$, as $a \leftarrow
    a + \frac{1-d}{1-d^t}(w_t - a)$: the first step replaces the initial parameters, which else would weigh $d^t$ for
    long. Reference: Polyak & Juditsky 1992; the correction as in Kingma & Ba 2015, section 3.
    """
    _check("decay", decay, _FRACTION)

    def init(params):
        # copies: a state that is donated must not hold one buffer twice
        return EmaState(_zero_steps(), jax.tree.map(lambda p: jnp.array(p, _wide(p), copy=True), params))

    def update(grads, state, params=None):
        _need_params("ema", params)
        step = state.step + 1
        share = (1 - decay) / _weight_so_far(decay, step)

        def move(a, p, u):
            return a + share.astype(a.dtype) * (_cast(p, a.dtype) + _cast(u, a.dtype) - a)

        return grads, EmaState(step, jax.tree.map(move, state.average, params, grads))

    return Optimizer(init, update)


def averaged_params(opt_state: PyTree) -> PyTree:
    """Return the average kept by the `ema` somewhere in `opt_state`; before the first step, the initial parameters."""
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, EmaState))
    found = [leaf.average for leaf in leaves if isinstance(leaf, EmaState)]
    if len(found) != 1:
        raise ValueError(f"opt_state must hold the state of one ema, got {len(found)}")
    return found[0]


# --- Schedules: step, counted from 0 -> learning rate -----------------------------------------------------------------


def constant_schedule(rate: float) -> Schedule:
    """Return `rate` at every step."""
    _check("learning_rate", rate, _NOT_NEGATIVE)
    return lambda step: rate


def exponential_schedule(rate: float, decay_rate: float, decay_steps: int = 1) -> Schedule:
    r"""$\eta = r\,\rho^{\,\mathrm{step} / T}$: multiplied by `decay_rate` smoothly over each `decay_steps` steps.

    >>> [round(float(exponential_schedule(1.0, 0.5, 2)(step)), 4) for step in range(5)]
    [1.0, 0.7071, 0.5, 0.3536, 0.25]
    """
    _check("rate", rate, _NOT_NEGATIVE)
    _check("decay_rate", decay_rate, _POSITIVE)
    _check("decay_steps", decay_steps, _COUNT)
    return lambda step: rate * jnp.exp(_real(step) * (math.log(decay_rate) / decay_steps))


def step_schedule(rate: float, boundaries: Sequence[int], factor: float = 0.1) -> Schedule:
    """Multiply `rate` by `factor` at each step in `boundaries`.

    >>> [round(float(step_schedule(1.0, [2, 3])(step)), 4) for step in range(5)]
    [1.0, 1.0, 0.1, 0.01, 0.01]
    """
    _check("rate", rate, _NOT_NEGATIVE)
    _check("factor", factor, _POSITIVE)
    for boundary in boundaries:
        _check("boundaries", boundary, _COUNT)
    edges = np.array(boundaries, np.int32)
    return lambda step: rate * jnp.asarray(factor, float) ** jnp.sum(jnp.asarray(step) >= edges)


def cosine_schedule(rate: float, steps: int, warmup_steps: int = 0, final: float = 0.0) -> Schedule:
    r"""Rise in a line over `warmup_steps` steps to `rate`, then fall in half a cosine to `final` at step `steps`.

    Step 0 already learns: the line is $r (\mathrm{step} + 1) / (W + 1)$, which reaches $r$ at step $W$.
    Reference: Loshchilov & Hutter 2017, arXiv:1608.03983, equation 5; warm-up: Goyal et al. 2017, arXiv:1706.02677.

    >>> [round(float(cosine_schedule(1.0, steps=5, warmup_steps=1)(step)), 4) for step in range(6)]
    [0.5, 1.0, 0.8536, 0.5, 0.1464, 0.0]
    """
    _check("rate", rate, _NOT_NEGATIVE)
    _check("steps", steps, _COUNT)
    _check("final", final, _NOT_NEGATIVE)
    _check(
        "warmup_steps", warmup_steps, (lambda v: isinstance(v, int) and 0 <= v < steps, f"an integer in [0, {steps})")
    )

    def schedule(step):
        progress = jnp.clip((_real(step) - warmup_steps) / (steps - warmup_steps), 0, 1)
        fall = final + (rate - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return jnp.where(step < warmup_steps, rate * (_real(step) + 1) / (warmup_steps + 1), fall)

    return schedule


# --- Helpers ----------------------------------------------------------------------------------------------------------


def _wide(*arrays) -> np.dtype:
    """Return the widest dtype among float32 and those of `arrays`."""
    return max([np.dtype(np.float32), *(jnp.result_type(a) for a in arrays)], key=lambda dtype: dtype.itemsize)


def _cast(x, dtype) -> Array:
    return jnp.asarray(x).astype(dtype)


def _zeros(params: PyTree) -> PyTree:
    return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=_wide(p)), params)


def _zero_steps() -> Array:
    return jnp.zeros((), jnp.int32)


def _average(decay: float, old: Array, new: Array) -> Array:
    return decay * old + (1 - decay) * new


def _weight_so_far(decay: float, step: Array) -> Array:
    """Return 1 - decay**step: (), without the cancellation that costs float32 four digits at decay 0.999, step 1."""
    log = math.log(decay) if decay > 0 else -math.inf
    return -jnp.expm1(_real(step) * log)


def _real(step) -> Array:
    """Return a step number in the default float dtype: float64 where x64 is on."""
    return jnp.asarray(step, float)


_NOT_NEGATIVE = (lambda v: v >= 0, "a finite number of at least 0")
_POSITIVE = (lambda v: v > 0, "a finite number above 0")
_FRACTION = (lambda v: 0 <= v < 1, "a number in [0, 1)")
_COUNT = (lambda v: isinstance(v, int) and v >= 1, "an integer of at least 1")


def _check(name: str, value: Any, rule: tuple[Callable[[Any], bool], str]) -> None:
    """Raise a ValueError of one line unless `value` is a finite scalar that obeys `rule`; a tracer cannot be asked."""
    if isinstance(value, Tracer):
        return
    holds, must_be = rule
    is_scalar = isinstance(value, Real) or (isinstance(value, np.ndarray | Array) and value.ndim == 0)
    if not (is_scalar and math.isfinite(value) and holds(value)):
        raise ValueError(f"{name} must be {must_be}, got {value!r}")


def _need_params(block: str, params: PyTree) -> None:
    if params is None:
        raise ValueError(f"params must be given to {block}: update(grads, state, params), got None")


def _paths(tree: PyTree) -> list[str]:
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(tree)]
