"""Draw runs after the fact, from their trajectories, with matplotlib.

Every function that draws takes ``ax``, the axes to draw on, and makes a new figure if it is None.
Colours are from the palette of Okabe and Ito, which can be told apart with any colour vision;
the rest of the style is matplotlib's ``rcParams``.
"""

from jaxfit.plot.animation import animate_fit, animate_path
from jaxfit.plot.curves import loss
from jaxfit.plot.dashboard import dashboard
from jaxfit.plot.landscape import intervals, plane, profiles
from jaxfit.plot.moving import animate_boundary, animate_spectrum, animate_tiles
from jaxfit.plot.networks import bands, boundary, confusion
from jaxfit.plot.player import save, show
from jaxfit.plot.races import animate_race
from jaxfit.plot.results import eigenvalues, line, noise, range_test, spectrum
from jaxfit.plot.static import fit, path
from jaxfit.plot.sweeps import heatmap, rates
from jaxfit.plot.weights import tiles

__all__ = [
    "animate_boundary",
    "animate_fit",
    "animate_path",
    "animate_race",
    "animate_spectrum",
    "animate_tiles",
    "bands",
    "boundary",
    "confusion",
    "dashboard",
    "eigenvalues",
    "fit",
    "heatmap",
    "intervals",
    "line",
    "loss",
    "noise",
    "path",
    "plane",
    "profiles",
    "range_test",
    "rates",
    "save",
    "show",
    "spectrum",
    "tiles",
]
