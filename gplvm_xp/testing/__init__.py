"""Conformance suites: what a kernel, a likelihood, a posterior, a gradient is held to.

They are public so that a kernel of your own can be checked the way the built-in ones are. Each
raises ``AssertionError`` with what was compared, or returns None.
"""

from __future__ import annotations

from gplvm_xp.testing._gradients import check_gradient, check_hvp
from gplvm_xp.testing._kernels import check_kernel
from gplvm_xp.testing._likelihoods import check_likelihood
from gplvm_xp.testing._posteriors import check_posterior

__all__ = ["check_gradient", "check_hvp", "check_kernel", "check_likelihood", "check_posterior"]
