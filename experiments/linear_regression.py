"""Fit a line by gradient descent, watch it move, and compare the run with theory.

A run takes 100 steps down the gradient of the mean squared error of a line through noisy points.
Its trajectory then shows how fast it contracted, beside the rate that theory gives, and what the
best constant learning rate would have done. With ``--csv``, the same study runs on two columns of
your own file.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.animation import FuncAnimation

import jaxfit
from experiments import _command
from jaxfit import plot
from jaxfit.losses import mse, objective
from jaxfit.models import linear
from jaxfit.plot.static import ORANGE

GUESS = (-1.0, 1.0)
loss = objective(linear, mse)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Hold points in their own units, and how they are scaled for the descent."""

    x: np.ndarray  # [n]
    y: np.ndarray  # [n]
    names: tuple[str, str] = ("x", "y")
    centre: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)

    @property
    def data(self) -> tuple[jax.Array, jax.Array]:
        """Return x [n, 2] with a column of ones, and y [n], scaled."""
        x, y = (
            (column - centre) / scale
            for column, centre, scale in zip((self.x, self.y), self.centre, self.scale, strict=True)
        )
        return jnp.stack([jnp.asarray(x), jnp.ones(len(x))], axis=1), jnp.asarray(y)

    @property
    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """Return x [n, 2] with a column of ones, and y [n], in their own units."""
        return np.stack([self.x, np.ones(len(self.x))], axis=1), self.y

    def error(self, a: jax.Array) -> float:
        """Return the mean squared error of a line, in the units of y squared."""
        return float(loss(a, self.data)) * self.scale[1] ** 2

    def line(self, a: jax.Array) -> np.ndarray:
        """Return the slope and intercept of scaled lines a [..., 2], in the units of the points."""
        a = np.asarray(a, np.float64)
        slope = a[..., 0] * self.scale[1] / self.scale[0]
        intercept = self.centre[1] + a[..., 1] * self.scale[1] - slope * self.centre[0]
        return np.stack([slope, intercept], axis=-1)

    def in_units(self, run: jaxfit.Run) -> jaxfit.Run:
        """Return the run with its lines and losses in the units of the points, for pictures."""
        kept = run.trajectory | {
            "params": self.line(run.trajectory["params"]),
            "loss": np.asarray(run.trajectory["loss"]) * self.scale[1] ** 2,
        }
        return dataclasses.replace(run, trajectory=kept)


