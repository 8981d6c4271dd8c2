"""QR and polar factorisations of frames in torch, and their gradients, which divide by no difference.

Everything is float64 for every input type (float32 on devices without float64). The derivatives are formulas in the
factors themselves and are differentiated as such. Frames are (*batch, n, k), or (*batch, k, n) with `rows`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from .factor import factor_dtype, identity, result_dtype, without_autocast
from .polar import sylvester
from .small_matrices import finite_items


def _columns(frame: Tensor, rows: bool) -> Tensor:
    return frame.mT if rows else frame


def _tiny(count: int, like: Tensor) -> float:
    return count * torch.finfo(like.dtype).eps


def _keep_factors(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output)


class _QR(torch.autograd.Function):
    """Q and R with a diagonal >= 0, which is 0 where a column lies in the span of those before it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(A: Tensor) -> tuple[Tensor, Tensor]:
        finite, poison = finite_items(A)
        Q, R = torch.linalg.qr(finite)
        signs = torch.where(R.diagonal(dim1=-2, dim2=-1) < 0, -1, 1).to(R.dtype)
        R = R * signs[..., :, None]
        diagonal = R.diagonal(dim1=-2, dim2=-1)
        dependent = diagonal <= _tiny(A.shape[-2], A) * torch.linalg.vector_norm(R, dim=-2)
        R = R - torch.diag_embed(torch.where(dependent, diagonal, 0))
        poison = poison[..., None, None]
        return Q * signs[..., None, :] + poison, R + poison

    setup_context = staticmethod(_keep_factors)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Tensor | None:
        return _qr_gradient(*ctx.saved_tensors, *upstream)


class _Polar(torch.autograd.Function):
    """Q and H."""

    generate_vmap_rule = True

    @staticmethod
    def forward(A: Tensor) -> tuple[Tensor, Tensor]:
        finite, poison = finite_items(A)
        left, values, right = torch.linalg.svd(finite, full_matrices=False)
        poison = poison[..., None, None]
        return left @ right + poison, (right.mT * values[..., None, :]) @ right + poison

    setup_context = staticmethod(_keep_factors)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Tensor | None:
        return _polar_gradient(*ctx.saved_tensors, *upstream)


@without_autocast
def orthonormalize(A: Tensor, polar: bool, rows: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Q, then R or H, and a status."""
    frame = _columns(A, rows).to(factor_dtype(A))
    Q, triangle = (_Polar if polar else _QR).apply(frame)  # type: ignore[no-untyped-call]
    info = _polar_info(triangle.detach()) if polar else _qr_info(triangle.detach())
    return _columns(Q, rows).to(result_dtype(A)), triangle.to(result_dtype(A)), info


def _qr_info(R: Tensor) -> Tensor:
    """The 1-based index of the first column that depends on those before it."""
    if not R.shape[-1]:
        return torch.zeros(R.shape[:-2], dtype=torch.int32, device=R.device)
    dependent = R.diagonal(dim1=-2, dim2=-1) == 0
    first = torch.where(dependent.any(-1), dependent.to(torch.int32).argmax(-1) + 1, 0)
    return torch.where(R.isfinite().all(-1).all(-1), first, -1).to(torch.int32)


def _polar_info(H: Tensor) -> Tensor:
    """How many singular values are zero to rounding."""
    if not H.shape[-1]:
        return torch.zeros(H.shape[:-2], dtype=torch.int32, device=H.device)
    good = H.isfinite().all(-1).all(-1)
    values = torch.linalg.eigvalsh(torch.where(good[..., None, None], H, 0))
    none = (values <= _tiny(H.shape[-1], H) * values[..., -1:]).sum(-1)
    return torch.where(good, none, -1).to(torch.int32)


@without_autocast
def orthonormalize_gradient(
    Q: Tensor, triangle: Tensor, d_Q: Tensor | None, d_triangle: Tensor | None, polar: bool, rows: bool
) -> Tensor:
    """The gradient of A, in the layout and type of Q."""
    dtype = factor_dtype(Q)
    of_Q = None if d_Q is None else _columns(d_Q, rows).to(dtype)
    of_triangle = None if d_triangle is None else d_triangle.to(dtype)
    formula = _polar_gradient if polar else _qr_gradient
    d_A = formula(_columns(Q, rows).to(dtype), triangle.to(dtype), of_Q, of_triangle)
    assert d_A is not None
    return _columns(d_A, rows).to(Q.dtype)


@without_autocast
def _qr_gradient(Q: Tensor, R: Tensor, d_Q: Tensor | None, d_R: Tensor | None) -> Tensor | None:
    """(dQ + Q C) R^-T, C = tril(M, -1) + tril(M, -1)^T + diag(M), M = R dR^T - dQ^T Q (Walter, Lehmann 2012). Nothing
    flows through a column that depends on those before it: its entry of the solution is 0."""
    if d_Q is None and d_R is None:
        return None
    M = torch.zeros_like(R) if d_R is None else R @ d_R.mT
    M = M if d_Q is None else M - d_Q.mT @ Q
    C = M.tril() + M.tril(-1).mT
    B = Q @ C if d_Q is None else d_Q + Q @ C
    dependent = R.detach().diagonal(dim1=-2, dim2=-1) == 0
    R = torch.where(dependent[..., :, None], identity(R.shape[-1], R), R)
    B = torch.where(dependent[..., None, :], 0, B)
    solution: Tensor = solve_triangular(R.mT, B, upper=False, left=False)
    return solution


@without_autocast
def _polar_gradient(Q: Tensor, H: Tensor, d_Q: Tensor | None, d_H: Tensor | None) -> Tensor | None:
    """(dQ - Q Q^T dQ) H^-1 + Q (Z + 2 H Y) with S = Q^T dQ and the skew and the symmetric part, Z and Y, of the
    solution of H X + X H = (S - S^T) + (dH + dH^T) / 2."""
    if d_Q is None and d_H is None:
        return None
    count = H.shape[-1]
    if not H.numel():
        return Q if d_Q is None else Q + d_Q
    unit = H.detach().abs().amax((-2, -1), keepdim=True)
    unit = torch.where(unit > 0, unit, 1)  # equations are scaled: what is negligible is relative to H
    H = (H + H.mT) / 2
    right: Any = 0
    if d_Q is not None:
        S = Q.mT @ d_Q
        right = S - S.mT
    if d_H is not None:
        right = right + (d_H + d_H.mT) / 2
    X = sylvester(H / unit, right / unit)
    core = (X - X.mT) / 2 + H @ (X + X.mT)
    if d_Q is None or Q.shape[-2] == count:
        return Q @ core
    inverse = sylvester(H / unit, (2 * identity(count, H)).expand_as(H)) / unit
    return Q @ (core - S @ inverse) + d_Q @ inverse
