"""Similarity of representations in torch, with gradients that no coinciding singular values disturb.

Every function of representations here is one of subspaces or of singular values as a set. Their derivatives are finite
where those of singular vectors, of which autograd would compose them, are not:

- A function f of the column space of X alone, through an orthonormal basis U = X T: of the gradient to U only the part
  orthogonal to the space counts, df = <(I - U U^T) G, dX T>. No difference of singular values appears (`whiten`).
- The leading singular space moves by u_j^T d(X X^T) u_i / (s_i^2 - s_j^2) for kept i and discarded j only
  (`leading_basis`).
- Singular values: d s_i = u_i^T dM v_i, one of the subgradients where they coincide; a sum of equal functions of all
  of them does not depend on the choice (`singular_values`). Its derivative in turn has the divided differences of
  Daleckii and Krein.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops import spectra
from ..ops.spectra import apply_where


def differentiated(*tensors: Tensor) -> bool:
    """Whether a derivative may be asked for: then functions go through the autograd Functions below."""
    if torch.compiler.is_compiling():
        return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    from .._route_torch import values_available

    if not all(values_available(t) for t in tensors):  # transformed or fake tensors do not say
        return True
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


class OnceDifferentiable(torch.autograd.Function):
    """The identity, of which no derivative is taken."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, message: str) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.message = inputs[1]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        raise NotImplementedError(ctx.message)


def _once(gradient: Tensor, message: str) -> Tensor:
    if not torch.is_grad_enabled():
        return gradient
    result: Tensor = OnceDifferentiable.apply(gradient, message)  # type: ignore[no-untyped-call]
    return result


# --- column spaces ----------------------------------------------------------------------------------------------------


class Whitened(torch.autograd.Function):
    """U and T with U = X T orthonormal, zero in dead directions, and 1 for the live ones.

    For functions of span U alone the choice of basis may be anything along a path: that of dU = (I - U U^T) dX T makes
    dT = -T U^T dX T + (I - X^+ X) dX^T U T^T T. Both are in U, T and X again, so that every order follows. At constant
    rank: there is no derivative towards more.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(X: Tensor, floor: Tensor, eps: float, tolerance: float | None) -> tuple[Tensor, Tensor, Tensor]:
        U, T, kept = spectra.whiten(X, floor, eps, tolerance)
        return U, T, kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        U, T, kept = output
        ctx.mark_non_differentiable(kept)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0], U, T)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        d_U, d_T, _ = upstream
        X, U, T = ctx.saved_tensors
        gradient = None
        if d_U is not None:
            gradient = (d_U - U @ (U.mT @ d_U)) @ T.mT
        if d_T is not None:
            twisted = U @ (T.mT @ T) @ d_T.mT
            further = (twisted - (twisted @ T) @ (U.mT @ X)) - U @ (T.mT @ d_T) @ T.mT
            gradient = further if gradient is None else gradient + further
        return gradient, None, None, None


def whiten(X: Tensor, floor: Tensor, eps: float, tolerance: float | None) -> tuple[Tensor, Tensor]:
    """An orthonormal basis of the column space, zero in dead directions, and 1 for the live ones."""
    U, _, kept = Whitened.apply(X, floor, eps, tolerance)  # type: ignore[no-untyped-call]
    return U, kept


class LeadingBasis(torch.autograd.Function):
    """The kept columns of U in X = U S V^T, others zero, for functions of their span alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        X: Tensor, floor: Tensor, eps: float, rank: int | None, energy: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        left, values, right, kept = spectra.truncated_basis(X, floor, eps, rank, energy)
        return left * kept[..., None, :], kept, left, values, right

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.eps = inputs[2]
        ctx.save_for_backward(*output[1:], inputs[1])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, None, None, None, None]:
        d_U = upstream[0]
        if d_U is None:
            return (None,) * 5
        kept, U, values, V, floor = ctx.saved_tensors
        tolerance = spectra.default_tolerance(U, ctx.eps)
        live = torch.maximum(kept, spectra.alive(values, floor, tolerance))
        d_U = d_U * kept[..., None, :]
        U = U * live[..., None, :]
        along = U.mT @ d_U  # of discarded j (rows) and kept i (columns)
        squares = (values / spectra.where_all(values)) ** 2
        gaps = squares[..., None, :] - squares[..., :, None]
        moves = (kept[..., None, :] * (live - kept)[..., :, None] > 0) & (
            gaps > values.shape[-1] * torch.finfo(gaps.dtype).eps
        )
        turn = apply_where(moves, gaps, lambda x: 1 / x) * along / spectra.where_all(values)[..., None] ** 2
        scaled = values[..., :, None] * V.mT
        inverse = apply_where(kept > 0, values, lambda x: 1 / x)
        gradient = U @ ((turn + turn.mT) @ scaled) + (d_U - U @ along) * inverse[..., None, :] @ V.mT
        return _once(gradient, "svcca: second derivatives are not available"), None, None, None, None


