"""Products with sparse rows beyond the op table: CSR, types that meet, ways in which the gradient in the weights comes,
sums of many entries, and what the kernels check themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import subspan
from sample_arrays import classes, normal
from subspan import SparseRows
from subspan.sparse_rows import unchecked

DOUBLE = torch.float64
COUNTS = [0, 2, 0, 0, 5, 1, 70, 0]  # entries of the rows of CSR; more than are summed up at a time


def csr(dtype: torch.dtype = DOUBLE, columns: int = 9, counts: list[int] = COUNTS) -> SparseRows:
    offsets = torch.tensor([0, *np.cumsum(counts)])
    entries = sum(counts)
    return SparseRows(classes(1, entries, k=columns), normal(2, entries, dtype=dtype), columns, offsets)


def fixed(*shape: int, columns: int, dtype: torch.dtype = DOUBLE, seed: int = 3) -> SparseRows:
    return SparseRows(classes(seed, *shape, k=columns), normal(seed + 1, *shape, dtype=dtype), columns)


def with_values(S: SparseRows, values: Any) -> SparseRows:
    return unchecked(S.indices, values, S.columns, S.offsets)


def dense_gradients(S: SparseRows, W: torch.Tensor, upstream: torch.Tensor, **options: Any) -> Any:
    """Of the values and W, and W's own afterwards."""
    values, W = S.values.detach().clone().requires_grad_(), W.detach().clone().requires_grad_()
    subspan.sparse_decode(with_values(S, values), W, **options).backward(upstream)
    return values.grad, W.grad


# --- CSR ---


