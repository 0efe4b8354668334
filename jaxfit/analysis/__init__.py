"""Examine a run after it: curvature, noise, landscape, stability, rates of convergence.

Every function takes one point of a run, so each is the body of a recorder:
``record=lambda step: analysis.curvature(loss, step.params, data=step.batch).eigenvalues``. `along`
computes any function of a `Step` after the run, at chosen steps.
"""

from jaxfit.analysis.along import along
from jaxfit.analysis.curvature import Curvature, curvature, preconditioner
from jaxfit.analysis.noise import GradientNoise, gradient_noise
from jaxfit.analysis.spectrum import Spectrum, Trace, spectrum, trace

__all__ = [
    "Curvature",
    "GradientNoise",
    "Spectrum",
    "Trace",
    "along",
    "curvature",
    "gradient_noise",
    "preconditioner",
    "spectrum",
    "trace",
]
