"""Nearest rows, max-min order and nearest earlier rows, against comparison with all rows."""

from __future__ import annotations

import numpy as np
import pytest

from gplvm_xp.neighbours import least, maxmin, nearest, order, predecessors

SINGLE = np.float32


def squares(A, X):
    return np.sum((A[:, None, :] - X[None, :, :]) ** 2, axis=2)


def nearest_by_hand(X, k, queries=None):
    far = squares(X if queries is None else queries, X)
    if queries is None:
        np.fill_diagonal(far, -1.0)
    return np.argsort(far, axis=1, kind="stable")[:, :k]


def predecessors_by_hand(X, sequence, k):
    out = np.full((X.shape[0], k), -1)
    for place, row in enumerate(sequence):
        before = sequence[:place]
        far = squares(X[row][None], X[before])[0]
        found = before[np.argsort(far, kind="stable")[:k]]
        out[row, : found.size] = found
    return out


def clouds():
    """Positions of small whole numbers, so that equal distances are equal to the last bit, and
    random ones, which have no ties but those of copies."""
    rng = np.random.default_rng(0)
    smooth = rng.standard_normal((300, 2)).astype(SINGLE).astype(float)
    yield "random", smooth
    yield "five_dimensions", rng.standard_normal((150, 5)).astype(SINGLE).astype(float)
    yield "grid", rng.permutation(np.argwhere(np.ones((15, 14)))).astype(float)
    yield "copies", smooth[rng.integers(0, 40, 400)]
    yield "many_copies", np.concatenate([np.zeros((200, 2)), smooth[:30]])[rng.permutation(230)]
    yield "one_position", np.ones((60, 2))
    yield "a_line", np.arange(80.0)[:, None]


CLOUDS = dict(clouds())
each_cloud = pytest.mark.parametrize("X", CLOUDS.values(), ids=CLOUDS)


# The reference is NumPy's; on other libraries its positions are compared chunk by chunk.
@each_cloud
@pytest.mark.parametrize("k", [1, 7, 32])
def test_nearest(case, X, k):
    every = nearest_by_hand(X, k)
    assert np.array_equal(nearest(case.asarray(X), k), every)
    some = np.array([5, 0, X.shape[0] - 1, 5])
    assert np.array_equal(nearest(case.asarray(X), k, rows=some), every[some])
    ask = np.concatenate([X[::7], np.random.default_rng(1).integers(-3, 3, (9, X.shape[1]))])
    found = nearest(case.asarray(X), k, case.asarray(ask))
    assert found.dtype == np.int64
    assert np.array_equal(found, nearest_by_hand(X, k, ask))


@each_cloud
@pytest.mark.parametrize("k", [1, 7, 32])
def test_predecessors(case, X, k):
    sequence = np.random.default_rng(2).permutation(X.shape[0])
    found = predecessors(case.asarray(X), sequence, k)
    assert found.dtype == np.int64
    assert np.array_equal(found, predecessors_by_hand(X, sequence, k))


@pytest.mark.only_backend("numpy-f64", "strict-f64")
def test_orders_that_follow_the_positions(case):
    """Nothing is earlier on one side: the candidates of a tree are asked for again."""
    X = np.sort(np.random.default_rng(3).standard_normal(500))[:, None]
    for sequence in (np.arange(500), np.argsort(np.abs(X[:, 0]), kind="stable")):
        found = predecessors(case.asarray(X), sequence, 5)
        assert np.array_equal(found, predecessors_by_hand(X, sequence, 5))


@pytest.mark.only_backend("strict-f64", "numpy-f64")
def test_all_rows_are_neighbours(case):
    X = CLOUDS["random"][:50]
    assert np.array_equal(nearest(case.asarray(X), 50), nearest_by_hand(X, 50))
    sequence = np.arange(50)[::-1]
    found = predecessors(case.asarray(X), sequence, 50)
    assert np.array_equal(found, predecessors_by_hand(X, sequence, 50))
    assert np.all(found[:, -1] == -1)


@pytest.mark.only_backend("strict-f64")
def test_chunks_leave_no_trace(case, monkeypatch):
    X = CLOUDS["copies"]
    sequence = np.random.default_rng(4).permutation(X.shape[0])
    whole = nearest(case.asarray(X), 9), predecessors(case.asarray(X), sequence, 9)
    monkeypatch.setattr("gplvm_xp.neighbours._shared._CHUNK_BYTES", 8 * 400 * 13)
    parts = nearest(case.asarray(X), 9), predecessors(case.asarray(X), sequence, 9)
    for one, other in zip(whole, parts, strict=True):
        assert np.array_equal(one, other)


def test_questions_in_parts_and_threads(monkeypatch):
    X = CLOUDS["copies"]
    sequence = np.random.default_rng(4).permutation(X.shape[0])
    monkeypatch.setattr("gplvm_xp.neighbours._shared.QUERY_ROWS", 31)
    monkeypatch.setattr("gplvm_xp.neighbours._shared._FEW", 10)
    assert np.array_equal(nearest(X, 9), nearest_by_hand(X, 9))
    assert np.array_equal(predecessors(X, sequence, 9), predecessors_by_hand(X, sequence, 9))


