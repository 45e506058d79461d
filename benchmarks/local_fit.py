"""Local models fitted: oil flow by both inferences, rows that keep coming, an epoch of 10⁶ rows.

Oil flow: label errors of the nearest neighbour among the 1000 latents (principal components: 162),
the exact log-likelihood at the end, seconds; five seeds of the stochastic search, and the paper's
plain momentum beside it. A stream: half of the rows fitted, the others taken in by ``partial_fit``
50 at a time.

One epoch: n made rows (``datasets.make_latent``) of 50 columns, each row the centre of one block of
R = 32, from the principal components, through ``search_neighbourhoods``: all of it, neighbours
included, in a process of its own with its peak of memory above the data (the table and the
starting latents). Beside it one evaluation of the nearest-neighbour likelihood with its gradient.

    python -m benchmarks.local_fit                   # some 15 minutes; two threads for 10⁶ rows
    python -m benchmarks.local_fit --part oil
    python -m benchmarks.local_fit --part epoch --rows 100000
    python -m benchmarks.local_fit --quick           # few steps, 10⁴ rows, nothing written
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from typing import Any

import numpy as np

from benchmarks.large import _reset_peak, _status, recovery
from benchmarks.local_speed import floors
from benchmarks.threads import child
from gplvm_xp import GPLVM, LocalGPLVM, backend
from gplvm_xp.datasets import fetch_oil_flow, make_latent
from gplvm_xp.init import latents
from gplvm_xp.kernels import RBF
from gplvm_xp.metrics import nearest_neighbour_errors
from gplvm_xp.neighbours import maxmin, nearest, predecessors
from gplvm_xp.objectives import groups_of
from gplvm_xp.objectives.neighbourhood import NeighbourhoodObjective
from gplvm_xp.objectives.neighbourhood_fit import Pace, search_neighbourhoods
from gplvm_xp.objectives.vecchia import VecchiaObjective
from gplvm_xp.predict import Posterior
from gplvm_xp.priors import Gaussian

D, Q, R = 50, 2, 32
SEEDS = range(5)
# The paper's momentum, with rates for this table.
PLAIN = {"adaptive": False, "learning_rate": 1e-5, "kernel_learning_rate": 2e-5}


def exact_likelihood(model: Any) -> float:
    """ln p(data | latents) of the exact model at a fit's latents and parameters, nats."""
    Y = (model.training_data_ - model.mean_) / model.scale_
    noise = model.noise_variance_ + model.jitter_
    b = backend.get("numpy")
    posterior = Posterior.of(b, model.kernel_, noise, model.embedding_, Y)
    return float(posterior.log_likelihood())


def ended(name: str, model: Any, labels: np.ndarray, seconds: float) -> dict[str, Any]:
    """What a fit came to."""
    local = isinstance(model, LocalGPLVM)
    return {
        "fit": name,
        "errors": nearest_neighbour_errors(model.embedding_, labels),
        "exact ln p": exact_likelihood(model),
        "ln p by 32 neighbours": model.log_likelihood() if local else None,
        "noise sd": model.noise_variance_**0.5,
        "steps": model.n_iter_,
        "status": model.status_,
        "seconds": seconds,
    }


