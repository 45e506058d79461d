"""What a second-order method has shown of the point where it ended."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Certificate:
    """Whether the end of a search is a local minimum, and the numbers that say so.

    Attributes
    ----------
    certified : bool
        The gradient is below the tolerance, and the Hessian across the flat directions is positive
        definite: it has a Cholesky factor, and its smallest Ritz value is above rounding. Along the
        flat directions it vanishes.
    grad_norm : float
        Largest absolute entry of the gradient.
    smallest_ritz_value : float
        Of the Hessian across the flat directions: its smallest eigenvalue to the accuracy of
        ``ritz_residual``, or where it is not positive definite the curvature along the most
        negative direction found. NaN where the search ended too early to look.
    ritz_residual : float
        ‖H v − λ v‖ of the unit vector v behind it, H v being a Hessian-vector product.
    gauge_dimension : int
        Number of flat directions: ways to move that change nothing, such as rotations.
    n_escaped : int
        Saddle points that the search arrived at and left.
    hvps : int
        Products with the Hessian, of the whole search.
    message : str
        The same in words.
    """

    certified: bool
    grad_norm: float
    smallest_ritz_value: float = math.nan
    ritz_residual: float = math.nan
    gauge_dimension: int = 0
    n_escaped: int = 0
    hvps: int = 0
    message: str = ""


__all__ = ["Certificate"]
