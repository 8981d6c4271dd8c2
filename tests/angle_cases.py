"""Pairs of subspaces whose principal angles are known, and the angles of any pair to 50 digits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import mpmath
import numpy as np
import torch
from torch import Tensor

from sample_arrays import normal

DOUBLE = torch.float64
QUARTER = math.pi / 4
HALF = math.pi / 2

#: Angles of one pair by name; ascending.
ANGLES: dict[str, tuple[float, ...]] = {
    "zero": (0.0, 0.0, 0.0),
    "1e-11": (1e-11, 1e-11),
    "1e-11 beside 1.4": (1e-11, 1.4),
    "1e-9 beside 1.4": (1e-9, 1.4),
    "1e-11 to 1e-3": (1e-11, 1e-9, 1e-6, 1e-3),
    "1e-10 to right": (1e-10, 1e-5, 0.3, 1.57),
    "1e-8, 1, right": (1e-8, 1.0, HALF),
    "45 degrees": (QUARTER - 1e-8, QUARTER - 1e-15, QUARTER, QUARTER + 1e-15, QUARTER + 1e-8),
    "right": (HALF, HALF),
    "nearly right": (HALF - 1e-7, HALF - 2e-8, HALF - 1e-11),
    "small and nearly right": (1e-9, 0.1, HALF - 1e-6, HALF - 1e-7, HALF - 1e-8, HALF - 2e-9),
    "repeated": (0.3, 0.3, 0.3, 0.3),
    "repeated and not": (0.0, 0.0, 0.3, 0.3, 1.2, 1.2, HALF),
    "repeated to eight digits": (0.3, 0.3 + 1e-8, 0.3 + 2e-8),
    "tiny, repeated": (1e-11, 1e-11, 1e-7, 1e-7, 0.7),
    "eight": (1e-11, 1e-4, 0.2, 0.5, 0.8, 1.1, 1.4, 1.5),
}


def orthogonal(seed: int, n: int) -> Tensor:
    return torch.linalg.qr(normal(seed, n, n)).Q.contiguous()


def invertible(seed: int, k: int, condition: float = 1.0) -> Tensor:
    """With singular values from 1 down to 1 / condition."""
    values = torch.logspace(0, -math.log10(condition), max(k, 1), dtype=DOUBLE)[:k]
    return orthogonal(seed, k) * values @ orthogonal(seed + 1, k)


def pair(
    seed: int,
    n: int,
    angles: Sequence[float],
    p: int | None = None,
    q: int | None = None,
    condition: float | None = None,
) -> tuple[Tensor, Tensor]:
    """A (n, p) and B (n, q) with these min(p, q) angles: orthonormal, or of that condition number.

    Directions of A and of its complement are the columns of one orthogonal matrix; B turns some of A's by the angles.
    """
    p, q = len(angles) if p is None else p, len(angles) if q is None else q
    if p < q:
        B, A = pair(seed, n, angles, q, p, condition)
        return A, B
    assert len(angles) == q
    Q = orthogonal(seed, n)
    turned = [i for i in range(q) if angles[i] != 0]
    assert p + len(turned) <= n, "as many angles are zero as the space is too small"
    A, B = Q[:, :p].clone(), Q[:, :q].clone()
    for k, i in enumerate(turned):
        B[:, i] = math.cos(angles[i]) * Q[:, i] + math.sin(angles[i]) * Q[:, p + k]
    # Turned within their spans: no principal vector is a basis vector.
    A, B = A @ orthogonal(seed + 1, p), B @ orthogonal(seed + 2, q)
    if condition is not None:
        A, B = A @ invertible(seed + 3, p, condition), B @ invertible(seed + 5, q, condition)
    return A, B


def angle_bound(n: int, condition: float = 1.0) -> float:
    """What is promised in float64: the error of an angle."""
    return 1e-14 * math.sqrt(n) * condition


# --- to 50 digits -----------------------------------------------------------------------------------------------------


def _matrix(A: Tensor) -> mpmath.matrix:
    return mpmath.matrix([[float(x) for x in row] for row in A.double().tolist()])


def exact_singular_values(M: Tensor | mpmath.matrix) -> list[mpmath.mpf]:
    """Descending."""
    M = _matrix(M) if isinstance(M, Tensor) else M
    return sorted(mpmath.svd_r(M, compute_uv=False), reverse=True)


def exact_angles(A: Tensor, B: Tensor) -> list[mpmath.mpf]:
    """Ascending. By QR of both and singular values in 60 digits, of which the arccos leaves 30 near zero."""
    with mpmath.workdps(60):
        Q_A, Q_B = (mpmath.qr(_matrix(X), mode="skinny")[0] for X in (A, B))
        return [mpmath.acos(min(c, mpmath.mpf(1))) for c in exact_singular_values(Q_A.T * Q_B)]


Formula = Callable[[list[mpmath.mpf]], mpmath.mpf]


def _product(angles: list[mpmath.mpf]) -> mpmath.mpf:
    return mpmath.fprod(mpmath.cos(t) for t in angles)


#: Distances of angles, as the table of Ye and Lim has them (projection is the norm of the difference of projections).
METRICS: dict[str, Formula] = {
    "geodesic": lambda t: mpmath.sqrt(mpmath.fsum(x**2 for x in t)),
    "chordal": lambda t: mpmath.sqrt(mpmath.fsum(mpmath.sin(x) ** 2 for x in t)),
    "projection": lambda t: mpmath.sqrt(2 * mpmath.fsum(mpmath.sin(x) ** 2 for x in t)),
    "procrustes": lambda t: 2 * mpmath.sqrt(mpmath.fsum(mpmath.sin(x / 2) ** 2 for x in t)),
    "fubini_study": lambda t: mpmath.acos(_product(t)),
    "binet_cauchy": lambda t: mpmath.sqrt(1 - _product(t) ** 2),
    "asimov": max,
    "spectral": lambda t: 2 * mpmath.sin(max(t) / 2),
    "gap": lambda t: mpmath.sin(max(t)),
    "martin": lambda t: mpmath.sqrt(-2 * mpmath.log(_product(t))),
}
SIMILARITIES: dict[str, Formula] = {
    "mean_cos2": lambda t: mpmath.fsum(mpmath.cos(x) ** 2 for x in t) / len(t),
    "max_cos": lambda t: mpmath.cos(min(t)),
    "overlap": lambda t: mpmath.fsum(mpmath.cos(x) ** 2 for x in t),
}

#: Whose squares are smooth functions of the bases wherever no angle is pi/2, at zero and repeated angles too.
SMOOTH = ("geodesic", "chordal", "projection", "procrustes", "fubini_study", "binet_cauchy", "martin")


def formula(formula: Formula, angles: Sequence[float | mpmath.mpf]) -> float:
    with mpmath.workdps(60):
        return float(formula([mpmath.mpf(t) for t in angles]))


# --- bounds -----------------------------------------------------------------------------------------------------------


def unit(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def double(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE)


def largest(difference: Tensor | np.ndarray) -> float:
    """0 for nothing; NaN where one is."""
    difference = torch.as_tensor(difference).detach().abs()
    return float(difference.max()) if difference.numel() else 0.0
