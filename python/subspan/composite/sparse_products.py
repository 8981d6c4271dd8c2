"""Products with sparse rows in torch operations.

S is given by its values, indices and, in CSR, offsets. The gathered rows are computed with in the type of the result.
Each product is a formula that autograd differentiates, keeping all gathered rows, n k D entries; where no compiler or
vmap has to look into it, a Function computes it piece by piece and says its gradients by the other two products.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .. import _route
from .._route_torch import is_batched
from .factor import result_dtype, without_autocast

_PIECE = 2**24  # entries of gathered rows at a time

# --- formulas ---


def row_of_entries(indices: Tensor, offsets: Tensor) -> Tensor:
    """Of CSR; found by searching, whose result has a known size."""
    entries = torch.arange(indices.shape[-1], device=indices.device, dtype=offsets.dtype)
    return torch.searchsorted(offsets.contiguous(), entries.expand(indices.shape).contiguous(), right=True) - 1


def _gathered(rows: Tensor, numbers: Tensor) -> Tensor:
    """rows (*batch, m, D) of the numbers (*batch, ...), (*batch, ..., D), in the type that results have."""
    batch = rows.ndim - 2
    if batch == 0:
        return rows[numbers.long()].to(result_dtype(rows))
    count = math.prod(numbers.shape[batch:])
    flat = numbers.reshape(*numbers.shape[:batch], count, 1).long()
    return (
        rows.gather(-2, flat.expand(*flat.shape[:-1], rows.shape[-1]))
        .to(result_dtype(rows))
        .reshape(*numbers.shape, rows.shape[-1])
    )


def _added(sums: Tensor, numbers: Tensor, rows: Tensor) -> Tensor:
    """sums (*batch, count, D) plus the rows (*batch, m, D), each to that of its number (*batch, m)."""
    if rows.ndim == 2:
        return sums.index_add(0, numbers.long(), rows)
    return sums.scatter_add(-2, numbers.long().unsqueeze(-1).expand(rows.shape), rows)


def _zeros(rows: Tensor, count: int) -> Tensor:
    return rows.new_zeros((*rows.shape[:-2], count, rows.shape[-1]), dtype=result_dtype(rows))


def _one_dimension(array: Tensor, first: int) -> Tensor:
    """Dimensions `first` and `first` + 1 as one; flatten has no rule for batches of gradients."""
    shape = list(array.shape)
    at = array.ndim + first
    return array.reshape([*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :]])


def _own_rows(G: Tensor, indices: Tensor, offsets: Tensor | None) -> Tensor:
    """The row of G of every entry, (*batch, n, 1, D) or in CSR (*batch, nnz, D)."""
    if offsets is None:
        return G.to(result_dtype(G)).unsqueeze(-2)
    return _gathered(G, row_of_entries(indices, offsets))


def _wide(values: Tensor) -> Tensor:
    return values.to(result_dtype(values)).unsqueeze(-1)


def _decode(values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor) -> Tensor:
    products = _wide(values) * _gathered(W, indices)
    if offsets is None:
        return products.sum(-2)
    return _added(_zeros(products, offsets.shape[-1] - 1), row_of_entries(indices, offsets), products)


def _sampled(G: Tensor, W: Tensor, indices: Tensor, offsets: Tensor | None) -> Tensor:
    return (_own_rows(G, indices, offsets) * _gathered(W, indices)).sum(-1)


def _transposed(values: Tensor, indices: Tensor, offsets: Tensor | None, G: Tensor, columns: int) -> Tensor:
    products = _wide(values) * _own_rows(G, indices, offsets)
    if offsets is None:
        products, indices = _one_dimension(products, -3), _one_dimension(indices, -2)
    return _added(_zeros(products, columns), indices, products)


# --- the same piece by piece ---


def _pieces(indices: Tensor, offsets: Tensor | None, width: int) -> Iterator[slice]:
    """Of the rows; in CSR, of the entries. At least one."""
    dim = -2 if offsets is None else -1
    size = indices.shape[dim]
    step = max(1, _PIECE // max(1, indices.numel() // max(1, size) * width))
    for begin in range(0, max(1, size), step):
        yield slice(begin, min(size, begin + step))


def _decode_pieces(values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor) -> Tensor:
    pieces = _pieces(indices, offsets, W.shape[-1])
    if offsets is None:
        return torch.cat([_decode(values[..., at, :], indices[..., at, :], None, W) for at in pieces], -2)
    sums, rows = _zeros(W, offsets.shape[-1] - 1), row_of_entries(indices, offsets)
    for at in pieces:
        sums = _added(sums, rows[..., at], _wide(values[..., at]) * _gathered(W, indices[..., at]))
    return sums


def _sampled_pieces(G: Tensor, W: Tensor, indices: Tensor, offsets: Tensor | None) -> Tensor:
    pieces = _pieces(indices, offsets, W.shape[-1])
    if offsets is None:
        return torch.cat([_sampled(G[..., at, :], W, indices[..., at, :], None) for at in pieces], -2)
    rows = row_of_entries(indices, offsets)
    return torch.cat([(_gathered(G, rows[..., at]) * _gathered(W, indices[..., at])).sum(-1) for at in pieces], -1)


def _transposed_pieces(values: Tensor, indices: Tensor, offsets: Tensor | None, G: Tensor, columns: int) -> Tensor:
    sums = _zeros(G, columns)
    rows = None if offsets is None else row_of_entries(indices, offsets)
    for at in _pieces(indices, offsets, G.shape[-1]):
        if rows is None:
            products = _wide(values[..., at, :]) * _own_rows(G[..., at, :], indices, None)
            sums = _added(sums, _one_dimension(indices[..., at, :], -2), _one_dimension(products, -3))
        else:
            sums = _added(sums, indices[..., at], _wide(values[..., at]) * _gathered(G, rows[..., at]))
    return sums


class _Product(torch.autograd.Function):
    """Saves its inputs; its gradients are products themselves."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*(x for x in inputs if not isinstance(x, int)))


