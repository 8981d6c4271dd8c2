"""Maps of the Grassmann manifold in differentiable torch operations, through k x k Gram matrices alone.

Gram matrices and their functions are float64 for every input type (float32 on devices without float64). Bases are
(*batch, n, k), or (*batch, k, n) with `rows`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import cholesky_ex, solve_triangular

from .._angle_series import ANGLE_OVER_SINE
from .factor import factor_dtype, one_where, result_dtype, without_autocast
from .polar import polar
from .rotation import rotation_functions


def columns(basis: Tensor, rows: bool, dtype: object) -> Tensor:
    basis = basis.to(dtype)  # type: ignore[call-overload]
    return basis.mT if rows else basis


def finite(*arrays: Tensor) -> Tensor:
    """1 for every item that is finite in all arrays, else NaN; to be multiplied with what the item gives."""
    good = torch.stack([array.detach().isfinite().all(-1).all(-1) for array in arrays]).all(0)
    return one_where(good, arrays[0])[..., None, None]


def symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


@without_autocast
def grassmann_exp(X: Tensor, D: Tensor, project: bool, rows: bool) -> Tensor:
    """X cos G^1/2 + D G^-1/2 sin G^1/2 with G = D^T D."""
    dtype = result_dtype(X)
    x, d = columns(X, rows, factor_dtype(X)), columns(D, rows, factor_dtype(X))
    if project:
        d = d - x @ (x.mT @ d)
    (cosine,), (sine,), _ = rotation_functions(d.mT @ d)
    moved = ((x @ cosine + d @ sine) * finite(x)).to(dtype)
    return moved.mT if rows else moved


@without_autocast
def grassmann_exp_gradient(grad: Tensor, X: Tensor, D: Tensor, project: bool, rows: bool) -> tuple[Tensor, Tensor]:
    """With Y = X C(G) + D S(G): C and S are symmetric, and the adjoint of their derivative is the derivative itself, so
    the gradient of G is H = C'(G)[sym X^T grad] + S'(G)[sym D^T grad], of D it is grad S + 2 D H, of X it is grad C.
    A projection D = E - X M, M = X^T E, hands the gradient F of D on as F - X X^T F to E, and -F M^T - E F^T X to X.
    """
    g, x, given = (columns(array, rows, factor_dtype(X)) for array in (grad, X, D))
    cross = x.mT @ given
    d = given - x @ cross if project else given
    of_cosine = rotation_functions(d.mT @ d, symmetric(x.mT @ g))[0]
    of_sine = rotation_functions(d.mT @ d, symmetric(d.mT @ g))[1]
    g = g * finite(x)
    d_x = g @ of_cosine[0]
    d_d = g @ of_sine[0] + 2 * d @ (of_cosine[1] + of_sine[1])
    if project:
        along = x.mT @ d_d
        d_x = d_x - d_d @ cross.mT - given @ along.mT
        d_d = d_d - x @ along
    if rows:
        d_x, d_d = d_x.mT, d_d.mT
    return d_x.to(X.dtype), d_d.to(D.dtype)


@without_autocast
def grassmann_transport(X: Tensor, D: Tensor, V: Tensor, rows: bool) -> Tensor:
    """V - (D versine(G) + X sine(G)) H with G = D^T D and H = D^T V."""
    x, d, v = (columns(array, rows, factor_dtype(X)) for array in (X, D, V))
    _, (sine,), (versine,) = rotation_functions(d.mT @ d)
    H = d.mT @ v
    moved = ((v - d @ (versine @ H) - x @ (sine @ H)) * finite(x, v)).to(result_dtype(X))
    return moved.mT if rows else moved


@without_autocast
def grassmann_transport_gradient(
    grad: Tensor, X: Tensor, D: Tensor, V: Tensor, rows: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """H gets J = -versine D^T grad - sine X^T grad, G gets K = -versine'[sym D^T grad H^T] - sine'[sym X^T grad H^T];
    hence X gets -grad (sine H)^T, V gets grad + D J, and D gets V J^T - grad (versine H)^T + 2 D K."""
    g, x, d, v = (columns(array, rows, factor_dtype(X)) for array in (grad, X, D, V))
    g = g * finite(x, v)
    gram, H = d.mT @ d, d.mT @ v
    along_d, along_x = d.mT @ g, x.mT @ g
    versine = rotation_functions(gram, symmetric(along_d @ H.mT))[2]
    sine = rotation_functions(gram, symmetric(along_x @ H.mT))[1]
    J = -versine[0] @ along_d - sine[0] @ along_x
    d_x = -g @ (sine[0] @ H).mT
    d_v = g + d @ J
    d_d = v @ J.mT - g @ (versine[0] @ H).mT - 2 * d @ (versine[1] + sine[1])
    gradients = (d_x.mT, d_d.mT, d_v.mT) if rows else (d_x, d_d, d_v)
    return gradients[0].to(X.dtype), gradients[1].to(D.dtype), gradients[2].to(V.dtype)


@without_autocast
def grassmann_step(
    P: Tensor,
    gradient: Tensor,
    buffer: Tensor | None,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    transport: bool,
    orthonormalize: bool,
    rows: bool,
) -> tuple[Tensor, Tensor | None]:
    """The new basis and momentum of `subspan.optim.GrassmannSGD`. P is orthonormal to rounding of its own type, hence
    the projection is corrected by (2 I - P^T P), the first step of Newton's iteration for the inverse of P^T P."""
    dtype = factor_dtype(P)
    p, g = columns(P, rows, dtype), columns(gradient, rows, dtype)
    g = (-g if maximize else g) + weight_decay * p
    b = g if buffer is None else momentum * columns(buffer, rows, dtype) + (1 - dampening) * g
    u = g + momentum * b if nesterov else b
    gram = p.mT @ p

    def tangent(vectors: Tensor) -> Tensor:
        along = p.mT @ vectors
        return vectors - p @ (2 * along - gram @ along)

    D = -lr * tangent(u)
    (cosine,), (sine,), (versine,) = rotation_functions(D.mT @ D)
    moved = p @ cosine + D @ sine
    transport = transport and buffer is not None
    if transport:
        b = tangent(b)
        H = D.mT @ b
        b = b - D @ (versine @ H) - p @ (sine @ H)
    if orthonormalize:
        factor = cholesky_ex(moved.mT @ moved)[0].mT
        moved = solve_triangular(factor, moved, upper=True, left=False)
        if transport:
            b = solve_triangular(factor, b, upper=True, left=False)
    moved, b = moved.to(P.dtype), b.to(P.dtype)
    if rows:
        moved, b = moved.mT, b.mT
    return moved, None if buffer is None else b


