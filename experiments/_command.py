"""What the studies' commands share: options, refusals in a sentence, windows at the end."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable
from typing import Any

import matplotlib
import matplotlib.pyplot as plt


def parser(name: str, doc: str) -> argparse.ArgumentParser:
    """A parser of the options that every study has: --seed, --out and --show."""
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{name}", description=doc.splitlines()[0]
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is random, default 0")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("out") / name,
        metavar="DIR",
        help=f"where pictures go, default out/{name}",
    )
    parser.add_argument(
        "--show", action="store_true", help="open windows with the pictures at the end"
    )
    return parser


def run(parser: argparse.ArgumentParser, study: Callable[[argparse.Namespace], Any]) -> None:
    """Run ``study(arguments)``; say in one sentence what is wrong with the arguments, if it is."""
    arguments = parser.parse_args()
    name = parser.prog.split(".")[-1]
    if not arguments.show:
        matplotlib.use("agg")
    try:
        if abs(arguments.seed) >= 2**31:
            raise ValueError(f"--seed is {arguments.seed}, but must be less than 2**31.")
        arguments.out.mkdir(parents=True, exist_ok=True)
        # matplotlib wants an animation to be held while it is shown.
        _held = study(arguments)
    except OSError as error:
        if error.filename is None:  # a pipe that was closed, say
            raise
        parser.exit(2, f"{name}: {error.filename} cannot be written: {error.strerror}.\n")
    except (ImportError, ValueError) as error:
        parser.exit(2, f"{name}: {error}\n")
    if arguments.show:
        plt.show()


def between(name: str, value: int, least: int, most: int) -> None:
    """Refuse a number that is not in a range."""
    if not least <= value <= most:
        raise ValueError(f"--{name} is {value}, but must be from {least} to {most}.")


def written(path: pathlib.Path) -> None:
    """Say what was written where."""
    print(f"  {path}  {path.stat().st_size / 1024:.0f} KB")
