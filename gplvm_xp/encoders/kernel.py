"""Back-constraints by kernel regression: every latent dimension a function of a kernel's space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Self

import numpy as np
from scipy.spatial.distance import pdist

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.encoders.base import Encoder, check_arrays, known, require_complete, starting_rows
from gplvm_xp.kernels import RBF, Kernel
from gplvm_xp.latents import Named, Pull
from gplvm_xp.params import Block

# Centres, where their number is not given and there are more rows.
MOST_CENTRES = 1000
# Starting weights are those of least squares with this ridge, relative to the largest feature: a
# start that is noise would ask for a rough map.
_RIDGE = 1e-3
_WEIGHTS = "encoder.weights"


@dataclass(frozen=True)
class KernelEncoder(Encoder):
    """X = k(Y, C) A: each latent dimension is a combination of kernels around m centres.

    The kernel is held: with a lengthscale to be learned a fit would shrink it until every row is
    alone under its own kernel, and nothing is constrained. A = R W, where R (m, r) has the leading
    eigenvectors of k(C, C) over the roots of their eigenvalues, and the weights W (r, k) are
    learned. Eigenvectors of small eigenvalues are the rough functions: they are left out, so that
    near rows stay near, and the weights are determined by the latents. Far from all centres an RBF
    encodes to zero, the mean of the latents' prior.

    Parameters
    ----------
    kernel : Kernel, optional
        Of the D columns of the data; default an RBF with the median distance between rows for its
        lengthscale.
    n_centres : int, optional
        m, centres among the rows, chosen at random; default all rows, or 1000 of more than that.
    tolerance : float
        Eigenvectors of k(C, C) with an eigenvalue below this share of the largest are left out: a
        larger number makes g smoother.
    seed : int
        Of the choice of centres.

    Attributes
    ----------
    centres : ndarray (m, D)
        C, once settled.
    basis : ndarray (m, r)
        R, once settled.
    weights : ndarray (r, k)
        W, once started.
    offset : ndarray (D,)
        The mean of the rows, which is taken from them first, once settled.

    Raises
    ------
    ValueError
        If a setting is out of range.

    Notes
    -----
    Cost: n m (D + r) once, n r k an evaluation, and m³ for the eigenvectors.
    """

    kernel: Kernel | None = None
    n_centres: int | None = None
    tolerance: float = 1e-5
    seed: int = 0
    offset: np.ndarray | None = field(default=None, repr=False, compare=False)
    centres: np.ndarray | None = field(default=None, repr=False, compare=False)
    basis: np.ndarray | None = field(default=None, repr=False, compare=False)
    weights: np.ndarray | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.kernel is not None and not isinstance(self.kernel, Kernel):
            raise ValueError(
                f"kernel is a {type(self.kernel).__name__}; expected one of gplvm_xp.kernels, for "
                "example RBF(1.0, 3.0), or None"
            )
        m = self.n_centres
        if m is not None and (isinstance(m, bool) or not isinstance(m, Integral) or m < 1):
            raise ValueError(
                f"n_centres={m!r} was given; expected an integer of 1 or more, or None"
            )
        if not isinstance(self.tolerance, Real) or not 0.0 < self.tolerance < 1.0:
            raise ValueError(
                f"tolerance={self.tolerance!r} was given; expected a number between 0 and 1"
            )

    def settled(self, data: np.ndarray) -> Self:
        require_complete(data)
        n, D = data.shape
        offset = data.mean(axis=0)
        rng = np.random.default_rng(self.seed)
        most = min(n, MOST_CENTRES if self.n_centres is None else self.n_centres)
        places = np.arange(n) if most == n else np.sort(rng.choice(n, most, replace=False))
        C = data[places] - offset
        kernel = _usual(C) if self.kernel is None else self.kernel
        try:
            kernel.check(D)
        except ValueError as error:
            raise ValueError(
                f"the encoder's kernel can't take the {D} columns of the data: {error}"
            ) from error
        # Two arguments, as new rows have: White is 0 between a row and a centre.
        values, vectors = np.linalg.eigh(kernel.gram(kernel.theta(), C, C))
        keep = values > self.tolerance * values[-1]
        if not keep.any():
            raise ValueError(
                f"the encoder's kernel is 0 between all {most} centres; expected one that varies "
                "with the data, such as RBF"
            )
        basis = np.ascontiguousarray(vectors[:, keep] / np.sqrt(values[keep]))
        return replace(self, kernel=kernel, offset=offset, centres=C, basis=basis, weights=None)

    def started(self, data: np.ndarray, start: np.ndarray) -> Self:
        basis = known(self.basis)
        rows = starting_rows(data.shape[0], 2 * basis.shape[1], self.seed)
        F = self.features(backend.get("numpy"), data[rows])
        gram = F.T @ F
        ridge = _RIDGE * gram.diagonal().max() * np.eye(gram.shape[0])
        return replace(self, weights=np.linalg.solve(gram + ridge, F.T @ start[rows]))

    def blocks(self) -> tuple[Block, ...]:
        return (Block(_WEIGHTS, known(self.weights), "identity"),)

    def with_values(self, values: Mapping[str, np.ndarray]) -> Self:
        return replace(self, weights=np.array(values[_WEIGHTS], dtype=np.float64))

    @property
    def dimensions(self) -> int:
        columns: int = known(self.weights).shape[1]
        return columns

    def check(self, columns: int, dimensions: int) -> None:
        shape: tuple[int, ...] = getattr(self.basis, "shape", ())
        m, r = (*shape, 0, 0)[:2]
        check_arrays(
            (self.offset, self.centres, self.basis, self.weights),
            ((columns,), (m, columns), (m, r), (r, dimensions)),
        )
        known(self.kernel).check(columns)

    def _features(self, b: Backend, data: np.ndarray) -> Array:
        kernel, C = known(self.kernel), b.asarray(known(self.centres))
        rows = b.asarray(data - known(self.offset))
        return kernel.gram(b.asarray(kernel.theta()), rows, C) @ b.asarray(known(self.basis))

    def _forward(self, values: Named, features: Array) -> tuple[Array, Pull]:
        xp = backend.of(features).xp

        def pull(gX: Array) -> dict[str, Array]:
            return {_WEIGHTS: xp.matrix_transpose(features) @ gX}

        return features @ values[_WEIGHTS], pull


def _usual(rows: np.ndarray) -> Kernel:
    """An RBF of the median distance between different rows, a thousand or two of them at most."""
    apart = pdist(rows[:: max(1, rows.shape[0] // MOST_CENTRES)])
    apart = apart[apart > 0.0]
    return RBF().with_theta([1.0, np.median(apart)]) if apart.size else RBF()


__all__ = ["MOST_CENTRES", "KernelEncoder"]
