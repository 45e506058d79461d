"""Single cells and speeches by the Bayesian GPLVM: agreement of neighbours' labels beside PCA's.

PBMC's logarithms by the collapsed bound; PBMC's molecules and the phrases of the 109th US Congress
as counts by minibatches, each row's expected counts proportional to its total.

    python -m benchmarks.embeddings_bayesian                     # some minutes
    python -m benchmarks.embeddings_bayesian --pictures FOLDER   # and pictures of the latents
    python -m benchmarks.embeddings_bayesian --quick             # few steps, nothing written

The tables are read from the folder that GPLVM_XP_DATA names, or downloaded.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from gplvm_xp import BayesianGPLVM, datasets
from gplvm_xp.init import principal_components
from gplvm_xp.metrics import nearest_neighbour_errors

Q, SEED = 10, 0


def agreement(X: np.ndarray, labels: np.ndarray) -> float:
    """Share of the rows whose nearest other row has the same label."""
    return 1.0 - nearest_neighbour_errors(X, labels) / labels.size


def embed(name: str, data: Any, pictures: Path | None, **settings: Any) -> dict[str, Any]:
    """One fit, judged in all latents by relevance, in the two most relevant, and beside PCA."""
    Y, labels = data.Y, data.labels
    model = BayesianGPLVM(Q, random_state=SEED, **settings)
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(Y)
    seconds = time.perf_counter() - begin
    # What PCA is usually given: for counts the logarithm of the shares, in units of a mean row.
    shares = np.log1p(Y / Y.sum(axis=1, keepdims=True) * Y.sum() / Y.shape[0])
    plain = Y if model.likelihood_ is None else shares
    linear = principal_components(plain, Q)
    two = np.argsort(-model.relevance_)[:2]
    scaled = model.embedding_ / np.asarray(model.kernel_.lengthscale)
    by_slope = model.embedding_ / model.embedding_.std(axis=0) * np.sqrt(model.relevance_)
    on = model.relevance_ > 0.01
    if pictures is not None:
        path = pictures / f"{name.replace(', ', '_')}.png"
        picture(path, name, data, by_slope[:, two], linear[:, :2])
    return {
        "table": name,
        "rows × columns": f"{Y.shape[0]} × {Y.shape[1]}",
        "likelihood": "Gaussian" if model.likelihood_ is None else model.likelihood_.name,
        "most frequent label": float(np.unique(labels, return_counts=True)[1].max() / labels.size),
        "all columns": agreement(plain, labels),
        "PCA of 2": agreement(linear[:, :2], labels),
        f"PCA of {Q}": agreement(linear, labels),
        "two most relevant": agreement(by_slope[:, two], labels),
        "μ/ℓ": agreement(scaled, labels),
        "μ by relevance_": agreement(by_slope, labels),
        "μ by relevance_, active": agreement(by_slope[:, on], labels),
        "n_active_": model.n_active_,
        "steps": model.n_iter_,
        "seconds": seconds,
    }


def picture(path: Path, name: str, data: Any, ours: np.ndarray, linear: np.ndarray) -> None:
    """Two most relevant latents beside two principal components, coloured by label."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 5.5))
    kinds = np.unique(data.labels)
    for ax, X, title in zip(axes, (ours, linear), ("BayesianGPLVM", "PCA"), strict=True):
        for k, kind in enumerate(kinds):
            mine = data.labels == kind
            ax.scatter(
                *X[mine].T,
                s=9,
                color=plt.get_cmap("tab10")(k % 10),
                label=data.label_names[int(kind)],
            )
        ax.set_title(f"{name}: {title}")
    axes[0].legend(fontsize=6)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps, nothing written")
    parser.add_argument("--pictures", type=Path, help="folder for pictures")
    given = parser.parse_args()
    steps, epochs = (30, 2) if given.quick else (500, 40)
    counts = {"exposure": "total", "n_inducing": 50, "batch_size": 100, "n_epochs": epochs}
    if given.pictures is not None:
        given.pictures.mkdir(parents=True, exist_ok=True)
    cells, speech = datasets.fetch_pbmc("counts"), datasets.load_congress109()
    rows = []
    for name, data, settings in (
        ("PBMC, logarithms", datasets.fetch_pbmc(), {"n_inducing": 100, "max_iter": steps}),
        ("PBMC, counts", cells, counts | {"likelihood": "poisson"}),
        ("Congress, Poisson", speech, counts | {"likelihood": "poisson"}),
        (
            "Congress, overdispersed",
            speech,
            counts | {"likelihood": "negative_binomial", "n_epochs": epochs // 2},
        ),
    ):
        rows.append(embed(name, data, given.pictures, **settings))
        print(rows[-1], flush=True)
    if given.quick:
        return
    from benchmarks.report import write

    write(
        "embeddings_bayesian",
        "Bayesian GPLVM of ten dimensions: share of rows whose nearest neighbour has their label",
        "python -m benchmarks.embeddings_bayesian",
        rows,
        "Leave-one-out, Euclidean. All columns and PCA: of the table itself, for counts of "
        "log(1 + share of the row's total × mean total). Two most relevant: latents by "
        "`relevance_`, each scaled to the root of it; μ/ℓ: means over lengthscales.",
    )


if __name__ == "__main__":
    main()
