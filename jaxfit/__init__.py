"""jaxfit: gradient-based optimisation in JAX, where a training run is a value."""

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
    "record",
    "replay",
    "search",
    "stop",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    """Load ``jaxfit.analysis`` when it is first used."""
    if name == "analysis":
        return importlib.import_module("jaxfit.analysis")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
