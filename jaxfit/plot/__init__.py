"""Pictures of runs, drawn after the run from its trajectory; matplotlib only.

Every function takes ``ax=None`` and draws on a new figure's axes then. Colours are those of Okabe
and Ito, which all kinds of colour vision tell apart.
"""

from jaxfit.plot.animation import animate_fit, save
from jaxfit.plot.static import fit, loss, path

__all__ = ["animate_fit", "fit", "loss", "path", "save"]
