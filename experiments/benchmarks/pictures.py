"""Time ``jaxfit.plot.save`` beside matplotlib's own ways to save an animation.

Three animations: the line of the lesson in 100 frames; a path of 1000 rows over contours, and its
loss, in 200 frames; 64 tiles of 8×8 weights in 100 frames. Each way gets a fresh animation; what is
counted is processor time, of the encoder's process too, in which a busy machine shows least.

    python -m experiments.benchmarks.pictures
"""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import tempfile
from collections.abc import Callable

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import Animation, FuncAnimation

from experiments.benchmarks import _bench
from jaxfit import plot
from jaxfit.plot.static import BLACK, BLUE, ORANGE


def lesson(frames: int = 100) -> Animation:
    """Animate a line that moves through points."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, 100)
    y = 3 * x + 2 + rng.uniform(0, 1, 100)
    places = np.linspace(-1, 1, 200)
    slopes, heights = 3 - 4 * 0.95 ** np.arange(frames), 2.5 - 1.5 * 0.8 ** np.arange(frames)
    ax = plt.subplots(figsize=(5, 3.75), layout="constrained")[1]
    ax.scatter(x, y, s=14, color=BLUE, label="data")
    (line,) = ax.plot(places, places, color=ORANGE, linewidth=2, label="fit")
    ax.set(xlabel="x", ylabel="y", ylim=(-2, 7))
    ax.legend(loc="upper left")
    title = ax.set_title(" ")

    def draw(k: int) -> tuple[object, ...]:
        line.set_ydata(slopes[k] * places + heights[k])
        title.set_text(f"step {k:4d}   loss {np.mean((slopes[k] * x + heights[k] - y) ** 2):.4f}")
        return line, title

    return FuncAnimation(ax.figure, draw, frames=frames, interval=20)


def path(frames: int = 200, rows: int = 1000) -> Animation:
    """Animate a path that grows over contours, and its loss beside it."""
    loss = lambda a, b: (1 - a) ** 2 + 20 * (b - a * a) ** 2
    rng = np.random.default_rng(1)
    points = np.empty((rows, 2))
    point, speed = np.array([-1.5, 2.0]), np.zeros(2)
    for row in range(rows):
        points[row] = a, b = point
        slope = np.array([-2 * (1 - a) - 80 * a * (b - a**2), 40 * (b - a**2)])
        speed = 0.9 * speed - 3e-4 * (slope + 4 * rng.normal(size=2))
        point = point + speed
    losses = loss(*points.T)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    a, b = np.linspace(-2, 2, 60), np.linspace(-1, 3, 60)
    heights = loss(*np.meshgrid(a, b))
    levels = heights.max() * np.linspace(0.02, 1, 14) ** 2
    contours = left.contour(a, b, heights, levels=levels, linewidths=0.8)
    left.clabel(contours, levels[::3], fontsize=7, fmt="%.3g")
    (way,) = left.plot([], [], ".-", color=ORANGE, markersize=3, linewidth=1, label="path")
    (head,) = left.plot([], [], "o", color=BLACK, label="now")
    left.set(xlabel="$a_0$", ylabel="$a_1$", xlim=(-2, 2), ylim=(-1, 3))
    left.legend(loc="lower right")
    right.plot(losses, color=BLUE, linewidth=1, alpha=0.3)
    (curve,) = right.plot([], [], color=BLUE, linewidth=1)
    (dot,) = right.plot([], [], "o", color=BLACK)
    right.set(yscale="log", xlabel="step", ylabel="loss")
    title = left.set_title(" ")
    places = np.linspace(0, rows - 1, frames).round().astype(int)

    def draw(k: int) -> tuple[object, ...]:
        row = places[k]
        way.set_data(*points[: row + 1].T)
        head.set_data(*points[row : row + 1].T)
        curve.set_data(np.arange(row + 1), losses[: row + 1])
        dot.set_data([row], [losses[row]])
        title.set_text(f"step {row:4d}   loss {losses[row]:.4f}")
        return way, head, curve, dot, title

    return FuncAnimation(figure, draw, frames=frames, interval=20)


def tiles(frames: int = 100) -> Animation:
    """Animate 64 tiles of weights, in one image."""
    rng = np.random.default_rng(2)
    first, last = 0.3 * rng.normal(size=(2, 64, 64))
    bump = np.exp(-((np.arange(8)[:, None] - 3.5) ** 2 + (np.arange(8) - 3.5) ** 2) / 8)
    last = (4 * last.reshape(64, 8, 8) * bump).reshape(64, 64)
    part = 1 - np.exp(-np.linspace(0, 4, frames))[:, None, None]
    weights = (1 - part) * first + part * last
    weights += 0.01 * np.cumsum(rng.normal(size=(frames, 64, 64)), axis=0)
    shown = np.full((frames, 8, 9, 8, 9), np.nan)
    shown[:, :, :8, :, :8] = weights.reshape(-1, 8, 8, 8, 8).transpose(0, 1, 3, 2, 4)
    shown = shown.reshape(frames, 72, 72)[:, :-1, :-1]
    ax = plt.subplots(figsize=(6, 5), layout="constrained")[1]
    most = np.quantile(np.abs(weights), 0.995)
    image = ax.imshow(shown[0], cmap="RdBu_r", vmin=-most, vmax=most)
    ax.axis("off")
    ax.figure.colorbar(image, label="weight", extend="both", shrink=0.85)
    title = ax.set_title(" ", loc="left")

    def draw(k: int) -> tuple[object, ...]:
        image.set_data(shown[k])
        title.set_text(f"step {k:4d}")
        return image, title

    return FuncAnimation(ax.figure, draw, frames=frames, interval=50)


def page_of_matplotlib(animation: Animation, file: pathlib.Path) -> None:
    with matplotlib.rc_context({"animation.embed_limit": 1e4}):
        file.write_text(animation.to_jshtml())


def gif_of_matplotlib(animation: Animation, file: pathlib.Path) -> None:
    animation.save(file, writer="pillow", dpi=100)


def mp4_of_matplotlib(animation: Animation, file: pathlib.Path) -> None:
    import imageio_ffmpeg

    with matplotlib.rc_context({"animation.ffmpeg_path": imageio_ffmpeg.get_ffmpeg_exe()}):
        animation.save(file, writer="ffmpeg", dpi=100)


ANIMATIONS = {"lesson": lesson, "path": path, "tiles": tiles}
WAYS: dict[str, tuple[Callable[..., object], str]] = {
    "to_jshtml": (page_of_matplotlib, ".html"),
    "pillow": (gif_of_matplotlib, ".gif"),
    "ffmpeg": (mp4_of_matplotlib, ".mp4"),
}


def measured(
    make: Callable[[], Animation], save: Callable[..., object], file: pathlib.Path
) -> tuple[float, float]:
    """Return the processor's seconds to save a fresh animation, and the kilobytes of the file."""
    animation = make()
    before = os.times()
    save(animation, file)
    after = os.times()
    plt.close("all")
    return sum(after[:4]) - sum(before[:4]), file.stat().st_size / 1e3


