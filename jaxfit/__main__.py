"""Say how a run or a sweep on disk is doing: ``python -m jaxfit DIRECTORY``."""

from __future__ import annotations

import argparse
import pathlib

import numpy as np

from jaxfit import __version__
from jaxfit._disk.sweep_manifest import read_sweep
from jaxfit.checkpoint import load


def main() -> None:
    """Print a summary of a run or sweep, finished or not; draw a run's dashboard if asked to."""
    parser = argparse.ArgumentParser(prog="python -m jaxfit", description=__doc__)
    parser.add_argument(
        "directory", type=pathlib.Path, help="the checkpoint_dir of a fit or sweep, running or not"
    )
    parser.add_argument(
        "--plot",
        type=pathlib.Path,
        metavar="FILE",
        help="draw a run's dashboard as .png, .svg or .pdf",
    )
    parser.add_argument("--version", action="version", version=f"jaxfit {__version__}")
    arguments = parser.parse_args()
    try:
        if read_sweep(arguments.directory) is None:
            _show_run(arguments.directory, arguments.plot)
        elif arguments.plot is None:
            print(summarize_sweep(arguments.directory))
        else:
            raise ValueError(
                f"{arguments.directory} holds a sweep, but --plot draws a run: leave it out."
            )
    except (ImportError, OSError, ValueError) as error:
        parser.exit(2, f"jaxfit: {error}\n")


def _show_run(directory: pathlib.Path, picture: pathlib.Path | None) -> None:
    run = load(directory)
    import matplotlib

    matplotlib.use("agg")
    from jaxfit.plot.dashboard import dashboard, summary

    print(summary(run))
    if picture is not None:
        dashboard(run)[0].figure.savefig(picture, dpi=100)
        print(f"Written: {picture}")


def summarize_sweep(directory: pathlib.Path) -> str:
    """Return a sweep on disk in a few lines: what is done of it, and the lowest of every score.

    Args:
      directory: the ``checkpoint_dir`` of the sweep.
    """
    try:
        import xarray
    except ImportError as error:
        raise ImportError(
            'a sweep on disk needs xarray: run pip install "jaxfit-train[analysis]".'
        ) from error
    with xarray.open_zarr(directory / "values.zarr") as stored:
        # A sweep whose own names include "done" has its mask under the next that is free.
        mask = max((name for name in stored if str(name).rstrip("_") == "done"), key=len)
        done = stored[mask]
        axes = ", ".join(f"{name} [{size}]" for name, size in done.sizes.items())
        lines = [f"{int(done.sum()):,} of {done.size:,} runs: {axes}"]
        for name, values in stored.data_vars.items():
            if name == mask or values.dims != done.dims or values.dtype.kind not in "iuf":
                continue
            scores = values.where(done & np.isfinite(values))
            lines.append(f"{name}: {int(done.sum() - scores.count()):,} not finite")
            if scores.count():
                lowest = scores[scores.argmin(...)]
                place = ", ".join(
                    f"{axis}={label.values!s}" for axis, label in lowest.coords.items()
                )
                lines[-1] += f", lowest {lowest.item():.4g} at {place}"
    return "\n".join(lines)


if __name__ == "__main__":
    main()
