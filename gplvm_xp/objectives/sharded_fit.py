"""A whole fit over shards of rows: the table, starting latents, the search, the end on the host."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from gplvm_xp import backend as backends
from gplvm_xp import engine as engines
from gplvm_xp.backend import Backend
from gplvm_xp.engine import Checkpoint, SerialEngine, Session, Traffic
from gplvm_xp.errors import WorkerLostError
from gplvm_xp.kernels import Kernel
from gplvm_xp.objectives.collapsed import Totals
from gplvm_xp.objectives.shard import Worker
from gplvm_xp.objectives.sharded import Globals, ShardedBound
from gplvm_xp.optim import LBFGS, Limits, OptResult
from gplvm_xp.optim.sharded import SearchState, SliceState, minimise_sharded
from gplvm_xp.priors import Prior

# Up to this many columns the matrix of their products is made once, beyond it is iterated with.
_COLUMNS, _SPARE, _ROUNDS = 512, 10, 15
# Rows of the latents that are shown to what chooses the starting values of shared parameters.
_SAMPLE = 20_000


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


class Table(NamedTuple):
    """What is known here of a table that is with workers.

    Attributes
    ----------
    rows : tuple of int
        Of each shard.
    mean, scale : ndarray (D,)
        Removed from and divided out of the columns.
    variance : float
        Mean square of what is left, over observed entries.
    totals : Totals
    """

    rows: tuple[int, ...]
    mean: np.ndarray
    scale: np.ndarray
    variance: float
    totals: Totals


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
    WorkerLostError
        If a worker is lost; it names the shard and the checkpoint to resume from.
    ValueError
        If a column has no observed entries or infinite ones, a Dask array has chunks of unknown
        size, or the checkpoint is of another fit.
    """
    s = settings or ShardedSettings()
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
            table = _prepared(session, rows, Y.shape[1], scale)
            sample = _latents(session, table, mu, S)
            first = start(sample, table.variance) if callable(start) else start

            def save(state: SearchState) -> None:
                nonlocal written
                assert checkpoint is not None
                checkpoint.write(_packed(state, table))
                written = True

            state = None
            if resume and checkpoint is not None:
                state, curve = _unpacked(checkpoint, table), ()
            else:
                first, curve = _warmed(session, table, b, first, s)
            left = s.limits.max_steps - len(curve)
            s = replace(s, limits=replace(s.limits, max_steps=left), warm_up=0)
            every = 1 if checkpoint is None else checkpoint.every
            bound, result = _search(
                session, table, b, first, s, state, every, None if checkpoint is None else save
            )
            end = bound.globals(result.x)
            mean, factor, _ = bound.optimal(end)
            latents = session.collect("latents")
        except WorkerLostError as error:
            known = os.fspath(checkpoint.path) if checkpoint is not None and written else None
            raise WorkerLostError(error.shard, error.reason, known) from error
    means, variances = (np.concatenate([_as_host(shard[i]) for shard in latents]) for i in range(2))
    return ShardedFit(
        end=end,
        mu=means,
        S=variances if variances.shape == means.shape else None,
        mean=_as_host(mean),
        factor=_as_host(factor),
        table=table,
        result=result,
        curve=(*curve, *result.values),
        traffic=session.traffic,
    )


def _warmed(
    session: Session, table: Table, b: Backend, first: Globals, s: ShardedSettings
) -> tuple[Globals, tuple[float, ...]]:
    """Shared parameters after the warm-up, and the objective on the way there."""
    steps = min(s.warm_up, s.limits.max_steps)
    if not steps:
        return first, ()
    limits = replace(s.limits, max_steps=steps)
    warm = replace(
        s, limits=limits, held=s.held | {"noise"},
        priors={name: p for name, p in s.priors.items() if name != "noise"},
    )  # fmt: skip
    bound, result = _search(session, table, b, first, warm, None, 1, None)
    return bound.globals(result.x), result.values[:-1]


