"""The lesson on gradient descent: fit a line, watch it move, and see what theory says of it.

Noisy points on a line, the mean squared error, and 100 steps down its gradient; then what the whole
trajectory tells: how fast the run contracted beside how fast it had to, and what the best constant
rate would have done. With ``--csv`` the same study runs on two columns of a file of yours.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import pathlib

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxfit
from jaxfit import plot
from jaxfit.losses import mse, objective
from jaxfit.models import linear

GUESS = (-1.0, 1.0)
loss = objective(linear, mse)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Points as they are in the world, and how they are scaled for the descent."""

    x: np.ndarray  # [n]
    y: np.ndarray  # [n]
    names: tuple[str, str] = ("x", "y")
    centre: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)

    @property
    def data(self) -> tuple[jax.Array, jax.Array]:
        """x [n, 2] with a column of ones, and y [n], scaled."""
        x, y = (
            (column - centre) / scale
            for column, centre, scale in zip((self.x, self.y), self.centre, self.scale, strict=True)
        )
        return jnp.stack([jnp.asarray(x), jnp.ones(len(x))], axis=1), jnp.asarray(y)

    @property
    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """x [n, 2] with a column of ones, and y [n], as they are."""
        return np.stack([self.x, np.ones(len(self.x))], axis=1), self.y

    def line(self, a: jax.Array) -> np.ndarray:
        """Slope and intercept in the units of the points: a [..., 2] is scaled."""
        a = np.asarray(a, np.float64)
        slope = a[..., 0] * self.scale[1] / self.scale[0]
        intercept = self.centre[1] + a[..., 1] * self.scale[1] - slope * self.centre[0]
        return np.stack([slope, intercept], axis=-1)

    def in_units(self, run: jaxfit.Run) -> jaxfit.Run:
        """The run with its lines and losses in the units of the points, for pictures."""
        kept = run.trajectory | {
            "params": self.line(run.trajectory["params"]),
            "loss": np.asarray(run.trajectory["loss"]) * self.scale[1] ** 2,
        }
        return dataclasses.replace(run, trajectory=kept)


def read_csv(path: pathlib.Path, x: str, y: str) -> Problem:
    """Two columns of a CSV file with a header, standardised; a ValueError says what is wrong."""
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
    """The factor by which the distance to the best line shrank per step, late in the run.

    Measured from where half of the digits are won to where rounding begins; nan where a step wins
    them all.
    """
    distance = np.linalg.norm(np.asarray(run.trajectory["params"] - best, np.float64), axis=1)
    relative = distance / distance[0]
    late = np.flatnonzero((relative < 1e-1) & (relative > 1e-4))
    if len(late) < 2:
        late = np.flatnonzero(relative > 1e-4)
    if len(late) < 2:
        return math.nan
    return float((relative[late[-1]] / relative[late[0]]) ** (1 / (late[-1] - late[0])))


