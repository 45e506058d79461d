"""scikit-learn estimators: what most people touch."""

from __future__ import annotations

from gplvm_xp.estimators.bayesian_gplvm import BayesianGPLVM
from gplvm_xp.estimators.cox import LogGaussianCoxProcess
from gplvm_xp.estimators.gplvm import GPLVM
from gplvm_xp.estimators.local_gplvm import LocalGPLVM
from gplvm_xp.estimators.shared_gplvm import SharedGPLVM
from gplvm_xp.estimators.sparse_gplvm import SparseGPLVM
from gplvm_xp.estimators.variational_gp import VariationalGP

__all__ = [
    "GPLVM",
    "BayesianGPLVM",
    "LocalGPLVM",
    "LogGaussianCoxProcess",
    "SharedGPLVM",
    "SparseGPLVM",
    "VariationalGP",
]