def _search(
    session: Session,
    table: Table,
    b: Backend,
    first: Globals,
    s: ShardedSettings,
    state: SearchState | None,
    every: int,
    save: Callable[[SearchState], None] | None,
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
    return bound, found


def _moved(b: Backend, state: SearchState) -> SearchState:
    return replace(state, here=SliceState(*(b.asarray(a) for a in state.here)))


# -- the table and its latents ---------------------------------------------------------------------


def _prepared(session: Session, rows: list[int], D: int, scale: bool) -> Table:
    count, total, _, wrong = map(_as_host, session.map_reduce("moments", np.zeros(D)))
    for bad, what in ((wrong > 0, "infinite entries"), (count == 0, "no observed entries")):
        if bad.any():
            columns = np.flatnonzero(bad)[:10].tolist()
            raise ValueError(
                f"columns {columns} of Y have {what}; expected numbers, or NaN where missing"
            )
    mean = total / count
    # Again about the mean: the squares of numbers with a large offset lose their digits.
    _, rest, squares, _ = map(_as_host, session.map_reduce("moments", mean))
    mean = mean + rest / count
    deviation = np.sqrt(np.maximum(squares / count - (rest / count) ** 2, 0.0))
    divisor = np.where(deviation > 0.0, deviation, 1.0) if scale else np.ones(D)
    labels = np.stack([_as_host(pattern) for (pattern,) in session.collect("patterns")])
    which = np.ravel(np.unique(labels, axis=1, return_inverse=True)[1])
    arguments = (mean, divisor, which.astype(float))
    observed, squares = map(_as_host, session.map_reduce("prepare", *arguments))
    outputs = np.bincount(which).astype(float)
    totals = Totals(which, observed * outputs, squares, outputs)
    variance = np.sum(squares) / np.sum(totals.entries)
    return Table(tuple(rows), mean, divisor, variance, totals)


def _latents(
    session: Session, table: Table, mu: np.ndarray | int, S: np.ndarray | float | None
) -> np.ndarray:
    """Give the workers their starting latents; some rows of them."""
    n = sum(table.rows)
    if isinstance(mu, np.ndarray):
        if mu.shape[0] != n or (isinstance(S, np.ndarray) and S.shape != mu.shape):
            raise ValueError(
                f"mu has shape {mu.shape} and S {np.shape(S)} for {n} rows of Y; expected one row "
                "of each for each"
            )
        variances = mu[:0] if S is None else np.broadcast_to(S, mu.shape)
        ends = np.cumsum([0, *table.rows])
        pieces = [slice(i, j) for i, j in itertools.pairwise(ends)]
        session.scatter("place", [(mu[p], variances[p]) for p in pieces])
    else:
        _principal(session, table, mu, S)
    step = np.asarray([-(-n // _SAMPLE)], dtype=float)
    return np.concatenate([_as_host(rows) for (rows,) in session.collect("sample", step)])


def _principal(session: Session, table: Table, q: int, S: np.ndarray | float | None) -> None:
    """Principal components as latents: signs fixed, centred, the widest of unit deviation.

    The largest entry of a column is positive. Missing entries count as column means.
    """
    if isinstance(S, np.ndarray):
        raise ValueError("S is an array and mu a number; expected one variance, or latents too")
    D, n = table.mean.size, sum(table.rows)
    if not 1 <= q <= D:
        raise ValueError(f"mu={q!r} latents were asked for of {D} columns; expected 1 to {D}")
    if D <= _COLUMNS:
        product = _as_host(session.map_reduce("power", np.eye(D))[0])
        V = np.linalg.eigh(product)[1][:, ::-1][:, :q]
    else:
        width = min(q + _SPARE, D)
        V = np.random.default_rng(0).standard_normal((D, width))
        for _ in range(_ROUNDS):
            V = np.linalg.qr(_as_host(session.map_reduce("power", V)[0]))[0]
        product = V.T @ _as_host(session.map_reduce("power", V)[0])
        V = V @ np.linalg.eigh(0.5 * (product + product.T))[1][:, ::-1][:, :q]
    found = [tuple(map(_as_host, shard)) for shard in session.collect("project", V)]
    mean, squares = (sum(shard[i] for shard in found) / n for i in range(2))
    farthest = np.stack([shard[2] for shard in found])
    far = farthest[np.argmax(np.abs(farthest), axis=0), np.arange(q)]
    widest = np.sqrt(np.max(np.maximum(squares - mean**2, 0.0)))
    factor = np.where(far < 0.0, -1.0, 1.0) / (widest if widest > 0.0 else 1.0)
    variance = np.zeros(0) if S is None else np.full(1, S)
    session.map_reduce("adjust", factor, mean * factor, variance)


# -- checkpoints -----------------------------------------------------------------------------------


def _packed(state: SearchState, table: Table) -> dict[str, np.ndarray]:
    arrays = {
        "rows": np.asarray(table.rows), "values": state.values, "grad_norms": state.grad_norms,
        "gram": state.gram,
    }  # fmt: skip
    for index, part in enumerate([state.here, *state.parts]):
        arrays |= {f"{name}{index}": _as_host(a) for name, a in part._asdict().items()}
    return arrays


def _unpacked(checkpoint: Checkpoint, table: Table) -> SearchState:
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
    return SearchState(arrays["values"], arrays["grad_norms"], arrays["gram"], here, parts)


def _as_host(a: Any) -> np.ndarray:
    return np.asarray(backends.of(a).to_host(a), dtype=np.float64)


__all__ = ["ShardedFit", "ShardedSettings", "Table", "fit_sharded"]
