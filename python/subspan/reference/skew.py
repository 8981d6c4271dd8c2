"""Orthogonal matrices of skew ones as the literature states them, in float64 NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def _skew_part(A: ArrayLike) -> tuple[Array, Any]:
    """K, 0 for an item that is not finite, and NaN for that item, to be added."""
    a = np.asarray(A, np.float64)
    finite = np.asarray(np.isfinite(a).all((-1, -2)))[..., None, None]
    a = np.where(finite, a, 0.0)
    return (a - a.swapaxes(-1, -2)) / 2, np.where(finite, 0.0, np.nan)


def cayley(A: ArrayLike) -> Array:
    """Cayley 1846: (I - K/2)^-1 (I + K/2)."""
    K, bad = _skew_part(A)
    identity = np.eye(K.shape[-1])
    Q: Array = np.linalg.solve(identity - K / 2, identity + K / 2) + bad
    return Q


def skew_expm(A: ArrayLike) -> Array:
    """exp K = V diag(exp(i w)) V^H for the eigenvectors of the Hermitian matrix -i K = V diag(w) V^H."""
    K, bad = _skew_part(A)
    if not K.size:
        return K
    values, V = np.linalg.eigh(-1j * K)
    Q: Array = (V * np.exp(1j * values)[..., None, :] @ V.conj().swapaxes(-1, -2)).real + bad
    return Q
