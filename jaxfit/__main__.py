"""Say how a run on disk is doing: ``python -m jaxfit RUN_DIRECTORY``."""

from __future__ import annotations

import argparse
import pathlib

from jaxfit.checkpoint import load


def main() -> None:
    """Print a summary of a run, finished or not, and draw its dashboard if asked to."""
    parser = argparse.ArgumentParser(prog="python -m jaxfit", description=__doc__)
    parser.add_argument(
        "directory", type=pathlib.Path, help="the checkpoint_dir of a fit, running or not"
    )
    parser.add_argument(
        "--plot", type=pathlib.Path, metavar="FILE", help="draw its dashboard as .png, .svg or .pdf"
    )
    arguments = parser.parse_args()
    try:
        run = load(arguments.directory)
        import matplotlib

        matplotlib.use("agg")
        from jaxfit.plot.dashboard import dashboard, summary

        print(summary(run))
        if arguments.plot is not None:
            dashboard(run)[0].figure.savefig(arguments.plot, dpi=100)
            print(f"Written: {arguments.plot}")
    except (ImportError, OSError, ValueError) as error:
        parser.exit(2, f"jaxfit: {error}\n")


if __name__ == "__main__":
    main()
