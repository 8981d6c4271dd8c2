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
    """In closed form, in operations that can be differentiated again."""
    g, x, v = (columns(array, rows, factor_dtype(X)) for array in (grad, X, V))
    g = g * finite(x, v)
    d_x, d_v = (_cayley_gradient if method == CAYLEY else _exp_gradient)(g, x, v)
    if rows:
        d_x, d_v = d_x.mT, d_v.mT
    return d_x.to(X.dtype), d_v.to(V.dtype)


def _cayley_gradient(g: Tensor, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Y = O X with O = M^-1 (I + W/2), M = I - W/2, O + I = 2 M^-1. With L = M^-T g and T = M^-1 X = (X + Y) / 2 the
    gradient of W is L T^T, and d Y = O dX + ... gives 2 L - g to X: one more solution with the same 2k x 2k matrix."""
    U, Z = _stiefel.generator(x, v)
    k = x.shape[-1]
    core = _stiefel.inverse(identity(2 * k, U) - Z.mT @ U / 2)
    T = x + U @ (core @ (Z.mT @ x)) / 2
    L = g + Z @ (core.mT @ (U.mT @ g)) / 2
    P = U[..., :k]
    # W = P X^T - X P^T
    d_p = L @ (T.mT @ x) - T @ (L.mT @ x)
    return _through_P(x, v, 2 * L - g + T @ (L.mT @ P) - L @ (T.mT @ P), d_p)


def _exp_gradient(g: Tensor, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The adjoint of the derivative of the exponential at T = Z^T U is its derivative at T^T, a block of the
    exponential of [[T^T, gradient], [0, T^T]]."""
    U, Z, s = _balanced(x, v)
    k = x.shape[-1]
    T = Z.mT @ U
    product = U.mT @ g
    of_E = torch.cat([0 * product, product], -1)
    lower = torch.cat([0 * T, T.mT], -1)
    E = _stiefel.exponential(torch.cat([torch.cat([T.mT, of_E], -1), lower], -2), T.mT)
    e, of_T = E[..., k : 2 * k, : 2 * k], E[..., : 2 * k, 2 * k :]
    of_U, of_Z = g @ e + Z @ of_T, U @ of_T.mT
    return _through_P(x, v, of_U[..., k:] + of_Z[..., :k] * s, of_U[..., :k] / s - of_Z[..., k:])


def _through_P(x: Tensor, v: Tensor, d_x: Tensor, d_p: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients with P = V - X C / 2 resolved."""
    along = x.mT @ d_p
    return d_x - (d_p @ (v.mT @ x) + v @ along.mT) / 2, d_p - x @ along / 2
