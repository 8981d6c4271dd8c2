"""The search index: exactness, ties and filling up, additions, threads and batches, certificates, wrong arguments."""

from __future__ import annotations

import os
import threading
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.sparse as sp
import torch

import subspan
from subspan import SparseIndex, SparseRows

VALUES = ("f32", "f16", "u8")
pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
]


def documents(n: int, columns: int, seed: int = 0, signed: bool = True, integers: bool = False) -> sp.csr_array:
    """Columns as unequally frequent as words, from most rows down to none, and an empty row now and then."""
    generator = np.random.default_rng(seed)
    share = 0.9 / (1 + np.arange(columns)) ** 0.8
    filled = generator.random((n, columns)) < share
    filled[generator.random(n) < 0.05] = False
    values = generator.integers(1, 4, (n, columns)) if integers else 0.1 + generator.random((n, columns))
    signs = np.where(generator.random((n, columns)) < 0.5, -1, 1) if signed else 1
    return sp.csr_array((filled * values * signs).astype(np.float32))


def ranked(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores descending, equal ones by lower document, of a dense matrix."""
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, ids, 1), ids


def in_query_order(queries: sp.csr_array, rows: np.ndarray) -> np.ndarray:
    """Scores in float64, exact where they are small integers."""
    return queries.toarray().astype(np.float64) @ rows.astype(np.float64).T


def equal(found: Any, expected: Any) -> bool:
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(found, expected, strict=True))


# --- exactness ---


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("window", [64, 128, 8192])
@pytest.mark.parametrize("signed", [False, True])
def test_small_integers_exactly(values: str, window: int, signed: bool) -> None:
    """Their sums are exact, so that scores, ids and the order of ties must be those of dense products."""
    rows = documents(1000, 50, signed=signed, integers=True)
    if values == "u8":  # magnitudes that 255 steps of a row's largest one meet
        dense = rows.toarray()
        dense[:, 0] = 255
        dense[:, 1:] = np.round(dense[:, 1:] * 17)
        rows = sp.csr_array(dense)
    queries = documents(40, 50, seed=1, signed=signed, integers=True)
    expected = in_query_order(queries, rows.toarray())
    index = SparseIndex.build(rows, values, window=window)
    for k in (1, 10, 100, 1000, 5000):
        assert equal(index.search(queries, k), ranked(expected, min(k, 1000))), k


@pytest.mark.parametrize("columns", [1, 63, 64, 65, 700])
@pytest.mark.parametrize("n", [1, 64, 200, 3000])
def test_scores_are_within_the_bound_and_no_document_is_missed(n: int, columns: int) -> None:
    rows, queries = documents(n, columns), documents(30, columns, seed=2)
    exact = in_query_order(queries, rows.toarray())
    magnitude = np.abs(queries.toarray()).astype(np.float64) @ np.abs(rows.toarray()).astype(np.float64).T
    k = min(10, n)
    scores, ids = SparseIndex.build(rows, window=128).search(queries, 10)
    terms = np.diff(queries.indptr)[:, None]
    bound = terms * 2.0**-24 * 1.01 * magnitude
    assert (np.abs(scores - np.take_along_axis(exact, ids, 1)) <= np.take_along_axis(bound, ids, 1)).all()
    left_out = np.ones_like(exact, bool)
    np.put_along_axis(left_out, ids, False, 1)
    assert (np.where(left_out, exact - bound, -np.inf) <= scores[:, k - 1 :]).all()
    assert (np.diff(scores, axis=1) <= 0).all()


def test_bitmaps_and_lists_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = documents(3000, 60), documents(50, 60, seed=3)
    for values in VALUES:
        results = []
        for share in (1e-9, 0.2, 2.0):
            monkeypatch.setattr(SparseIndex, "_bitmap_share", share)
            results.append(SparseIndex.build(rows, values).search(queries, 20))
        assert equal(results[0], results[1]) and equal(results[0], results[2])


@pytest.mark.parametrize("share", [1e-9, 0.2, 2.0], ids=["bitmaps", "both", "lists"])
def test_multiply_adds_are_the_identity(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each posting of each term of a query is used once: with ones for values, all scores add up to the sum over
    columns of queries with it times documents with it, which is also what the search predicts and counts."""
    monkeypatch.setattr(SparseIndex, "_bitmap_share", share)
    rows, queries = documents(2500, 200), documents(70, 200, seed=4)
    rows.data[:], queries.data[:] = 1, 1
    expected = int((np.diff(sp.csc_array(queries).indptr) * np.diff(sp.csc_array(rows).indptr)).sum())
    for values in VALUES:
        index = SparseIndex.build(rows, values, window=512)
        scores, ids = index.search(queries, 2500)
        assert (np.sort(ids, axis=1) == np.arange(2500)).all()
        total = scores.astype(np.float64).sum()
        assert abs(total - expected) <= (1e-4 * expected if values == "u8" else 0)
        stats = index.stats()
        assert stats["predicted"] == stats["searched_postings"] == expected
        assert stats["postings"] == rows.nnz


def test_scores_of_zero_fill_up() -> None:
    rows = sp.csr_array(np.array([[0, -1, 0], [0, 0, 2], [0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32))
    index = SparseIndex.build(rows, window=64)
    scores, ids = index.search(np.array([[0.0, 1, 0], [0, 0, 0], [0, -2, 0]], np.float32), 10)
    assert scores.tolist() == [[1, 0, 0, 0, -1], [0] * 5, [2, 0, 0, 0, -2]]
    assert ids.tolist() == [[4, 1, 2, 3, 0], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    assert not np.signbit(scores[scores == 0]).any()


def test_nothing_but_negative_scores() -> None:
    rows = sp.csr_array(-np.arange(1, 301, dtype=np.float32)[:, None])
    index = SparseIndex.build(rows, window=64)
    scores, ids = index.search(np.ones((1, 1), np.float32), 7)
    assert ids.tolist() == [[0, 1, 2, 3, 4, 5, 6]] and scores.tolist() == [[-1, -2, -3, -4, -5, -6, -7]]
    scores, ids = index.search(-np.ones((1, 1), np.float32), 3)
    assert ids.tolist() == [[299, 298, 297]]


def test_repeated_columns_and_zeros() -> None:
    rows = SparseRows(np.array([[2, 0, 2], [1, 1, 0]]), np.array([[1.0, 2.0, 3.0], [4.0, -4.0, 0.0]]), 3)
    index = SparseIndex.build(rows)
    assert index.stats()["postings"] == 2
    queries = SparseRows(np.array([[2, 2, 1]]), np.array([[1.0, 2.0, 5.0]]), 3)
    assert index.search(queries, 2).scores.tolist() == [[12.0, 0.0]]


def test_nothing_at_all() -> None:
    empty = SparseIndex.build(sp.csr_array((0, 5), dtype=np.float32))
    scores, ids = empty.search(documents(3, 5), 4)
    assert scores.shape == ids.shape == (3, 0) and len(empty) == 0
    index = SparseIndex.build(documents(10, 5))
    assert index.search(sp.csr_array((0, 5), dtype=np.float32), 4).scores.shape == (0, 4)
    assert equal(empty.add(documents(10, 5)).search(documents(3, 5, 1), 4), index.search(documents(3, 5, 1), 4))


@hypothesis.given(st.data())
def test_any_small_index(data: st.DataObject) -> None:
    columns, n = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 200))
    seed, window = data.draw(st.integers(0, 2**16)), 64 * data.draw(st.integers(1, 3))
    rows = documents(n, columns, seed, integers=True)
    queries = documents(data.draw(st.integers(1, 5)), columns, seed + 1, integers=True)
    k, cut = data.draw(st.integers(1, n + 5)), data.draw(st.integers(0, n))
    index = SparseIndex.build(rows[:cut], data.draw(st.sampled_from(("f32", "f16"))), window=window).add(rows[cut:])
    assert equal(index.search(queries, k), ranked(in_query_order(queries, rows.toarray()), k))


# --- the same bits however it is asked for ---


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("signed", [False, True])
def test_adding_is_building(values: str, signed: bool) -> None:
    rows, queries = documents(1500, 90, signed=signed), documents(40, 90, seed=5, signed=signed)
    # Signs of a later part alone, too: the lists of negative values of a u8 window are made when they are needed.
    rows[:700] = abs(rows[:700])
    whole = SparseIndex.build(rows, values, window=256)
    expected = whole.search(queries, 30)
    for cuts in ([1], [256], [700, 701, 1499], list(range(100, 1500, 100))):
        index = SparseIndex.build(rows[: cuts[0]], values, window=256)
        for begin, end in zip(cuts, [*cuts[1:], 1500], strict=True):
            index.add(rows[begin:end])
        found = index.search(queries, 30)
        assert equal(found, expected) and np.array_equal(found.certified, expected.certified)
        want = {name: value for name, value in whole.stats().items() if name not in ("seconds", "queries")}
        assert {name: index.stats()[name] for name in want} == want


@pytest.mark.parametrize("values", VALUES)
def test_threads_and_batches_give_the_same_bits(values: str) -> None:
    rows, queries = documents(20000, 40), documents(300, 40, seed=6)
    index = SparseIndex.build(rows, values, window=512, threads=1)
    others = SparseIndex.build(rows, values, window=512, threads=3)
    expected = index.search(queries, 10, threads=1)
    for threads in (2, 3, 8):
        assert equal(others.search(queries, 10, threads=threads), expected)
    for batch in (1, 7, 64, 300):
        found = list(index.search_batch(queries, 10, batch=batch))
        assert len(found) == -(-300 // batch)
        assert equal([np.concatenate(parts) for parts in zip(*found, strict=True)], expected)
    assert all(equal(index.search(queries[[i]], 10, threads=3), [a[[i]] for a in expected]) for i in (0, 17, 299))


def test_threads_of_python_search_while_another_adds() -> None:
    rows, queries = documents(4000, 60), documents(20, 60, seed=7)
    index = SparseIndex.build(rows[:1000], window=256)
    steps = range(1000, 4001, 100)
    expected = {n: SparseIndex.build(rows[:n], window=256).search(queries, 5).ids for n in steps}
    wrong: list[str] = []
    done = threading.Event()

    def search() -> None:
        while not done.is_set():
            least = len(index)
            ids = index.search(queries, 5).ids
            if not any(np.array_equal(ids, expected[n]) for n in steps if least <= n <= len(index)):
                wrong.append("a result of no state of the index")

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for n in steps[1:]:
        index.add(rows[n - 100 : n])
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong and len(index) == 4000


@pytest.mark.no_sanitizer
def test_search_in_a_forked_child() -> None:
    rows, queries = documents(3000, 60), documents(20, 60, seed=8)
    index = SparseIndex.build(rows, window=256, threads=2)
    expected = index.search(queries, 5, threads=2)
    child = os.fork()
    if child == 0:
        os._exit(0 if equal(index.search(queries, 5, threads=2), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


# --- fewer bits and certificates ---


@pytest.mark.parametrize("values", ["f16", "u8"])
@pytest.mark.parametrize("signed", [False, True])
def test_certified_results_are_those_of_the_original_values(values: str, signed: bool) -> None:
    rows, queries = documents(2000, 300, signed=signed), documents(200, 300, seed=9, signed=signed)
    exact = in_query_order(queries, rows.toarray())
    index, plain = SparseIndex.build(rows, values, window=512), SparseIndex.build(rows, window=512)
    for k in (1, 5):
        found = index.search(queries, k)
        sure = np.flatnonzero(found.certified)
        assert 0 < len(sure) < 200, "a test of certificates needs queries with and without"
        for query in sure:
            others = np.delete(exact[query], found.ids[query])
            assert exact[query, found.ids[query]].min() > others.max()
        again, expected = index.search(queries, k, rerank=rows), plain.search(queries, k)
        assert expected.certified.all()
        assert again.certified.sum() > len(sure)
        assert equal([part[again.certified] for part in again], [part[again.certified] for part in expected])


def test_equal_documents_cannot_be_certified() -> None:
    rows = sp.csr_array(np.tile(np.array([[0.3, 0.7, 0.1]], np.float32), (4000, 1)))
    index = SparseIndex.build(rows, "u8")
    query = np.array([[1.0, 1.0, 1.0]], np.float32)
    assert not index.search(query, 3).certified.any()
    assert not index.search(query, 3, rerank=rows).certified.any()
    assert index.search(query, 4000, rerank=rows).certified.all()


def test_bytes_of_a_posting() -> None:
    rows = documents(20000, 800, signed=False)
    assert [
        SparseIndex.build(rows, values).stats()["bytes_per_posting"] < most
        for values, most in (("f32", 8), ("f16", 6), ("u8", 4))
    ] == [True] * 3


# --- what goes in and comes out ---


def test_kinds_of_rows() -> None:
    dense = documents(200, 30).toarray()
    index = SparseIndex.build(dense)
    queries = documents(5, 30, seed=11)
    expected = index.search(queries, 4)
    tensor = torch.from_numpy(queries.toarray())
    kinds = [
        queries, sp.coo_array(queries), SparseRows.from_scipy(queries), queries.toarray(), queries.astype(np.float64),
        tensor, tensor.to_sparse(), tensor.to_sparse_csr(), SparseRows.from_dense(tensor), list(tensor.to_sparse()),
        tensor.clone().requires_grad_(), subspan.topk_rows(tensor, 30, by="abs", relu=False),
    ]  # fmt: skip
    for kind in kinds[:-1]:
        assert equal(index.search(kind, 4), expected), type(kind)
        assert equal(SparseIndex.build(kind).search(queries, 3), SparseIndex.build(queries).search(queries, 3))
        of_torch = "torch" in str(type(kind)) or isinstance(kind, list)
        if not isinstance(kind, SparseRows):
            assert isinstance(index.search(kind, 4).scores, torch.Tensor if of_torch else np.ndarray)
    assert np.array_equal(index.search(kinds[-1], 4).ids, expected.ids)  # in another order of its entries
    half = index.search(tensor.half(), 4)
    assert equal(half, index.search(tensor.half().float(), 4))
    assert equal(index.search(tensor.bfloat16(), 4), index.search(tensor.bfloat16().float(), 4))


def test_inputs_are_left_alone() -> None:
    rows = documents(100, 30)
    copies = [part.copy() for part in (rows.indptr, rows.indices, rows.data)]
    for part in (rows.indptr, rows.indices, rows.data):
        part.flags.writeable = False
    SparseIndex.build(rows, "u8").add(rows).search(rows, 3, rerank=sp.vstack([rows, rows], format="csr"))
    assert equal((rows.indptr, rows.indices, rows.data), copies)


def test_progress() -> None:
    rows = documents(1000, 20)
    seen: list[tuple[int, int]] = []
    index = SparseIndex.build(rows, window=64, threads=1, progress=lambda done, total: seen.append((done, total)))
    assert len(seen) > 1 and seen == sorted(seen) and seen[-1] == (1000, 1000)
    assert equal(index.search(rows, 3), SparseIndex.build(rows, window=64).search(rows, 3))
    seen.clear()
    list(index.search_batch(rows, 3, batch=300, progress=lambda done, total: seen.append((done, total))))
    assert seen == [(300, 1000), (600, 1000), (900, 1000), (1000, 1000)]


def wrong(**changes: Any) -> sp.csr_array:
    rows = documents(10, 6)
    for name, value in changes.items():
        getattr(rows, name)[3] = value
    return rows


INF = float("inf")
FINE = documents(10, 6)
BAD: dict[str, tuple[Any, str]] = {
    "rows": (lambda: SparseIndex.build([1, 2]), "SparseIndex.build: rows: expected SparseRows"),
    "values": (lambda: SparseIndex.build(FINE, "u4"), "SparseIndex.build: values: expected one of"),
    "window": (lambda: SparseIndex.build(FINE, window=100), "SparseIndex.build: window: expected a multiple of 64"),
    "wide": (lambda: SparseIndex.build(FINE, window=65600), "SparseIndex.build: window: expected a multiple of 64"),
    "columns": (
        lambda: SparseIndex.build(sp.csr_array((2, 2**24 + 1), dtype=np.float32)),
        "SparseIndex.build: rows: expected 1 ... 16777216 columns",
    ),
    "nan": (lambda: SparseIndex.build(wrong(data=np.nan)), "SparseIndex.build: rows: expected finite values"),
    "large": (
        lambda: SparseIndex.build(wrong(data=1.0).astype(np.float64) * 1e300),
        "SparseIndex.build: rows: expected finite values in the range of float32",
    ),
    "half": (lambda: SparseIndex.build(wrong(data=1e6), "f16"), "SparseIndex.build: rows: expected magnitudes below"),
    "add": (lambda: SparseIndex.build(FINE).add(documents(3, 7)), "SparseIndex.add: rows: expected 6 columns"),
    "add nan": (lambda: SparseIndex.build(FINE).add(wrong(data=INF)), "SparseIndex.add: rows: expected finite values"),
    "queries": (
        lambda: SparseIndex.build(FINE).search(documents(3, 7), 1),
        "SparseIndex.search: queries: expected 6 columns",
    ),
    "query nan": (
        lambda: SparseIndex.build(FINE).search(wrong(data=np.nan), 1),
        "SparseIndex.search: queries: expected finite values",
    ),
    "overflow": (
        lambda: SparseIndex.build(FINE * 1e30).search(FINE * np.float32(1e30), 1),
        "SparseIndex.search: queries: expected scores in the range of float32",
    ),
    "k": (lambda: SparseIndex.build(FINE).search(FINE, 0), "SparseIndex.search: k: expected an integer in 1"),
    "mode": (lambda: SparseIndex.build(FINE).search(FINE, 1, "fast"), "SparseIndex.search: mode: expected one of"),
    "threads": (lambda: SparseIndex.build(FINE, threads=0), "SparseIndex.build: threads: expected an integer in 1"),
    "batch": (lambda: SparseIndex.build(FINE).search_batch(FINE, 1, batch=0), "SparseIndex.search_batch: batch: expec"),
    "progress": (lambda: SparseIndex.build(FINE, progress=3), "SparseIndex.build: progress: expected True, False or"),
    "rerank": (
        lambda: SparseIndex.build(FINE, "u8").search(FINE, 1, rerank=documents(9, 6)),
        "SparseIndex.search: rerank: expected (10, 6), got (9, 6)",
    ),
    "rerank approx": (
        lambda: SparseIndex.build(FINE, "u8").search(FINE, 1, "approx", rerank=FINE),
        "SparseIndex.search: rerank: expected None",
    ),
    "meta": (
        lambda: SparseIndex.build(torch.zeros(2, 3, device="meta")),
        "SparseIndex.build: rows: expected arrays in host memory, got meta",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_wrong_arguments(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises((TypeError, ValueError)) as raised:
        call()
    assert str(raised.value).startswith(message), raised.value


def test_a_failed_addition_leaves_the_index_as_it_was() -> None:
    index = SparseIndex.build(FINE, window=64)
    expected = index.search(FINE, 4)
    with pytest.raises(ValueError, match="in row 350"):
        index.add(
            np.where(np.arange(400)[:, None] == 350, np.inf, 1.0) * np.ones((1, 6)), progress=lambda done, total: None
        )
    assert len(index) == 10 and equal(index.search(FINE, 4), expected)


def test_arrays_that_change_their_mind_are_not_read_out_of_bounds() -> None:
    """The compiled functions check what they read, whatever Python checked before."""
    core = subspan._native.cpu.SearchIndex(6, 0, 64, 0.2)
    fine = np.array([0, 2], np.int64), np.array([1, 2], np.int32), np.ones(2, np.float32)
    core.add(*fine, 0, 1, "op")
    results = np.empty((1, 1), np.float32), np.empty((1, 1), np.int64), np.empty((1, 1))
    for place, array in (
        (0, np.array([0, 3])), (0, np.array([-1, 2])), (0, np.array([2, 0])), (0, np.empty(0, np.int64)),
        (0, np.array([0, 2], np.int32)), (1, np.array([1, 6], np.int32)), (1, np.array([-1, 2])),
        (1, np.array([1], np.int32)), (1, np.ones(2, np.float32)), (2, np.ones(2, np.float16)), (2, np.ones(4)[::2]),
    ):  # fmt: skip
        rows = [*fine]
        rows[place] = array
        with pytest.raises(ValueError, match="op: rows: expected"):
            core.add(*rows, 0, 1, "op")
        with pytest.raises(ValueError, match="op: queries: expected"):
            core.search(*rows, *results, 0, 0, 1, "op")
        with pytest.raises(ValueError, match="op: rerank: expected"):
            subspan._native.cpu.score_rows(*fine, *rows, 6, results[1] * 0, results[0], 1, "op")
    with pytest.raises(ValueError, match="op: ids: expected rows in"):
        subspan._native.cpu.score_rows(*fine, *fine, 6, np.ones((1, 1), np.int64), results[0], 1, "op")
    with pytest.raises(ValueError, match="k: expected at most the documents"):
        core.search(*fine, np.empty((1, 2), np.float32), np.empty((1, 2), np.int64), results[2], 0, 0, 1, "op")
    with pytest.raises(ValueError, match="expected a contiguous array"):
        core.search(*fine, results[0], results[1].astype(np.int32), results[2], 0, 0, 1, "op")
    assert core.search(*fine, *results, 0, 0, 1, "op")[:2] == (2, 2) and results[0].item() == 2
