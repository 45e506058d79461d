"""Linear maps and prior precisions, dense and with structure."""

from __future__ import annotations

from gplvm_xp.operators.base import LinearMap, Precision

__all__ = ["LinearMap", "Precision"]