def angle_over_sine(H: Tensor) -> Tensor:
    """arccos(H) (I - H^2)^-1/2 of symmetric H with eigenvalues in [0, 1], by Clenshaw's rule."""
    identity = torch.eye(H.shape[-1], dtype=H.dtype, device=H.device)
    argument = 2 * H - identity
    coefficients = ANGLE_OVER_SINE
    after, result = torch.zeros_like(H), coefficients[-1] * identity.expand_as(H)
    for coefficient in reversed(coefficients[1:-1]):
        after, result = result, 2 * argument @ result - after + coefficient * identity
    return argument @ result - after + coefficients[0] * identity


@without_autocast
def grassmann_log(X: Tensor, Y: Tensor, rows: bool) -> Tensor:
    """(Y - X M) Q^T angle_over_sine(H) with M = X^T Y = H Q, H = (M M^T)^1/2: with M = U C V^T that is
    (Y V - X U C) diag(theta / sin theta) U^T."""
    x, y = (columns(array, rows, factor_dtype(X)) for array in (X, Y))
    M = x.mT @ y
    Q = polar(M)
    vector = (y - x @ M) @ (Q.mT @ angle_over_sine(symmetric(M @ Q.mT)))
    vector = (vector * finite(x, y)).to(result_dtype(X))
    return vector.mT if rows else vector
