"""Workers for shards of rows: in this process, on a Dask cluster, or on the ranks of an MPI job.

Dask and MPI are imported when they are first asked for.
"""

from __future__ import annotations

from typing import Any

from gplvm_xp.engine.base import Engine, Session, Traffic, one_blas_thread
from gplvm_xp.engine.checkpoint import Checkpoint
from gplvm_xp.engine.serial import SerialEngine

_MISSING = (
    "engine={0!r} needs {1}, which can't be imported ({2}); install it with "
    "pip install 'gplvm-xp[{3}]'"
)


def get(engine: Any = None) -> Engine:
    """The engine that a user named.

    Parameters
    ----------
    engine : None, "serial", "dask", "mpi", Engine or distributed.Client
        None and "serial": workers in this process. "dask": a ``LocalCluster``, made for each
        computation and closed after it; a client: its cluster. "mpi": the ranks of the job; from
        here on the script runs on rank 0 only, and the other ranks exit when rank 0 has ended.

    Raises
    ------
    ImportError
        If the package is not installed; the text names the extra.
    ValueError
        If there is no such engine.
    """
    if engine is None or engine == "serial":
        return SerialEngine()
    if isinstance(engine, Engine):
        return engine
    if isinstance(engine, str) and engine == "mpi":
        try:
            from gplvm_xp.engine.mpi import joined

            return joined()
        except ImportError as error:
            raise ImportError(
                _MISSING.format("mpi", "mpi4py and an MPI library", error, "mpi")
            ) from error
    if (isinstance(engine, str) and engine == "dask") or _is_client(engine):
        try:
            from gplvm_xp.engine.dask import DaskEngine
        except ImportError as error:
            raise ImportError(
                _MISSING.format("dask", "dask[distributed]", error, "distributed")
            ) from error
        return DaskEngine() if isinstance(engine, str) else DaskEngine(engine)
    raise ValueError(
        f"engine={engine!r} was given; expected None, 'serial', 'dask', 'mpi', a "
        "distributed.Client or an Engine"
    )


def _is_client(engine: object) -> bool:
    kinds = type(engine).__mro__
    return any(k.__module__.startswith("distributed.") and k.__name__ == "Client" for k in kinds)


__all__ = ["Checkpoint", "Engine", "SerialEngine", "Session", "Traffic", "get", "one_blas_thread"]
