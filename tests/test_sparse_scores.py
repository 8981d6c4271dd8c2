"""Inner products of sparse rows beyond the op table: layouts and index types, the number of multiply-adds, splits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import subspan
from sample_arrays import normal
from subspan import SparseRows
from subspan._native import cpu
from subspan.reference import sparse as reference
from subspan.sparse_rows import unchecked

DOUBLE = torch.float64
LAYOUTS: dict[str, Callable[[SparseRows], SparseRows]] = {"fixed": lambda rows: rows, "csr": SparseRows.to_csr}


def rows(seed: int, n: int, columns: int, k: int, dtype: torch.dtype = DOUBLE) -> SparseRows:
    """Columns as they come, some twice in a row, and more often low ones."""
    generator = np.random.default_rng(seed)
    indices = torch.from_numpy((columns * generator.random((n, k)) ** 3).astype(np.int64))
    return SparseRows(indices, normal(seed, n, k, dtype=dtype), columns)


def ragged(seed: int, n: int, columns: int, dtype: torch.dtype = DOUBLE) -> SparseRows:
    """CSR with rows of no and of many entries."""
    generator = np.random.default_rng(seed)
    counts = generator.integers(0, 9, n) * (generator.random(n) < 0.7)
    counts[-1] = 3 * columns
    offsets = torch.from_numpy(np.concatenate([[0], counts.cumsum()]))
    indices = torch.from_numpy(generator.integers(0, columns, int(counts.sum())).astype(np.int32))
    return SparseRows(indices, normal(seed, len(indices), dtype=dtype), columns, offsets)


def dense(rows: SparseRows) -> np.ndarray:
    values = np.asarray(rows.values.detach().double())
    return reference.dense_rows(rows.indices, values, rows.columns, rows.offsets)


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("d_layout", LAYOUTS)
@pytest.mark.parametrize("q_layout", LAYOUTS)
def test_any_mix_of_layouts(q_layout: str, d_layout: str, index: torch.dtype) -> None:
    Q, D = rows(1, 23, 40, 6), rows(2, 31, 40, 9)
    expected = subspan.sparse_scores(Q, D)
    np.testing.assert_allclose(expected.numpy(), dense(Q) @ dense(D).T, rtol=0, atol=1e-13)
    q, d = LAYOUTS[q_layout](Q), LAYOUTS[d_layout](D)
    q = SparseRows(q.indices.to(index), q.values, 40, None if q.offsets is None else q.offsets.to(index))
    assert torch.equal(subspan.sparse_scores(q, d), expected)
    numpy = [SparseRows(*(a if a is None or isinstance(a, int) else a.numpy() for a in parts(s))) for s in (q, d)]
    found = subspan.sparse_scores(*numpy)
    assert isinstance(found, np.ndarray) and np.array_equal(found, expected.numpy())


def parts(rows: SparseRows) -> tuple[Any, ...]:
    return rows.indices, rows.values, rows.columns, rows.offsets


@pytest.mark.parametrize("columns", [50, 10**6, 2**31 - 1])
def test_rows_of_any_length_and_columns_of_any_number(columns: int) -> None:
    """With a table of all columns, and with one of those that occur."""
    Q, D = ragged(3, 40, 50), ragged(4, 60, 50)
    spread = columns // 50
    q, d = (SparseRows(s.indices.long() * spread, s.values, columns, s.offsets) for s in (Q, D))
    expected = dense(Q) @ dense(D).T
    np.testing.assert_allclose(subspan.sparse_scores(q, d).numpy(), expected, rtol=0, atol=1e-12)
    leaf = d.values.clone().requires_grad_()
    G = normal(5, 40, 60)
    (grad,) = torch.autograd.grad(subspan.sparse_scores(q, SparseRows(d.indices, leaf, columns, d.offsets)), leaf, G)
    exact = (G.numpy().T @ dense(Q))[D.row_of_entries().numpy(), D.indices.numpy()]
    np.testing.assert_allclose(grad.numpy(), exact, rtol=0, atol=1e-12)


def test_multiply_adds_are_the_products_of_the_columns_counts() -> None:
    """Of ones every multiply-add adds 1: sum_j n_j^Q n_j^D exactly, entries of one column counted each."""
    Q, D = rows(6, 256, 70, 9), ragged(7, 512, 70)  # powers of two, whose means are exact
    counts = [np.bincount(s.indices.numpy().reshape(-1), minlength=70) for s in (Q, D)]
    ones = [SparseRows(s.indices, torch.ones_like(s.values), 70, s.offsets) for s in (Q, D)]
    assert subspan.sparse_scores(*ones).sum() == int(counts[0] @ counts[1])
    filled = [torch.from_numpy((dense(s) != 0).astype(float)) for s in (Q, D)]
    once = [SparseRows.from_dense(s) for s in filled]
    assert subspan.sparse_scores(*once).sum() == 256 * 512 * subspan.flops_metric(*filled)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits_for_any_split_and_any_number_of_threads(dtype: torch.dtype) -> None:
    """Of the queries, and of the documents between rows; with more documents than are taken together."""
    Q, D = rows(8, 40, 60, 8, dtype), rows(9, 20000, 60, 4, dtype)
    upstream = normal(10, 40, 20000, dtype=torch.float32)

    def gradients(q: SparseRows, d: SparseRows, g: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaves = [s.values.detach().clone().requires_grad_() for s in (q, d)]
        scores = subspan.sparse_scores(*(SparseRows(s.indices, v, 60) for s, v in zip((q, d), leaves, strict=True)))
        return (scores.detach(), *torch.autograd.grad(scores, leaves, g))

    torch.set_num_threads(1)
    whole = gradients(Q, D, upstream)
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        for one, other in zip(gradients(Q, D, upstream), whole, strict=True):
            assert torch.equal(one, other)
        for part in (slice(0, 1), slice(1, 18), slice(18, 40)):
            q = SparseRows(Q.indices[part], Q.values[part], 60)
            found = gradients(q, D, upstream[part])
            assert torch.equal(found[0], whole[0][part]) and torch.equal(found[1], whole[1][part])
        few = SparseRows(D.indices[7777:9000], D.values[7777:9000], 60)
        assert torch.equal(subspan.sparse_scores(Q, few), whole[0][:, 7777:9000])


def test_large_results_that_are_written_past_the_caches() -> None:
    Q, D = rows(11, 1100, 30, 3, torch.float32), rows(12, 9001, 30, 2, torch.float32)
    scores = subspan.sparse_scores(Q, D)
    for part in (slice(0, 3), slice(1090, 1100)):
        assert torch.equal(scores[part], subspan.sparse_scores(SparseRows(Q.indices[part], Q.values[part], 30), D))


@pytest.mark.parametrize("q_layout", LAYOUTS)
@pytest.mark.parametrize("d_layout", LAYOUTS)
def test_derivatives_of_any_order(q_layout: str, d_layout: str) -> None:
    Q, D = LAYOUTS[q_layout](rows(13, 4, 5, 3)), LAYOUTS[d_layout](rows(14, 3, 5, 2))

    def scores(q: torch.Tensor, d: torch.Tensor) -> Any:
        return subspan.sparse_scores(
            SparseRows(Q.indices, q, 5, Q.offsets), SparseRows(D.indices, d, 5, D.offsets)
        ).sin()

    leaves = Q.values.requires_grad_(), D.values.requires_grad_()
    assert torch.autograd.gradcheck(scores, leaves, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(scores, leaves, check_batched_grad=True)

    def curvature(q: torch.Tensor, d: torch.Tensor) -> Any:
        first = torch.autograd.grad(scores(q, d).sum(), (q, d), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), (q, d), create_graph=True)

    assert torch.autograd.gradcheck(curvature, leaves)


def test_upstream_gradients_of_any_strides() -> None:
    Q, D = rows(15, 90, 40, 7), rows(16, 130, 40, 6)
    base = normal(17, 90, 130)
    for G in (base, base.T.contiguous().T, base.repeat(1, 2)[:, ::2], base[:1].expand(90, 130), base.float()[:, :1]):
        G = G.expand(90, 130).double() if G.dtype != DOUBLE else G
        leaves = [s.values.clone().requires_grad_() for s in (Q, D)]
        scores = subspan.sparse_scores(SparseRows(Q.indices, leaves[0], 40), SparseRows(D.indices, leaves[1], 40))
        d_q, d_d = torch.autograd.grad(scores, leaves, G)
        exact_q = np.take_along_axis(G.numpy() @ dense(D), Q.indices.numpy(), 1)
        exact_d = np.take_along_axis(G.numpy().T @ dense(Q), D.indices.numpy(), 1)
        np.testing.assert_allclose(d_q.numpy(), exact_q, rtol=0, atol=1e-12)
        np.testing.assert_allclose(d_d.numpy(), exact_d, rtol=0, atol=1e-12)


def test_rows_with_themselves() -> None:
    """One array on both sides, eager and compiled."""
    Q = rows(18, 9, 20, 4)
    leaf = Q.values.clone().requires_grad_()

    def similar(values: torch.Tensor) -> Any:
        own = SparseRows(Q.indices, values, 20)
        return subspan.sparse_scores(own, own)

    (grad,) = torch.autograd.grad(similar(leaf).square().sum(), leaf)
    x = torch.from_numpy(dense(Q))
    exact = (4 * x @ x.T @ x).gather(1, Q.indices)
    torch.testing.assert_close(grad, exact, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradgradcheck(similar, leaf)


@pytest.mark.no_sanitizer
@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiles_with_the_encoder_before_it(layout: str) -> None:
    W, x = normal(19, 30, 5).requires_grad_(), normal(20, 8, 5)

    def loss(x: torch.Tensor, W: torch.Tensor) -> Any:
        codes = subspan.topk_rows(x @ W.mT, 6)
        other = LAYOUTS[layout](subspan.topk_rows(x.flip(0) @ W.mT, 4))
        return subspan.sparse_scores(codes, other).logsumexp(-1).sum()

    torch._dynamo.reset()
    found = torch.compile(loss, backend="aot_eager", fullgraph=True)(x, W)
    expected = loss(x, W)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)
    grads = [torch.autograd.grad(value, W)[0] for value in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-13)
    torch._dynamo.reset()


def test_scores_may_be_changed_in_place() -> None:
    """Backward does not need them."""
    Q, D = rows(21, 5, 9, 3), rows(22, 4, 9, 3)
    leaf = Q.values.clone().requires_grad_()
    scores = subspan.sparse_scores(SparseRows(Q.indices, leaf, 9), D)
    scores /= 0.2
    (grad,) = torch.autograd.grad(scores.sum(), leaf)
    plain = subspan.sparse_scores(SparseRows(Q.indices, leaf, 9), D)
    torch.testing.assert_close(grad, torch.autograd.grad(5 * plain.sum(), leaf)[0], rtol=1e-13, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_composite(layout: str) -> None:
    composite = pytest.importorskip("subspan.composite.sparse_scores")
    Q, D = LAYOUTS[layout](rows(23, 7, 20, 4)), ragged(24, 12, 20)
    arguments = (Q.values, D.values, Q.indices, D.indices, Q.offsets, D.offsets, 20)
    np.testing.assert_allclose(composite.sparse_scores(*arguments)[0], dense(Q) @ dense(D).T, rtol=0, atol=1e-13)
    G = normal(25, 7, 12)
    (on_support,) = composite.scores_on_support(G, *arguments[1:])
    leaf = Q.values.clone().requires_grad_()
    scores = subspan.sparse_scores(SparseRows(Q.indices, leaf, 20, Q.offsets), D)
    torch.testing.assert_close(on_support, torch.autograd.grad(scores, leaf, G)[0], rtol=1e-13, atol=1e-13)


# --- errors ---


def test_bad_arguments() -> None:
    Q, D = rows(26, 4, 9, 3), rows(27, 5, 9, 3)
    short = rows(28, 5, 8, 3)
    numpy = SparseRows(D.indices.numpy(), D.values.numpy(), 9)
    for error, name, call in (
        (TypeError, "Q", lambda: subspan.sparse_scores(Q.to_dense(), D)),
        (TypeError, "D", lambda: subspan.sparse_scores(Q, None)),
        (ValueError, "D", lambda: subspan.sparse_scores(Q, short)),
        (TypeError, "D", lambda: subspan.sparse_scores(Q, numpy)),
        (TypeError, "D", lambda: subspan.sparse_scores(Q, D.to(torch.float32))),
    ):
        with pytest.raises(error, match=f"sparse_scores: {name}: expected .*, got "):
            call()


BROKEN: dict[str, Callable[[SparseRows], SparseRows]] = {
    "column too high": lambda r: unchecked(r.indices + 9, r.values, 9, r.offsets),
    "column below 0": lambda r: unchecked(r.indices - 9, r.values, 9, r.offsets),
    "offsets too long": lambda r: unchecked(r.indices, r.values, 9, r.offsets + 1),
    "offsets that fall": lambda r: unchecked(r.indices, r.values, 9, r.offsets[[0, 3, 1, 2, 4]]),
    "offsets below 0": lambda r: unchecked(r.indices, r.values, 9, torch.tensor([0, -(2**40), 3, 6, 12])),
    "offsets far away": lambda r: unchecked(r.indices, r.values, 9, torch.tensor([0, 2**40, 2**41, 6, 12])),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("side", ["Q", "D"])
def test_what_a_container_would_have_refused_is_not_read_out_of_bounds(case: str, side: str) -> None:
    """Arrays may change after the container has looked at them."""
    good = rows(29, 4, 9, 3).to_csr()
    bad = BROKEN[case](good)
    with pytest.raises(ValueError, match=f"sparse_scores: {side}: expected .*, got "):
        subspan.sparse_scores(*((bad, good) if side == "Q" else (good, bad)))
    upstream, out = torch.ones(4, 4, dtype=DOUBLE), torch.zeros(12, dtype=DOUBLE)
    q, d = (bad, good) if side == "Q" else (good, bad)
    with pytest.raises(ValueError, match=f"sparse_scores: {side}: expected .*, got "):
        cpu.scores_on_support(upstream, d.values, q.indices, d.indices, q.offsets, d.offsets, out, 9, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_value_shows_in_its_row_alone(value: float) -> None:
    Q, D = rows(30, 6, 12, 4), rows(31, 7, 12, 4)
    clean = subspan.sparse_scores(Q, D)
    values = Q.values.clone()
    values[2, 1] = value
    found = subspan.sparse_scores(SparseRows(Q.indices, values, 12), D)
    others = torch.arange(6) != 2
    assert torch.equal(found[others], clean[others])
    shares = (D.indices == Q.indices[2, 1]).any(-1)
    assert shares.any() and not found[2][shares].isfinite().any() and torch.equal(found[2][~shares], clean[2][~shares])
