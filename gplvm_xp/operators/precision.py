"""Prior precisions without structure: a dense matrix, a diagonal, and a kernel's Gram matrix.

Every class takes arrays of one device, with any leading axes, and checks only what shapes tell, so
that making one never waits. :meth:`DensePrecision.of` and :meth:`GramPrecision.of` take a host
matrix and check its values too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend.base import Backend
from gplvm_xp.errors import NotPositiveDefiniteError
from gplvm_xp.operators.base import Precision


@dataclass(frozen=True, eq=False)
class DensePrecision(Precision):
    """Λ as a symmetric positive definite matrix, factored once when it is made.

    Where Λ is not positive definite, :meth:`logdet` is NaN.

    Parameters
    ----------
    Lambda : array (..., L, L)
        Only the lower triangle enters the factor.

    Raises
    ------
    ValueError
        If the last two axes are not a square.
    """

    Lambda: Array
    factor: Array = field(init=False, repr=False)
    size: int = field(init=False)
    _logdet: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _set_factor(self, "Lambda", self.Lambda, 1.0)

    @classmethod
    def of(cls, b: Backend, matrix: np.ndarray) -> Self:
        """From a host matrix, with its values checked.

        Parameters
        ----------
        b : Backend
            Where the precision will live.
        matrix : ndarray (..., L, L)

        Raises
        ------
        ValueError
            If the matrix is not square, not finite or not symmetric.
        NotPositiveDefiniteError
            If it has no Cholesky factor in the backend's precision.
        """
        made = cls(b.asarray(_symmetric("the precision", matrix)))
        _require_definite("the precision", b, made)
        return made

    def apply(self, z: Array) -> Array:
        return (self.Lambda @ z[..., None])[..., 0]

    def covariance(self, z: Array) -> Array:
        return self.covariance_columns(z[..., None])[..., 0]

    def logdet(self) -> Array:
        return self._logdet

    def dense(self) -> Array:
        return self.Lambda

    def columns(self, X: Array) -> Array:
        return self.Lambda @ X

    def covariance_columns(self, X: Array) -> Array:
        return _solve(self.factor, X)

    def root_columns(self, X: Array) -> Array:
        """L⁻ᵀ X, with Λ = L Lᵀ."""
        return backend.of(X).solve_factor(self.factor, X, trans=True)


@dataclass(frozen=True, eq=False)
class DiagonalPrecision(Precision):
    """Λ = diag(λ), with λ > 0.

    Parameters
    ----------
    lam : array (..., L)
        λ, in inverse squares of the latent vector's unit.
    """

    lam: Array
    size: int = field(init=False)

    def __post_init__(self) -> None:
        if self.lam.ndim < 1:
            raise ValueError("DiagonalPrecision: λ is a number; expected (..., L), one per entry")
        object.__setattr__(self, "size", self.lam.shape[-1])

    @classmethod
    def of(cls, b: Backend, lam: np.ndarray) -> Self:
        """From host numbers, with their values checked.

        Raises
        ------
        ValueError
            If one is not finite.
        NotPositiveDefiniteError
            If one is not positive.
        """
        host = np.array(lam, dtype=np.float64)
        if not np.all(np.isfinite(host)):
            raise ValueError(
                "the precision's diagonal has entries that are NaN or infinite; expected numbers"
            )
        if not np.all(host > 0.0):
            raise NotPositiveDefiniteError(
                f"the precision's diagonal has the entry {host.min():.6g}; every entry must be "
                "positive. An entry that the prior leaves free gets a small one"
            )
        return cls(b.asarray(host))

    def apply(self, z: Array) -> Array:
        return self.lam * z

    def covariance(self, z: Array) -> Array:
        return z / self.lam

    def logdet(self) -> Array:
        xp = backend.of(self.lam).xp
        return xp.sum(xp.log(self.lam), axis=-1)

    def diagonal(self) -> Array:
        return self.lam

    def dense(self) -> Array:
        return self.lam[..., None] * backend.of(self.lam).eye(self.size)

    def columns(self, X: Array) -> Array:
        return self.lam[..., None] * X

    def covariance_columns(self, X: Array) -> Array:
        return X / self.lam[..., None]

    def root_columns(self, X: Array) -> Array:
        """diag(λ^−½) X."""
        return X / backend.of(X).xp.sqrt(self.lam)[..., None]

    def trace_product(self, C: Array) -> Array:
        xp = backend.of(C).xp
        return xp.sum(self.lam * xp.linalg.diagonal(C), axis=-1)


@dataclass(frozen=True, eq=False)
class GramPrecision(Precision):
    """Λ = K⁻¹ of a prior that is given by its covariance K, such as a kernel's Gram matrix.

    :meth:`covariance` is K z itself, and Λ z two triangular solves: no inverse is formed but in
    :meth:`dense`. A jitter belongs into K, so that value and derivatives see the same model. Where
    K is not positive definite, :meth:`logdet` is NaN.

    Parameters
    ----------
    K : array (..., L, L)
        Symmetric positive definite; only the lower triangle enters the factor.

    Raises
    ------
    ValueError
        If the last two axes are not a square.
    """

    K: Array
    factor: Array = field(init=False, repr=False)
    size: int = field(init=False)
    _logdet: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _set_factor(self, "K", self.K, -1.0)

    @classmethod
    def of(cls, b: Backend, matrix: np.ndarray) -> Self:
        """From a host covariance (..., L, L), with its values checked.

        Raises
        ------
        ValueError
            If the matrix is not square, not finite or not symmetric.
        NotPositiveDefiniteError
            If it has no Cholesky factor in the backend's precision.
        """
        made = cls(b.asarray(_symmetric("the prior covariance", matrix)))
        _require_definite("the prior covariance", b, made)
        return made

    def apply(self, z: Array) -> Array:
        return self.columns(z[..., None])[..., 0]

    def covariance(self, z: Array) -> Array:
        return (self.K @ z[..., None])[..., 0]

    def logdet(self) -> Array:
        return self._logdet

    def dense(self) -> Array:
        b = backend.of(self.factor)
        inverse = b.inverse_factor(self.factor)
        return b.xp.matrix_transpose(inverse) @ inverse

    def columns(self, X: Array) -> Array:
        return _solve(self.factor, X)

    def covariance_columns(self, X: Array) -> Array:
        return self.K @ X

    def root_columns(self, X: Array) -> Array:
        """L X, with K = L Lᵀ."""
        return self.factor @ X


# -- private ---------------------------------------------------------------------------------------


def _set_factor(
    made: DensePrecision | GramPrecision, name: str, matrix: Array, sign: float
) -> None:
    shape = tuple(matrix.shape)
    if len(shape) < 2 or shape[-1] != shape[-2]:
        raise ValueError(
            f"{type(made).__name__}: {name} has shape {shape}; expected (..., L, L), a square"
        )
    b = backend.of(matrix)
    L, ok = b.factor(matrix)
    # A failed factor may hold anything; its logarithm would warn.
    pivots = b.xp.where(ok[..., None], b.xp.linalg.diagonal(L), 1.0)
    logs = b.xp.sum(b.xp.log(pivots), axis=-1)
    object.__setattr__(made, "factor", L)
    object.__setattr__(made, "size", shape[-1])
    object.__setattr__(made, "_logdet", b.xp.where(ok, (2.0 * sign) * logs, b.xp.nan))


def _solve(L: Array, X: Array) -> Array:
    b = backend.of(L)
    return b.solve_factor(L, b.solve_factor(L, X), trans=True)


def _symmetric(what: str, matrix: np.ndarray) -> np.ndarray:
    host = np.array(matrix, dtype=np.float64)
    if host.ndim < 2 or host.shape[-1] != host.shape[-2]:
        raise ValueError(f"{what} has shape {host.shape}; expected (..., L, L), a square matrix")
    if not np.all(np.isfinite(host)):
        raise ValueError(f"{what} has entries that are NaN or infinite; expected numbers")
    gap = np.max(np.abs(host - np.swapaxes(host, -1, -2)), initial=0.0)
    if gap > 1e-6 * np.max(np.abs(host), initial=0.0):
        raise ValueError(
            f"{what} is not symmetric: an entry differs by {gap:.3g} from its mirror image; "
            "give (A + Aᵀ)/2 if the difference is rounding"
        )
    return host


def _require_definite(what: str, b: Backend, made: DensePrecision | GramPrecision) -> None:
    bad = ~np.isfinite(b.to_host(made.logdet()))
    if np.any(bad):
        where = "" if bad.ndim == 0 else f" (number {np.argmax(bad)} of the batch)"
        raise NotPositiveDefiniteError(
            f"{what}{where} is not positive definite in {b.xp.finfo(b.dtype).bits}-bit arithmetic; "
            "add a small multiple of the identity, or use float64"
        )


__all__ = ["DensePrecision", "DiagonalPrecision", "GramPrecision"]
