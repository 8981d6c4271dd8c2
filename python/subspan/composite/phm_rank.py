"""Hypercomplex products whose rule or whose weights are of low rank, in torch operations."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _route
from .factor import result_dtype, without_autocast
from .phm import times as _times

_STRIP_ELEMENTS = 2**19  # of products at once, where those of all rows are not needed

# --- rules of few rank-one terms: A_i = sum_r U[i, r] P[:, r] V[:, r]^T ---


def _mixed(factor: Tensor, x: Tensor) -> Tensor:
    """sum_q factor[q, r] x_q as (*batch, r, rows, length) for x (*batch, rows, q length)."""
    parts, rank = factor.shape[-2:]
    batch, rows = x.shape[:-2], x.shape[-2]
    length = x.shape[-1] // parts
    by_component = x.reshape(*batch, rows, parts, length).transpose(-3, -2).reshape(*batch, parts, rows * length)
    return _times(factor.mT, by_component.mT).reshape(*batch, rank, rows, length)


def _gathered(factor: Tensor, products: Tensor) -> Tensor:
    """sum_r factor[p, r] products[r] as (*batch, rows, p length): the transpose of the above."""
    parts, rank = factor.shape[-2:]
    batch, (rows, length) = products.shape[:-3], products.shape[-2:]
    gathered = _times(factor, products.reshape(*batch, rank, rows * length).mT).reshape(*batch, parts, rows, length)
    return gathered.transpose(-3, -2).reshape(*batch, rows, parts * length)


def _weights(U: Tensor | None, S: Tensor) -> Tensor:
    """T_r = sum_i U[i, r] S_i."""
    if U is None:
        return S
    batch, (rows, columns) = S.shape[:-3], S.shape[-2:]
    return _times(U.mT, S.reshape(*batch, S.shape[-3], rows * columns).mT).reshape(*batch, U.shape[-1], rows, columns)


@without_autocast
def phm_rank(
    x: Tensor, P: Tensor, V: Tensor, U: Tensor | None, S: Tensor, bias: Tensor | None, transposed: bool
) -> tuple[Tensor]:
    T = _weights(U, S)
    products = _times(_mixed(V, x.to(result_dtype(x))), T.mT if transposed else T)
    result = _gathered(P, products)
    return (result if bias is None else result + bias.unsqueeze(-2),)


@without_autocast
def phm_rank_gradient(
    x: Tensor, P: Tensor, V: Tensor, U: Tensor | None, S: Tensor, dy: Tensor, transposed: bool, needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Of x, P, V, U, S and the bias. That of x is the same map of dy with P and V exchanged."""
    x = x.to(result_dtype(x))
    dx = dP = dV = dU = dS = None
    if needed[0]:
        dx = _route.call_in_backward("phm_rank", dy, V, P, U, S, None, not transposed)
    if not any(needed[1:5]):
        return dx, None, None, None, None, dy.sum(-2) if needed[5] else None
    mixed, upstream = _mixed(V, x), _mixed(P, dy)  # of every product: what it takes, and its own gradient
    if needed[1] or needed[2]:
        T = _weights(U, S)
        rows, batch = x.shape[-2], x.shape[:-2]
        if needed[1]:
            products = _times(mixed, T.mT if transposed else T)
            dP = _inner(dy.reshape(*batch, rows, P.shape[-2], products.shape[-1]), products)
        if needed[2]:
            back = _times(upstream, T if transposed else T.mT)
            dV = _inner(x.reshape(*batch, rows, V.shape[-2], back.shape[-1]), back)
    if needed[3] or needed[4]:
        left, right = (mixed, upstream) if transposed else (upstream, mixed)
        if U is None:
            dS = _times(left.mT, right.mT)
        elif needed[3]:
            batch, flat = S.shape[:-3], S.shape[-2] * S.shape[-1]
            dT = _times(left.mT, right.mT).reshape(*batch, U.shape[-1], flat)
            dS = _times(U, dT.mT).reshape(S.shape) if needed[4] else None
            dU = _times(S.reshape(*batch, S.shape[-3], flat), dT)
        else:
            dS = _mixed_strips(U, left, right)
    return dx, dP, dV, dU, dS, dy.sum(-2) if needed[5] else None


