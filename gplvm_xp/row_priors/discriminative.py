"""Labels in the latents: classes that are narrow beside the distances between them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.latents import Named, RowFacts, RowPrior, StructuredPrior, spread
from gplvm_xp.params import Block
from gplvm_xp.priors import Gaussian

# Added to the diagonal of the scatter within classes, squared units of the latents.
_RIDGE = 1e-6


@dataclass(frozen=True)
class Discriminative(StructuredPrior):
    """Linear discriminant analysis of the latents as a prior: the discriminative GPLVM.

    With N labelled rows, n_c of them in class c, means m_c and m, and the scatters
    S_w = (1/N) Σ_c Σ_{i in c} (x_i − m_c)(x_i − m_c)ᵀ and S_b = (1/N) Σ_c n_c (m_c − m)(m_c − m)ᵀ,

        ln p(X) = −1/(σ_d² J) + Σ ln N(x_i; 0, I) + constant,      J = tr(S_w⁻¹ S_b)

    (Urtasun & Darrell, ICML 2007). J does not change under linear maps of the
    latents, so that it knows neither scale nor rotation; N(0, 1) stays the prior of each coordinate
    and of new rows. With H = the projector on class means and W = S_w⁻¹,

        ∂J/∂X = (2/N) [(H − 11ᵀ/N) X W − (I − H) X W S_b W].

    Parameters
    ----------
    variance : float
        σ_d². Nats are counted: 1/(σ_d² J) must weigh beside a log-likelihood of n D entries to be
        heard, and the smaller σ_d², the more labels rule. It can't be learned, as the constant
        depends on it.

    Notes
    -----
    Rows without a label take part in the likelihood, not in the scatters. A class of one row has no
    scatter of its own and counts in S_b. S_w has 1e-6 added to its diagonal, for dimensions that a
    fit switches off. O(N (q² + classes · q)).
    """

    variance: float = 1e-3

    def __post_init__(self) -> None:
        if not 0.0 < self.variance < math.inf:
            raise ValueError(
                f"variance={self.variance!r} was given; expected a positive finite number"
            )

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"labels"})

    @property
    def fills_rows(self) -> bool:
        return False

    def bind(self, b: Backend, rows: RowFacts, start: np.ndarray) -> RowPrior:
        if rows.labels is None:
            raise ValueError(
                "latent_prior=Discriminative() needs labels; call fit(X, y) with a label for each "
                "row, or None, NaN or −1 where there is none"
            )
        seen = np.flatnonzero(rows.labels >= 0)
        counts = np.bincount(rows.labels[seen])
        counts = counts[counts > 0]
        if counts.size < 2 or np.all(counts == 1):
            raise ValueError(
                f"y has {counts.size} class(es) among {seen.size} labelled rows, the largest of "
                f"{counts.max(initial=0)}; expected two or more classes, one of them of two or "
                "more rows: give more labels, or use latent_prior='gaussian'"
            )
        classes = np.unique(rows.labels[seen], return_inverse=True)[1]
        b.require_memory(
            (8 + b.itemsize) * seen.size * counts.size,
            f"the means of {counts.size} classes of {seen.size} labelled rows",
            "use fewer classes",
        )
        shares = (np.ravel(classes)[:, None] == np.arange(counts.size)) / np.sqrt(counts)
        return _Bound(self.variance, rows.count, seen, b.asarray(shares))

    def fill(self, b: Backend, rows: RowFacts, X: np.ndarray, empty: np.ndarray) -> np.ndarray:
        """Labels place no row."""
        return X

    def with_values(self, values: Mapping[str, np.ndarray]) -> Self:
        return self


@dataclass(frozen=True)
class _Bound(RowPrior):
    """``shares`` (N, classes) is orthonormal and spans the class means: H = shares sharesᵀ."""

    variance: float
    count: int
    seen: np.ndarray
    shares: Array

    def blocks(self) -> tuple[Block, ...]:
        return ()

    def require_memory(self, b: Backend) -> None:
        """Asked for where it was bound."""

    @np.errstate(all="ignore")
    def log_density(self, values: Named, X: Array) -> tuple[Array, Array, dict[str, Array]]:
        b = backend.of(X)
        xp, N = b.xp, self.seen.size
        labelled = b.rows(X, self.seen)
        centred = labelled - xp.mean(labelled, axis=0, keepdims=True)
        between = self.shares @ (xp.matrix_transpose(self.shares) @ centred)
        within = centred - between
        Sb = xp.matrix_transpose(between) @ between / N
        Sw = xp.matrix_transpose(within) @ within / N
        L, ok = b.factor(Sw + _RIDGE * b.eye(X.shape[1]))
        root = b.inverse_factor(L)
        W = xp.matrix_transpose(root) @ root
        J = xp.sum(W * Sb)
        gJ = (2.0 / N) * (between @ W - within @ (W @ Sb @ W))
        density, slope = Gaussian().log_density(X)
        value = xp.where(ok, density - 1.0 / (self.variance * J), b.scalar(math.nan))
        gX = slope + spread(b, gJ / (self.variance * J * J), self.seen, self.count)
        return value, gX, {}


__all__ = ["Discriminative"]
