"""Draw runs after the fact, from their trajectories, with matplotlib.

Every function that draws takes ``ax``, the axes to draw on, and makes a new figure if it is None.
Colours are from the palette of Okabe and Ito, which can be told apart with any colour vision.
"""

from jaxfit.plot.animation import animate_fit
from jaxfit.plot.player import save, show
from jaxfit.plot.static import fit, loss, path

__all__ = ["animate_fit", "fit", "loss", "path", "save", "show"]
