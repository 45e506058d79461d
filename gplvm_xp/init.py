"""Starting latents from the data, on the host, with every free sign and scale fixed."""

from __future__ import annotations

from typing import Any

import numpy as np

METHODS = ("pca", "ppca", "random", "isomap", "spectral", "kernel_pca")


def complete(Y: np.ndarray, q: int, *, rounds: int = 100, tol: float = 1e-6) -> np.ndarray:
    """Y with missing entries replaced by their rank-q reconstruction, for a start only.

    Alternates between filling the gaps and a truncated singular value decomposition (hard
    imputation), from the column means. O(rounds · n D min(n, D)).

    Parameters
    ----------
    Y : ndarray (n, D)
        NaN is missing.
    """
    missing = np.isnan(Y)
    if not missing.any():
        return Y
    filled = np.where(missing, np.nanmean(Y, axis=0), Y)
    for _ in range(rounds):
        mean = filled.mean(axis=0)
        U, s, Vt = np.linalg.svd(filled - mean, full_matrices=False)
        guess = (U[:, :q] * s[:q]) @ Vt[:q] + mean
        change = np.abs(guess - filled)[missing].max()
        filled = np.where(missing, guess, filled)
        if change <= tol * max(np.abs(filled).max(), 1.0):
            break
    return filled


def fix_signs(X: np.ndarray) -> np.ndarray:
    """Flip columns so that the entry of largest magnitude is positive (the first, in a tie)."""
    peak = np.argmax(np.abs(X), axis=0)
    signs = np.sign(X[peak, np.arange(X.shape[1])])
    return np.asarray(X * np.where(signs == 0, 1.0, signs))


def fix_scale(X: np.ndarray) -> np.ndarray:
    """Centre, and divide by one number so that the widest column has unit standard deviation.

    One number for all columns: their relative widths, and so all nearest neighbours, are kept.
    """
    X = X - X.mean(axis=0)
    widest = X.std(axis=0).max()
    return np.asarray(X / widest if widest > 0 else X)


def principal_components(Y: np.ndarray, q: int) -> np.ndarray:
    """Scores of the covariance PCA (centred, columns not rescaled), (n, q)."""
    U, s, _ = np.linalg.svd(Y - Y.mean(axis=0), full_matrices=False)
    return np.asarray(U[:, :q] * s[:q])


def dual_ppca(Y: np.ndarray, q: int) -> tuple[np.ndarray, float]:
    """The maximum of the linear GPLVM K = X Xᵀ + σ² I (docs/derivations/linear.md).

    X = U_q (Λ_q − σ²)^{1/2} with the leading eigenpairs of Y Yᵀ/D, and σ² the mean of the rest.

    Parameters
    ----------
    Y : ndarray (n, D)
        Centred.

    Returns
    -------
    X : ndarray (n, q)
    noise : float
        σ².
    """
    n, D = Y.shape
    U, s, _ = np.linalg.svd(Y, full_matrices=False)
    values = np.zeros(n)
    values[: s.size] = s**2 / D
    noise = float(values[q:].mean())
    X = U[:, :q] * np.sqrt(np.maximum(values[:q] - noise, 0.0))
    return X, noise


def latents(method: Any, Y: np.ndarray, q: int, rng: np.random.Generator) -> np.ndarray:
    """Starting latents (n, q): signs fixed, centred, the widest column of unit deviation.

    Parameters
    ----------
    method : {"pca", "ppca", "random", "isomap", "spectral", "kernel_pca"} or array (n, q)
        An array is used as it is. The last three are scikit-learn's with their defaults.
    Y : ndarray (n, D)
        Centred; NaN is missing (filled for this purpose by :func:`complete`).

    Raises
    ------
    ValueError
        If the name is unknown, or an array has the wrong shape or is not finite.
    """
    n = Y.shape[0]
    if not isinstance(method, str):
        X = np.array(method, dtype=np.float64)
        if X.shape != (n, q):
            raise ValueError(
                f"init is an array of shape {X.shape}; expected {(n, q)}: one row per data row and "
                "n_components columns"
            )
        if not np.all(np.isfinite(X)):
            raise ValueError("init contains NaN or infinity; give finite starting latents")
        return X
    if method not in METHODS:
        raise ValueError(
            f"init={method!r} was given; expected one of {', '.join(map(repr, METHODS))} or an "
            f"array of shape {(n, q)}"
        )
    if method == "random":
        return rng.standard_normal((n, q))
    filled = complete(Y, q)
    if method == "pca":
        X = principal_components(filled, q)
    elif method == "ppca":
        X = dual_ppca(filled - filled.mean(axis=0), q)[0]
    else:
        X = _of_sklearn(method, filled, q, rng)
    return fix_scale(fix_signs(X))


def _of_sklearn(method: str, Y: np.ndarray, q: int, rng: np.random.Generator) -> np.ndarray:
    from sklearn.decomposition import KernelPCA
    from sklearn.manifold import Isomap, SpectralEmbedding

    seed = int(rng.integers(2**31))
    neighbours = min(10, Y.shape[0] - 1)
    if method == "isomap":
        model: Any = Isomap(n_components=q, n_neighbors=neighbours)
    elif method == "spectral":
        model = SpectralEmbedding(n_components=q, n_neighbors=neighbours, random_state=seed)
    else:
        gamma = 1.0 / (Y.shape[1] * max(float(Y.var()), 1e-300))
        model = KernelPCA(n_components=q, kernel="rbf", gamma=gamma, random_state=seed)
    X = np.asarray(model.fit_transform(Y), dtype=np.float64)
    if X.shape[1] < q:
        raise ValueError(f"init={method!r} gave {X.shape[1]} dimensions of {q}; use init='pca'")
    return X


__all__ = ["METHODS", "complete", "dual_ppca", "fix_scale", "fix_signs", "latents"]
