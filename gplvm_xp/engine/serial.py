"""Workers in this process, one after the other.

Arrays pass as they are: those on a device stay there. It is also the answer where the rows do not
fit a device: a worker may hold its shard on the host and move it for the time of a call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gplvm_xp.engine.base import Build, Carrier, Engine, Hosted, Session, Shard


class _Here(Carrier):
    def __init__(self, hosted: list[Hosted]) -> None:
        self._hosted = hosted

    def call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        # One result at a time: the sum need not hold those of all shards.
        for index, (hosted, given) in enumerate(zip(self._hosted, arguments, strict=True)):
            try:
                yield hosted.call(method, given)
            except Exception as error:
                error.add_note(f"in {method!r} of shard {index}")
                raise

    def close(self) -> None:
        self._hosted = []


class SerialEngine(Engine):
    """All workers in this process, called one after the other."""

    def open(self, build: Build, shards: Sequence[Shard]) -> Session:
        count = len(shards)
        hosted = [Hosted(build, index, count, shard) for index, shard in enumerate(shards)]
        return Session(_Here(hosted), count)


__all__ = ["SerialEngine"]
