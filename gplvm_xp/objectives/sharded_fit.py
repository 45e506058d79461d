"""A whole fit over shards of rows: the table, starting latents, the search, the end on the host."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from gplvm_xp import backend as backends
from gplvm_xp import engine as engines
from gplvm_xp.backend import Backend
from gplvm_xp.engine import Checkpoint, SerialEngine, Session, Traffic
from gplvm_xp.errors import ModelFileError, NotPositiveDefiniteError, WorkerLostError
from gplvm_xp.kernels import Kernel
from gplvm_xp.objectives.shard import Worker
from gplvm_xp.objectives.sharded import Globals, ShardedBound
from gplvm_xp.objectives.sharded_table import Table, as_host, place_latents, prepared
from gplvm_xp.optim import LBFGS, Limits, OptResult
from gplvm_xp.optim.sharded import SearchState, later, minimise_sharded
from gplvm_xp.optim.slices import SliceState
from gplvm_xp.priors import Prior

# A start without factors is tried again with ten times the jitter: the estimators' schedule.
JITTER_FLOOR, JITTER_GROWTH, JITTER_TRIES = 1e-10, 10.0, 6
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
        Added to the diagonal of K_uu as this multiple of its mean. Where the start has no Cholesky
        factor it is raised tenfold, up to six times.
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
    jitter : float
        As in the settings, or what it was raised to.
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
    jitter: float
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
        interrupted. Data, shards and settings must be the same, only limits may differ.

    Returns
    -------
    ShardedFit

    Raises
    ------
    NotPositiveDefiniteError
        If the bound can't be evaluated at the start after the jitter schedule.
    WorkerLostError
        If a worker is lost; it names the shard and the checkpoint to resume from.
    OSError
        If the checkpoint can't be written.
    ValueError
        If an entry is infinite, a row or a column has none that is observed, every column is
        constant, a Dask array has chunks of unknown size, or the checkpoint is of other data,
        shards or settings; the text says what differs.
    """
    began, s = time.perf_counter(), settings or ShardedSettings()
    if resume and checkpoint is None:
        raise ValueError("resume=True was given without a checkpoint; expected the file's")
    if checkpoint is not None:
        checkpoint.check()
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
            facts = _facts(first, s, table, scale, dtype, S is not None)

            def save(jitter: float, state: SearchState) -> None:
                nonlocal written
                assert checkpoint is not None
                checkpoint.write(_packed(state, table, curve, facts, jitter))
                written = True

            state: SearchState | None = None
            curve: tuple[float, ...] = ()
            ended = False
            if resume and checkpoint is not None:
                state, curve, jitter = _unpacked(checkpoint, table, facts)
                s = replace(s, jitter=jitter)
            elif s.warm_up:
                bound, result = _search(session, table, b, first, _warming(s))
                first, ended = bound.globals(result.x), result.status in _ENDED
                s = replace(s, jitter=bound.jitter)
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
        jitter=bound.jitter,
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
    save: Callable[[float, SearchState], None] | None = None,
) -> tuple[ShardedBound, OptResult]:
    """One minimisation; the workers' latents are at its end after it."""
    held = np.asarray(["mu" in s.held, "S" in s.held], dtype=float)
    jitter = s.jitter
    for _ in range(1 + JITTER_TRIES):
        session.map_reduce("begin", held, np.asarray([s.lbfgs.memory], dtype=float))
        bound = ShardedBound(session, first, table.totals, b, s.priors, s.held, jitter, s.trace)
        found, point = minimise_sharded(
            bound,
            b.asarray(bound.layout.start()),
            settings=s.lbfgs,
            limits=s.limits,
            every=every,
            save=None if save is None else partial(save, jitter),
            resume=state if state is None else _moved(b, state),
        )
        if np.isfinite(found.value) or found.status == "interrupted":
            session.map_reduce("end", np.asarray([point], dtype=float))
            return bound, found
        jitter = max(jitter, JITTER_FLOOR) * JITTER_GROWTH
    raise NotPositiveDefiniteError(
        f"the bound can't be evaluated at the start with a jitter of up to "
        f"{jitter / JITTER_GROWTH:.0e} of the kernel's variance; use fewer or different inducing "
        "inputs, or other starting values"
    )


