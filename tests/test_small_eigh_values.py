"""Eigenvalues alone of small symmetric matrices, by tridiagonal reduction and quotient-difference transforms: their
accuracy on matrices chosen to be hard, and that a matrix does not notice what is beside it.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sample_arrays import normal
from small_matrices import exact_eigenvalues, matrices
from subspan import _native

REAL = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def eigenvalues(A: Tensor, threads: int = 2) -> tuple[Tensor, Tensor]:
    """The values and the kernel's reports."""
    values = torch.full(A.shape[:-1], -1, dtype=torch.float64 if A.dtype == torch.float64 else torch.float32)
    info = torch.full(A.shape[:-2], -1, dtype=torch.int32)
    _native.cpu.small_eigh(A, values, None, info, threads)
    return values, info


def symmetric(n: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Indefinite ones, and semidefinite ones whose eigenvalues are the squares of singular values."""
    found = {}
    for name, M in matrices(n, n, dtype).items():
        found[name] = M / 2 + M.mT / 2
        largest = M.double().abs().max()
        scaled = M.double() / largest if largest > 0 else M.double()
        found[f"{name}, gram"] = (scaled.mT @ scaled).to(dtype)
    return found


def assert_accurate(found: dict[str, Tensor], exact: np.ndarray) -> None:
    """Errors relative to the largest value grow as the root of the size."""
    A = torch.stack(list(found.values()))
    n = A.shape[-1]
    values, info = eigenvalues(A)
    assert info.eq(0).all(), [name for name, report in zip(found, info, strict=True) if report]
    assert (values.diff() >= 0).all()
    limits = torch.finfo(A.dtype)
    for name, ours, right in zip(found, values.numpy(), exact, strict=True):
        error, largest = np.abs(ours.astype(exact.dtype) - right).max(), np.abs(right).max()
        bound = 6 * limits.eps * math.sqrt(n) * largest + limits.eps * limits.smallest_normal
        assert error <= bound, (name, n, float(error / (limits.eps * largest)) if largest else ours)


@pytest.mark.parametrize("sizes", [range(1, 21), range(21, 41, 3), range(43, 71, 9)], ids=str)
def test_accuracy_in_float32(sizes: range) -> None:
    for n in sizes:
        found = symmetric(n, torch.float32)
        assert_accurate(found, np.linalg.eigvalsh(torch.stack(list(found.values())).double().numpy()))


@pytest.mark.parametrize("sizes", [range(1, 13), range(13, 19), (24,), (33,)], ids=str)
def test_accuracy_in_float64(sizes: range) -> None:
    for n in sizes:
        found = symmetric(n, torch.float64)
        assert_accurate(found, exact_eigenvalues(torch.stack(list(found.values())).numpy()))


@REAL
@pytest.mark.parametrize("n", [1, 2, 3, 8, 17, 33])
def test_a_matrix_does_not_notice_others(n: int, dtype: torch.dtype) -> None:
    A = torch.stack(list(symmetric(n, dtype).values()))
    together, _ = eigenvalues(A)
    for shift in (1, 7, 16):
        assert eigenvalues(A.roll(shift, 0))[0].equal(together.roll(shift, 0))
    for index in range(0, len(A), 9):
        assert eigenvalues(A[index])[0].equal(together[index])
    for wrong in (math.nan, math.inf, -math.inf):
        spoiled = A.clone()
        spoiled[::3, -1, 0] = wrong
        values, info = eigenvalues(spoiled)
        assert values[::3].isnan().all()
        assert info.eq(0).all()
        kept = torch.arange(len(A)) % 3 != 0
        assert values[kept].equal(together[kept])


@REAL
@pytest.mark.parametrize("n", [5, 16, 40])
def test_threads_and_the_triangle_that_is_read(n: int, dtype: torch.dtype) -> None:
    A = normal(0, 301, n, n, dtype=dtype)
    alone, _ = eigenvalues(A, 1)
    for threads in (2, 3, 8):
        assert eigenvalues(A, threads)[0].equal(alone)
    assert eigenvalues(A.tril())[0].equal(alone)
    assert eigenvalues((A.tril() + A.tril(-1).mT).mT)[0].equal(alone)
    unread = A.clone()
    unread.masked_fill_(torch.ones(n, n, dtype=torch.bool).triu(1), math.nan)
    assert eigenvalues(unread)[0].equal(alone)
