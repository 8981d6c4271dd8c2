"""Activations that thresholds of their columns cut off, in torch operations. What NaN takes part in is NaN."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .factor import one_where, result_dtype, without_autocast


def _per_threshold(array: Tensor, threshold: Tensor) -> Tensor:
    """Sums down the columns; of all of them where they have one threshold."""
    sums = array.sum(-2)
    return sums if threshold.shape[-1] == sums.shape[-1] else sums.sum(-1, keepdim=True)


def _ordered(sizes: Tensor, limits: Tensor) -> Tensor:
    return one_where(~(sizes.isnan() | limits.isnan()), sizes)


def _near(x: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """1 where an entry is within half the bandwidth of its threshold, else 0."""
    distance = (x.to(result_dtype(x)) - threshold[..., None, :]).detach()
    return torch.where(distance.isnan(), math.nan, (distance.abs() < bandwidth / 2).to(distance.dtype))


def _above(sizes: Tensor, threshold: Tensor) -> Tensor:
    """1 where a size is above its threshold, else 0."""
    limits = threshold[..., None, :]
    return ((sizes > limits).to(sizes.dtype) * _ordered(sizes, limits)).detach()


@without_autocast
def jumprelu(x: Tensor, threshold: Tensor, bandwidth: float) -> tuple[Tensor]:
    rows, limits = x.to(result_dtype(x)), threshold[..., None, :]
    kept = torch.where(rows > limits, rows, 0) * _ordered(rows, limits)
    # Adds nothing but the gradient to the threshold, that of -t^2 / (2 w) wherever an entry is near.
    near = _near(x, threshold, bandwidth)
    potential = near * torch.where(near == 0, 0, limits).square() / (-2 * bandwidth)
    return (kept + (potential - potential.detach()),)


@without_autocast
def jumprelu_gradient(upstream: Tensor, x: Tensor, threshold: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
    above = _above(x.to(result_dtype(x)), threshold)
    near = torch.where(threshold.isinf(), 0, threshold) / -bandwidth  # nothing is near an infinite threshold
    return above * upstream, near * _per_threshold(_near(x, threshold, bandwidth) * upstream, threshold)


@without_autocast
def jumprelu_second(
    upstream: Tensor, x: Tensor, threshold: Tensor, up_x: Tensor, up_threshold: Tensor, bandwidth: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the sum of up_x * d_x and up_threshold * d_threshold, in the upstream, x and the threshold."""
    near = _near(x, threshold, bandwidth)
    slope = torch.where(threshold.isinf(), 0, threshold) / -bandwidth * up_threshold
    d_upstream = _above(x.to(result_dtype(x)), threshold) * up_x + near * slope[..., None, :]
    d_threshold = up_threshold / -bandwidth * _per_threshold(near * upstream, threshold)
    return d_upstream, torch.zeros_like(x), d_threshold


@without_autocast
def soft_threshold(x: Tensor, threshold: Tensor) -> tuple[Tensor]:
    rows, limits = x.to(result_dtype(x)), threshold[..., None, :]
    sizes = rows.detach().abs()
    return (torch.where(sizes > limits, rows - rows.sign().detach() * limits, 0) * _ordered(sizes, limits),)


@without_autocast
def soft_threshold_gradient(upstream: Tensor, x: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    rows = x.detach().to(result_dtype(x))
    d_x = _above(rows.abs(), threshold) * upstream
    return d_x, -_per_threshold(rows.sign() * d_x, threshold)


@without_autocast
def soft_threshold_second(
    upstream: Tensor, x: Tensor, threshold: Tensor, up_x: Tensor, up_threshold: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the sum of up_x * d_x and up_threshold * d_threshold, in the upstream, x and the threshold."""
    rows = x.detach().to(result_dtype(x))
    d_upstream = _above(rows.abs(), threshold) * (up_x - rows.sign() * up_threshold[..., None, :])
    return d_upstream, torch.zeros_like(x), torch.zeros_like(threshold)
