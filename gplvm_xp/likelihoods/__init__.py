"""Likelihoods and their expectations under a Gaussian."""

from __future__ import annotations

from gplvm_xp.likelihoods.base import Expected, Likelihood
from gplvm_xp.likelihoods.bernoulli_logit import BernoulliLogit, logit_bound
from gplvm_xp.likelihoods.bernoulli_probit import BernoulliProbit
from gplvm_xp.likelihoods.binomial_logit import BinomialLogit
from gplvm_xp.likelihoods.gaussian import Gaussian
from gplvm_xp.likelihoods.negative_binomial import NegativeBinomial
from gplvm_xp.likelihoods.poisson import Poisson
from gplvm_xp.likelihoods.probit_quasi import ProbitQuasi
from gplvm_xp.likelihoods.student_t import StudentT

_NAMES: dict[str, type[Likelihood]] = {
    "gaussian": Gaussian,
    "student_t": StudentT,
    "probit": BernoulliProbit,
    "logit": BernoulliLogit,
    "binomial": BinomialLogit,
    "poisson": Poisson,
    "negative_binomial": NegativeBinomial,
    "probit_quasi": ProbitQuasi,
}


def named(name: str) -> Likelihood:
    """A likelihood with its defaults by name, for command lines and other doors.

    Parameters
    ----------
    name : str
        "gaussian", "student_t", "probit" (:class:`BernoulliProbit`), "logit"
        (:class:`BernoulliLogit`), "binomial", "poisson", "negative_binomial" or "probit_quasi".

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    if name not in _NAMES:
        raise ValueError(f"likelihood {name!r} was named; expected one of {', '.join(_NAMES)}")
    return _NAMES[name]()


__all__ = [
    "BernoulliLogit",
    "BernoulliProbit",
    "BinomialLogit",
    "Expected",
    "Gaussian",
    "Likelihood",
    "NegativeBinomial",
    "Poisson",
    "ProbitQuasi",
    "StudentT",
    "logit_bound",
    "named",
]
