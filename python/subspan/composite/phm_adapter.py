"""Bottleneck adapters between two low-rank hypercomplex products, in torch operations."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .factor import result_dtype, without_autocast
from .phm_rank import phm_linear_lowrank, phm_linear_lowrank_gradient

Factors = tuple[Tensor, Tensor, Tensor, "Tensor | None"]


def _relu(z: Tensor) -> Tensor:
    return z.relu()


def _relu_slope(z: Tensor) -> Tensor:
    return torch.where(z > 0, torch.ones_like(z), 0 * z)  # NaN where z is


def _gelu(z: Tensor) -> Tensor:
    return torch.nn.functional.gelu(z)


def _gelu_slope(z: Tensor) -> Tensor:
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return 0.5 * torch.erfc(-z * math.sqrt(0.5)) + z * density


def _gelu_tanh(z: Tensor) -> Tensor:
    return torch.nn.functional.gelu(z, approximate="tanh")


def _gated_slope(z: Tensor, inner: Tensor, inner_slope: Tensor | float) -> Tensor:
    """Of z s(inner), s the logistic function."""
    gate = torch.sigmoid(inner)
    return gate + z * gate * torch.sigmoid(-inner) * inner_slope


def _gelu_tanh_slope(z: Tensor) -> Tensor:
    twice = 2 * math.sqrt(2 / math.pi)
    return _gated_slope(z, twice * z * (1 + 0.044715 * z * z), twice * (1 + 3 * 0.044715 * z * z))


def _silu(z: Tensor) -> Tensor:
    return torch.nn.functional.silu(z)


def _silu_slope(z: Tensor) -> Tensor:
    return _gated_slope(z, z, 1.0)


#: In the order of the kernel's numbers.
ACTIVATIONS = (
    (_relu, _relu_slope),
    (_gelu, _gelu_slope),
    (_gelu_tanh, _gelu_tanh_slope),
    (_silu, _silu_slope),
)


@without_autocast
def phm_adapter(x: Tensor, *arguments: Tensor | int | bool | None) -> tuple[Tensor]:
    """x, four factors down, four up, activation, residual."""
    factors, (activation, residual) = arguments[:8], arguments[8:]
    x = x.to(result_dtype(x))
    hidden = ACTIVATIONS[activation][0](phm_linear_lowrank(x, *factors[:4])[0])  # type: ignore[arg-type,index]
    (y,) = phm_linear_lowrank(hidden, *factors[4:])  # type: ignore[arg-type]
    return (y + x if residual else y,)


@without_autocast
def phm_adapter_gradient(
    x: Tensor, down: Factors, up: Factors, dy: Tensor, activation: int, residual: bool, needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Of x, the factors down and the factors up."""
    value, slope = ACTIVATIONS[activation]
    x = x.to(result_dtype(x))
    z = phm_linear_lowrank(x, *down)[0]
    d_hidden, *d_up = phm_linear_lowrank_gradient(value(z), *up[:3], dy, (True, *needed[5:]))
    assert d_hidden is not None
    dx, *d_down = phm_linear_lowrank_gradient(x, *down[:3], d_hidden * slope(z), needed[:5])
    if residual and dx is not None:
        dx = dx + dy
    return dx, *d_down, *d_up
