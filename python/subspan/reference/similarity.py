"""Similarity of representations as the papers write it, in float64 NumPy, one pair at a time; samples are rows.

Hotelling:  Hotelling, Relations between Two Sets of Variates, 1936
SVCCA:      Raghu, Gilmer, Yosinski, Sohl-Dickstein, SVCCA: Singular Vector Canonical Correlation Analysis for Deep
            Learning Dynamics and Interpretability, 2017, arXiv:1706.05806
PWCCA:      Morcos, Raghu, Bengio, Insights on Representational Similarity in Neural Networks with Canonical
            Correlation, 2018, arXiv:1806.05759
CKA:        Kornblith, Norouzi, Lee, Hinton, Similarity of Neural Network Representations Revisited, 2019,
            arXiv:1905.00414
HSIC:       Song, Smola, Gretton, Bedo, Borgwardt, Feature Selection via Dependence Maximization, 2012
Procrustes: Ding, Denain, Steinhardt, Grounding Representation Similarity with Statistical Testing, 2021,
            arXiv:2108.01661; Williams, Kunz, Kornblith, Linderman, Generalized Shape Metrics on Neural
            Representations, 2021, arXiv:2110.14739
VNE:        Kim, Kang, Hwang, Shin, Rhee, VNE: An Effective Method for Improving Deep Representation by Manipulating
            Eigenvalue Distribution, 2023, arXiv:2304.01434
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def _centred(X: ArrayLike) -> Array:
    X = np.asarray(X, dtype=np.float64)
    centred: Array = X - X.mean(0)
    return centred


def _directions(X: ArrayLike, tolerance: float) -> tuple[Array, Array]:
    """Left singular vectors and singular values of centred X above the tolerance."""
    U, s, _ = np.linalg.svd(_centred(X), full_matrices=False)
    kept = s > max(tolerance * s.max(initial=0), 1e-13 * np.abs(X).max(initial=0))
    return U[:, kept], s[kept]


def canonical_correlations(X: ArrayLike, Y: ArrayLike, tolerance: float = 1e-12) -> Array:
    """Hotelling's rho_i, as many as the lower rank: singular values of the product of orthonormal bases."""
    U, V = (_directions(Z, tolerance)[0] for Z in (X, Y))
    return np.minimum(np.linalg.svd(U.T @ V, compute_uv=False), 1.0)


def cca(X: ArrayLike, Y: ArrayLike, tolerance: float = 1e-12) -> Array:
    """With zeros for directions that X or Y lacks."""
    rho = canonical_correlations(X, Y, tolerance)
    return np.pad(rho, (0, min(np.shape(X)[1], np.shape(Y)[1]) - len(rho)))


def svcca(X: ArrayLike, Y: ArrayLike, rank: int | None = None, energy: float = 0.99, tolerance: float = 1e-12) -> float:
    """SVCCA, section 2.1: CCA of the leading singular directions, averaged."""
    spaces = []
    for Z in (X, Y):
        U, s = _directions(Z, tolerance)
        reached = np.cumsum(s**2) / (s**2).sum() >= energy * (1 - 1e-15)
        spaces.append(U[:, : rank or int(reached.argmax()) + 1])
    return float(np.linalg.svd(spaces[0].T @ spaces[1], compute_uv=False).mean())


def pwcca(X: ArrayLike, Y: ArrayLike, tolerance: float = 1e-12) -> float:
    """PWCCA, eq. 3."""
    U, V = (_directions(Z, tolerance)[0] for Z in (X, Y))
    left, rho, _ = np.linalg.svd(U.T @ V, full_matrices=False)
    weights = np.abs(_centred(X).T @ (U @ left)).sum(0)
    return float((weights * rho).sum() / weights.sum())


def _hsic(K: Array, L: Array, debiased: bool) -> float:
    n = len(K)
    if not debiased:
        H = np.eye(n) - 1 / n
        return float(np.trace(K @ H @ L @ H))  # CKA, eq. 3, times (n - 1)^2
    K, L = (G - np.diag(np.diag(G)) for G in (K, L))  # HSIC, eq. 5
    return float(
        (np.trace(K @ L) + K.sum() * L.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (K @ L).sum()) / (n * (n - 3))
    )


def linear_cka(X: ArrayLike, Y: ArrayLike, debiased: bool = False) -> float:
    """CKA, eq. 4, with linear kernels."""
    K, L = (np.asarray(Z, np.float64) @ np.asarray(Z, np.float64).T for Z in (X, Y))
    return _hsic(K, L, debiased) / math.sqrt(_hsic(K, K, debiased) * _hsic(L, L, debiased))


def procrustes_distance(X: ArrayLike, Y: ArrayLike, metric: str = "chordal") -> float:
    """Procrustes: the least ||X Q - Y||_F over orthogonal Q (Schonemann 1966), or the angle between X Q and Y."""
    shapes = [_centred(Z) / np.linalg.norm(_centred(Z)) for Z in (X, Y)]
    width = max(Z.shape[1] for Z in shapes)
    A, B = (np.pad(Z, ((0, 0), (0, width - Z.shape[1]))) for Z in shapes)
    U, s, Vt = np.linalg.svd(A.T @ B)
    if metric == "angular":
        return float(np.arccos(min(s.sum(), 1.0)))
    return float(np.linalg.norm(A @ U @ Vt - B))


def von_neumann_entropy(H: ArrayLike, normalize: bool = True) -> float:
    """VNE, eq. 4: C = sum_i h_i h_i^T / n of unit h_i, and 0 log 0 = 0."""
    H = np.asarray(H, dtype=np.float64)
    if normalize:
        norms = np.linalg.norm(H, axis=1, keepdims=True)
        H = H / np.where(norms > 0, norms, 1)
    values = np.linalg.eigvalsh(H.T @ H / len(H))
    values = values[values > 1e-15 * max(values.max(), 1e-300)]
    return float(-(values * np.log(values)).sum())


def pairwise(function: Any, Xs: Any, Ys: Any = None, **settings: Any) -> Array:
    """One pair after the other."""
    return np.array([[function(X, Y, **settings) for Y in (Xs if Ys is None else Ys)] for X in Xs])
