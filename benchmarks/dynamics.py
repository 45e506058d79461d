"""Walking figures: forecasts and missing frames; and what labels do for nearest neighbours.

The walks are made (``datasets.make_walk``): four sequences of 52 joint angles, 30 frames a second,
a stride about one second, two subjects. Errors are root mean squares over all angles, in degrees,
against the angles without noise.

* Forecasts: 100 frames of each sequence train, and the 30 that follow are to be found.
* Missing frames: 10, 20 or 40 frames in the middle of each of the four sequences of 100.
* Labels (``--part labels``): rows of oil flow and of the digits, few of them with labels to train
  on; held-out rows are embedded by ``transform``, without theirs, and get the label of the nearest
  training latent.

    python -m benchmarks.dynamics                    # half an hour on one core
    python -m benchmarks.dynamics --quick            # one walk, nothing written
    python -m benchmarks.dynamics --part labels
"""

from __future__ import annotations

import argparse
import itertools
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline
from sklearn.neighbors import KNeighborsClassifier

from benchmarks.report import write
from benchmarks.threads import limited
from gplvm_xp import GPLVM, datasets
from gplvm_xp.row_priors import Discriminative, Dynamics, OverTime

FRAMES, AHEAD, GAPS, NOISE = 100, 30, (10, 20, 40), (0.5, 3.0)
HORIZONS = (1, 2, 5, 10, 20, 30)
RANKS = (3, 6, 10, 20)
# The default weight of the dynamics was chosen on walks 0 to 2.
FIRST = 10
Q = 3
SETTINGS = {"tol": 1e-2, "max_iter": 400, "random_state": 0}


def error(guess: np.ndarray, truth: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean((guess - truth) ** 2)))


def ranges(lengths: np.ndarray) -> list[slice]:
    """The rows of each sequence."""
    return [slice(a, z) for a, z in itertools.pairwise([0, *np.cumsum(lengths)])]


def fitted(Y: np.ndarray, lengths: np.ndarray, prior: Any) -> GPLVM:
    """A model of q latent dimensions."""
    facts = {} if prior == "gaussian" else {"sequences": lengths}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return GPLVM(Q, latent_prior=prior, **SETTINGS).fit(Y, **facts)


# -- a linear model beside them --------------------------------------------------------------------


class LinearModel:
    """z_{t+1} = A z_t + c + noise on principal components of the frames that are there."""

    def __init__(self, Y: np.ndarray, lengths: np.ndarray, rank: int) -> None:
        there = ~np.isnan(Y).any(axis=1)
        self.mean = Y[there].mean(axis=0)
        self.axes = np.linalg.svd(Y[there] - self.mean, full_matrices=False)[2][:rank]
        self.Z = np.where(there[:, None], (Y - self.mean) @ self.axes.T, np.nan)
        before = [i for s in ranges(lengths) for i in range(s.start, s.stop - 1)]
        before = [i for i in before if there[i] and there[i + 1]]
        inputs = np.column_stack([self.Z[before], np.ones(len(before))])
        self.A = np.linalg.lstsq(inputs, self.Z[np.add(before, 1)], rcond=None)[0]
        residual = self.Z[np.add(before, 1)] - inputs @ self.A
        self.precision = np.linalg.inv(residual.T @ residual / len(before) + 1e-9 * np.eye(rank))

    def ahead(self, row: int, steps: int) -> np.ndarray:
        """Frames after one."""
        z, out = self.Z[row], []
        for _ in range(steps):
            z = np.append(z, 1.0) @ self.A
            out.append(z)
        return np.array(out) @ self.axes + self.mean

    def between(self, a: int, z: int) -> np.ndarray:
        """The most probable frames between two that are there: a banded linear problem."""
        n, r = z - a - 1, self.Z.shape[1]
        M, c = self.A[:-1].T, self.A[-1]
        H, g = np.zeros((n, r, n, r)), np.zeros((n, r))
        for t in range(n + 1):
            # Step from t − 1 to t of the unknown frames 0 … n − 1.
            own = [(t - 1, -M), (t, np.eye(r))]
            rest = -c + (-M @ self.Z[a] if t == 0 else 0.0) + (self.Z[z] if t == n else 0.0)
            for i, B in (p for p in own if 0 <= p[0] < n):
                g[i] -= B.T @ self.precision @ rest
                for j, C in (p for p in own if 0 <= p[0] < n):
                    H[i, :, j] += B.T @ self.precision @ C
        found = np.linalg.solve(H.reshape(n * r, n * r), g.ravel()).reshape(n, r)
        return np.asarray(found @ self.axes + self.mean)


# -- forecasts -------------------------------------------------------------------------------------


