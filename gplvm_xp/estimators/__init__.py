"""scikit-learn estimators: what most people touch."""

from __future__ import annotations

from gplvm_xp.estimators.bayesian_gplvm import BayesianGPLVM
from gplvm_xp.estimators.cox import LogGaussianCoxProcess
from gplvm_xp.estimators.gplvm import GPLVM
from gplvm_xp.estimators.sparse_gplvm import SparseGPLVM
from gplvm_xp.estimators.variational_gp import VariationalGP

__all__ = ["GPLVM", "BayesianGPLVM", "LogGaussianCoxProcess", "SparseGPLVM", "VariationalGP"]
