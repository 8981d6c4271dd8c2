"""Orthogonal matrices of skew ones, and moves along them, as they are computed today. A is any square matrix, of which
the skew part counts; frames are columns, (*batch, n, k).

Two parts: what anyone would write in plain PyTorch, and the code people copy.
"""

from __future__ import annotations

import torch
from torch import Tensor


def skew_part(A: Tensor) -> Tensor:
    return (A - A.mT) / 2


def _identity(size: int, like: Tensor) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)


def cayley_by_solve(A: Tensor) -> Tensor:
    K, one = skew_part(A), _identity(A.shape[-1], A)
    return torch.linalg.solve(one - K / 2, one + K / 2)


def cayley_by_inverse(A: Tensor) -> Tensor:
    """Its gradient is made of products alone."""
    one = _identity(A.shape[-1], A)
    return 2 * torch.linalg.inv(one - skew_part(A) / 2) - one


def matrix_exp(A: Tensor) -> Tensor:
    return torch.matrix_exp(skew_part(A))


def exp_by_eigenvectors(A: Tensor) -> Tensor:
    """Of the Hermitian matrix i K; its gradient is not finite at equal eigenvalues."""
    values, V = torch.linalg.eigh(-1j * skew_part(A))
    return (V * torch.exp(1j * values)[..., None, :] @ V.mH).real


def retract_cayley(X: Tensor, V: Tensor) -> Tensor:
    """By 2 k x 2 k matrices (Wen, Yin 2013)."""
    P = V - X @ (X.mT @ V) / 2
    U, Z = torch.cat([P, X], -1), torch.cat([X, -P], -1)
    core = _identity(U.shape[-1], U) - Z.mT @ U / 2
    return X + U @ torch.linalg.solve(core, Z.mT @ X)


def retract_exp(X: Tensor, V: Tensor) -> Tensor:
    """By 2 k x 2 k matrices without a QR factorisation."""
    k = X.shape[-1]
    C = X.mT @ V
    N = V - X @ C
    upper = torch.cat([C, -N.mT @ N], -1)
    lower = torch.cat([_identity(k, X).expand_as(C), torch.zeros_like(C)], -1)
    E = torch.matrix_exp(torch.cat([upper, lower], -2))
    return X @ E[..., :k, :k] + N @ E[..., k:, :k]


def retract_exp_by_generator(X: Tensor, V: Tensor) -> Tensor:
    """exp(W) X with W = U Z^T = P X^T - X P^T, a map of any X, orthonormal or not: its gradients can be compared."""
    k = X.shape[-1]
    P = V - X @ (X.mT @ V) / 2
    U, Z = torch.cat([P, X], -1), torch.cat([X, -P], -1)
    T = Z.mT @ U
    upper = torch.cat([T, _identity(2 * k, X).expand_as(T)], -1)
    E = torch.matrix_exp(torch.cat([upper, torch.zeros_like(upper)], -2))
    return X + U @ (E[..., : 2 * k, 2 * k :] @ (Z.mT @ X))


# --- the code people copy ---------------------------------------------------------------------------------------


def neumann(A: Tensor) -> Tensor:
    """PEFT's OFT: (I + K/2) (I + K/2 + ... + (K/2)^4), the truncated series of the inverse."""
    half, one = skew_part(A) / 2, _identity(A.shape[-1], A)
    total, power = one + half, half
    for _ in range(3):
        power = power @ half
        total = total + power
    return (one + half) @ total


def retract_whole(X: Tensor, V: Tensor) -> Tensor:
    """geoopt's CanonicalStiefel: a solution with n x n matrices for every frame."""
    P = V - X @ (X.mT @ V) / 2
    W = P @ X.mT - X @ P.mT
    one = _identity(X.shape[-2], X)
    return torch.linalg.solve(one - W / 2, X + W @ X / 2)


def exp_by_qr(X: Tensor, V: Tensor) -> Tensor:
    """Edelman, Arias, Smith 1998, eq. 2.42."""
    k = X.shape[-1]
    C = X.mT @ V
    Q, R = torch.linalg.qr(V - X @ C)
    block = torch.cat([torch.cat([C, -R.mT], -1), torch.cat([R, torch.zeros_like(R)], -1)], -2)
    E = torch.matrix_exp(block)
    return X @ E[..., :k, :k] + Q @ E[..., k:, :k]
