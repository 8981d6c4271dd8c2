"""TiCo's covariance contrast in differentiable torch operations."""

from __future__ import annotations

from torch import Tensor

from .factor import factor_dtype, one_where, result_dtype, without_autocast


def _covariance(rows: Tensor) -> Tensor:
    return rows.mT @ rows / max(rows.shape[-2], 1)


@without_autocast
def covariance_contrast(z: Tensor, C: Tensor, beta: float, detach_covariance: bool) -> tuple[Tensor, Tensor]:
    """<C', B> and C' = beta C + (1 - beta) B with B = z^T z / n."""
    rows, previous = z.to(factor_dtype(z)), C.to(factor_dtype(z))
    covariance = _covariance(rows)
    updated = beta * previous + (1 - beta) * (covariance.detach() if detach_covariance else covariance)
    contrast = (updated * covariance).sum((-1, -2))
    contrast = contrast * one_where(contrast.detach().isfinite(), contrast)
    return contrast.to(result_dtype(z)), updated.detach().to(result_dtype(z))


@without_autocast
def covariance_contrast_gradient(z: Tensor, C: Tensor, beta: float, detach_covariance: bool) -> tuple[Tensor]:
    """2/n z (beta sym(C) + kappa (1 - beta) B), kappa = 1 with a constant C', else 2."""
    rows, previous = z.to(factor_dtype(z)), C.to(factor_dtype(z))
    share = (1 - beta) * (1 if detach_covariance else 2)
    # A constant C' is constant for second derivatives too.
    covariance = _covariance(rows.detach() if detach_covariance else rows)
    matrix = beta * (previous + previous.mT) / 2 + share * covariance
    gradient: Tensor = (2 / max(z.shape[-2], 1) * (rows @ matrix)).to(result_dtype(z))
    return (gradient,)
