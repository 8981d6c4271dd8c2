"""Singular value and eigen-decompositions in torch, with gradients that stay finite where values repeat."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .factor import factor_dtype, result_dtype, without_autocast


def finite_items(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """The matrices, with zeros for items that are not finite, and NaN or 0 for each item, to be added to its results:
    what torch does with such items depends on the platform."""
    poison = (matrices * 0).sum((-2, -1))
    return torch.where(poison.isfinite()[..., None, None], matrices, 0), poison


def _reciprocal_gaps(values: Tensor, eps: float) -> Tensor:
    """1 / (values_j - values_i), and 0 where the two are equal to rounding in units of eps: their own, and that of the
    matrix, which a product of a few factors has from its making."""
    gaps = values[..., None, :] - values[..., :, None]
    largest = values.abs().amax(-1, keepdim=True)[..., None] if values.shape[-1] else gaps
    distinct = gaps.abs() > 8 * values.shape[-1] * eps * largest
    return torch.where(distinct, torch.where(distinct, gaps, 1).reciprocal(), 0)


class _SVD(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        finite, poison = finite_items(M)
        left, values, right = torch.linalg.svd(finite, full_matrices=False)
        return values + poison[..., None], left + poison[..., None, None], right + poison[..., None, None]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Tensor | None:
        return svd_gradient(*ctx.saved_tensors, *upstream)


class _Eigh(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(A: Tensor) -> tuple[Tensor, Tensor]:
        finite, poison = finite_items(A.tril())
        values, vectors = torch.linalg.eigh(finite)
        return values + poison[..., None], vectors + poison[..., None, None]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Tensor | None:
        return eigh_gradient(*ctx.saved_tensors, *upstream)


def svd(M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values, U and V^T, in the type of M."""
    return _SVD.apply(M)  # type: ignore[no-untyped-call,no-any-return]


@without_autocast
def small_svd(M: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """values, U, V^T and a status."""
    values, left, right = (part.to(result_dtype(M)) for part in svd(M.to(factor_dtype(M))))
    return values, left, right, _status(M)


@without_autocast
def small_eigh(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """values, vectors and a status."""
    values, vectors = (part.to(result_dtype(A)) for part in _Eigh.apply(A.to(factor_dtype(A))))  # type: ignore[no-untyped-call]
    return values, vectors, _status(A)


def _status(of: Tensor) -> Tensor:
    return torch.zeros(of.shape[:-2], dtype=torch.int32, device=of.device)


@without_autocast
def svd_gradient(
    s: Tensor, U: Tensor, Vh: Tensor, of_values: Tensor | None, of_left: Tensor | None, of_right: Tensor | None
) -> Tensor | None:
    """Of M = U diag(s) V^T. With a = skew(U^T g_U), b = skew(V^T g_V), skew(X) = X - X^T:

    U (diag(g_s) + C) V^T + (I - U U^T) g_U S^{-1} V^T + U S^{-1} g_V^T (I - V V^T),
    C_ij = (a + b)_ij / 2 / (s_j - s_i) + (a - b)_ij / 2 / (s_j + s_i).

    Between equal singular values the first term does not exist and is dropped. It is 0 where a + b is, for functions of
    U V^T and of the values as a set.
    """
    if of_values is None and of_left is None and of_right is None:
        return None
    own = torch.finfo(U.dtype)
    s, U, Vh = (part.to(factor_dtype(U)) for part in (s, U, Vh))  # which autocast leaves alone, here and in derivatives
    of_values, of_left, of_right = (None if g is None else g.to(U.dtype) for g in (of_values, of_left, of_right))
    # Directions of a zero singular value are not determined: nothing flows through them.
    largest = s.detach().amax(-1, keepdim=True) if s.shape[-1] else s.detach()
    positive = s > own.tiny**0.25 * largest
    inverse = torch.where(positive, torch.where(positive, s, 1).reciprocal(), 0)
    V, outside, turns = Vh.mT, [], []
    for vectors, upstream in ((U, of_left), (V, None if of_right is None else of_right.mT)):
        if upstream is None:
            turns.append(torch.zeros_like(U.mT @ U))
            continue
        product = vectors.mT @ upstream
        turns.append((product - product.mT) / 2)
        if vectors.shape[-2] > vectors.shape[-1]:
            part = (upstream - vectors @ product) * inverse[..., None, :]
            outside.append(part @ Vh if vectors is U else U @ part.mT)
    sums = s[..., None, :] + s[..., :, None]
    over_sums = torch.where(sums > 0, torch.where(sums > 0, sums, 1).reciprocal(), 0)
    core = (turns[0] + turns[1]) * _reciprocal_gaps(s, own.eps) + (turns[0] - turns[1]) * over_sums
    core = core if of_values is None else core + torch.diag_embed(of_values)
    return sum(outside, U @ core @ Vh)


@without_autocast
def eigh_gradient(values: Tensor, Q: Tensor, of_values: Tensor | None, of_vectors: Tensor | None) -> Tensor | None:
    """Of A = Q diag(values) Q^T: Q (diag(g_values) + (Q^T g_Q) o E) Q^T, E_ij = 1 / (values_j - values_i), 0 where the
    two are equal; symmetric."""
    if of_values is None and of_vectors is None:
        return None
    eps = torch.finfo(Q.dtype).eps
    values, Q = values.to(factor_dtype(Q)), Q.to(factor_dtype(Q))
    of_values, of_vectors = (None if g is None else g.to(Q.dtype) for g in (of_values, of_vectors))
    core = torch.diag_embed(torch.zeros_like(values) if of_values is None else of_values)
    if of_vectors is not None:
        core = core + (Q.mT @ of_vectors) * _reciprocal_gaps(values, eps)
    gradient = Q @ core @ Q.mT
    return (gradient + gradient.mT) / 2
