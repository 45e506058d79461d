"""A whole fit over shards of rows: the table, starting latents, the search, the end on the host."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gplvm_xp import backend as backends
from gplvm_xp import engine as engines
from gplvm_xp.backend import Backend
from gplvm_xp.engine import Checkpoint, SerialEngine, Session, Traffic
from gplvm_xp.errors import NotPositiveDefiniteError, WorkerLostError
from gplvm_xp.kernels import Kernel
from gplvm_xp.objectives.shard import Worker
from gplvm_xp.objectives.sharded import Globals, ShardedBound
from gplvm_xp.objectives.sharded_table import Table, as_host, place_latents, prepared
from gplvm_xp.optim import LBFGS, Limits, OptResult
from gplvm_xp.optim.sharded import SearchState, later, minimise_sharded
from gplvm_xp.optim.slices import SliceState
from gplvm_xp.priors import Prior

# How a warm-up may end that ends the fit.
_ENDED = ("interrupted", "stopped", "time_limit")


@dataclass(frozen=True)
class ShardedSettings:
    """What is minimised and how.

    Attributes
    ----------
    priors : mapping of str to Prior
        Of shared parameters by block name.
    latent_prior : Prior or None
        Of points.
    held : frozenset of str
        Blocks that stay at their starting values.
    jitter : float
        Added to the diagonal of K_uu as this multiple of its mean.
    trace : bool
        False: DTC.
    warm_up : int
        Steps at first with the noise held.
    limits : Limits
        Of all steps, the warm-up's included.
    lbfgs : LBFGS
        The optimiser's settings.
    """

    priors: Mapping[str, Prior] = field(default_factory=dict)
    latent_prior: Prior | None = None
    held: frozenset[str] = frozenset()
    jitter: float = 1e-6
    trace: bool = True
    warm_up: int = 0
    limits: Limits = field(default_factory=Limits)
    lbfgs: LBFGS = field(default_factory=LBFGS)


@dataclass(frozen=True)
class ShardedFit:
    """The end of a fit over shards, on the host.

    Attributes
    ----------
    end : Globals
        Kernel, noise and inducing inputs learned.
    mu : ndarray (n, q)
    S : ndarray (n, q) or None
    mean, factor : ndarray (M, D), (r, M, M)
        The optimal whitened q(u).
    table : Table
    result : OptResult
        Of the last search; ``x`` is its flat vector of shared parameters.
    curve : tuple of float
        Objective at the start and after each step, the warm-up's included.
    traffic : Traffic
        What travelled.
    """

    end: Globals
    mu: np.ndarray
    S: np.ndarray | None
    mean: np.ndarray
    factor: np.ndarray
    table: Table
    result: OptResult
    curve: tuple[float, ...]
    traffic: Traffic


def fit_sharded(
    Y: Any,
    start: Globals | Callable[[np.ndarray, float], Globals],
    *,
    kernel: Kernel,
    mu: np.ndarray | int,
    S: np.ndarray | float | None = 0.1,
    engine: Any = None,
    n_shards: int | None = None,
    settings: ShardedSettings | None = None,
    scale: bool = False,
    backend: str | None = "numpy",
    dtype: str = "float64",
    resident: bool = True,
    checkpoint: Checkpoint | None = None,
    resume: bool = False,
) -> ShardedFit:
    """Fit latents and shared parameters with the rows of Y spread over workers.

    Parameters
    ----------
    Y : array (n, D) or dask.array.Array
        NaN for missing. Columns are centred by their means over observed entries.
    start : Globals or callable
        Starting values; or ``start(sample, variance)`` that makes them from some rows (k, q) of the
        starting latents and the mean square of the centred data.
    kernel : Kernel
        The structure, as that of ``start``.
    mu : ndarray (n, q) or int
        Starting latents; a number q takes that many principal components, found by the workers.
    S : ndarray (n, q), float or None
        Their starting variances; None: points.
    engine : None, "serial", "dask", "mpi", Engine or distributed.Client
        See :func:`gplvm_xp.engine.get`.
    n_shards : int, optional
        Default one for each worker there is. For the same number the result has the same bits on
        every engine.
    settings : ShardedSettings, optional
    scale : bool
        Divide each column by its standard deviation (constant columns are left alone).
    backend, dtype : str
        Where workers compute.
    resident : bool
        False: shards are on the host, and on the device one at a time.
    checkpoint : Checkpoint, optional
        Written during the last search.
    resume : bool
        Go on from the checkpoint's file: the search takes the same steps as if it had not been
        interrupted. Data, shards and settings must be the same.

    Returns
    -------
    ShardedFit

    Raises
    ------
    NotPositiveDefiniteError
        If the bound can't be evaluated at the start.
    WorkerLostError
        If a worker is lost; it names the shard and the checkpoint to resume from.
    ValueError
        If a column has no observed entries or infinite ones, a Dask array has chunks of unknown
        size, or the checkpoint is of another fit.
    """
    began, s = time.perf_counter(), settings or ShardedSettings()
    if resume and checkpoint is None:
        raise ValueError("resume=True was given without a checkpoint; expected the file's")
    chosen = engines.get(engine)
    parts, rows = chosen.split(Y, n_shards)
    worker = Worker(kernel, s.latent_prior, backend, dtype, resident)
    # The algebra is done where its workers are, if they are here.
    b = backends.get(backend if isinstance(chosen, SerialEngine) else "numpy", dtype=dtype)
    written = checkpoint is not None and resume
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(chosen.open(worker, [(part,) for part in parts]))
        del parts
        try:
            table = prepared(session, rows, Y.shape[1], scale)
            sample = place_latents(session, table, mu, S)
            first = start(sample, table.variance) if callable(start) else start

            def save(state: SearchState) -> None:
                nonlocal written
                assert checkpoint is not None
                checkpoint.write(_packed(state, table, curve))
                written = True

            state: SearchState | None = None
            curve: tuple[float, ...] = ()
            ended = False
            if resume and checkpoint is not None:
                state, curve = _unpacked(checkpoint, table)
            elif s.warm_up:
                bound, result = _search(session, table, b, first, _warming(s))
                first, ended = bound.globals(result.x), result.status in _ENDED
                curve = () if ended else result.values[:-1]
            if not ended:
                left = later(s.limits, len(curve), time.perf_counter() - began)
                every = 1 if checkpoint is None else checkpoint.every
                bound, result = _search(
                    session, table, b, first, replace(s, limits=left), state, every,
                    None if checkpoint is None else save,
                )  # fmt: skip
            end = bound.globals(result.x)
            mean, factor, _ = bound.optimal(end)
            latents = session.collect("latents")
        except WorkerLostError as error:
            known = os.fspath(checkpoint.path) if checkpoint is not None and written else None
            raise WorkerLostError(error.shard, error.reason, known) from error
    means, variances = (np.concatenate([as_host(shard[i]) for shard in latents]) for i in range(2))
    return ShardedFit(
        end=end,
        mu=means,
        S=variances if variances.shape == means.shape else None,
        mean=as_host(mean),
        factor=as_host(factor),
        table=table,
        result=result,
        curve=(*curve, *result.values),
        traffic=session.traffic,
    )


def _warming(s: ShardedSettings) -> ShardedSettings:
    """The settings of the warm-up."""
    return replace(
        s,
        limits=replace(s.limits, max_steps=min(s.warm_up, s.limits.max_steps)),
        held=s.held | {"noise"},
        priors={name: p for name, p in s.priors.items() if name != "noise"},
    )


def _search(
    session: Session,
    table: Table,
    b: Backend,
    first: Globals,
    s: ShardedSettings,
    state: SearchState | None = None,
    every: int = 1,
    save: Callable[[SearchState], None] | None = None,
) -> tuple[ShardedBound, OptResult]:
    """One minimisation; the workers' latents are at its end after it."""
    held = np.asarray(["mu" in s.held, "S" in s.held], dtype=float)
    session.map_reduce("begin", held, np.asarray([s.lbfgs.memory], dtype=float))
    bound = ShardedBound(
        session, first, table.totals, b, s.priors, s.held, s.jitter, s.trace
    )  # fmt: skip
    if state is not None and state.here.x.shape != (bound.layout.size,):
        raise ValueError(
            f"the checkpoint has {state.here.x.size} shared parameters and this fit "
            f"{bound.layout.size}; expected the settings that it was written with"
        )
    found, point = minimise_sharded(
        bound,
        b.asarray(bound.layout.start()),
        settings=s.lbfgs,
        limits=s.limits,
        every=every,
        save=save,
        resume=state if state is None else _moved(b, state),
    )
    session.map_reduce("end", np.asarray([point], dtype=float))
    if found.status == "failed" and not np.isfinite(found.value):
        raise NotPositiveDefiniteError(
            f"the bound can't be evaluated at the start with a jitter of {s.jitter:g} of the "
            "kernel's variance; use a larger one, fewer or different inducing inputs, or other "
            "starting values"
        )
    return bound, found


