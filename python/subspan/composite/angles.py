"""Principal angles and functions of them in torch operations, with derivatives that are exact where angles repeat or
vanish.

Bases are (*batch, n, p) and (*batch, n, q) with broadcasting batch dimensions. With orthonormal Q_A and Q_B,
M = Q_A^T Q_B = U C V^T. A sum F = sum_i g(theta_i) has the gradient

    dF / dQ_A = -(Q_B - Q_A M) Phi^T,  dF / dQ_B = -(Q_A - Q_B M^T) Phi,  Phi = U diag(phi(c)) V^T,  phi = g' / sin,

orthogonal to the basis: it is that of the span, and of a basis Q R it is that times R^{-T}. Phi is a smooth function of
the matrix M where phi is one of c, and is differentiated as such, by divided differences: no singular vector is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._angle_functions import NAMES
from .factor import factor_dtype, result_dtype, without_autocast
from .small_matrices import _SVD


def orthonormal_basis(A: Tensor, orthonormal: bool, rank_tol: float) -> tuple[Tensor, Tensor, Tensor]:
    """Q, R with A = Q R, and which columns are independent of those before them; the others are zero in Q, and unit
    vectors in R, which can then be solved with."""
    size = A.shape[-1]
    if orthonormal:
        eye = torch.eye(size, dtype=A.dtype, device=A.device).expand(*A.shape[:-2], size, size)
        return A, eye, torch.ones((*A.shape[:-2], size), dtype=torch.bool, device=A.device)
    finite, poison = A.isfinite().all(-1).all(-1), (A * 0).sum((-2, -1))
    Q, R = torch.linalg.qr(torch.where(finite[..., None, None], A, 0))
    R = R + poison[..., None, None]
    alive = ~(R.detach().diagonal(dim1=-2, dim2=-1).abs() <= rank_tol * torch.linalg.vector_norm(A.detach(), dim=-2))
    R = torch.where(alive[..., :, None], R, torch.eye(size, dtype=R.dtype, device=R.device))
    return Q * alive[..., None, :] + poison[..., None, None], R, alive


def _sines_and_rotation(M: Tensor, Q_A: Tensor, Q_B: Tensor, alive_B: Tensor | None) -> tuple[Tensor, ...]:
    """Principal coefficients U (p, r) and V (q, r), cosines and sines, by ascending angle.

    The sines are the singular values of the residual Q_B V - Q_A U C, which also tells apart the vectors of angles
    whose cosines are equal to rounding.
    """
    C, U, Vh = _SVD.apply(M)
    V = Vh.mT
    residual = Q_B @ V - Q_A @ (U * C[..., None, :])
    if alive_B is not None:  # a direction that is none is orthogonal to all
        residual = torch.cat([residual, torch.where(alive_B[..., :, None], 0, V)], -2)
    sines, _, rotation = _SVD.apply(residual)
    rotation = rotation.mT.flip(-1)
    U, V = U @ rotation, V @ rotation
    cosines = torch.linalg.vector_norm(M @ V, dim=-2)
    return U, V, cosines, sines.flip(-1)


# --- functions of a matrix by its singular values ---------------------------------------------------------------------


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
_SUMS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "geodesic": (_geodesic_weight, _geodesic_slope),
    "chordal": (lambda c: 2 * c, lambda c: torch.full_like(c, 2)),
    "procrustes": (lambda c: torch.full_like(c, 2), torch.zeros_like),
    # At a right angle the logarithm is infinite; its gradient is taken for 0 there.
    "martin": (
        lambda c: torch.where(c > 0, 2 / torch.where(c > 0, c, 1), 0),
        lambda c: torch.where(c > 0, -2 / torch.where(c > 0, c, 1) ** 2, 0),
    ),
}


class _MatrixFunction(torch.autograd.Function):
    """U diag(phi(c)) V^T of M = U diag(c) V^T; its derivative by divided differences (Daleckii, Krein 1965)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(M: Tensor, name: str) -> Tensor:
        C, U, Vh = _SVD.apply(M)
        return U * _SUMS[name][0](C)[..., None, :] @ Vh

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.name = inputs[1]

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (M,) = ctx.saved_tensors
        function, slope = _SUMS[ctx.name]
        C, U, Vh = _SVD.apply(M)
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


