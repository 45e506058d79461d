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
    """The rows that say something, on the host: X (n, q), y (n,) or (T, n), functions first.

    ``weights`` are positive; ``classes`` are the two labels of a classifier, else None.
    """

    X: np.ndarray
    y: np.ndarray
    weights: np.ndarray | None
    exposure: np.ndarray | None
    classes: np.ndarray | None

    @property
    def constant(self) -> bool:
        """Whether no function's targets vary."""
        return bool(np.all(np.max(self.y, axis=-1) == np.min(self.y, axis=-1)))

    @property
    def variance(self) -> float:
        """Weighted variance of the targets, averaged over functions; 1 where they are constant."""
        if self.constant:
            return 1.0
        centre = np.average(self.y, axis=-1, weights=self.weights)
        away = (self.y - centre[..., None]) ** 2
        return float(np.mean(np.average(away, axis=-1, weights=self.weights))) or 1.0


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


def targets(likelihood: Likelihood, X: np.ndarray, y: Any, weights: Any, exposure: Any) -> Targets:
    """Check and encode what ``fit`` was given; rows of no weight are left out.

    Raises
    ------
    ValueError
        If labels are not two, numbers are not in the likelihood's support, or shapes don't fit.
    """
    n = X.shape[0]
    w, e = per_row(weights, n, "sample_weight"), per_row(exposure, n, "exposure")
    if w is not None and not w.any():
        raise ValueError("every sample_weight is zero; expected at least one positive weight")
    if isinstance(likelihood, BINARY):
        classes, numbers = _encoded(y)
    else:
        classes, numbers = None, real_numbers(y)
    likelihood.check(numbers, e if e is None or numbers.ndim == 1 else e[:, None])
    if w is not None and not w.all():
        # They say nothing, and cost n³.
        used = w > 0.0
        X, numbers, w, e = X[used], numbers[used], w[used], None if e is None else e[used]
    if e is not None and not e.any():
        raise ValueError(
            "exposure is 0 in every row of positive sample_weight; expected some exposure there"
        )
    return Targets(X, np.ascontiguousarray(numbers.T), w, e, classes)


def _encoded(y: Any) -> tuple[np.ndarray, np.ndarray]:
    """The two labels, and 0 or 1 for each row."""
    try:
        check_classification_targets(y)
        kind = type_of_target(y, input_name="y")
        classes, places = np.unique(np.asarray(y), return_inverse=True)
    except TypeError as error:
        raise ValueError(
            f"y mixes labels that can't be ordered ({error}); expected text only or numbers only"
        ) from error
    if kind.startswith("multi") or classes.size > 2:
        raise ValueError(
            f"Only binary classification is supported. The type of the target is {kind}: "
            f"{classes.size} labels were found; fit one model for each label against the rest "
            "(sklearn.multiclass.OneVsRestClassifier does)"
        )
    if classes.size < 2:
        raise ValueError(
            f"y holds one class, {classes.tolist()[0]!r}; expected two classes: a classifier can't "
            "be trained on one"
        )
    return classes, places.reshape(-1).astype(np.float64)


def real_numbers(y: Any) -> np.ndarray:
    """Targets that are no labels as finite float64.

    Raises
    ------
    ValueError
        If they are text, or not finite.
    """
    numbers = _floats(y, "y", "numbers; for labels use likelihood='probit'")
    bad = ~np.isfinite(numbers)
    if bad.any():
        i = tuple(int(k) for k in np.argwhere(bad)[0])
        raise ValueError(
            f"y{list(i)} is {numbers[i]}; expected finite numbers: leave such rows out"
        )
    return numbers


def host(y: Any) -> Any:
    """An array of any library on the host; anything else as it is."""
    return backend.of(y).to_host(y) if backend.is_array(y) else y


def signed(likelihood: Likelihood) -> bool:
    """Whether targets are real numbers of any sign, and f has their units."""
    return isinstance(likelihood, Gaussian | StudentT)


def centre(likelihood: Likelihood, t: Targets) -> np.ndarray:
    """What is subtracted from y, () or (T,), so that no digits are spent on it: its mean where f
    has y's units, else 0."""
    lead = np.zeros(t.y.shape[:-1])
    return np.mean(t.y, axis=-1) if signed(likelihood) else lead


def started(likelihood: Any, t: Targets) -> Likelihood:
    """The likelihood with starting values that suit the data, where a name left them open."""
    found = chosen(likelihood)
    noise = 0.1 * t.variance
    if isinstance(likelihood, str) and isinstance(found, Gaussian):
        return Gaussian(noise)
    if isinstance(likelihood, str) and isinstance(found, StudentT):
        return StudentT(scale=float(np.sqrt(noise)))
    return found


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


def per_row(a: Any, n: int, name: str) -> np.ndarray | None:
    """Weights or exposures: None, or (n,) numbers of 0 or more; one number stands for all rows.

    Raises
    ------
    ValueError
        If the shape doesn't fit, or one is negative or not finite.
    """
    if a is None:
        return None
    numbers = _floats(a, name, f"({n},) numbers")
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


def _floats(a: Any, name: str, expected: str) -> np.ndarray:
    try:
        return np.asarray(host(a), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} can't be read as numbers ({error}); expected {expected}"
        ) from error


__all__ = [
    "BINARY",
    "Targets",
    "centre",
    "chosen",
    "host",
    "per_row",
    "real_numbers",
    "signed",
    "started",
    "starting_mean",
    "targets",
]
