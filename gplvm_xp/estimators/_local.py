"""What a fitted local model says about other points: each from the training rows nearest to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.errors import NotPositiveDefiniteError
from gplvm_xp.kernels import Kernel
from gplvm_xp.neighbours import least, nearest
from gplvm_xp.objectives.local import conditional
from gplvm_xp.optim import minimise_batch
from gplvm_xp.optim.modes import hessians, laplace, newton_step
from gplvm_xp.priors import Prior

# What the blocks of a batch of new rows may take, with those of all of a row's starts.
_BATCH_BYTES = 2**28
# A row's latents are searched from so many places, the best of those of so many training rows.
_STARTS, _CANDIDATES = 3, 10
# How often neighbours are found again around a solution.
_ROUNDS = 3


@dataclass(frozen=True)
class LocalPosterior:
    """The Gaussian process of every output given the R training rows nearest in latent space.

    Attributes
    ----------
    kernel : Kernel
    theta : array (p,)
    noise : float
        σ² + jitter.
    X : array (n, q)
    Y : array (n, D)
        Centred, 0 where missing.
    seen : array (n, D) or None
        1 where observed, 0 where missing; None: complete.
    groups : tuple of ndarray of int
        Columns that are observed on the same rows, on the host.
    size : int
        R.
    """

    kernel: Kernel
    theta: Array
    noise: float
    X: Array
    Y: Array
    seen: Array | None
    groups: tuple[np.ndarray, ...]
    size: int

    @classmethod
    def of(
        cls, b: Backend, kernel: Kernel, noise: float, X: np.ndarray, Y: np.ndarray, size: int
    ) -> LocalPosterior:
        """From latents (n, q) and a centred table (n, D) on the host, NaN for missing."""
        gone = np.isnan(Y)
        whole = not gone.any()
        which = np.zeros(Y.shape[1], dtype=np.int64)
        if not whole:
            which = np.ravel(np.unique(gone, axis=1, return_inverse=True)[1])
        return cls(
            kernel,
            b.asarray(kernel.theta()),
            noise,
            b.asarray(X),
            b.asarray(Y if whole else np.where(gone, 0.0, Y)),
            None if whole else b.asarray(np.where(gone, 0.0, 1.0)),
            tuple(np.flatnonzero(which == k) for k in range(which.max() + 1)),
            size,
        )

    @property
    def backend(self) -> Backend:
        """Where the training rows are."""
        return backend.of(self.X)

    def batches(self, count: int, starts: int = _STARTS) -> list[slice]:
        """Ranges of new rows whose blocks stay within the budget."""
        R, D = self.size + 1, self.Y.shape[1]
        step = max(1, _BATCH_BYTES // (starts * self.backend.itemsize * R * (4 * R + 2 * D)))
        return [slice(i, min(i + step, count)) for i in range(0, count, step)]

    def near(self, X: Array) -> Array:
        """The R training rows nearest to latents (N, q): (N, R), on the device."""
        return self.numbers(nearest(self.X, self.size, X))

    def numbers(self, index: np.ndarray) -> Array:
        """Row numbers of the host, where the training rows are."""
        b = self.backend
        return b.xp.asarray(index, dtype=b.xp.int64, device=b.device)

    def _blocks(self, X: Array, index: Array) -> Array:
        """Latents (r, R + 1, q) of blocks: the neighbours, then the point."""
        b = self.backend
        r, R = index.shape
        near = b.xp.take(self.X, b.xp.reshape(index, (-1,)), axis=0)
        near = b.xp.reshape(near, (r, R, X.shape[1]))
        return b.xp.concat([near, X[:, None, :]], axis=1)

    def _given(self, index: Array, columns: np.ndarray) -> tuple[Array, Array | None]:
        """Outputs (r, R, c) of the neighbours, and which of them were observed, (r, R)."""
        b, xp = self.backend, self.backend.xp
        r, R = index.shape
        flat = xp.reshape(index, (-1,))
        wanted = xp.asarray(columns, device=b.device)
        all_of_them = columns.size == self.Y.shape[1]
        Y = xp.take(self.Y if all_of_them else xp.take(self.Y, wanted, axis=1), flat, axis=0)
        Y = xp.reshape(Y, (r, R, columns.size))
        if self.seen is None:
            return Y, None
        mask = xp.take(xp.take(self.seen, wanted[:1], axis=1), flat, axis=0)
        return Y, xp.reshape(mask, (r, R))

    def moments(self, X: Array, index: Array | None = None) -> tuple[Array, Array]:
        """Mean and variance of the noiseless outputs at latents X (N, q): two arrays (N, D).

        With K = L Lᵀ the covariance of the neighbours and the point, the point last, l = L's last
        entry and Lᵀ c = (0, l): the mean is −Σ c_j y_j over the neighbours, the variance l² − σ².

        Parameters
        ----------
        index : array of int (N, R), optional
            The training rows to be given; default those nearest.

        Raises
        ------
        NotPositiveDefiniteError
            If the covariance of some neighbours has no Cholesky factor.
        """
        b, xp = self.backend, self.backend.xp
        index = self.near(X) if index is None else index
        parts = self._stacks(X.shape[0])

        def one(part: slice) -> tuple[Array, Array, Array]:
            return self._moments(X[part, :], index[part, :])

        with b.calm(1):
            done = list(b.map_parts(one, parts))
        mean, variance, ok = (xp.concat([part[k] for part in done]) for k in range(3))
        if not b.to_host(xp.all(ok)).item():
            raise NotPositiveDefiniteError(
                f"the covariance of {self.size} neighbours with a noise variance of "
                f"{self.noise:.3g} has no Cholesky factor; use a larger jitter or noise_variance"
            )
        return mean, variance

    def _moments(self, X: Array, index: Array) -> tuple[Array, Array, Array]:
        b, xp = self.backend, self.backend.xp
        R = self.size + 1
        K = self.kernel.local_gram(self.theta, self._blocks(X, index))
        unit, eye = b.asarray(np.eye(1, R, R - 1).T), b.eye(R)
        means, variances, fine = [], [], []
        for columns in self.groups:
            Y, mask = self._given(index, columns)
            C = K + self.noise * eye
            if mask is not None:
                there = xp.concat([mask, xp.ones_like(mask[:, :1])], axis=1)
                Y, C = Y * mask[:, :, None], C * (there[:, :, None] * there[:, None, :])
                C = C + eye * (1.0 - there)[:, :, None]
            L, ok = b.factor(C)
            last = L[:, -1, -1]
            c = b.solve_factor(L, last[:, None, None] * unit, trans=True)[:, :-1, :]
            v = last * last - self.noise
            means.append(-xp.sum(c * Y, axis=1))
            variances.append(xp.where(v > 0.0, v, 0.0)[:, None] + xp.zeros_like(means[-1]))
            fine.append(ok)
        back = xp.asarray(np.argsort(np.concatenate(self.groups)), device=b.device)
        mean, variance = (xp.take(xp.concat(a, axis=1), back, axis=1) for a in (means, variances))
        return mean, variance, xp.all(xp.stack(fine), axis=0)

    def _stacks(self, count: int) -> list[slice]:
        R, D = self.size + 1, self.Y.shape[1]
        return self.backend.stacks(count, max(R * R, R * D // 4))


class Placed(NamedTuple):
    """Latents of new rows.

    Attributes
    ----------
    x : array (N, q)
    value : array (N,)
        The negative log density there, nats.
    settled : bool array (N,)
    """

    x: Array
    value: Array
    settled: Array


@dataclass(frozen=True)
class NewLocalRows:
    """The latents of new rows: −ln p(y* | x*, neighbours) − ln p(x*) for each row on its own.

    Neighbours are held during a search and found again around its end.

    Attributes
    ----------
    posterior : LocalPosterior
    prior : Prior or None
        Of the latents.
    Y : array (N, D)
        Centred, 0 where missing.
    seen : array (N, D)
        1 where observed, 0 where missing.
    owner : array of int (P,)
        The row of each problem.
    index : array of int (P, R)
        The neighbours of each problem.
    """

    posterior: LocalPosterior
    prior: Prior | None
    Y: Array
    seen: Array
    owner: Array
    index: Array

    @classmethod
    def of(cls, p: LocalPosterior, prior: Prior | None, Y: np.ndarray, X: Array) -> NewLocalRows:
        """Of centred rows (N, D), NaN for missing, given the neighbours of latents X (N, q)."""
        values, seen, owner = _table(p.backend, Y)
        return cls(p, prior, values, seen, owner, p.near(X))

    @classmethod
    def starting(cls, p: LocalPosterior, prior: Prior | None, Y: np.ndarray) -> NewLocalRows:
        """Some problems for each row, each to be begun at its first neighbour.

        Of the training rows nearest in the data those at whose latents f is least.
        """
        b, xp = p.backend, p.backend.xp
        values, seen, owner = _table(b, Y)
        N, count = Y.shape[0], min(_CANDIDATES, p.X.shape[0])
        rows = _near_in_data(p, values, seen, count)
        # Training rows are candidates of many rows: each is asked for its neighbours once.
        different, back = np.unique(rows, return_inverse=True)
        index = nearest(p.X, p.size, rows=different)[np.ravel(back)]
        trial = cls(p, prior, values, seen, xp.repeat(owner, count), p.numbers(index))
        f, _ = trial.value_and_grad(b.rows(p.X, rows.ravel()), _all(b, N * count))
        _, best = least(b, xp.reshape(f, (N, count)), min(_STARTS, count))
        return trial.part((b.to_host(best) + count * np.arange(N)[:, None]).ravel())

    def part(self, which: np.ndarray) -> NewLocalRows:
        """Some of the problems."""
        b = self.posterior.backend
        return replace(self, owner=b.rows(self.owner, which), index=b.rows(self.index, which))

    # A trial may lie anywhere, and one that fails is a value: NumPy need not warn of it.
    @np.errstate(all="ignore")
    def value_and_grad(self, X: Array, which: Array) -> tuple[Array, Array]:
        """f (r,) and its gradient (r, q) of the problems ``which`` (r,) at X (r, q)."""
        b, xp = self.posterior.backend, self.posterior.backend.xp
        index, owner = (xp.take(a, which, axis=0) for a in (self.index, self.owner))

        def one(part: slice) -> tuple[Array, Array]:
            return self._terms(X[part, :], index[part, :], owner[part])

        with b.calm(1):
            done = list(b.map_parts(one, self.posterior._stacks(X.shape[0])))
        f, g = (xp.concat([part[k] for part in done]) for k in range(2))
        if self.prior is not None:
            density, slope = self.prior.log_densities(X)
            f, g = f - xp.sum(density, axis=1), g - slope
        return f, g

    def _terms(self, X: Array, index: Array, owner: Array) -> tuple[Array, Array]:
        p = self.posterior
        b, xp = p.backend, p.backend.xp
        blocks = p._blocks(X, index)
        y, o = xp.take(self.Y, owner, axis=0), xp.take(self.seen, owner, axis=0)
        f, g = xp.zeros_like(X[:, 0]), xp.zeros_like(X)
        noise = b.scalar(p.noise)
        for columns in p.groups:
            where = xp.asarray(columns, device=b.device)
            given, mask = p._given(index, columns)
            own, here = xp.take(y, where, axis=1), xp.take(o, where, axis=1)
            # An output that the row has not says nothing where its neighbours' are 0 too.
            Y = xp.concat([given * here[:, None, :], own[:, None, :]], axis=1)
            if mask is not None:
                mask = xp.concat([mask, xp.ones_like(mask[:, :1])], axis=1)
            terms = conditional(p.kernel, p.theta, noise, blocks, Y, mask, xp.sum(here, axis=1))
            f = f - terms.values
            g = g - terms.pullback(xp.ones_like(f))[2][:, -1, :]
        return f, g

    def laplace(self, X: Array) -> tuple[Array, Array]:
        """Covariance of each row's latents (N, q, q) and ln|H| (N,), H the Hessian at X (N, q).

        Eigenvalues of H below the prior's precision are raised to it.
        """
        sd = getattr(self.prior, "sd", None)
        least_one = 1.0 / sd**2 if sd else self.posterior.backend.eps**0.5
        return laplace(hessians(self.value_and_grad, X), least_one)


def place(p: LocalPosterior, prior: Prior | None, Y: np.ndarray, *, max_steps: int = 100) -> Placed:
    """The most probable latents of centred rows (N, D), NaN for missing.

    BFGS from every start with the start's neighbours, the best end of each row by the neighbours
    around it; then BFGS and neighbours in turn, and two Newton steps. A row has settled where a
    further one promises less than 1e-6 nats (1e-2 in float32).
    """
    b, xp = p.backend, p.backend.xp
    N = Y.shape[0]
    problem = NewLocalRows.starting(p, prior, Y)
    spread = float(np.std(b.to_host(p.X), axis=0).max())
    step = 0.1 * spread if spread > 0.0 else 0.1
    x = xp.take(p.X, problem.index[:, 0], axis=0)
    for k in range(_ROUNDS):
        # Below this slope rounding may rule; the Newton steps do the rest.
        end = minimise_batch(
            problem.value_and_grad, x, max_steps=max_steps, gtol=1e-3, first_step=step
        )
        x, step = end.x, 0.1 * step
        if k < _ROUNDS - 1:
            problem = replace(problem, index=p.near(x))
        if k == 0:
            f = xp.reshape(problem.value_and_grad(x, _all(b, x.shape[0]))[0], (N, -1))
            best = b.to_host(xp.argmin(f, axis=1)) + f.shape[1] * np.arange(N)
            problem, x = problem.part(best), b.rows(x, best)
    f = problem.value_and_grad(x, _all(b, N))[0]
    promise = f
    for _ in range(2):
        x, f, promise = newton_step(problem.value_and_grad, x, f)
    return Placed(x, f, promise <= (1e-6 if b.itemsize == 8 else 1e-2))


def _all(b: Backend, count: int) -> Array:
    return b.xp.arange(count, dtype=b.xp.int64, device=b.device)


def _table(b: Backend, Y: np.ndarray) -> tuple[Array, Array, Array]:
    """Rows with 0 where missing, what is observed, and the numbers of the rows."""
    gone = np.isnan(Y)
    seen = b.asarray(np.where(gone, 0.0, 1.0))
    return b.asarray(np.where(gone, 0.0, Y)), seen, _all(b, Y.shape[0])


def nearest_rows(p: LocalPosterior, Y: np.ndarray, count: int) -> np.ndarray:
    """Training rows nearest in the data to centred rows (N, D), NaN for missing: (N, count).

    By the mean square over the outputs that both rows have.
    """
    values, seen, _ = _table(p.backend, Y)
    return _near_in_data(p, values, seen, count)


def _near_in_data(p: LocalPosterior, Y: Array, seen: Array, count: int) -> np.ndarray:
    """Training rows nearest in the outputs that both rows have, (N, count), on the host."""
    b, xp = p.backend, p.backend.xp
    t = xp.matrix_transpose
    N, n = Y.shape[0], p.X.shape[0]
    step = max(1, _BATCH_BYTES // (2 * b.itemsize * n))
    out = np.empty((N, count), dtype=np.int64)
    whole = p.seen is None and b.to_host(xp.all(seen > 0.0)).item()
    lengths = xp.sum(p.Y * p.Y, axis=1) if whole else t(p.Y * p.Y)
    for i in range(0, N, step):
        j = min(i + step, N)
        y, o = Y[i:j, :], seen[i:j, :]
        far = -2.0 * (y @ t(p.Y))
        if whole:
            far = far + lengths[None, :]
        else:
            mask = xp.ones_like(p.Y) if p.seen is None else p.seen
            shared = o @ t(mask)
            far = (far + (y * y) @ t(mask) + o @ lengths) / xp.where(shared > 0.0, shared, 1.0)
            far = xp.where(shared > 0.0, far, xp.inf)
        out[i:j] = b.to_host(least(b, far, count)[1])
    return out


__all__ = ["LocalPosterior", "NewLocalRows", "Placed", "nearest_rows", "place"]
