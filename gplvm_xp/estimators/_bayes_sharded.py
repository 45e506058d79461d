"""The collapsed search over shards of the rows: workers here, on a Dask cluster, or MPI ranks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from gplvm_xp.engine import Checkpoint
from gplvm_xp.estimators._bayes import FoundBayes, Settings, Start, first_kernel, inducing_inputs
from gplvm_xp.estimators._progress import watched
from gplvm_xp.kernels import Kernel
from gplvm_xp.objectives.sharded import Globals
from gplvm_xp.objectives.sharded_fit import ShardedSettings, fit_sharded
from gplvm_xp.optim import Limits
from gplvm_xp.priors import Prior


def search_sharded(
    Y: Any,
    start: Start | None,
    kernel: Kernel | None,
    noise: float | None,
    shape: tuple[int, int],
    rng: np.random.Generator,
    s: Settings,
    *,
    engine: Any,
    scale: bool,
    backend: str,
    dtype: str,
    checkpoint: str | os.PathLike[str] | None,
    resume: bool,
) -> tuple[FoundBayes, np.ndarray, np.ndarray]:
    """Minimise over shards; the end of the search, and the columns' means and scales.

    Parameters
    ----------
    Y : ndarray or dask.array.Array (n, D)
        As it came, NaN for missing.
    start : Start or None
        None where the rows are not here: principal components, found by the workers.
    kernel : Kernel or None
        Structure and starting values where ``start`` is None; None is the default.
    noise : float or None
        Starting noise variance where ``start`` is None.
    shape : tuple of int
        q and M.

    Raises
    ------
    WorkerLostError
        If a worker is lost; it names the checkpoint to go on from.
    NotPositiveDefiniteError
        If the start has no factors after the jitter schedule.
    """
    q, M = shape

    def begin(sample: np.ndarray, variance: float) -> Globals:
        return Globals(
            first_kernel(sample, variance) if kernel is None else kernel,
            0.01 * variance if noise is None else noise,
            inducing_inputs(sample, M, rng),
        )

    structure = kernel if start is None else start.kernel
    with watched(s.progress, s.max_iter, 0, s.callback, "BayesianGPLVM") as callback:
        fit = fit_sharded(
            Y,
            begin if start is None else Globals(start.kernel, start.noise, start.Z),
            kernel=first_kernel(np.eye(q), 1.0) if structure is None else structure,
            mu=q if start is None else start.mu,
            S=0.1 if start is None else start.S,
            engine=engine,
            settings=ShardedSettings(
                priors=s.priors,
                jitter=s.jitter,
                warm_up=s.warm_up,
                limits=Limits(s.max_iter, s.tol, 1e-3 * s.tol, s.time_left(), callback),
            ),
            scale=scale,
            backend=backend,
            dtype=dtype,
            checkpoint=None if checkpoint is None else Checkpoint(checkpoint),
            resume=resume,
        )
    end, result = fit.end, fit.result
    assert fit.S is not None
    bound = -result.value - _log_priors(end, s.priors)
    if start is None:
        # Nobody else can count the entries of rows that are not here.
        t = fit.table.totals
        bound -= np.sum((t.entries / t.outputs)[t.which] * np.log(fit.table.scale)).item()
    diagonal = end.kernel.diag(end.kernel.theta(), end.Z)
    found = FoundBayes(
        kernel=end.kernel,
        noise=end.noise,
        likelihood=None,
        mu=fit.mu,
        S=fit.S,
        Z=end.Z,
        mean=fit.mean,
        factor=fit.factor,
        which=fit.table.totals.which,
        jitter=fit.jitter * diagonal.mean().item(),
        bound=bound,
        value=result.value,
        curve=fit.curve,
        steps=len(fit.curve) - 1,
        grad_norm=result.grad_norm,
        status=result.status,
        message=result.message,
    )
    return found, fit.table.mean, fit.table.scale


def _log_priors(end: Globals, priors: Mapping[str, Prior]) -> float:
    """Log densities of the shared parameters, which are in the objective and not in the bound."""
    values = {block.name: block.value for block in end.kernel.blocks()}
    values |= {"noise": np.asarray(end.noise), "Z": end.Z}
    return float(sum(prior.log_density(values[name])[0] for name, prior in priors.items()))


__all__ = ["search_sharded"]
