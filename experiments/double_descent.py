"""Measure the excess risk of least squares against the number of features, beside theory.

With few features the risk falls as more of the truth is seen, and rises with the noise that is
fitted; it is infinite where there are as many features as examples, and falls again beyond. Theory
is exact for normal features and any number of them (Belkin, Hsu & Xu 2020, `Two Models of Double
Descent for Weak Features <https://arxiv.org/abs/1903.07571>`_; Hastie et al. 2022, `Surprises in
High-Dimensional Ridgeless Least Squares Interpolation <https://arxiv.org/abs/1903.08560>`_). Two
problems are compared with it: one whose p features are equally important, and one with 400, ever
less important, of which the model sees the first p.

The minimum-norm solution of all draws is computed directly, by Cholesky's method in float64, since
gradient descent slows down without limit where the risk peaks. Training from zero by gradient
descent, with momentum and without, is run on a few draws and set beside it. Away from the peak both
end there, to rounding. Near it only momentum does, within 500 steps, and at the peak neither: there
a run that is stopped early has a far lower risk than the solution it goes to. In the second problem
the second descent does not come down to the minimum before the peak.
"""

from __future__ import annotations

import argparse
import math

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments import _command, _double_descent
from experiments._double_descent import (
    ALL,
    CONFIDENCE,
    EXAMPLES,
    METHODS,
    PROBLEMS,
    Row,
    Trained,
    compare,
    draw,
    risks,
    theory,
    trained,
)
from jaxfit.plot.static import BLACK, BLUE, GREEN, ORANGE

FEW = 16  # draws on which gradient descent is run


def study(draws: int, steps: int, key: jax.Array) -> tuple[list[Row], Trained]:
    """Solve and train least squares, print what was found beside theory, and return it."""
    drawn = draw(key, draws)
    found = risks(drawn)
    rows = compare(found)
    print(f"The excess risk of least squares on {EXAMPLES} examples, over {draws} draws. The")
    print(f"intervals hold the theory of all rows with {CONFIDENCE:.0%} confidence:\n")
    print(
        "  problem          features   measured  std. error   interval     theory  inside   median"
    )
    for row in rows:
        known = math.isfinite(row.expected)  # or the mean of draws says little
        mean = f"{row.measured:11.4f}{row.error:12.4f}{row.margin:11.4f}" if known else 34 * " "
        inside = "–" if not known else "yes" if row.inside else "NO"
        print(f"  {row.problem:16}{row.p:9d}{mean}{row.expected:11.4f}{inside:>8}", end="")
        print(f"{row.median:9.3f}")
    finite = [row for row in rows if math.isfinite(row.expected)]
    print(f"\n{sum(row.inside for row in finite)} of {len(finite)} are inside.")

    few = min(FEW, draws)
    runs = trained(jax.tree.map(lambda leaf: leaf[:few], drawn), steps)
    print(f"\n{PROBLEMS[0].name}, {steps} steps from zero on {few} of the draws: the distance from")
    print("the solution, relative to its length, and the mean risk, the solution's in the end:\n")
    print("  features  method               median    largest       risk   solution's")
    for number, p in enumerate(_double_descent.TRAINED):
        exact = found[_double_descent.FEATURES.index(p), 0, :few].mean()
        for method, risk, away in zip(
            METHODS, runs.risk[number], runs.distance[number], strict=True
        ):
            print(f"{p:10d}  {method:17}{np.median(away):10.1e} {away.max():10.1e}", end="")
            print(f" {risk.mean():10.4g} {exact:12.4g}")
    print_minima()
    return rows, runs


def print_minima() -> None:
    """Print where theory has its minima, before the peak and beyond it."""
    print("\nThe least risk in theory, before the peak and beyond it:")
    for problem in PROBLEMS:
        print(f"  {problem.name:16}", end="")
        for side in (range(1, EXAMPLES), range(EXAMPLES, ALL + 1)):
            best = min(side, key=lambda p: theory(problem, p))
            print(f"{theory(problem, best):8.4f} with {best} features", end="")
        print()


def draw_risks(rows: list[Row], runs: Trained) -> plt.Figure:
    """Draw the risk of each problem against the number of features."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    for problem, ax in zip(PROBLEMS, panels, strict=True):
        line = np.array([theory(problem, p) for p in range(1, ALL + 1)])
        line[np.isinf(line)] = np.nan  # a gap, at the peak
        ax.plot(range(1, ALL + 1), line, color=BLUE, linewidth=1, label="theory")
        ax.axvline(EXAMPLES, color=BLACK, linestyle=":", linewidth=1, label="number of examples")
        here = [row for row in rows if row.problem == problem.name]
        known = [row for row in here if math.isfinite(row.expected)]
        style = {"color": BLACK, "linestyle": "none", "marker": ".", "capsize": 3, "zorder": 3}
        p, means, margins = np.transpose([(row.p, row.measured, row.margin) for row in known])
        ax.errorbar(p, means, margins, label="solution: mean, interval", **style)
        peaks = [row for row in here if row not in known]
        ax.plot([row.p for row in peaks], [row.median for row in peaks], "*", color=BLACK)
        ax.lines[-1].set_label("solution: median, where the mean is infinite")
        ax.set(title=problem.name, xlabel="features p", yscale="log")
    panels[0].set_ylabel("excess risk")
    marks = zip(METHODS, (ORANGE, GREEN), ("v", "^"), runs.risk.mean(axis=-1).T, strict=True)
    for method, colour, mark, values in marks:
        style = {
            "markerfacecolor": "none",
            "markersize": 8,
            "label": f"{method}: mean of a few draws",
        }
        panels[0].plot(_double_descent.TRAINED, values, mark, color=colour, **style)
    panels[0].legend(fontsize=8)
    figure.suptitle(
        f"Least squares on {EXAMPLES} examples: the risk peaks where it can just fit all"
    )
    return figure


def main() -> None:
    """Run the study from the command line."""
    parser = _command.parser("double_descent", __doc__)
    option = parser.add_argument
    option("--draws", type=int, default=200, help="draws of the examples (default: 200)")
    option("--steps", type=int, default=500, help="steps of gradient descent (default: 500)")

    def descend(arguments: argparse.Namespace) -> None:
        _command.check_range("draws", arguments.draws, 2, 1000)
        _command.check_range("steps", arguments.steps, 1, 10_000)
        found = study(arguments.draws, arguments.steps, jax.random.key(arguments.seed))
        figures = {"risk": draw_risks(*found)}
        _command.list_files(_command.save(figures, arguments.out))

    _command.run(parser, descend)


if __name__ == "__main__":
    main()
