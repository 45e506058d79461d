"""Real tables, embedded from the PCA start with the default model: label errors, time, objective.

    python -m benchmarks.embeddings            # oil flow, digits, PBMC
    python -m benchmarks.embeddings --peer     # digits 1000 × 64 beside GPy as well

The oil flow and PBMC tables are read from the folder that GPLVM_XP_DATA names, or downloaded.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import numpy as np

from gplvm_xp import GPLVM, datasets
from gplvm_xp.init import latents
from gplvm_xp.metrics import nearest_neighbour_errors

SEED = 0


def embed(name: str, Y: np.ndarray, labels: np.ndarray, **settings: Any) -> dict[str, Any]:
    """One fit with the default kernel and prior."""
    start = latents("pca", Y - Y.mean(axis=0), 2, np.random.default_rng(SEED))
    model = GPLVM(n_components=2, random_state=SEED, **settings)
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(Y)
    seconds = time.perf_counter() - begin
    loo = model.leave_one_out()
    return {
        "table": name,
        "rows × columns": f"{Y.shape[0]} × {Y.shape[1]}",
        "1-NN errors, data": nearest_neighbour_errors(Y, labels),
        "PCA start": nearest_neighbour_errors(start, labels),
        "GPLVM": nearest_neighbour_errors(model.embedding_, labels),
        "seconds": seconds,
        "steps": model.n_iter_,
        "status": model.status_,
        "ln p(Y | X)": model.log_likelihood_,
        "mean leave-one-out ln p": float(np.mean(loo)),
        "noise variance": model.noise_variance_,
        "seed": SEED,
    }


def peer(Y: np.ndarray, steps: int = 200) -> list[dict[str, Any]]:
    """Maximum likelihood by L-BFGS-B from the same start and parameters, ours and GPy's."""
    Y = (Y - Y.mean(axis=0)) / np.where(Y.std(axis=0) > 0, Y.std(axis=0), 1.0)
    X = latents("pca", Y, 2, np.random.default_rng(SEED))
    from gplvm_xp.kernels import RBF

    rows = []
    model = GPLVM(
        2, kernel=RBF(1.0, 1.0), init=X, latent_prior=None, noise_variance=0.01, max_iter=steps,
        gauge="free", jitter=1e-8,
    )  # fmt: skip
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(Y)
    seconds = time.perf_counter() - begin
    rows.append({"library": "gplvm_xp", "seconds": seconds, "steps": model.n_iter_,
                 "objective": model.loss_curve_[-1]})  # fmt: skip
    try:
        import GPy
    except ImportError:
        return rows
    kernel = GPy.kern.RBF(2, variance=1.0, lengthscale=1.0)
    other = GPy.models.GPLVM(Y, 2, X=X.copy(), kernel=kernel)
    other.likelihood.variance = 0.01
    begin = time.perf_counter()
    other.optimize("lbfgs", max_iters=steps)
    seconds = time.perf_counter() - begin
    rows.append({"library": "GPy", "seconds": seconds, "steps": steps,
                 "objective": -float(np.squeeze(other.log_likelihood()))})  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", action="store_true", help="digits beside GPy")
    parser.add_argument("--max-iter", type=int, default=500)
    given = parser.parse_args()
    from benchmarks.report import write

    rows = []
    tables = [
        ("oil flow", datasets.fetch_oil_flow),
        ("digits", datasets.load_digits),
        ("PBMC", datasets.fetch_pbmc),
    ]
    for name, load in tables:
        try:
            data = load()
        except (OSError, ImportError) as error:
            print(f"{name}: left out, {error}")
            continue
        rows.append(embed(name, data.Y, data.labels, max_iter=given.max_iter))
        print(rows[-1], flush=True)
    command = "python -m benchmarks.embeddings"
    write(
        "embeddings",
        "Real tables embedded in two dimensions: RBF, N(0, 1) prior on the latents, PCA start",
        command,
        rows,
        "Errors: rows whose nearest neighbour (leave-one-out) has another label. Columns are "
        "centred, not rescaled.",
    )
    if given.peer:
        digits = datasets.load_digits()
        write(
            "digits_peer",
            "Digits 1000 × 64, standardised: 200 L-BFGS-B steps of maximum likelihood",
            command + " --peer",
            peer(digits.Y[:1000]),
            "Both from the same PCA latents, lengthscale 1, variance 1, noise 0.01; the objective "
            "is the negative log-likelihood in nats. A step is an accepted step for gplvm_xp and "
            "an iteration for GPy.",
        )


if __name__ == "__main__":
    main()
