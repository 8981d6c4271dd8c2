"""The demo's study of search: the plain way is right, and ours finds the same."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from scipy.sparse import csr_array, random_array

import subspan
from subspan.demo import search


def corpus(n: int, seed: int) -> csr_array:
    return csr_array(random_array((n, 40), density=0.2, rng=np.random.default_rng(seed), dtype=np.float32))


def test_plain_search_is_that_of_the_dense_product(monkeypatch):
    monkeypatch.setattr(search, "BLOCK", 7)
    queries, texts = corpus(17, 1), corpus(60, 2)
    scores, ids = search.scipy_search(queries, csr_array(texts.T.tocsr()))
    dense = queries.toarray().astype(np.float64) @ texts.toarray().T.astype(np.float64)
    best = -np.sort(-dense, axis=1)[:, : search.NEAREST]
    assert np.allclose(scores, best, rtol=1e-6)
    rows = np.arange(17)[:, None]
    assert np.allclose(np.where(ids < 0, 0, dense[rows, ids]), best, rtol=1e-6)
    assert (ids[best == 0] == -1).all()


def test_both_find_the_same_and_are_timed_alike():
    queries, texts = corpus(17, 1), corpus(60, 2)
    transposed, index = csr_array(texts.T.tocsr()), subspan.SparseIndex.build(texts)
    empty = np.empty((0, search.NEAREST))
    runs = (lambda rows: search.scipy_search(rows, transposed), lambda rows: tuple(index.search(rows, search.NEAREST)))
    ways = [search.Way(name, run, empty, empty, [], []) for name, run in zip(("plain", "ours"), runs, strict=True)]
    steps = []
    search.compare(ways, queries, 4, lambda: steps.append(1))
    plain, ours = ways
    assert len(steps) == 4 and all(len(way.single) == 4 and len(way.seconds) == search.ROUNDS for way in ways)
    assert np.allclose(plain.scores, ours.scores, rtol=1e-6)
    assert search.overlap(plain.ids, ours.ids) > 0.9


def test_recall_and_overlap():
    ids = np.array([[0, 5], [3, 1], [7, 8]])
    assert search.known_item_recall(ids) == pytest.approx(2 / 3)
    assert search.overlap(np.array([[0, 1], [9, 3], [8, 7]]), ids) == pytest.approx((0.5 + 0.5 + 1) / 3)
