"""The models that ``embed`` can fit: which options each takes, and what it is made of."""

from __future__ import annotations

import argparse
import warnings
from typing import TYPE_CHECKING, Any

from gplvm_xp._arguments import KERNELS, LIKELIHOODS
from gplvm_xp.cli._shared import UsageError

if TYPE_CHECKING:
    import numpy as np

_CLASSES = {
    "exact": "GPLVM",
    "bayesian": "BayesianGPLVM",
    "sparse": "SparseGPLVM",
    "minibatch": "BayesianGPLVM",
    "local": "LocalGPLVM",
}
# Options that some models don't take: the parameter, and the models that do. Their default is None.
_OWN = {
    "restarts": ("n_restarts", ("exact", "bayesian", "sparse", "local")),
    "max_iter": ("max_iter", ("exact", "bayesian", "sparse", "local")),
    "tol": ("tol", ("exact", "bayesian", "sparse", "local")),
    "inducing": ("n_inducing", ("bayesian", "sparse", "minibatch")),
    "approximation": ("approximation", ("sparse",)),
    "likelihood": ("likelihood", ("bayesian", "minibatch")),
    "exposure": ("exposure", ("bayesian", "minibatch")),
    "batch_size": ("batch_size", ("minibatch", "local")),
    "epochs": ("n_epochs", ("minibatch", "local")),
    "engine": ("engine", ("bayesian",)),
    "inference": ("inference", ("local",)),
    "neighbours": ("n_neighbors", ("local",)),
    "back_constraint": ("back_constraint", ("exact", "bayesian", "minibatch")),
}


def estimator(args: argparse.Namespace, values: np.ndarray) -> Any:
    """The estimator that the options ask for, not fitted.

    Raises
    ------
    UsageError
        If an option was given that the model does not take, or a kernel is not known.
    """
    from gplvm_xp import estimators

    own: dict[str, Any] = {}
    likelihood = LIKELIHOODS.get(args.likelihood)
    # The collapsed bound is of Gaussian noise.
    model = "minibatch" if args.model == "bayesian" and likelihood is not None else args.model
    for option, (parameter, models) in _OWN.items():
        given = getattr(args, option)
        if given is None:
            continue
        if model not in models:
            raise _misplaced(option, models, args)
        own[parameter] = given
    if args.components is not None:
        own["n_components"] = args.components
    # To the library Gaussian noise is no likelihood, but a number of its own.
    if args.likelihood is not None:
        own["likelihood"] = likelihood
    if model == "minibatch":
        own["inference"] = "minibatch"
    if model != "exact" and "back_constraint" in own:
        own["encoder"] = own.pop("back_constraint")
    return getattr(estimators, _CLASSES[args.model])(
        kernel=_kernel(args, values),
        init=args.init,
        scale=args.scale,
        time_limit=args.time_limit,
        progress=not args.quiet,
        backend=args.backend,
        dtype=args.dtype,
        random_state=args.seed,
        **own,
    )


def _misplaced(option: str, models: tuple[str, ...], args: argparse.Namespace) -> UsageError:
    """An option of other models, in the words that were typed."""
    typed, names = f"--model {args.model}", list(models)
    if args.model in models:
        typed += f" --likelihood {args.likelihood}"
    if "minibatch" not in models and "bayesian" in models:
        names[names.index("bayesian")] = "bayesian with Gaussian noise"
    return UsageError(
        f"--{option.replace('_', '-')} was given with {typed}; it belongs to --model "
        f"{' or '.join(names)}: choose that model, or leave the option out"
    )


def _kernel(args: argparse.Namespace, values: np.ndarray) -> Any:
    """A sum of kernels by their words, each with an equal share of the data's variance."""
    import numpy as np

    from gplvm_xp import kernels
    from gplvm_xp.estimators._bayes_checks import MOST_COMPONENTS

    text = args.kernel
    words = text.split("+")
    unknown = [word for word in words if word not in KERNELS]
    if unknown:
        raise UsageError(
            f"--kernel {text} has {unknown[0]!r}; expected one of {', '.join(KERNELS)}, or "
            "several joined by + (for example rbf+linear+bias)"
        )
    if words == ["rbf"]:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        variance = float(np.nanmean((values - np.nanmean(values, axis=0)) ** 2))
    # Beneath another likelihood lie functions on a scale of their own, such as log rates.
    known = LIKELIHOODS.get(args.likelihood) is None and np.isfinite(variance) and variance > 0
    share = (variance if known else 1.0) / len(words)
    # A Bayesian model switches dimensions off by their own parameters.
    q = None
    if _CLASSES[args.model] == "BayesianGPLVM":
        n, D = values.shape
        q = args.components or min(MOST_COMPONENTS, n - 1, D)
    parts = [_part(getattr(kernels, KERNELS[word]), share, q) for word in words]
    return parts[0] if len(parts) == 1 else kernels.Sum.of(*parts)


def _part(kind: Any, variance: float, q: int | None) -> Any:
    """A kernel, with a parameter for each of q dimensions where it can have them."""
    fields = kind.__dataclass_fields__
    if q is None or kind.__name__ in ("Constant", "White"):
        return kind(variance=variance)
    if "lengthscale" in fields:
        return kind(variance=variance, lengthscale=(1.0,) * q)
    return kind(variance=(variance / q,) * q)


__all__ = ["estimator"]
