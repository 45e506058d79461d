"""Covariance functions: leaves, and the trees that ``+``, ``*`` and :class:`ActiveDims` make."""

from __future__ import annotations

from gplvm_xp.kernels.base import Kernel
from gplvm_xp.kernels.compose import ActiveDims, Product, Scale, Sum
from gplvm_xp.kernels.hexagonal import Hexagonal
from gplvm_xp.kernels.linear import Linear
from gplvm_xp.kernels.periodic import Periodic
from gplvm_xp.kernels.polynomial import Polynomial
from gplvm_xp.kernels.radial import Radial
from gplvm_xp.kernels.static import Constant, White
from gplvm_xp.kernels.stationary import RBF, Matern32, Matern52, RationalQuadratic

__all__ = [
    "RBF",
    "ActiveDims",
    "Constant",
    "Hexagonal",
    "Kernel",
    "Linear",
    "Matern32",
    "Matern52",
    "Periodic",
    "Polynomial",
    "Product",
    "Radial",
    "RationalQuadratic",
    "Scale",
    "Sum",
    "White",
]