def test_the_segments_of_a_device_are_used():
    """With 7 of 1500 columns the least entries are looked for in some segments only."""
    from gplvm_xp import backend

    rng = np.random.default_rng(5)
    for entries in (rng.standard_normal((20, 1500)), rng.integers(0, 3, (20, 1500)).astype(float)):
        value, where = least(backend.of(entries), entries, 7)
        expected = np.argsort(entries, axis=1, kind="stable")[:, :7]
        assert np.array_equal(where, expected)
        assert np.array_equal(value, np.take_along_axis(entries, expected, axis=1))


# -- max-min ---------------------------------------------------------------------------------------


def separations(X, sequence):
    """Distance of each place's row to the nearest before it, and the largest that was to be had."""
    far = np.sqrt(np.sum((X - X[sequence[0]]) ** 2, axis=1))
    own, best = [], []
    for place in range(1, X.shape[0]):
        own.append(far[sequence[place]])
        best.append(far[sequence[place:]].max())
        far = np.minimum(far, np.sqrt(np.sum((X - X[sequence[place]]) ** 2, axis=1)))
    return np.array(own), np.array(best)


@each_cloud
def test_maxmin_is_exact_for_few_rows(case, X):
    sequence = maxmin(case.asarray(X))
    assert np.array_equal(np.sort(sequence), np.arange(X.shape[0]))
    assert sequence[0] == np.argmin(np.sum((X - X.mean(axis=0)) ** 2, axis=1))
    own, best = separations(X, sequence)
    assert np.array_equal(own, best)
    if X is CLOUDS["one_position"]:
        assert np.array_equal(sequence, np.arange(60))


@each_cloud
def test_maxmin_in_groups(X, monkeypatch):
    monkeypatch.setattr(order, "EXACT", 10)
    sequence = maxmin(X)
    assert np.array_equal(np.sort(sequence), np.arange(X.shape[0]))
    own, best = separations(X, sequence)
    # The best falls while a group is filled, so that half of it is a bound from below.
    assert np.all(own >= order.SHARE * best)
    assert np.array_equal(sequence, maxmin(X))


def test_groups_are_cut_where_their_pairs_are_many(monkeypatch):
    X = CLOUDS["random"]
    monkeypatch.setattr(order, "EXACT", 10)
    monkeypatch.setattr(order, "_PAIRS", 40)
    own, best = separations(X, maxmin(X))
    assert np.all(own >= order.SHARE * best)


def test_many_rows_in_seconds():
    """Twenty thousand rows, so that nothing compares all with all."""
    rng = np.random.default_rng(6)
    X = rng.standard_normal((20_000, 2))
    sequence = maxmin(X)
    before = predecessors(X, sequence, 8)
    some = rng.integers(0, 20_000, 50)
    place = np.argsort(sequence)
    for row in some:
        earlier = sequence[: place[row]]
        far = squares(X[row][None], X[earlier])[0]
        expected = earlier[np.argsort(far, kind="stable")[:8]]
        assert np.array_equal(before[row, : expected.size], expected)
    assert np.array_equal(nearest(X, 8)[some], nearest_by_hand(X, 9, X[some])[:, :8])


# -- what does not fit -----------------------------------------------------------------------------


@pytest.mark.only_backend("numpy-f64", "strict-f64")
@pytest.mark.parametrize("k", [0, -1, 2.5, True, "3"])
def test_counts_that_are_none(case, k):
    X = case.asarray(np.arange(6.0)[:, None])
    for call in (lambda: nearest(X, k), lambda: predecessors(X, np.arange(6), k)):
        with pytest.raises(ValueError, match="neighbours were asked for; expected an integer of 1"):
            call()


@pytest.mark.only_backend("numpy-f64", "strict-f64")
def test_more_neighbours_than_rows(case):
    X = case.asarray(np.arange(6.0)[:, None])
    for call in (lambda: nearest(X, 7), lambda: predecessors(X, np.arange(6), 7)):
        with pytest.raises(ValueError, match="7 neighbours were asked for and there are n = 6 row"):
            call()


def test_positions_that_are_none():
    X = np.zeros((4, 2))
    X[2, 1] = np.nan
    for call in (lambda: nearest(X, 1), lambda: maxmin(X), lambda: predecessors(X, range(4), 1)):
        with pytest.raises(ValueError, match="X is not finite in row 2"):
            call()
    with pytest.raises(ValueError, match="queries is not finite in row 2"):
        nearest(np.zeros((4, 2)), 1, X)
    with pytest.raises(ValueError, match="queries has 3 columns and X has 2"):
        nearest(np.zeros((4, 2)), 1, np.zeros((4, 3)))
    with pytest.raises(ValueError, match="queries and rows were given"):
        nearest(np.zeros((4, 2)), 1, np.zeros((4, 2)), rows=np.arange(2))
    for shape in ((4,), (0, 2), (4, 0)):
        with pytest.raises(ValueError, match="expected positions"):
            maxmin(np.zeros(shape))


@pytest.mark.parametrize("sequence", [[0, 1, 1], [0, 1], [0, 1, 3], [[0, 1, 2]]])
def test_orders_that_are_none(sequence):
    with pytest.raises(ValueError, match="expected each of the 3 rows once"):
        predecessors(np.zeros((3, 1)), np.array(sequence), 1)
