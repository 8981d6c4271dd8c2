"""Maps of the Stiefel manifold as the literature states them, in float64 NumPy: with n x n matrices.

Edelman: Edelman, Arias, Smith, The Geometry of Algorithms with Orthogonality Constraints, 1998, arXiv:physics/9806030
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .skew import cayley, skew_expm

Array = NDArray[np.float64]


def _columns(basis: ArrayLike, layout: str) -> Array:
    array: Array = np.asarray(basis, dtype=np.float64)
    return array.swapaxes(-1, -2) if layout == "rows" else array


def generator(X: Array, V: Array) -> Array:
    """Wen and Yin 2013, eq. 10: W = P X^T - X P^T with P = (I - X X^T / 2) V."""
    P = V - X @ (X.swapaxes(-1, -2) @ V) / 2
    half = P @ X.swapaxes(-1, -2)
    W: Array = half - half.swapaxes(-1, -2)
    return W


def retract(X: ArrayLike, V: ArrayLike, method: str = "qr", *, layout: str = "columns") -> Array:
    """Absil, Mahony, Sepulchre 2008, example 4.1.3 ("qr", "polar"); Wen and Yin 2013, lemma 3 ("cayley"); Edelman
    section 2.4.1 ("exp")."""
    x, v = _columns(X, layout), _columns(V, layout)
    if method in ("cayley", "exp"):
        moved: Any = (cayley if method == "cayley" else skew_expm)(generator(x, v)) @ x
    elif method == "polar":
        U, _, Vh = np.linalg.svd(x + v, full_matrices=False)
        moved = U @ Vh
    else:
        Q, R = np.linalg.qr(x + v)
        moved = Q * np.where(np.diagonal(R, axis1=-2, axis2=-1) < 0, -1, 1)[..., None, :]
    return _columns(moved, layout)
