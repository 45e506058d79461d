"""The choice of a model by its cost, with predicted seconds and bytes.

A cost is a count of multiplications and of elementwise passes, divided by two rates that are
measured on this machine when the first choice is made, in about a tenth of a second. The factors
that no count gives (how far LAPACK stays below a product's rate, how many passes a kernel takes)
were fitted once, to the measurements of ``benchmarks/router.py``.
"""

from __future__ import annotations

import functools
import math
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone

from gplvm_xp import backend as backends
from gplvm_xp.backend import Backend
from gplvm_xp.estimators._checks import OPTIMIZERS, belief
from gplvm_xp.latents import StructuredPrior
from gplvm_xp.priors import Gaussian

# Seconds that a fit may take where no time_limit says so.
BUDGET = 600.0
# Share of the free memory that a model may need.
ROOM = 0.8
# Above so many dimensions neighbours are far, and points overfit: latents are averaged over.
FEW = 5
# From this share of missing entries on, latents are uncertain enough to be averaged over.
GAPS = 0.1
# What the defaults of the other models are.
INDUCING, NEIGHBOURS, EPOCHS = 50, 32, 50
# Rows of the fit that shows the noise.
PILOT = 200
# eps · cond(K) from which a gradient has lost two of its digits or more: measured, its relative
# error is 5e-5 at 5e-4, and 0.4 at 1.
LOST = 0.025


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second: multiplications and additions of products, and passes of an
    elementwise function over numbers."""

    product: float
    element: float


@dataclass(frozen=True)
class Choice:
    """One way to fit, and what it would cost.

    Attributes
    ----------
    method : str
    seconds : float
        Of a fit of ``max_iter`` steps, for a local one of its epochs; one that converges earlier is
        shorter.
    bytes : int
        At the peak, beside the data.
    reason : str
        Why it can't be used; empty where it can.
    """

    method: str
    seconds: float
    bytes: int
    reason: str = ""


@dataclass(frozen=True)
class Plan:
    """What was chosen, and between what.

    Attributes
    ----------
    method : str
        "exact", "local", "sparse" or "bayesian".
    choices : tuple of Choice
    why : str
        The rule that decided.
    rows, columns, components : int
        n, D and q.
    """

    method: str
    choices: tuple[Choice, ...]
    why: str
    rows: int
    columns: int
    components: int

    def __str__(self) -> str:
        lines = [
            f"{self.rows} rows, {self.columns} columns, {self.components} latent dimensions: "
            f"{self.method} ({self.why})"
        ]
        for c in self.choices:
            mark = ">" if c.method == self.method else " "
            note = f"  {c.reason}" if c.reason else ""
            lines.append(
                f" {mark} {c.method:<9}{_seconds(c.seconds):>10}{c.bytes / 2**30:>10.2f} GiB{note}"
            )
        return "\n".join(lines)


def _seconds(value: float) -> str:
    if value < 100:
        return f"{value:.1f} s"
    return f"{value / 60:.0f} min" if value < 6000 else f"{value / 3600:.1f} h"


def rates(b: Backend) -> Rates:
    """The two rates of a backend, measured once in a process."""
    return _measured(_Same(b))


@dataclass(frozen=True)
class _Same:
    """A backend that is found again by what it computes with."""

    backend: Backend

    def __hash__(self) -> int:
        return hash(repr(self))

    def __eq__(self, other: object) -> bool:
        return repr(self) == repr(other)

    def __repr__(self) -> str:
        b = self.backend
        return f"{b.name} {b.device} {b.dtype}"


@functools.lru_cache(maxsize=8)
def _measured(where: _Same) -> Rates:
    b, side = where.backend, 512
    while True:
        A = b.full((side, side), 0.5)
        spent = _best(b, lambda A=A: A @ A)
        # Too short a product measures the call, and one that is long enough says all there is.
        if spent > 0.01 or side >= 8192:
            break
        side *= 2
    count = 2**20 if b.name == "numpy" else 2**24
    a = b.full((count,), -0.5)
    return Rates(2.0 * side**3 / spent, count / _best(b, lambda: b.xp.exp(a)))


def _best(b: Backend, work: Any) -> float:
    """The least of four runs, each waited for."""
    spent = math.inf
    for _ in range(4):
        begin = time.perf_counter()
        b.to_host(b.xp.reshape(work(), (-1,))[:1])
        spent = min(spent, time.perf_counter() - begin)
    return spent


def plan_fit(model: Any, b: Backend, Y: np.ndarray, parts: Sequence[int], tied: str) -> Plan:
    """The plan of an estimator for a centred table, printed.

    Raises
    ------
    ValueError
        If nothing fits, or the precision can't carry the gradient.
    """
    barred: dict[str, str] = {}
    if belief(model.latent_prior) != Gaussian():
        barred["bayesian"] = "has latent_prior='gaussian' only"
    only = tied and f"can't have {tied}"
    if model.optimizer not in OPTIMIZERS:
        only = f"has no optimizer={model.optimizer!r}"
    if only:
        barred = dict.fromkeys(("local", "sparse", "bayesian"), only)
    plan = planned(
        b, Y, model.n_components, max_iter=model.max_iter, budget=model.time_limit, parts=parts,
        barred=barred,
    )  # fmt: skip
    print(plan, file=sys.stderr, flush=True)
    if plan.method in ("exact", "local"):
        refuse_lost_gradient(model, b, Y, local=plan.method == "local")
    return plan


def planned(
    b: Backend,
    Y: np.ndarray,
    q: int,
    *,
    max_iter: int,
    budget: float | None,
    parts: Sequence[int] = (),
    barred: Mapping[str, str] | None = None,
) -> Plan:
    """The model for a centred table (n, D), NaN for missing.

    Exact where it fits the memory and the budget. Else Bayesian where there are many dimensions or
    many gaps; else local; else sparse; each if it fits, and if none does the fastest that has the
    memory.

    Parameters
    ----------
    budget : float or None
        Seconds; None is :data:`BUDGET`.
    parts : sequence of int
        Rows of smaller fits that come first (coarse to fine).
    barred : mapping of str to str, optional
        By method, why it will not do.

    Raises
    ------
    ValueError
        If nothing can be used: all that would do does not fit.
    """
    n, D = Y.shape
    gaps, barred = np.isnan(Y), barred or {}
    budget = BUDGET if budget is None else budget
    have = b.memory_available()
    room = math.inf if have is None else ROOM * have
    costs = _costs(b, gaps, q, max_iter, parts)
    choices = []
    for method, (seconds, size) in costs.items():
        reason = ""
        if method in barred:
            reason = barred[method]
        elif method == "local" and gaps.any():
            reason = "needs complete rows"
        elif method == "local" and n <= NEIGHBOURS:
            reason = "needs more rows than neighbours"
        elif size > room:
            reason = f"more than {ROOM:.0%} of the free memory"
        choices.append(Choice(method, seconds, size, reason))
    able = {c.method: c for c in choices if not c.reason}
    if not able:
        raise ValueError(
            f"method='auto' found no model for {n} rows: "
            + "; ".join(f"{c.method}: {c.reason}" for c in choices)
            + "; use fewer rows, or a machine with more memory"
        )
    many = q > FEW or gaps.mean() >= GAPS
    order = ("exact", "bayesian", "sparse") if many else ("exact", "local", "sparse", "bayesian")
    fits = [name for name in order if name in able and able[name].seconds <= budget]
    if fits:
        method = fits[0]
        why = f"within {_seconds(budget)}" + (", and no approximation" if method == "exact" else "")
    else:
        method = min(able, key=lambda name: able[name].seconds)
        why = f"none is within {_seconds(budget)}, and this is the fastest"
    return Plan(method, tuple(choices), why, n, D, q)


def _costs(
    b: Backend, gaps: np.ndarray, q: int, steps: int, parts: Sequence[int]
) -> dict[str, tuple[float, int]]:
    """Seconds of a fit and bytes at its peak, by method."""
    n, D = gaps.shape
    r = rates(b)
    patterns = np.unique(~gaps, axis=1)
    M, R = min(INDUCING, n), min(NEIGHBOURS, n - 1)
    groups = patterns.shape[1]
    evaluations = 1.1 * steps + 1.0
    sizes = patterns.sum(axis=0).astype(float)
    exact = 0.0
    for share in (*(k / n for k in parts), 1.0):
        rows = sizes * share
        products = np.sum(1.15 * rows**3) + 3.0 * np.sum(rows**2) * (D / groups + 2 * q)
        exact += float(products / r.product + EXACT_PASSES * np.sum(rows**2) / r.element)
    number = b.itemsize
    # Predictions need a matrix for each pattern, evaluations one in all.
    squares = float(np.sum(sizes**2))
    table = number * n * (D + 25 * q)
    pairs = n * M * (M + 1) / 2
    sparse = 6.0 * n * M * (M * groups + D) / r.product + SPARSE_PASSES * n * M / r.element
    bayes = 6.0 * pairs * (2 * q + 1) / r.product + BAYES_PASSES * pairs / r.element
    small = groups * 40.0 * M**3 / r.product
    block = (2 * R**3 + 6 * R**2 * D) / (SMALL * r.product) + LOCAL_PASSES * R**2 / r.element
    chunk = 2**27
    return {
        "exact": (exact * evaluations, int(1.15 * number * squares) + table),
        "local": (EPOCHS * n * block, number * n * (2 * R + D) + table + chunk),
        "sparse": ((sparse + small) * evaluations, table + chunk),
        "bayesian": ((bayes + sparse + small) * evaluations, 2 * table + chunk),
    }


# Passes over the numbers of a block, beside its products: fitted, see the head of this file.
EXACT_PASSES = 6.0
SPARSE_PASSES = 20.0
BAYES_PASSES = 4.0
LOCAL_PASSES = 12.0
# What products of matrices of the order of R reach of the rate of large ones.
SMALL = 0.05


def refuse_lost_gradient(model: Any, b: Backend, Y: np.ndarray, *, local: bool = False) -> None:
    """Refuse a precision in which the likelihood's gradient would be noise.

    A fit of few rows in double precision shows the noise that it ends with; the covariance's
    largest eigenvalue grows with the rows, those of a block where the likelihood is ``local``, and
    eps times their ratio says what is left.

    Raises
    ------
    ValueError
        If that is more than :data:`LOST`.
    KeyboardInterrupt
        If the small fit was interrupted: there is no state to keep.
    """
    if b.itemsize >= 8:
        return
    part = _few_rows(Y)
    if min(part.shape) <= model.n_components + 1:
        return
    pilot = clone(model).set_params(
        method="exact", dtype="float64", scale=False, max_iter=100, n_restarts=0, callback=None,
        progress=False, coarse_to_fine=False, time_limit=None, backend="numpy", optimizer="scipy",
    )  # fmt: skip
    if not isinstance(model.init, str):
        pilot.set_params(init="pca")
    if isinstance(model.latent_prior, StructuredPrior):
        # It speaks of all rows, and so may priors of its parameters.
        pilot.set_params(latent_prior="gaussian", priors=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pilot.fit(part)
    if pilot.status_ == "interrupted":
        raise KeyboardInterrupt
    host = backends.get("numpy")
    K = pilot.kernel_.gram(host.asarray(pilot.kernel_.theta()), pilot._host_embedding)
    if local:
        # Rows of a block are near each other: all of their covariances are about the variance.
        largest = np.mean(np.diagonal(K)) * min(NEIGHBOURS, Y.shape[0])
    else:
        largest = np.linalg.eigvalsh(K)[-1] * Y.shape[0] / part.shape[0]
    condition = largest / (pilot.noise_variance_ + pilot.jitter_)
    if b.eps * condition > LOST:
        raise ValueError(
            f"dtype='float32' was given, and the covariance's condition number will be about "
            f"{condition:.1e}: eps times that is {b.eps * condition:.2g}, and above {LOST} too "
            "much of the gradient would be rounding; use dtype='float64'"
        )


def _few_rows(Y: np.ndarray) -> np.ndarray:
    """Some rows of a table, complete ones where there are enough, without empty columns."""
    seen = ~np.isnan(Y)
    rows = np.flatnonzero(seen.all(axis=1))
    if rows.size < PILOT:
        rows = np.flatnonzero(seen.any(axis=1))
    part = Y[rows[:: max(1, rows.size // PILOT)][:PILOT]]
    return part[:, ~np.isnan(part).all(axis=0)]


__all__ = ["Choice", "Plan", "plan_fit", "planned", "rates", "refuse_lost_gradient"]
