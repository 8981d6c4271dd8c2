"""Orthonormal bases as they are computed today, and in float64 as the reference."""

from __future__ import annotations

import torch
from torch import Tensor


def qr(A: Tensor) -> Tensor:
    """LAPACK's, with the signs that make the diagonal of R positive."""
    Q, R = torch.linalg.qr(A)
    return Q * R.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]


def cholesky_qr2(A: Tensor) -> Tensor:
    """CholeskyQR, twice."""
    for _ in range(2):
        factor = torch.linalg.cholesky_ex(A.mT @ A)[0]
        A = torch.linalg.solve_triangular(factor.mT, A, upper=True, left=False)
    return A


def polar_by_svd(A: Tensor) -> Tensor:
    U, _, Vh = torch.linalg.svd(A, full_matrices=False)
    return U @ Vh


def polar_by_gram(A: Tensor) -> Tensor:
    values, V = torch.linalg.eigh(A.mT @ A)
    return A @ ((V * values.rsqrt()[..., None, :]) @ V.mT)
