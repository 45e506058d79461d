"""Parameterisations of a Gaussian posterior's covariance."""

from __future__ import annotations

from gplvm_xp.posteriors.base import Covariance, State, Variances

__all__ = ["Covariance", "State", "Variances"]
