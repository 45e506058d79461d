"""scikit-learn estimators: what most people touch."""

from __future__ import annotations

from gplvm_xp.estimators.gplvm import GPLVM

__all__ = ["GPLVM"]
