"""Coding rates as the papers write them, in float64 NumPy, one matrix at a time, on the smaller side.

MCR2:    Yu, Chan, You, Song, Ma, Learning Diverse and Discriminative Representations via the Principle of Maximal
         Coding Rate Reduction, 2020, arXiv:2006.08558
ReduNet: Chan, Yu, You, Qi, Wright, Ma, ReduNet: A White-box Deep Network from the Principle of Maximizing Rate
         Reduction, 2022, arXiv:2105.10446
EMP-SSL: Tong, Chen, Ma, LeCun, EMP-SSL: Towards Self-Supervised Learning in One Training Epoch, 2023, arXiv:2304.03977

TiCo:    Zhu, Moraes, Karakulak, Sobol, Canziani, LeCun, TiCo: Transformation Invariance and Covariance Contrast for
         Self-Supervised Visual Representation Learning, 2022, arXiv:2206.10698

The papers hold samples as columns; here they are rows, so their Z Z^T is Z^T Z. eps2 is their epsilon squared.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def spd_logdet(A: ArrayLike, *, return_info: bool = False) -> Any:
    """log det A of the matrix whose lower triangle is given; NaN where it is not positive definite.

    info is the size of the smallest leading block that is not positive definite (Sylvester's criterion), 0 if none.
    """
    A = np.asarray(A, dtype=np.float64)
    lower = np.tril(A)
    symmetric = lower + np.tril(A, -1).swapaxes(-1, -2)
    logdet, info = np.empty(A.shape[:-2]), np.zeros(A.shape[:-2], np.int32)
    for item in np.ndindex(A.shape[:-2]):
        info[item] = _first_bad_minor(symmetric[item])
        logdet[item] = np.nan if info[item] else np.linalg.slogdet(symmetric[item])[1]
    return (logdet, info) if return_info else logdet


def _first_bad_minor(matrix: Array) -> int:
    for size in range(1, len(matrix) + 1):
        block = matrix[:size, :size]
        if not np.isfinite(block).all() or not np.linalg.slogdet(block)[0] > 0:
            return size
    return 0


def logdet_gram(Z: ArrayLike, alpha: float, *, return_info: bool = False) -> Any:
    """log det (I + alpha Z^T Z)."""
    return coding_rate(Z, None, alpha=alpha, scale=1.0, return_info=return_info)


def coding_rate(
    Z: ArrayLike,
    eps2: float | None,
    *,
    weights: ArrayLike | None = None,
    alpha: float | None = None,
    scale: float = 0.5,
    side: str = "auto",
    return_info: bool = False,
) -> Any:
    """R(Z, eps) = 1/2 log det (I + d/(n eps^2) Z^T Z): MCR2's coding rate, EMP-SSL's total coding rate.

    With weights the rate inside MCR2's R^c(Z, eps | Pi): Z^T Pi Z with Pi = diag(w), and tr(Pi) for n. `side` makes no
    difference here.
    """
    Z = np.asarray(Z, dtype=np.float64)
    w = np.ones(Z.shape[:-1]) if weights is None else np.asarray(weights, dtype=np.float64)
    batch = np.broadcast_shapes(Z.shape[:-2], w.shape[:-1])
    Z, w = np.broadcast_to(Z, batch + Z.shape[-2:]), np.broadcast_to(w, batch + w.shape[-1:])
    rate, info = np.empty(batch), np.zeros(batch, np.int32)
    for item in np.ndindex(batch):
        rate[item] = scale * _logdet_identity_plus(Z[item], w[item], eps2, alpha)
        info[item] = 0 if np.isfinite(rate[item]) else -1
    return (rate, info) if return_info else rate


def _logdet_identity_plus(Z: Array, w: Array, eps2: float | None, alpha: float | None) -> float:
    features = Z.shape[1]
    if alpha is None:
        assert eps2 is not None
        if w.sum() == 0:  # the rate of nothing
            return 0.0
        alpha = features / (w.sum() * eps2)
    # det (I + alpha Z^T W Z) = det (I + alpha W Z Z^T) by Sylvester: the larger side has eigenvalues 1 that come out of
    # numbers as large as alpha |Z|^2, with their rounding errors.
    small = Z.T @ (w[:, None] * Z) if features <= len(Z) else w[:, None] * (Z @ Z.T)
    if not np.isfinite(small).all():
        return np.nan
    return float(np.linalg.slogdet(np.eye(len(small)) + alpha * small)[1])


def class_coding_rates(
    Z: ArrayLike, labels: ArrayLike, eps2: float, *, num_classes: int | None = None
) -> tuple[Array, Array]:
    """The rates that MCR2's R^c(Z, eps | Pi) averages, and their masses tr(Pi_j).

    Pi_j = diag(label = j) for integer labels, diag(membership[j]) for a membership (*batch, k, n).
    """
    Z, membership = np.asarray(Z, dtype=np.float64), np.asarray(labels)
    if np.issubdtype(membership.dtype, np.integer):
        count = int(membership.max()) + 1 if num_classes is None else num_classes
        membership = membership[..., None, :] == np.arange(count)[:, None]
    membership = membership.astype(np.float64)
    rates = coding_rate(Z[..., None, :, :], eps2, weights=membership)
    return rates, np.broadcast_to(membership.sum(-1), rates.shape).copy()


def rate_reduction(
    Z: ArrayLike,
    labels: ArrayLike,
    eps2: float,
    *,
    num_classes: int | None = None,
    gamma: float = 1.0,
    return_parts: bool = False,
) -> Any:
    """MCR2's Delta R = R - gamma R^c, R^c = sum_j tr(Pi_j)/(2n) log det (I + d/(tr(Pi_j) eps^2) Z^T Pi_j Z)."""
    rate = coding_rate(Z, eps2)
    rates, mass = class_coding_rates(Z, labels, eps2, num_classes=num_classes)
    compressed = (mass * rates).sum(-1) / max(np.shape(Z)[-2], 1)
    reduction = rate - gamma * compressed
    return (reduction, rate, compressed) if return_parts else reduction


def rate_operator(Z: ArrayLike, alpha: float) -> Array:
    """E = alpha (I + alpha Z^T Z)^{-1}, ReduNet's expansion operator; of the samples of one class its compression."""
    Z = np.asarray(Z, dtype=np.float64)
    operator = np.empty((*Z.shape[:-2], Z.shape[-1], Z.shape[-1]))
    for item in np.ndindex(Z.shape[:-2]):
        operator[item] = alpha * np.linalg.inv(np.eye(Z.shape[-1]) + alpha * Z[item].T @ Z[item])
    return operator


def covariance_contrast(z: ArrayLike, C: ArrayLike, beta: float, *, detach_covariance: bool = False) -> Any:
    """TiCo's mean of z_i C' z_i with C' = beta C + (1 - beta) z^T z / n, and C'. Detaching makes no difference here."""
    z, C = np.asarray(z, dtype=np.float64), np.asarray(C, dtype=np.float64)
    samples, features = z.shape[-2:]
    batch = np.broadcast_shapes(z.shape[:-2], C.shape[:-2])
    covariance = beta * C + (1 - beta) * z.swapaxes(-1, -2) @ z / max(samples, 1)
    contrast = ((z @ covariance) * z).sum((-1, -2)) / max(samples, 1)
    return contrast, np.broadcast_to(covariance, (*batch, features, features)).copy()
