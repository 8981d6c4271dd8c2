"""Steps of optimisers as one would write them for a whole batch in plain torch operations, in any type: float64 serves
as the reference. Frames are columns, (*batch, n, k).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .newton_schulz import Polynomials, stacked

STEPS = 5
Retraction = Callable[[Tensor], Tensor]


def tangent(X: Tensor, V: Tensor) -> Tensor:
    along = X.mT @ V
    return V - X @ (along + along.mT) / 2


def by_qr(Z: Tensor) -> Tensor:
    """LAPACK's, with the signs that make the diagonal of R positive."""
    Q, R = torch.linalg.qr(Z)
    return Q * R.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]


def by_cholesky(Z: Tensor) -> Tensor:
    factor = torch.linalg.cholesky_ex(Z.mT @ Z)[0]
    return torch.linalg.solve_triangular(factor.mT, Z, upper=True, left=False)


def sgd_steps(X: Tensor, g: Tensor, b: Tensor, retract: Retraction, lr: float, momentum: float) -> Tensor:
    for _ in range(STEPS):
        b = momentum * b + tangent(X, g)
        X = retract(X - lr * b)
        b = tangent(X, b)
    return X


def adam_steps(X: Tensor, g: Tensor, retract: Retraction, lr: float) -> Tensor:
    beta1, beta2, eps = 0.9, 0.999, 1e-8
    m, v = torch.zeros_like(X), X.new_zeros(*X.shape[:-2], 1, 1)
    for step in range(1, STEPS + 1):
        r = tangent(X, g)
        m = beta1 * m + (1 - beta1) * r
        v = beta2 * v + (1 - beta2) * r.square().sum((-2, -1), keepdim=True)
        X = retract(X - lr * m / (1 - beta1**step) / ((v / (1 - beta2**step)).sqrt() + eps))
        m = tangent(X, m)
    return X


def muon_step(
    *tensors: Tensor, function: Callable[..., Tensor], polynomials: Polynomials, lr: float, decay: float
) -> list[Tensor]:
    """Of weights and their gradients, in this order, from a momentum of 0; matrices of equal shape together."""
    weights, gradients = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
    momentum = 0.95
    updates = [(1 - momentum) * (1 + momentum) * g for g in gradients]
    results = stacked(*updates, function=function, polynomials=polynomials)
    rates = [lr * max(1.0, w.shape[0] / w.shape[1]) ** 0.5 for w in weights]
    return [(1 - lr * decay) * w - rate * U for w, rate, U in zip(weights, rates, results, strict=True)]