def forecasts(noise: float, seed: int) -> list[dict[str, Any]]:
    """Every method on one walk: errors at each horizon, averaged over the sequences."""
    data = datasets.make_walk(4, FRAMES + AHEAD, seed, noise=noise)
    rows = np.concatenate(
        [np.arange(s.start, s.stop - AHEAD) for s in ranges(data.extra["lengths"])]
    )
    later = [data.extra["angles"][s][-AHEAD:] for s in ranges(data.extra["lengths"])]
    Y, lengths = data.Y[rows], np.full(4, FRAMES)
    ends = np.cumsum(lengths) - 1
    out = []

    def judge(
        method: str, ahead: Callable[[int], np.ndarray], seconds: float | None = None
    ) -> None:
        found = [np.broadcast_to(ahead(k), later[k].shape) for k in range(4)]
        errors = np.sqrt(np.mean((np.array(found) - later) ** 2, axis=(0, 2)))
        row: dict[str, Any] = {"noise (°)": noise, "method": method, "walk": seed}
        row |= {f"{h} frames": float(errors[h - 1]) for h in HORIZONS}
        out.append(row | {"all 30": float(np.sqrt(np.mean(errors**2))), "seconds": seconds})
        print(out[-1], flush=True)

    judge("last frame held", lambda k: Y[ends[k]])
    for rank in RANKS:
        model = LinearModel(Y, lengths, rank)
        judge(f"VAR(1) on {rank} components", lambda k, m=model: m.ahead(ends[k], AHEAD))
    for method, prior in (
        ("GPLVM, VAR(1) on its latents", "gaussian"),
        ("Dynamics", Dynamics()),
        ("Dynamics, weight=1", Dynamics(weight=1.0)),
        ("Dynamics, weight=D/q", Dynamics(weight=52 / Q)),
        ("Dynamics, residual", Dynamics(residual=True)),
        ("OverTime", OverTime()),
    ):
        begin = time.perf_counter()
        fit = fitted(Y, lengths, prior)
        seconds = time.perf_counter() - begin
        if prior == "gaussian":
            linear = LinearModel(np.asarray(fit.embedding_), lengths, Q)
            judge(
                method, lambda k, f=fit, m=linear: f.predict(m.ahead(ends[k], AHEAD)), seconds
            )  # fmt: skip
        else:
            judge(method, lambda k, f=fit: f.forecast(AHEAD, k), seconds)
    return out


# -- missing frames --------------------------------------------------------------------------------


def interpolated(Y: np.ndarray, lengths: np.ndarray, spline: bool) -> np.ndarray:
    """Every column through its gaps on its own."""
    out = Y.copy()
    for s in ranges(lengths):
        t, gone = np.arange(s.start, s.stop), np.isnan(Y[s]).all(axis=1)
        for column in out[s].T:
            known = column[~gone]
            line = CubicSpline(t[~gone], known)(t[gone]) if spline else None
            column[gone] = np.interp(t[gone], t[~gone], known) if line is None else line
    return out


def smoothing(noise: float, seed: int, gap: int) -> list[dict[str, Any]]:
    """Every method on one walk with a gap in each sequence."""
    data = datasets.make_walk(4, FRAMES, seed, noise=noise, missing=gap)
    Y, lengths, angles = data.Y, data.extra["lengths"], data.extra["angles"]
    gone = np.isnan(Y).all(axis=1)
    out = []

    def judge(method: str, frames: np.ndarray, seconds: float | None = None) -> None:
        row: dict[str, Any] = {"noise (°)": noise, "gap": gap, "method": method, "walk": seed}
        row["missing frames"] = error(frames[gone], angles[gone])
        row["other frames"] = error(frames[~gone], angles[~gone])
        out.append(row | {"seconds": seconds})
        print(out[-1], flush=True)

    judge("straight lines", interpolated(Y, lengths, False))
    judge("cubic splines", interpolated(Y, lengths, True))
    for rank in RANKS:
        model, frames = LinearModel(Y, lengths, rank), Y.copy()
        for s in ranges(lengths):
            inside = s.start + np.flatnonzero(gone[s])
            frames[inside] = model.between(inside[0] - 1, inside[-1] + 1)
        judge(f"VAR(1) on {rank} components", frames)
    for method, prior in (
        ("GPLVM, latents on straight lines", "gaussian"),
        ("Dynamics", Dynamics()),
        ("Dynamics, weight=1", Dynamics(weight=1.0)),
        ("Dynamics, weight=D/q", Dynamics(weight=52 / Q)),
        ("Dynamics, residual", Dynamics(residual=True)),
        ("OverTime", OverTime()),
    ):
        begin = time.perf_counter()
        if prior == "gaussian":
            fit = fitted(Y[~gone], lengths, prior)
            X = np.full((Y.shape[0], Q), np.nan)
            X[~gone] = fit.embedding_
            X = interpolated(X, lengths, False)
        else:
            fit = fitted(Y, lengths, prior)
            X = fit.embedding_
        judge(method, fit.predict(X), time.perf_counter() - begin)
    return out


