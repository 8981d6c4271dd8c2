"""Maps of the Grassmann manifold as the literature states them, in float64 NumPy: by singular value decompositions.

Edelman: Edelman, Arias, Smith, The Geometry of Algorithms with Orthogonality Constraints, 1998, arXiv:physics/9806030
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def _columns(basis: ArrayLike, layout: str) -> Array:
    array: Array = np.asarray(basis, dtype=np.float64)
    return array.swapaxes(-1, -2) if layout == "rows" else array


def _projected(X: Array, D: Array, project: bool) -> Array:
    return D - X @ (X.swapaxes(-1, -2) @ D) if project else D


def _svd(D: Array) -> tuple[Array, Array, Array]:
    """U, S and V of D; NaN for an item that is not finite."""
    finite = np.asarray(np.isfinite(D).all((-1, -2)))[..., None, None]
    if not D.size:
        rank = min(D.shape[-2:])
        return D[..., :rank], np.zeros((*D.shape[:-2], rank)), np.zeros((*D.shape[:-2], D.shape[-1], rank))
    U, S, Vt = np.linalg.svd(np.where(finite, D, 0), full_matrices=False)
    bad = np.where(finite, 0, np.nan)
    return U + bad, S + bad[..., 0], Vt.swapaxes(-1, -2) + bad


def grassmann_exp(X: ArrayLike, D: ArrayLike, *, project: bool = False, layout: str = "columns") -> Array:
    """Edelman eq. 2.65, X V cos(S) V^T + U sin(S) V^T; on the complement of V's columns the cosine is 1."""
    x, d = _columns(X, layout), _columns(D, layout)
    U, S, V = _svd(_projected(x, d, project))
    Vt = V.swapaxes(-1, -2)
    moved: Any = x + x @ (V * (np.cos(S) - 1)[..., None, :]) @ Vt + (U * np.sin(S)[..., None, :]) @ Vt
    return _columns(moved, layout)


def grassmann_transport(X: ArrayLike, D: ArrayLike, V: ArrayLike, *, layout: str = "columns") -> Array:
    """Edelman eq. 2.68: V - U U^T V + (-X W sin(S) + U cos(S)) U^T V for D = U S W^T."""
    x, d, v = _columns(X, layout), _columns(D, layout), _columns(V, layout)
    U, S, W = _svd(d)
    along = U.swapaxes(-1, -2) @ v
    sine, cosine = np.sin(S)[..., None, :], np.cos(S)[..., None, :]
    moved: Any = v + (U * (cosine - 1) - (x @ W) * sine) @ along
    return _columns(moved, layout)


def grassmann_log(X: ArrayLike, Y: ArrayLike, *, layout: str = "columns") -> Array:
    """The tangent vector that exp takes from span X to span Y: U theta W^T of (Y - X X^T Y) (X^T Y)^-1 = U S W^T with
    theta = arctan S; Absil, Mahony, Sepulchre 2004, Riemannian Geometry of Grassmann Manifolds, section 3.8."""
    x, y = _columns(X, layout), _columns(Y, layout)
    cross = x.swapaxes(-1, -2) @ y
    slope = (y - x @ cross) @ np.linalg.inv(cross)
    U, S, W = _svd(slope)
    moved: Any = (U * np.arctan(S)[..., None, :]) @ W.swapaxes(-1, -2)
    return _columns(moved, layout)
