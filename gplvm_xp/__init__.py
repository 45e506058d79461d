"""Gaussian process latent variable models with hand-derived gradients.

The public names are loaded when they are first used, so that ``import gplvm_xp`` is fast and
imports neither CuPy nor scikit-learn nor matplotlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gplvm_xp import (
        datasets,
        encoders,
        engine,
        errors,
        io,
        kernels,
        kl,
        likelihoods,
        metrics,
        operators,
        optim,
        plot,
        posteriors,
        priors,
        row_priors,
        testing,
        variational,
    )  # fmt: skip
    from gplvm_xp.backend import why_no_gpu
    from gplvm_xp.estimators import (
        GPLVM,
        BayesianGPLVM,
        LocalGPLVM,
        LogGaussianCoxProcess,
        SharedGPLVM,
        SparseGPLVM,
        VariationalGP,
    )
    from gplvm_xp.io import load

_HOME = {
    "BayesianGPLVM": "gplvm_xp.estimators",
    "GPLVM": "gplvm_xp.estimators",
    "LocalGPLVM": "gplvm_xp.estimators",
    "LogGaussianCoxProcess": "gplvm_xp.estimators",
    "SharedGPLVM": "gplvm_xp.estimators",
    "SparseGPLVM": "gplvm_xp.estimators",
    "VariationalGP": "gplvm_xp.estimators",
    "load": "gplvm_xp.io",
    "why_no_gpu": "gplvm_xp.backend",
}
_MODULES = (
    "datasets", "encoders", "engine", "errors", "io", "kernels", "kl", "likelihoods", "metrics",
    "operators", "optim", "plot", "posteriors", "priors", "row_priors", "testing", "variational",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"gplvm_xp.{name}")
    raise AttributeError(f"module 'gplvm_xp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, *_MODULES])


__all__ = [
    "GPLVM",
    "BayesianGPLVM",
    "LocalGPLVM",
    "LogGaussianCoxProcess",
    "SharedGPLVM",
    "SparseGPLVM",
    "VariationalGP",
    "datasets",
    "encoders",
    "engine",
    "errors",
    "io",
    "kernels",
    "kl",
    "likelihoods",
    "load",
    "metrics",
    "operators",
    "optim",
    "plot",
    "posteriors",
    "priors",
    "row_priors",
    "testing",
    "variational",
    "why_no_gpu",
]
