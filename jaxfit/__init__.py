"""jaxfit: gradient-based optimisation in JAX, where a training run is a value."""

from jaxfit import data, losses, models, record
from jaxfit.data import minibatches
from jaxfit.train import Run, State, Step, init, train

__all__ = [
    "Run",
    "State",
    "Step",
    "data",
    "init",
    "losses",
    "minibatches",
    "models",
    "record",
    "train",
]
