"""Approximate searches: what they find is scored as in exact ones, and does not depend on how it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from subspan import SparseIndex
from subspan import sparse_index as module
from test_sparse_index import VALUES, documents, equal, in_query_order


@pytest.fixture(autouse=True)
def small_indexes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SparseIndex, "_documents_per_candidate", 8)


def weighted(rows: sp.csr_array, by: sp.csr_array) -> sp.csr_array:
    """By how rare a column is, as in text."""
    rarity = np.log1p(by.shape[0] / (1 + np.diff(sp.csc_array(by).indptr)))
    return sp.csr_array(rows.multiply(rarity)).astype(np.float32)


def corpus(n: int, columns: int, signed: bool = False) -> tuple[sp.csr_array, sp.csr_array]:
    rows, queries = documents(n, columns, signed=signed), documents(100, columns, seed=10, signed=signed)
    return weighted(rows, rows), weighted(queries, rows)


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("signed", [False, True])
def test_finds_most_and_scores_it_as_the_exact_search_does(values: str, signed: bool) -> None:
    rows, queries = corpus(20000, 300, signed)
    index = SparseIndex.build(rows, values, window=1024)
    exact = index.search(queries, 20000)
    before = index.stats()
    assert before["sketch_bytes"] == 0
    found = index.search(queries, 10, "approx")
    after = index.stats()
    assert 0 < after["sketch_bytes"] < 3.3 * after["postings"]
    added = after["searched_postings"] - before["searched_postings"]
    assert 0 < added < after["predicted"] / 2, "everything was added up"
    scores = np.empty((100, 20000), np.float32)
    np.put_along_axis(scores, exact.ids, exact.scores, 1)
    assert np.array_equal(found.scores, np.take_along_axis(scores, found.ids, 1))
    assert not found.certified.any()
    order = np.lexsort((found.ids, -found.scores), axis=-1)
    assert (order == np.arange(10)).all()
    report = index.recall_report(queries, 10)
    assert report["recall"] >= 0.95 and report["worst"] <= report["recall"]
    right = exact.ids[:, :10]
    assert report["recall"] == np.mean([np.isin(a, b).mean() for a, b in zip(right, found.ids, strict=True)])
    assert index.recall_report(queries, 10, right, mode="exact")["recall"] == 1


@pytest.mark.parametrize("values", VALUES)
def test_the_same_bits_however_it_is_asked_for(values: str, tmp_path: Path) -> None:
    rows, queries = corpus(8000, 100, signed=True)
    index = SparseIndex.build(rows, values, window=192, threads=1)
    expected = index.search(queries, 10, "approx", threads=1)
    for threads in (2, 3, 8):
        other = SparseIndex.build(rows, values, window=192, threads=threads)
        assert equal(other.search(queries, 10, "approx", threads=threads), expected)
    for batch in (1, 7, 100):
        found = list(index.search_batch(queries, 10, "approx", batch=batch))
        assert equal([np.concatenate(parts) for parts in zip(*found, strict=True)], expected)
    index.save(tmp_path / "index")
    for mmap in (False, True):
        assert equal(SparseIndex.load(tmp_path / "index", mmap=mmap).search(queries, 10, "approx"), expected)
    # Additions, with a sketch that is there already, with one that is made twice, and with none.
    for cuts in ([3000], [1000, 4096, 7000], [7999]):
        for searched in (True, False):
            added = SparseIndex.build(rows[: cuts[0]], values, window=192)
            for begin, end in zip(cuts, [*cuts[1:], 8000], strict=True):
                if searched:
                    added.search(queries, 10, "approx")
                added.add(rows[begin:end])
            assert equal(added.search(queries, 10, "approx"), expected)
            assert added.stats()["sketch_bytes"] == index.stats()["sketch_bytes"]


def test_bitmaps_and_lists_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = corpus(4000, 60, signed=True)
    for values in VALUES:
        results = []
        for share in (1e-9, 0.2, 2.0):
            monkeypatch.setattr(SparseIndex, "_bitmap_share", share)
            results.append(SparseIndex.build(rows, values).search(queries, 10, "approx"))
        assert equal(results[0], results[1]) and equal(results[0], results[2])


@pytest.mark.parametrize("scale", [1e-42, 1e-20, 1.0, 1e18])
def test_scales_of_values_and_weights(scale: float) -> None:
    """Up to sums near the largest float32 and down to values of which it has but some steps."""
    rows, queries = corpus(4000, 40)
    scaled = sp.csr_array(rows.multiply(scale)).astype(np.float32)
    weights = sp.csr_array(queries.multiply(min(1e15, max(1e-15, 1 / scale)))).astype(np.float32)
    index = SparseIndex.build(scaled)
    exact, found = index.search(weights, 5), index.search(weights, 5, "approx")
    if scale >= 1e-20:
        assert np.mean([np.isin(a, b).mean() for a, b in zip(exact.ids, found.ids, strict=True)]) > 0.95
    scores = in_query_order(weights, scaled.toarray())
    assert np.allclose(found.scores, np.take_along_axis(scores, found.ids, 1), rtol=1e-4, atol=1e-44 + 40 * 2.0**-149)


def test_queries_of_nothing_and_documents_of_nothing() -> None:
    rows, queries = corpus(4000, 40)
    index = SparseIndex.build(sp.vstack([rows, sp.csr_array((4000, 40), dtype=np.float32)], format="csr"))
    nothing = index.search(sp.csr_array((3, 40), dtype=np.float32), 4, "approx")
    assert (nothing.scores == 0).all() and (nothing.ids == np.arange(4)).all()
    negative = index.search(-queries, 5, "approx")
    exact = index.search(-queries, 5)
    assert np.array_equal(negative.scores, exact.scores) and np.array_equal(negative.ids, exact.ids)


def test_small_indexes_are_searched_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = corpus(2000, 60)
    index = SparseIndex.build(rows)
    assert equal(index.search(queries, 100, "approx"), index.search(queries, 100))
    monkeypatch.undo()
    assert equal(index.search(queries, 1, "approx"), index.search(queries, 1))
    assert index.stats()["sketch_bytes"] == 0


def test_many_terms_and_many_hits() -> None:
    """So many terms that each adds little to the largest score there can be."""
    rows, queries = documents(6000, 700, signed=False), np.ones((3, 700), np.float32)
    index = SparseIndex.build(rows)
    for k in (1, 100):
        exact, found = index.search(queries, k), index.search(queries, k, "approx")
        assert np.mean([np.isin(a, b).mean() for a, b in zip(exact.ids, found.ids, strict=True)]) > 0.8


def test_damage_of_a_mapped_window_is_noticed(tmp_path: Path) -> None:
    rows, queries = corpus(4000, 60)
    file = tmp_path / "index"
    SparseIndex.build(rows, window=512).save(file)
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    index = SparseIndex.load(file, mmap=True)
    for _ in range(2):
        with pytest.raises(ValueError, match="got a damaged window"):
            index.search(queries, 5, "approx")


def test_constants_are_those_of_the_documentation() -> None:
    text: Any = SparseIndex.search.__doc__
    assert f"{module._CANDIDATES} + {module._CANDIDATES_PER_HIT} k documents" in text
