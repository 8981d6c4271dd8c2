"""Steps of the optimisers as the papers state them, in float64 NumPy. Everything that changes is returned anew."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .newton_schulz import Polynomial, compose
from .stiefel import retract

Array = NDArray[np.float64]


def muon_step(
    W: Array,
    G: Array,
    B: Array,
    lr: float,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    polynomials: Sequence[Polynomial],
    eps: float,
    adjustment: str,
) -> tuple[Array, Array]:
    """Algorithm 2 of Jordan et al. 2024 with an average for a momentum, as torch.optim.Muon has it; 2-D."""
    B = momentum * B + (1 - momentum) * G
    U = momentum * B + (1 - momentum) * G if nesterov else B
    left, s, right = np.linalg.svd(U, full_matrices=False)
    orthogonal = (left * compose(s / max(np.linalg.norm(s), eps), polynomials)) @ right
    rows, columns = W.shape
    factor = 0.2 * max(rows, columns) ** 0.5 if adjustment == "match_rms_adamw" else max(1.0, rows / columns) ** 0.5
    return (1 - lr * weight_decay) * W - lr * factor * orthogonal, B


def tangent(X: Array, V: Array) -> Array:
    along = X.swapaxes(-1, -2) @ V
    result: Array = V - X @ (along + along.swapaxes(-1, -2)) / 2
    return result


def riemannian_gradient(X: Array, G: Array, metric: str) -> Array:
    """Edelman, Arias, Smith 1998, eq. 2.53 for the canonical metric."""
    return G - X @ (G.swapaxes(-1, -2) @ X) if metric == "canonical" else tangent(X, G)


def stiefel_sgd_step(
    X: Array,
    G: Array,
    b: Array | None,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    retraction: str,
    metric: str,
) -> tuple[Array, Array]:
    """Columns. b = None at the first step, which is not dampened."""
    r = riemannian_gradient(X, G, metric)
    b = r if b is None else momentum * b + (1 - dampening) * r
    Y = retract(X, -lr * (r + momentum * b if nesterov else b), retraction)
    return Y, tangent(Y, b)


def stiefel_adam_step(
    X: Array,
    G: Array,
    m: Array,
    v: Array,
    largest: Array | None,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    retraction: str,
    metric: str,
) -> tuple[Array, Array, Array, Array]:
    """Becigneul and Ganea 2019, with Adam's corrections of bias. Columns; v (*batch, 1, 1)."""
    r = riemannian_gradient(X, G, metric)
    square = (r * r).sum((-1, -2), keepdims=True)
    if metric == "canonical":
        square = square - ((X.swapaxes(-1, -2) @ r) ** 2).sum((-1, -2), keepdims=True) / 2
    m, v = betas[0] * m + (1 - betas[0]) * r, betas[1] * v + (1 - betas[1]) * square
    most = v if largest is None else np.maximum(v, largest)
    direction = m / (1 - betas[0] ** step) / (np.sqrt(most / (1 - betas[1] ** step)) + eps)
    Y = retract(X, -lr * direction, retraction)
    return Y, tangent(Y, m), v, most


def online_subspace_step(
    W: Array,
    G: Array,
    P: Array | None,
    M: Array,
    V: Array,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    rank: int,
    scale: float,
    subspace_lr: float,
) -> tuple[Array, Array, Array, Array]:
    """Algorithm 1 of Liang et al. 2024 for a W (m, n), m <= n, with Adam for the weights, and for the frame a step of
    length subspace_lr against the gradient of |G - P P^T G|^2, which for orthonormal P is -2 (I - P P^T) G G^T P, and
    the polar factor; shorter where that gradient is below about 1e-4 |G| |P^T G|. Gives W, P, M and V."""
    if P is None:
        P = np.linalg.svd(G, full_matrices=False)[0][:, :rank]
    g = P.T @ G
    M, V = betas[0] * M + (1 - betas[0]) * g, betas[1] * V + (1 - betas[1]) * g**2
    direction = M / (1 - betas[0] ** step) / (np.sqrt(V / (1 - betas[1] ** step)) + eps)
    W = (1 - lr * weight_decay) * W - lr * scale * (P @ direction)
    outward = (G - P @ g) @ g.T / np.linalg.norm(G) / np.linalg.norm(g)
    moved = P + subspace_lr * outward / (np.linalg.norm(outward) + 1e-4)
    left, _, right = np.linalg.svd(moved, full_matrices=False)
    frame: Array = left @ right
    return W, frame, M, V
