"""The container SparseRows, and the choice of the k largest entries beyond the op table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import subspan
from sample_arrays import normal
from subspan import SparseRows
from subspan.composite import sparse_topk as composite
from subspan.reference import sparse as reference

DOUBLE = torch.float64
# Torch warns of its own compressed tensors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
]


def dense_matrix(seed: int = 1) -> torch.Tensor:
    """With an empty row, an empty column and a full row."""
    x = normal(seed, 6, 9)
    x[torch.from_numpy(np.random.default_rng(seed).random((6, 9)) < 0.6)] = 0
    x[2], x[:, 4], x[5] = 0, 0, 1.5
    return x


def fixed(dtype: torch.dtype = DOUBLE) -> SparseRows:
    """With a column twice in a row, and an entry of 0."""
    indices = torch.tensor([[2, 0, 2], [1, 4, 3]], dtype=torch.int32)
    return SparseRows(indices, torch.tensor([[1.0, 2.0, 3.0], [4.0, 0.0, 5.0]], dtype=dtype), 5)


FIXED_DENSE = [[2.0, 0.0, 4.0, 0.0, 0.0], [0.0, 4.0, 0.0, 5.0, 0.0]]


# --- the container ---


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.float16, torch.bfloat16], ids=str)
def test_dense_and_back(dtype: torch.dtype) -> None:
    x = dense_matrix().to(dtype)
    rows = SparseRows.from_dense(x)
    assert rows.shape == (6, 9) and rows.entries == int((x != 0).sum()) and rows.dtype == dtype
    assert torch.equal(rows.to_dense(), x)
    if dtype != torch.bfloat16:
        own = SparseRows.from_dense(x.numpy())
        assert isinstance(own.values, np.ndarray) and np.array_equal(own.to_dense(), x.numpy())
        for ours, torchs in ((own.indices, rows.indices), (own.offsets, rows.offsets), (own.values, rows.values)):
            assert np.array_equal(ours, torchs.numpy())


def test_repeated_columns_add_up() -> None:
    for rows in (fixed(), fixed().to_csr()):
        assert rows.to_dense().tolist() == FIXED_DENSE
        numpy = SparseRows(
            rows.indices.numpy(), rows.values.numpy(), 5, None if rows.offsets is None else rows.offsets.numpy()
        )
        assert numpy.to_dense().tolist() == FIXED_DENSE
        assert rows.to_scipy().toarray().tolist() == numpy.to_scipy().toarray().tolist() == FIXED_DENSE
        assert rows.row_of_entries().tolist() == numpy.row_of_entries().tolist() == [0, 0, 0, 1, 1, 1]
        for layout in ("csr", "coo"):
            assert rows.to_torch(layout).to_dense().tolist() == FIXED_DENSE
            assert numpy.to_torch(layout).to_dense().tolist() == FIXED_DENSE


@pytest.mark.parametrize("kind", ["csr", "csc", "coo"])
def test_scipy(kind: str) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    x = dense_matrix().numpy()
    for make in (getattr(sparse, f"{kind}_matrix"), getattr(sparse, f"{kind}_array")):
        rows = SparseRows.from_scipy(make(x))
        assert np.array_equal(rows.to_dense(), x)
        back = rows.to_scipy()
        assert back.format == "csr" and np.array_equal(back.toarray(), x)


def test_torch_layouts() -> None:
    x = dense_matrix()
    for tensor in (x.to_sparse(), x.to_sparse_csr(), x.to_sparse_csc().to_sparse_coo()):
        rows = SparseRows.from_torch(tensor)
        assert torch.equal(rows.to_dense(), x)
        assert torch.equal(rows.to_torch("csr").to_dense(), x) and torch.equal(rows.to_torch("coo").to_dense(), x)
    twice = torch.sparse_coo_tensor(torch.tensor([[1, 0, 1], [2, 0, 2]]), torch.tensor([1.0, 2.0, 3.0]), (2, 3))
    assert SparseRows.from_torch(twice).to_dense().tolist() == [[2.0, 0.0, 0.0], [0.0, 0.0, 4.0]]


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_what_scipy_does_to_its_matrix_leaves_the_rows_alone(library: str) -> None:
    pytest.importorskip("scipy.sparse")
    x = np.array([[1.0, 3.0, 2.0], [0.0, -1.0, 5.0]])
    rows = subspan.topk_rows(x if library == "numpy" else torch.from_numpy(x), 3, relu=False)
    matrix = rows.to_scipy()
    matrix.sort_indices()
    matrix *= 2
    np.testing.assert_array_equal(np.asarray(rows.to_dense()), x)
    np.testing.assert_array_equal(matrix.toarray(), 2 * x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scipy_holds_half_precision_in_single(dtype: torch.dtype) -> None:
    pytest.importorskip("scipy.sparse")
    x = torch.tensor([[0.0, 1.5], [2.0, 0.0]], dtype=dtype)
    matrix = SparseRows.from_dense(x).to_scipy()
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix.toarray(), x.float().numpy())


def test_csr_of_torch_has_rising_columns() -> None:
    """Without them torch multiplies entries of different columns."""
    values = torch.tensor([[1.0, 2.0, 4.0, 8.0], [3.0, 5.0, 0.0, 7.0]], requires_grad=True)
    rows = SparseRows(torch.tensor([[2, 0, 2, 1], [1, 1, 3, 0]]), values, 4)
    csr = rows.to_torch()
    torch.sparse_csr_tensor(csr.crow_indices(), csr.col_indices(), csr.values(), csr.shape, check_invariants=True)
    torch.testing.assert_close(csr.to_dense(), rows.to_dense())
    other = subspan.topk_rows(torch.tensor([[5.0, 6.0, 7.0, 1.0], [1.0, 2.0, 3.0, 4.0]]), 4)
    product = (csr.detach() * other.to_torch()).to_dense()
    torch.testing.assert_close(product, rows.to_dense().detach() * other.to_dense())
    csr.values().square().sum().backward()
    expected = torch.autograd.grad(rows.to_dense().square().sum(), values)[0]
    torch.testing.assert_close(values.grad, expected)


def test_values_are_differentiable_through_the_container() -> None:
    x = dense_matrix().requires_grad_()
    upstream = normal(2, 6, 9)
    (grad,) = torch.autograd.grad(SparseRows.from_dense(x).to_dense(), x, upstream)
    assert torch.equal(grad, torch.where(x != 0, upstream, 0.0))
    for rows in (fixed(), fixed().to_csr()):
        values = rows.values.clone().requires_grad_()

        def dense(v: torch.Tensor, rows: SparseRows = rows) -> Any:
            return SparseRows(rows.indices, v, 5, rows.offsets).to_dense()

        assert torch.autograd.gradcheck(dense, values) and torch.autograd.gradgradcheck(dense, values)
    assert not SparseRows.from_dense(x).detach().values.requires_grad


def test_types_and_devices() -> None:
    for rows in (fixed(), fixed().to_csr()):
        half = rows.to(torch.bfloat16)
        assert half.values.dtype == torch.bfloat16 and half.indices.dtype == torch.int32
        meta = rows.to("meta")
        assert meta.values.is_meta and meta.indices.is_meta and meta.shape == (2, 5)
        assert rows.offsets is None or meta.offsets.is_meta
    with pytest.raises(TypeError, match=r"SparseRows\.to: values: expected torch tensors, got ndarray"):
        SparseRows.from_dense(np.eye(2)).to("cpu")


def test_transforms_look_into_it() -> None:
    x = normal(3, 4, 3, 6)
    rows = torch.vmap(lambda t: subspan.topk_rows(t, 2))(x)
    assert isinstance(rows, SparseRows) and rows.shape == (4, 3, 6)
    assert torch.equal(rows.to_dense(), subspan.topk_rows(x, 2).to_dense())
    dense = torch.vmap(lambda r: r.to_dense())(rows)
    assert torch.equal(dense, rows.to_dense())
    leaves, spec = torch.utils._pytree.tree_flatten(fixed().to_csr())
    again = torch.utils._pytree.tree_unflatten(leaves, spec)
    assert len(leaves) == 3 and again.to_dense().tolist() == FIXED_DENSE


@pytest.mark.no_sanitizer
@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")
def test_compiled_encoder_returns_it() -> None:
    W, x = normal(4, 8, 5).requires_grad_(), normal(5, 3, 5)

    def encode(x: torch.Tensor, W: torch.Tensor) -> SparseRows:
        return subspan.topk_rows(x @ W.mT, 3)

    torch._dynamo.reset()
    found, expected = torch.compile(encode, backend="aot_eager", fullgraph=True)(x, W), encode(x, W)
    assert torch.equal(found.indices, expected.indices) and torch.equal(found.values, expected.values)
    gradients = [torch.autograd.grad(rows.values.square().sum(), W)[0] for rows in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-14, atol=0)
    torch._dynamo.reset()


COLUMNS, VALUES = np.array([[0, 1]]), np.array([[1.0, 2.0]])
BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "list": (lambda: SparseRows([[0]], [[1.0]], 2), TypeError, "values"),
    "list of columns": (lambda: SparseRows([[0, 1]], VALUES, 2), TypeError, "indices"),
    "two libraries": (lambda: SparseRows(COLUMNS, torch.from_numpy(VALUES), 2), TypeError, "indices"),
    "integer values": (lambda: SparseRows(COLUMNS, COLUMNS, 2), TypeError, "values"),
    "small integers": (lambda: SparseRows(COLUMNS.astype(np.int16), VALUES, 2), TypeError, "indices"),
    "shapes": (lambda: SparseRows(COLUMNS.T, VALUES, 2), ValueError, "indices"),
    "one dimension": (lambda: SparseRows(COLUMNS[0], VALUES[0], 2), ValueError, "values"),
    "no columns": (lambda: SparseRows(COLUMNS, VALUES, 0), ValueError, "columns"),
    "column too high": (lambda: SparseRows(COLUMNS, VALUES, 1), ValueError, "indices"),
    "column below 0": (
        lambda: SparseRows(torch.from_numpy(COLUMNS - 1), torch.from_numpy(VALUES), 2),
        ValueError,
        "indices",
    ),
    "offsets of matrices": (lambda: SparseRows(COLUMNS, VALUES, 2, COLUMNS[0]), ValueError, "offsets"),
    "offsets of floats": (lambda: SparseRows(COLUMNS[0], VALUES[0], 2, VALUES[0]), TypeError, "offsets"),
    "offsets too short": (lambda: SparseRows(COLUMNS[0], VALUES[0], 2, np.array([0, 1])), ValueError, "offsets"),
    "offsets from 1": (lambda: SparseRows(COLUMNS[0], VALUES[0], 2, np.array([1, 2])), ValueError, "offsets"),
    "offsets that fall": (lambda: SparseRows(COLUMNS[0], VALUES[0], 2, np.array([0, 2, 1, 2])), ValueError, "offsets"),
    "no offsets": (lambda: SparseRows(COLUMNS[0], VALUES[0], 2, COLUMNS[0, :0]), ValueError, "offsets"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_parts(case: str) -> None:
    make, error, name = BAD[case]
    with pytest.raises(error, match=f"SparseRows: {name}: expected .*, got "):
        make()


def test_bad_sources() -> None:
    for error, name, call in (
        (TypeError, "from_dense: dense", lambda: SparseRows.from_dense([[1.0]])),
        (ValueError, "from_dense: dense", lambda: SparseRows.from_dense(np.ones((2, 2, 2)))),
        (ValueError, "from_dense: dense", lambda: SparseRows.from_dense(np.ones((2, 0)))),
        (TypeError, "from_scipy: matrix", lambda: SparseRows.from_scipy(np.ones((2, 2)))),
        (TypeError, "from_torch: tensor", lambda: SparseRows.from_torch(torch.ones(2, 2))),
        (ValueError, "from_torch: tensor", lambda: SparseRows.from_torch(torch.ones(2, 2, 2).to_sparse())),
        (ValueError, "to_torch: layout", lambda: fixed().to_torch("csc")),
    ):
        with pytest.raises(error, match=rf"SparseRows\.{name}: expected .*, got "):
            call()


def test_scipy_vectors_are_refused() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    if not hasattr(sparse, "coo_array") or sparse.coo_array(np.ones(3)).ndim != 1:
        pytest.skip("this scipy has no sparse vectors")
    with pytest.raises(ValueError, match=r"SparseRows\.from_scipy: matrix: expected .*, got "):
        SparseRows.from_scipy(sparse.coo_array(np.ones(3)))


# --- the k largest ---


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize("by", ["value", "abs"])
def test_equal_entries_infinities_zeros_and_nan_have_their_order(by: str, dtype: torch.dtype) -> None:
    """On every path: with many equal entries at the bound, fewer than k above it, all equal, zeros of both signs."""
    generator = np.random.default_rng(1)
    for columns in (5, 37, 640, 3000):
        for k in {1, 3, columns // 3, columns}:
            few = generator.integers(-3, 4, (6, columns)).astype(float)
            few[1] = 0
            few[1, ::2] = -0.0
            few[2] = -1
            few[2, -1] = 5
            few[3, ::3] = np.inf
            few[3, 1::3] = -np.inf
            few[4, columns // 2] = np.nan
            few[5, -1] = -np.nan
            x = torch.from_numpy(few).to(dtype)
            values, order = reference.topk_rows(few, max(k, 1), by, relu=False)
            for rows in (
                subspan.topk_rows(x, max(k, 1), by, relu=False),
                subspan.topk_rows(x.mT.contiguous().mT, max(k, 1), by, relu=False),
            ):
                assert np.array_equal(rows.indices.numpy(), order)
                assert np.array_equal(rows.values.numpy(), values, equal_nan=True)
            composite = pytest.importorskip("subspan.composite.sparse_topk")
            assert np.array_equal(composite.topk_rows(x, max(k, 1), by == "abs", False)[1].numpy(), order)


def test_large_entries_side_by_side_are_all_found() -> None:
    """They lie in few groups of columns, whose maxima say little about the k-th largest."""
    x = -normal(6, 3, 5000).abs()
    x[:, 128:640] += 100
    for k in (8, 60, 200):
        values, order = reference.topk_rows(x.numpy(), k)
        rows = subspan.topk_rows(x, k)
        assert np.array_equal(rows.indices.numpy(), order) and np.array_equal(rows.values.numpy(), values)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_relu_gives_zero_without_a_sign(dtype: torch.dtype) -> None:
    x = torch.tensor([[-0.0, -1.0, 2.0, -0.0, 0.0]], dtype=dtype)
    for k, by in ((1, 0), (3, 0), (5, 1)):
        composed = composite.topk_rows(x[..., :2], min(k, 2), by, True)[0]
        values = subspan.topk_rows(x, k, ("value", "abs")[by], relu=True).values
        assert not composed.signbit().any() and not values.signbit().any()


def test_picks_that_relu_cuts_off_get_no_gradient() -> None:
    """Sparsify's encoder passes it on: the rows of an encoder that fire nothing must not move it."""
    W, x = normal(7, 10, 4).requires_grad_(), normal(8, 5, 4)
    bias = torch.zeros(10, dtype=DOUBLE)
    bias[:] = -100
    rows = subspan.topk_rows(x @ W.mT + bias, 3)
    assert not rows.values.any()
    assert not torch.autograd.grad(rows.values.sum(), W)[0].any()
    kept = subspan.topk_rows(x @ W.mT + bias, 3, relu=False)
    assert torch.autograd.grad(kept.values.sum(), W)[0].any()


def test_auxiliary_picks_move_the_encoder() -> None:
    """Two choices from one pre-activation, as in losses with 4 k or dead features: both give it gradient."""
    x = normal(9, 4, 30).requires_grad_()
    few, many = subspan.topk_rows(x, 3), subspan.topk_rows(x, 12)
    one, other = (torch.autograd.grad(rows.values.sum(), x, retain_graph=True)[0] for rows in (few, many))
    (both,) = torch.autograd.grad(few.values.sum() + many.values.sum(), x)
    assert torch.equal(both, one + other) and (other != 0).sum() > (one != 0).sum() > 0
