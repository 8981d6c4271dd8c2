"""The orthogonal polar factor of small square matrices, and what its derivatives need, in torch.

The derivative of a singular value decomposition is not defined at equal singular values. That of the polar factor is:
with M = H Q, H = (M M^T)^1/2, dQ = W Q for the skew W that solves H W + W H = dM Q^T - Q dM^T. The solution of such an
equation is differentiated as the solution of another, so that derivatives of any order exist wherever no two singular
values sum to 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .small_matrices import svd


class Sylvester(torch.autograd.Function):
    """The solution Z of H Z + Z H = R for symmetric positive semidefinite H, of least norm where there are several."""

    generate_vmap_rule = True

    @staticmethod
    def forward(H: Tensor, R: Tensor) -> Tensor:
        return solve_sylvester(H, R)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor]:
        H, Z = ctx.saved_tensors
        d_R = sylvester(H, upstream[0])
        return -(d_R @ Z.mT + Z.mT @ d_R), d_R


def solve_sylvester(H: Tensor, R: Tensor) -> Tensor:
    good = H.isfinite().all(-1).all(-1)[..., None, None]
    values, vectors = torch.linalg.eigh(torch.where(good, H, 0))
    sums = values[..., :, None] + values[..., None, :]
    solvable = sums > 1e3 * torch.finfo(H.dtype).eps
    weights = torch.where(solvable, torch.where(solvable, sums, 1).reciprocal(), 0)
    solution: Tensor = vectors @ ((vectors.mT @ R @ vectors) * weights) @ vectors.mT
    return torch.where(good, solution, math.nan)


def sylvester(H: Tensor, R: Tensor) -> Tensor:
    if torch.compiler.is_compiling():  # within the backward pass of a Function, where no other can be traced
        return solve_sylvester(H, R)
    solution: Tensor = Sylvester.apply(H, R)  # type: ignore[no-untyped-call]
    return solution


class Polar(torch.autograd.Function):
    """U V^T of M = U S V^T."""

    generate_vmap_rule = True

    @staticmethod
    def forward(M: Tensor) -> Tensor:
        _, U, Vt = svd(M)
        return U @ Vt

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        M, Q = ctx.saved_tensors
        H = M @ Q.mT
        turned = upstream[0] @ Q.mT
        gradient: Tensor = sylvester((H + H.mT) / 2, turned - turned.mT) @ Q
        return gradient


def polar(M: Tensor) -> Tensor:
    factor: Tensor = Polar.apply(M)  # type: ignore[no-untyped-call]
    return factor
