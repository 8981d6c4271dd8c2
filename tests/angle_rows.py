"""The rows of the op table for principal angles, distances and similarities, paired and pairwise, and small singular
values.

A bound counts how an error of one rounding in the bases moves an angle: by their condition numbers, wherever the angle
lies. The gradient of a basis Q R is that of Q times R^{-T}; that of a single angle also moves with its principal
vectors, by the reciprocal of its distance to the others and to 0 and pi / 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import subspan
from op_row import BadInput, Bounds, Op, Sample
from sample_arrays import normal
from subspan.reference import angles as reference

#: (*batch, n), p, q by name. "batch" and "many" fill and overfill the lanes.
PAIRS: dict[str, tuple[tuple[int, ...], int, int]] = {
    "tall": ((12,), 3, 3),
    "narrow and wide": ((9,), 2, 5),
    "wide and narrow": ((9,), 5, 2),
    "lines": ((6,), 1, 1),
    "one entry": ((1,), 1, 1),
    "batch": ((3, 7), 4, 2),
    "two batch dimensions": ((2, 2, 6), 2, 2),
    "empty batch": ((0, 4), 2, 2),
    "many": ((37, 6), 3, 2),
    "long": ((130,), 9, 10),
}
LARGE = {"large": ((3, 900), 40, 33), "large batch": ((150, 70), 6, 6)}


def pair(seed: int, shape: tuple[int, ...], p: int, q: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Bases of which the second holds directions close to some of the first: angles of every size."""
    A, B = normal(seed, *shape, p, dtype=dtype), normal(seed + 100, *shape, q, dtype=dtype)
    near = min(p, q) // 2
    B[..., :near] = A[..., :near] + 0.1 * B[..., :near]
    return {"A": A, "B": B}


def samples(dtype: torch.dtype, shapes: Any = PAIRS, **options: Any) -> list[Sample]:
    return [
        Sample(name, pair(seed, shape, p, q, dtype) | options)
        for seed, (name, (shape, p, q)) in enumerate(shapes.items())
    ]


def degenerate(**options: Any) -> list[Sample]:
    """Where angles repeat or vanish. A gradient taken through a singular value decomposition would fail here."""
    Q = torch.linalg.qr(normal(1, 9, 6)).Q
    turned = Q[:, :3] * np.cos(0.3) + Q[:, 3:] * np.sin(0.3)
    general = normal(2, 3, 3)
    some = Q[:, :3].clone()
    some[:, 2] = turned[:, 2]
    points = {
        "equal spaces": (Q[:, :3].clone(), Q[:, :3].clone()),
        "equal spans": (Q[:, :3].clone(), Q[:, :3] @ general),
        "equal angles": (Q[:, :3] @ general, turned),
        "some equal to zero": (Q[:, :3].clone(), some),
        "contained": (Q[:, :2].clone(), Q[:, :4] @ normal(3, 4, 4)),
    }
    return [Sample(name, {"A": A, "B": B} | options) for name, (A, B) in points.items()]


def bad_inputs() -> list[BadInput]:
    return [
        BadInput("other length", {"B": torch.ones(3, 8, 3).double()}, ValueError, "B", ("(3, 7, 4)", "(3, 8, 3)")),
        BadInput("more vectors than entries", {"A": torch.ones(3, 7, 8).double()}, ValueError, "A", ("8", "7")),
        BadInput("batch", {"B": torch.ones(2, 7, 3).double()}, ValueError, "A", ("(3, 7, 4)", "(2, 7, 3)")),
        BadInput("rank_tol negative", {"rank_tol": -1.0}, ValueError, "rank_tol"),
        BadInput("rank_tol NaN", {"rank_tol": float("nan")}, ValueError, "rank_tol"),
        BadInput("rank_tol string", {"rank_tol": "0"}, TypeError, "rank_tol"),
        BadInput("layout", {"layout": "column"}, ValueError, "layout"),
        BadInput("pairwise number", {"pairwise": 1}, TypeError, "pairwise"),
        BadInput("assume_orthonormal None", {"assume_orthonormal": None}, TypeError, "assume_orthonormal"),
    ]


def condition(A: np.ndarray) -> tuple[float, float]:
    """|A| |A^+| and |A^+|, of independent columns."""
    if not A.size:
        return 1.0, 1.0
    values = np.linalg.svd(A / np.linalg.norm(A, axis=0), compute_uv=False)
    return values[0] / values[-1], 1 / np.linalg.svd(A, compute_uv=False)[-1]


def angle_growth(A: np.ndarray, B: np.ndarray, **_: Any) -> Bounds:
    angles = reference.principal_angles(A, B)
    (kappa_A, inverse_A), (kappa_B, inverse_B) = condition(A), condition(B)
    kappa = kappa_A + kappa_B
    apart = np.abs(angles[:, None] - angles) + np.eye(len(angles)) * np.pi
    gap = min(apart.min(initial=1), angles.min(initial=1), (np.pi / 2 - angles).min(initial=1))
    moved = kappa / max(gap, 1e-16) + 1
    gradients = {"A": np.full(A.shape, moved * inverse_A), "B": np.full(B.shape, moved * inverse_B)}
    return Bounds(sum(A.shape) + B.shape[1], (kappa + angles,), gradients)


def cosine_growth(A: np.ndarray, B: np.ndarray, **_: Any) -> Bounds:
    return angle_growth(A, B)


def smooth_growth(A: np.ndarray, B: np.ndarray, *_: Any, **__: Any) -> Bounds:
    """Of sums over angles of functions with derivatives of about 4."""
    (kappa_A, inverse_A), (kappa_B, inverse_B) = condition(A), condition(B)
    kappa, count = kappa_A + kappa_B, min(A.shape[1], B.shape[1])
    gradients = {"A": np.full(A.shape, 8 * kappa * inverse_A), "B": np.full(B.shape, 8 * kappa * inverse_B)}
    return Bounds(sum(A.shape) + B.shape[1], (8 * count * kappa + 0.0,), gradients)


ARRAYS = {"A": 2, "B": 2}


def row(function: Any, growth: Any, variant: str = "", degenerate_at: Any = degenerate, **options: Any) -> Op:
    return Op(
        name=function.__name__,
        variant=variant,
        function=function,
        reference=getattr(reference, function.__name__),
        arrays=ARRAYS,
        differentiable=("A", "B"),
        samples=lambda dtype: samples(dtype, **options),
        large=lambda dtype: samples(dtype, LARGE, **options),
        degenerate=lambda: degenerate_at(**options),
        growth=growth,
        bad_inputs=bad_inputs,
        core_shapes=lambda rows, columns: dict.fromkeys("AB", (rows, min(rows, columns))),
    )


def distinct(**options: Any) -> list[Sample]:
    """Single angles have derivatives where they are simple and not at the ends."""
    return [
        Sample(name, pair(seed, shape, p, q, torch.float64) | options)
        for seed, (name, (shape, p, q)) in enumerate({"simple": ((9,), 3, 3), "one line": ((5,), 1, 3)}.items())
    ]


ROWS = [
    row(subspan.principal_angles, angle_growth, degenerate_at=distinct),
    row(subspan.principal_cosines, cosine_growth, degenerate_at=distinct),
    row(subspan.subspace_distance, smooth_growth, "geodesic squared", metric="geodesic", squared=True),
    row(subspan.subspace_distance, smooth_growth, "procrustes squared", metric="procrustes", squared=True),
    row(subspan.subspace_similarity, smooth_growth),
]
