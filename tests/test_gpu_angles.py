"""What can only be seen on a CUDA device, for the kernels of small decompositions. As test_gpu.py."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from subspan.composite import small_matrices as composite
from test_gpu import DEVICE, every_dtype, kernels, stream

__all__ = ["kernels"]  # a fixture

pytestmark = pytest.mark.gpu
#: One of each range that the launcher tells apart, and its ends.
SHAPES = [(1, 1), (4, 4), (3, 2), (5, 5), (8, 8), (16, 8), (6, 14), (9, 9), (16, 16), (32, 16), (20, 20), (32, 32)]
SHAPES += [(17, 8), (40, 5), (5, 40), (256, 8), (64, 32)]
ORDERS = [1, 4, 5, 8, 9, 16, 17, 32]


def normal(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def symmetric(batch: int, n: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    A = normal(batch, n, n, dtype=dtype, seed=seed)
    return A + A.mT


def new(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """An output with a content that would be noticed."""
    return torch.full(shape, 7, dtype=like.dtype, device=like.device)


def svd_outputs(M: torch.Tensor, vectors: bool) -> tuple[Any, ...]:
    *batch, m, n = M.shape
    k = min(m, n)
    both = (new(M, *batch, m, k), new(M, *batch, k, n)) if vectors else (None, None)
    return new(M, *batch, k), *both, torch.full(batch, 99, dtype=torch.int32, device=M.device)


def small_svd(kernels: Any, M: torch.Tensor, vectors: bool = True) -> tuple[Any, ...]:
    outputs = svd_outputs(M, vectors)
    kernels.small_svd(M, *outputs, stream())
    return outputs


def small_eigh(kernels: Any, A: torch.Tensor, vectors: bool = True) -> tuple[Any, ...]:
    outputs = (
        new(A, *A.shape[:-1]),
        new(A, *A.shape) if vectors else None,
        torch.full(A.shape[:-2], 99, dtype=torch.int32, device=A.device),
    )
    kernels.small_eigh(A, *outputs, stream())
    return outputs


def check_orthonormal(columns: torch.Tensor) -> None:
    """A rounding in each of some 8 k rotations, and of norms of that many rows."""
    rows, k = columns.shape[-2:]
    double, bound = columns.double(), (4 * k + rows**0.5) * torch.finfo(columns.dtype).eps
    assert ((double.mT @ double - torch.eye(k, dtype=torch.float64)).abs() <= bound).all()


def check_svd(result: tuple[Any, ...], M: torch.Tensor) -> None:
    """Errors of size eps times the dimensions, relative to the largest singular value."""
    values, left, right, info = (None if output is None else output.cpu() for output in result)
    eps, exact = torch.finfo(M.dtype).eps, M.cpu().double()
    expected = torch.linalg.svdvals(exact)
    bound = eps * sum(M.shape[-2:]) * expected[..., :1]
    assert ((values.double() - expected).abs() <= bound).all()
    assert (values.diff(dim=-1) <= 0).all() and (values >= 0).all() and (info == 0).all()
    if left is not None:
        check_orthonormal(left)
        check_orthonormal(right.mT)
        product = (left.double() * values.double()[..., None, :]) @ right.double()
        assert ((product - exact).abs() <= bound[..., None]).all()


def check_eigh(result: tuple[Any, ...], A: torch.Tensor) -> None:
    values, vectors, info = (None if output is None else output.cpu() for output in result)
    eps, exact = torch.finfo(A.dtype).eps, A.cpu().double()
    expected = torch.linalg.eigvalsh(exact)
    bound = 2 * eps * A.shape[-1] * expected.abs().amax(-1, keepdim=True)
    assert ((values.double() - expected).abs() <= bound).all()
    assert (values.diff(dim=-1) >= 0).all() and (info == 0).all()
    if vectors is not None:
        check_orthonormal(vectors)
        product = (vectors.double() * values.double()[..., None, :]) @ vectors.double().mT
        assert ((product - exact).abs() <= bound[..., None]).all()


@every_dtype
@pytest.mark.parametrize("vectors", [False, True], ids=["values", "vectors"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_values_of_svd(kernels: Any, shape: tuple[int, int], vectors: bool, dtype: torch.dtype) -> None:
    M = normal(37, *shape, dtype=dtype)
    M[1] = 0
    M[2] = M[2, :, :1] * M[2, :1]
    M[3] = torch.eye(*shape, dtype=dtype, device=DEVICE)
    check_svd(small_svd(kernels, M, vectors), M)


@every_dtype
@pytest.mark.parametrize("vectors", [False, True], ids=["values", "vectors"])
@pytest.mark.parametrize("n", ORDERS)
def test_kernel_values_of_eigh(kernels: Any, n: int, vectors: bool, dtype: torch.dtype) -> None:
    A = symmetric(37, n, dtype)
    A[1] = 0
    A[2] = A[2, :, :1] * A[2, :, :1].mT
    A[3] = torch.eye(n, dtype=dtype, device=DEVICE)
    check_eigh(small_eigh(kernels, A, vectors), A)


@every_dtype
@pytest.mark.parametrize("rank", [1, 8, 32])
def test_largest_size_of_svd(kernels: Any, rank: int, dtype: torch.dtype) -> None:
    length = kernels.small_svd_max_length(dtype.itemsize, rank, 0)
    M = normal(3, length, rank, dtype=dtype)
    check_svd(small_svd(kernels, M), M)
    with pytest.raises(ValueError, match=f"at most {length} .*, got {length + 1}"):
        small_svd(kernels, new(M, length + 1, rank))


@every_dtype
@pytest.mark.parametrize("shape", [(3, 4), (8, 8), (16, 16), (32, 32), (40, 8)], ids=str)
def test_large_batch_of_svd(kernels: Any, shape: tuple[int, int], dtype: torch.dtype) -> None:
    M = normal(200_000 // (shape[0] * shape[1]) + 1, *shape, dtype=dtype)
    check_svd(small_svd(kernels, M), M)


@every_dtype
@pytest.mark.parametrize("n", [4, 8, 16, 32])
def test_large_batch_of_eigh(kernels: Any, n: int, dtype: torch.dtype) -> None:
    A = symmetric(200_000 // (n * n) + 1, n, dtype)
    check_eigh(small_eigh(kernels, A), A)


@every_dtype
@pytest.mark.parametrize("shape", [(4, 4), (8, 8), (12, 20), (40, 6)], ids=str)
def test_layouts_of_decompositions(kernels: Any, shape: tuple[int, int], dtype: torch.dtype) -> None:
    m, n = shape
    M = normal(6, m, n, dtype=dtype).reshape(2, 3, m, n)
    spaced = torch.full((2, 5, 2 * m, 3 * n), float("nan"), dtype=dtype, device=DEVICE)
    spaced[:, :3, ::2, ::3] = M
    layouts = {
        "columns first": M.mT.contiguous().mT,
        "batch last": M.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1),
        "spaced": spaced[:, :3, ::2, ::3],
    }
    for decompose in (small_svd, small_eigh) if m == n else (small_svd,):
        expected = decompose(kernels, M)
        for name, layout in layouts.items():
            for got, want in zip(decompose(kernels, layout), expected, strict=True):
                assert torch.equal(got, want), name


@every_dtype
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", [(4, 4), (8, 8), (16, 16), (20, 20), (40, 6)], ids=str)
def test_bad_item_of_decompositions_stays_alone(
    kernels: Any, shape: tuple[int, int], value: float, dtype: torch.dtype
) -> None:
    good = torch.arange(9, device=DEVICE) != 4
    for decompose in (small_svd, small_eigh) if shape[0] == shape[1] else (small_svd,):
        M = normal(9, *shape, dtype=dtype)
        expected = decompose(kernels, M)
        M[4, -1, 0] = value
        *parts, info = decompose(kernels, M)
        for got, want in zip(parts, expected, strict=False):
            assert torch.equal(got[good], want[good]) and got[4].isnan().all()
        assert (info[good] == 0).all()


@every_dtype
@pytest.mark.parametrize("n", [4, 8, 16, 32])
def test_repeats_of_decompositions_are_bitwise_equal(kernels: Any, n: int, dtype: torch.dtype) -> None:
    A = symmetric(3000, n, dtype)
    for decompose in (small_svd, small_eigh):
        first = decompose(kernels, A)
        for _ in range(3):
            for got, want in zip(decompose(kernels, A), first, strict=True):
                assert torch.equal(got, want)


@pytest.mark.parametrize("n", [4, 8, 16, 32])
def test_kernel_and_composite_of_decompositions_agree(kernels: Any, n: int) -> None:
    A = symmetric(11, n, torch.float64)
    size = torch.linalg.matrix_norm(A, 2)[:, None]
    bound = 4 * n * torch.finfo(torch.float64).eps * size
    assert ((small_svd(kernels, A)[0] - composite.small_svd(A)[0]).abs() <= bound).all()
    assert ((small_eigh(kernels, A)[0] - composite.small_eigh(A)[0]).abs() <= bound).all()


@pytest.mark.parametrize("shape", [(4, 4), (8, 8), (16, 16), (32, 32), (60, 8)], ids=str)
def test_decompositions_run_on_the_current_stream_and_in_graphs(kernels: Any, shape: tuple[int, int]) -> None:
    """On a side stream that is busy, then captured once and replayed on new input."""
    M = normal(50, *shape, dtype=torch.float64)
    source = torch.zeros_like(M)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        source.copy_(M)
        result = small_svd(kernels, source)
        eigen = small_eigh(kernels, source @ source.mT) if shape[0] <= 32 else None
    side.synchronize()
    check_svd(result, M)
    if eigen is not None:
        assert ((eigen[0].flip(-1) - result[0] ** 2).abs() <= 1e-12 * result[0][:, :1] ** 2).all()

    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernels.small_svd(M, *result, stream())
    for seed in (1, 2):
        M.copy_(normal(50, *shape, dtype=torch.float64, seed=seed))
        graph.replay()
        torch.cuda.synchronize()
        check_svd(result, M)


def test_public_decompositions_can_be_routed_to_the_kernels() -> None:
    """SUBSPAN_CUDA_KERNELS is read at import. Values and gradients must be those of the CPU."""
    code = """
