"""The rows of the op table for orthogonal matrices of skew ones."""

from __future__ import annotations

import numpy as np
import torch

import subspan
from op_row import BadInput, Bounds, Op, Sample
from sample_arrays import normal
from subspan.reference import skew as reference

#: Orders by name: entry by entry, in SIMD lanes with and without whole blocks of pivots, and blocked.
SIZES: dict[str, tuple[int, ...]] = {
    "one entry": (1, 1),
    "two": (5, 2, 2),
    "three rows": (3, 3),
    "batch": (3, 5, 5),
    "two batch dimensions": (2, 2, 4, 4),
    "no rows": (0, 0),
    "empty batch": (0, 3, 3),
    "many": (37, 6, 6),
    "blocks": (17, 19, 19),
    "one alone": (12, 12),
    "blocked": (70, 70),
}
LARGE_SIZES: dict[str, tuple[int, ...]] = {
    "large": (150, 150),
    "large batch": (13, 90, 90),
    "large lanes": (70, 32, 32),
}


def samples(dtype: torch.dtype, sizes: dict[str, tuple[int, ...]] = SIZES) -> list[Sample]:
    made = [
        Sample(name, {"A": normal(seed, *shape, dtype=dtype, scale=shape[-1] ** -0.5 if shape[-1] else 1)})
        for seed, (name, shape) in enumerate(sizes.items())
    ]
    if sizes is not SIZES:
        return made
    return [*made, Sample("larger norm", {"A": normal(30, 4, 6, 6, dtype=dtype, scale=3)})]


def degenerate() -> list[Sample]:
    pairs = torch.zeros(4, 4, dtype=torch.float64)
    pairs[0, 1], pairs[2, 3] = 0.7, 0.7
    rank_two = torch.outer(normal(1, 5), normal(2, 5))
    points = {
        "zero": torch.zeros(3, 3, dtype=torch.float64),
        "symmetric": torch.eye(3, dtype=torch.float64) + 1,
        "equal angles": pairs,
        "an angle of zero": torch.nn.functional.pad(pairs, (0, 1, 0, 1)),
        "rank two": rank_two,
        "one entry": normal(3, 1, 1),
        "half a turn": torch.pi * 2 * torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64),
    }
    return [Sample(name, {"A": A}) for name, A in points.items()]


def cayley_growth(A: np.ndarray) -> Bounds:
    """Rounding errors of a product in every entry of M = I - K/2, or of a Schur complement M - C D^-1 R, change the
    inverse W by W dM W."""
    K = (A - A.T) / 2
    n = len(K)
    M = np.eye(n) - K / 2
    W, M, g = np.abs(np.linalg.inv(M)), np.abs(M), np.ones_like(K)
    error = W @ (M + M @ W @ M) @ W
    gradient = W.T @ g @ W.T + error.T @ g @ W.T + W.T @ g @ error.T
    return Bounds(n + 8, (2 * error + W,), {"A": (gradient + gradient.T) / 2})


def expm_growth(A: np.ndarray) -> Bounds:
    """An error of K by a rounding of its norm changes Q by as much, and every product on the way adds roundings of
    orthogonal matrices; in the gradient those of exp(t K) N exp(-t K)."""
    K = (A - A.T) / 2
    n = len(K)
    norm = 1 + np.abs(K).sum(1).max(initial=0)
    Q, g = np.abs(reference.skew_expm(A)), np.ones_like(K)
    lengths = np.linalg.norm(Q, axis=1, keepdims=True)  # each 1
    N = np.linalg.norm(Q.T @ g)
    gradient = norm * N * lengths * lengths.T
    return Bounds(n + 8, (norm * lengths * lengths.T,), {"A": gradient})


def bad_inputs() -> list[BadInput]:
    return [BadInput("not square", {"A": torch.ones(3, 4)}, ValueError, "A", ("(3, 4)",))]


ROWS = [
    Op(
        name="cayley",
        function=subspan.cayley,
        reference=reference.cayley,
        arrays={"A": 2},
        differentiable=("A",),
        samples=samples,
        large=lambda dtype: samples(dtype, LARGE_SIZES),
        degenerate=degenerate,
        growth=cayley_growth,
        bad_inputs=bad_inputs,
        core_shapes=lambda rows, columns: {"A": (columns, columns)},
    ),
    Op(
        name="skew_expm",
        function=subspan.skew_expm,
        reference=reference.skew_expm,
        arrays={"A": 2},
        differentiable=("A",),
        samples=samples,
        large=lambda dtype: samples(dtype, LARGE_SIZES),
        degenerate=degenerate,
        growth=expm_growth,
        bad_inputs=bad_inputs,
        core_shapes=lambda rows, columns: {"A": (columns, columns)},
    ),
]
