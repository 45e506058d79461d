"""Expectations of kernels under Gaussian latents: analytic where known, else by quadrature."""

from __future__ import annotations

from gplvm_xp.kernels.base import Kernel
from gplvm_xp.kernels.psi.base import Contracted, Psi, Statistics
from gplvm_xp.kernels.psi.quadrature import QuadraturePsi
from gplvm_xp.kernels.psi.rbf import RBFPsi
from gplvm_xp.kernels.psi.sums import SumPsi
from gplvm_xp.kernels.psi.terms import terms_of
from gplvm_xp.kernels.stationary import RBF


def psi_of(kernel: Kernel) -> Psi:
    """The fastest right way to a kernel's psi statistics.

    Analytic for RBF, linear, constant and white kernels, on any dimensions and with any scale, for
    all their sums, and for products without a linear factor other than times a constant; else by
    quadrature of the whole tree.
    """
    if type(kernel) is RBF:
        return RBFPsi()
    terms = terms_of(kernel)
    return QuadraturePsi(kernel) if terms is None else SumPsi(terms)


__all__ = ["Contracted", "Psi", "QuadraturePsi", "RBFPsi", "Statistics", "SumPsi", "psi_of"]
