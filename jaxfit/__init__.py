from jaxfit import record
from jaxfit.train import Run, State, Step, init, train

__all__ = ["Run", "State", "Step", "init", "record", "train"]