def leading_basis(X: Tensor, floor: Tensor, eps: float, rank: int | None, energy: float) -> tuple[Tensor, Tensor]:
    U, kept, *_ = LeadingBasis.apply(X, floor, eps, rank, energy)  # type: ignore[no-untyped-call]
    return U, kept


# --- singular values --------------------------------------------------------------------------------------------------


def _rounding(values: Tensor) -> Tensor:
    """What counts as no difference between singular values; NaN where they are."""
    return values.shape[-1] * torch.finfo(values.dtype).eps * values[..., :1]


class SingularTriplets(torch.autograd.Function):
    """Singular values, left and right singular vectors; the right ones are constants of differentiation.

    The gradient to left singular vectors, which only projection-weighted CCA has, holds directions of coinciding
    singular values fixed to each other. At a vanishing singular value the derivative is taken as 0.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return spectra.singular_triplets(M)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[2])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0], *output)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Tensor | None:
        d_values, d_left, _ = upstream
        M, values, left, right = ctx.saved_tensors
        gradient = None
        if d_values is not None:
            positive = values.detach() > _rounding(values.detach())
            weights = torch.where(positive, d_values, 0.0 * values.detach())
            constants = (values.detach(), left.detach(), right)
            gradient = SpectralProduct.apply(weights, M, *constants)  # type: ignore[no-untyped-call]
        if d_left is not None:
            further = _left_vectors_gradient(d_left, values, left, right)
            gradient = further if gradient is None else gradient + further
        return gradient


def _left_vectors_gradient(d_left: Tensor, values: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Townsend 2016, Differentiating the Singular Value Decomposition, for a loss of left vectors."""
    largest = spectra.where_all(values)
    squares = (values / largest) ** 2
    gaps = squares[..., None, :] - squares[..., :, None]
    apart = gaps.abs() > values.shape[-1] * torch.finfo(values.dtype).eps
    along = left.mT @ d_left
    turn = torch.where(apart, torch.where(apart, gaps, 1.0).reciprocal(), 0.0) * (along - along.mT)
    inverse = apply_where(values > _rounding(values), values, lambda x: 1 / x)
    inner = turn * (values / largest**2)[..., None, :]
    gradient = (left @ inner + (d_left - left @ along) * inverse[..., None, :]) @ right.mT
    return _once(gradient, "pwcca: second derivatives are not available")


