"""Products whose gradient in W is no fresh dense matrix: the rows that were used, or added to W.grad."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import _native, _route
from .._route_torch import plain, untransformed
from . import sparse_products as composite
from .sparse_topk import column_sums, kept

ROWS, ACCUMULATE = 1, 2
_NAMES = {ROWS: "rows", ACCUMULATE: "accumulate"}


def sparse_decode(S: Any, W: Tensor, bias: Tensor | None, way: int) -> Tensor:
    """S is one matrix, W of its columns, bias of the type of the result."""
    _check_way("sparse_decode", S.values, W, way)
    result: Tensor = _Decode.apply(  # type: ignore[no-untyped-call]
        S.values, S.indices, S.offsets, W, bias, way
    )
    return result


def linear_topk(x: Tensor, W: Tensor, b: Tensor | None, k: int, by: int, relu: bool, way: int) -> tuple[Tensor, Tensor]:
    """x and W are matrices."""
    _check_way("linear_topk", x, W, way)
    result: tuple[Tensor, Tensor] = _Encode.apply(  # type: ignore[no-untyped-call]
        x, W, b, k, by, relu, way
    )
    return result


def _check_way(op: str, rows: Tensor, W: Tensor, way: int) -> None:
    if not untransformed((rows, W)):
        raise NotImplementedError(
            f"{op}: weight_grad: expected 'dense' under torch.compile, torch.func and tensor subclasses, "
            f"got {_NAMES[way]!r}"
        )
    if way == ACCUMULATE and not W.is_leaf:
        raise ValueError(
            f"{op}: W: expected a leaf tensor with weight_grad='accumulate', got the result of {W.grad_fn}"
        )


def _check_no_graph(op: str, way: int) -> None:
    if torch.is_grad_enabled():
        raise NotImplementedError(f"{op}: weight_grad: expected 'dense' for second derivatives, got {_NAMES[way]!r}")


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor, bias: Tensor | None, way: int
    ) -> Any:
        ctx.save_for_backward(values, indices, offsets, W)
        ctx.way = way
        ctx.parameter = W if way == ACCUMULATE else None  # the leaf itself, whatever hooks make of what is saved
        return _route.call("sparse_decode", 1, values, indices, offsets, W, bias)[0]

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        (g,) = upstream
        _check_no_graph("sparse_decode", ctx.way)
        values, indices, offsets, W = ctx.saved_tensors
        S = (values, indices, offsets)
        d_values = d_W = None
        if ctx.way == ACCUMULATE:
            d_values = _accumulate("sparse_decode", ctx.parameter, g, S, W, ctx.needs_input_grad[0])
        elif ctx.needs_input_grad[3]:
            d_values, used, rows = _used_rows(g, S, W, ctx.needs_input_grad[0])
            d_W = _of_rows(used, rows, W)
        else:
            d_values = _route.call("sddmm", 1, g, W, indices, offsets)[0]
        d_bias = None if not ctx.needs_input_grad[4] else composite.column_sums(g)
        return None if d_values is None else d_values.to(values.dtype), None, None, d_W, d_bias, None


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, k: int, by: int, relu: bool, way: int) -> Any:
        values, indices = _route.call("linear_topk", 2, x, W, b, k, by, relu)
        ctx.save_for_backward(x, W, values, indices)
        ctx.of_bias = None if b is None else b.dtype
        ctx.relu, ctx.way = relu, way
        ctx.parameter = W if way == ACCUMULATE else None
        ctx.mark_non_differentiable(indices)
        return values, indices

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        _check_no_graph("linear_topk", ctx.way)
        x, W, values, indices = ctx.saved_tensors
        slopes = kept(upstream[0], values, ctx.relu)
        S = (slopes, indices, None)
        d_x = d_W = d_b = None
        if ctx.needs_input_grad[0]:
            d_x = _route.call("sparse_decode", 1, *S, W, None)[0].to(x.dtype)
        if ctx.way == ACCUMULATE:
            _accumulate("linear_topk", ctx.parameter, x, S, W, False)
        elif ctx.needs_input_grad[1]:
            _, used, rows = _used_rows(x, S, W, False)
            d_W = _of_rows(used, rows, W)
        if ctx.needs_input_grad[2]:
            d_b = column_sums(slopes, indices, W.shape[0]).to(ctx.of_bias)
        return d_x, d_W, d_b, None, None, None, None


def _of_rows(used: Tensor, rows: Tensor, W: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(used[None], rows.to(W.dtype), W.shape, is_coalesced=True, check_invariants=False)


Sparse = tuple[Tensor, Tensor, "Tensor | None"]


def _used_rows(g: Tensor, S: Sparse, W: Tensor, wants_values: bool) -> tuple[Tensor | None, Tensor, Tensor]:
    """The gradient in the values, the columns with entries, and the gradient in these rows of W."""
    values, indices, offsets = S
    if not plain((g, values, W)):
        used, numbers = indices.unique(return_inverse=True)
        d_values = composite.sddmm(g, W, indices, offsets)[0] if wants_values else None
        return d_values, used.long(), composite.sparse_t_dense(values, numbers, offsets, g, len(used))[0]
    threads, columns = torch.get_num_threads(), W.shape[0]
    used = torch.empty(min(indices.numel(), columns), dtype=torch.int64)
    used = used[: _native.cpu.used_columns(indices, offsets, used, columns, threads)]
    rows = W.new_empty((len(used), W.shape[1]))
    d_values = g.new_empty(values.shape) if wants_values else None
    own = W if wants_values else None
    _native.cpu.weight_rows(values, indices, offsets, g, own, d_values, rows, columns, False, threads)
    return d_values, used, rows


def _accumulate(op: str, parameter: Tensor, g: Tensor, S: Sparse, W: Tensor, wants_values: bool) -> Tensor | None:
    """Adds to parameter.grad; gives the gradient in the values."""
    values, indices, offsets = S
    grad = parameter.grad
    if grad is not None and (grad.layout is not torch.strided or grad.requires_grad):
        raise ValueError(
            f"{op}: W: expected a dense W.grad without gradient with weight_grad='accumulate', "
            f"got layout {grad.layout}, requires_grad {grad.requires_grad}"
        )
    if grad is None:
        grad = parameter.grad = torch.zeros_like(W, memory_format=torch.contiguous_format)
    if grad.dtype == W.dtype and grad.is_contiguous() and plain((g, values, W, grad)):
        d_values = g.new_empty(values.shape) if wants_values else None
        own = W if wants_values else None
        threads = torch.get_num_threads()
        _native.cpu.weight_rows(values, indices, offsets, g, own, d_values, grad, W.shape[0], True, threads)
        increment_version(grad)
        return d_values
    d_values, used, rows = _used_rows(g, S, W, wants_values)
    grad.index_add_(0, used, rows.to(grad.dtype))
    return d_values
