"""Inner products of sparse rows in differentiable torch operations: of the dense rows."""

from __future__ import annotations

import torch
from torch import Tensor

from .factor import result_dtype, without_autocast


def _places(indices: Tensor, offsets: Tensor | None, columns: int) -> Tensor:
    """Where the entries of each row lie in the dense row; of CSR, in all dense rows one after the other."""
    if offsets is None:
        return indices.long()
    entry = torch.arange(indices.shape[-1], device=indices.device).expand(indices.shape)
    ends = offsets[..., 1:].long().contiguous()
    return torch.searchsorted(ends, entry.contiguous(), right=True) * columns + indices


def _dense(values: Tensor, indices: Tensor, offsets: Tensor | None, columns: int) -> Tensor:
    values = values.to(result_dtype(values))
    places = _places(indices, offsets, columns)
    if offsets is None:
        return values.new_zeros((*values.shape[:-1], columns)).scatter_add(-1, places, values)
    batch, rows = values.shape[:-1], offsets.shape[-1] - 1
    return values.new_zeros((*batch, rows * columns)).scatter_add(-1, places, values).reshape(*batch, rows, columns)


@without_autocast
def sparse_scores(
    q_values: Tensor,
    d_values: Tensor,
    q_indices: Tensor,
    d_indices: Tensor,
    q_offsets: Tensor | None,
    d_offsets: Tensor | None,
    columns: int,
) -> tuple[Tensor]:
    q = _dense(q_values, q_indices, q_offsets, columns)
    return (q @ _dense(d_values, d_indices, d_offsets, columns).mT,)


@without_autocast
def scores_on_support(
    G: Tensor,
    d_values: Tensor,
    q_indices: Tensor,
    d_indices: Tensor,
    q_offsets: Tensor | None,
    d_offsets: Tensor | None,
    columns: int,
) -> tuple[Tensor]:
    """G D at the places of Q's entries."""
    product = G.to(result_dtype(G)) @ _dense(d_values, d_indices, d_offsets, columns)
    places = _places(q_indices, q_offsets, columns)
    return ((product if q_offsets is None else product.reshape((*product.shape[:-2], -1))).gather(-1, places),)
