"""Draw the figures of the derivations: `python docs/figures/make.py` from the root of the repository.

Each function below draws one; the SVG files are committed beside this file.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from jnet import custom_vjp
from jnet.formulas import activation, loss, recurrent

HERE = Path(__file__).parent
BLUE, RED, GREEN, YELLOW = "#4477aa", "#ee6677", "#228833", "#ccbb44"


def activations():
    figure, panels = plt.subplots(1, 4, figsize=(9.6, 2.5), sharex=True, layout="constrained")
    x = jnp.linspace(-4.0, 4.0, 401)
    pairs = {
        "relu": (activation.relu_forward, activation.relu_backward, {}),
        "leaky_relu, slope 0.2": (
            activation.leaky_relu_forward,
            activation.leaky_relu_backward,
            {"negative_slope": 0.2},
        ),
        "sigmoid": (activation.sigmoid_forward, activation.sigmoid_backward, {}),
        "tanh": (activation.tanh_forward, activation.tanh_backward, {}),
    }
    for axes, (name, (forward, backward, static)) in zip(panels, pairs.items(), strict=True):
        y, cache = forward(x, **static)
        axes.plot(x, y, color=BLUE, label="value")
        axes.plot(x, backward(jnp.ones_like(x), cache, **static), color=RED, label="slope")
        axes.set(title=name, ylim=(-1.4, 2.2))
    panels[0].legend()
    return figure


def normalization():
    figure, panels = plt.subplots(1, 4, figsize=(9.6, 2.6), layout="constrained")
    n, s, c = 3, 3, 6
    shared = {
        "batchnorm": lambda i, p, k: k == 2,
        "layernorm": lambda i, p, k: i == 1 and p == 1,
        "groupnorm, 2 groups": lambda i, p, k: i == 1 and k < 3,
        "groupnorm, 6 groups\n(instance norm)": lambda i, p, k: i == 1 and k == 2,
    }
    for axes, (name, is_shared) in zip(panels, shared.items(), strict=True):
        for i in range(n):
            for p in range(s):
                for k in range(c):
                    place = (k, (n - 1 - i) * (s + 0.7) + (s - 1 - p))
                    colour = BLUE if is_shared(i, p, k) else "#eeeeee"
                    axes.add_patch(Rectangle(place, 0.92, 0.92, color=colour))
            axes.text(-0.4, (n - 1 - i) * (s + 0.7) + s / 2, f"n={i}", ha="right", va="center", fontsize=8)
        axes.set(xlim=(-1.8, c), ylim=(-1.0, n * (s + 0.7)), title=name, aspect="equal")
        axes.text(c / 2, -0.8, "channels (rows: positions)", ha="center", fontsize=8)
        axes.axis("off")
    return figure


def im2col():
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), width_ratios=(1, 1.9), layout="constrained")
    size, window = 4, 2
    pixel = np.arange(size * size).reshape(size, size)
    marked = 5
    for (row, column), number in np.ndenumerate(pixel):
        colour = RED if number == marked else "#eeeeee"
        left.add_patch(Rectangle((column, size - 1 - row), 0.95, 0.95, color=colour))
        left.text(column + 0.47, size - 1 - row + 0.47, str(number), ha="center", va="center")
    left.add_patch(Rectangle((-0.02, size - 2 - 0.02), 2, 2, fill=False, edgecolor=BLUE, linewidth=2.5))
    left.set(xlim=(-0.2, size + 0.2), ylim=(-0.3, size + 0.2), aspect="equal", title="image, first window framed")
    left.axis("off")
    outs = size - window + 1
    for o in range(outs * outs):
        top, side = divmod(o, outs)
        taps = pixel[top : top + window, side : side + window].ravel()
        for tap, number in enumerate(taps):
            y = outs * outs - 1 - o
            right.add_patch(Rectangle((1.6 * tap, y), 1.55, 0.92, color=RED if number == marked else "#eeeeee"))
            right.text(1.6 * tap + 0.77, y + 0.45, str(number), ha="center", va="center", fontsize=8)
        right.text(-0.3, outs * outs - 1 - o + 0.45, f"window {o}", ha="right", va="center", fontsize=8)
    right.add_patch(Rectangle((-0.03, outs * outs - 1.05), 6.4, 1.02, fill=False, edgecolor=BLUE, linewidth=2.5))
    right.text(3.2, -0.7, "pixel 5 lies under four windows: col2im adds up four cotangents", ha="center", fontsize=9)
    right.set(xlim=(-2.2, 6.8), ylim=(-1.1, outs * outs + 0.2), title="im2col: a window a row, a tap a column")
    right.axis("off")
    return figure


def max_pool():
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.1), layout="constrained")
    x = jnp.asarray([[1, 2, 0, 3, 1], [4, 9, 2, 1, 0], [0, 1, 5, 7, 2], [3, 2, 1, 0, 6], [1, 0, 8, 2, 1]], float)
    y, pull = jax.vjp(lambda x: custom_vjp.max_pool2d(x[None, :, :, None], window=3, stride=2), x)
    (dx,) = pull(jnp.ones_like(y))
    for axes, values, title in (
        (left, x, "image; 3x3 windows at stride 2 overlap"),
        (right, dx, "its gradient for a cotangent of ones"),
    ):
        for (row, column), value in np.ndenumerate(np.asarray(values)):
            colour = {0: "#eeeeee", 1: "#f8c8ce"}.get(int(dx[row, column]), RED)
            axes.add_patch(Rectangle((column, 4 - row), 0.95, 0.95, color=colour))
            axes.text(column + 0.47, 4 - row + 0.47, f"{value:.0f}", ha="center", va="center")
        axes.set(xlim=(-0.3, 5.3), ylim=(-0.3, 5.3), aspect="equal", title=title)
        axes.axis("off")
    for number, colour in enumerate((BLUE, GREEN, YELLOW, "#aa3377")):
        row, column = divmod(number, 2)
        place = (2 * column - 0.06 + 0.04 * number, 2 - 2 * row - 0.06 + 0.04 * number)
        left.add_patch(Rectangle(place, 3, 3, fill=False, edgecolor=colour, linewidth=2))
    return figure


def softmax_tail():
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    leads = np.linspace(0, 40, 161)
    logits = np.zeros((len(leads), 10), np.float32)
    logits[:, 0] = leads
    exact = -9 * np.exp(-leads) / (1 + 9 * np.exp(-leads))
    naive = np.asarray(jax.nn.softmax(jnp.asarray(logits))[:, 0] - 1, float)
    scores, labels = jnp.asarray(logits), jnp.zeros(len(leads), jnp.int32)
    _, peak, rest = loss.softmax_rows_forward("figure", scores, labels)
    by_others = loss.softmax_rows_backward(jnp.ones(()), scores, labels, peak, rest)[:, 0]
    for name, values, colour in (("p - 1", naive, RED), ("minus the others", by_others, BLUE)):
        error = np.maximum(np.abs(np.asarray(values, float) / exact - 1), 1e-9)
        axes.semilogy(leads, error, color=colour, label=name)
    axes.set(xlabel="lead of the label's logit", ylabel="relative error, float32", ylim=(1e-9, 10))
    axes.legend()
    return figure


def losses():
    figure, panels = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    lead = jnp.linspace(-3.0, 4.0, 701)

    def rows(function):
        def of_lead(t):
            return function(jnp.stack([t, 0.0 * t])[None], jnp.zeros(1, jnp.int32))

        return jax.vmap(of_lead)(lead), jax.vmap(jax.grad(of_lead))(lead)

    for name, function, colour in (
        ("hinge", custom_vjp.svm_loss, RED),
        ("softmax", custom_vjp.softmax_cross_entropy, BLUE),
    ):
        value, slope = rows(function)
        panels[0].plot(lead, value, color=colour, label=name)
        panels[1].plot(lead, slope, color=colour, label=name)
    panels[0].set(title="loss of two classes", xlabel="score of the label less the other's")
    panels[1].set(title="slope", xlabel="score of the label less the other's")
    panels[0].legend()
    return figure


def through_time():
    figure, axes = plt.subplots(figsize=(5.4, 3.2), layout="constrained")
    steps, width, rng = 60, 64, np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((16, steps, width)))
    zero = jnp.zeros((16, width))

    def norms(run, gates, gain, forget=0.0):
        wx, wh = (jnp.asarray(gain * rng.standard_normal((width, gates * width)) / np.sqrt(width)) for _ in range(2))
        b = jnp.zeros(gates * width).at[width : 2 * width].add(forget) if gates == 4 else jnp.zeros(width)
        found = [run(x[:, steps - 1 - t :], wx, wh, b) for t in range(0, steps, 3)]
        return np.array(found) / found[0]

    last = jnp.asarray(rng.standard_normal((16, width)))

    @jax.jit
    def rnn(x, wx, wh, b):
        out, cache = recurrent.rnn_forward(x, zero, wx, wh, b)
        return jnp.linalg.norm(recurrent.rnn_backward(jnp.zeros_like(out).at[:, -1].set(last), cache)[1])

    @jax.jit
    def lstm(x, wx, wh, b):
        (out, c), cache = recurrent.lstm_forward(x, zero, zero, wx, wh, b)
        return jnp.linalg.norm(
            recurrent.lstm_backward((jnp.zeros_like(out).at[:, -1].set(last), jnp.zeros_like(c)), cache)[2]
        )

    distance = np.arange(0, steps, 3) + 1
    for name, values, colour in (
        ("rnn, small weights", norms(rnn, 1, 0.5), RED),
        ("rnn, large weights", norms(rnn, 1, 3.0), YELLOW),
        ("lstm", norms(lstm, 4, 0.5), BLUE),
        ("lstm, forget bias 4", norms(lstm, 4, 0.5, forget=4.0), GREEN),
    ):
        axes.semilogy(distance, values, color=colour, label=name)
    axes.set(xlabel="steps back", ylabel="norm of the gradient, relative", ylim=(1e-12, 1e4))
    axes.legend(fontsize=8)
    return figure


FIGURES = (activations, normalization, im2col, max_pool, softmax_tail, losses, through_time)

if __name__ == "__main__":
    mpl.rcParams.update({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "legend.frameon": False})
    mpl.rcParams["svg.hashsalt"] = "jnet"  # the same figure is the same file
    for draw in FIGURES:
        draw().savefig(HERE / f"{draw.__name__}.svg", metadata={"Date": None})