class _Decode(_Product):
    @staticmethod
    def forward(values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor) -> Tensor:
        return _decode_pieces(values, indices, offsets, W)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        (g,), (values, indices, offsets, W), needed = upstream, ctx.saved_tensors, ctx.needs_input_grad
        d_values = sddmm(g, W, indices, offsets)[0].to(values.dtype) if needed[0] else None
        d_W = sparse_t_dense(values, indices, offsets, g, W.shape[-2])[0].to(W.dtype) if needed[3] else None
        return d_values, None, None, d_W


class _Sampled(_Product):
    @staticmethod
    def forward(G: Tensor, W: Tensor, indices: Tensor, offsets: Tensor | None) -> Tensor:
        return _sampled_pieces(G, W, indices, offsets)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        (h,), (G, W, indices, offsets), needed = upstream, ctx.saved_tensors, ctx.needs_input_grad
        d_G = sparse_decode(h, indices, offsets, W, None)[0].to(G.dtype) if needed[0] else None
        d_W = sparse_t_dense(h, indices, offsets, G, W.shape[-2])[0].to(W.dtype) if needed[1] else None
        return d_G, d_W, None, None


class _Transposed(_Product):
    @staticmethod
    def forward(values: Tensor, indices: Tensor, offsets: Tensor | None, G: Tensor, columns: int) -> Tensor:
        return _transposed_pieces(values, indices, offsets, G, columns)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        (u,), (values, indices, offsets, G), needed = upstream, ctx.saved_tensors, ctx.needs_input_grad
        d_values = sddmm(G, u, indices, offsets)[0].to(values.dtype) if needed[0] else None
        d_G = sparse_decode(values, indices, offsets, u, None)[0].to(G.dtype) if needed[3] else None
        return d_values, None, None, d_G, None


def _product(function: Any, formula: Any, *args: Any) -> Any:
    looked_into = is_compiling() or any(isinstance(a, Tensor) and is_batched(a) for a in args)
    return formula(*args) if looked_into else function.apply(*args)


# --- composites ---


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
    result: Tensor = _product(_Decode, _decode, values, indices, offsets, W)
    return (result if bias is None else result + bias.unsqueeze(-2),)


@without_autocast
def sddmm(G: Tensor, W: Tensor, indices: Tensor, offsets: Tensor | None) -> tuple[Tensor]:
    return (_product(_Sampled, _sampled, G, W, indices, offsets),)


@without_autocast
def sparse_t_dense(values: Tensor, indices: Tensor, offsets: Tensor | None, G: Tensor, columns: int) -> tuple[Tensor]:
    return (_product(_Transposed, _transposed, values, indices, offsets, G, columns),)


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
