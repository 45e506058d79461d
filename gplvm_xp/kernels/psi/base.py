"""What psi statistics are: expectations of a kernel under q(x_n) = N(μ_n, diag S_n).

For rows n, inducing inputs Z (M, q) and row weights W (n, r):

* ψ0_n = E[k(x_n, x_n)], Ψ1_nm = E[k(x_n, z_m)], Ψ2⁽ⁿ⁾_mm′ = E[k(z_m, x_n) k(x_n, z_m′)];
* of the last only the weighted sums Ψ2_k = Σ_n W_nk Ψ2⁽ⁿ⁾ are ever made, never an n × M × M array.

Two functions carry everything. :meth:`Psi.forward` gives the statistics of a chunk of rows, and
:meth:`Psi.contract` the gradients of their product with cotangents, a number for each row besides:
T_n = g0_n ψ0_n + Σ_m G1_nm Ψ1_nm + Σ_k W_nk ⟨G2_k, Ψ2⁽ⁿ⁾⟩. The caller cuts the rows into chunks
(:func:`gplvm_xp.objectives.rows.forward`), so that a chunk's temporaries fit the cache.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from gplvm_xp._typing import Array


class Statistics(NamedTuple):
    """Psi statistics of a chunk of rows.

    Attributes
    ----------
    psi0 : array (n,)
    psi1 : array (n, M)
    psi2 : array (r, M, M)
        Σ_n W_nk Ψ2⁽ⁿ⁾, symmetric, both triangles.
    """

    psi0: Array
    psi1: Array
    psi2: Array


class Contracted(NamedTuple):
    """The contraction of a chunk's statistics with cotangents, and its gradients.

    Attributes
    ----------
    value : array (n,)
        T_n of each row; the gradients are those of Σ_n T_n.
    theta : array (p,)
    mu, S : array (n, q)
        Row n's depend on T_n only, so that new rows can be optimised all at once.
    Z : array (M, q)
    """

    value: Array
    theta: Array
    mu: Array
    S: Array
    Z: Array


class Psi(ABC):
    """How one kernel takes its expectations: structure only, values arrive as arguments.

    Shapes: theta (p,), mu and S (n, q) with S ≥ 0, Z (M, q), W (n, r) or None for one column of
    ones. All rows of a call are one chunk: the caller keeps n · M² / 2 numbers within its budget.
    """

    @abstractmethod
    def forward(
        self, theta: Array, mu: Array, S: Array, Z: Array, W: Array | None = None
    ) -> Statistics:
        """The statistics of the rows."""

    @abstractmethod
    def contract(
        self,
        theta: Array,
        mu: Array,
        S: Array,
        Z: Array,
        g0: Array,
        G1: Array,
        G2: Array,
        W: Array | None = None,
    ) -> Contracted:
        """Gradients of Σ_n T_n for cotangents g0 (n,), G1 (n, M) and G2 (r, M, M), any symmetry."""


__all__ = ["Contracted", "Psi", "Statistics"]