def read_csv(path: pathlib.Path, x: str, y: str) -> Problem:
    """Return two columns of a CSV file with a header, to be standardised.

    Raises:
      ValueError: if the file cannot be read, or its columns are not numbers that vary.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows, header = list(reader), reader.fieldnames or []
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file: {error}.") from error
    columns = []
    for name in (x, y):
        if name not in header:
            raise ValueError(
                f"{path} has no column {name!r}: it has {', '.join(header) or 'none'}."
            )
        values = []
        for number, row in enumerate(rows, start=2):
            try:
                values.append(float(row[name]))
            except (TypeError, ValueError):
                values.append(math.nan)
            if not math.isfinite(values[-1]):
                raise ValueError(
                    f"{path}, line {number}: {row[name]!r} in column {name!r} is not a number."
                )
        if len(values) < 2:
            raise ValueError(
                f"{path} has {len(values)} rows, but a line needs at least two points."
            )
        if min(values) == max(values):
            raise ValueError(
                f"column {name!r} of {path} is {values[0]:g} in every row, but must vary."
            )
        columns.append(np.array(values))
    centre, scale = zip(*((column.mean(), column.std()) for column in columns), strict=True)
    return Problem(columns[0], columns[1], (x, y), centre, scale)


def contraction(run: jaxfit.Run, best: jax.Array) -> float:
    """Return the factor by which the distance to the best line shrank per step, late in the run.

    It is measured from where a tenth of the distance is left to where rounding begins. It is 0 if
    the first step goes all the way, and nan if there are too few steps.
    """
    distance = np.linalg.norm(np.asarray(run.trajectory["params"] - best, np.float64), axis=1)
    relative = distance / distance[0]
    if len(relative) > 1 and relative[1] < 1e-4:
        return 0.0
    late = np.flatnonzero((relative < 1e-1) & (relative > 1e-4))
    if len(late) < 2:
        return math.nan
    return float((relative[late[-1]] / relative[late[0]]) ** (1 / (late[-1] - late[0])))


def study(problem: Problem, steps: int, lr: float) -> dict[str, jaxfit.Run]:
    """Run the lesson and print its results; return the runs, each under its learning rate."""
    x, y = problem.data
    start = jnp.array(GUESS)
    eigenvalues = np.linalg.eigvalsh(2 * np.asarray(x.T @ x, np.float64) / len(y))
    limit, best_rate = 2 / eigenvalues[-1], 2 / (eigenvalues[0] + eigenvalues[-1])
    if lr >= limit:
        raise ValueError(
            f"--lr is {lr:g}, but on these data gradient descent is stable below {limit:.3g}, "
            f"which is 2 over the largest curvature: choose a smaller rate."
        )

    print(f"{len(y)} points; the first five ({problem.names[0]}, {problem.names[1]}):")
    for one, other in zip(problem.x[:5], problem.y[:5], strict=True):
        print(f"  {one:10.4f} {other:10.4f}")
    print(f"\nA guess, a = {GUESS}: mean squared error {problem.error(start):.4f}")

    print(f"\nGradient descent, {steps} steps at learning rate {lr:g}:")
    run = jaxfit.train(loss, start, optax.sgd(lr), steps, data=(x, y))
    shown = problem.in_units(run)
    for step in range(0, steps, max(1, steps // 10)):
        print(f"  step {step:4d}   loss {shown.trajectory['loss'][step]:.4f}")
    best = jnp.asarray(np.linalg.lstsq(np.asarray(x), np.asarray(y), rcond=None)[0])
    print("\n                       slope    intercept")
    for name, a in (("gradient descent", run.state.params), ("least squares", best)):
        slope, intercept = problem.line(a)
        print(f"  {name:16} {slope:9.3f} {intercept:12.3f}")

    print("\nThe trajectory, beside theory:")
    print("  learning rate   steps   contraction per step   in theory   loss above the least")
    fast = jaxfit.train(loss, start, optax.sgd(best_rate), max(1, steps // 10), data=(x, y))
    for rate, one in ((lr, run), (best_rate, fast)):
        theory = max(abs(1 - rate * eigenvalues[0]), abs(1 - rate * eigenvalues[-1]))
        excess = max(problem.error(one.state.params) - problem.error(best), 0.0)
        measured = contraction(one, best)
        print(f"  {rate:13.3f} {len(one.steps):7d} {measured:22.3f} {theory:11.3f} {excess:22.2e}")
    return {
        f"learning rate {lr:g}": run,
        f"the best constant rate, {best_rate:.3g}": fast,
    }


def draw(
    problem: Problem, runs: dict[str, jaxfit.Run], out: pathlib.Path, animate: bool
) -> FuncAnimation | None:
    """Draw everything from the trajectories and list the files; return the animation, if any."""
    figures, animation = {}, None

    def axes() -> plt.Axes:
        return plt.subplots(figsize=(5, 3.75), layout="constrained")[1]

    def picture(ax: plt.Axes, name: str, title: str, names: tuple[str, str]) -> None:
        ax.set(title=title, xlabel=names[0], ylabel=names[1])
        figures[name] = ax.figure

    def fitted(a: jax.Array | None, label: str, name: str, title: str) -> None:
        line = None if a is None else problem.line(a)
        ax = plot.fit(linear, line, problem.points, ax=axes(), label=label)
        picture(ax, name, title, problem.names)

    (label, run), (fast_label, fast) = runs.items()
    start, end = run.trajectory["params"][0], run.state.params
    fitted(None, "", "data", "The data")
    fitted(start, "guess", "guess", f"A guess: mean squared error {problem.error(start):.4g}")
    fitted(end, "fit", "fit", f"The fit: mean squared error {problem.error(end):.4g}")

    shown = problem.in_units(run)
    ax = plot.loss(shown, ax=axes(), label=label)
    plot.loss(problem.in_units(fast), ax=ax, label=fast_label, color=ORANGE)
    picture(ax, "loss", "The loss on the way down", ("step", "mean squared error"))

    scaled = "" if problem.scale == (1.0, 1.0) else ", scaled"
    ax = plot.path(run, loss, problem.data, ax=axes(), label=label)
    picture(
        ax,
        "path",
        "The way down, over contours of the loss",
        ("slope" + scaled, "intercept" + scaled),
    )

    written = _command.save(figures, out)
    if animate:

        def moving(frames: int) -> FuncAnimation:
            ax = axes()
            ax.set(xlabel=problem.names[0], ylabel=problem.names[1])
            shown_for = 2000 // frames  # milliseconds
            return plot.animate_fit(
                shown, linear, problem.points, interval=shown_for, most=frames, ax=ax
            )

        animation = moving(100)
        written += [
            plot.save(animation, out / "fit.html"),
            plot.save(moving(25), out / "fit.gif", dpi=64),  # of which every frame costs 4 KB
        ]
    _command.list_files(written)
    return animation


def main() -> None:
    """Run the study from the command line."""
    parser = _command.parser("linear_regression", __doc__)
    parser.add_argument(
        "--csv", type=pathlib.Path, metavar="FILE", help="fit a line to two columns of this file"
    )
    parser.add_argument("--x", metavar="COLUMN", help="with --csv: the column to predict from")
    parser.add_argument("--y", metavar="COLUMN", help="with --csv: the column to predict")
    parser.add_argument("--steps", type=int, default=100, help="number of steps (default: 100)")
    parser.add_argument("--lr", type=float, default=0.1, help="learning rate (default: 0.1)")
    parser.add_argument("--no-animation", action="store_true", help="draw no animation")

    def lesson(arguments: argparse.Namespace) -> FuncAnimation | None:
        _command.check_range("steps", arguments.steps, 1, 2**31 - 1)
        _command.check_positive("lr", arguments.lr)
        if arguments.csv is None:
            if arguments.x or arguments.y:
                raise ValueError("--x and --y name columns of a file: give it with --csv FILE.")
            x, y = jaxfit.data.line(jax.random.key(arguments.seed))
            problem = Problem(np.asarray(x[:, 0]), np.asarray(y))
        else:
            if not (arguments.x and arguments.y):
                raise ValueError("--csv needs --x COLUMN and --y COLUMN, the two columns to fit.")
            problem = read_csv(arguments.csv, arguments.x, arguments.y)
        runs = study(problem, arguments.steps, arguments.lr)
        return draw(problem, runs, arguments.out, not arguments.no_animation)

    _command.run(parser, lesson)


if __name__ == "__main__":
    main()
