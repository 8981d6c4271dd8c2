"""Principal angles and functions of them in torch operations, with derivatives that are exact where angles repeat or
vanish.

Bases are (*batch, n, p) and (*batch, n, q) with broadcasting batch dimensions. With orthonormal Q_A and Q_B,
M = Q_A^T Q_B = U C V^T. A sum F = sum_i g(theta_i) has the gradient

    dF / dQ_A = -(Q_B - Q_A M) Phi^T,  dF / dQ_B = -(Q_A - Q_B M^T) Phi,  Phi = U diag(phi(c)) V^T,  phi = g' / sin,

orthogonal to the basis: it is that of the span, and of a basis Q R it is that times R^{-T}. Phi is a smooth function of
the matrix M where phi is one of c, and is differentiated as such, by divided differences: no singular vector is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .angle_values import Parameters, angle_value, angle_weights, outer
from .factor import factor_dtype, result_dtype, without_autocast
from .matrix_function import matrix_function
from .small_matrices import svd


def orthonormal_basis(A: Tensor, orthonormal: bool, rank_tol: float) -> tuple[Tensor, Tensor, Tensor]:
    """Q, R with A = Q R by Gram and Schmidt's process, each column twice, and which columns are independent of those
    before them; the others are zero in Q, and 1 on the diagonal of R, which can then be solved with.

    Householder's method gives a dependent column an arbitrary direction, which those after it may need.
    """
    size = A.shape[-1]
    if orthonormal:
        eye = torch.eye(size, dtype=A.dtype, device=A.device).expand(*A.shape[:-2], size, size)
        return A, eye, (A != 0).any(-2)  # a column of zeros stands for one that depends on others
    finite, poison = A.isfinite().all(-1).all(-1), (A * 0).sum((-2, -1))
    A = torch.where(finite[..., None, None], A, 0)
    largest = A.detach().abs().amax(-2, keepdim=True) if A.shape[-2] else A.sum(-2, keepdim=True)
    scale = torch.where(largest > 0, largest, 1)  # squares may overflow
    scaled, Q = A / scale, A[..., :0]
    triangle: list[Tensor] = []
    alive: list[Tensor] = []
    for c in range(size):
        column = scaled[..., c : c + 1]
        norm = torch.linalg.vector_norm(column.detach(), dim=-2, keepdim=True)
        entries = column[..., :c, :] * 0
        for _ in range(2):
            along = Q.mT @ column
            column, entries = column - Q @ along, entries + along
        dependent = torch.linalg.vector_norm(column.detach(), dim=-2, keepdim=True) <= rank_tol * norm
        rest = torch.linalg.vector_norm(torch.where(dependent, 1, column), dim=-2, keepdim=True)
        Q = torch.cat([Q, torch.where(dependent, 0, column / rest)], -1)
        diagonal = torch.where(dependent, 1, rest)
        triangle.append(torch.cat([entries, diagonal, torch.zeros_like(scaled[..., c + 1 : size, :1])], -2))
        alive.append(~dependent[..., 0, 0])
    if not size:
        return Q, Q.mT @ Q, torch.ones((*A.shape[:-2], 0), dtype=torch.bool, device=A.device)
    R = torch.cat(triangle, -1) * scale + poison[..., None, None]
    return Q + poison[..., None, None], R, torch.stack(alive, -1)


def sines_and_rotation(M: Tensor, Q_A: Tensor, Q_B: Tensor) -> tuple[Tensor, ...]:
    """Principal coefficients U (p, r) and V (q, r), cosines and sines, by ascending angle.

    The sines are the singular values of the residual Q_B V - Q_A U C, which also tells apart the vectors of angles
    whose cosines are equal to rounding. Beyond pi / 4 it is the cosines that do so: those vectors stay as they are.
    """
    C, U, Vh = svd(M)
    V = Vh.mT
    is_near = (C**2 > 0.5)[..., None, :]  # the first of the columns
    # A direction that is none is orthogonal to all.
    missing = torch.where((Q_B != 0).any(-2)[..., :, None], 0, V)
    residual = torch.cat([Q_B @ V - Q_A @ (U * C[..., None, :]), missing], -2)
    kept = torch.diag_embed(torch.arange(2, 2 + C.shape[-1], dtype=C.dtype, device=C.device))
    blocks = [torch.where(is_near, residual, 0), torch.where(is_near, 0, kept).expand(*C.shape[:-1], *kept.shape)]
    sines, _, rotation = svd(torch.cat(blocks, -2))
    rotation = rotation.mT.flip(-1)
    lengths = torch.linalg.vector_norm(torch.where(is_near, 1, residual), dim=-2)
    sines = torch.where(is_near[..., 0, :], sines.flip(-1), lengths)
    U, V = U @ rotation, V @ rotation
    cosines = torch.linalg.vector_norm(M @ V, dim=-2)
    return U, V, cosines, sines


def bases(A: Tensor, B: Tensor, parameters: Parameters) -> tuple[Any, ...]:
    wide, narrow = A.to(factor_dtype(A)), B.to(factor_dtype(B))
    Q_A, R_A, alive_A = orthonormal_basis(wide, parameters.orthonormal, parameters.rank_tol)
    Q_B, R_B, alive_B = orthonormal_basis(narrow, parameters.orthonormal, parameters.rank_tol)
    return Q_A, R_A, alive_A, Q_B, R_B, alive_B


def forward(A: Tensor, B: Tensor, parameters: Parameters) -> tuple[Tensor, ...]:
    if A.shape[-1] < B.shape[-1]:
        value, info, right, left = forward(B, A, parameters)
        return value, info, left, right
    Q_A, _, alive_A, Q_B, _, alive_B = bases(A, B, parameters)
    M = Q_A.mT @ Q_B
    U, V, c, s = sines_and_rotation(M, Q_A, Q_B)
    rank = torch.minimum(alive_A.sum(-1), alive_B.sum(-1)).expand(c.shape[:-1])
    c = torch.where(torch.arange(c.shape[-1], device=c.device) < rank[..., None], c, c * 0)
    theta = torch.atan2(s, c)
    value = angle_value(parameters, theta, c, s, parameters.unpaired(A, B))
    info = torch.where(theta.sum(-1).isfinite(), rank, -1).to(torch.int32)
    dtype = result_dtype(A)
    return value.to(dtype), info, (Q_A @ U).to(dtype), (Q_B @ V).to(dtype)


class _SubspaceAngles(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(A: Tensor, B: Tensor, *parameters: Any) -> tuple[Tensor, ...]:
        return forward(A, B, Parameters(*parameters))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:2], output[0])
        ctx.parameters = inputs[2:]
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Any, ...]:
        A, B, value = ctx.saved_tensors
        d_A, d_B = subspace_angles_gradient(A, B, value, upstream, *ctx.parameters)
        return d_A.to(A.dtype), d_B.to(B.dtype), *(None,) * len(ctx.parameters)


@without_autocast
def subspace_angles(A: Tensor, B: Tensor, *parameters: Any) -> tuple[Tensor, ...]:
    """Value, rank status and the principal vectors of both sides."""
    outputs: tuple[Tensor, ...] = _SubspaceAngles.apply(A, B, *parameters)  # type: ignore[no-untyped-call]
    return outputs


# --- gradients --------------------------------------------------------------------------------------------------------


def to_basis(gradient: Tensor, R: Tensor, alive: Tensor) -> Tensor:
    """Of a basis Q R, from that of Q."""
    gradient = gradient * alive[..., None, :]
    solution: Tensor = torch.linalg.solve_triangular(R, gradient.mT, upper=True)
    return solution.mT


def _across(Q: Tensor, residual: Tensor, times: int = 1) -> Tensor:
    """Without the rounding errors along Q, which are seen where the residual is small. Where it is divided by its
    length and may be nothing but rounding errors, once is not enough."""
    for _ in range(times):
        residual = residual - Q @ (Q.mT @ residual)
    return residual


@without_autocast
def subspace_angles_gradient(A: Tensor, B: Tensor, value: Tensor, g: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Gradients with respect to A and B of the broadcast value, which is used where it is divided by."""
    parameters = Parameters(*rest)
    shape_A, shape_B = A.shape, B.shape
    count = min(A.shape[-1], B.shape[-1])
    Q_A, R_A, alive_A, Q_B, R_B, alive_B = bases(A, B, parameters)
    g, value = g.to(Q_A.dtype), value.to(Q_A.dtype)
    M = Q_A.mT @ Q_B
    if parameters.name in ("angles", "cosines", "asimov", "spectral", "gap", "max_cos"):
        constant = parameters.unpaired(A, B) > 0 and parameters.name in ("asimov", "spectral", "gap")
        if constant or count == 0:
            return torch.zeros_like(Q_A), torch.zeros_like(Q_B)
        swapped = A.shape[-1] < B.shape[-1]
        if swapped:
            V, U, c, s = sines_and_rotation(M.mT, Q_B, Q_A)
        else:
            U, V, c, s = sines_and_rotation(M, Q_A, Q_B)
        parameters.count = count
        weights = angle_weights(parameters, g, c, s)[..., None, :]
        d_A = -(_across(Q_A, Q_B @ V - Q_A @ (U * c[..., None, :]), 2) * weights) @ U.mT
        d_B = -(_across(Q_B, Q_A @ U - Q_B @ (V * c[..., None, :]), 2) * weights) @ V.mT
    else:
        name, slope = outer(parameters, value, count)
        Phi = matrix_function(M, name) * (g * slope)[..., None, None]
        d_A = -_across(Q_A, Q_B @ Phi.mT - Q_A @ (M @ Phi.mT))
        d_B = -_across(Q_B, Q_A @ Phi - Q_B @ (M.mT @ Phi))
    d_A, d_B = to_basis(d_A, R_A, alive_A), to_basis(d_B, R_B, alive_B)
    return d_A.sum_to_size(shape_A), d_B.sum_to_size(shape_B)
