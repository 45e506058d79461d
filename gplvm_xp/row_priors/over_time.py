"""Latents as smooth functions of time stamps: one Gaussian process a dimension and sequence."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.kernels import RBF, Kernel
from gplvm_xp.kernels._fields import flat_numbers
from gplvm_xp.latents import Named, RowFacts, RowPrior
from gplvm_xp.params import Block
from gplvm_xp.row_priors._gaps import straight
from gplvm_xp.row_priors._process import (
    Process,
    columns_log_density,
    named,
    process_blocks,
    theta_of,
)
from gplvm_xp.row_priors.base import OverSequences, Path

# The default lengthscale in units of the median step between two frames.
_STEPS = 5.0


@dataclass(frozen=True)
class OverTime(OverSequences):
    """Each latent dimension of each sequence is a Gaussian process over time.

    With t the time since the beginning of a sequence and K_t = k(t, t) + s I,

        ln p(X) = Σ_sequences [−½ n_s q ln 2π − ½ q ln|K_t| − ½ tr(K_t⁻¹ X_s X_sᵀ)]

    (Lawrence & Moore, ICML 2007; Damianou, Titsias & Lawrence, NIPS 2011). Dimensions and
    sequences are independent and share k. The time stamps are known, so that the latents don't move
    K_t, and only the parameters of k do.

    Parameters
    ----------
    kernel : Kernel, optional
        k, over one input: time in the units of ``times``, or frames where no time stamps are given
        to ``fit``. Default an RBF of variance 1, held, and a lengthscale that starts at five median
        steps and is learned. An RBF is very smooth; ``Matern32`` and ``Matern52`` are less.
    noise_variance : float
        s, squared units of the latents: how far a latent may be from its smooth curve. It must be
        positive, or latents between frames would be found by a singular matrix.
    fixed : tuple of str
        ``("noise",)``, the default, holds the noise: learned, it goes to 0 together with ever
        smoother latents, see :class:`gplvm_xp.row_priors.Dynamics`.

    Notes
    -----
    Cost Σ n_s³ an evaluation; sequences with the same time stamps share a factor. Rows may be
    empty: a missing frame is placed by its neighbours in time.
    """

    kernel: Kernel | None = None
    noise_variance: float = 3e-4
    fixed: tuple[str, ...] = ("noise",)

    def __post_init__(self) -> None:
        if self.kernel is not None and not isinstance(self.kernel, Kernel):
            raise TypeError(
                f"kernel is a {type(self.kernel).__name__}; expected one of gplvm_xp.kernels, for "
                "example Matern52(1.0, 0.5), or None"
            )
        process_blocks("over_time", self.kernel or RBF(), self.noise_variance, self.fixed)

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"sequences", "times"})

    @property
    def fills_rows(self) -> bool:
        return True

    def bind(self, b: Backend, rows: RowFacts, start: np.ndarray) -> RowPrior:
        edges = rows.edges
        if np.all(np.diff(edges) < 2):
            raise ValueError(
                f"all {rows.count} sequences have one frame, so that time ties no two rows "
                "together; give the lengths of sequences of two or more frames, or use "
                "latent_prior='gaussian'"
            )
        kernel = _default(rows) if self.kernel is None else self.kernel
        kernel.check(1)
        groups = tuple((b.asarray(t[:, None]), where) for t, where in _alike(rows))
        return _Bound(replace(self, kernel=kernel), rows.count, groups)

    def with_values(self, values: Mapping[str, np.ndarray]) -> Self:
        kernel = _default(None) if self.kernel is None else self.kernel
        blocks = process_blocks("over_time", kernel, self.noise_variance, self.fixed)
        theta = np.concatenate([np.ravel(values[k.name]) for k in blocks[:-1]])
        noise = flat_numbers(values[blocks[-1].name])[0]
        return replace(self, kernel=kernel.with_theta(theta), noise_variance=noise)

    def fill(self, b: Backend, rows: RowFacts, X: np.ndarray, empty: np.ndarray) -> np.ndarray:
        """By straight lines in time."""
        return straight(rows, X, empty)

    # -- other times -------------------------------------------------------------------------------

    def at(
        self, b: Backend, rows: RowFacts, X: np.ndarray, sequence: int, times: np.ndarray
    ) -> tuple[Array, Array]:
        """Mean (N, q) and variance (N,) of a sequence's latents at other times (N,).

        Conditioned on its latents in X (n, q), as noisy observations of their smooth curve; the
        variance is that of the curve, without s.
        """
        f, t = self._process(b, rows, X, sequence, times)
        return f.moments(b.asarray(t))

    def ahead(self, b: Backend, rows: RowFacts, X: np.ndarray, sequence: int, steps: int) -> Path:
        """Extrapolated by the median step of the sequence; see :meth:`at`."""
        times = _next(rows, sequence, steps)
        f, t = self._process(b, rows, X, sequence, times)
        mean, variance = f.moments(b.asarray(t))
        total = (variance + self.noise_variance)[:, None, None]
        return Path(mean, total * b.eye(X.shape[1])[None, :, :])

    def draws_ahead(
        self, b: Backend, rows: RowFacts, X: np.ndarray, sequence: int, normals: np.ndarray
    ) -> Array:
        """Joint draws of the frames that come next, noise included."""
        times = _next(rows, sequence, normals.shape[1])
        f, t = self._process(b, rows, X, sequence, times)
        place = b.asarray(t)
        C = b.add_diagonal(f.covariance(place), b.scalar(self.noise_variance))
        L, _ = b.factor(C)
        return f.moments(place)[0][None, :, :] + L[None, :, :] @ b.asarray(normals)

    def _process(
        self, b: Backend, rows: RowFacts, X: np.ndarray, sequence: int, times: np.ndarray
    ) -> tuple[Process, np.ndarray]:
        begin, end = rows.edges[sequence], rows.edges[sequence + 1]
        own = rows.stamps[begin:end]
        kernel = _default(rows) if self.kernel is None else self.kernel
        f = Process.of(b, kernel, self.noise_variance, (own - own[0])[:, None], X[begin:end])
        return f, (np.asarray(times, dtype=np.float64) - own[0])[:, None]


@dataclass(frozen=True)
class _Bound(RowPrior):
    prior: OverTime
    count: int
    groups: tuple[tuple[Array, np.ndarray], ...]

    def blocks(self) -> tuple[Block, ...]:
        own = self.prior
        assert own.kernel is not None
        return process_blocks("over_time", own.kernel, own.noise_variance, own.fixed)

    def require_memory(self, b: Backend) -> None:
        m, n = max(len(where) for _, where in self.groups), self.count
        b.require_memory(
            b.itemsize * (m * m + n * n),
            f"the likelihood of {n} rows and the time prior of {m}",
            "use fewer rows, dtype='float32' (half of it), or a machine with more memory",
        )

    @np.errstate(all="ignore")
    def log_density(self, values: Named, X: Array) -> tuple[Array, Array, dict[str, Array]]:
        b, kernel = backend.of(X), self.prior.kernel
        assert kernel is not None
        xp, q = b.xp, X.shape[1]
        blocks = self.blocks()
        theta, noise = theta_of(b, blocks, values), values[blocks[-1].name]
        total, gtheta, gnoise, parts = b.scalar(0.0), xp.zeros_like(theta), b.scalar(0.0), []
        for times, where in self.groups:
            m, copies = where.shape
            T = xp.reshape(b.rows(X, where.ravel()), (m, copies * q))
            value, gt, gn, _, gT = columns_log_density(kernel, theta, noise, times, T)
            total, gtheta, gnoise = total + value, gtheta + gt, gnoise + gn
            parts.append(xp.reshape(gT, (m * copies, q)))
        order = np.argsort(np.concatenate([where.ravel() for _, where in self.groups]))
        return total, b.rows(xp.concat(parts), order), named(blocks, gtheta, gnoise)


def _alike(rows: RowFacts) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Time since the beginning (m,), and the rows (m, copies) of all sequences that have it."""
    stamps, seen = rows.stamps, dict[bytes, list[np.ndarray]]()
    for begin, end in itertools.pairwise(rows.edges):
        own = stamps[begin:end] - stamps[begin]
        seen.setdefault(own.tobytes(), []).append(np.arange(begin, end))
    wheres = [np.stack(k, axis=1) for k in seen.values()]
    return tuple((stamps[where[:, 0]] - stamps[where[0, 0]], where) for where in wheres)


def _default(rows: RowFacts | None) -> Kernel:
    """An RBF whose lengthscale is a few median steps; its structure alone without rows."""
    if rows is None:
        return RBF(1.0, 1.0, ("variance",))
    return RBF(1.0, flat_numbers(_STEPS * np.median(_gaps(rows)))[0], ("variance",))


def _gaps(rows: RowFacts) -> np.ndarray:
    """Steps between the frames of each sequence."""
    inside = np.setdiff1d(np.arange(1, rows.count), rows.edges)
    stamps = rows.stamps
    return np.asarray(stamps[inside] - stamps[inside - 1])


def _next(rows: RowFacts, sequence: int, steps: int) -> np.ndarray:
    """The times of the next frames: the median step of the sequence, or of all if it has one."""
    begin, end = rows.edges[sequence], rows.edges[sequence + 1]
    own = rows.stamps[begin:end]
    step = np.median(np.diff(own) if own.size > 1 else _gaps(rows))
    return np.asarray(own[-1] + step * np.arange(1, steps + 1))


__all__ = ["OverTime"]
