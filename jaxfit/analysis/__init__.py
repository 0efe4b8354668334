"""Examine a run after it: curvature, noise, landscape, stability, rates of convergence.

Every function takes one point of a run, so each is the body of a recorder:
``record=lambda step: analysis.curvature(loss, step.params, data=step.batch).eigenvalues``. `along`
computes any function of a `Step` after the run, at chosen steps.
"""

from jaxfit.analysis.along import along
from jaxfit.analysis.compare import Comparison, compare
from jaxfit.analysis.convergence import (
    Convergence,
    SuggestedRates,
    convergence,
    suggest_rates,
)
from jaxfit.analysis.curvature import Curvature, curvature, preconditioner
from jaxfit.analysis.landscape import PCA, Line, Plane, line, pca, plane
from jaxfit.analysis.noise import GradientNoise, gradient_noise
from jaxfit.analysis.spectrum import Spectrum, Trace, spectrum, trace
from jaxfit.analysis.steps import Stability, StepQuality, edge, stability, step_quality

__all__ = [
    "PCA",
    "Comparison",
    "Convergence",
    "Curvature",
    "GradientNoise",
    "Line",
    "Plane",
    "Spectrum",
    "Stability",
    "StepQuality",
    "SuggestedRates",
    "Trace",
    "along",
    "compare",
    "convergence",
    "curvature",
    "edge",
    "gradient_noise",
    "line",
    "pca",
    "plane",
    "preconditioner",
    "spectrum",
    "stability",
    "step_quality",
    "suggest_rates",
    "trace",
]
