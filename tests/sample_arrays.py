"""Arrays that the rows of the op table are sampled with: seeded, small, and shaped to reach every path."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(scale * np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def uniform(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """In (0.2, 1.2): weights whose derivative can be checked by differences."""
    return torch.from_numpy(0.2 + np.random.default_rng(seed).random(shape)).to(dtype)


def positive_definite(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    factor = normal(seed, *shape)
    identity = torch.eye(shape[-1], dtype=torch.float64)
    return (factor @ factor.mT / max(shape[-1], 1) + identity).to(dtype)


def classes(seed: int, *shape: int, k: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, k, shape)).to(dtype)


#: Feature matrices (*batch, n, d) by name. "blocked" ones are larger than what is factored in SIMD lanes.
SHAPES: dict[str, tuple[int, ...]] = {
    "tall": (9, 4),
    "wide": (4, 9),
    "one sample": (1, 5),
    "one feature": (6, 1),
    "one entry": (1, 1),
    "no samples": (0, 4),
    "batch": (3, 7, 5),
    "two batch dimensions": (2, 2, 4, 6),
    "empty batch": (0, 4, 3),
    "many": (37, 6, 3),
    "blocked tall": (90, 37),
    "blocked wide": (33, 70),
    "blocked batch": (2, 65, 40),
}

LARGE_SHAPES: dict[str, tuple[int, ...]] = {
    "large tall": (700, 150),
    "large wide": (130, 610),
    "large batch": (13, 90, 40),
}


def features(dtype: torch.dtype, shapes: dict[str, tuple[int, ...]]) -> Iterable[tuple[str, torch.Tensor]]:
    for seed, (name, shape) in enumerate(shapes.items()):
        yield name, normal(seed, *shape, dtype=dtype)


def delicate_features() -> dict[str, torch.Tensor]:
    """Where singular values coincide or vanish: a gradient taken through an SVD or eigenvectors would fail here."""
    collapsed = normal(1, 1, 4).expand(5, 4).clone()
    orthonormal = torch.linalg.qr(normal(2, 6, 3)).Q.clone()
    rank_two = normal(3, 5, 2) @ normal(4, 2, 4)
    zero_row = normal(5, 4, 3)
    zero_row[2] = 0
    return {
        "zero": torch.zeros(3, 4, dtype=torch.float64),
        "collapsed": collapsed,
        "orthonormal": orthonormal,
        "rank two": rank_two,
        "zero row": zero_row,
        "one entry": normal(6, 1, 1),
        "one sample": normal(7, 1, 4),
        "no samples": torch.zeros(0, 3, dtype=torch.float64),
    }
