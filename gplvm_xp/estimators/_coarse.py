"""Coarse to fine: fits of parts of the rows, each the start of the next larger one.

Evaluations of n/2 rows cost an eighth. A fit of n/8 rows finds kernel, noise and the shape of the
embedding; the remaining rows are put into it by their predictive density, and a fit of twice the
rows begins near its end. The last one, of all rows, then needs few evaluations.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np

from gplvm_xp.backend import Backend
from gplvm_xp.estimators._checks import OPTIMIZERS
from gplvm_xp.estimators._fit import HALTED, Found, Search, search
from gplvm_xp.optim import OptResult
from gplvm_xp.predict import NewRows, Posterior

# Parts with fewer rows than this say little of the whole.
LEAST = 250
# Rows that new ones are put beside: more cost a product of that order for each of them.
REFERENCE = 1000
# A part is an approximation of the whole: there is no use in its last digits.
LOOSE = 100.0


def levels(given: Any, n: int, tied: str = "") -> tuple[int, ...]:
    """Rows of each part but the last, n, smallest first; none where the table is small.

    ``tied`` says what ties the latents of the rows together, if something does.

    Raises
    ------
    ValueError
        If ``coarse_to_fine`` is neither a truth value nor increasing numbers of rows below n, or
        parts of the rows make no sense.
    """
    if tied and not (isinstance(given, bool | np.bool_) and not given):
        raise ValueError(
            f"coarse_to_fine={given!r} was given, and {tied} ties the latents together; expected "
            "free latents: use coarse_to_fine=False"
        )
    if isinstance(given, bool | np.bool_):
        return tuple(n // k for k in (8, 4, 2) if n // k >= LEAST) if given else ()
    listed = isinstance(given, Sequence | np.ndarray) and getattr(given, "ndim", 1) == 1
    sizes = tuple(given) if listed and len(given) else (0,)
    whole = all(isinstance(k, Integral) and not isinstance(k, bool) for k in sizes)
    steps = zip((1, *sizes), (*sizes, n), strict=True)
    if isinstance(given, str) or not whole or any(a >= b for a, b in steps):
        raise ValueError(
            f"coarse_to_fine={given!r} was given; expected True, False, or increasing numbers of "
            f"rows between 2 and {n - 1}, such as ({max(n // 8, 2)}, {max(n // 2, 3)})"
        )
    return tuple(map(operator.index, sizes))


def fine(
    b: Backend,
    Y: np.ndarray,
    first: np.ndarray,
    restarts: int,
    rng: np.random.Generator,
    s: Search,
    sizes: Sequence[int],
) -> Found:
    """As :func:`gplvm_xp.estimators._fit.search`, by way of parts of ``sizes`` rows."""
    s, latents, ended = prolonged(b, Y, first, rng, s, sizes)
    found = search(b, Y, latents, 0 if ended else restarts, rng, s)
    if ended is None:
        return found
    result = replace(found.result, status=ended.status, message=ended.message)
    return replace(found, result=result)


def prolonged(
    b: Backend,
    Y: np.ndarray,
    first: np.ndarray,
    rng: np.random.Generator,
    s: Search,
    sizes: Sequence[int],
) -> tuple[Search, np.ndarray, OptResult | None]:
    """The search of all rows with a better start: kernel and noise, and latents (n, q).

    Where a part was interrupted, or its time was up, the search that is returned takes no step, and
    the third entry says how the part ended.

    Parameters
    ----------
    Y : ndarray (n, D)
        Centred; NaN is missing.
    first : ndarray (n, q)
        Where rows of the smallest part start.
    sizes : sequence of int
        Rows of the parts; they are drawn at random, each part holds the one before.
    """
    if not sizes:
        return s, first, None
    order = _order(Y, rng)
    latents = first
    for size, more in zip(sizes, (*sizes[1:], Y.shape[0]), strict=True):
        known, new = np.sort(order[:size]), np.sort(order[size:more])
        # Second derivatives are for the end.
        method = s.optimizer if s.optimizer in OPTIMIZERS else "scipy"
        part = replace(s, tol=LOOSE * s.tol, optimizer=method)
        found = search(b, Y[known], latents[known], 0, rng, part)
        s = replace(s, kernel=found.kernel, noise=found.noise)
        latents = latents.copy()
        latents[known] = found.latents
        ended = found.result if found.result.status in HALTED else None
        new = np.sort(order[size:]) if ended else new
        try:
            latents[new] = _placed(b, found, Y[known], Y[new], s, rng)
        except KeyboardInterrupt:
            # What the part has found is kept; rows without a place stay where they were.
            message = "interrupted by the keyboard; the best state is kept"
            ended = replace(found.result, status="interrupted", message=message)
        if ended:
            return replace(s, max_iter=0, time_limit=None), latents, ended
    return s, latents, None


def _order(Y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows at random; the first to observe each column come first, so that no part lacks one."""
    order = rng.permutation(Y.shape[0])
    seen = ~np.isnan(Y[order])
    needed = np.unique(np.argmax(seen, axis=0))
    return np.concatenate([order[needed], np.delete(order, needed)])


def _placed(
    b: Backend,
    found: Found,
    old: np.ndarray,
    new: np.ndarray,
    s: Search,
    rng: np.random.Generator,
) -> np.ndarray:
    """Latents of new rows: roughly the modes of their predictive density."""
    rows = np.arange(old.shape[0])
    if rows.size > REFERENCE:
        rows = rng.choice(rows, REFERENCE, replace=False)
    p = Posterior.of(b, found.kernel, found.noise + found.jitter, found.latents[rows], old[rows])
    out = np.empty((new.shape[0], found.latents.shape[1]))
    for part in p.batches(new.shape[0]):
        seen = ~np.isnan(new[part])
        values = b.asarray(np.where(seen, new[part], 0.0))
        problem = NewRows(p, s.latent_prior, values, b.asarray(seen.astype(float)))
        out[part] = b.to_host(problem.rough())
    return out


__all__ = ["fine", "levels"]
