"""Parameter checks of the Bayesian GPLVM, and how it says that a fit ended early."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from sklearn.exceptions import ConvergenceWarning

from gplvm_xp.kernels import Kernel
from gplvm_xp.likelihoods import Gaussian, Likelihood, NegativeBinomial, Poisson, named
from gplvm_xp.priors import Prior

if TYPE_CHECKING:
    from gplvm_xp.estimators._bayes import FoundBayes

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


def say_how_it_ended(model: Any, found: FoundBayes) -> None:
    """Warn of a fit that ended early."""
    if found.status in ("interrupted", "time_limit", "failed"):
        warnings.warn(
            f"the fit ended early ({found.message}); the best state of {found.steps} steps is kept",
            ConvergenceWarning,
            stacklevel=4,
        )
    elif found.status == "max_steps":
        warnings.warn(
            f"max_iter={model.max_iter} steps were taken and the largest gradient entry is "
            f"{found.grad_norm:.3g}; raise max_iter, or call partial_fit to go on",
            ConvergenceWarning,
            stacklevel=4,
        )


__all__ = [
    "by_batches",
    "check_bayesian",
    "chosen_likelihood",
    "restored_inducing",
    "say_how_it_ended",
    "whole_number",
]
