"""Nested subspaces in torch operations."""

from __future__ import annotations

import torch
from torch import Tensor

from .factor import factor_dtype, result_dtype, without_autocast


@without_autocast
def nested_overlap(Qa: Tensor, Qb: Tensor, mean: bool) -> Tensor:
    """Prefix sums of the squares of Qa^T Qb, in both directions."""
    wide = factor_dtype(Qa)
    overlap = ((Qa.to(wide).mT @ Qb.to(wide)) ** 2).cumsum(-2).cumsum(-1)
    if mean:
        rows, columns = (torch.arange(1, size + 1, device=overlap.device) for size in overlap.shape[-2:])
        overlap = overlap / torch.minimum(rows[:, None], columns)
    return overlap.to(result_dtype(Qa))


def root(square: Tensor) -> Tensor:
    """The square root, with gradient 0 at 0."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1).sqrt(), 0 * square)
