"""Parameterisations of a Gaussian posterior's covariance."""

from __future__ import annotations

from gplvm_xp.posteriors.base import Covariance, State, Variances
from gplvm_xp.posteriors.basis_diagonal import BasisDiagonal
from gplvm_xp.posteriors.cholesky import Cholesky
from gplvm_xp.posteriors.convolutional import Convolutional
from gplvm_xp.posteriors.full import Full
from gplvm_xp.posteriors.inverse_diagonal import InverseDiagonal
from gplvm_xp.posteriors.lowrank import LowRank
from gplvm_xp.posteriors.subspace import Subspace

__all__ = [
    "BasisDiagonal",
    "Cholesky",
    "Convolutional",
    "Covariance",
    "Full",
    "InverseDiagonal",
    "LowRank",
    "State",
    "Subspace",
    "Variances",
]