# -- labels ----------------------------------------------------------------------------------------


def labels(table: str, rows: int, q: int, seed: int) -> list[dict[str, Any]]:
    """Held-out errors of the nearest neighbour, by what is known of the labels in the fit."""
    data = datasets.fetch_oil_flow() if table == "oil flow" else datasets.load_digits()
    order = np.random.default_rng(seed).permutation(len(data.Y))
    train, test = order[:rows], order[rows : rows + 300]
    known, held = data.labels[train], data.labels[test]
    out = []

    def judge(method: str, A: np.ndarray, B: np.ndarray, seconds: float | None = None) -> None:
        wrong = KNeighborsClassifier(1).fit(A, known).predict(B) != held
        row: dict[str, Any] = {"table": table, "training rows": rows, "q": q, "method": method}
        out.append(
            row | {"split": seed, "error (%)": 100.0 * float(wrong.mean())} | {"seconds": seconds}
        )
        print(out[-1], flush=True)

    judge("all columns, no model", data.Y[train], data.Y[test])
    for variance in (None, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5):
        prior = "gaussian" if variance is None else Discriminative(variance)
        begin = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = GPLVM(q, latent_prior=prior, **SETTINGS).fit(data.Y[train], known)
            Z = fit.transform(data.Y[test])
        method = "without labels" if variance is None else f"Discriminative({variance:g})"
        judge(method, fit.embedding_, Z, time.perf_counter() - begin)
    return out


# -- tables ----------------------------------------------------------------------------------------


def averaged(rows: list[dict[str, Any]], by: tuple[str, ...], over: str) -> list[dict[str, Any]]:
    """Means over walks or splits, and the standard error of the last error."""
    out = []
    for key in dict.fromkeys(tuple(row[k] for k in by) for row in rows):
        mine = [row for row in rows if tuple(row[k] for k in by) == key]
        one: dict[str, Any] = dict(zip(by, key, strict=True))
        for name in (k for k in mine[0] if k not in (*by, over)):
            values = [row[name] for row in mine if row[name] is not None]
            one[name] = float(np.mean(values)) if values else None
            if name in ("all 30", "missing frames", "error (%)") and len(values) > 1:
                one["±"] = float(np.std(values, ddof=1) / len(values) ** 0.5)
        out.append(one)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one walk, nothing written")
    parser.add_argument(
        "--part", choices=("forecasts", "smoothing", "labels", "all"), default="all"
    )
    parser.add_argument("--walks", type=int, default=3)
    parser.add_argument("--splits", type=int, default=10)
    given = parser.parse_args()
    walks = range(FIRST, FIRST + (1 if given.quick else given.walks))
    command = "python -m benchmarks.dynamics --part "
    with limited(1):
        if given.part in ("forecasts", "all"):
            rows = [r for noise in NOISE for seed in walks for r in forecasts(noise, seed)]
            if not given.quick:
                write(
                    "dynamics_forecasts",
                    "Walking figures: errors of forecasts in degrees",
                    command + "forecasts",
                    averaged(rows, ("noise (°)", "method"), "walk"),
                    f"Means over {given.walks} walks of four sequences, ± the standard error of "
                    "the error over all 30 frames. 52 angles, 30 frames a second, a stride about "
                    f"30 frames; q = {Q}. VAR(1): x at the next frame is linear in x.",
                )
        if given.part in ("smoothing", "all"):
            rows = [
                r for noise in NOISE for gap in GAPS for seed in walks
                for r in smoothing(noise, seed, gap)
            ]  # fmt: skip
            if not given.quick:
                write(
                    "dynamics_smoothing",
                    "Walking figures: errors in missing frames in degrees",
                    command + "smoothing",
                    averaged(rows, ("noise (°)", "gap", "method"), "walk"),
                    f"Means over {given.walks} walks, ± the standard error. In each of four "
                    "sequences of 100 frames so many in the middle are missing altogether. The "
                    "other frames are compared with the angles without noise too. VAR(1): the most "
                    "probable frames given those around the gap.",
                )
        if given.part in ("labels", "all"):
            cases = (("oil flow", 50, 2), ("oil flow", 100, 2), ("digits", 50, 2),
                     ("digits", 100, 2), ("digits", 100, 4), ("digits", 200, 2))  # fmt: skip
            splits = range(1 if given.quick else given.splits)
            rows = [r for case in cases for seed in splits for r in labels(*case, seed)]
            if not given.quick:
                write(
                    "labels",
                    "Labels in the latents: held-out errors of the nearest neighbour",
                    command + "labels",
                    averaged(rows, ("table", "training rows", "q", "method"), "split"),
                    f"Means over {given.splits} random splits, ± the standard error; 300 held-out "
                    "rows, embedded without their labels. The number is the variance σ_d² of the "
                    "prior: smaller is stronger.",
                )


if __name__ == "__main__":
    main()
