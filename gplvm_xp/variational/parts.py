"""A large batch, a few members at a time: what fits the processor's cache is faster than what does
not, and the memory in use no longer grows with the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.variational.engines import Engine
from gplvm_xp.variational.observations import Observations, Slopes
from gplvm_xp.variational.sites import SiteProgress, SiteResult, SiteStatus, fixed_point

# What a part's end says of the whole, worst first.
_WORST: tuple[SiteStatus, ...] = (
    "interrupted", "stopped", "time_limit", "failed", "max_steps", "converged",
)  # fmt: skip

# Fields of a result with a batch axis.
_DEVICE = ("p", "y", "mu", "m", "v")
_HOST = ("free_energy", "change", "steps", "rejected", "converged")


def fixed_point_by_parts(
    engine: Engine,
    data: Observations,
    *,
    sites: tuple[Array, Array] | None = None,
    tol: float = 1e-8,
    max_steps: int = 500,
    callback: Callable[[SiteProgress], bool | None] | None = None,
) -> SiteResult:
    """:func:`fixed_point` on a batch (n, N), cut as :meth:`Backend.batches` says.

    The results are those of the whole batch at once, member by member. A callback is told of one
    part after the other; where it stops, the members that were not reached keep the state in which
    their own search begins.
    """
    b = backend.of(data.y)
    if data.y.ndim != 2:
        return fixed_point(
            engine, data, sites=sites, tol=tol, max_steps=max_steps, callback=callback
        )
    over = False

    def search(rows: slice) -> SiteResult:
        nonlocal over
        result = fixed_point(
            engine.part(rows),
            part_of(data, rows),
            sites=None if sites is None else (sites[0][rows, ...], sites[1][rows, ...]),
            tol=tol,
            max_steps=0 if over else max_steps,
            callback=None if over else callback,
        )
        over = over or result.status in ("stopped", "interrupted")
        return result

    parts = b.batches(*data.y.shape)
    # A callback is told of one part after the other.
    results = [search(rows) for rows in parts] if callback else list(b.map_parts(search, parts))
    return results[0] if len(results) == 1 else _joined(results)


def part_of(data: Observations, rows: slice) -> Observations:
    """Some members of a batch; arrays without a batch axis are shared."""
    wide = data.y.ndim

    def cut(a: Array | None) -> Array | None:
        return a if a is None or a.ndim < wide or a.shape[0] == 1 else a[rows, ...]

    return replace(
        data,
        y=data.y[rows, ...],
        weights=cut(data.weights),
        exposure=cut(data.exposure),
        offset=cut(data.offset),
    )


def _joined(parts: Sequence[SiteResult]) -> SiteResult:
    xp = backend.of(parts[0].p).xp
    longest = max(len(part.free_energies) for part in parts)
    history = []
    for k in range(longest):
        ends = [part.free_energies[min(k, len(part.free_energies) - 1)] for part in parts]
        history.append(np.concatenate(ends))
    ended = [part.status for part in parts]
    status = next(s for s in _WORST if s in ended)
    found = {
        name: space.concat([getattr(q, name) for q in parts])
        for space, names in ((xp, _DEVICE), (np, _HOST))
        for name in names
    }
    terms = Slopes(
        *(xp.concat(list(group)) for group in zip(*(q.terms for q in parts), strict=True))
    )
    return SiteResult(
        **found,
        terms=terms,
        status=status,
        message=next(q.message for q in parts if q.status == status),
        free_energies=tuple(history),
    )


__all__ = ["fixed_point_by_parts", "part_of"]
