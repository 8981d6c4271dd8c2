"""Products with sparse rows in torch operations.

S is given by its values, indices and, in CSR, offsets. The gathered rows are computed with in the type of the result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _route
from .factor import result_dtype, without_autocast


def row_of_entries(indices: Tensor, offsets: Tensor) -> Tensor:
    """Of CSR; found by searching, whose result has a known size."""
    entries = torch.arange(indices.shape[-1], device=indices.device, dtype=offsets.dtype)
    return torch.searchsorted(offsets.contiguous(), entries.expand(indices.shape).contiguous(), right=True) - 1


def _gathered(rows: Tensor, numbers: Tensor) -> Tensor:
    """rows (*batch, m, D) of the numbers (*batch, ...), (*batch, ..., D), in the type that results have."""
    batch = rows.ndim - 2
    if batch == 0:
        return rows[numbers.long()].to(result_dtype(rows))
    flat = numbers.reshape(*numbers.shape[:batch], -1, 1).long().expand(*numbers.shape[:batch], -1, rows.shape[-1])
    return rows.gather(-2, flat).to(result_dtype(rows)).reshape(*numbers.shape, rows.shape[-1])


def _added(rows: Tensor, numbers: Tensor, count: int) -> Tensor:
    """Sums (*batch, count, D) of the rows (*batch, m, D) with the same number (*batch, m)."""
    sums = rows.new_zeros(*rows.shape[:-2], count, rows.shape[-1])
    if rows.ndim == 2:
        return sums.index_add(0, numbers.long(), rows)
    return sums.scatter_add(-2, numbers.long().unsqueeze(-1).expand(rows.shape), rows)


def column_sums(rows: Tensor) -> Tensor:
    """Sums over the rows (*batch, n, D), as the product of a column of ones: of the same bits for any number of
    threads."""
    ones = rows.new_ones((*rows.shape[:-1], 1))
    first = torch.zeros_like(ones, dtype=torch.int32)
    sums: Tensor = _route.call_in_backward("sparse_t_dense", ones, first, None, rows, 1)
    return sums.squeeze(-2)


@without_autocast
def sparse_decode(
    values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor, bias: Tensor | None
) -> tuple[Tensor]:
    products = values.to(result_dtype(values)).unsqueeze(-1) * _gathered(W, indices)
    if offsets is None:
        result = products.sum(-2)
    else:
        result = _added(products, row_of_entries(indices, offsets), offsets.shape[-1] - 1)
    return (result if bias is None else result + bias.unsqueeze(-2),)


@without_autocast
def sddmm(G: Tensor, W: Tensor, indices: Tensor, offsets: Tensor | None) -> tuple[Tensor]:
    if offsets is None:
        own = G.to(result_dtype(G)).unsqueeze(-2)
    else:
        own = _gathered(G, row_of_entries(indices, offsets))
    return ((own * _gathered(W, indices)).sum(-1),)


@without_autocast
def sparse_t_dense(values: Tensor, indices: Tensor, offsets: Tensor | None, G: Tensor, columns: int) -> tuple[Tensor]:
    if offsets is None:
        own = G.to(result_dtype(G)).unsqueeze(-2)
    else:
        own = _gathered(G, row_of_entries(indices, offsets))
    products = values.to(result_dtype(values)).unsqueeze(-1) * own
    if offsets is None:
        products = products.flatten(-3, -2)
        indices = indices.flatten(-2, -1)
    return (_added(products, indices, columns),)


@without_autocast
def sparse_decode_gradient(
    G: Tensor, values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor
) -> tuple[Tensor, Tensor]:
    return (*sddmm(G, W, indices, offsets), *sparse_t_dense(values, indices, offsets, G, W.shape[-2]))


@without_autocast
def sparse_t_dense_gradient(
    U: Tensor, values: Tensor, indices: Tensor, offsets: Tensor | None, G: Tensor
) -> tuple[Tensor, Tensor]:
    return (*sddmm(G, U, indices, offsets), *sparse_decode(values, indices, offsets, U, None))