def test_csr_is_the_dense_product() -> None:
    S, W, G = csr(), normal(5, 9, 6), normal(6, 8, 6)
    dense = S.to_dense()
    torch.testing.assert_close(subspan.sparse_decode(S, W, W[0]), dense @ W + W[0], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(subspan.sparse_t_dense(S, G), dense.mT @ G, rtol=1e-13, atol=1e-13)
    P = subspan.sddmm(G, W, S)
    assert P.offsets is S.offsets and P.indices is S.indices and P.columns == 9
    expected = (G @ W.mT)[S.row_of_entries(), S.indices]
    torch.testing.assert_close(P.values, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("offset", [torch.int32, torch.int64], ids=str)
def test_layouts_index_types_and_libraries_give_the_same_bits(index: torch.dtype, offset: torch.dtype) -> None:
    S, W, G = fixed(7, 5, columns=4), normal(5, 4, 6), normal(6, 7, 6)
    own = S.to_csr()
    gaps = torch.full((3 * len(own.indices),), 10**6, dtype=index)
    gaps[::3] = own.indices
    other = SparseRows(
        gaps[::3], own.values.repeat_interleave(2)[::2], 4, own.offsets.to(offset).repeat_interleave(2)[::2]
    )
    assert other.indices.stride() == (3,) and other.offsets.stride() == (2,)
    numpy = SparseRows(
        *(a.numpy() if isinstance(a, torch.Tensor) else a for a in (other.indices, other.values, 4)),
        other.offsets.numpy(),
    )
    for rows, convert in ((other, lambda t: t), (numpy, lambda t: t.numpy())):
        pairs = (
            (subspan.sparse_decode(rows, convert(W)), subspan.sparse_decode(S, W)),
            (subspan.sddmm(convert(G), convert(W), rows).values, subspan.sddmm(G, W, S).values.reshape(-1)),
            (subspan.sparse_t_dense(rows, convert(G)), subspan.sparse_t_dense(S, G)),
        )
        for found, expected in pairs:
            assert isinstance(found, type(convert(W))) and torch.equal(torch.as_tensor(found), expected)


CSR_POINTS = {
    "empty rows": [0, 2, 0, 3, 1, 0],
    "no entries": [0, 0, 0],
    "no rows": [],
    "one entry": [1],
    "more entries than columns": [7, 0, 9],
}


@pytest.mark.parametrize("point", CSR_POINTS)
def test_csr_derivatives(point: str) -> None:
    S = csr(columns=3, counts=CSR_POINTS[point])
    n = S.shape[0]
    W, G, bias = ((0 + normal(seed, *shape)).requires_grad_() for seed, shape in ((7, (3, 2)), (8, (n, 2)), (9, (2,))))
    values = (0 + S.values).requires_grad_()  # empty arrays of NumPy have strides of 0, which gradcheck refuses
    functions: list[tuple[Callable[..., Any], Any]] = [
        (lambda v, W, b: subspan.sparse_decode(with_values(S, v), W, b), (values, W, bias)),
        (lambda G, W: subspan.sddmm(G, W, S).values, (G, W)),
        (lambda v, G: subspan.sparse_t_dense(with_values(S, v), G), (values, G)),
    ]
    for function, inputs in functions:
        assert torch.autograd.gradcheck(function, inputs, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.no_sanitizer
@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")
def test_csr_under_compile() -> None:
    S, W, G = csr(), normal(5, 9, 6).requires_grad_(), normal(6, 8, 6)

    def products(v: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
        rows = with_values(S, v)
        out = subspan.sparse_decode(rows, W, W[0])
        return (out * G).sum() + subspan.sddmm(out, W, rows).values.sum() + subspan.sparse_t_dense(rows, out).sum()

    torch._dynamo.reset()
    values = S.values.clone().requires_grad_()
    compiled = torch.compile(products, backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(compiled(values, W), (values, W))
    expected = torch.autograd.grad(products(values, W), (values, W))
    torch._dynamo.reset()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_csr_under_vmap() -> None:
    S, W = csr(), normal(5, 9, 6)
    many = torch.stack([S.values, 2 * S.values, S.values.flip(0)])
    mapped = torch.vmap(lambda v: subspan.sparse_decode(with_values(S, v), W))(many)
    for i in range(3):
        assert torch.equal(mapped[i], subspan.sparse_decode(with_values(S, many[i]), W))
    summed = torch.vmap(torch.func.grad(lambda v: subspan.sparse_decode(with_values(S, v), W).square().sum()))(many)
    for i in range(3):
        v = many[i].clone().requires_grad_()
        (expected,) = torch.autograd.grad(subspan.sparse_decode(with_values(S, v), W).square().sum(), v)
        torch.testing.assert_close(summed[i], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["W", "G", "bias"])
def test_csr_has_no_batch(name: str) -> None:
    S, W, G = csr(), normal(5, 9, 6), normal(6, 8, 6)
    calls = {
        "W": lambda: subspan.sparse_decode(S, W[None]),
        "G": lambda: subspan.sparse_t_dense(S, G[None]),
        "bias": lambda: subspan.sparse_decode(S, W, W[:1]),
    }
    with pytest.raises(ValueError, match=rf"sparse_\w+: {name}: expected . dimensions? with rows in CSR, got shape"):
        calls[name]()


@pytest.mark.parametrize("call", [subspan.sparse_decode, subspan.sparse_t_dense, lambda S, W: subspan.sddmm(W, W, S)])
def test_only_sparse_rows(call: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"\w+: S: expected SparseRows, got (Tensor|tuple)"):
        call(torch.eye(3), torch.eye(3))
    with pytest.raises(TypeError, match=r"\w+: S: expected SparseRows, got tuple"):
        call((torch.eye(3), torch.eye(3)), torch.eye(3))


# --- what the kernels check themselves: arrays that were changed after SparseRows looked at them ---


@pytest.mark.parametrize("column", [-1, 4, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("layout", ["fixed", "csr"])
def test_columns_out_of_range_are_refused_by_the_kernels(column: int, layout: str) -> None:
    indices, values, W, G = np.zeros((300, 70), np.int32), np.ones((300, 70)), np.ones((4, 3)), np.ones((300, 3))
    S = SparseRows(indices, values, 4)
    if layout == "csr":
        S = SparseRows(indices.reshape(-1), values.reshape(-1), 4, 70 * np.arange(301))
    indices[290, 66] = column
    for call in (
        lambda: subspan.sparse_decode(S, W),
        lambda: subspan.sddmm(G, W, S),
        lambda: subspan.sparse_t_dense(S, G),
    ):
        with pytest.raises(ValueError, match=rf"^\w+: S: expected indices in 0 \.\.\. 3, got {column}$"):
            call()


@pytest.mark.parametrize("changed", [(0, 1), (2, -5), (2, 100), (3, 0), (-1, 5), (-1, 100), (1, 2**40)])
def test_offsets_that_do_not_rise_are_refused_by_the_kernels(changed: tuple[int, int]) -> None:
    offsets = np.array([0, 1, 2, 4, 6])
    S = SparseRows(np.zeros(6, np.int64), np.ones(6), 2, offsets)
    offsets[changed[0]] = changed[1]
    for call in (
        lambda: subspan.sparse_decode(S, np.ones((2, 3))),
        lambda: subspan.sddmm(np.ones((4, 3)), np.ones((2, 3)), S),
        lambda: subspan.sparse_t_dense(S, np.ones((4, 3))),
    ):
        with pytest.raises(ValueError, match=r"^\w+: S: expected offsets "):
            call()


def test_columns_that_change_before_the_backward_pass_are_refused() -> None:
    memory = np.zeros((3, 2), np.int64)
    indices, values = torch.from_numpy(memory), torch.ones(3, 2, requires_grad=True)
    for way in ("dense", "rows", "accumulate"):
        W = torch.ones(4, 5, requires_grad=True)
        memory[1, 1] = 0
        out = subspan.sparse_decode(SparseRows(indices, values, 4), W, weight_grad=way)
        memory[1, 1] = 9
        with pytest.raises(ValueError, match=r"sparse_decode: S: expected indices in 0 \.\.\. 3, got 9"):
            out.sum().backward()


# --- types ---


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_meets_single(half: torch.dtype) -> None:
    """Codes in float32 and a decoder in half precision, and the other way round: computed as in float32."""
    S, W, bias = fixed(6, 3, columns=5, dtype=torch.float32), normal(5, 5, 20, dtype=half), normal(6, 20, dtype=half)
    upstream = normal(7, 6, 20, dtype=torch.float32)
    out = subspan.sparse_decode(S, W, bias)
    assert out.dtype == torch.float32 and torch.equal(out, subspan.sparse_decode(S, W.float(), bias.float()))
    found, expected = dense_gradients(S, W, upstream), dense_gradients(S, W.float(), upstream)
    assert found[0].dtype == torch.float32 and torch.equal(found[0], expected[0])
    assert found[1].dtype == half and torch.equal(found[1], expected[1].to(half))
    low = S.to(half)
    assert torch.equal(subspan.sparse_decode(low, W.float()), subspan.sparse_decode(low.to(torch.float32), W.float()))
    assert dense_gradients(low, W.float(), upstream)[0].dtype == half


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_are_rounded_to_half_precision_as_torch_does(half: torch.dtype) -> None:
    """Of one entry in each column the gradient in W is the upstream gradient: ties, tiny, huge and special numbers."""
    bits = np.random.default_rng(1).integers(0, 2**32, (40, 64), dtype=np.uint32)
    bits[0, :10] = [0, 1 << 31, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00001, 1, 0x7F7FFFFF, 0x477FF000, 0x477FEFFF]
    exponents = np.arange(90, 145, dtype=np.uint32)[:40, None] << 23
    bits[1:20] = exponents[1:20] | (np.arange(64, dtype=np.uint32)[None] << 12)  # ties of float16, many subnormal
    bits[20:30] = exponents[20:30] | (np.arange(64, dtype=np.uint32)[None] << 15)  # of bfloat16
    upstream = torch.from_numpy(bits.view(np.float32).copy())
    S = SparseRows(torch.arange(40)[:, None], torch.ones(40, 1), 40)
    gradient = dense_gradients(S, torch.zeros(40, 64, dtype=half), upstream)[1]
    expected = upstream.to(half)
    assert torch.equal(gradient.isnan(), expected.isnan()) and expected.isnan().any() and expected.isinf().any()
    same = (gradient == expected) | expected.isnan()
    assert same.all(), upstream[~same]
    signed = ~expected.isnan() & (upstream != 0)  # a sum that begins with 0 does not end as -0
    assert torch.equal(gradient.signbit()[signed], expected.signbit()[signed])


# --- the gradient in the weights ---


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["fixed", "csr"])
def test_rows_of_the_gradient(dtype: torch.dtype, layout: str) -> None:
    S = fixed(8, 3, columns=40, dtype=dtype) if layout == "fixed" else csr(dtype, 500)
    W, upstream = (
        normal(5, S.columns, 17, dtype=dtype),
        normal(6, 8, 17, dtype=torch.promote_types(dtype, torch.float32)),
    )
    values, dense = dense_gradients(S, W, upstream)
    own, without_flag = dense_gradients(S, W, upstream, weight_grad="rows")  # autograd drops that it is coalesced
    used, rows = S.indices.unique(), without_flag.coalesce()
    assert torch.equal(without_flag._indices(), rows.indices()), "not sorted and unique as it came"
    assert rows.layout is torch.sparse_coo and rows.shape == W.shape and rows.dtype == dtype
    assert torch.equal(rows.indices()[0], used) and torch.equal(rows.values(), dense[used])
    assert torch.equal(own, values) and torch.equal(rows.to_dense(), dense)
    leaf = W.clone().requires_grad_()
    assert torch.autograd.grad(subspan.sparse_decode(S, leaf, weight_grad="rows"), leaf, upstream)[0].is_coalesced()
    torch.sparse_coo_tensor(rows.indices(), rows.values(), rows.shape, check_invariants=True)


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["fixed", "csr"])
def test_accumulated_gradient(dtype: torch.dtype, layout: str) -> None:
    S = fixed(8, 3, columns=40, dtype=dtype) if layout == "fixed" else csr(dtype, 500)
    upstream = normal(6, 8, 17, dtype=torch.promote_types(dtype, torch.float32))
    W = normal(5, S.columns, 17, dtype=dtype).requires_grad_()
    expected = dense_gradients(S, W, upstream)
    values = S.values.clone().requires_grad_()
    rows = with_values(S, values)
    subspan.sparse_decode(rows, W, weight_grad="accumulate").backward(upstream)
    assert torch.equal(values.grad, expected[0]) and torch.equal(W.grad, expected[1])
    grad, version = W.grad, W.grad._version
    grad.copy_(normal(7, *grad.shape, dtype=dtype))
    before = grad.clone()
    subspan.sparse_decode(rows, W, weight_grad="accumulate").backward(upstream)
    assert W.grad is grad and grad._version > version + 1
    total = (
        before.double()
        + dense_gradients(
            with_values(S, S.values.float() if dtype == torch.bfloat16 else S.values),
            W.float() if dtype == torch.bfloat16 else W,
            upstream,
        )[1].double()
    )
    torch.testing.assert_close(grad.double(), total, rtol=2 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)
    unused = torch.ones(S.columns, dtype=torch.bool)
    unused[S.indices.reshape(-1).long()] = False
    assert unused.any() and torch.equal(grad[unused], before[unused])


@pytest.mark.parametrize("way", ["rows", "accumulate"])
def test_only_what_is_asked_for(way: str) -> None:
    S, upstream = fixed(5, 3, columns=7), normal(6, 5, 4)
    W, bias = normal(5, 7, 4).requires_grad_(), normal(8, 4).requires_grad_()
    expected = dense_gradients(S, W, upstream)
    subspan.sparse_decode(S, W, bias, weight_grad=way).backward(upstream)
    assert torch.equal(W.grad.to_dense(), expected[1])
    torch.testing.assert_close(bias.grad, upstream.sum(0))
    values = S.values.clone().requires_grad_()
    out = subspan.sparse_decode(with_values(S, values), W.detach(), weight_grad=way)
    assert torch.equal(torch.autograd.grad(out, values, upstream)[0], expected[0])
    with torch.no_grad():
        assert not subspan.sparse_decode(S, W, weight_grad=way).requires_grad
    numpy = SparseRows(S.indices.numpy(), S.values.numpy(), 7)
    assert isinstance(subspan.sparse_decode(numpy, W.detach().numpy(), weight_grad=way), np.ndarray)


@pytest.mark.parametrize("way", ["rows", "accumulate"])
def test_batches_share_one_gradient(way: str) -> None:
    S, W, upstream = fixed(2, 3, 4, 3, columns=7), normal(5, 7, 6), normal(6, 2, 3, 4, 6)
    expected = dense_gradients(S, W, upstream)
    values, gradient = dense_gradients(S, W, upstream, weight_grad=way)
    assert torch.equal(values, expected[0]) and torch.equal(gradient.to_dense(), expected[1])


def test_accumulated_gradient_beside_another_use_of_the_weights() -> None:
    """Tied weights: the encoder's gradient comes through autograd, before or after that of the decoder."""
    x = normal(1, 6, 5)
    W, other = (normal(2, 9, 5).requires_grad_() for _ in range(2))
    for weights, way in ((W, "accumulate"), (other, "dense")):
        codes = subspan.topk_rows(x @ weights.mT, 3)
        (subspan.sparse_decode(codes, weights, weight_grad=way) - x).square().sum().backward()
    torch.testing.assert_close(W.grad, other.grad, rtol=1e-13, atol=1e-13)


def test_accumulated_gradient_of_any_layout() -> None:
    S, upstream = fixed(5, 3, columns=7), normal(6, 5, 4)
    W = normal(5, 7, 4).mT.contiguous().mT.requires_grad_()
    W.grad = torch.ones(4, 7, dtype=DOUBLE).mT
    grad = W.grad
    subspan.sparse_decode(S, W, weight_grad="accumulate").backward(upstream)
    assert W.grad is grad
    torch.testing.assert_close(grad, 1 + dense_gradients(S, W, upstream)[1], rtol=1e-13, atol=1e-13)


def test_sparse_optimizer_takes_the_rows() -> None:
    S, W = fixed(5, 3, columns=70), torch.nn.Parameter(normal(5, 70, 4))
    before = W.detach().clone()
    subspan.sparse_decode(S, W, weight_grad="rows").square().sum().backward()
    torch.optim.SparseAdam([W], lr=0.1).step()
    moved = (W.detach() != before).any(-1)
    assert torch.equal(moved.nonzero()[:, 0], S.indices.unique())


@pytest.mark.parametrize("way", ["rows", "accumulate"])
@pytest.mark.no_sanitizer
@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")
def test_limits_of_other_gradients(way: str) -> None:
    S, W = fixed(5, 3, columns=7), normal(5, 7, 4).requires_grad_()
    expected = "expected 'dense' "

    def loss(W: torch.Tensor) -> Any:
        return subspan.sparse_decode(S, W, weight_grad=way).square().sum()

    with pytest.raises(NotImplementedError, match=f"weight_grad: {expected}for second derivatives, got '{way}'"):
        torch.autograd.grad(loss(W), W, create_graph=True)
    with pytest.raises(NotImplementedError, match=f"weight_grad: {expected}under .*, got '{way}'"):
        torch.func.grad(loss)(W.detach())
    with pytest.raises(Exception, match="weight_grad"):
        torch.compile(loss, backend="aot_eager", fullgraph=True)(W)
    torch._dynamo.reset()
    with pytest.raises(ValueError, match=rf"weight_grad: {expected}where W \(1, 7, 4\).*, got '{way}'"):
        subspan.sparse_decode(S, W[None], weight_grad=way)
    with pytest.raises(ValueError, match="sparse_decode: weight_grad: expected one of 'dense', 'rows', 'accumulate'"):
        subspan.sparse_decode(S, W, weight_grad="sparse")


def test_limits_of_accumulation() -> None:
    S, W = fixed(5, 3, columns=7), normal(5, 7, 4).requires_grad_()
    with pytest.raises(
        ValueError, match=r"sparse_decode: W: expected a leaf tensor .*, got the result of .*MulBackward"
    ):
        subspan.sparse_decode(S, 2 * W, weight_grad="accumulate")
    W.grad = torch.zeros(7, 4, dtype=DOUBLE).to_sparse()
    with pytest.raises(ValueError, match=r"sparse_decode: W: expected a dense W\.grad .*got layout torch.sparse_coo"):
        subspan.sparse_decode(S, W, weight_grad="accumulate").sum().backward()


# --- long sums, large results ---


def test_sum_of_many_entries_is_as_good_as_torchs() -> None:
    n = 20000
    S = SparseRows(torch.zeros(n, 1, dtype=torch.int64), torch.rand(n, 1), 1)
    G = torch.rand(n, 33)
    exact = (S.values.double() * G.double()).sum(0)
    error = (subspan.sparse_t_dense(S, G)[0] - exact).abs().max()
    torchs = (torch.zeros(1, 33).index_add(0, S.indices[:, 0], S.values * G)[0] - exact).abs().max()
    assert error <= 2 * torchs
    row = SparseRows(torch.arange(n)[None], S.values.reshape(1, n), n)
    assert (subspan.sparse_decode(row, G)[0] - exact).abs().max() <= 2 * torchs


@pytest.mark.parametrize("width", [1024, 1000, 1019])
def test_large_results(width: int) -> None:
    """Written past the caches where the memory has pages and the rows are whole vectors; also twice, into fresh memory
    and into memory that was given back."""
    S, G, W = fixed(50, 4, columns=2048, dtype=torch.float32), torch.randn(50, width), torch.randn(2048, width)
    expected = S.to_dense().double().mT @ G.double()
    for _ in range(3):
        found = subspan.sparse_t_dense(S, G)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
        values, gradient = dense_gradients(S, W, G)
        assert torch.equal(gradient, found)
        assert torch.equal(values, subspan.sddmm(G, W, S).values)
        del found, gradient


def test_column_that_threads_share_has_the_bits_of_one_thread() -> None:
    """Most entries are of one column: its sum is cut by its entries, and its products by rows."""
    indices = classes(1, 3000, 3, k=50)
    indices[:, 0] = 17
    S = SparseRows(indices, normal(2, 3000, 3, dtype=torch.float32), 50)
    W, G = normal(3, 50, 300, dtype=torch.float32), normal(4, 3000, 300, dtype=torch.float32)
    torch.set_num_threads(1)
    alone = dense_gradients(S, W, G)
    rows = dense_gradients(S, W, G, weight_grad="rows")
    for threads in (2, 5, 16):
        torch.set_num_threads(threads)
        for found, expected in zip(dense_gradients(S, W, G), alone, strict=True):
            assert torch.equal(found, expected)
        for found, expected in zip(dense_gradients(S, W, G, weight_grad="rows"), rows, strict=True):
            assert torch.equal(found.to_dense(), expected.to_dense())
        accumulated = dense_gradients(S, W.bfloat16(), G, weight_grad="accumulate")[1]
        assert torch.equal(accumulated, dense_gradients(S, W.bfloat16(), G)[1])


# --- as a decoder ---


def test_autoencoder_is_the_dense_one() -> None:
    """Encoder, choice, decoder and bias, and gradients of all: as with codes that are a dense matrix."""
    x, gradients = normal(1, 4, 6, 8), []
    for dense in (False, True):
        E, D, bias = (normal(s, *shape).requires_grad_() for s, shape in ((2, (8, 30)), (3, (30, 8)), (4, (8,))))
        codes = subspan.topk_rows((x - bias) @ E, 5)
        out = codes.to_dense() @ D + bias if dense else subspan.sparse_decode(codes, D, bias)
        gradients.append(torch.autograd.grad((out - x).square().mean(), (E, D, bias)))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_result_may_be_changed_in_place() -> None:
    """It is not saved for the backward pass."""
    S, W = fixed(5, 3, columns=7), normal(5, 7, 4).requires_grad_()
    out = subspan.sparse_decode(S, W)
    out.mul_(2).sum().backward()
    assert torch.equal(W.grad, dense_gradients(S, W, torch.full((5, 4), 2.0, dtype=DOUBLE))[1])


def test_products_of_one_matrix_with_itself() -> None:
    S, x = fixed(7, 3, columns=7), normal(5, 7, 4).requires_grad_()
    P = subspan.sddmm(x, x, S)
    torch.testing.assert_close(P.values, (x @ x.mT).gather(-1, S.indices), rtol=1e-13, atol=1e-13)
    (found,) = torch.autograd.grad(P.values.sum(), x)
    (expected,) = torch.autograd.grad((x @ x.mT).gather(-1, S.indices).sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
