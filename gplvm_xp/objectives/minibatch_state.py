"""What a minibatch search begins with, ends with, and goes on from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from gplvm_xp._typing import Array
from gplvm_xp.kernels import Kernel
from gplvm_xp.likelihoods import Likelihood
from gplvm_xp.objectives.stochastic import MinibatchObjective

MinibatchStatus: TypeAlias = Literal["finished", "stopped", "interrupted", "time_limit", "failed"]


@dataclass(frozen=True)
class MinibatchState:
    """All that a search needs to go on: host arrays and numbers.

    Attributes
    ----------
    shared : ndarray (3, size)
        Unconstrained parameters in the order of the objective's layout, and Adam's two averages.
    rows : ndarray (n, 6 q + 1)
        Of each row μ, ln S, the averages of their gradients, those of the squares, and its visits.
        (n, 0) where the objective's ``place`` gives μ and S.
    mean, precision : ndarray (M, D), (r, M, M)
        q(U), whitened: its mean, and Λ_k, the inverses of its covariances.
    steps, moves : int
        Steps taken; those of them that moved the shared parameters.
    epoch, place : int
        Pass over the data, and the batch in it that comes next.
    slowdown : float
        Factor of all step lengths, halved with each step that had to be undone.
    """

    shared: np.ndarray
    rows: np.ndarray
    mean: np.ndarray
    precision: np.ndarray
    steps: int = 0
    moves: int = 0
    epoch: int = 0
    place: int = 0
    slowdown: float = 1.0

    @classmethod
    def begin(cls, objective: MinibatchObjective, mu: np.ndarray, S: np.ndarray) -> MinibatchState:
        """The start: q(U) its prior, parameters and Z as in the objective, latents as given.

        Parameters
        ----------
        mu, S : ndarray (n, q)
            Latent means and variances, S > 0.

        Raises
        ------
        ValueError
            If the shapes do not fit the objective, or S is not positive.
        """
        (n, D), (M, q) = objective.shape, objective.inducing.shape
        x = objective.layout.start()
        rows = _fresh(mu, S, (n, q)) if objective.place is None else np.zeros((n, 0))
        precision = np.broadcast_to(np.eye(M), (objective.totals.outputs.size, M, M))
        shared = np.stack([x, np.zeros_like(x), np.zeros_like(x)])
        return cls(shared, rows, np.zeros((M, D)), precision.copy())

    def extended(self, mu: np.ndarray, S: np.ndarray) -> MinibatchState:
        """With further rows behind the old ones, at the beginning of an epoch.

        Parameters
        ----------
        mu, S : ndarray (k, q)
            Of the new rows.

        Raises
        ------
        ValueError
            As in :meth:`begin`.
        """
        width = self.rows.shape[1]
        new = np.zeros((mu.shape[0], 0))
        if width:
            new = _fresh(mu, S, (mu.shape[0], (width - 1) // 6))
        rows = np.concatenate([self.rows, new])
        epoch = self.epoch + (self.place > 0)
        return dataclasses.replace(self, rows=rows, epoch=epoch, place=0)


def _fresh(mu: np.ndarray, S: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Rows of the state that no step has seen."""
    if mu.shape != shape or S.shape != shape:
        raise ValueError(
            f"mu has shape {mu.shape} and S {S.shape}; expected {shape} for both, to go with Y and "
            "the inducing inputs"
        )
    if not (np.all(np.isfinite(mu)) and np.all(np.isfinite(S)) and np.all(S > 0.0)):
        raise ValueError("mu or S is not finite, or S not positive; expected variances S > 0")
    return np.concatenate([mu, np.log(S), np.zeros((shape[0], 4 * shape[1] + 1))], axis=1)


@dataclass(frozen=True)
class MinibatchResult:
    """The end of a minibatch search.

    Attributes
    ----------
    kernel : Kernel
        With the values found.
    likelihood : Likelihood
        With the values found.
    Z : array (M, q)
    mu, S : ndarray (n, q)
        On the host.
    mean, factor : array (M, D), (r, M, M)
        q(U), whitened: u_d = L_u (mean_d + factor_k ε), ε ~ N(0, I).
    which : ndarray (D,)
    offset : ndarray (D,)
        Prior mean of each function (for Gaussian noise, what was subtracted).
    curve : ndarray (steps,)
        The batches' own unbiased estimates of the bound, nats, before each step.
    steps, undone : int
        Steps taken in this call; those that were undone because what followed was not finite.
    status, message : str
    state : MinibatchState
        To go on from here.
    """

    kernel: Kernel
    likelihood: Likelihood
    Z: Array
    mu: np.ndarray
    S: np.ndarray
    mean: Array
    factor: Array
    which: np.ndarray
    offset: np.ndarray
    curve: np.ndarray
    steps: int
    undone: int
    status: MinibatchStatus
    message: str
    state: MinibatchState


__all__ = ["MinibatchResult", "MinibatchState", "MinibatchStatus"]
