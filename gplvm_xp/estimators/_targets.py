"""What a supervised model is told: targets, weights and exposure, checked and encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import logit, ndtri
from sklearn.utils.multiclass import check_classification_targets, type_of_target

from gplvm_xp import backend, likelihoods
from gplvm_xp.likelihoods import (
    BernoulliLogit,
    BernoulliProbit,
    BinomialLogit,
    Gaussian,
    Likelihood,
    NegativeBinomial,
    Poisson,
    ProbitQuasi,
    StudentT,
)

BINARY = (BernoulliProbit, BernoulliLogit, ProbitQuasi)


@dataclass(frozen=True)
class Targets:
    """Host arrays, functions first: y (n,) or (T, n).

    ``classes`` are the two labels of a classifier, else None.
    """

    y: np.ndarray
    weights: np.ndarray | None
    exposure: np.ndarray | None
    classes: np.ndarray | None

    def kept(self, rows: np.ndarray) -> Targets:
        """Those of some rows, a mask."""
        w, e = (None if a is None else a[rows] for a in (self.weights, self.exposure))
        return Targets(self.y[..., rows], w, e, self.classes)


def chosen(likelihood: Any) -> Likelihood:
    """The likelihood that an argument names.

    Raises
    ------
    ValueError
        If it is no name.
    TypeError
        If it is neither a name nor a likelihood.
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if isinstance(likelihood, str):
        return likelihoods.named(likelihood)
    raise TypeError(
        f"likelihood is a {type(likelihood).__name__}; expected a name such as 'gaussian', "
        "'poisson', 'probit', or one of gplvm_xp.likelihoods, for example NegativeBinomial(2.0)"
    )


def targets(likelihood: Likelihood, y: Any, n: int, weights: Any, exposure: Any) -> Targets:
    """Check and encode what ``fit`` was given.

    Raises
    ------
    ValueError
        If labels are not two, numbers are not in the likelihood's support, or shapes don't fit.
    """
    w = _per_row(weights, n, "sample_weight")
    if w is not None and not w.any():
        raise ValueError("every sample_weight is zero; expected at least one positive weight")
    e = _per_row(exposure, n, "exposure")
    if isinstance(likelihood, BINARY):
        check_classification_targets(y)
        kind = type_of_target(y, input_name="y")
        classes, encoded = np.unique(np.asarray(y), return_inverse=True)
        if kind.startswith("multi") or classes.size > 2:
            raise ValueError(
                f"Only binary classification is supported. The type of the target is {kind}: "
                f"{classes.size} labels were found; fit one model for each label against the rest "
                "(sklearn.multiclass.OneVsRestClassifier does)"
            )
        if classes.size < 2:
            raise ValueError(
                f"y holds one class, {classes[0]!r}; expected two classes: a classifier can't be "
                "trained on one"
            )
        return Targets(encoded.reshape(-1).astype(np.float64), w, e, classes)
    numbers = np.asarray(y, dtype=np.float64)
    likelihood.check(numbers.T, None if e is None else np.broadcast_to(e, numbers.T.shape))
    return Targets(np.ascontiguousarray(numbers.T), w, e, None)


def host(y: Any) -> Any:
    """An array of any library on the host; anything else as it is."""
    return backend.of(y).to_host(y) if backend.is_array(y) else y


def signed(likelihood: Likelihood) -> bool:
    """Whether targets are real numbers of any sign."""
    return isinstance(likelihood, Gaussian | StudentT)


def started(likelihood: Any, t: Targets) -> Likelihood:
    """The likelihood with starting values that suit the data, where a name left them open."""
    found = chosen(likelihood)
    spread = variance(t)
    if isinstance(likelihood, str) and isinstance(found, Gaussian):
        return Gaussian(0.1 * spread)
    if isinstance(likelihood, str) and isinstance(found, StudentT):
        return found.with_theta(_replaced(found, "scale", np.sqrt(0.1 * spread)))  # type: ignore[return-value]
    return found


def variance(t: Targets) -> float:
    """Weighted variance of the targets; 1 where they are constant."""
    centre = np.average(t.y, axis=-1, weights=t.weights)
    away = (t.y - centre[..., None]) ** 2
    return float(np.mean(np.average(away, axis=-1, weights=t.weights))) or 1.0


def starting_mean(likelihood: Likelihood, t: Targets) -> np.ndarray:
    """The constant latent function that fits the data's mean, () or (T,)."""
    w = np.ones(t.y.shape[-1]) if t.weights is None else t.weights
    e = np.ones(t.y.shape[-1]) if t.exposure is None else t.exposure
    total = np.sum(w * t.y, axis=-1)
    if isinstance(likelihood, Poisson | NegativeBinomial):
        return np.asarray(np.log((total + 0.5) / np.sum(w * e)))
    if isinstance(likelihood, BernoulliLogit | BinomialLogit):
        return np.asarray(logit((total + 0.5) / (np.sum(w * e) + 1.0)))
    if isinstance(likelihood, BernoulliProbit | ProbitQuasi):
        return np.asarray(ndtri((total + 0.5) / (np.sum(w) + 1.0)))
    return np.asarray(total / np.sum(w))


def _per_row(a: Any, n: int, name: str) -> np.ndarray | None:
    if a is None:
        return None
    numbers = np.asarray(host(a), dtype=np.float64)
    if numbers.ndim == 0:
        numbers = np.full(n, float(numbers))
    if numbers.shape != (n,):
        raise ValueError(
            f"{name} has shape {numbers.shape}; expected ({n},), a number for each row of X"
        )
    bad = ~(np.isfinite(numbers) & (numbers >= 0.0))
    if bad.any():
        i = int(np.argmax(bad))
        raise ValueError(f"{name}[{i}] is {numbers[i]}; expected finite numbers of 0 or more")
    return numbers


def _replaced(likelihood: Likelihood, name: str, value: float) -> np.ndarray:
    values = [
        value if block.name.endswith(f".{name}") else float(block.value)
        for block in likelihood.blocks()
    ]
    return np.asarray(values)


__all__ = [
    "BINARY",
    "Targets",
    "chosen",
    "host",
    "signed",
    "started",
    "starting_mean",
    "targets",
    "variance",
]
