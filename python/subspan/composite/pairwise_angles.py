"""Principal angles of every subspace of one set with every one of another, in torch operations; see angles.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .angle_values import Parameters, angle_weights, outer
from .angles import forward, orthonormal_basis, sines_and_rotation, to_basis
from .factor import factor_dtype, result_dtype, without_autocast
from .matrix_function import matrix_function


class _Span(torch.autograd.Function):
    """Q and R of A = Q R for functions of the span alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(A: Tensor, rank_tol: float) -> tuple[Tensor, Tensor, Tensor]:
        Q, R, alive = orthonormal_basis(A, False, rank_tol)
        finite = R.sum((-2, -1)).isfinite()
        return Q, torch.where(alive[..., :, None], R, 0), torch.where(finite, alive.sum(-1), -1).to(torch.int32)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(inputs[0], *output[:2])
        ctx.mark_non_differentiable(output[2])

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor, None]:
        A, Q, R = ctx.saved_tensors
        return span_gradient(A, Q, R, g), None


@without_autocast
def orthonormal_basis_of_span(A: Tensor, rank_tol: float) -> tuple[Tensor, ...]:
    """Q, R and the rank."""
    Q, R, rank = _Span.apply(A.to(factor_dtype(A)), rank_tol)  # type: ignore[no-untyped-call]
    return Q.to(result_dtype(A)), R.to(result_dtype(A)), rank


@without_autocast
def span_gradient(A: Tensor, Q: Tensor, R: Tensor, g: Tensor) -> Tensor:
    """(I - Q Q^T) g R^{-T}: of a function of the span, from its derivative g with respect to Q.

    Where it is differentiated further, R is Q^T A, so that it follows A. Q then moves across the span only, as `_Span`
    has it, and R does not stay triangular; the gradient is the same for every such pair with A = Q R.
    """
    wide = factor_dtype(A)
    Q, g = Q.to(wide), g.to(wide)
    alive = R.detach().diagonal(dim1=-2, dim2=-1) != 0
    eye = torch.eye(R.shape[-1], dtype=wide, device=R.device)
    tangent = g - Q @ (Q.mT @ g)
    if not torch.is_grad_enabled():
        return to_basis(tangent, torch.where(alive[..., :, None], R.to(wide), eye), alive)
    square = torch.where(alive[..., :, None], Q.mT @ A.to(wide), eye)
    solution: Tensor = torch.linalg.solve(square, (tangent * alive[..., None, :]).mT)
    return solution.mT


def _stacked(bases: Tensor) -> Tensor:
    """(*batch, N, n, p) as (*batch, N p, n): all basis vectors as rows."""
    return bases.mT.flatten(-3, -2)


def _products(A: Tensor, B: Tensor) -> Tensor:
    """A_i^T B_j, (*batch, N, p, M, q)."""
    flat = (_stacked(A) @ _stacked(B).mT).unflatten(-1, (B.shape[-3], B.shape[-1]))
    products: Tensor = flat.unflatten(-3, (A.shape[-3], A.shape[-1]))
    return products


def from_phi(A: Tensor, B: Tensor, Phi: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of both sets, orthogonal to each basis, from Phi (*batch, N, p, M, q): minus the derivatives with
    respect to the products."""
    matrix = Phi.flatten(-4, -3).flatten(-2, -1)
    d_A = -(matrix @ _stacked(B).to(Phi.dtype)).unflatten(-2, (A.shape[-3], A.shape[-1])).mT
    d_B = -(matrix.mT @ _stacked(A).to(Phi.dtype)).unflatten(-2, (B.shape[-3], B.shape[-1])).mT
    A, B = A.to(Phi.dtype), B.to(Phi.dtype)
    return d_A - A @ (A.mT @ d_A), d_B - B @ (B.mT @ d_B)


#: Bases of A that meet all of B at once where residuals are formed.
_RESIDUAL_ELEMENTS = 2**25


def _some_at_a_time(A: Tensor, B: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Bases of A with a dimension for those of B, and the other way round."""
    one = B.shape[:-1].numel() * min(A.shape[-1], B.shape[-1])
    step = max(1, _RESIDUAL_ELEMENTS // max(one, 1))
    return [(part[..., :, None, :, :], B[..., None, :, :, :]) for part in A.split(step, -3)]


@without_autocast
def pairwise_angles(A: Tensor, B: Tensor, function: int, squared: bool, padded: bool) -> tuple[Tensor, Tensor]:
    """Value and status, of orthonormal bases."""
    return _PairwiseAngles.apply(A, B, function, squared, padded)  # type: ignore[no-untyped-call,no-any-return]


class _PairwiseAngles(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(A: Tensor, B: Tensor, function: int, squared: bool, padded: bool) -> tuple[Tensor, Tensor]:
        full = Parameters(function, squared, padded, True, 0.0)
        parts = [forward(a, b, full)[:2] for a, b in _some_at_a_time(A, B)]
        axis = -2 if full.name in ("angles", "cosines") else -1
        value = torch.cat([part[0] for part in parts], axis - 1)
        info = torch.cat([part[1] for part in parts], -2)
        return value, info.clamp(max=0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:2], output[0])
        ctx.parameters = inputs[2:]
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Any, ...]:
        A, B, value = ctx.saved_tensors
        d_A, d_B = pairwise_gradient(A, B, value, upstream, *ctx.parameters)
        return d_A.to(A.dtype), d_B.to(B.dtype), None, None, None


def pairwise_phi(A: Tensor, B: Tensor, g: Tensor, function: int, squared: bool, padded: bool) -> Tensor:
    value = pairwise_angles(A, B, function, squared, padded)[0]
    return _phi(A, B, value, g, function, squared, padded)


@without_autocast
def _phi(A: Tensor, B: Tensor, value: Tensor, g: Tensor, function: int, squared: bool, padded: bool) -> Tensor:
    wide = factor_dtype(A)
    A, B, value, g = (t.to(wide) for t in (A, B, value, g))
    full = Parameters(function, squared, padded, True, 0.0)
    full.count = min(A.shape[-1], B.shape[-1])
    M = _products(A, B).transpose(-3, -2)  # (*batch, N, M, p, q)
    if full.name not in ("angles", "cosines", "asimov", "spectral", "gap", "max_cos"):
        name, slope = outer(full, value, full.count)
        return (matrix_function(M, name) * (g * slope)[..., None, None]).transpose(-3, -2)
    if full.count == 0 or (full.unpaired(A, B) and full.name in ("asimov", "spectral", "gap")):
        return torch.zeros_like(M).transpose(-3, -2)
    parts, first = [], 0
    for a, b in _some_at_a_time(A, B):
        part = slice(first, first + a.shape[-4])
        first = part.stop
        products, upstream = M[..., part, :, :, :], (g[..., part, :, :] if g.ndim == M.ndim - 1 else g[..., part, :])
        if a.shape[-1] < b.shape[-1]:
            V, U, c, s = sines_and_rotation(products.mT, b, a)
        else:
            U, V, c, s = sines_and_rotation(products, a, b)
        parts.append(U * angle_weights(full, upstream, c, s)[..., None, :] @ V.mT)
    return torch.cat(parts, -4).transpose(-3, -2)


@without_autocast
def pairwise_gradient(A: Tensor, B: Tensor, value: Tensor, g: Tensor, *parameters: Any) -> tuple[Tensor, Tensor]:
    return from_phi(A, B, _phi(A, B, value, g, *parameters))
