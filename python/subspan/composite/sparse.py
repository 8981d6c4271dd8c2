"""Losses of column means of activations in differentiable torch operations.

Given in the type that results are returned in: sums of magnitudes lose nothing to cancellation. Masked rows are
replaced, not multiplied, by zeros, so that what they hold is of no consequence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .distributed import share, total
from .factor import one_where, result_dtype, without_autocast

MEANS, PAIRS, L1 = range(3)
Sums = tuple[Tensor, Tensor, Tensor]  # of magnitudes and squares down the columns, and the number of rows


def _masked(array: Tensor, row_mask: Tensor | None) -> Tensor:
    return array if row_mask is None else torch.where(row_mask[..., None] != 0, array, 0)


def _column_sums(array: Tensor, row_mask: Tensor | None, counts: bool, squares: bool) -> Sums:
    rows = _masked(array.to(result_dtype(array)), row_mask)
    sizes = (rows != 0).to(rows.dtype) if counts else rows.abs()
    sums = sizes.sum(-2)
    rows_of_x = sums.new_full((*sums.shape[:-1], 1), array.shape[-2])
    return sums, sizes.square().sum(-2) if squares else torch.zeros_like(sums), rows_of_x


def _loss(x: Sums, y: Sums | None, running: Tensor | None, form: int, decay: float) -> tuple[Tensor, Tensor]:
    sums, squares, rows = x
    means = sums / rows.clamp(min=1)
    if form == PAIRS:
        pairs = rows * (rows - 1)
        loss = ((sums.square() - squares) / torch.where(pairs > 0, pairs, torch.inf)).sum(-1)
    else:
        if running is not None:
            means = decay * running + (1 - decay) * means
        others = torch.ones_like(means) if form == L1 else means if y is None else y[0] / y[2].clamp(min=1)
        loss = (means * others).sum(-1)
    if running is not None:  # the value is that of the running means, the gradient undoes the factor of the new ones
        potential = loss / (1 - decay)
        loss = loss.detach() + (potential - potential.detach())
    return loss * one_where(loss.detach().isfinite(), loss), means.detach()


@without_autocast
def flops_loss(
    x: Tensor, y: Tensor | None, row_mask: Tensor | None, running: Tensor | None, form: int, decay: float, counts: bool
) -> tuple[Tensor, Tensor]:
    of_x = _column_sums(x, row_mask, counts, form == PAIRS)
    return _loss(of_x, None if y is None else _column_sums(y, None, counts, False), running, form, decay)


@without_autocast
def flops_factors(
    x: Tensor, y: Tensor | None, row_mask: Tensor | None, running: Tensor | None, form: int, decay: float, counts: bool
) -> tuple[Tensor, Tensor | None]:
    """What the signs of x, and of y, are multiplied by in the gradient, differentiable as the gradient is."""
    sums, _, rows = _column_sums(x, row_mask, counts, False)
    share_of_x = 1 / rows.clamp(min=1)
    if form == L1:
        return torch.ones_like(sums) * share_of_x, None
    if form == PAIRS:
        pairs = rows * (rows - 1)
        return 2 * sums / torch.where(pairs > 0, pairs, torch.inf), None
    means = sums * share_of_x
    if running is not None:
        means = decay * running + (1 - decay) * means
    if y is None:
        return 2 * share_of_x * means, None
    others, _, rows_of_y = _column_sums(y, None, counts, False)
    share_of_y = 1 / rows_of_y.clamp(min=1)
    return share_of_x * share_of_y * others, share_of_y * means


@without_autocast
def flops_loss_of_group(
    x: Tensor, y: Tensor | None, row_mask: Tensor | None, running: Tensor | None, form: int, decay: float, group: Any
) -> tuple[Tensor, Tensor]:
    """As flops_loss, of the rows that all processes of the group have: their column sums in one all-reduce."""
    parts = [*_column_sums(x, row_mask, False, form == PAIRS)]
    if form != PAIRS:
        del parts[1]
    if y is not None:
        parts += _column_sums(y, None, False, False)[::2]
    sums = total(torch.cat(parts, -1), group).split([part.shape[-1] for part in parts], -1)
    of_x = (sums[0], sums[1] if form == PAIRS else torch.zeros_like(sums[0]), sums[2 if form == PAIRS else 1])
    of_y = None if y is None else (sums[2], torch.zeros_like(sums[2]), sums[3])
    loss, means = _loss(of_x, of_y, running, form, decay)
    return share(loss, group), means


@without_autocast
def signed_rows(x: Tensor, factor: Tensor, row_mask: Tensor | None, upstream: Tensor, slope: float) -> tuple[Tensor]:
    rows = x.to(result_dtype(x))
    result = factor[..., None, :] * rows.sign()
    if slope != 0:
        result = result + slope * rows
    return (_masked(upstream[..., None, None] * result, row_mask),)


@without_autocast
def signed_rows_gradient(
    g: Tensor, x: Tensor, factor: Tensor, row_mask: Tensor | None, upstream: Tensor, slope: float
) -> tuple[Tensor, Tensor, None, Tensor]:
    """Of the sum of g * signed_rows, in x, the factor and the upstream. The signs are constant."""
    g, rows = _masked(g, row_mask), _masked(x.to(result_dtype(x)), row_mask)
    of_signs, scaled = (g * rows.sign()).sum(-2), upstream[..., None]
    d_upstream = (factor * of_signs).sum(-1)
    if slope == 0:
        return torch.zeros_like(x), scaled * of_signs, None, d_upstream
    d_upstream = d_upstream + slope * (g * rows).sum((-1, -2))
    return (slope * scaled[..., None] * g).to(x.dtype), scaled * of_signs, None, d_upstream
