"""Natural-gradient steps on minibatches: very many observations of a short latent vector.

With natural parameters P = Σ⁻¹ and a = Σ⁻¹μ, a step of length ρ on a batch I of the N observations,

    P ← (1−ρ)P + ρ(Λ + (N/|I|) B_Iᵀ diag(s_I) B_I),
    a ← (1−ρ)a + ρ(Λμ₀ + (N/|I|) B_Iᵀ(s_I∘(B_I μ) − r_I)),

follows an unbiased estimate of the natural gradient (Khan & Lin 2017, conjugate-computation
variational inference; derivations/inference.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.operators import Dense
from gplvm_xp.operators.base import Precision
from gplvm_xp.variational.engines import from_natural
from gplvm_xp.variational.observations import Observations

StochasticStatus: TypeAlias = Literal["finished", "stopped", "interrupted", "time_limit", "failed"]


@dataclass(frozen=True)
class StochasticResult:
    """The end of a minibatch search.

    Attributes
    ----------
    mu : array (L,)
    Sigma : array (L, L)
    free_energy : float
        Over all observations at the end, nats.
    estimates : ndarray (steps,)
        The batches' own unbiased estimates of the free energy, before each step.
    steps, shortened : int
        Steps taken; steps whose ρ was halved because Σ⁻¹ would not have been positive definite.
    status, message : str
    """

    mu: Array
    Sigma: Array
    free_energy: float
    estimates: np.ndarray
    steps: int
    shortened: int
    status: StochasticStatus
    message: str


def natural_gradient(
    prior: Precision,
    B: Dense,
    data: Observations,
    *,
    batch_size: int,
    epochs: int = 10,
    rate: Callable[[int], float] = lambda step: 1.0 / (1.0 + 0.1 * step) ** 0.7,
    mean: Array | None = None,
    seed: int = 0,
    time_limit: float | None = None,
    callback: Callable[[int, float], bool | None] | None = None,
) -> StochasticResult:
    """Fit a Gaussian posterior by natural-gradient steps on minibatches of the observations.

    Parameters
    ----------
    prior : Precision
        Λ, of order L.
    B : Dense
        (N, L): a row an observation.
    data : Observations
        y (N,), no leading axes.
    batch_size : int
        Observations a step, 1 to N; with N and ``rate`` 1 each step is the full fixed point.
    epochs : int
        Passes over the data, each in a new order.
    rate : callable
        Step number (0, 1, …) → ρ in (0, 1]. The default decays as step^−0.7, within Robbins and
        Monro's conditions.
    mean : array (L,), optional
        μ₀, default 0.
    seed : int
        Of the orders, drawn on the host.
    time_limit, callback
        Seconds; ``callback(step, estimate)``, whose true answer stops.

    Returns
    -------
    StochasticResult
        Ctrl-C ends with status "interrupted" and the state so far.

    Raises
    ------
    ValueError
        If the shapes do not fit, or ``batch_size`` or a step length is out of range.
    TypeError
        If B is not a dense matrix.

    Notes
    -----
    Cost a step: 2|I|L² + L³; memory |I|L + 2L².
    """
    b = backend.of(data.y)
    xp = b.xp
    if not isinstance(B, Dense) or B.B.ndim != 2:
        raise TypeError(
            f"B is {B!r}; expected operators.Dense of an (N, L) matrix, whose rows a batch takes"
        )
    N, L = B.rows, B.cols
    if tuple(data.y.shape) != (N,) or prior.size != L:
        raise ValueError(
            f"y has shape {tuple(data.y.shape)}, B {(N, L)} and the prior order {prior.size}; "
            "expected y (N,), B (N, L) and a prior of order L"
        )
    if not 1 <= batch_size <= N:
        raise ValueError(f"batch_size={batch_size!r} was given; expected 1 to {N}")
    base = b.zeros((L,)) if mean is None else prior.apply(mean)
    zero = xp.zeros_like(data.y)
    start = b.zeros((L,)) if mean is None else mean
    # As in the fixed point: the curvature at the prior's mean, where nothing overflows.
    s = data.slopes(B.apply(start), zero).s
    s = xp.where(s > 0.0, s, 0.0)
    P = prior.plus(B.gram(s))
    a = P @ start
    rng, began = np.random.default_rng(seed), time.perf_counter()
    estimates: list[float] = []
    steps = shortened = 0
    status: StochasticStatus = "finished"
    message = f"{epochs} epochs"
    try:
        for index in _batches(rng, N, batch_size, epochs):
            if time_limit is not None and time.perf_counter() - began >= time_limit:
                status, message = "time_limit", f"time_limit={time_limit:g} s reached"
                break
            rows, part = Dense(b.rows(B.B, index)), _subset(data, index)
            _, kl, mu, C = from_natural(prior, P, a, mean)
            scale = N / index.size
            m = rows.apply(mu)
            t = part.slopes(m, rows.quad(C))
            aim_P = prior.plus(scale * rows.gram(t.s))
            aim_a = base + scale * rows.adjoint(t.s * m - t.r)
            rho = rate(steps)
            if not 0.0 < rho <= 1.0:
                raise ValueError(f"rate({steps}) is {rho!r}; expected a step length in (0, 1]")
            while True:
                new = (1.0 - rho) * P + rho * aim_P
                both = b.to_host(
                    xp.stack([kl + scale * t.value, xp.astype(b.factor(new)[1], b.dtype)])
                )
                if both[1] > 0.5 or rho < 1e-6:
                    break
                rho, shortened = 0.5 * rho, shortened + 1
            if not (both[1] > 0.5 and np.isfinite(both[0])):
                status, message = "failed", "no step keeps Σ⁻¹ positive definite and finite"
                break
            P, a = new, (1.0 - rho) * a + rho * aim_a
            steps += 1
            estimates.append(both[0])
            if callback is not None and callback(steps, estimates[-1]):
                status, message = "stopped", "stopped by the callback"
                break
    except KeyboardInterrupt:
        status, message = "interrupted", "interrupted by the keyboard; the last state is kept"
    _, kl, mu, C = from_natural(prior, P, a, mean)
    total = kl + data.slopes(B.apply(mu), B.quad(C)).value
    return StochasticResult(
        mu, C, float(b.to_host(total)), np.asarray(estimates), steps, shortened, status, message
    )


def _batches(rng: np.random.Generator, N: int, size: int, epochs: int) -> list[np.ndarray]:
    orders = [rng.permutation(N) for _ in range(epochs)]
    return [order[i : i + size] for order in orders for i in range(0, N, size)]


def _subset(data: Observations, index: np.ndarray) -> Observations:
    b = backend.of(data.y)

    def pick(a: Array | None) -> Array | None:
        return a if a is None or a.ndim == 0 else b.rows(a, index)

    return replace(
        data,
        y=pick(data.y),
        weights=pick(data.weights),
        exposure=pick(data.exposure),
        offset=pick(data.offset),
    )


__all__ = ["StochasticResult", "StochasticStatus", "natural_gradient"]
