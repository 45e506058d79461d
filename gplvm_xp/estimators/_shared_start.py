"""Where a model of several views begins: latents, kernels, and which latents share a scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gplvm_xp import init as starts
from gplvm_xp.kernels import RBF, ActiveDims, Kernel
from gplvm_xp.objectives.shared import UnitWidth

METHODS = ("auto", "pca", "cca", "random")
# Of each view's variance, what its whitened directions explain: the rest is taken for noise.
_SHARE = 0.95


def latent_dims(n_shared: int, private: Sequence[int]) -> list[tuple[int, ...]]:
    """The dimensions that each view sees: the shared ones, then its own, view after view."""
    out, first = [], n_shared
    for count in private:
        out.append((*range(n_shared), *range(first, first + count)))
        first += count
    return out


def shared_latents(
    method: Any,
    views: Sequence[np.ndarray],
    n_shared: int,
    private: Sequence[int],
    rng: np.random.Generator,
) -> np.ndarray:
    """Starting latents (n, q): signs fixed, centred, the widest column of unit deviation.

    Every view is scaled to unit total variance first, whatever its units and its number of columns.

    Parameters
    ----------
    method : {"auto", "pca", "cca", "random"} or array (n, q)
        "pca": the shared columns are the principal components of all views side by side. "cca":
        directions that the views have in common, by generalised canonical correlation of the
        components that explain 95 % of each (MAXVAR: Kettenring, Biometrika 58, 1971); as Ek,
        Rihan, Torr, Rogez & Lawrence (2008) begin, for two views. In both the private columns of a
        view are the principal components of what the shared ones do not explain linearly. "auto":
        "cca" where there are private dimensions, else "pca". An array is used as it is.
    views : sequence of ndarray (n, D_v)
        Centred; NaN is missing, filled for this purpose by :func:`gplvm_xp.init.complete` of all
        views side by side.
    private : sequence of int
        Private dimensions of each view.

    Raises
    ------
    ValueError
        If the name is unknown, or an array has the wrong shape or is not finite.
    """
    q = n_shared + sum(private)
    if isinstance(method, str) and method not in METHODS:
        raise ValueError(
            f"init={method!r} was given; expected one of {', '.join(map(repr, METHODS))} or an "
            f"array of shape {(views[0].shape[0], q)}"
        )
    if not isinstance(method, str) or method == "random":
        X = starts.latents(method, np.hstack(views), q, rng)
        flat = np.flatnonzero(X.std(axis=0) == 0.0)
        if flat.size:
            raise ValueError(f"column {flat[0]} of init is constant; give each column some width")
        return X
    scaled = [Y / np.sqrt(np.sum(np.nanmean(Y**2, axis=0))) for Y in views]
    rank = min(q, sum(Y.shape[1] for Y in views) - 1)
    filled = starts.complete(np.hstack(scaled), rank)
    cuts = np.cumsum([Y.shape[1] for Y in views])[:-1]
    parts = [Y - Y.mean(axis=0) for Y in np.split(filled, cuts, axis=1)]
    if method == "pca" or (method == "auto" and not any(private)):
        shared = _components(np.hstack(parts) / math.sqrt(len(parts)), n_shared)
    else:
        shared = _common(parts, n_shared, private)
    basis = np.linalg.qr(shared)[0]
    rest = [
        _components(Y - basis @ (basis.T @ Y), own) for Y, own in zip(parts, private, strict=True)
    ]
    X = starts.fix_scale(starts.fix_signs(np.hstack([shared, *rest])))
    # Data of lower rank say nothing of the last directions.
    width = X.std(axis=0)
    return np.where(width > 1e-6, X, 0.1 * rng.standard_normal(X.shape))


def _components(Y: np.ndarray, count: int) -> np.ndarray:
    """Scores of the first principal components (n, count), zeros beyond the rank."""
    U, s, _ = np.linalg.svd(Y, full_matrices=False)
    found = U[:, :count] * s[:count]
    return np.pad(found, ((0, 0), (0, count - found.shape[1])))


def _common(parts: Sequence[np.ndarray], count: int, private: Sequence[int]) -> np.ndarray:
    """Common directions (n, count), as wide as the deviation that they explain in the views."""
    whitened = []
    for Y, own in zip(parts, private, strict=True):
        U, s, _ = np.linalg.svd(Y, full_matrices=False)
        explained = np.cumsum(s**2) / np.sum(s**2)
        enough = 1 + np.searchsorted(explained, _SHARE)
        # More directions than that would agree with the other views' by chance.
        most = max(Y.shape[0] // (2 * len(parts)), count + own)
        whitened.append(U[:, : min(max(enough, count + own), most)])
    U = np.linalg.svd(np.hstack(whitened), full_matrices=False)[0][:, :count]
    weight = np.sqrt(np.mean([np.sum((U.T @ Y) ** 2, axis=1) for Y in parts], axis=0))
    found = np.asarray(U * weight)
    return np.pad(found, ((0, 0), (0, count - found.shape[1])))


def scale_sets(
    kernels: Sequence[Kernel], dims: Sequence[tuple[int, ...]], q: int
) -> tuple[tuple[int, ...], ...]:
    """Latent dimensions that may be stretched together while every kernel makes up for it.

    A lengthscale for each dimension makes up for each, a common one for all of its dimensions
    together. A dimension that some kernel sees without a learned scale has no such freedom.
    """
    label = np.arange(q)
    rigid = np.zeros(q, dtype=np.bool_)
    for kernel, seen in zip(kernels, dims, strict=True):
        blocks, covered = kernel.blocks(), np.zeros(q, dtype=np.bool_)
        for which, over in kernel.scale_blocks(q):
            if blocks[which].fixed:
                continue
            covered[list(over)] = True
            if blocks[which].size == 1:
                joined = np.isin(label, label[list(over)])
                label[joined] = label[joined].min()
        rigid[list(seen)] |= ~covered[list(seen)]
    stuck = np.unique(label[rigid])
    return tuple(
        tuple(np.flatnonzero(label == value)) for value in np.unique(label) if value not in stuck
    )


def first_kernels(
    given: Sequence[Kernel | None],
    variances: Sequence[float],
    dims: Sequence[tuple[int, ...]],
    X: np.ndarray,
    gauge: str,
) -> tuple[list[Kernel], tuple[tuple[int, ...], ...]]:
    """Every view's kernel of all q dimensions, and the sets whose scale the gauge divides out.

    The default is an RBF with a lengthscale for each dimension: √(2 d) times the width of the
    latents for d dimensions, so that two rows at the usual distance have a covariance of e^(−½).
    """
    q = X.shape[1]

    def whole(kernel: Kernel, seen: tuple[int, ...]) -> Kernel:
        return kernel if seen == tuple(range(q)) else ActiveDims(kernel, seen)

    kernels = [
        whole(RBF(variance, (1.0,) * len(seen)) if kernel is None else kernel, seen)
        for kernel, variance, seen in zip(given, variances, dims, strict=True)
    ]
    sets = scale_sets(kernels, dims, q) if gauge == "fixed" else ()
    width = UnitWidth(X, sets).positions({"X": X})[0].std(axis=0)
    for v, seen in enumerate(dims):
        if given[v] is None:
            ell = math.sqrt(2.0 * len(seen)) * width[list(seen)]
            kernels[v] = whole(RBF(variances[v], tuple(ell)), seen)
    return kernels, sets


__all__ = ["METHODS", "first_kernels", "latent_dims", "scale_sets", "shared_latents"]
