"""Matching pursuit in torch operations: one dense product of the residuals with all atoms for every step."""

from __future__ import annotations

import torch
from torch import Tensor

from .factor import result_dtype, without_autocast


def _gathered(W: Tensor, indices: Tensor) -> Tensor:
    """Rows (*batch, n, d) of W (*batch, atoms, d), one for each index (*batch, n)."""
    return W.gather(-2, indices.long()[..., None].expand(*indices.shape, W.shape[-1]))


def _coefficient(residual: Tensor, atom: Tensor, relu: bool) -> Tensor:
    value = (residual * atom).sum(-1)
    value = value.relu() if relu else value
    return value + (value - value).detach()  # infinity is NaN


@without_autocast
def matching_pursuit(x: Tensor, W: Tensor, steps: int, by: int, relu: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients, residuals and atoms. The product of NaN is the largest, as in torch.argmax."""
    residual, W = x.to(result_dtype(x)), W.to(result_dtype(x))
    values, indices = [], []
    for _ in range(steps):
        products = residual @ W.mT
        index = (products.abs() if by == 1 else products).argmax(-1)
        atom = _gathered(W, index)
        value = _coefficient(residual, atom, relu)
        residual = residual - value[..., None] * atom
        values.append(value)
        indices.append(index.int())
    return torch.stack(values, -1), residual, torch.stack(indices, -1)


@without_autocast
def pursuit_values(x: Tensor, W: Tensor, indices: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    """Coefficients and residuals of given atoms."""
    residual, W = x.to(result_dtype(x)), W.to(result_dtype(x))
    values = []
    for index in indices.unbind(-1):
        atom = _gathered(W, index)
        values.append(_coefficient(residual, atom, relu))
        residual = residual - values[-1][..., None] * atom
    return torch.stack(values, -1), residual


@without_autocast
def pursuit_gradient(
    x: Tensor, W: Tensor, indices: Tensor, g_values: Tensor | None, g_residual: Tensor | None, relu: bool
) -> tuple[Tensor, Tensor]:
    """Of sums of values and residuals with upstream gradients, in x and W; backwards through the steps:
    y_t = g_t - <u, a_t>, dL/da_t = y_t r_{t-1} - v_t u, then u += y_t a_t."""
    residual, W = x.to(result_dtype(x)), W.to(result_dtype(x))
    before, values, atoms = [], [], []
    for index in indices.unbind(-1):
        atoms.append(_gathered(W, index))
        before.append(residual)
        values.append(_coefficient(residual, atoms[-1], relu))
        residual = residual - values[-1][..., None] * atoms[-1]
    u = torch.zeros_like(residual) if g_residual is None else g_residual.to(residual.dtype)
    d_W = torch.zeros_like(W)
    for step in reversed(range(len(values))):
        y = -(u * atoms[step]).sum(-1)
        if g_values is not None:
            y = y + g_values[..., step]
        if relu:
            y = torch.where(values[step] <= 0, 0, y)
        d_atom = y[..., None] * before[step] - values[step][..., None] * u
        d_W = d_W.scatter_add(-2, indices[..., step].long()[..., None].expand_as(d_atom), d_atom)
        u = u + y[..., None] * atoms[step]
    return u, d_W
