"""Singular values alone of small matrices, by bidiagonal reduction and quotient-difference transforms: their accuracy
on matrices chosen to be hard, and that a matrix does not notice what is beside it.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sample_arrays import normal
from small_matrices import exact_values, matrices
from subspan import _native

REAL = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def singular_values(M: Tensor, threads: int = 2) -> tuple[Tensor, Tensor]:
    """The values and the kernel's reports."""
    *batch, m, n = M.shape
    dtype = torch.float64 if M.dtype == torch.float64 else torch.float32
    values = torch.full((*batch, min(m, n)), -1, dtype=dtype)
    info = torch.full(batch, -1, dtype=torch.int32)
    _native.cpu.small_svd(M, values, None, None, info, threads)
    return values, info


def shapes(n: int) -> list[tuple[int, int]]:
    return [(n, n), (n + 1, n), (n, 2 * n + 1), (3 * n, n)]


def assert_accurate(found: dict[str, Tensor], exact: np.ndarray) -> None:
    """Errors relative to the largest value grow as the root of the size."""
    M = torch.stack(list(found.values()))
    m, n = M.shape[-2:]
    values, info = singular_values(M)
    assert info.eq(0).all(), [name for name, report in zip(found, info, strict=True) if report]
    assert (values.diff() <= 0).all()
    assert (values >= 0).all()
    limits = torch.finfo(M.dtype)
    for name, ours, right in zip(found, values.numpy(), exact, strict=True):
        error = np.abs(ours.astype(exact.dtype) - right).max()
        bound = 4 * limits.eps * math.sqrt(max(m, n)) * right[0] + limits.eps * limits.smallest_normal
        assert error <= bound, (name, m, n, float(error / (limits.eps * right[0])) if right[0] else ours)


@pytest.mark.parametrize("sizes", [range(1, 21), range(21, 41), range(41, 56), range(56, 71)], ids=str)
def test_accuracy_in_float32(sizes: range) -> None:
    for size in sizes:
        for m, n in shapes(size)[: 4 if size in (1, 2, 3, 4, 7, 8, 16, 17, 32, 33) else 1]:
            found = matrices(m, n, torch.float32)
            exact = np.linalg.svd(torch.stack(list(found.values())).double().numpy(), compute_uv=False)
            assert_accurate(found, exact)


@pytest.mark.parametrize("sizes", [range(1, 12), range(12, 18), range(18, 23), (33,), (40,)], ids=str)
def test_accuracy_in_float64(sizes: range) -> None:
    for size in sizes:
        for m, n in shapes(size)[: 4 if size < 12 else 1]:
            found = matrices(m, n, torch.float64)
            assert_accurate(found, exact_values(torch.stack(list(found.values())).numpy()))


@REAL
def test_known_values(dtype: torch.dtype) -> None:
    for n in range(1, 71):
        second_difference = (2 * torch.eye(n) - torch.ones(n - 1).diag(1) - torch.ones(n - 1).diag(-1)).to(dtype)
        angles = torch.arange(n, 0, -1, dtype=torch.float64) * torch.pi / (2 * (n + 1))
        order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
        diagonal = torch.arange(n, 0, -1).to(dtype)[order].diag()[order.flip(0)]
        ours, info = singular_values(torch.stack([second_difference, diagonal, torch.zeros(n, n, dtype=dtype)]))
        epsilon = torch.finfo(dtype).eps
        expected = 4 * angles.sin() ** 2
        assert info.eq(0).all()
        assert (ours[0] - expected).abs().max() <= 4 * epsilon * math.sqrt(n) * expected[0]
        assert (ours[1] - torch.arange(n, 0, -1)).abs().max() <= 4 * epsilon * math.sqrt(n) * n
        assert ours[2].eq(0).all()
    hadamard = torch.ones(1, 1, dtype=dtype)
    for power in range(7):
        ours, _ = singular_values(hadamard)
        assert (ours - 2 ** (power / 2)).abs().max() <= 4 * torch.finfo(dtype).eps * 2**power
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])


@REAL
@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 3), (8, 8), (5, 21), (17, 16), (33, 33)])
def test_a_matrix_does_not_notice_others(m: int, n: int, dtype: torch.dtype) -> None:
    M = torch.stack(list(matrices(m, n, dtype).values()))
    together, _ = singular_values(M)
    for shift in (1, 7, 16):
        assert singular_values(M.roll(shift, 0))[0].equal(together.roll(shift, 0))
    for index in range(0, len(M), 5):
        assert singular_values(M[index])[0].equal(together[index])
    for wrong in (math.nan, math.inf, -math.inf):
        spoiled = M.clone()
        spoiled[::3, -1, 0] = wrong
        values, info = singular_values(spoiled)
        assert values[::3].isnan().all()
        assert info.eq(0).all()
        kept = torch.arange(len(M)) % 3 != 0
        assert values[kept].equal(together[kept])


@REAL
@pytest.mark.parametrize(("m", "n"), [(8, 8), (40, 12), (33, 70)])
def test_any_number_of_threads_gives_the_same_bits(m: int, n: int, dtype: torch.dtype) -> None:
    M = normal(0, 701, m, n, dtype=dtype)
    alone, _ = singular_values(M, 1)
    for threads in (2, 3, 8):
        assert singular_values(M, threads)[0].equal(alone)


@REAL
def test_strides_and_empty_arrays(dtype: torch.dtype) -> None:
    M = normal(0, 5, 4, 9, 14, dtype=dtype)
    for view in (M[:, ::2, 1:, ::2], M.transpose(0, 1), M[1:2].expand(3, -1, -1, -1), M.flip(0)[..., ::3]):
        values, info = singular_values(view)
        assert values.equal(singular_values(view.contiguous())[0])
        assert info.eq(0).all()
    columns_first = M.mT.contiguous().mT
    assert singular_values(columns_first)[0].equal(singular_values(M)[0])
    for shape in ((0, 3, 3), (4, 0, 3), (4, 3, 0)):
        values, info = singular_values(torch.zeros(shape, dtype=dtype))
        assert values.numel() == 0
        assert info.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    M = normal(0, 19, 7, 12, dtype=dtype)
    assert singular_values(M)[0].equal(singular_values(M.float())[0])
