"""Packed triangles of symmetric matrices in NumPy, for the tests of the kernels that read and write them."""

from __future__ import annotations

from typing import Any

import numpy as np


def entries(d: int) -> int:
    return d * (d + 1) // 2


def packed(A: Any) -> Any:
    return np.ascontiguousarray(A[(..., *np.triu_indices(A.shape[-1]))])


def full(triangles: Any, d: int) -> Any:
    """Symmetric matrices from packed triangles."""
    A = np.zeros((*triangles.shape[:-1], d, d), triangles.dtype)
    rows, columns = np.triu_indices(d)
    A[..., rows, columns] = A[..., columns, rows] = triangles
    return A


def halved(gradient: Any, d: int) -> Any:
    """The inverses whose triangles, doubled off the diagonal, are given. Halving is exact."""
    rows, columns = np.triu_indices(d)
    return full(gradient * np.where(rows == columns, 1, 0.5).astype(gradient.dtype), d)


def assert_same(got: Any, expected: Any) -> None:
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)