def oil(quick: bool) -> list[dict[str, Any]]:
    """Fits of the oil flow table."""
    data = fetch_oil_flow()
    Y, labels = data.Y, data.labels
    epochs, steps = (5, 20) if quick else (50, 500)
    runs: list[tuple[str, Any]] = []
    for seed in SEEDS:
        kind = {"inference": "neighbourhood", "n_epochs": epochs, "random_state": seed}
        runs.append((f"neighbourhoods, seed {seed}", LocalGPLVM(**kind)))
        runs.append((f"the paper's momentum, seed {seed}", LocalGPLVM(**kind, **PLAIN)))
    runs += [("nearest neighbours", LocalGPLVM(max_iter=steps)), ("exact", GPLVM(max_iter=steps))]
    rows = []
    for name, model in sorted(runs, key=lambda run: run[0].rpartition(",")[0] or "z"):
        begin = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(Y)
        rows.append(ended(name, model, labels, time.perf_counter() - begin))
        print(rows[-1], flush=True)
    model = LocalGPLVM(inference="neighbourhood", n_epochs=epochs // 5, random_state=0)
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(Y).set_params(inference="vecchia", max_iter=steps // 2).partial_fit(Y)
    seconds = time.perf_counter() - begin
    rows.append(ended("neighbourhoods, then nearest neighbours", model, labels, seconds))
    print(rows[-1], flush=True)
    order = np.random.default_rng(0).permutation(Y.shape[0])
    for inference in ("neighbourhood", "vecchia"):
        model = LocalGPLVM(
            inference=inference, n_epochs=epochs, max_iter=steps // 2, random_state=0
        )
        begin = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(Y[order[:500]])
            first, begin = time.perf_counter() - begin, time.perf_counter()
            for k in range(500, 1000, 50):
                model.partial_fit(Y[order[k : k + 50]])
        name = f"stream, {inference}: 500 rows in {first:.1f} s, then 10 times 50"
        row = ended(name, model, labels[order], time.perf_counter() - begin)
        # Those of the last call only.
        rows.append(row | {"steps": None, "status": None})
        print(rows[-1], flush=True)
    return rows


def start(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Centred rows, their true latents, starting latents, and the data's variance."""
    data = make_latent(n, D, Q)
    Y = data.Y
    Y -= Y.mean(axis=0)
    X = latents("pca", Y, Q, np.random.default_rng(0))
    return Y, data.extra["latents"], X, float(np.mean(Y[::100] ** 2))


def epoch(n: int) -> dict[str, Any]:
    """One epoch of blocks in this process."""
    Y, truth, X, variance = start(n)
    objective = NeighbourhoodObjective.of(
        RBF(variance, 0.5), groups_of(backend.get("numpy"), Y), X.shape, 0.1 * variance,
        Gaussian(), {}, frozenset({"rbf.lengthscale"}), 1e-8 * variance,
    )  # fmt: skip
    pace = Pace(R, 1024, 1)
    small = np.arange(2048)
    search_neighbourhoods(objective, X, Pace(R, 1024, 1, centres=small))
    _reset_peak()
    before, cpu, begin = _status("VmRSS"), time.process_time(), time.perf_counter()
    found = search_neighbourhoods(objective, X, pace)
    wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
    peak = _status("VmHWM") - before
    begin = time.perf_counter()
    for part in np.array_split(np.random.default_rng(0).permutation(n), -(-n // 2**17)):
        nearest(X, R, rows=part)
    search = time.perf_counter() - begin
    return {
        "what": "one epoch of neighbourhoods",
        "rows": n,
        "seconds": wall,
        "neighbours (s)": search,
        "µs a block": 1e6 * wall / n,
        "processor µs a block": 1e6 * cpu / n,
        "peak above the data (GiB)": peak / 2**30,
        "data (GiB)": (Y.nbytes + X.nbytes) / 2**30,
        "recovery before": recovery(X, truth),
        "recovery after": recovery(found.latents, truth),
    }


def evaluation(n: int) -> dict[str, Any]:
    """One nearest-neighbour likelihood with its gradient in this process."""
    Y, _, X, variance = start(n)
    groups = groups_of(backend.get("numpy"), Y)
    _reset_peak()
    before, cpu, begin = _status("VmRSS"), time.process_time(), time.perf_counter()
    order = maxmin(X)
    given = predecessors(X, order, R)
    structure = time.perf_counter() - begin
    objective = VecchiaObjective(
        RBF(variance, 0.5), groups, X, 0.1 * variance, order, given, Gaussian()
    )
    x = objective.start()
    cpu, begin = time.process_time(), time.perf_counter()
    value, _ = objective.value_and_grad(x)
    assert np.isfinite(value)
    wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
    return {
        "what": "one nearest-neighbour likelihood with its gradient",
        "rows": n,
        "seconds": wall,
        "neighbours (s)": structure,
        "µs a block": 1e6 * wall / n,
        "processor µs a block": 1e6 * cpu / n,
        "peak above the data (GiB)": (_status("VmHWM") - before) / 2**30,
        "data (GiB)": (Y.nbytes + X.nbytes) / 2**30,
    }


def epochs(n: int, threads: int) -> list[dict[str, Any]]:
    """Both, each in a process of its own, beside the arithmetic."""
    rate, exponentials = floors()
    kernel = 2 * R**2 * (Q + 2) + 4 * R**2 * (Q + 1)
    counts = {
        "--epoch": R**3 + 6 * R**2 * D + kernel,
        "--evaluation": R**3 / 3 + 3 * R**2 + 4 * R * D + kernel,
    }
    rows = []
    for option, operations in counts.items():
        row = child("benchmarks.local_fit", [option, str(n)], threads)
        rows.append(
            {"threads": threads}
            | row
            | {
                "operations a block": operations,
                "µs of these as matrix products": 1e6 * operations / rate,
                "µs of R² exponentials": 1e6 * R**2 / exponentials,
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps and rows, nothing written")
    parser.add_argument("--part", choices=("oil", "epoch", "both"), default="both")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epoch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--evaluation", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.epoch or given.evaluation:
        row = epoch(given.epoch) if given.epoch else evaluation(given.evaluation)
        print(json.dumps(row))
        return
    from benchmarks.report import write

    if given.part != "epoch":
        rows = oil(given.quick)
        if not given.quick:
            write(
                "local_oil",
                "Oil flow by local likelihoods",
                "python -m benchmarks.local_fit --part oil",
                rows,
                "1000 rows, 12 columns, R = 32, two latent dimensions, from the principal "
                "components (162 errors). Errors: rows whose nearest neighbour in the latents has "
                "another label. Exact ln p: that of the exact model at the latents and parameters "
                "found, which is not what local fits maximise. The two together: ten epochs, then "
                "at most 250 steps. A stream's seconds are those of its ten calls of partial_fit. "
                "The paper's momentum has rates chosen for this table.",
            )
    if given.part != "oil":
        n = 10_000 if given.quick else given.rows
        rows = epochs(n, given.threads)
        if not given.quick and n == 1_000_000:
            write(
                "local_fit",
                "10⁶ made rows × 50: one epoch of neighbourhoods, and one evaluation",
                "python -m benchmarks.local_fit --part epoch",
                rows,
                f"R = {R}, q = {Q}, an RBF kernel, float64. An epoch: every row is the centre of "
                "one block, 1024 blocks a step, neighbours found again after every 131072 blocks, "
                "which is part of its seconds. Order and neighbours of the likelihood are found "
                "once a round of some tens of evaluations, and are not in its seconds. "
                "Recovery: share of the ten nearest of 2000 rows in the true latents that are "
                "among the ten nearest in those found. Peak: most memory of the process above what "
                "it held before, which is the table and the starting latents.",
            )


if __name__ == "__main__":
    main()
