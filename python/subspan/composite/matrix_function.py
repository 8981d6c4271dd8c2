"""Functions of a matrix by its singular values, whose derivatives are exact where those repeat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .small_matrices import svd


def _sine(c: Tensor) -> Tensor:
    return ((1 - c).clamp(min=0) * (1 + c)).sqrt()


def _geodesic_weight(c: Tensor) -> Tensor:
    """2 theta / sin theta."""
    s = _sine(c)
    small = s < 1e-4
    return 2 * torch.where(small, 1 + s**2 / 6, torch.atan2(s, c) / torch.where(small, 1, s))


def _geodesic_slope(c: Tensor) -> Tensor:
    """d / dc of that: -2 (s - theta c) / s^3."""
    s = _sine(c)
    small = s < 0.02
    series = 1 / 3 + s**2 * (2 / 15 + s**2 * (8 / 105 + s**2 * (16 / 315 + s**2 * 128 / 3465)))
    return -2 * torch.where(small, series, (s - torch.atan2(s, c) * c) / torch.where(small, 1, s) ** 3)


#: phi = g' / sin and its derivative, by name of a sum of g(theta): of theta^2, sin^2, 4 sin^2(theta / 2), -log cos^2.
SUMS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "geodesic": (_geodesic_weight, _geodesic_slope),
    "chordal": (lambda c: 2 * c, lambda c: torch.full_like(c, 2)),
    "procrustes": (lambda c: torch.full_like(c, 2), torch.zeros_like),
    # At a right angle the logarithm is infinite; its gradient is taken for 0 there.
    "martin": (
        lambda c: torch.where(c > 0, 2 / torch.where(c > 0, c, 1), 0),
        lambda c: torch.where(c > 0, -2 / torch.where(c > 0, c, 1) ** 2, 0),
    ),
}


class _Function(torch.autograd.Function):
    """U diag(phi(c)) V^T of M = U diag(c) V^T; its derivative by divided differences (Daleckii, Krein 1965)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(M: Tensor, name: str) -> Tensor:
        C, U, Vh = svd(M)
        return U * SUMS[name][0](C)[..., None, :] @ Vh

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.name = inputs[1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (M,) = ctx.saved_tensors
        function, slope = SUMS[ctx.name]
        C, U, Vh = svd(M)
        V, phi = Vh.mT, function(C)
        ci, cj, fi, fj = C[..., :, None], C[..., None, :], phi[..., :, None], phi[..., None, :]
        near = (ci - cj).abs() < 1e-5
        symmetric = torch.where(near, slope((ci + cj) / 2), (fi - fj) / torch.where(near, 1, ci - cj))
        total = ci + cj
        antisymmetric = torch.where(total > 0, (fi + fj) / torch.where(total > 0, total, 1), 0)
        core = U.mT @ upstream @ V
        core = symmetric * (core + core.mT) / 2 + antisymmetric * (core - core.mT) / 2
        result = U @ core @ Vh
        ratio = torch.where(C > 0, phi / torch.where(C > 0, C, 1), 0)[..., None, :]
        if U.shape[-2] > U.shape[-1]:
            result = result + ((upstream - U @ (U.mT @ upstream)) @ V * ratio) @ Vh
        if V.shape[-2] > V.shape[-1]:
            result = result + U * ratio @ (U.mT @ (upstream - (upstream @ V) @ Vh))
        return result, None


def matrix_function(M: Tensor, name: str) -> Tensor:
    """U diag(phi(c)) V^T of M = U diag(c) V^T for the phi of that name."""
    result: Tensor = _Function.apply(M, name)  # type: ignore[no-untyped-call]
    return result
