"""Workers on the ranks of an MPI job: rank 0 drives, the others serve.

Every rank runs the same script. Where it asks for the engine, :func:`joined`, the ranks part: on
rank 0 the script goes on, the others serve it until its process ends, and then exit. Rank 0 holds
workers too. Needs the extra ``gplvm-xp[mpi]`` and an MPI library.

What a worker raises on any rank is raised on rank 0. A rank that dies takes the job with it: the
launcher (``mpiexec``) ends all ranks and reports it; start again from the checkpoint.
"""

from __future__ import annotations

import atexit
import functools
import pickle
import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import mpi4py  # noqa: F401  (absent here, not in the middle of a script)

from gplvm_xp.engine.base import Build, Carrier, Engine, Hosted, Session, Shard, to_host

if TYPE_CHECKING:
    from mpi4py import MPI


class _Rank:
    """The workers of one rank, by session and shard; all ranks go through its methods in step.

    ``orders`` has pickled bytes for each rank, on rank 0, and is None elsewhere. What can fail,
    fails inside a reply: between the scatter and the gather nothing is raised.
    """

    def __init__(self, comm: MPI.Comm) -> None:
        self.comm = comm
        self.sessions: dict[int, dict[int, Hosted]] = {}

    def open(self, session: int, orders: list[bytes] | None) -> list[Any]:
        def work(order: bytes) -> None:
            build, count, shards = pickle.loads(order)
            here = self.sessions[session] = {}
            for index, shard in shards.items():
                here[index] = Hosted(build, index, count, shard)

        return self._in_step(work, orders)

    def call(self, session: int, orders: list[bytes] | None) -> list[Any]:
        def work(order: bytes) -> dict[int, Any]:
            method, given, which = pickle.loads(order)
            return {
                index: _outcome(functools.partial(hosted.call, method, given[which[index]]))
                for index, hosted in self.sessions[session].items()
            }

        return self._in_step(work, orders)

    def close(self, session: int, orders: None) -> None:
        self.sessions.pop(session, None)

    def serve(self) -> None:
        """Follow rank 0 until it ends."""
        # The keyboard is rank 0's.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        while True:
            action, session = self.comm.bcast(None)
            if action == "end":
                return
            getattr(self, action)(session, None)

    def _in_step(self, work: Callable[[bytes], Any], orders: list[bytes] | None) -> list[Any]:
        order, reply = self.comm.scatter(orders), b""
        try:
            reply = _packed(_outcome(lambda: work(order)))
        finally:
            # Also where the keyboard interrupts rank 0: the others wait here.
            gathered = self.comm.gather(reply)
        return [pickle.loads(part) for part in gathered or ()]


def _outcome(work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        result = work()
    except Exception as error:
        return None, error
    return to_host(result) if isinstance(result, tuple) else result, None


def _packed(outcome: tuple[Any, Exception | None]) -> bytes:
    try:
        return pickle.dumps(outcome, protocol=5)
    except Exception as error:
        return pickle.dumps((None, RuntimeError(f"a reply can't be sent: {error!r}")))


class _Ranks(Carrier):
    def __init__(self, rank: _Rank, session: int, owners: list[int]) -> None:
        self._rank, self._session, self._owners = rank, session, owners
        self._open = True

    def call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        orders = []
        for rank in range(self._rank.comm.size):
            # Shards of a rank that get the same arrays share one copy on the way.
            given: dict[int, tuple[Any, ...]] = {}
            mine = [index for index, owner in enumerate(self._owners) if owner == rank]
            which = {index: id(arguments[index]) for index in mine}
            for index in mine:
                given[which[index]] = to_host(arguments[index])
            orders.append(pickle.dumps((method, given, which), protocol=5))
        self._rank.comm.bcast(("call", self._session))
        results: dict[int, Any] = {}
        for rank, (outcomes, error) in enumerate(self._rank.call(self._session, orders)):
            if error is not None:
                error.add_note(f"in {method!r} on rank {rank}")
                raise error
            results |= outcomes
        out = []
        for index, rank in enumerate(self._owners):
            result, error = results[index]
            if error is not None:
                error.add_note(f"in {method!r} of shard {index}, on rank {rank}")
                raise error
            out.append(result)
        return out

    def close(self) -> None:
        if self._open:
            self._open = False
            self._rank.comm.bcast(("close", self._session))
            self._rank.close(self._session, None)


class MPIEngine(Engine):
    """Workers on the ranks of the job, see :func:`joined`."""

    def __init__(self, rank: _Rank) -> None:
        self._rank = rank
        self._sessions = 0

    def open(self, build: Build, shards: Sequence[Shard]) -> Session:
        ranks, count = self._rank.comm.size, len(shards)
        owners = [index * ranks // count for index in range(count)]
        orders = [
            pickle.dumps(
                (build, count, {i: shards[i] for i in range(count) if owners[i] == rank}),
                protocol=5,
            )
            for rank in range(ranks)
        ]
        self._sessions += 1
        self._rank.comm.bcast(("open", self._sessions))
        replies = self._rank.open(self._sessions, orders)
        carrier = _Ranks(self._rank, self._sessions, owners)
        for where, (_, error) in enumerate(replies):
            if error is not None:
                carrier.close()
                error.add_note(f"while the workers of rank {where} were built")
                raise error
        return Session(carrier, count)

    def default_shards(self) -> int:
        return int(self._rank.comm.size)


@functools.cache
def joined() -> MPIEngine:
    """The engine of this job, on rank 0; on the others nothing returns.

    Raises
    ------
    SystemExit
        On ranks other than 0, once rank 0 has ended.
    ImportError
        If there is no MPI library.
    """
    try:
        # This starts MPI, so it waits until somebody asks.
        from mpi4py import MPI
    except RuntimeError as error:
        raise ImportError(f"mpi4py finds no MPI library: {error}") from error
    rank = _Rank(MPI.COMM_WORLD.Dup())
    if rank.comm.rank:
        rank.serve()
        raise SystemExit(0)
    atexit.register(rank.comm.bcast, ("end", 0))
    return MPIEngine(rank)


__all__ = ["MPIEngine", "joined"]
