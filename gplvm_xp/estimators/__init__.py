"""scikit-learn estimators: what most people touch."""

from __future__ import annotations

from gplvm_xp.estimators.cox import LogGaussianCoxProcess
from gplvm_xp.estimators.gplvm import GPLVM
from gplvm_xp.estimators.variational_gp import VariationalGP

__all__ = ["GPLVM", "LogGaussianCoxProcess", "VariationalGP"]
