"""What a fitted model with inducing inputs says about other points, whoever fitted it."""

from __future__ import annotations

from gplvm_xp.inducing.base import InducingPosterior
from gplvm_xp.inducing.latents import NewLatents
from gplvm_xp.inducing.points import NewPoints
from gplvm_xp.inducing.search import Placed

__all__ = ["InducingPosterior", "NewLatents", "NewPoints", "Placed"]
