"""The Cayley transform of skew matrices in differentiable torch operations, in float64 for every input type (float32 on
devices without float64)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .factor import factor_dtype, identity, result_dtype, solve, without_autocast


@without_autocast
def cayley_inverse(A: Tensor) -> Tensor:
    """W = (I - K / 2)^-1 = (I + K^T K / 4)^-1 (I + K / 2) of the skew part K of A, by a Cholesky factor, and a step of
    Newton's method for the digits that the square of the condition costs. An item that is not finite is NaN: what
    LAPACK makes of it depends on the platform."""
    a = A.to(factor_dtype(A))
    poison = (a * 0).sum((-2, -1), keepdim=True)
    a = torch.where(poison.isfinite(), a, 0)
    half, one = (a - a.mT) / 4, identity(a.shape[-1], a)
    W = solve(torch.linalg.cholesky_ex(one + half.mT @ half)[0], one + half)
    W = W + W @ (one - (W - half @ W))
    return W + poison


@without_autocast
def cayley(A: Tensor) -> tuple[Tensor]:
    """Q = 2 W - I."""
    W = cayley_inverse(A)
    return ((2 * W - identity(W.shape[-1], W)).to(result_dtype(A)),)


@without_autocast
def cayley_gradient(W: Tensor, G: Tensor) -> Tensor:
    """The skew part of W^T G W^T: d Q = W dK W."""
    w = W.to(factor_dtype(W))
    S = w.mT @ G.to(w.dtype) @ w.mT
    return (S - S.mT) / 2


def _skew_of_triangle(A: Tensor) -> Tensor:
    """2 L, whose skew part is L - L^T."""
    return 2 * A.tril(-1)


@without_autocast
def triangle_inverse(A: Tensor, base: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """W of K = L - L^T, and B W."""
    W = cayley_inverse(_skew_of_triangle(A))
    return W, None if base is None else base.to(W.dtype) @ W


@without_autocast
def cayley_of_triangle(A: Tensor, base: Tensor | None) -> tuple[Tensor]:
    """B Q = 2 B W - B."""
    W, turned = triangle_inverse(A, base)
    if base is None or turned is None:
        return ((2 * W - identity(W.shape[-1], W)).to(result_dtype(A)),)
    return ((2 * turned - base.to(W.dtype)).to(result_dtype(A)),)


@without_autocast
def cayley_of_triangle_gradient(W: Tensor, turned: Tensor | None, G: Tensor) -> Tensor:
    """The lower triangle of S - S^T with S = (B W)^T G W^T: d (B Q) = B W dK W."""
    w = W.to(factor_dtype(W))
    first = w if turned is None else turned.to(w.dtype)
    S = first.mT @ G.to(w.dtype) @ w.mT
    return (S - S.mT).tril(-1)


def _order(count: int) -> int:
    """n of n (n - 1) / 2, which has no other n above 0."""
    return (1 + math.isqrt(1 + 8 * count)) // 2


@without_autocast
def packed_inverse(a: Tensor) -> Tensor:
    """W of K / 2 = U - U^T, where U holds a above its diagonal."""
    size = _order(a.shape[-1])
    rows, columns = torch.triu_indices(size, size, 1, device=a.device)
    flat = a.new_zeros((*a.shape[:-1], size * size)).index_copy(-1, rows * size + columns, 4 * a)
    return cayley_inverse(flat.unflatten(-1, (size, size)))


@without_autocast
def cayley_of_packed(a: Tensor) -> tuple[Tensor]:
    W = packed_inverse(a)
    return ((2 * W - identity(W.shape[-1], W)).to(result_dtype(a)),)


@without_autocast
def cayley_of_packed_gradient(W: Tensor, G: Tensor) -> Tensor:
    """2 (S - S^T) above the diagonal, with S = W^T G W^T."""
    w = W.to(factor_dtype(W))
    S = w.mT @ G.to(w.dtype) @ w.mT
    rows, columns = torch.triu_indices(w.shape[-1], w.shape[-1], 1, device=W.device)
    return 2 * (S - S.mT)[..., rows, columns]
