"""Parameter checks of models with inducing inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from gplvm_xp.encoders import encoder_of
from gplvm_xp.encoders.base import require_complete
from gplvm_xp.kernels import Kernel
from gplvm_xp.likelihoods import Gaussian, Likelihood, NegativeBinomial, Poisson, named
from gplvm_xp.priors import Prior

INFERENCES = ("auto", "collapsed", "minibatch")
OPTIMIZERS = ("scipy", "lbfgs", "adam")
MOST_COMPONENTS, MOST_INDUCING = 10, 50


def check_bayesian(model: Any, shape: tuple[int, int]) -> tuple[int, int]:
    """Number of latent dimensions and of inducing inputs for a table (n, D).

    Raises
    ------
    ValueError, TypeError
        Where a parameter does not fit the table, or another one.
    """
    n, D = shape
    if n < 2:
        raise ValueError(
            f"X has {n} sample(s) (rows); a latent space needs at least 2: give more rows, or "
            "transpose the table if its rows are the variables"
        )
    q = whole_number(
        model, "n_components", min(n - 1, D), MOST_COMPONENTS, "rows less one and columns"
    )
    M = whole_number(model, "n_inducing", n, MOST_INDUCING, "rows")
    for name, choices in (("inference", INFERENCES), ("optimizer", OPTIMIZERS)):
        if getattr(model, name) not in choices:
            raise ValueError(
                f"{name}={getattr(model, name)!r} was given; expected one of "
                f"{', '.join(map(repr, choices))}"
            )
    for name, least in (
        ("max_iter", 0), ("n_restarts", 0), ("warm_up", 0), ("batch_size", 1), ("n_epochs", 1),
    ):  # fmt: skip
        value = getattr(model, name)
        if name == "n_epochs" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name}={value!r} was given; expected an integer of {least} or more")
    for name in ("jitter", "tol", "time_limit", "noise_variance"):
        _check_number(name, getattr(model, name))
    if model.kernel is not None and not isinstance(model.kernel, Kernel):
        raise TypeError(
            f"kernel is a {type(model.kernel).__name__}; expected one of gplvm_xp.kernels, for "
            "example RBF() + Linear()"
        )
    likelihood = chosen_likelihood(model.likelihood)
    if likelihood is not None and model.inference == "collapsed":
        raise ValueError(
            f"inference='collapsed' needs Gaussian noise, and likelihood={model.likelihood!r} was "
            "given; use inference='minibatch' or 'auto'"
        )
    if model.exposure not in (None, "total"):
        raise ValueError(f"exposure={model.exposure!r} was given; expected None or 'total'")
    if model.exposure is not None and not isinstance(likelihood, Poisson | NegativeBinomial):
        kind = "Gaussian" if likelihood is None else f"{model.likelihood!r}"
        raise ValueError(
            f"exposure='total' is for counts, and the likelihood is {kind}; give "
            "likelihood='poisson' or 'negative_binomial', or exposure=None"
        )
    encoder_of(model.encoder, "encoder")
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
    return q, M


def check_goes_on(model: Any, Y: np.ndarray) -> None:
    """Refuse further rows (N, D) without entries, and sizes that are not those of the fit.

    Raises
    ------
    ValueError
        With what was fitted and what is asked for.
    """
    empty = np.flatnonzero(np.isnan(Y).all(axis=1))
    if empty.size:
        raise ValueError(
            f"row {empty[0]} of X has no observed entry ({empty.size} such rows); remove it before "
            "fitting"
        )
    if model.encoder_ is not None:
        require_complete(Y)
    M, q = model.inducing_inputs_.shape
    for name, fitted in (("n_components", q), ("n_inducing", M)):
        given = getattr(model, name)
        if given is not None and given != fitted:
            raise _changed(name, given, fitted)


def check_same_model(model: Any) -> None:
    """Refuse a Bayesian model whose likelihood, exposure or encoder is not that of its fit.

    Raises
    ------
    ValueError
        With what was fitted and what is asked for.
    """
    likelihood = chosen_likelihood(model.likelihood)
    if type(likelihood) is not type(model.likelihood_):
        fitted = "Gaussian noise" if model.likelihood_ is None else model.likelihood_
        raise _changed("likelihood", model.likelihood, fitted)
    exposure = None if math.isnan(model.mean_total_) else "total"
    if model.exposure != exposure:
        raise _changed("exposure", model.exposure, exposure)
    if type(encoder_of(model.encoder, "encoder")) is not type(model.encoder_):
        raise _changed("encoder", model.encoder, model.encoder_)


def _changed(name: str, given: Any, fitted: Any) -> ValueError:
    return ValueError(
        f"{name}={given!r} was given, and the model was fitted with {fitted!r}; partial_fit goes "
        "on with the fitted model: use fit to begin anew, or set the parameter back"
    )


def whole_number(model: Any, name: str, most: int, usual: int, of_what: str) -> int:
    """A parameter from 1 to ``most``; None is ``usual``, or as many as there may be.

    Raises
    ------
    ValueError
        If it is something else.
    """
    value = getattr(model, name)
    if value is None:
        return min(usual, most)
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}={value!r} was given; expected an integer of 1 or more, or None")
    number = int(value)
    if number > most:
        raise ValueError(
            f"{name}={number} was given; expected at most {most}, the number of {of_what} of X: "
            f"lower {name}, or use None"
        )
    return number


def _check_number(name: str, value: Any) -> None:
    if value is None and name in ("time_limit", "noise_variance"):
        return
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else -1.0
    right = number >= 0.0 and (name == "time_limit" or number < math.inf)
    need = "a number of 0 or more"
    if name == "noise_variance":
        need, right = "a positive finite number", right and number > 0.0
    if not right:
        raise ValueError(f"{name}={value!r} was given; expected {need}")


def chosen_likelihood(given: Any) -> Likelihood | None:
    """The likelihood that was named or given; None for Gaussian noise.

    Raises
    ------
    ValueError, TypeError
        If it is neither.
    """
    if given is None or given == "gaussian" or isinstance(given, Gaussian):
        return None
    if isinstance(given, str):
        return named(given)
    if not isinstance(given, Likelihood):
        raise TypeError(
            f"likelihood is a {type(given).__name__}; expected a name such as 'poisson', or one of "
            "gplvm_xp.likelihoods"
        )
    return given


def by_batches(model: Any) -> bool:
    """Whether the model is fitted by minibatches."""
    if model.inference == "auto":
        return chosen_likelihood(model.likelihood) is not None
    return bool(model.inference == "minibatch")


def restored_inducing(model: Any) -> None:
    """Refuse parts of a file that don't fit each other.

    Raises
    ------
    ValueError
        With the two parts.
    """
    D, q = model.mean_.size, model.embedding_.shape[1]
    if model.n_features_in_ != D:
        raise ValueError(
            f"n_features_in_ is {model.n_features_in_}; expected {D}, the columns of its "
            "training_data_"
        )
    groups, r = model.inducing_groups_, model.inducing_factor_.shape[0]
    if groups.min(initial=0) < 0 or groups.max(initial=0) >= r:
        raise ValueError(f"inducing_groups_ names groups beyond the {r} of inducing_factor_")
    try:
        model.kernel_.check(q)
    except ValueError as error:
        raise ValueError(
            f"its kernel does not fit the {q} latent dimensions of its embedding_: {error}"
        ) from error


__all__ = [
    "by_batches",
    "check_bayesian",
    "check_goes_on",
    "check_same_model",
    "chosen_likelihood",
    "restored_inducing",
    "whole_number",
]