# --- values -----------------------------------------------------------------------------------------------------------


def _log_square_cosine(c: Tensor, s: Tensor) -> Tensor:
    near = c > s
    return torch.where(near, torch.log1p(-(torch.where(near, s, 0) ** 2)), 2 * torch.where(near, 1, c).log())


def _square(name: str, theta: Tensor, c: Tensor, s: Tensor, unpaired: int) -> Tensor:
    """The square of a distance; theta ascends."""
    quarter = math.pi / 2
    if name in ("asimov", "spectral", "gap"):
        largest = theta[..., -1] if theta.shape[-1] and not unpaired else theta.new_full(theta.shape[:-1], quarter)
        largest = largest if unpaired or theta.shape[-1] else 0 * largest
        return {"asimov": largest, "spectral": 2 * (largest / 2).sin(), "gap": largest.sin()}[name] ** 2
    if name == "geodesic":
        return (theta**2).sum(-1) + unpaired * quarter**2
    if name == "chordal":
        return (s**2).sum(-1) + unpaired
    if name == "projection":
        return 2 * (s**2).sum(-1) + unpaired
    if name == "procrustes":
        return (4 * (theta / 2).sin() ** 2).sum(-1) + 2 * unpaired
    log = _log_square_cosine(c, s).sum(-1)
    log = torch.full_like(log, -math.inf) if unpaired else log
    if name == "martin":
        return -log
    if name == "binet_cauchy":
        return -torch.expm1(log)
    return torch.atan2((-torch.expm1(log)).sqrt(), (log / 2).exp()) ** 2


def _value(function: int, squared: bool, theta: Tensor, c: Tensor, s: Tensor, unpaired: int) -> Tensor:
    name = NAMES[function]
    if name == "angles":
        return theta
    if name == "cosines":
        return c
    if name == "max_cos":
        return c[..., 0] if c.shape[-1] else c.sum(-1)
    if name in ("mean_cos2", "overlap"):
        return (c**2).sum(-1) / (max(c.shape[-1], 1) if name == "mean_cos2" else 1)
    square = _square(name, theta, c, s, unpaired)
    return square if squared else square.sqrt()


class _Parameters:
    """What an op is called with beside its arrays."""

    def __init__(self, function: int, squared: bool, padded: bool, orthonormal: bool, rank_tol: float) -> None:
        self.function, self.name, self.squared, self.padded = function, NAMES[function], squared, padded
        self.orthonormal, self.rank_tol, self.count = orthonormal, rank_tol, 0

    def unpaired(self, A: Tensor, B: Tensor) -> int:
        return abs(A.shape[-1] - B.shape[-1]) if self.padded else 0


def _bases(A: Tensor, B: Tensor, parameters: _Parameters) -> tuple[Any, ...]:
    wide, narrow = A.to(factor_dtype(A)), B.to(factor_dtype(B))
    Q_A, R_A, alive_A = orthonormal_basis(wide, parameters.orthonormal, parameters.rank_tol)
    Q_B, R_B, alive_B = orthonormal_basis(narrow, parameters.orthonormal, parameters.rank_tol)
    return Q_A, R_A, alive_A, Q_B, R_B, alive_B


def _forward(A: Tensor, B: Tensor, parameters: _Parameters) -> tuple[Tensor, ...]:
    if A.shape[-1] < B.shape[-1]:
        value, info, right, left = _forward(B, A, parameters)
        return value, info, left, right
    Q_A, _, alive_A, Q_B, _, alive_B = _bases(A, B, parameters)
    M = Q_A.mT @ Q_B
    U, V, c, s = _sines_and_rotation(M, Q_A, Q_B, None if parameters.orthonormal else alive_B)
    theta = torch.atan2(s, c)
    value = _value(parameters.function, parameters.squared, theta, c, s, parameters.unpaired(A, B))
    rank = torch.minimum(alive_A.sum(-1), alive_B.sum(-1)).expand(theta.shape[:-1])
    info = torch.where(theta.sum(-1).isfinite(), rank, -1).to(torch.int32)
    dtype = result_dtype(A)
    return value.to(dtype), info, (Q_A @ U).to(dtype), (Q_B @ V).to(dtype)


