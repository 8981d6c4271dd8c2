"""Products of Householder reflectors as people compute them today."""

from __future__ import annotations

import torch
from torch import Tensor


def wy_factor(V: Tensor) -> Tensor:
    """T^-1 of the compact WY form I - V T V^T for tau = 2 / ||v||^2: half the diagonal of V^T V and what is above."""
    gram = V.mT @ V
    return gram.triu(1) + torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1) / 2)


def wy_apply(V: Tensor, X: Tensor) -> Tensor:
    """The best plain PyTorch: three products and a triangular solve, differentiated by autograd."""
    return X - V @ torch.linalg.solve_triangular(wy_factor(V), V.mT @ X, upper=True)


def wy_product(V: Tensor, columns: int) -> Tensor:
    """As above for the first columns of the identity, whose product with V^T is a part of V."""
    E = torch.eye(V.shape[-2], columns, dtype=V.dtype, device=V.device)
    return E - V @ torch.linalg.solve_triangular(wy_factor(V), V[..., :columns, :].mT, upper=True)


def one_by_one(V: Tensor, X: Tensor) -> Tensor:
    """The loop that a reader of the definition writes, and torch-householder runs natively."""
    for j in reversed(range(V.shape[-1])):
        v = V[..., j : j + 1]
        X = X - v @ (2 / (v.mT @ v) * (v.mT @ X))
    return X


def unit_triangular(A: Tensor) -> Tensor:
    return A.tril(-1) + torch.eye(A.shape[-2], A.shape[-1], dtype=A.dtype, device=A.device)


def by_torch(A: Tensor) -> Tensor:
    """torch.linalg.householder_product with tau = 2 / ||v||^2, as torch's orthogonal parametrisation calls it."""
    return torch.linalg.householder_product(A, 2 / unit_triangular(A).square().sum(-2))


def merged_blocks(V: Tensor, width: int = 4) -> list[tuple[Tensor, Tensor]]:
    """W and Y of I - W Y^T for neighbouring reflectors, merged two by two, as fasthpp does it."""
    unit = V / V.norm(dim=0, keepdim=True)
    W, Y = 2 * unit.T[:, :, None], unit.T[:, :, None]  # (blocks, m, 1)
    while W.shape[-1] < width:
        left, right = (W[0::2], Y[0::2]), (W[1::2], Y[1::2])
        W = torch.cat([left[0], right[0] - left[0] @ (left[1].mT @ right[0])], -1)
        Y = torch.cat([left[1], right[1]], -1)
    return list(zip(W, Y, strict=True))


def fasth(V: Tensor) -> Tensor:
    """All of Q from blocks of four reflectors, one pair of products after the other, as HouseholderGAN forms it."""
    Q = torch.eye(V.shape[0], dtype=V.dtype, device=V.device)
    for W, Y in reversed(merged_blocks(V)):
        Q = Q - W @ (Y.T @ Q)
    return Q


def gan_weight(U: Tensor, V: Tensor, scales: Tensor) -> Tensor:
    """HouseholderGAN's layer: of both square factors only as many columns and rows are used as there are scales."""
    rank = len(scales)
    return fasth(U)[:, :rank] * scales @ fasth(V)[:rank]


def gan_weight_by_wy(U: Tensor, V: Tensor, scales: Tensor) -> Tensor:
    rank = len(scales)
    E = torch.eye(rank, V.shape[0], dtype=V.dtype, device=V.device)
    right = E - torch.linalg.solve_triangular(wy_factor(V), V[:rank], upper=True, left=False) @ V.mT
    return wy_product(U, rank) * scales @ right
