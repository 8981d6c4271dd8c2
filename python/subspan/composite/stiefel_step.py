"""The step of StiefelSGD and StiefelAdam in torch operations, in float64 (float32 on devices without it)."""

from __future__ import annotations

import torch
from torch import Tensor

from .factor import factor_dtype, identity, without_autocast
from .grassmann import columns, finite, symmetric


def _tangent(X: Tensor, S: Tensor, V: Tensor, *, canonical: bool = False) -> Tensor:
    """V - X sym(X^T V), or V - X V^T X, and once more the tangent part of that: X is orthonormal to rounding of its own
    type only, S = X^T X."""
    along = X.mT @ V
    K = -along.mT if canonical else -symmetric(along)
    return V + X @ (K - symmetric(along + S @ K))


def inverse_root(G: Tensor) -> Tensor:
    """G^-1/2 of symmetric positive definite matrices; NaN where a matrix is not finite."""
    good = G.isfinite().all(-1).all(-1)[..., None, None]
    values, vectors = torch.linalg.eigh(torch.where(good, G, identity(G.shape[-1], G)))
    return torch.where(good, (vectors * values.rsqrt()[..., None, :]) @ vectors.mT, torch.nan)


def _retracted(Z: Tensor, polar: bool) -> Tensor:
    gram = Z.mT @ Z
    if polar:
        return Z @ inverse_root(gram)
    factor, info = torch.linalg.cholesky_ex(gram)
    factor = torch.where((info == 0)[..., None, None], factor, torch.nan)
    result: Tensor = torch.linalg.solve_triangular(factor.mT, Z, upper=True, left=False)
    return result


@without_autocast
def stiefel_step(
    X: Tensor,
    gradient: Tensor,
    buffer: Tensor | None,
    second: Tensor | None,
    largest: Tensor | None,
    steps: float | Tensor,
    lr: float | Tensor,
    momentum: float,
    share: float,
    beta2: float,
    eps: float,
    nesterov: bool,
    maximize: bool,
    canonical: bool,
    polar: bool,
    rows: bool,
) -> None:
    """In place, as the kernel: see csrc/ops/orthogonal/stiefel_step.h. `lr` and `steps` may be tensors, which are not
    read."""
    dtype = factor_dtype(X)
    x, g = columns(X, rows, dtype), columns(gradient, rows, dtype)
    if not x.numel():
        return
    g = -g if maximize else g
    S = x.mT @ x
    r = _tangent(x, S, g, canonical=canonical)
    b = r if buffer is None else _tangent(x, S, momentum * columns(buffer, rows, dtype) + share * r)
    u = _tangent(x, S, r + momentum * b) if nesterov else b
    good = finite(x, r, b)
    length: float | Tensor = lr
    if second is not None:
        squares = r.square().sum((-2, -1), keepdim=True)
        if canonical:
            squares = squares - (x.mT @ r).square().sum((-2, -1), keepdim=True) / 2
        moment = (beta2 * second.to(dtype) + (1 - beta2) * squares) * good
        second.copy_(moment)
        if largest is not None:
            moment = torch.maximum(largest.to(dtype), moment)
            largest.copy_(moment)
        length = lr / (1 - momentum**steps) / ((moment / (1 - beta2**steps)).sqrt() + eps)
    moved = _retracted(x - length * u, polar) * good
    X.copy_(moved.mT if rows else moved)
    if buffer is not None:
        # The new X is orthonormal to rounding of this type, before it is stored.
        carried = (b - moved @ symmetric(moved.mT @ b)) * good
        buffer.copy_(carried.mT if rows else carried)