def main() -> None:
    """Measure, and print the table."""
    parser = _bench.parser("pictures", __doc__, repeats=3)
    parser.add_argument("--only", choices=ANIMATIONS, help="one of the animations")
    args = _bench.parse(parser)
    with tempfile.TemporaryDirectory() as folder:
        plot.save(lesson(3), f"{folder}/warm.html")  # fonts are read once in a process
        for name, make in ANIMATIONS.items():
            if args.only not in (None, name):
                continue
            rows = []
            for other, (save, ending) in WAYS.items():
                file = pathlib.Path(folder) / f"{name}{ending}"
                ours = [measured(make, plot.save, file) for _ in range(args.repeats)]
                own, size = np.median(ours, axis=0)
                slow, large = measured(make, save, file)  # once: it takes long
                rows += [
                    (f"matplotlib, {other}", f"{slow:.2f}", "1.0", f"{large:.0f}"),
                    (f"plot.save, {ending}", f"{own:.2f}", f"{slow / own:.1f}", f"{size:.0f}"),
                ]
            head = (name, "s of CPU", "times less", "kB")
            _bench.print_table(args, head, rows)
    print(f"matplotlib {importlib.metadata.version('matplotlib')}; ", end="")
    _bench.print_source(parser)


if __name__ == "__main__":
    main()