def study(problem: Problem, steps: int, lr: float, out: pathlib.Path, animate: bool) -> None:
    x, y = problem.data
    written: list[pathlib.Path] = []

    def picture(ax: plt.Axes, name: str, title: str) -> None:
        ax.set_title(title)
        written.append(out / name)
        ax.figure.savefig(written[-1], dpi=100)

    def axes() -> plt.Axes:
        return plt.subplots(figsize=(5, 3.75), layout="constrained")[1]

    def named(ax: plt.Axes) -> plt.Axes:
        ax.set(xlabel=problem.names[0], ylabel=problem.names[1])
        return ax

    print(f"{len(y)} points; the first five ({problem.names[0]}, {problem.names[1]}):")
    for one, other in zip(problem.x[:5], problem.y[:5], strict=True):
        print(f"  {one:10.4f} {other:10.4f}")
    picture(named(plot.fit(linear, None, problem.points, ax=axes())), "data.png", "The data")

    guess = jnp.array(GUESS)
    print(f"\nA guess, a = {GUESS}: mean squared error {loss(guess, (x, y)):.4f}")
    ax = plot.fit(linear, problem.line(guess), problem.points, ax=axes(), label="guess")
    picture(named(ax), "guess.png", f"A guess: mean squared error {loss(guess, (x, y)):.3f}")

    eigenvalues = np.linalg.eigvalsh(2 * np.asarray(x.T @ x, np.float64) / len(y))
    if lr >= (limit := 2 / eigenvalues[-1]):
        raise ValueError(
            f"--lr is {lr:g}, but on these data gradient descent is stable below {limit:.3g} only, "
            f"which is 2 over the largest curvature: choose a smaller rate."
        )

    print(f"\nGradient descent, {steps} steps at learning rate {lr:g}:")
    run = jaxfit.train(loss, guess, optax.sgd(lr), steps, data=(x, y))
    for step in range(0, steps, max(1, steps // 10)):
        print(f"  step {step:4d}   loss {run.trajectory['loss'][step]:.4f}")
    best = jnp.asarray(np.linalg.lstsq(np.asarray(x), np.asarray(y), rcond=None)[0])
    print("\n                     slope     intercept")
    for name, a in (("gradient descent", run.state.params), ("least squares", best)):
        slope, intercept = problem.line(a)
        print(f"  {name:16} {slope:9.3f} {intercept:12.3f}")

    shown = problem.in_units(run)
    ax = plot.fit(linear, problem.line(run.state.params), problem.points, ax=axes())
    picture(named(ax), "fit.png", f"The fit after {steps} steps")

    rate = 2 / (eigenvalues[0] + eigenvalues[-1])
    fewer = max(1, steps // 10)
    fast = jaxfit.train(loss, guess, optax.sgd(rate), fewer, data=(x, y))
    print("\nWhat the trajectory tells, beside theory:")
    print("  learning rate   steps   contraction per step   in theory   loss above the least")
    least = loss(best, (x, y))
    for eta, one in ((lr, run), (rate, fast)):
        theory = max(abs(1 - eta * eigenvalues[0]), abs(1 - eta * eigenvalues[-1]))
        excess = max(float(loss(one.state.params, (x, y)) - least), 0.0)
        measured = contraction(one, best)
        print(f"  {eta:13.3f} {len(one.steps):7d} {measured:22.3f} {theory:11.3f} {excess:22.2e}")

    ax = plot.loss(run, ax=axes(), label=f"learning rate {lr:g}")
    plot.loss(fast, ax=ax, label=f"best constant rate, {rate:.3g}", color="#D55E00")
    ax.axhline(float(least), color="black", linewidth=0.8, linestyle="--", label="least squares")
    ax.legend()
    picture(ax, "loss.png", "Mean squared error")
    names = (
        ("slope", "intercept")
        if problem.scale == (1.0, 1.0)
        else ("scaled slope", "scaled intercept")
    )
    ax = plot.path(run, loss, (x, y), ax=axes(), names=names, label=f"rate {lr:g}")
    picture(ax, "path.png", "The way down, over contours of the loss")

    if animate:
        ax = axes()
        animation = plot.animate_fit(shown, linear, problem.points, interval=20, ax=ax)
        named(ax)
        written += [plot.save(animation, out / f"fit{end}", dpi=72) for end in (".html", ".gif")]

    print("\nWritten:")
    for path in written:
        print(f"  {path}  {path.stat().st_size / 1024:.0f} KB")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.linear_regression", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--csv", type=pathlib.Path, metavar="FILE", help="fit two columns of this file"
    )
    parser.add_argument(
        "--x", metavar="COLUMN", help="with --csv: the column on the horizontal axis"
    )
    parser.add_argument("--y", metavar="COLUMN", help="with --csv: the column to predict")
    parser.add_argument("--steps", type=int, default=100, help="default 100")
    parser.add_argument("--lr", type=float, default=0.1, help="the learning rate, default 0.1")
    parser.add_argument("--seed", type=int, default=0, help="of the lesson's data, default 0")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("out/linear_regression"),
        metavar="DIR",
        help="where pictures go, default out/linear_regression",
    )
    parser.add_argument("--no-animation", action="store_true", help="draw no animation")
    parser.add_argument(
        "--show", action="store_true", help="open windows with the pictures at the end"
    )
    arguments = parser.parse_args()
    if not arguments.show:
        matplotlib.use("agg")
    try:
        if arguments.csv is None:
            if arguments.x or arguments.y:
                raise ValueError("--x and --y name columns of a file: give it with --csv FILE.")
            x, y = jaxfit.data.line(jax.random.key(arguments.seed))
            problem = Problem(np.asarray(x[:, 0]), np.asarray(y))
        else:
            if not (arguments.x and arguments.y):
                raise ValueError("--csv needs --x COLUMN and --y COLUMN, the two columns to fit.")
            problem = read_csv(arguments.csv, arguments.x, arguments.y)
        if arguments.steps < 1:
            raise ValueError(f"--steps is {arguments.steps}, but must be at least 1.")
        if not arguments.lr > 0:
            raise ValueError(f"--lr is {arguments.lr:g}, but a learning rate is positive.")
        arguments.out.mkdir(parents=True, exist_ok=True)
        study(problem, arguments.steps, arguments.lr, arguments.out, not arguments.no_animation)
    except (ValueError, OSError) as error:
        parser.exit(2, f"linear_regression: {error}\n")
    if arguments.show:
        plt.show()


if __name__ == "__main__":
    main()
