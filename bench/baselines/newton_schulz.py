"""Newton-Schulz iterations as they are computed today. Matrices are (*batch, m, n); lists of them are looped over, or
stacked by shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Polynomials = Sequence[tuple[float, float, float]]


def by_svd(G: Tensor, polynomials: Polynomials) -> Tensor:
    """The definition: polynomials of the singular values."""
    U, s, Vh = torch.linalg.svd(G, full_matrices=False)
    s = s / torch.linalg.vector_norm(s, dim=-1, keepdim=True)
    for a, b, c in polynomials:
        s = a * s + b * s**3 + c * s**5
    return (U * s[..., None, :]) @ Vh


def on_shorter_side(G: Tensor, polynomials: Polynomials) -> Tensor:
    """Gram Newton-Schulz: everything but the first and the last product is of square matrices."""
    tall = G.shape[-2] > G.shape[-1]
    X = G.mT if tall else G
    X = X / torch.linalg.matrix_norm(X, keepdim=True)
    R, Q = X @ X.mT, None
    identity = torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)
    for k, (a, b, c) in enumerate(polynomials):
        Z = a * identity + b * R + c * (R @ R)
        Q = Z if Q is None else Q @ Z
        if k + 1 < len(polynomials):
            R = Z @ (R @ Z)
    X = Q @ X
    return X.mT if tall else X


def muon(G: Tensor, polynomials: Polynomials) -> Tensor:
    """Muon's function as it is copied, without its rounding to bfloat16."""
    X = G
    if G.shape[-2] > G.shape[-1]:
        X = X.mT
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for a, b, c in polynomials:
        A = X @ X.mT
        B = b * A + c * A @ A
        X = a * X + B @ X
    return X.mT if G.shape[-2] > G.shape[-1] else X


def looped(*matrices: Tensor, function: Callable[..., Tensor], polynomials: Polynomials) -> list[Tensor]:
    return [function(G, polynomials) for G in matrices]


def stacked(*matrices: Tensor, function: Callable[..., Tensor], polynomials: Polynomials) -> list[Tensor]:
    """One batch for each shape."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, G in enumerate(matrices):
        groups.setdefault(tuple(G.shape), []).append(i)
    results = list(matrices)
    for members in groups.values():
        values = function(torch.stack([matrices[i] for i in members]), polynomials)
        for i, value in zip(members, values, strict=True):
            results[i] = value
    return results