def _mixed_strips(U: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """sum_r U[i, r] left_r^T right_r, in strips of its rows: the products of all r together are larger than the sum."""
    batch, (rank, rows), columns = left.shape[:-3], left.shape[-3::2], right.shape[-1]

    def mixed(part: Tensor) -> Tensor:
        products = _times(part.mT, right.mT).reshape(*batch, rank, part.shape[-1] * columns)
        return _times(U, products.mT).reshape(*batch, U.shape[-2], part.shape[-1], columns)

    strip = max(_STRIP_ELEMENTS // max(rank * columns, 1), 1)
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or strip >= rows:  # no loop in a graph
        return mixed(left)
    result = left.new_empty(*batch, U.shape[-2], rows, columns)
    for first in range(0, rows, strip):
        result[..., first : first + strip, :] = mixed(left[..., first : first + strip])
    return result


def _inner(components: Tensor, products: Tensor) -> Tensor:
    """sum over rows and entries of components (*batch, rows, p, length) and products (*batch, r, rows, length)."""
    batch, (rows, parts, length) = components.shape[:-3], components.shape[-3:]
    left = components.transpose(-3, -2).reshape(*batch, parts, rows * length)
    return _times(left, products.reshape(*batch, products.shape[-3], rows * length))


# --- low-rank weights: S_i = U_i V_i ---


def _side_by_side(U: Tensor) -> Tensor:
    """(*batch, terms, l, r) as (*batch, l, terms r)."""
    return U.transpose(-3, -2).reshape(*U.shape[:-3], U.shape[-2], U.shape[-3] * U.shape[-1])


def _by_term(products: Tensor, rows: int, parts: int, terms: int) -> Tensor:
    """(*batch, rows parts, terms r) as (*batch, terms, parts, rows r)."""
    batch, rank = products.shape[:-2], products.shape[-1] // terms
    split = products.reshape(*batch, rows, parts, terms, rank).movedim(-2, -4).transpose(-3, -2)
    return split.reshape(*batch, terms, parts, rows * rank)


def _by_row(mixed: Tensor, rows: int, rank: int) -> Tensor:
    """The inverse of the above."""
    batch, (terms, parts) = mixed.shape[:-3], mixed.shape[-3:-1]
    split = mixed.reshape(*batch, terms, parts, rows, rank).transpose(-3, -2).movedim(-4, -2)
    return split.reshape(*batch, rows * parts, terms * rank)


def _lowrank_steps(x: Tensor, A: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x as (*batch, rows q, k), its products with the V_i by term, and their mixtures by row."""
    terms, _, q = A.shape[-3:]
    batch, rows = x.shape[:-2], x.shape[-2]
    components = x.reshape(*batch, rows * q, V.shape[-1])
    products = _times(components, V.reshape(*batch, terms * V.shape[-2], V.shape[-1]))
    by_term = _by_term(products, rows, q, terms)
    return components, by_term, _by_row(_times(A, by_term.mT), rows, V.shape[-2])


@without_autocast
def phm_linear_lowrank(x: Tensor, A: Tensor, U: Tensor, V: Tensor, bias: Tensor | None) -> tuple[Tensor]:
    mixed = _lowrank_steps(x.to(result_dtype(x)), A, V)[2]
    result = _times(mixed, _side_by_side(U)).reshape(*x.shape[:-1], A.shape[-2] * U.shape[-2])
    return (result if bias is None else result + bias.unsqueeze(-2),)


@without_autocast
def phm_linear_lowrank_gradient(
    x: Tensor, A: Tensor, U: Tensor, V: Tensor, dy: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Of x, A, U, V and the bias."""
    (terms, p, _), rows, batch = A.shape[-3:], x.shape[-2], x.shape[:-2]
    x = x.to(result_dtype(x))
    components, by_term, mixed = _lowrank_steps(x, A, V)
    upstream = dy.reshape(*batch, rows * p, U.shape[-2])
    d_mixed = _by_term(_times(upstream, _side_by_side(U).mT), rows, p, terms)
    dx = dA = dU = dV = None
    if needed[1]:
        dA = _times(d_mixed, by_term)
    if needed[2]:
        dU = _times(upstream.mT, mixed.mT).reshape(*batch, U.shape[-2], terms, U.shape[-1]).transpose(-3, -2)
    if needed[0] or needed[3]:
        d_products = _by_row(_times(A.mT, d_mixed.mT), rows, V.shape[-2])
        flat = V.reshape(*batch, terms * V.shape[-2], V.shape[-1])
        dx = _times(d_products, flat.mT).reshape(x.shape) if needed[0] else None
        dV = _times(d_products.mT, components.mT).reshape(V.shape) if needed[3] else None
    return dx, dA, dU, dV, dy.sum(-2) if needed[4] else None
