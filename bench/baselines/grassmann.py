"""Geodesics and descent on the Grassmann manifold as they are computed today. Bases are columns, (*batch, n, k), but
those of a class head are rows, (classes, k, n).

Three parts: what serves as the float64 reference and as the best plain PyTorch (one thin singular value decomposition),
the same through the k x k Gram matrix written by hand, and the code people copy.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 5  # of which the last re-orthonormalises


def exp_by_svd(X: Tensor, D: Tensor) -> Tensor:
    U, S, Vh = torch.linalg.svd(D, full_matrices=False)
    return ((X @ Vh.mT) * S.cos()[..., None, :] + U * S.sin()[..., None, :]) @ Vh


def exp_by_gram(X: Tensor, D: Tensor) -> Tensor:
    cosine, sine, _ = gram_functions(D.mT @ D)
    return X @ cosine + D @ sine


def gram_functions(G: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """cos, sin(r) / r and (1 - cos r) / r^2 of r = G^1/2, by the eigenvectors of G."""
    values, V = torch.linalg.eigh(G)
    r = values.clamp(min=0).sqrt()
    functions = (r.cos(), torch.sinc(r / torch.pi), torch.sinc(r / (2 * torch.pi)).square() / 2)
    cosine, sine, versine = ((V * f[..., None, :]) @ V.mT for f in functions)
    return cosine, sine, versine


# --- descent ----------------------------------------------------------------------------------------------------


def steps_by_svd(P: Tensor, g: Tensor, b: Tensor, lr: float, momentum: float) -> Tensor:
    """Momentum as a tangent vector that is carried along."""
    P, g, b = P.mT, g.mT, b.mT
    for step in range(1, STEPS + 1):
        b = momentum * b + g
        b = b - P @ (P.mT @ b)
        U, S, Vh = torch.linalg.svd(b, full_matrices=False)
        turned = P @ Vh.mT
        cosine, sine = torch.cos(lr * S)[..., None, :], torch.sin(lr * S)[..., None, :]
        P = (turned * cosine - U * sine) @ Vh
        b = (U * cosine + turned * sine) @ (S[..., None] * Vh)
        if step == STEPS:
            P, R = torch.linalg.qr(P)
            P = P * R.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    return P.mT


def steps_by_gram(P: Tensor, g: Tensor, b: Tensor, lr: float, momentum: float) -> Tensor:
    P, g, b = P.mT, g.mT, b.mT
    for step in range(1, STEPS + 1):
        b = momentum * b + g
        b = b - P @ (P.mT @ b)
        G = b.mT @ b
        cosine, sine, _ = gram_functions(lr**2 * G)
        P, b = P @ cosine - lr * b @ sine, b @ cosine + lr * P @ (sine @ G)
        if step == STEPS:
            factor = torch.linalg.cholesky(P.mT @ P)
            P = torch.linalg.solve_triangular(factor.mT, P, upper=True, left=False)
    return P.mT


# --- the code people copy ---------------------------------------------------------------------------------------


def pymanopt_exp(X: Tensor, D: Tensor) -> Tensor:
    """The geodesic by a singular value decomposition, then QR."""
    return torch.linalg.qr(exp_by_svd(X, D)).Q


def gcr_steps(P: Tensor, g: Tensor, b: Tensor, lr: float, momentum: float) -> Tensor:
    """GCR's optimiser: momentum stays where it was and is projected at every step; QR at every fifth. The signs that QR
    changes are changed back here, so that results can be compared."""
    P, g, b = P.mT, g.mT, b.mT
    for step in range(1, STEPS + 1):
        b = momentum * b + g
        D = b - P @ (P.mT @ b)
        U, S, Vh = torch.linalg.svd(D, full_matrices=False)
        S = -lr * S[..., None, :]
        P = ((P @ Vh.mT) * S.cos()) @ Vh + (U * S.sin()) @ Vh
        if step == STEPS:
            P, R = torch.linalg.qr(P)
            P = P * R.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    return P.mT
