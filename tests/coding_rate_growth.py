"""How rounding errors grow in the coding_rate family: the bounds of its rows in the op table, per item, in float64.

The Gram matrix B = alpha Z^T Z and its factor are computed to |E_ij| <= c size eps sqrt(b_ii b_jj): Cauchy-Schwarz for
the products, and since the identity is implicit the sums of the factorisation are bounded by b_ii as well. To first
order log det then moves by tr(M E) and M = (I + B)^{-1} by M E M. Below, radii = sqrt(diag B), so that
|E| <= c size eps radii radii^T.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from op_row import Bounds


def gram_errors(Z: np.ndarray, alpha: float, samples_side: bool) -> tuple[np.ndarray, np.ndarray]:
    """|M| and the growth of the error in M, on the side that is factored."""
    B = alpha * (Z @ Z.T if samples_side else Z.T @ Z)
    M = np.abs(np.linalg.inv(np.eye(len(B)) + B))
    radii = np.sqrt(np.diag(B))
    return M @ radii @ radii, M + np.outer(M @ radii, radii @ M)


def rate_growth(
    Z: np.ndarray, alpha: float, scale: float = 1.0, weights: np.ndarray | None = None, side: str = "auto"
) -> Bounds:
    """Of scale * logdet(I + alpha Z^T diag(w) Z); the gradient's growth does not count alpha's own dependence on w."""
    n, d = Z.shape
    root = np.sqrt(np.ones(n) if weights is None else weights)
    weighted = root[:, None] * Z
    samples_side = side == "samples" or (side == "auto" and n < d)
    value, M_error = gram_errors(weighted, alpha, samples_side)
    if samples_side:  # gradient alpha diag(r) K^{-1} diag(r) Z
        over_weight = np.divide(1, root, out=np.zeros(n), where=root > 0)
        gradient = 2 * alpha * scale * (M_error @ np.abs(weighted))
        d_weights = gradient * over_weight[:, None]
        gradient = gradient * root[:, None]
    else:
        d_weights = 2 * alpha * scale * (np.abs(Z) @ M_error)
        gradient = root[:, None] ** 2 * d_weights
    return Bounds(n + d, (scale * value,), {"Z": gradient, "weights": np.sum(d_weights * np.abs(Z), -1)})


def coding_rate_growth(
    Z: np.ndarray,
    eps2: float | None,
    *,
    weights: np.ndarray | None = None,
    alpha: float | None = None,
    scale: float = 0.5,
    side: str = "auto",
) -> Bounds:
    n, d = Z.shape
    mass = n if weights is None else weights.sum()
    if n == 0 or mass == 0:
        return Bounds(n + d, (0.0,), {"Z": np.zeros((n, d)), "weights": np.zeros(n)})
    bounds = rate_growth(Z, d / (mass * eps2) if alpha is None else alpha, scale, weights, side)
    through_alpha = 0.0 if alpha is not None or weights is None else weights @ bounds.gradients["weights"] / mass
    gradients = bounds.gradients | {"weights": bounds.gradients["weights"] + through_alpha}
    return dataclasses.replace(bounds, gradients=gradients)


def class_growth(Z: np.ndarray, labels: np.ndarray, eps2: float, *, num_classes: int | None = None) -> Bounds:
    n, d = Z.shape
    k = num_classes or int(labels.max()) + 1
    rates, gradient = np.zeros(k), np.zeros((n, d))
    for j in range(k):
        members = labels == j
        if members.any():
            bounds = coding_rate_growth(Z[members], eps2)
            rates[j], gradient[members] = bounds.outputs[0], bounds.gradients["Z"]
    return Bounds(n + d, (rates, np.zeros(k)), {"Z": gradient})


def reduction_growth(
    Z: np.ndarray,
    labels: np.ndarray,
    eps2: float,
    *,
    num_classes: int | None = None,
    gamma: float = 1.0,
    return_parts: bool = False,
) -> Bounds:
    whole = coding_rate_growth(Z, eps2)
    mass = np.bincount(labels, minlength=num_classes or 0) / max(len(labels), 1)
    parts = class_growth(Z, labels, eps2, num_classes=num_classes or len(mass) or 1)
    compressed = float(mass @ parts.outputs[0]) if len(labels) else 0.0
    gradient = whole.gradients["Z"] + abs(gamma) * mass[labels][:, None] * parts.gradients["Z"]
    value = whole.outputs[0] + abs(gamma) * compressed
    outputs = (value, whole.outputs[0], compressed) if return_parts else (value,)
    return Bounds(whole.size, outputs, {"Z": gradient})


def soft_class_growth(Z: np.ndarray, labels: np.ndarray, eps2: float, *, num_classes: int | None = None) -> Bounds:
    """A class is a rate with weights. The gradients to Z of all classes are added: k more terms."""
    (n, d), k = Z.shape, len(labels)
    rates, gradient, d_labels = np.zeros(k), np.zeros((n, d)), np.zeros((k, n))
    for j, weights in enumerate(labels):
        bounds = coding_rate_growth(Z, eps2, weights=weights)
        rates[j] = bounds.outputs[0]
        gradient += bounds.gradients["Z"]
        d_labels[j] = bounds.gradients["weights"] + 1  # the gradient of the mass is exactly its upstream gradient
    return Bounds(n + d + k, (rates, labels.sum(-1)), {"Z": gradient, "labels": d_labels})


def soft_reduction_growth(
    Z: np.ndarray,
    labels: np.ndarray,
    eps2: float,
    *,
    num_classes: int | None = None,
    gamma: float = 1.0,
    return_parts: bool = False,
) -> Bounds:
    whole = coding_rate_growth(Z, eps2)
    value, gradient, d_labels = 0.0, whole.gradients["Z"].copy(), np.zeros(labels.shape)
    for j, weights in enumerate(labels):
        bounds = coding_rate_growth(Z, eps2, weights=weights)
        share, mass = abs(gamma) / max(len(Z), 1), weights.sum()
        value += share * mass * bounds.outputs[0]
        gradient += share * mass * bounds.gradients["Z"]
        d_labels[j] = share * (mass * bounds.gradients["weights"] + bounds.outputs[0])
    outputs = (whole.outputs[0] + value,) + (
        (whole.outputs[0], value / max(abs(gamma), 1e-300)) if return_parts else ()
    )
    return Bounds(whole.size + len(labels), outputs, {"Z": gradient, "labels": d_labels})


def operator_growth(Z: np.ndarray, alpha: float) -> Bounds:
    M_error = gram_errors(Z, alpha, samples_side=False)[1]
    M = np.abs(np.linalg.inv(np.eye(Z.shape[1]) + alpha * Z.T @ Z))
    # dZ = -alpha^2 Z M (G + G^T) M for the upstream gradient G of M; all ones stand for the worst G of unit size.
    ones = np.ones_like(M)
    spread = M_error @ ones @ M
    return Bounds(sum(Z.shape), (alpha * M_error,), {"Z": 2 * alpha**2 * np.abs(Z) @ (spread + spread.T)})


def spd_growth(A: np.ndarray) -> Bounds:
    inverse = np.abs(np.linalg.inv(A))
    radii = np.sqrt(np.diag(A))
    pivots = np.diag(np.linalg.cholesky(A)) ** 2
    value = radii @ inverse @ radii + np.abs(np.log(pivots)).sum()
    return Bounds(len(A), (value,), {"A": inverse + np.outer(inverse @ radii, radii @ inverse)})
