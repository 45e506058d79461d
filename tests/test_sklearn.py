"""scikit-learn's own conformance suite."""

from __future__ import annotations

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from gplvm_xp import GPLVM, SparseGPLVM

# The suite fits a few steps to random tables, some of them with two columns.
pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:n_components=2 and X has 2 features:UserWarning"),
    # A check that needs an optional library skips itself with this.
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning"),
]


# One component is left out: to `predict` a table of one column is latents, not an error.
@parametrize_with_checks(
    [
        GPLVM(max_iter=5),
        GPLVM(gauge="free", scale=True, latent_prior=None, max_iter=5),
        SparseGPLVM(max_iter=5),
        SparseGPLVM(
            approximation="fitc", gauge="free", scale=True, latent_prior=None, warm_up=2, max_iter=5
        ),
    ]
)
def test_conformance(estimator, check):
    check(estimator)


def test_tags():
    tags = GPLVM().__sklearn_tags__()
    assert tags.input_tags.allow_nan
    assert not tags.input_tags.sparse
    assert tags.requires_fit
