"""Linear maps without structure: the identity and a dense matrix."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.operators.base import LinearMap


@dataclass(frozen=True)
class Identity(LinearMap):
    """B = I: the latent vector is observed entry by entry.

    Parameters
    ----------
    size : int
        Length of the vector, L = N.

    Raises
    ------
    ValueError
        If the size is negative.
    """

    identity: ClassVar[bool] = True
    size: int
    rows: int = field(init=False)
    cols: int = field(init=False)

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"Identity: size is {self.size}; expected a length, 0 or more")
        object.__setattr__(self, "rows", self.size)
        object.__setattr__(self, "cols", self.size)

    def apply(self, z: Array) -> Array:
        return z

    def adjoint(self, r: Array) -> Array:
        return r

    def gram(self, p: Array) -> Array:
        return p[..., None] * backend.of(p).eye(self.size)

    def quad(self, C: Array) -> Array:
        return backend.of(C).xp.linalg.diagonal(C)

    def columns(self, X: Array) -> Array:
        return X

    def columns_adjoint(self, Z: Array) -> Array:
        return Z


@dataclass(frozen=True, eq=False)
class Dense(LinearMap):
    """B as a matrix, shared by a batch or one for each of its members.

    Costs: ``gram`` and ``quad`` 2NL² flops and a temporary (..., N, L).

    Parameters
    ----------
    B : array (..., N, L)
        On the device of the vectors that it will meet.

    Raises
    ------
    ValueError
        If B has fewer than two axes.
    """

    B: Array
    rows: int = field(init=False)
    cols: int = field(init=False)

    def __post_init__(self) -> None:
        backend.of(self.B)
        if self.B.ndim < 2:
            raise ValueError(
                f"Dense: B has shape {tuple(self.B.shape)}; expected (..., N, L), one row for "
                "each datum"
            )
        object.__setattr__(self, "rows", self.B.shape[-2])
        object.__setattr__(self, "cols", self.B.shape[-1])

    def apply(self, z: Array) -> Array:
        xp = backend.of(z).xp
        if self.B.ndim == 2:
            return z @ xp.matrix_transpose(self.B)
        return (self.B @ z[..., None])[..., 0]

    def adjoint(self, r: Array) -> Array:
        xp = backend.of(r).xp
        if self.B.ndim == 2:
            return r @ self.B
        return (xp.matrix_transpose(self.B) @ r[..., None])[..., 0]

    def gram(self, p: Array) -> Array:
        xp = backend.of(p).xp
        return xp.matrix_transpose(self.B) @ (p[..., None] * self.B)

    def quad(self, C: Array) -> Array:
        xp = backend.of(C).xp
        return xp.sum((self.B @ C) * self.B, axis=-1)

    def columns(self, X: Array) -> Array:
        return self.B @ X

    def columns_adjoint(self, Z: Array) -> Array:
        return backend.of(Z).xp.matrix_transpose(self.B) @ Z


__all__ = ["Dense", "Identity"]
