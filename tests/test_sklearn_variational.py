"""scikit-learn's own conformance suite on the supervised estimator."""

from __future__ import annotations

import pytest
from sklearn.base import is_classifier, is_regressor
from sklearn.utils.estimator_checks import parametrize_with_checks

from gplvm_xp import VariationalGP
from gplvm_xp.likelihoods import NegativeBinomial

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    # A check that needs an optional library skips itself with this.
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning"),
]


def _failing(estimator):
    """The suite's 15 rows in 30 dimensions can be interpolated, so that the likelihood of real
    targets has no maximum and rounding decides where five steps end. With the hyperparameters held,
    the check passes."""
    if estimator.optimize and estimator.likelihood in ("gaussian", "student_t"):
        return {"check_sample_weight_equivalence_on_dense_data": "an unbounded likelihood"}
    if not estimator.optimize:
        return {"check_non_transformer_estimators_n_iter": "nothing is searched, n_iter_ is 0"}
    return {}


# Likelihoods of counts are left out: the suite fits real numbers.
@parametrize_with_checks(
    [
        VariationalGP(max_iter=5),
        VariationalGP(likelihood="probit", max_iter=5),
        VariationalGP(likelihood="student_t", max_iter=3),
        VariationalGP(optimize=False),
        VariationalGP(likelihood="student_t", optimize=False),
    ],
    expected_failed_checks=_failing,
)
def test_conformance(estimator, check):
    check(estimator)


def test_the_likelihood_says_what_it_is():
    for name in ("probit", "logit"):
        assert is_classifier(VariationalGP(likelihood=name))
        assert hasattr(VariationalGP(likelihood=name), "predict_proba")
    for name in ("gaussian", "poisson", NegativeBinomial(2.0)):
        assert is_regressor(VariationalGP(likelihood=name))
        assert not hasattr(VariationalGP(likelihood=name), "predict_proba")
    assert not VariationalGP(likelihood="probit").__sklearn_tags__().classifier_tags.multi_class
