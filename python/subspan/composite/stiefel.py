"""Maps of the Stiefel manifold in differentiable torch operations, in float64 for every input type (float32 on devices
without float64). Frames are (*batch, n, k), or (*batch, k, n) with `rows`.

The last part is a stand-in: orthonormal factors of X + V without a kernel of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _stiefel
from .factor import factor_dtype, identity, result_dtype, without_autocast
from .grassmann import columns, finite

CAYLEY, EXP = 0, 1


@without_autocast
def through_double(first: Tensor, function: Callable[..., Any], others: tuple[Tensor, ...], rows: bool) -> Tensor:
    """The function of the frames in float64; NaN for an item that is not finite."""
    arrays = [columns(array, rows, factor_dtype(first)) for array in (first, *others)]
    result: Tensor = (function(*arrays) * finite(*arrays)).to(result_dtype(first))
    return result.mT if rows else result


def retract(X: Tensor, V: Tensor, method: int, rows: bool) -> tuple[Tensor]:
    return (through_double(X, _cayley if method == CAYLEY else _exp, (V,), rows),)


def _cayley(X: Tensor, V: Tensor) -> Tensor:
    result: Tensor = _stiefel.cayley_rotation(*_stiefel.generator(X, V), X)
    return result


def _balanced(X: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, Z and s of W = U Z^T, with P / s in U and s X in Z: no block of Z^T U is much larger than W."""
    U, Z = _stiefel.generator(X, V)
    k = X.shape[-1]
    s: Tensor = _stiefel.length(U[..., :k])
    return torch.cat([U[..., :k] / s, U[..., k:]], -1), torch.cat([Z[..., :k] * s, Z[..., k:]], -1), s


def _exp(X: Tensor, V: Tensor) -> Tensor:
    """exp(W) U = U exp(Z^T U), and X is the second half of U."""
    U, Z, _ = _balanced(X, V)
    E: Tensor = _stiefel.exponential(Z.mT @ U)
    return U @ E[..., X.shape[-1] :]


@without_autocast
def retract_gradient(grad: Tensor, X: Tensor, V: Tensor, method: int, rows: bool) -> tuple[Tensor, Tensor]:
    """In closed form, in operations that can be differentiated again. Everything is a combination of the columns of
    X, V and the upstream gradient: their Gram matrix tells all products, and nothing long is formed but the results."""
    g, x, v = (columns(array, rows, factor_dtype(X)) for array in (grad, X, V))
    k = x.shape[-1]
    g = g * finite(x, v)
    frames = torch.cat([x, v], -1)
    own, cross = frames.mT @ frames, frames.mT @ g
    # The square of g itself is never asked for.
    gram = torch.cat([torch.cat([own, cross], -1), torch.cat([cross.mT, 0 * (g.mT @ x)], -1)], -2)
    one = identity(3 * k, own) + 0 * own[..., :1, :1].detach() if k else identity(0, own)
    d_x, d_v = (_cayley_gradient if method == CAYLEY else _exp_gradient)(
        gram, own, one[..., 2 * k :], one[..., :k], one[..., k : 2 * k]
    )
    both = torch.cat([d_x, d_v], -1)
    both = frames @ both[..., : 2 * k, :] + g @ both[..., 2 * k :, :]
    d_x, d_v = both[..., :k], both[..., k:]
    if rows:
        d_x, d_v = d_x.mT, d_v.mT
    return d_x.to(X.dtype), d_v.to(V.dtype)


def _cayley_gradient(gram: Tensor, own: Tensor, g: Tensor, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Y = O X with O = M^-1 (I + W/2), M = I - W/2, O + I = 2 M^-1. With L = M^-T g and T = M^-1 X = (X + Y) / 2 the
    gradient of W is L T^T, and d Y = O dX + ... gives 2 L - g to X: one more solution with the same 2k x 2k matrix."""

    def inner(a: Tensor, b: Tensor) -> Tensor:
        return a.mT @ gram @ b

    P = v - x @ inner(x, v) / 2
    U, Z = torch.cat([P, x], -1), torch.cat([x, -P], -1)
    core = _stiefel.inverse(identity(U.shape[-1], U) - inner(Z, U) / 2)
    T = x + U @ (core @ inner(Z, x)) / 2
    L = g + Z @ (core.mT @ inner(U, g)) / 2
    # W = P X^T - X P^T
    d_p = L @ inner(T, x) - T @ inner(L, x)
    d_x = 2 * L - g + T @ inner(L, P) - L @ inner(T, P)
    return _through_P(gram, x, v, d_x, d_p)


def _exp_gradient(gram: Tensor, own: Tensor, g: Tensor, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The adjoint of the derivative of the exponential at T = Z^T U is its derivative at T^T, a block of the
    exponential of [[T^T, gradient], [0, T^T]]. T is made of `own`, the part of the Gram matrix without the gradient."""
    k = x.shape[-1]
    along = x[..., : 2 * k, :].mT @ own @ v[..., : 2 * k, :]
    P = v - x @ along / 2
    p = P[..., : 2 * k, :]
    squares = (p * (own @ p)).detach().sum((-2, -1))[..., None, None]
    s = torch.where(squares > 0, squares, 1).sqrt()
    U, Z = torch.cat([P / s, x], -1), torch.cat([x * s, -P], -1)
    T = Z[..., : 2 * k, :].mT @ own @ U[..., : 2 * k, :]
    product = U.mT @ gram @ g
    upper = torch.cat([T.mT, 0 * product, product], -1)
    E = _stiefel.exponential(torch.cat([upper, torch.cat([0 * T, T.mT], -1)], -2), T.mT)
    e, of_T = E[..., k : 2 * k, : 2 * k], E[..., : 2 * k, 2 * k :]
    of_U, of_Z = g @ e + Z @ of_T, U @ of_T.mT
    d_x, d_p = of_U[..., k:] + of_Z[..., :k] * s, of_U[..., :k] / s - of_Z[..., k:]
    return _through_P(gram, x, v, d_x, d_p)


def _through_P(gram: Tensor, x: Tensor, v: Tensor, d_x: Tensor, d_p: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients with P = V - X X^T V / 2 resolved."""
    along = x.mT @ gram @ d_p
    return d_x - (d_p @ (v.mT @ gram @ x) + v @ along.mT) / 2, d_p - x @ along / 2
