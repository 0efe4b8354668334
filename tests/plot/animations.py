"""Animations of every kind that the player has to follow, each with a figure of its own."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import ArtistAnimation, FuncAnimation

X = np.linspace(0, 1, 30)
FRAMES = 5


def _axes(**options):
    figure, ax = plt.subplots(figsize=(3, 2.5), **options)
    return figure, ax


def line_and_title():
    figure, ax = _axes(layout="constrained")
    ax.scatter(X, X**2, s=14, label="data")
    (line,) = ax.plot(X, X, color="tab:red", label="fit", zorder=1.5)
    ax.set(ylim=(-1, 4), xlabel="x", ylabel="y")
    ax.legend(loc="upper left")
    title = ax.set_title(" ")

    def draw(k):
        line.set_ydata(k * X**2)
        title.set_text(f"step {k}")
        return line, title

    return FuncAnimation(figure, draw, frames=FRAMES, interval=50)


def blitted():
    figure, ax = _axes()
    (line,) = ax.plot([], [], "o-")
    ax.set(xlim=(0, 1), ylim=(0, 1))

    def draw(k):
        line.set_data(X[: 6 * k + 1], X[: 6 * k + 1] ** 2)
        return (line,)

    return FuncAnimation(figure, draw, frames=FRAMES, blit=True, init_func=lambda: (line,))


def scatter_and_bars():
    figure, ax = _axes()
    points = ax.scatter(X, X, c=X, cmap="viridis")
    bars = ax.bar([0.2, 0.8], [0.5, 0.5], width=0.1, alpha=0.5)
    ax.set(xlim=(0, 1), ylim=(0, 1))

    def draw(k):
        points.set_offsets(np.stack([X, X ** (k + 1)], axis=1))
        points.set_array(X * (k + 1) % 1)
        bars[0].set_height(0.2 * k)

    return FuncAnimation(figure, draw, frames=FRAMES)


def edited_in_place():
    figure, ax = _axes()
    heights = np.zeros(30)
    (line,) = ax.plot(X, heights)
    ax.set_ylim(-1, 1)

    def draw(k):
        line.get_ydata(orig=False)[:] = np.sin(k * X)
        return [line]

    return FuncAnimation(figure, draw, frames=FRAMES)


def image():
    figure, ax = _axes(layout="constrained")
    values = lambda k: np.sin(np.add.outer(np.arange(6), np.arange(8)) + k)
    shown = ax.imshow(values(0), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    figure.colorbar(shown)
    return FuncAnimation(figure, lambda k: [shown.set_data(values(k))] and [shown], frames=FRAMES)


def image_of_many_colours():
    figure, ax = _axes()
    values = lambda k: np.random.default_rng(k).uniform(size=(40, 40, 3))
    shown = ax.imshow(values(0), interpolation="bilinear", alpha=0.9)
    return FuncAnimation(figure, lambda k: shown.set_data(values(k)), frames=FRAMES)


def log_axes_with_moving_limits():
    figure, ax = _axes()
    (line,) = ax.loglog([1], [1], marker=".")

    def draw(k):
        line.set_data(1 + 10 * k * X, 1 + 100**k * X)
        ax.relim()
        ax.autoscale()

    return FuncAnimation(figure, draw, frames=FRAMES)


def limits_that_move_once():
    figure, ax = _axes()
    (line,) = ax.plot(X, X)
    ax.set(xlim=(0, 1), ylim=(0, 5))

    def draw(k):
        line.set_ydata(k * X)
        ax.set_title(f"{k}")
        if k == 2:
            ax.set_ylim(0, 8)

    return FuncAnimation(figure, draw, frames=FRAMES)


def cleared():
    figure, ax = _axes()

    def draw(k):
        ax.clear()
        ax.plot(X, X**k, label=f"power {k}")
        ax.legend(loc="upper left")

    return FuncAnimation(figure, draw, frames=FRAMES)


def artists_that_come_and_go():
    figure, ax = _axes()
    ax.set(xlim=(0, 1), ylim=(0, 2))
    kept = []

    def draw(k):
        while len(kept) > k % 3:
            kept.pop().remove()
        while len(kept) < k % 3:
            kept.append(ax.axhline(0.3 * len(kept) + 0.2))
        ax.patch.set_facecolor("0.9" if k == 3 else "white")

    return FuncAnimation(figure, draw, frames=FRAMES)


def of_artists():
    figure, ax = _axes()
    groups = [[*ax.plot(X, k * X, color=f"C{k}"), ax.text(0.1, k, f"$x^{k}$")] for k in range(4)]
    return ArtistAnimation(figure, groups, interval=100)


def contours():
    figure, ax = _axes()
    a, b = np.meshgrid(X, X)
    drawn = []

    def draw(k):
        while drawn:
            drawn.pop().remove()
        drawn.append(ax.contourf(a, b, a**2 + k * b, levels=5))

    return FuncAnimation(figure, draw, frames=FRAMES)


def three_dimensions():
    figure, ax = _axes(subplot_kw={"projection": "3d"})
    ax.plot(X, X**2, np.sin(6 * X))
    ax.scatter(X, X, X, s=4)
    return FuncAnimation(figure, lambda k: ax.view_init(30, 20 * k), frames=FRAMES)


def mathematics():
    figure, ax = _axes()
    text = ax.text(0.5, 0.5, "", rotation=20, alpha=0.7, color="tab:blue")
    ax.set_xlabel(r"$\hat y = \frac{1}{2}\sqrt{x}$")

    def draw(k):
        text.set_text(rf"$\sum_{{i=0}}^{{{k}}} \alpha_i$ & <{k}>" if k % 2 else f'"{k}" & <b>')
        return text

    return FuncAnimation(figure, draw, frames=FRAMES)


def legend_at_the_best_place():
    figure, ax = _axes()
    (line,) = ax.plot(X, X, label="moves")
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.legend()
    return FuncAnimation(figure, lambda k: line.set_ydata(X if k % 2 else 1 - X), frames=FRAMES)


def twins_insets_and_figures():
    figure = plt.figure(figsize=(3, 2.5))
    left, right = figure.subfigures(1, 2)
    ax, other = left.subplots(), right.subplots()
    twin, inset = ax.twinx(), other.inset_axes([0.5, 0.5, 0.4, 0.4])
    (line,) = twin.plot(X, X, "--")
    (inner,) = inset.plot(X, X)
    ax.plot(X, X**3)

    def draw(k):
        line.set_ydata(X ** (k + 1))
        inner.set_ydata(X**k)
        figure.suptitle(f"frame {k}")
        if k > 2:
            other.set_xlim(0, k)

    return FuncAnimation(figure, draw, frames=FRAMES)


def from_back_to_front():
    figure, ax = _axes()
    (line,) = ax.plot(X, X, color="tab:red", linewidth=8, zorder=1)
    ax.plot(X, 1 - X, color="tab:blue", linewidth=8, zorder=2)

    def draw(k):
        line.set_zorder(3 if k > 2 else 1)
        line.set_visible(k != 1)

    return FuncAnimation(figure, draw, frames=FRAMES)


def rasterized():
    figure, ax = _axes()
    (line,) = ax.plot(X, X, linewidth=5, rasterized=True)
    ax.set_ylim(0, 4)
    return FuncAnimation(figure, lambda k: line.set_ydata(k * X), frames=FRAMES)


def hatches_dashes_and_markers():
    figure, ax = _axes()
    patch = ax.axvspan(0.1, 0.3, hatch="//", facecolor="tab:orange", alpha=0.5)
    (line,) = ax.plot(X, X, "s--", markerfacecolor="none", markevery=5, clip_on=False)
    ax.fill_between(X, 0, X**2, alpha=0.3)

    def draw(k):
        patch.set_hatch("x" if k % 2 else "//")
        line.set_linestyle((0, (k + 1, 1)))
        line.set_ydata(X ** (k + 1))

    return FuncAnimation(figure, draw, frames=FRAMES)


ALL = [
    line_and_title, blitted, scatter_and_bars, edited_in_place, image, image_of_many_colours,
    log_axes_with_moving_limits, limits_that_move_once, cleared, artists_that_come_and_go,
    of_artists, contours, three_dimensions, mathematics, legend_at_the_best_place,
    twins_insets_and_figures, from_back_to_front, rasterized, hatches_dashes_and_markers,
]  # fmt: skip