class _SubspaceAngles(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(A: Tensor, B: Tensor, *parameters: Any) -> tuple[Tensor, ...]:
        return _forward(A, B, _Parameters(*parameters))

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
    outputs: tuple[Tensor, ...] = _SubspaceAngles.apply(A, B, *parameters)
    return outputs


# --- gradients --------------------------------------------------------------------------------------------------------


def _to_basis(gradient: Tensor, R: Tensor, alive: Tensor) -> Tensor:
    """Of a basis Q R, from that of Q."""
    gradient = gradient * alive[..., None, :]
    return torch.linalg.solve_triangular(R, gradient.mT, upper=True).mT


def _outer(parameters: _Parameters, value: Tensor, count: int) -> tuple[str, Tensor | float]:
    """A distance or similarity as a function of a sum in _SUMS: which, and the derivative at its value."""
    name, squared = parameters.name, parameters.squared
    if name == "mean_cos2":
        return "chordal", -1.0 / max(count, 1)
    if name == "overlap":
        return "chordal", -1.0
    positive = value > 0
    root = 1.0 if squared else torch.where(positive, 0.5 / torch.where(positive, value, 1), 0)
    if name == "projection":
        return "chordal", 2 * root
    if name == "binet_cauchy":  # squared: 1 - exp(-sum)
        return "martin", (1 - (value if squared else value**2)) * root
    if name == "fubini_study":  # squared: arccos(exp(-sum / 2))^2
        square = value if squared else value**2
        small = square < 1e-4
        angle = torch.where(small, 1, square).sqrt()
        slope = torch.where(small, 1 - square / 3 - square**2 / 45, angle / angle.tan())
        return "martin", torch.where(slope > 0, slope, 0) * root
    return name, root


def _angle_weights(parameters: _Parameters, g: Tensor, c: Tensor, s: Tensor) -> Tensor:
    """(upstream . d value / d theta_i) / s_i for functions of single angles; 0 at angles of zero, a subgradient."""
    if parameters.name == "cosines":
        return -g
    over_sine = torch.where(s > 0, 1 / torch.where(s > 0, s, 1), 0)
    if parameters.name == "angles":
        return g * over_sine
    if parameters.name == "max_cos":
        return torch.cat([-g[..., None], torch.zeros_like(c[..., 1:])], -1)
    theta, s, c, over_sine = (x[..., -1] for x in (torch.atan2(s, c), s, c, over_sine))
    small = s <= 0
    if parameters.squared:
        weight = {
            "asimov": 2 * torch.where(small, 1, theta * over_sine),
            "spectral": torch.full_like(theta, 2),
            "gap": 2 * c,
        }
    else:
        half = torch.where(small, 1, theta / 2)
        weight = {"asimov": over_sine, "spectral": torch.where(small, 0, 0.5 / half.sin()), "gap": c * over_sine}
    last = (g * weight[parameters.name])[..., None]
    before = last.expand(*last.shape[:-1], parameters.count - 1)
    return torch.cat([torch.zeros_like(before), last], -1)


@without_autocast
def subspace_angles_gradient(A: Tensor, B: Tensor, value: Tensor, g: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Gradients with respect to A and B of the broadcast value, which is used where it is divided by."""
    parameters = _Parameters(*rest)
    shape_A, shape_B = A.shape, B.shape
    count = min(A.shape[-1], B.shape[-1])
    Q_A, R_A, alive_A, Q_B, R_B, alive_B = _bases(A, B, parameters)
    g, value = g.to(Q_A.dtype), value.to(Q_A.dtype)
    M = Q_A.mT @ Q_B
    if parameters.name in ("angles", "cosines", "asimov", "spectral", "gap", "max_cos"):
        constant = parameters.unpaired(A, B) > 0 and parameters.name in ("asimov", "spectral", "gap")
        if constant or count == 0:
            return torch.zeros_like(Q_A), torch.zeros_like(Q_B)
        swapped = A.shape[-1] < B.shape[-1]
        if swapped:
            V, U, c, s = _sines_and_rotation(M.mT, Q_B, Q_A, None if parameters.orthonormal else alive_A)
        else:
            U, V, c, s = _sines_and_rotation(M, Q_A, Q_B, None if parameters.orthonormal else alive_B)
        parameters.count = count
        weights = _angle_weights(parameters, g, c, s)[..., None, :]
        d_A = -((Q_B @ V - Q_A @ (U * c[..., None, :])) * weights) @ U.mT
        d_B = -((Q_A @ U - Q_B @ (V * c[..., None, :])) * weights) @ V.mT
    else:
        name, slope = _outer(parameters, value, count)
        Phi = _MatrixFunction.apply(M, name) * (g * slope)[..., None, None]
        d_A = -(Q_B @ Phi.mT - Q_A @ (M @ Phi.mT))
        d_B = -(Q_A @ Phi - Q_B @ (M.mT @ Phi))
    d_A, d_B = _to_basis(d_A, R_A, alive_A), _to_basis(d_B, R_B, alive_B)
    return d_A.sum_to_size(shape_A), d_B.sum_to_size(shape_B)


# --- every subspace of one set with every one of another -------------------------------------------------------------


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
        return span_gradient(*ctx.saved_tensors, g), None


@without_autocast
def orthonormal_basis_of_span(A: Tensor, rank_tol: float) -> tuple[Tensor, ...]:
    """Q, R and the rank."""
    Q, R, rank = _Span.apply(A.to(factor_dtype(A)), rank_tol)
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
        return _to_basis(tangent, torch.where(alive[..., :, None], R.to(wide), eye), alive)
    square = torch.where(alive[..., :, None], Q.mT @ A.to(wide), eye)
    return torch.linalg.solve(square, (tangent * alive[..., None, :]).mT).mT


def _stacked(bases: Tensor) -> Tensor:
    """(*batch, N, n, p) as (*batch, N p, n): all basis vectors as rows."""
    return bases.mT.flatten(-3, -2)


def _products(A: Tensor, B: Tensor) -> Tensor:
    """A_i^T B_j, (*batch, N, p, M, q)."""
    return (
        (_stacked(A) @ _stacked(B).mT)
        .unflatten(-1, (B.shape[-3], B.shape[-1]))
        .unflatten(-3, (A.shape[-3], A.shape[-1]))
    )


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
    return _PairwiseAngles.apply(A, B, function, squared, padded)  # type: ignore[no-any-return]


class _PairwiseAngles(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(A: Tensor, B: Tensor, *parameters: Any) -> tuple[Tensor, Tensor]:
        full = _Parameters(*parameters, True, 0.0)
        parts = [_forward(a, b, full)[:2] for a, b in _some_at_a_time(A, B)]
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
def _phi(A: Tensor, B: Tensor, value: Tensor, g: Tensor, *parameters: Any) -> Tensor:
    wide = factor_dtype(A)
    A, B, value, g = (t.to(wide) for t in (A, B, value, g))
    full = _Parameters(*parameters, True, 0.0)
    full.count = min(A.shape[-1], B.shape[-1])
    M = _products(A, B).transpose(-3, -2)  # (*batch, N, M, p, q)
    if full.name not in ("angles", "cosines", "asimov", "spectral", "gap", "max_cos"):
        name, slope = _outer(full, value, full.count)
        return (_MatrixFunction.apply(M, name) * (g * slope)[..., None, None]).transpose(-3, -2)
    if full.count == 0 or (full.unpaired(A, B) and full.name in ("asimov", "spectral", "gap")):
        return torch.zeros_like(M).transpose(-3, -2)
    parts, first = [], 0
    for a, b in _some_at_a_time(A, B):
        part = slice(first, first + a.shape[-4])
        first = part.stop
        products, upstream = M[..., part, :, :, :], (g[..., part, :, :] if g.ndim == M.ndim - 1 else g[..., part, :])
        if a.shape[-1] < b.shape[-1]:
            V, U, c, s = _sines_and_rotation(products.mT, b, a, None)
        else:
            U, V, c, s = _sines_and_rotation(products, a, b, None)
        parts.append(U * _angle_weights(full, upstream, c, s)[..., None, :] @ V.mT)
    return torch.cat(parts, -4).transpose(-3, -2)


@without_autocast
def pairwise_gradient(A: Tensor, B: Tensor, value: Tensor, g: Tensor, *parameters: Any) -> tuple[Tensor, Tensor]:
    return from_phi(A, B, _phi(A, B, value, g, *parameters))
