"""Products of Householder reflectors in the compact WY form, in differentiable torch operations.

V is (*batch, m, k), or (*batch, k, m) with `rows`; X is (*batch, m, p), or (*batch, p, m) with `right`. The Gram matrix
and its triangular factors are float64 for every input type (float32 on devices without float64).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from .. import _route
from .factor import factor_dtype, identity, result_dtype, without_autocast


def _product(A: Tensor, B: Tensor) -> Tensor:
    """A B by an op whose derivatives are calls of it: autocast would lower torch's product in the backward pass."""
    product: Tensor = _route.call_in_backward("affine_product", A, B.mT, None, 1.0, 0.0, False)
    return product


class _Chain:
    """I - V T V^T with T = D (I + U D)^-1 = (I + D U)^-1 D, D = diag(tau), U = triu(V^T V, 1); or its transpose."""

    def __init__(self, V: Tensor, tau: Tensor | None, transposed: bool) -> None:
        wide = V.to(factor_dtype(V))
        gram = wide.mT @ wide
        if tau is None:
            squares = gram.diagonal(dim1=-2, dim2=-1)
            none = squares == 0
            tau = torch.where(none, 0, 2 / torch.where(none, 1, squares))
        self.V, self.transposed = V, transposed
        self.tau = tau.to(wide.dtype)
        self.overlaps = gram.triu(1)

    def solve(self, products: Tensor, backward: bool) -> Tensor:
        """(I + U D)^-1 of V^T X, or (I + D U)^-T, whichever comes forward or backward. Infinity becomes NaN, which no
        product with zero can hide."""
        one = identity(self.overlaps.shape[-1], self.overlaps)
        products = products.to(one.dtype)
        if backward != self.transposed:
            lower = one + self.overlaps.mT * self.tau[..., None, :]
            solution = solve_triangular(lower, products, upper=False, unitriangular=True)
        else:
            upper = one + self.overlaps * self.tau[..., None, :]
            solution = solve_triangular(upper, products, upper=True, unitriangular=True)
        finite: Tensor = solution + 0 * solution
        return finite

    def scaled(self, solution: Tensor) -> Tensor:
        return (self.tau[..., :, None] * solution).to(self.V.dtype)


def _arrays(V: Tensor, X: Tensor, right: bool, rows: bool) -> tuple[Tensor, Tensor]:
    compute = result_dtype(V)
    V, X = V.to(compute), X.to(compute)
    return V.mT if rows else V, X.mT if right else X


@without_autocast
def householder_apply(
    V: Tensor, X: Tensor, tau: Tensor | None, transpose: bool, right: bool, rows: bool
) -> tuple[Tensor]:
    """Q X, or Q^T X with `transpose`; X Q, or X Q^T, with `right`."""
    v, x = _arrays(V, X, right, rows)
    chain = _Chain(v, tau, transpose != right)
    y = x - _product(v, chain.scaled(chain.solve(_product(v.mT, x), False)))
    return (y.mT if right else y,)


@without_autocast
def householder_apply_gradient(
    V: Tensor, grad: Tensor, X: Tensor, tau: Tensor | None, transpose: bool, right: bool, rows: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """d_X = G - V R, d_V = -G P^T - X R^T + V C and d_tau = -<a, w> with w and a the solutions forward and backward,
    P = D w, R = D a, and C symmetric with the upper triangle of R P^T: T^-1 = D^-1 + U. For the transposed chain G and
    X change places in the last. Where tau is 2 / ||v||^2 the diagonal of T^-1 depends on v too."""
    v, x = _arrays(V, X, right, rows)
    g = grad.mT if right else grad
    transposed = transpose != right
    chain = _Chain(v, tau, transposed)
    w = chain.solve(_product(v.mT, x), False)
    a = chain.solve(_product(v.mT, g), True) + 0 * w  # what does not depend on X is NaN where X is
    P, R = chain.scaled(w), chain.scaled(a)
    overlap = _product(P, R.mT) if transposed else _product(R, P.mT)
    strict = overlap.triu(1)
    C = strict + strict.mT
    if tau is None:
        C = C + torch.diag_embed(overlap.diagonal(dim1=-2, dim2=-1))
    d_V = _product(v, C) - _product(g, P.mT) - _product(x, R.mT)
    d_X = g - _product(v, R)
    d_tau = -(a * w).sum(-1)
    return d_V.mT if rows else d_V, d_X.mT if right else d_X, d_tau


def _columns(V: Tensor, columns: int, rows: bool) -> Tensor:
    length = V.shape[-1 if rows else -2]
    E = torch.eye(length, columns, dtype=result_dtype(V), device=V.device)
    return E.mT if rows else E


def _given(V: Tensor, rows: bool, lapack: bool) -> Tensor:
    """With `lapack`, 1 where vector j has its entry j and 0 before."""
    if not lapack:
        return V
    one = torch.eye(V.shape[-2], V.shape[-1], dtype=V.dtype, device=V.device)
    return (V.triu(1) if rows else V.tril(-1)) + one


def householder_product(V: Tensor, tau: Tensor | None, columns: int, rows: bool, lapack: bool) -> tuple[Tensor]:
    """The first columns of Q, or, with `rows`, their transpose, which is E^T Q^T."""
    V = _given(V, rows, lapack)
    E = _columns(V, columns, rows)
    return householder_apply(V, E.expand((*V.shape[:-2], *E.shape)), tau, rows, rows, rows)


def householder_product_gradient(
    V: Tensor, grad: Tensor, tau: Tensor | None, columns: int, rows: bool, lapack: bool
) -> tuple[Tensor, Tensor]:
    E, V = _columns(V, columns, rows), _given(V, rows, lapack)
    d_V, _, d_tau = householder_apply_gradient(V, grad, E.expand((*V.shape[:-2], *E.shape)), tau, rows, rows, rows)
    if lapack:
        d_V = d_V.triu(1) if rows else d_V.tril(-1)
    return d_V, d_tau
