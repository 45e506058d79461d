"""Gaussian process dynamics: each latent is a smooth unknown function of the one before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.kernels import RBF, Kernel, Linear
from gplvm_xp.kernels._fields import flat_numbers
from gplvm_xp.latents import Named, RowFacts, RowPrior, spread
from gplvm_xp.params import Block
from gplvm_xp.row_priors._gaps import bent, gaps, longest, straight
from gplvm_xp.row_priors._process import (
    Process,
    columns_log_density,
    named,
    process_blocks,
    theta_of,
)
from gplvm_xp.row_priors.base import OverSequences, Path


@dataclass(frozen=True)
class Dynamics(OverSequences):
    """x_{t+1} = f(x_t) + noise, with one Gaussian process f for all sequences: first-order GPDM.

    With A the latents that have a successor and T their successors (or, ``residual``, T the steps
    x_{t+1} − x_t), K_X = k(A, A) + s I and first frames x₁ of the sequences,

        ln p(X) = w [Σ ln N(x₁; 0, I) − ½ m q ln 2π − ½ q ln|K_X| − ½ tr(K_X⁻¹ T Tᵀ)]

    (Wang, Fleet & Hertzmann, NIPS 2005; PAMI 2008). No step crosses the border of two sequences. A
    latent is an input of K_X and a row of T, and its gradient is the sum of both.

    Parameters
    ----------
    kernel : Kernel
        k, over latents; default an RBF plus a linear kernel. Its parameters are learned with the
        latents, as ``"dynamics.rbf.variance"`` and so on, from the values given here.
    noise_variance : float
        s, squared units of the latents, whose widest dimension starts with unit deviation: well
        below the square of a step between frames.
    residual : bool
        Whether f gives the step instead of the next position: without data the latents stay where
        they are, instead of going back to the origin.
    weight : float, optional
        w; 1 is the density itself, which the likelihood of D ≫ q outputs may drown: missing frames
        are then placed badly. With D/q outputs and latent dimensions count alike (the balanced GPDM
        of Urtasun, Fleet & Fua, CVPR 2006), and noisy frames forecast badly. Default √(D/q), which
        was good at both.
    fixed : tuple of str
        ``("noise",)``, the default, holds the noise. The objective is unbounded where it is
        learned: latents that follow f exactly, which costs the likelihood a finite amount, have a
        density that grows without end as s → 0. ``()`` learns it, for use with a prior,
        ``GPLVM(priors={"dynamics.noise": LogNormal(mu, sigma)})``, that must be narrow: the optimum
        may still be σ² w m q/2 below it in ln s.

    Notes
    -----
    Cost m³ + O(m² q) an evaluation for m frames with a successor, and a second matrix of m × m
    numbers beside the likelihood's. Rows may be empty: a missing frame is placed by its neighbours.
    A sequence of one frame has no step and only its N(0, I); one of them must have two.
    """

    kernel: Kernel = RBF(1.0, 1.0) + Linear(1.0)
    noise_variance: float = 3e-4
    residual: bool = False
    weight: float | None = None
    fixed: tuple[str, ...] = ("noise",)

    def __post_init__(self) -> None:
        if not isinstance(self.kernel, Kernel):
            raise TypeError(
                f"kernel is a {type(self.kernel).__name__}; expected one of gplvm_xp.kernels, for "
                "example RBF() + Linear()"
            )
        if self.weight is not None and not 0.0 < self.weight < math.inf:
            raise ValueError(
                f"weight={self.weight!r} was given; expected a positive finite number, or None for "
                "the root of D/q"
            )
        self.blocks()

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"sequences"})

    @property
    def fills_rows(self) -> bool:
        return True

    def blocks(self) -> tuple[Block, ...]:
        """Its parameters, with starting values."""
        return process_blocks("dynamics", self.kernel, self.noise_variance, self.fixed)

    def bind(self, b: Backend, rows: RowFacts, start: np.ndarray) -> RowPrior:
        self.kernel.check(start.shape[1])
        if not _before(rows).size:
            raise ValueError(
                f"all {rows.count} sequences have one frame, so that there is no step to learn "
                "dynamics from; give the lengths of sequences of two or more frames, or use "
                "latent_prior='gaussian'"
            )
        weight = math.sqrt(rows.outputs / start.shape[1]) if self.weight is None else self.weight
        return _Bound(self, weight, rows.count, rows.edges[:-1], _before(rows))

    def fill(self, b: Backend, rows: RowFacts, X: np.ndarray, empty: np.ndarray) -> np.ndarray:
        """By following the dynamics of the observed steps from the frame before each gap.

        The path is stretched, so that it ends where it comes nearest to the frame behind the gap,
        and what it then misses is taken away evenly. A path that leads away is a straight line.
        """
        out = straight(rows, X, empty)
        before, found = _before(rows), gaps(rows, empty)
        before = before[~(empty[before] | empty[before + 1])]
        if not before.size or not found:
            return out
        f = self._process(b, before, X)
        path = [b.asarray(X[[gap.begin - 1 for gap in found]])]
        for _ in range(longest(found)):
            path.append(self._step(path[-1], f.moments(path[-1])[0]))
        walked = b.to_host(b.xp.stack(path, axis=1)).astype(np.float64)
        reach = 2.0 * np.abs(X[~empty]).max()
        for gap, own in zip(found, walked, strict=True):
            inside = bent(own, gap, X)
            if np.all(np.abs(inside) <= reach):
                out[gap.begin : gap.end] = inside
        return out

    def with_values(self, values: Mapping[str, np.ndarray]) -> Self:
        blocks = self.blocks()
        theta = np.concatenate([np.ravel(values[k.name]) for k in blocks[:-1]])
        noise = flat_numbers(values[blocks[-1].name])[0]
        return replace(self, kernel=self.kernel.with_theta(theta), noise_variance=noise)

    # -- going on ----------------------------------------------------------------------------------

    def process(self, b: Backend, rows: RowFacts, X: np.ndarray) -> Process:
        """The posterior of f given latents X (n, q)."""
        return self._process(b, _before(rows), X)

    def _process(self, b: Backend, before: np.ndarray, X: np.ndarray) -> Process:
        T = X[before + 1] - X[before] if self.residual else X[before + 1]
        return Process.of(b, self.kernel, self.noise_variance, X[before], T)

    def _step(self, x: Array, f: Array) -> Array:
        return x + f if self.residual else f

    def ahead(self, b: Backend, rows: RowFacts, X: np.ndarray, sequence: int, steps: int) -> Path:
        """The mean prediction: every step from the mean of the one before.

        The covariance goes along by linearisation, C ← J C Jᵀ + (v + s) I with J the slope of the
        mean and v the variance of f there; O(steps · m q) beside one factor of m × m.
        """
        f, xp = self.process(b, rows, X), b.xp
        x, C = b.asarray(X[[rows.edges[sequence + 1] - 1]]), b.zeros((X.shape[1],) * 2)
        eye = b.eye(X.shape[1])
        means, covariances = [], []
        for _ in range(steps):
            mean, v = f.moments(x)
            J = self._step(eye, f.slopes(x)[0, ...])
            x = self._step(x, mean)
            C = J @ C @ xp.matrix_transpose(J) + (v[0] + self.noise_variance) * eye
            means.append(x[0, :])
            covariances.append(C)
        return Path(xp.stack(means), xp.stack(covariances))

    def draws_ahead(
        self, b: Backend, rows: RowFacts, X: np.ndarray, sequence: int, normals: np.ndarray
    ) -> Array:
        """Trajectories with the noise and the uncertainty of f drawn anew at each step.

        That is Markov: what a draw has seen of f on its way is not remembered, as in Wang et al.
        """
        f, xp = self.process(b, rows, X), b.xp
        last = rows.edges[sequence + 1] - 1
        x = b.asarray(np.repeat(X[last : last + 1], normals.shape[0], axis=0))
        out = []
        for k in range(normals.shape[1]):
            mean, v = f.moments(x)
            sd = xp.sqrt(v + self.noise_variance)[:, None]
            x = self._step(x, mean) + sd * b.asarray(normals[:, k, :])
            out.append(x)
        return xp.stack(out, axis=1)


@dataclass(frozen=True)
class _Bound(RowPrior):
    prior: Dynamics
    weight: float
    count: int
    firsts: np.ndarray
    before: np.ndarray

    def blocks(self) -> tuple[Block, ...]:
        return self.prior.blocks()

    def require_memory(self, b: Backend) -> None:
        m, n = self.before.size, self.count
        b.require_memory(
            b.itemsize * (m * m + n * n),
            f"the likelihood and the dynamics of {n} rows",
            "use fewer rows, dtype='float32' (half of it), or a machine with more memory",
        )

    @np.errstate(all="ignore")
    def log_density(self, values: Named, X: Array) -> tuple[Array, Array, dict[str, Array]]:
        b, own = backend.of(X), self.prior
        xp = b.xp
        blocks = own.blocks()
        A, T, first = (b.rows(X, k) for k in (self.before, self.before + 1, self.firsts))
        T = T - A if own.residual else T
        value, gtheta, gnoise, gA, gT = columns_log_density(
            own.kernel, theta_of(b, blocks, values), values[blocks[-1].name], A, T
        )
        gA = gA - gT if own.residual else gA
        value = value - 0.5 * xp.sum(first * first)
        value = value - 0.5 * math.prod(first.shape) * math.log(2.0 * math.pi)
        gX = spread(b, gA, self.before, self.count) + spread(b, gT, self.before + 1, self.count)
        gX = gX - spread(b, first, self.firsts, self.count)
        w = self.weight
        return w * value, w * gX, named(blocks, w * gtheta, w * gnoise)


def _before(rows: RowFacts) -> np.ndarray:
    """Rows that have a successor in their own sequence."""
    return np.setdiff1d(np.arange(rows.count), rows.edges[1:] - 1)


__all__ = ["Dynamics"]
