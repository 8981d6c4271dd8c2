"""Hypercomplex (PHM) products in torch operations: W = sum_i A_i (x) S_i without Kronecker products."""

from __future__ import annotations

from torch import Tensor

from .. import _route
from .factor import result_dtype, without_autocast


def times(A: Tensor, B: Tensor) -> Tensor:
    """A B^T by an op whose derivatives are calls of it: autocast would lower torch's product in the backward pass."""
    product: Tensor = _route.call_in_backward("affine_product", A, B, None, 1.0, 0.0, False)
    return product


def _weight(A: Tensor, S: Tensor) -> Tensor:
    """One product with the rule, whose result is W with its two middle dimensions exchanged."""
    terms, p, q = A.shape[-3:]
    rows, columns = S.shape[-2:]
    batch = A.shape[:-3]
    W = times(A.reshape(*batch, terms, p * q).mT, S.reshape(*batch, terms, rows * columns).mT)
    return W.reshape(*batch, p, q, rows, columns).transpose(-3, -2).reshape(*batch, p * rows, q * columns)


def _contract(A: Tensor, S: Tensor, dW: Tensor, needed: tuple[bool, bool]) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of A and S for a gradient of W."""
    terms, p, q = A.shape[-3:]
    rows, columns = S.shape[-2:]
    batch = A.shape[:-3]
    blocks = dW.reshape(*batch, p, rows, q, columns).transpose(-3, -2).reshape(*batch, p * q, rows * columns)
    dA = dS = None
    if needed[0]:
        dA = times(S.reshape(*batch, terms, rows * columns), blocks).reshape(A.shape)
    if needed[1]:
        dS = times(A.reshape(*batch, terms, p * q), blocks.mT).reshape(S.shape)
    return dA, dS


@without_autocast
def phm_weight(A: Tensor, S: Tensor) -> tuple[Tensor]:
    compute = result_dtype(A)
    return (_weight(A.to(compute), S.to(compute)),)


@without_autocast
def phm_weight_gradient(
    A: Tensor, S: Tensor, dW: Tensor, needed: tuple[bool, bool] = (True, True)
) -> tuple[Tensor | None, ...]:
    compute = result_dtype(A)
    return _contract(A.to(compute), S.to(compute), dW, needed)


@without_autocast
def phm_linear(x: Tensor, A: Tensor, S: Tensor, bias: Tensor | None, method: int = 0) -> tuple[Tensor]:
    """Direct: x'[p, i] = sum_q A[i, p, q] x_q, then one product with all S_i side by side. Else through W."""
    x = x.to(result_dtype(x))
    if method == 1:
        terms, p, q = A.shape[-3:]
        batch, rows, columns = A.shape[:-3], x.shape[-2], S.shape[-1]
        rule = A.transpose(-3, -2).reshape(*batch, p * terms, q)
        by_component = x.reshape(*batch, rows, q, columns).transpose(-3, -2).reshape(*batch, q, rows * columns)
        mixed = times(rule, by_component.mT).reshape(*batch, p, terms, rows, columns)
        flat = mixed.movedim(-2, -4).reshape(*batch, rows * p, terms * columns)
        side_by_side = S.transpose(-3, -2).reshape(*batch, S.shape[-2], terms * columns)
        result = times(flat, side_by_side).reshape(*batch, rows, p * S.shape[-2])
    else:
        result = times(x, _weight(A, S))
    return (result if bias is None else result + bias.unsqueeze(-2),)


@without_autocast
def phm_linear_gradient(
    x: Tensor, A: Tensor, S: Tensor, dy: Tensor, needed: tuple[bool, ...] = (True, True, True, True)
) -> tuple[Tensor | None, ...]:
    """Of x, A, S and the bias."""
    x = x.to(result_dtype(x))
    dx = times(dy, _weight(A, S).mT) if needed[0] else None
    dA = dS = None
    if needed[1] or needed[2]:
        dA, dS = _contract(A, S, times(dy.mT, x.mT), (needed[1], needed[2]))
    return dx, dA, dS, dy.sum(-2) if needed[3] else None
