"""Priors that tie the latents of all rows together: dynamics, time, labels."""

from __future__ import annotations

from gplvm_xp.latents import StructuredPrior
from gplvm_xp.row_priors.base import OverSequences, Path
from gplvm_xp.row_priors.discriminative import Discriminative
from gplvm_xp.row_priors.dynamics import Dynamics
from gplvm_xp.row_priors.over_time import OverTime

__all__ = [
    "Discriminative",
    "Dynamics",
    "OverSequences",
    "OverTime",
    "Path",
    "StructuredPrior",
]
