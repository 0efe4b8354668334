"""Share what the studies have in common: options, errors, data and files."""

from __future__ import annotations

import argparse
import importlib
import io
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
from PIL import Image

import jaxfit


def parser(name: str, doc: str) -> argparse.ArgumentParser:
    """Return a parser of the options that every study has: --seed, --out and --show."""
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{name}", description=doc.splitlines()[0]
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("out") / name,
        metavar="DIR",
        help=f"folder for the pictures (default: out/{name})",
    )
    parser.add_argument("--show", action="store_true", help="also show the pictures in windows")
    return parser


def run(parser: argparse.ArgumentParser, study: Callable[[argparse.Namespace], Any]) -> None:
    """Run ``study(arguments)``. If the arguments are wrong, exit with a sentence that says why."""
    arguments = parser.parse_args()
    name = parser.prog.split(".")[-1]
    if not arguments.show:
        matplotlib.use("agg")
    try:
        if abs(arguments.seed) >= 2**31:
            raise ValueError(f"--seed is {arguments.seed}, but must be less than 2**31.")
        arguments.out.mkdir(parents=True, exist_ok=True)
        # matplotlib stops an animation that nothing refers to.
        _held = study(arguments)
    except OSError as error:
        if error.filename is None:  # such as a closed pipe
            raise
        parser.exit(2, f"{name}: {error.filename} cannot be written: {error.strerror}.\n")
    except (ImportError, ValueError) as error:
        parser.exit(2, f"{name}: {error}\n")
    if arguments.show:
        plt.show()


def check_range(name: str, value: int, least: int, most: int) -> None:
    """Raise a ValueError unless the option's value is between two limits, both included."""
    if not least <= value <= most:
        raise ValueError(f"--{name} is {value}, but must be from {least} to {most}.")


def check_positive(name: str, value: float) -> None:
    """Raise a ValueError unless the option's value is greater than zero."""
    if not value > 0:
        raise ValueError(f"--{name} is {value:g}, but must be more than 0.")


def require(module: str, project: str) -> Any:
    """Import an optional dependency, or raise an ImportError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{project} is not installed, or broken ({error}): "
            f'run pip install -e ".[test]" from a checkout.'
        ) from error


def load_digits() -> tuple[jax.Array, jax.Array]:
    """Return scikit-learn's handwritten digits: x [1797, 64], from 0 to 1, and y [1797]."""
    x, y = require("sklearn.datasets", "scikit-learn").load_digits(return_X_y=True)
    return jnp.asarray(x / 16, jnp.float32), jnp.asarray(y, jnp.int32)


def split_digits(key: jax.Array) -> tuple[Any, Any]:
    """Return the handwritten digits, split into training data and, for a fifth, test data."""
    return jaxfit.data.train_test_split(load_digits(), 0.2, key)


def save(figures: Mapping[str, plt.Figure], folder: pathlib.Path) -> list[pathlib.Path]:
    """Save each figure as a PNG file of 256 colours under its name, and return the paths."""
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=100)
        with Image.open(drawn) as image:  # which as it is takes three times the room
            image.convert("RGB").quantize(256).save(paths[-1], optimize=True)
    return paths


def list_files(paths: Iterable[pathlib.Path]) -> None:
    """Print the paths and the sizes of files that a study has written."""
    print("\nWritten:")
    for path in paths:
        print(f"  {path}  {path.stat().st_size / 1024:.0f} KB")
