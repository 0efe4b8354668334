"""Gradient-based optimisation in JAX, where a training run is a value.

.. include:: README.md
"""

import importlib
from typing import Any

from jaxfit import callbacks, data, losses, models, record, search, stop
from jaxfit._version import __version__
from jaxfit.blame import Blame, blame
from jaxfit.checkpoint import load
from jaxfit.data import minibatches
from jaxfit.fit import fit
from jaxfit.halving import halving
from jaxfit.replay import at, best, fork, replay
from jaxfit.stream import host_batches
from jaxfit.sweep import Sweep, sweep
from jaxfit.train import Run, State, Step, init, train

__all__ = [
    "Blame",
    "Run",
    "State",
    "Step",
    "Sweep",
    "__version__",
    "analysis",
    "at",
    "best",
    "blame",
    "callbacks",
    "data",
    "fit",
    "fork",
    "halving",
    "host_batches",
    "init",
    "load",
    "losses",
    "minibatches",
    "models",
    "plot",
    "record",
    "replay",
    "search",
    "stop",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    """Load ``jaxfit.analysis`` and ``jaxfit.plot``, which need more, when they are first used."""
    if name in ("analysis", "plot"):
        return importlib.import_module(f"jaxfit.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
