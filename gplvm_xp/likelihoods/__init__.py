"""Likelihoods and their expectations under a Gaussian."""

from __future__ import annotations

from gplvm_xp.likelihoods.base import Expected, Likelihood

__all__ = ["Expected", "Likelihood"]
