"""Losses on covariances as people compute them today. Rows are samples."""

from __future__ import annotations

import torch
from torch import Tensor


def reference_contrast(features: Tensor, covariance: Tensor, beta: float) -> Tensor:
    """<C', B> with B = Z^T Z / n and C' = beta C + (1 - beta) B, for each item."""
    current = features.mT @ features / features.shape[-2]
    return ((beta * covariance + (1 - beta) * current) * current).sum((-1, -2))


def contrast_by_inner_product(features: Tensor, covariance: Tensor, beta: float) -> Tensor:
    """B once, and its inner product with C'."""
    current = torch.bmm(features.mT, features) / features.shape[-2]
    return (covariance.mul(beta).add(current, alpha=1 - beta) * current).sum((-1, -2))


def contrast_by_quadratic_form(features: Tensor, covariance: Tensor, beta: float) -> Tensor:
    current = torch.bmm(features.mT, features) / features.shape[-2]
    updated = covariance.mul(beta).add(current, alpha=1 - beta)
    return (torch.bmm(features, updated) * features).sum((-1, -2)) / features.shape[-2]


def copied_contrast(features: Tensor, covariance: Tensor, beta: float) -> Tensor:
    """TiCo's second term, a view at a time."""
    values = []
    for view, previous in zip(features, covariance, strict=True):
        current = torch.mm(view.T, view) / view.shape[0]
        updated = beta * previous + (1 - beta) * current
        values.append((torch.mm(view, updated) * view).sum(dim=1).mean())
    return torch.stack(values)
