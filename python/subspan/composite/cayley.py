"""The Cayley transform of skew matrices in differentiable torch operations, in float64 for every input type (float32 on
devices without float64)."""

from __future__ import annotations

import torch
from torch import Tensor

from .factor import factor_dtype, identity, result_dtype, without_autocast


@without_autocast
def cayley_inverse(A: Tensor) -> Tensor:
    """W = (I - K / 2)^-1 of the skew part K of A. An item that is not finite is NaN: what LAPACK makes of it depends on
    the platform."""
    a = A.to(factor_dtype(A))
    poison = (a * 0).sum((-2, -1), keepdim=True)
    a = torch.where(poison.isfinite(), a, 0)
    matrix = identity(a.shape[-1], a) - (a - a.mT) / 4
    inverse: Tensor = torch.linalg.inv_ex(matrix).inverse
    return inverse + poison


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
