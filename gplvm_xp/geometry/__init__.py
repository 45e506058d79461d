"""Geometry of a fitted model: slopes, metric, magnification, geodesics."""

from __future__ import annotations

from gplvm_xp.geometry.geodesic import Geodesic, curve_length, geodesic
from gplvm_xp.geometry.surface import Group, Surface, log_volume

__all__ = ["Geodesic", "Group", "Surface", "curve_length", "geodesic", "log_volume"]
