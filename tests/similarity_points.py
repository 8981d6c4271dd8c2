"""Pairs of representations that the tests of similarity share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sample_arrays import normal


def related(seed: int, n: int, d1: int, d2: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Features of three latent variables that both share, with noise of their own and means."""
    latent = normal(seed, n, 3)
    X = latent @ normal(seed + 1, 3, d1) + 0.5 * normal(seed + 2, n, d1) + 3 * normal(seed + 5, d1)
    Y = latent @ normal(seed + 3, 3, d2) + 0.5 * normal(seed + 4, n, d2) - 2
    return X.to(dtype), Y.to(dtype)


def with_angles(*angles: float, n: int = 13) -> tuple[Tensor, Tensor]:
    """Bases of centred subspaces at these principal angles, orthonormal in X and in general position in Y."""
    k = len(angles)
    ones = torch.ones(n, 1, dtype=torch.float64)
    Q = torch.linalg.qr(torch.cat([ones, normal(0, n, 2 * k)], 1))[0][:, 1:]
    cosines, sines = (torch.tensor([f(angle) for angle in angles], dtype=torch.float64) for f in (math.cos, math.sin))
    return Q[:, :k], (Q[:, :k] * cosines + Q[:, k:] * sines) @ normal(1, k, k)


#: (n, d1, d2): more and fewer samples than features, equal and one.
SHAPES = [(40, 7, 5), (12, 20, 30), (60, 10, 10), (30, 40, 6), (9, 1, 4), (700, 33, 20)]