def _moved(b: Backend, state: SearchState) -> SearchState:
    return replace(state, here=SliceState(*(b.asarray(a) for a in state.here)))


# -- checkpoints -----------------------------------------------------------------------------------


def _packed(state: SearchState, table: Table, before: tuple[float, ...]) -> dict[str, np.ndarray]:
    arrays = {
        "rows": np.asarray(table.rows), "values": state.values, "grad_norms": state.grad_norms,
        "gram": state.gram, "before": np.asarray(before),
    }  # fmt: skip
    for index, part in enumerate([state.here, *state.parts]):
        arrays |= {f"{name}{index}": as_host(a) for name, a in part._asdict().items()}
    return arrays


def _unpacked(checkpoint: Checkpoint, table: Table) -> tuple[SearchState, tuple[float, ...]]:
    arrays = checkpoint.read()
    rows = tuple(arrays["rows"].tolist()) if "rows" in arrays else None
    if rows != table.rows:
        raise ValueError(
            f"the checkpoint {os.fspath(checkpoint.path)!r} is of shards of {rows} rows and this "
            f"fit has {table.rows}; expected the same data and the same shards"
        )
    here, *parts = (
        SliceState(*(arrays[f"{name}{index}"] for name in SliceState._fields))
        for index in range(1 + len(table.rows))
    )
    state = SearchState(arrays["values"], arrays["grad_norms"], arrays["gram"], here, parts)
    return state, tuple(arrays["before"].tolist())


__all__ = ["ShardedFit", "ShardedSettings", "fit_sharded"]
