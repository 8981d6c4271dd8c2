"""Products of Householder reflectors as they are defined, one reflector after the other, in float64 NumPy.

LAPACK: LAPACK Users' Guide, section Orthogonal Factorizations; xORGQR
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def _double(array: ArrayLike) -> Array:
    return np.asarray(array, dtype=np.float64)


def reflect(v: Array, tau: Array, X: Array) -> Array:
    """(I - tau v v^T) X."""
    result: Array = X - tau[..., None, None] * v[..., :, None] * (v[..., None, :] @ X)
    return result


def taus(V: Array) -> Array:
    """2 / ||v||^2, and 0 for a reflector of zeros."""
    squares = (V * V).sum(-2)
    result: Array = np.where(squares == 0, 0.0, 2 / np.where(squares == 0, 1, squares))
    return result


def householder_apply(
    V: ArrayLike,
    X: ArrayLike,
    tau: ArrayLike | None = None,
    *,
    transpose: bool = False,
    side: str = "left",
    layout: str = "columns",
) -> Array:
    """Q X = H_1 (H_2 ... (H_k X)); Q^T X takes the reflectors in the other order, and X Q is (Q^T X^T)^T."""
    V, X = _double(V), _double(X)
    if layout == "rows":
        V = V.swapaxes(-1, -2)
    if side == "right":
        X, transpose = X.swapaxes(-1, -2), not transpose
    scales = taus(V) if tau is None else _double(tau)
    count = V.shape[-1]
    batch = np.broadcast_shapes(V.shape[:-2], X.shape[:-2], scales.shape[:-1])
    V = np.broadcast_to(V, (*batch, *V.shape[-2:]))
    X = np.broadcast_to(X, (*batch, *X.shape[-2:]))
    for j in range(count) if transpose else reversed(range(count)):
        X = reflect(V[..., j], scales[..., j], X)
    X = X + 0
    return X.swapaxes(-1, -2) if side == "right" else X


def householder_product(
    V: ArrayLike,
    tau: ArrayLike | None = None,
    *,
    columns: int | None = None,
    lapack: bool = False,
    layout: str = "columns",
) -> Array:
    """The first columns of Q; with `lapack` the vectors are unit lower triangular and what lies above is not read."""
    V = _double(V)
    if layout == "rows":
        V = V.swapaxes(-1, -2)
    length, count = V.shape[-2:]
    if lapack:
        V = np.tril(V, -1) + np.eye(length, count)
    Q = householder_apply(V, np.eye(length, min(length, count) if columns is None else columns), tau)
    return Q.swapaxes(-1, -2) if layout == "rows" else Q
