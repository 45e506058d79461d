"""Oil flow, ten latent dimensions: how many stay on, label errors, and GPy's model beside ours.

Each seed starts from the same PCA latents with other inducing inputs. GPy gets as many evaluations
of its objective as our fit took, once from its own start (noise a hundredth of the variance, as
ours) and once from ours: same latents, variances, inducing inputs, kernel and noise.

    python -m benchmarks.bayesian_oil             # five seeds, GPy for each of them
    python -m benchmarks.bayesian_oil --quick     # one seed, 60 steps, nothing written

The table is read from the folder that GPLVM_XP_DATA names, or downloaded.
"""

from __future__ import annotations

import argparse
import time
import warnings
from statistics import median
from typing import Any

import numpy as np

from gplvm_xp import BayesianGPLVM, datasets
from gplvm_xp.estimators import _bayes
from gplvm_xp.metrics import nearest_neighbour_errors
from gplvm_xp.objectives.bayesian import BayesianObjective

Q, M = 10, 50
# A dimension is on where its squared inverse lengthscale times the variance of its latents is at
# least this share of the largest.
ON = 0.01


class Counted:
    """Counts the evaluations of the objective while it is entered."""

    def __enter__(self) -> Counted:
        self.calls, self._plain = 0, BayesianObjective.value_and_grad

        def value_and_grad(objective: BayesianObjective, x: Any) -> Any:
            self.calls += 1
            return self._plain(objective, x)

        BayesianObjective.value_and_grad = value_and_grad  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        BayesianObjective.value_and_grad = self._plain  # type: ignore[method-assign]


def judged(mu: np.ndarray, lengthscale: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Errors in the latents divided by their lengthscales, in the two widest of them, and how many
    are on."""
    scaled = mu / lengthscale
    width = scaled.std(axis=0)
    two = np.argsort(-width)[:2]
    return {
        "errors, μ/ℓ": nearest_neighbour_errors(scaled, labels),
        "errors, two widest": nearest_neighbour_errors(scaled[:, two], labels),
        "on": int(np.sum(width**2 > ON * width.max() ** 2)),
    }


def ours(Y: np.ndarray, labels: np.ndarray, seed: int, steps: int) -> dict[str, Any]:
    """One fit with the defaults."""
    model = BayesianGPLVM(Q, n_inducing=M, max_iter=steps, random_state=seed)
    begin = time.perf_counter()
    with Counted() as counted, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(Y)
    seconds = time.perf_counter() - begin
    by_slope = model.embedding_ / model.embedding_.std(axis=0) * np.sqrt(model.relevance_)
    return {
        "library": "gplvm_xp",
        "seed": seed,
        **judged(model.embedding_, np.asarray(model.kernel_.lengthscale), labels),
        "errors, μ by relevance_": nearest_neighbour_errors(by_slope, labels),
        "n_active_": model.n_active_,
        "bound": model.lower_bound_,
        "noise variance": model.noise_variance_,
        "evaluations": counted.calls,
        "steps": model.n_iter_,
        "seconds": seconds,
        "ms an evaluation": 1e3 * seconds / counted.calls,
    }


def gpy(
    Y: np.ndarray, labels: np.ndarray, seed: int, evaluations: int, own_start: bool
) -> dict[str, Any] | None:
    """GPy's model for so many evaluations, from its own start or from ours."""
    try:
        import GPy
    except ImportError:
        return None
    centred = Y - Y.mean(axis=0)
    np.random.seed(seed)  # noqa: NPY002 (what GPy draws from)
    begin = time.perf_counter()
    if own_start:
        kernel = GPy.kern.RBF(Q, ARD=True)
        model = GPy.models.BayesianGPLVM(centred, Q, num_inducing=M, kernel=kernel)
        model.likelihood.variance = 0.01 * centred.var()
    else:
        s = _bayes.starting(None, None, "pca", centred, Q, M, np.random.default_rng(seed))
        variance, *ell = s.kernel.theta()
        kernel = GPy.kern.RBF(Q, variance=variance, lengthscale=np.array(ell), ARD=True)
        model = GPy.models.BayesianGPLVM(
            centred, Q, X=s.mu.copy(), X_variance=s.S.copy(), Z=s.Z.copy(), kernel=kernel
        )
        model.likelihood.variance = s.noise
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.optimize("lbfgs", max_iters=evaluations)
    seconds = time.perf_counter() - begin
    return {
        "library": "GPy, its own start" if own_start else "GPy, our start",
        "seed": seed,
        **judged(np.array(model.X.mean), np.array(model.kern.lengthscale), labels),
        "bound": float(np.squeeze(model.log_likelihood())),
        "noise variance": float(model.likelihood.variance[0]),
        "evaluations": evaluations,
        "seconds": seconds,
        "ms an evaluation": 1e3 * seconds / evaluations,
    }


def medians(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a library: medians over its seeds."""
    out = []
    for library in dict.fromkeys(row["library"] for row in rows):
        mine = [row for row in rows if row["library"] == library]
        keys = [k for k in mine[0] if k not in ("library", "seed")]
        row: dict[str, Any] = {"library": library, "seed": f"median of {len(mine)}"}
        out.append(row | {k: float(median(r[k] for r in mine)) for k in keys})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, 60 steps, nothing written")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--peer-seeds", type=int, default=5, help="of them with GPy beside ours")
    parser.add_argument("--max-iter", type=int, default=500)
    given = parser.parse_args()
    data = datasets.fetch_oil_flow()
    steps = 60 if given.quick else given.max_iter
    rows = []
    for seed in range(1 if given.quick else given.seeds):
        rows.append(ours(data.Y, data.labels, seed, steps))
        print(rows[-1], flush=True)
        for own in (True, False) if seed < given.peer_seeds else ():
            peer = gpy(data.Y, data.labels, seed, rows[-1]["evaluations"], own)
            if peer is not None:
                rows.append(peer)
                print(peer, flush=True)
    if given.quick:
        return
    from benchmarks.report import write

    write(
        "bayesian_oil",
        f"Oil flow, 1000 × 12: Bayesian GPLVM with {Q} latent dimensions and {M} inducing inputs",
        "python -m benchmarks.bayesian_oil",
        medians(rows) + rows,
        "Errors: rows of 1000 whose nearest neighbour (leave-one-out) has another label, in the "
        "latents μ divided by their lengthscales, in the two widest of those, and in μ weighted "
        "by the root of `relevance_`. On: dimensions whose variance of μ/ℓ is at least a "
        "hundredth of the largest. Columns are centred, not rescaled; bounds in nats. GPy gets "
        "as many evaluations as our fit took; its noise starts at a hundredth of the variance.",
    )


if __name__ == "__main__":
    main()