import torch, subspan
from subspan import _route
for name in ("small_svd", "small_svdvals", "small_eigh"):
    path = next(row for row in _route.paths() if row["op"] == name and row["device"] == "cuda")
    assert path["path"] == "kernel", path
M = torch.randn(20, 9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
weights = torch.linspace(1, 2, 6, dtype=torch.float64)
def run(M):
    M = M.requires_grad_()
    U, s, Vh = subspan.small_svd(M)
    values = subspan.small_svdvals(M)
    eigenvalues, Q = subspan.small_eigh(M.mT @ M)
    w = weights.to(M.device)
    total = ((U * w) @ Vh).square().sum() + (values * w).sum() + (((Q * w) @ Q.mT).square()).sum()
    return s, values, eigenvalues, *torch.autograd.grad(total, M)
for device, host in zip(run(M.cuda()), run(M.clone()), strict=True):
    assert device.is_cuda
    torch.testing.assert_close(device.cpu(), host, rtol=1e-10, atol=1e-10)
large = torch.randn(2, 40, 40, device="cuda")  # beyond the kernels: the composite
torch.testing.assert_close(subspan.small_svdvals(large), torch.linalg.svdvals(large))
print("routed")
"""
    environment = os.environ | {"SUBSPAN_CUDA_KERNELS": "1"}
    environment.pop("SUBSPAN_DISABLE", None)
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0 and "routed" in answer.stdout, answer.stderr[-3000:]
