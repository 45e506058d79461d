"""Pictures of a fitted model, with Matplotlib (``pip install 'gplvm-xp[plot]'``).

Every function draws on the Axes it is given, or on a Figure of its own without pyplot's global
state, and returns the Axes: ``latent(model, labels).figure.savefig("picture.png")``.
"""

from __future__ import annotations

from gplvm_xp.plot._fit import loss, relevance
from gplvm_xp.plot._function import decision, function
from gplvm_xp.plot._latent import latent
from gplvm_xp.plot._overview import overview
from gplvm_xp.plot._rate_map import rate_map

__all__ = ["decision", "function", "latent", "loss", "overview", "rate_map", "relevance"]