def _moved(b: Backend, state: SearchState) -> SearchState:
    return replace(state, here=SliceState(*(b.asarray(a) for a in state.here)))


# -- checkpoints -----------------------------------------------------------------------------------


def _facts(
    first: Globals, s: ShardedSettings, table: Table, scale: bool, dtype: str, uncertain: bool
) -> dict[str, str]:
    """What a checkpoint and the fit that goes on from it must agree in, as text."""
    kernel, (M, q) = first.kernel, first.Z.shape
    known = {block.name: block.value for block in kernel.blocks()}
    known |= {"noise": np.asarray(first.noise), "Z": first.Z}
    fixed = {block.name for block in kernel.blocks() if block.fixed}
    held = sorted(fixed | (s.held & known.keys()))
    return {
        "columns": str(table.mean.size),
        "latent dimensions": str(q),
        "inducing inputs": str(M),
        "latents": "uncertain" if uncertain else "points",
        "scale": str(scale),
        "dtype": dtype,
        # Values are learned, or among those held.
        "kernel": repr(kernel.with_theta(np.ones(kernel.theta().size))),
        "held": str(sorted(s.held)),
        "values held": str({name: _written(known[name]) for name in held}),
        "priors": str(sorted((name, repr(prior)) for name, prior in s.priors.items())),
        "latent prior": repr(s.latent_prior),
        "jitter": f"{s.jitter:.17g}",
        "trace": str(s.trace),
        "memory": str(s.lbfgs.memory),
    }


def _written(a: np.ndarray) -> str:
    return np.array2string(a, threshold=a.size + 1, floatmode="unique")


def _packed(
    state: SearchState,
    table: Table,
    before: tuple[float, ...],
    facts: Mapping[str, str],
    jitter: float,
) -> dict[str, np.ndarray]:
    arrays = {
        "rows": np.asarray(table.rows), "values": state.values, "grad_norms": state.grad_norms,
        "gram": state.gram, "before": np.asarray(before), "marks": table.marks,
        "facts": np.asarray(list(facts.items())), "jitter": np.asarray([jitter]),
    }  # fmt: skip
    for index, part in enumerate([state.here, *state.parts]):
        arrays |= {f"{name}{index}": as_host(a) for name, a in part._asdict().items()}
    return arrays


def _unpacked(
    checkpoint: Checkpoint, table: Table, facts: Mapping[str, str]
) -> tuple[SearchState, tuple[float, ...], float]:
    """The search, the curve before it and the jitter, if they are of this fit."""
    arrays, path = checkpoint.read(), os.fspath(checkpoint.path)
    missing = {"rows", "facts", "marks", "jitter"} - arrays.keys()
    if missing:
        raise ModelFileError(
            f"{path!r} can't be read as a checkpoint: it lacks {sorted(missing)}; expected an .npz "
            "that a fit over shards wrote: give another file, or start again without"
        )
    _check_same(arrays, path, table, facts)
    here, *parts = (
        SliceState(*(arrays[f"{name}{index}"] for name in SliceState._fields))
        for index in range(1 + len(table.rows))
    )
    state = SearchState(arrays["values"], arrays["grad_norms"], arrays["gram"], here, parts)
    (jitter,) = arrays["jitter"]
    return state, tuple(arrays["before"].tolist()), jitter


def _check_same(
    arrays: Mapping[str, np.ndarray], path: str, table: Table, facts: Mapping[str, str]
) -> None:
    """Refuse the checkpoint of other shards, settings or data, and say what differs."""
    rows = tuple(arrays["rows"].tolist())
    if rows != table.rows:
        raise ValueError(
            f"the checkpoint {path!r} is of shards of {rows} rows and this fit has {table.rows}; "
            "expected the same data and the same shards"
        )
    written = dict(arrays["facts"])
    differ = [
        f"{name}: {written.get(name, '')[:80]} there and {fact[:80]} here"
        for name, fact in facts.items()
        if written.get(name) != fact
    ]
    if differ:
        raise ValueError(
            f"the checkpoint {path!r} is of another fit ({'; '.join(differ)}); expected the data "
            "and settings that it was written with"
        )
    table.check_marks(arrays["marks"], path)


__all__ = ["ShardedFit", "ShardedSettings", "fit_sharded"]
