"""scikit-learn's own conformance suite on the models with inducing inputs."""

from __future__ import annotations

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from gplvm_xp import BayesianGPLVM, SparseGPLVM

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:n_components=2 and X has 2 features:UserWarning"),
    # A check that needs an optional library skips itself with this.
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning"),
]


# Counts are left out: the suite fits real numbers. So are transforms of one component: to
# `predict` a table of one column is latents, not an error.
@parametrize_with_checks(
    [
        BayesianGPLVM(2, n_inducing=5, max_iter=5),
        BayesianGPLVM(2, n_inducing=5, inference="minibatch", n_epochs=2),
        SparseGPLVM(2, n_inducing=5, max_iter=5),
        SparseGPLVM(2, n_inducing=5, approximation="fitc", max_iter=5),
    ]
)
def test_conformance(estimator, check):
    check(estimator)


@pytest.mark.parametrize("model", [BayesianGPLVM(), SparseGPLVM()], ids=repr)
def test_tags(model):
    tags = model.__sklearn_tags__()
    assert tags.input_tags.allow_nan
    assert not tags.input_tags.sparse
    assert tags.requires_fit
