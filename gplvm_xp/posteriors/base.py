"""What a parameterisation of the posterior covariance is.

A parameterisation is a frozen dataclass of structure (a rank, a basis); its parameter θ arrives as
an array with any leading axes (a batch of independent posteriors). :meth:`Covariance.at` computes
once what the value, gradient and Hessian-vector products (HVPs) at one point share; the state it
returns is used and dropped. Full (Frobenius) convention throughout: dJ = ⟨G, dθ⟩ with θ's entries
free; a triangular parameter has gradient, HVP and directions in the lower triangle, a symmetric
one symmetric directions (math: derivations/kl.md, "Conventions").
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.operators.base import LinearMap, Precision

Solve: TypeAlias = Callable[[Array], Array]
Form: TypeAlias = Literal["free", "positive", "lower", "symmetric"]


@dataclass(frozen=True)
class Variances:
    """Marginal variances v = diag(B Σ Bᵀ) with the derivatives of the map θ → v.

    Attributes
    ----------
    value : array (..., N)
    jvp : callable
        M ↦ dv, the change of v along a direction M of θ's shape: (..., N).
    pullback : callable
        s ↦ gradient in θ of ⟨s, v⟩; s (..., N), any sign.
    second : callable
        s ↦ (M ↦ d/dε pullback(s) at θ + ε M, with s held): the second-order term of v. What
        depends on s alone is computed once.
    """

    value: Array
    jvp: Callable[[Array], Array]
    pullback: Callable[[Array], Array]
    second: Callable[[Array], Callable[[Array], Array]]


class State(ABC):
    """One parameterisation at one (θ, prior).

    Attributes
    ----------
    ok : bool array (...)
        Whether Σ is positive definite (on its range) there. A value, on the device: nothing is
        raised; where it is false :meth:`part` is +∞ and the other results are arbitrary.
    """

    ok: Array

    @abstractmethod
    def part(self) -> Array:
        """The part of the KL that depends on θ, with the constants dropped, (...), nats; +∞ where
        ``ok`` is false, so that a failed point never looks like a good one."""

    @abstractmethod
    def constant(self) -> Array:
        """What :meth:`part` drops: part + constant = ½{tr(ΛΣ) − ln|Σ| − ln|Λ| − L}, (...).

        For a degenerate Σ (rank R < L) the class says what the sum means instead.
        """

    def kl(self) -> Array:
        """The covariance's share of the KL with all constants, (...); the mean adds
        ½ (μ−μ₀)ᵀΛ(μ−μ₀)."""
        total = self.part() + self.constant()
        xp = backend.of(total).xp
        # The constant of an indefinite Λ is NaN.
        return xp.where(xp.isnan(total), xp.inf, total)

    @abstractmethod
    def gradient(self) -> Array:
        """∂part/∂θ, of θ's shape."""

    @abstractmethod
    def hvp(self, M: Array) -> Array:
        """d/dε gradient at θ + ε M, of θ's shape; linear and self-adjoint in M."""

    @abstractmethod
    def variances(self, B: LinearMap) -> Variances:
        """diag(B Σ Bᵀ) with derivatives to second order."""

    @abstractmethod
    def matvec(self, z: Array) -> Array:
        """Σ z: (..., L) → (..., L)."""

    @abstractmethod
    def root(self, xi: Array) -> Array:
        """S ξ with S Sᵀ = Σ: white noise (..., rank) to a draw of N(0, Σ), (..., L)."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """Length of the noise that :meth:`root` takes."""

    @abstractmethod
    def dense(self) -> Array:
        """Σ, (..., L, L); for checks and small problems."""

    @abstractmethod
    def natural(self, G: Array, solve: Solve | None = None) -> Array:
        """The inverse metric applied to a gradient, P⁻¹ G, of θ's shape.

        Symmetric positive definite; the preconditioner of the Newton-Krylov solver, in θ itself
        (see ``form``).

        Parameters
        ----------
        G : array of θ's shape
        solve : callable, optional
            V ↦ (Λ + Bᵀ diag(s) B)⁻¹ V for columns V (..., L, R), with the data's curvature s ≥ 0,
            where the caller has it. Only a `LowRank` of R < L asks for it.
        """


class Covariance(ABC):
    """A parameterisation of Σ.

    Attributes
    ----------
    form : {"free", "positive", "lower", "symmetric"}
        What θ is: any array; positive numbers (optimised as logarithms); a lower triangle; a
        symmetric matrix.
    """

    @property
    def form(self) -> Form:
        """What θ is, see the class."""
        return "free"

    @abstractmethod
    def shape(self, L: int) -> tuple[int, ...]:
        """Shape of θ without leading axes, for a latent vector of length L.

        Raises
        ------
        ValueError
            If the structure does not fit a latent vector of that length.
        """

    @abstractmethod
    def at(self, theta: Array, prior: Precision) -> State:
        """Everything at (θ, prior)."""

    @abstractmethod
    def start(self, prior: Precision, B: LinearMap, curvature: Array) -> Array:
        """A starting θ from the expected curvature s (..., N) ≥ 0 of the data (docs:
        derivations/inference.md, "Where to start")."""


__all__ = ["Covariance", "Form", "Solve", "State", "Variances"]
