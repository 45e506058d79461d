"""scikit-learn's own conformance suite on the models with inducing inputs."""

from __future__ import annotations

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from gplvm_xp import BayesianGPLVM

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    # A check that needs an optional library skips itself with this.
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning"),
]


# Counts are left out: the suite fits real numbers. So are transforms of one component: to
# `predict` a table of one column is latents, not an error.
@parametrize_with_checks(
    [
        BayesianGPLVM(2, n_inducing=5, max_iter=5),
        BayesianGPLVM(2, n_inducing=5, inference="minibatch", n_epochs=2),
    ]
)
def test_conformance(estimator, check):
    check(estimator)


@pytest.mark.parametrize("model", [BayesianGPLVM()], ids=repr)
def test_tags(model):
    tags = model.__sklearn_tags__()
    assert tags.input_tags.allow_nan
    assert not tags.input_tags.sparse
    assert tags.requires_fit
