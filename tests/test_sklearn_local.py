"""scikit-learn's own conformance suite on the local model."""

from __future__ import annotations

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from gplvm_xp import LocalGPLVM

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:n_components=2 and X has 2 features:UserWarning"),
    # A check that needs an optional library skips itself with this.
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning"),
]


# One component is left out: to `predict` a table of one column is latents, not an error.
@parametrize_with_checks(
    [
        LocalGPLVM(max_iter=5),
        LocalGPLVM(gauge="free", scale=True, latent_prior=None, n_neighbors=3, max_iter=5),
        LocalGPLVM(inference="neighbourhood", n_neighbors=5, n_epochs=2),
        LocalGPLVM(inference="neighbourhood", adaptive=False, learning_rate=1e-4, n_epochs=2),
    ]
)
def test_conformance(estimator, check):
    check(estimator)


def test_tags():
    tags = LocalGPLVM().__sklearn_tags__()
    assert tags.input_tags.allow_nan
    assert not tags.input_tags.sparse
    assert tags.requires_fit
