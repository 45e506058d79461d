"""Linear maps and prior precisions, dense and with structure."""

from __future__ import annotations

from gplvm_xp.operators.base import LinearMap, Precision
from gplvm_xp.operators.circulant import (
    Circulant,
    Toeplitz,
    eigenvalues_of,
    eigenvalues_pullback,
    lags,
    padded,
)
from gplvm_xp.operators.hartley import Hartley
from gplvm_xp.operators.maps import Dense, Identity
from gplvm_xp.operators.precision import DensePrecision, DiagonalPrecision, GramPrecision

__all__ = [
    "Circulant",
    "Dense",
    "DensePrecision",
    "DiagonalPrecision",
    "GramPrecision",
    "Hartley",
    "Identity",
    "LinearMap",
    "Precision",
    "Toeplitz",
    "eigenvalues_of",
    "eigenvalues_pullback",
    "lags",
    "padded",
]