class SpectralProduct(torch.autograd.Function):
    """left diag(weights) right^T for the singular vectors of M: the gradient of a function of singular values whose
    derivatives are the weights.

    Its derivative has (w_i - w_j) / (s_i - s_j) on the symmetric and (w_i + w_j) / (s_i + s_j) on the skew part; the
    first is taken as 0 for coinciding singular values, which is exact for functions that are linear in them.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(weights: Tensor, M: Tensor, values: Tensor, left: Tensor, right: Tensor) -> Tensor:
        return left * weights[..., None, :] @ right.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weights, _, values, left, right = inputs
        ctx.save_for_backward(weights, values, left, right)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (direction,) = upstream
        weights, values, left, right = ctx.saved_tensors
        inner = left.mT @ direction @ right
        d_weights = inner.diagonal(dim1=-2, dim2=-1)
        rounding = _rounding(values)[..., None]
        s, w = values[..., :, None], weights[..., :, None]
        difference, total = s - s.mT, s + s.mT
        apart, positive = difference.abs() > rounding, total > rounding
        symmetric = torch.where(apart, (w - w.mT) / torch.where(apart, difference, 1.0), 0.0)
        skew = torch.where(positive, (w + w.mT) / torch.where(positive, total, 1.0), 0.0)
        middle = (symmetric * (inner + inner.mT) + skew * (inner - inner.mT)) / 2
        outer = apply_where(values > rounding[..., 0], values, lambda x: 1 / x) * weights
        rows = (direction @ right - left @ inner) * outer[..., None, :]
        columns = (left.mT @ direction - inner @ right.mT) * outer[..., :, None]
        d_M = (left @ middle + rows) @ right.mT + left @ columns
        message = "similarity of representations: third derivatives are not available"
        return _once(d_weights, message), _once(d_M, message), None, None, None


def singular_triplets(M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    values, left, right = SingularTriplets.apply(M)  # type: ignore[no-untyped-call]
    return values, left, right


def singular_values(M: Tensor) -> Tensor:
    return singular_triplets(M)[0] if differentiated(M) else spectra.singular_values(M)


# --- entropy ----------------------------------------------------------------------------------------------------------


class SpectralEntropy(torch.autograd.Function):
    """-sum x log x over the eigenvalues of a positive semidefinite matrix; they and the eigenvectors as constants."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gram, valid = spectra.finite_items(gram)
        values, vectors = spectra._eigh(gram)
        values = spectra.without_rounding(values) * valid[..., None]
        return -torch.special.xlogy(values, values).sum(-1), values, vectors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0], *output[1:])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Tensor | None:
        gram, values, vectors = ctx.saved_tensors
        if upstream[0] is None:
            return None
        slope: Tensor = EntropySlope.apply(gram, values, vectors)  # type: ignore[no-untyped-call]
        return upstream[0][..., None, None] * slope


class EntropySlope(torch.autograd.Function):
    """-(log G + I) on the range of G, by its eigenvalues and eigenvectors."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gram: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
        slope: Tensor = vectors * spectra.entropy_slope(values)[..., None, :] @ vectors.mT
        return slope

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        values, vectors = ctx.saved_tensors
        x, slope = values[..., :, None], spectra.entropy_slope(values)[..., :, None]
        least = torch.minimum(x, x.mT)
        # (log x - log y) / (x - y) = log1p(r) / (r y), r = (x - y) / y, which is 1 / y for r -> 0.
        ratio = apply_where(least > 0, least, lambda y: (x - x.mT).abs() / y)
        quotient = torch.where(ratio > 0, torch.log1p(ratio) / torch.where(ratio > 0, ratio, 1.0), 1.0)
        both = -apply_where(least > 0, least, lambda y: quotient / y)
        gap = (x - x.mT).abs()
        one = apply_where(gap > 0, gap, lambda y: (slope - slope.mT) * (x - x.mT).sign() / y)
        differences = torch.where(least > 0, both, one)
        inner = vectors.mT @ upstream[0] @ vectors
        d_gram = vectors @ (differences * inner) @ vectors.mT
        return _once(d_gram, "von_neumann_entropy: third derivatives are not available"), None, None


def entropy(gram: Tensor) -> Tensor:
    result: Tensor = SpectralEntropy.apply(gram)[0]  # type: ignore[no-untyped-call]
    return result
