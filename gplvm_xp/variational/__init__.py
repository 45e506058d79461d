"""Variational inference: free energy, Newton-Krylov problems, fixed points, evidence."""

from __future__ import annotations

from gplvm_xp.variational.dense import DenseEvidence, DensePosterior
from gplvm_xp.variational.engines import Covariance, Engine, Information, Marginals
from gplvm_xp.variational.free_energy import FreeEnergy, FreeEnergyPoint
from gplvm_xp.variational.grid import GridEvidence, GridPosterior
from gplvm_xp.variational.observations import Observations, Slopes, Terms
from gplvm_xp.variational.parts import fixed_point_by_parts
from gplvm_xp.variational.sites import SiteProgress, SiteResult, fixed_point
from gplvm_xp.variational.stochastic import StochasticResult, natural_gradient

__all__ = [
    "Covariance",
    "DenseEvidence",
    "DensePosterior",
    "Engine",
    "FreeEnergy",
    "FreeEnergyPoint",
    "GridEvidence",
    "GridPosterior",
    "Information",
    "Marginals",
    "Observations",
    "SiteProgress",
    "SiteResult",
    "Slopes",
    "StochasticResult",
    "Terms",
    "fixed_point",
    "fixed_point_by_parts",
    "natural_gradient",
]
