"""Angles between subspaces as people compute them today, and as they would have to at the accuracy of subspan."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

#: Keeps acos finite, and with it the gradient; angles below 1e-3 are lost.
BELOW_ONE = 1 - 1e-6


def angles_of(products: Tensor) -> Tensor:
    return torch.linalg.svdvals(products).clamp(-1, 1).acos()


def of_orthonormal(A: Tensor, B: Tensor) -> Tensor:
    return angles_of(A.mT @ B)


def by_qr(A: Tensor, B: Tensor) -> Tensor:
    return angles_of(torch.linalg.qr(A).Q.mT @ torch.linalg.qr(B).Q)


def by_gram(A: Tensor, B: Tensor) -> Tensor:
    left, right = torch.linalg.cholesky(A.mT @ A), torch.linalg.cholesky(B.mT @ B)
    product = torch.linalg.solve_triangular(left, A.mT @ B, upper=False)
    return angles_of(torch.linalg.solve_triangular(right, product.mT, upper=False))


def by_residuals(A: Tensor, B: Tensor) -> Tensor:
    """Bjorck and Golub in float64: the plain way to angles that are right near 0."""
    Q, P = torch.linalg.qr(A.double()).Q, torch.linalg.qr(B.double()).Q
    U, cosines, Vh = torch.linalg.svd(Q.mT @ P)
    residual = P @ Vh.mT - Q @ (U * cosines[..., None, :])
    return torch.atan2(torch.linalg.svdvals(residual).flip(-1), cosines).to(A.dtype)


def by_scipy(A: Tensor, B: Tensor) -> Tensor:
    """scipy takes one pair at a time."""
    from scipy.linalg import subspace_angles

    pairs = zip(A.numpy(), B.numpy(), strict=True)
    return torch.from_numpy(np.stack([subspace_angles(a, b)[::-1] for a, b in pairs]))


def all_pairs(A: Tensor, B: Tensor) -> Tensor:
    """Products of all pairs at once: (N, n, p) and (M, n, q) give (N, M, p, q)."""
    rows, columns = A.mT.flatten(0, 1), B.mT.flatten(0, 1)
    flat = rows @ columns.mT
    return flat.view(A.shape[0], A.shape[2], B.shape[0], B.shape[2]).transpose(1, 2)


def geodesic_pairs(A: Tensor) -> Tensor:
    return angles_of(all_pairs(A, A).contiguous()).square().sum(-1).sqrt()


def chordal_pairs(A: Tensor, B: Tensor) -> Tensor:
    overlap = all_pairs(A, B).square().sum((-2, -1))
    return (min(A.shape[2], B.shape[2]) - overlap).clamp(min=0).sqrt()


def geodesic_squared(A: Tensor, B: Tensor) -> Tensor:
    cosines = torch.linalg.svdvals(torch.linalg.qr(A).Q.mT @ torch.linalg.qr(B).Q)
    return cosines.clamp(max=BELOW_ONE).acos().square().sum(-1)


def geodesic_squared_by_gram(A: Tensor, B: Tensor) -> Tensor:
    left, right = torch.linalg.cholesky(A.mT @ A), torch.linalg.cholesky(B.mT @ B)
    product = torch.linalg.solve_triangular(left, A.mT @ B, upper=False)
    cosines = torch.linalg.svdvals(torch.linalg.solve_triangular(right, product.mT, upper=False))
    return cosines.clamp(max=BELOW_ONE).acos().square().sum(-1)
