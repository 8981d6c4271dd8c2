"""An upstream gradient that is there already, as a layer finds it within a network: making it costs no variant time,
nor does summing up a large result. Values are compared in some of the rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class _Given(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y: Tensor, upstream: Tensor) -> Tensor:
        ctx.save_for_backward(upstream)
        return y[:: max(1, len(y) // 64)]

    @staticmethod
    def backward(ctx, sums_own: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0], None


def with_upstream(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function`, whose result's sum has another gradient in every column in place of ones."""
    kept: dict[tuple, Tensor] = {}

    def call(*inputs: Tensor) -> Tensor:
        y = function(*inputs)
        key = (y.shape, y.dtype, y.device)
        if key not in kept:
            kept[key] = torch.linspace(0.5, 1.5, y.shape[-1]).to(y).expand(y.shape).contiguous()
        return _Given.apply(y, kept[key])

    return call
