"""The largest entries of every row, and of all rows, in torch operations."""

from __future__ import annotations

import torch
from torch import Tensor

from . import sparse_products
from .factor import result_dtype, without_autocast

#: Columns of x W^T + b that exist at a time.
_CHUNK = 16384


def topk_rows(x: Tensor, k: int, by: int, relu: bool) -> tuple[Tensor, Tensor]:
    """A stable sort, for torch.topk takes any of equal entries. NaN comes first."""
    ranked = x.detach().abs() if by == 1 else x.detach()
    indices = ranked.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return chosen(x, indices, relu), indices.int()


def chosen(x: Tensor, indices: Tensor, relu: bool) -> Tensor:
    values = x.gather(-1, indices.long()).to(result_dtype(x))
    return values.relu() + 0 if relu else values  # torch keeps the sign of -0


def kept(upstream: Tensor, values: Tensor, relu: bool) -> Tensor:
    """The upstream gradient of values, 0 where relu cut one off."""
    return torch.where(values.detach() <= 0, 0, upstream) if relu else upstream


def column_sums(values: Tensor, indices: Tensor, columns: int) -> Tensor:
    """Of sparse rows of as many entries each: on the CPU one after the other, whatever the number of threads."""
    batch, count = values.shape[:-2], values.shape[-2] * values.shape[-1]
    sums = values.new_zeros(*batch, columns)
    return sums.scatter_add(-1, indices.long().reshape(*batch, count), values.reshape(*batch, count))


@without_autocast
def linear_topk(x: Tensor, W: Tensor, b: Tensor | None, k: int, by: int, relu: bool) -> tuple[Tensor, Tensor]:
    """Where values are differentiated, they are products of their own: those of a dense matrix would have gradients of
    its size."""
    values, indices = _largest(x.detach(), W.detach(), None if b is None else b.detach(), k, by)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, W, b)):
        values = sparse_products.sddmm(x, W, indices, None)[0]
        if b is not None:
            every = b.to(values.dtype).unsqueeze(-2).expand(*indices.shape[:-1], b.shape[-1])
            values = values + every.gather(-1, indices)
    return values.relu() + 0 if relu else values, indices.int()


def _largest(x: Tensor, W: Tensor, b: Tensor | None, k: int, by: int) -> tuple[Tensor, Tensor]:
    """The k largest of some columns are sorted with those of the columns before, and stay behind these where equal."""
    kind = result_dtype(x)
    values = x.new_empty((*x.shape[:-1], 0), dtype=kind)
    indices = torch.empty(values.shape, dtype=torch.int64, device=x.device)
    for first in range(0, W.shape[-2], _CHUNK):
        some = slice(first, first + _CHUNK)
        products = x.to(kind) @ W[..., some, :].to(kind).mT
        if b is not None:
            products = products + b[..., None, some].to(kind)
        columns = torch.arange(first, first + products.shape[-1], device=x.device).expand(products.shape)
        values, indices = torch.cat([values, products], -1), torch.cat([indices, columns], -1)
        places = topk_rows(values, min(k, values.shape[-1]), by, False)[1].long()
        values, indices = values.gather(-1, places), indices.gather(-1, places)
    return values, indices


def batch_topk(x: Tensor, k: int, relu: bool) -> tuple[Tensor, Tensor, Tensor]:
    n, columns = x.shape[-2:]
    flat = x.detach().reshape(*x.shape[:-2], n * columns)
    places = flat.sort(dim=-1, descending=True, stable=True).indices[..., : k * n].sort(dim=-1).values
    rows = places // columns
    counts = places.new_zeros(*x.shape[:-2], n).scatter_add(-1, rows, torch.ones_like(rows))
    return chosen(x.reshape(flat.shape), places, relu), (places % columns).int(), counts.int()


def chosen_of_all(x: Tensor, indices: Tensor, counts: Tensor, relu: bool) -> Tensor:
    """The entries of x at the columns given, as many of each row as counted."""
    n, columns = x.shape[-2:]
    ends = counts.long().cumsum(-1)
    ended = ends.new_zeros(*indices.shape[:-1], indices.shape[-1] + 1).scatter_add(-1, ends, torch.ones_like(ends))
    rows = ended.cumsum(-1)[..., :-1]
    flat = x.reshape(*x.shape[:-2], n * columns)
    return chosen(flat, rows * columns + indices.long(), relu)
