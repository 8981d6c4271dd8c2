"""Products of Householder reflectors as they are defined, one reflector after the other, in float64 NumPy.

LAPACK: LAPACK Users' Guide, section Orthogonal Factorizations; xORGQR
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def _double(array: ArrayLike) -> Array:
    return np.asarray(array, dtype=np.float64)


def _columns(V: ArrayLike, layout: str) -> Array:
    vectors = _double(V)
    return vectors.swapaxes(-1, -2) if layout == "rows" else vectors


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
    vectors, result = _columns(V, layout), _double(X)
    if side == "right":
        result, transpose = result.swapaxes(-1, -2), not transpose
    scales = taus(vectors) if tau is None else _double(tau)
    batch = np.broadcast_shapes(vectors.shape[:-2], result.shape[:-2], scales.shape[:-1])
    result = np.broadcast_to(result, (*batch, *result.shape[-2:]))
    order = range(vectors.shape[-1])
    for j in order if transpose else reversed(order):
        result = reflect(vectors[..., j], scales[..., j], result)
    result = result + 0
    return result.swapaxes(-1, -2) if side == "right" else result


def householder_product(
    V: ArrayLike,
    tau: ArrayLike | None = None,
    *,
    columns: int | None = None,
    lapack: bool = False,
    layout: str = "columns",
) -> Array:
    """The first columns of Q; with `lapack` the vectors are unit lower triangular and what lies above is not read."""
    vectors = _columns(V, layout)
    length, count = vectors.shape[-2:]
    if lapack:
        vectors = np.tril(vectors, -1) + np.eye(length, count)
    Q = householder_apply(vectors, np.eye(length, min(length, count) if columns is None else columns), tau)
    return Q.swapaxes(-1, -2) if layout == "rows" else Q
