"""Checks of an estimator's parameters, before anything is computed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from gplvm_xp.kernels import Kernel
from gplvm_xp.latents import StructuredPrior
from gplvm_xp.priors import Gamma, Gaussian, LogNormal, Prior

OPTIMIZERS = ("scipy", "lbfgs", "adam")
METHODS = ("exact", "auto")


def latent_prior(given: Any) -> Prior | None:
    """The prior that ``latent_prior`` names.

    Raises
    ------
    ValueError
        If it names none.
    """
    if isinstance(given, Gamma | LogNormal):
        raise ValueError(
            f"latent_prior={given!r} is a density of positive numbers and latents have any sign; "
            "use gplvm_xp.priors.Gaussian, or a Prior of your own on the whole line"
        )
    if isinstance(given, StructuredPrior):
        raise ValueError(
            f"latent_prior={given!r} ties rows together, which only the exact GPLVM learns; use "
            "GPLVM, or latent_prior='gaussian'"
        )
    if given is None or isinstance(given, Prior):
        return given
    if given == "gaussian":
        return Gaussian()
    raise ValueError(
        f"latent_prior={given!r} was given; expected 'gaussian', None or a Prior of gplvm_xp.priors"
    )


def belief(given: Any) -> Prior | StructuredPrior | None:
    """As :func:`latent_prior`, and a prior that ties rows together is one too."""
    return given if isinstance(given, StructuredPrior) else latent_prior(given)


def alone(given: Any) -> Prior | None:
    """The prior of one new row: N(0, 1) where rows are tied together, as it is tied to none."""
    return Gaussian() if isinstance(given, StructuredPrior) else latent_prior(given)


def check_parameters(
    model: Any,
    Y: np.ndarray,
    optimizers: tuple[str, ...] = OPTIMIZERS,
    belief_of: Any = latent_prior,
) -> None:
    """Raise ``ValueError`` or ``TypeError`` where the parameters don't fit the table.

    ``optimizers`` are those the model has, ``belief_of`` what makes a prior of ``latent_prior``.
    """
    n, D = Y.shape
    q = model.n_components
    if isinstance(q, bool) or not isinstance(q, int | np.integer) or q < 1:
        raise ValueError(f"n_components={q!r} was given; expected an integer of 1 or more")
    if n < 2:
        raise ValueError(
            f"X has {n} sample(s) (rows); a latent space needs at least 2: give more rows, or "
            "transpose the table if its rows are the variables"
        )
    if q == D == 2:
        # scikit-learn's conformance suite fits the default of two to tables of two columns.
        warnings.warn(
            "n_components=2 and X has 2 features: nothing is reduced; use n_components=1",
            UserWarning,
            stacklevel=4,
        )
    elif q >= D:
        raise ValueError(
            f"n_components={q} and X has {D} feature(s); expected fewer latent dimensions than "
            f"columns: lower n_components below {D}"
        )
    if q >= n:
        raise ValueError(
            f"n_components={q} and X has {n} sample(s); expected fewer latent dimensions than "
            f"rows: lower n_components below {n}"
        )
    if getattr(model, "method", "exact") not in METHODS:
        raise ValueError(f"method={model.method!r} was given; expected 'exact' or 'auto'")
    if model.gauge not in ("fixed", "free"):
        raise ValueError(f"gauge={model.gauge!r} was given; expected 'fixed' or 'free'")
    if model.optimizer not in optimizers:
        raise ValueError(
            f"optimizer={model.optimizer!r} was given; expected one of "
            f"{', '.join(map(repr, optimizers))}"
        )
    if model.kernel is not None and not isinstance(model.kernel, Kernel):
        raise TypeError(
            f"kernel is a {type(model.kernel).__name__}; expected one of gplvm_xp.kernels, for "
            "example RBF() + White()"
        )
    _check_numbers(model)
    if not isinstance(model.priors, Mapping | None):
        raise TypeError(
            f"priors is a {type(model.priors).__name__}; expected a mapping of parameter names to "
            "priors, for example {'noise': LogNormal(0, 1)}"
        )
    for name, prior in (model.priors or {}).items():
        if not isinstance(prior, Prior):
            raise TypeError(
                f"the prior of {name!r} is a {type(prior).__name__}; expected a Prior of "
                "gplvm_xp.priors, for example LogNormal(0, 1)"
            )
    belief_of(model.latent_prior)


def _check_numbers(model: Any) -> None:
    for name in ("n_restarts", "max_iter"):
        value = getattr(model, name)
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
            raise ValueError(f"{name}={value!r} was given; expected an integer of 0 or more")
    for name in ("jitter", "tol", "time_limit", "noise_variance"):
        value = getattr(model, name)
        if value is None and name in ("time_limit", "noise_variance"):
            continue
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else -1.0
        right = number >= 0.0 and (name == "time_limit" or number < math.inf)
        need = "a number of 0 or more"
        if name == "noise_variance":
            need, right = "a positive finite number", right and number > 0.0
        if not right:
            raise ValueError(f"{name}={value!r} was given; expected {need}")


def check_held(priors: Mapping[str, Prior], held: frozenset[str]) -> None:
    """Raise ``ValueError`` where a prior would be ignored: its parameter is held by the gauge."""
    ignored = sorted(held & set(priors))
    if ignored:
        raise ValueError(
            f"priors names {ignored}, which gauge='fixed' holds at the starting value; expected "
            "priors of parameters that are learned: use gauge='free', or drop the prior"
        )


__all__ = ["OPTIMIZERS", "alone", "belief", "check_held", "check_parameters", "latent_prior"]
