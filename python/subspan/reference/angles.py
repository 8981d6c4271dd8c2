"""Principal angles and what is made of them, in float64 NumPy, one pair at a time.

Bjorck, Golub, Numerical methods for computing angles between linear subspaces, 1973.
Ye, Lim, Schubert varieties and distances between subspaces of different dimension, 2016, arXiv:1407.0900.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def _basis(A: Array, rank_tol: float) -> Array:
    """Orthonormal columns for those that the columns before them do not span."""
    columns: list[Array] = []
    for a in A.T:
        rest = a.copy()
        for _ in range(2):
            for q in columns:
                rest = rest - (q @ rest) * q
        norm = np.linalg.norm(rest)
        if not norm <= rank_tol * np.linalg.norm(a):
            columns.append(rest / norm)
    return np.stack(columns, 1) if columns else np.zeros((len(A), 0))


def _pair(A: Array, B: Array, orthonormal: bool, rank_tol: float) -> tuple[Array, int]:
    """Ascending angles, and how many the ranks leave."""
    count = min(A.shape[1], B.shape[1])
    if not (np.isfinite(A).all() and np.isfinite(B).all()):
        return np.full(count, np.nan), -1
    Q, P = (A, B) if orthonormal else (_basis(A, rank_tol), _basis(B, rank_tol))
    if Q.shape[1] < P.shape[1]:
        Q, P = P, Q
    rank = P.shape[1]
    cosines = np.linalg.svd(Q.T @ P, compute_uv=False)[:rank]
    sines = np.linalg.svd(P - Q @ (Q.T @ P), compute_uv=False)[::-1][:rank]
    angles = np.full(count, np.pi / 2)
    angles[:rank] = np.arctan2(sines, cosines)
    return angles, min(Q.shape[1], P.shape[1])


def _angles(
    A: ArrayLike, B: ArrayLike, pairwise: bool, orthonormal: bool, rank_tol: float | None, layout: str
) -> tuple[Array, NDArray[np.int32], int]:
    """Angles, ranks and the difference of the dimensions."""
    a, b = np.asarray(A, np.float64), np.asarray(B, np.float64)
    if layout == "rows":
        a, b = a.swapaxes(-1, -2), b.swapaxes(-1, -2)
    if pairwise:
        a, b = a[..., :, None, :, :], b[..., None, :, :, :]
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = np.broadcast_to(a, batch + a.shape[-2:]), np.broadcast_to(b, batch + b.shape[-2:])
    tolerance = a.shape[-2] * 2.0**-52 if rank_tol is None else rank_tol
    angles, ranks = np.empty((*batch, min(a.shape[-1], b.shape[-1]))), np.empty(batch, np.int32)
    for item in np.ndindex(batch):
        angles[item], ranks[item] = _pair(a[item], b[item], orthonormal, tolerance)
    return angles, ranks, abs(a.shape[-1] - b.shape[-1])


def principal_angles(
    A: ArrayLike,
    B: ArrayLike,
    *,
    pairwise: bool = False,
    assume_orthonormal: bool = False,
    order: str = "ascending",
    rank_tol: float | None = None,
    return_info: bool = False,
    layout: str = "columns",
) -> Any:
    angles, ranks, _ = _angles(A, B, pairwise, assume_orthonormal, rank_tol, layout)
    angles = angles[..., ::-1] if order == "descending" else angles
    return (angles, ranks) if return_info else angles


def principal_cosines(
    A: ArrayLike,
    B: ArrayLike,
    *,
    pairwise: bool = False,
    assume_orthonormal: bool = False,
    rank_tol: float | None = None,
    layout: str = "columns",
) -> Any:
    return np.cos(_angles(A, B, pairwise, assume_orthonormal, rank_tol, layout)[0])


def subspace_distance(
    A: ArrayLike,
    B: ArrayLike,
    metric: str = "geodesic",
    *,
    squared: bool = False,
    pairwise: bool = False,
    unequal: str = "nearest",
    assume_orthonormal: bool = False,
    rank_tol: float | None = None,
    layout: str = "columns",
) -> Any:
    """Ye and Lim, table 2; with "padded" their distances d, with "nearest" their delta."""
    angles, _, difference = _angles(A, B, pairwise, assume_orthonormal, rank_tol, layout)
    padding = difference if unequal == "padded" else 0
    if metric != "projection":
        angles = np.concatenate([angles, np.full((*angles.shape[:-1], padding), np.pi / 2)], -1)
    largest = angles.max(-1, initial=0)
    product = np.cos(angles).prod(-1)
    with np.errstate(divide="ignore"):
        squares = {
            "geodesic": (angles**2).sum(-1),
            "chordal": (np.sin(angles) ** 2).sum(-1),
            "projection": 2 * (np.sin(angles) ** 2).sum(-1) + padding,
            "procrustes": 4 * (np.sin(angles / 2) ** 2).sum(-1),
            "fubini_study": np.arctan2(np.sqrt(-np.expm1(2 * np.log(np.cos(angles)).sum(-1))), product) ** 2,
            "binet_cauchy": -np.expm1(2 * np.log(np.cos(angles)).sum(-1)),
            "asimov": largest**2,
            "spectral": 4 * np.sin(largest / 2) ** 2,
            "gap": np.sin(largest) ** 2,
            "martin": -2 * np.log(np.cos(angles)).sum(-1),
        }
    square = squares[metric]
    return square if squared else np.sqrt(square)


def subspace_similarity(
    A: ArrayLike,
    B: ArrayLike,
    kind: str = "mean_cos2",
    *,
    pairwise: bool = False,
    assume_orthonormal: bool = False,
    rank_tol: float | None = None,
    layout: str = "columns",
) -> Any:
    cosines = principal_cosines(
        A, B, pairwise=pairwise, assume_orthonormal=assume_orthonormal, rank_tol=rank_tol, layout=layout
    )
    if kind == "max_cos":
        return cosines.max(-1, initial=0)
    overlap = (cosines**2).sum(-1)
    return overlap / max(cosines.shape[-1], 1) if kind == "mean_cos2" else overlap
