"""Three spiral arms and a two-layer network, from the ops alone: all that there is to training, in sixty lines.

    pip install 'jnet[train]'
    python examples/spiral.py

About 5 seconds on two cores. Prints the loss every 500 steps, 0.0008 at the last, and `training accuracy 1.0000`; a
linear classifier reaches 0.55. The regions it has learnt are in examples/spiral.png.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jnet import custom_vjp as ops
from jnet import optim


def spiral(points: int = 200, arms: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`(arms * points, 2)` places and `(arms * points,)` labels."""
    rng = np.random.default_rng(seed)
    radius = np.tile(np.linspace(0.05, 1, points), arms)
    label = np.repeat(np.arange(arms), points)
    angle = 4.0 * radius + 2 * np.pi / arms * label + rng.normal(0, 0.3, radius.shape)
    return np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1).astype(np.float32), label


def init(key: jax.Array, widths: tuple[int, ...] = (2, 100, 3)) -> list[tuple[jax.Array, jax.Array]]:
    keys = jax.random.split(key, len(widths))
    sizes = zip(keys, widths, widths[1:], strict=False)
    return [(jnp.sqrt(2 / n) * jax.random.normal(key, (n, m)), jnp.zeros(m)) for key, n, m in sizes]


def scores(params, x):
    (w1, b1), (w2, b2) = params
    return ops.affine(ops.relu(ops.affine(x, w1, b1)), w2, b2)


def main(steps: int = 2000, picture: bool = True) -> float:
    x, y = spiral()
    params, optimizer = init(jax.random.key(0)), optim.adam(1e-2)
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params, opt_state):
        loss, grads = jax.value_and_grad(lambda p: ops.softmax_cross_entropy(scores(p, x), y))(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optim.apply_updates(params, updates), opt_state, loss

    for number in range(steps):
        params, opt_state, loss = step(params, opt_state)
        if number % 500 == 0 or number == steps - 1:
            print(f"step {number:4}  loss {loss:.4f}")
    if picture:
        draw(params, x, y)
    return float((scores(params, x).argmax(axis=1) == y).mean())


def draw(params, x, y) -> None:
    from matplotlib.figure import Figure

    axis = np.linspace(-1.3, 1.3, 300, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.subplots()
    axes.contourf(axis, axis, scores(params, grid.reshape(-1, 2)).argmax(axis=1).reshape(300, 300), cmap="Pastel1")
    axes.scatter(*x.T, c=y, s=8, cmap="Set1")
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    print(f"training accuracy {main():.4f}")
