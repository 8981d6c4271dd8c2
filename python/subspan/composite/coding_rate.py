"""Coding rates in differentiable torch operations, for every device and for second derivatives.

The algorithm is that of the kernels: Gram matrix of the smaller side, Cholesky factor of I + alpha * Gram, logarithm of
its pivots, gradients by triangular solves. What is special here:

- Gram matrix and factor are float64 for every input type, see factor.py.
- All shapes are static and nothing is read back to the host: the functions can be captured, compiled and mapped.
- An item that is not finite, or whose labels or weights are not valid, gets NaN through a factor that is 1 for every
  other item, so that its gradient is NaN too and the other items are untouched.

Z is (*batch, n, d) with samples as rows; labels and weights are (*batch, n).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.linalg import cholesky_ex, solve_triangular

from .classes import Classes
from .factor import (
    factor_dtype,
    factor_identity_plus,
    identity,
    log_det_identity_plus,
    one_where,
    result_dtype,
    solve,
    solve_right,
    without_autocast,
)

# --- symmetric positive definite matrices -----------------------------------------------------------------------------


@without_autocast
def spd_logdet(A: Tensor, implicit_identity: bool = False) -> tuple[Tensor, Tensor]:
    """log det A from the lower triangle, and the 1-based index of the first pivot that is not positive (0: none).

    With implicit_identity log det (I + A), and info is -1 for an item that is not finite.
    """
    if implicit_identity:
        log_det = log_det_identity_plus(A.to(factor_dtype(A)))
        info = torch.where(log_det.detach().isfinite(), 0, -1)
        return log_det.to(result_dtype(A)), info.to(torch.int32)
    factor, info = cholesky_ex(A.to(factor_dtype(A)))
    logs = 2 * factor.diagonal(dim1=-2, dim2=-1).log()
    if A.shape[-1]:  # an infinite or NaN pivot may pass as positive
        strange = logs.detach().isfinite().logical_not()
        first = strange.to(torch.int32).argmax(-1).to(torch.int32) + 1
        info = torch.where((info == 0) & strange.any(-1), first, info)
    return (logs.sum(-1) * one_where(info == 0, logs)).to(result_dtype(A)), info.to(torch.int32)


@without_autocast
def spd_logdet_gradient(A: Tensor, implicit_identity: bool = False) -> Tensor:
    """The inverse of A (of I + A), which is the gradient of its log determinant."""
    matrix = A.to(factor_dtype(A))
    if implicit_identity:
        matrix = matrix + identity(A.shape[-1], matrix)
    factor, info = cholesky_ex(matrix)
    half = solve_triangular(factor, identity(A.shape[-1], factor), upper=False)
    valid = one_where((info == 0) & factor.detach().diagonal(dim1=-2, dim2=-1).sum(-1).isfinite(), factor)
    inverse: Tensor = half.mT @ half * valid[..., None, None]
    return inverse.to(result_dtype(A))


# --- one rate ---------------------------------------------------------------------------------------------------------


@without_autocast
def coding_rate(
    Z: Tensor, weights: Tensor | None, alpha: float | None, eps2: float | None, scale: float, side: str
) -> tuple[Tensor, Tensor]:
    """scale * logdet(I + alpha Z^T diag(w) Z); info is -1 for an item that is not finite, else 0.

    alpha None: d / (sum_i w_i * eps2).
    """
    rows = Z.to(factor_dtype(Z))
    if weights is None:
        gram = unweighted_gram(rows, on_samples(Z, side)) * plain_alpha(Z, alpha, eps2)
        log_det = log_det_identity_plus(gram)
    else:
        strength, _ = weight_strength(Z, weights, alpha, eps2)
        if on_samples(Z, side):
            log_det = weighted_log_det(rows @ rows.mT, strength)
        else:
            log_det = log_det_identity_plus((rows * strength[..., None]).mT @ rows)
    rate = (scale * log_det).to(result_dtype(Z))
    info = torch.where(log_det.detach().isfinite(), 0, -1).to(torch.int32)
    return rate, info


@without_autocast
def coding_rate_gradient(
    Z: Tensor, weights: Tensor | None, alpha: float | None, eps2: float | None, scale: float, side: str
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the rate: 2 scale alpha diag(w) Z M with M = (I + alpha Z^T diag(w) Z)^{-1}, and the weights'.

    With q_i = z_i M z_i^T the weights get scale * (alpha q_i - sum_l alpha w_l q_l / sum_l w_l), the second term, which
    is the derivative through alpha, only where alpha follows the weights. No formula divides by a weight.
    """
    rows = Z.to(factor_dtype(Z))
    if weights is None:
        alpha = plain_alpha(Z, alpha, eps2)
        return (2 * scale * alpha * rows_times_inverse(rows, alpha, on_samples(Z, side))).to(result_dtype(Z)), None
    strength, (per_weight, follows) = weight_strength(Z, weights, alpha, eps2)
    if on_samples(Z, side):
        gram = rows @ rows.mT
        resolvent = weighted_resolvent(gram, strength)
        d_rows = resolvent @ rows
        energy = gram.diagonal(dim1=-2, dim2=-1) - ((gram @ resolvent) * gram).sum(-1)
    else:
        factor, valid = factor_identity_plus((rows * strength[..., None]).mT @ rows)
        inner = solve_right(rows, factor) * valid[..., None, None]
        d_rows = inner * strength[..., None]
        energy = (inner * rows).sum(-1)
    d_weights = energy * per_weight
    if follows is not None:
        d_weights = d_weights - follows * (strength * energy).sum(-1, keepdim=True)
    return (2 * scale * d_rows).to(result_dtype(Z)), (scale * d_weights).to(result_dtype(weights))


def on_samples(Z: Tensor, side: str) -> bool:
    """Whether the n x n Gram matrix is factored rather than the d x d one."""
    return side == "samples" or (side == "auto" and Z.shape[-2] < Z.shape[-1])


def unweighted_gram(rows: Tensor, samples_side: bool) -> Tensor:
    return rows @ rows.mT if samples_side else rows.mT @ rows


def plain_alpha(Z: Tensor, alpha: float | None, eps2: float | None) -> float:
    """d / (n eps2) unless given. Without samples the rate is 0 for every alpha."""
    samples, features = Z.shape[-2:]
    if alpha is not None:
        return alpha
    assert eps2 is not None
    return features / (samples * eps2) if samples else 0.0


def rows_times_inverse(rows: Tensor, alpha: float, samples_side: bool) -> Tensor:
    """Z M = Z (I + alpha Z^T Z)^{-1} = (I + alpha Z Z^T)^{-1} Z."""
    factor, valid = factor_identity_plus(unweighted_gram(rows, samples_side) * alpha)
    return (solve(factor, rows) if samples_side else solve_right(rows, factor)) * valid[..., None, None]


def weight_strength(
    Z: Tensor, weights: Tensor, alpha: float | None, eps2: float | None
) -> tuple[Tensor, tuple[Tensor | float, Tensor | None]]:
    """u_i = alpha w_i, which makes I + Z^T diag(u) Z; then alpha, and 1 / sum_l w_l where alpha follows the weights.

    A negative weight becomes NaN. Where all weights are zero alpha is taken as 0: the rate of nothing is constant.
    """
    w = weights.to(factor_dtype(Z))
    w = w * one_where(w.detach() >= 0, w)
    if alpha is not None:
        return alpha * w, (alpha, None)
    assert eps2 is not None
    mass = w.sum(-1, keepdim=True)
    some = mass > 0
    follows = torch.where(some, torch.where(some, mass, 1).reciprocal(), 0)
    per_weight = Z.shape[-1] / eps2 * follows
    return per_weight * w, (per_weight, follows)


class WeightedResolvent(torch.autograd.Function):
    """P = U (I + G U)^{-1} for a Gram matrix G and U = diag(u), u >= 0.

    Computed as R (I + R G R)^{-1} R with R = U^{1/2}. Torch would differentiate the root, which fails at u = 0, where P
    itself is smooth: with H = (I + G U)^{-1} = I - G P, dP = H^T dU H - P dG P. That is written in P again, so it can
    be differentiated any number of times.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(gram: Tensor, strength: Tensor) -> Tensor:
        root = strength.sqrt()
        factor, valid = factor_identity_plus(root[..., None] * gram * root[..., None, :])
        half = solve_triangular(factor, torch.diag_embed(root), upper=False)
        resolvent: Tensor = half.mT @ half * valid[..., None, None]
        return resolvent

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor]:
        (grad,) = upstream
        gram, resolvent = ctx.saved_tensors
        solver = identity(gram.shape[-1], gram) - gram @ resolvent
        return -(resolvent @ grad @ resolvent), ((solver @ grad) * solver).sum(-1)


class WeightedLogDet(torch.autograd.Function):
    """logdet(I + G U) on the samples' side; the gradient is P for G and diag(G - G P G) for u, P as above."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gram: Tensor, strength: Tensor) -> Tensor:
        root = strength.sqrt()
        return log_det_identity_plus(root[..., None] * gram * root[..., None, :])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor]:
        (grad,) = upstream
        gram, strength = ctx.saved_tensors
        resolvent = weighted_resolvent(gram, strength)
        energy = gram.diagonal(dim1=-2, dim2=-1) - ((gram @ resolvent) * gram).sum(-1)
        return grad[..., None, None] * resolvent, grad[..., None] * energy


def weighted_log_det(gram: Tensor, strength: Tensor) -> Tensor:
    result: Tensor = WeightedLogDet.apply(gram, strength)  # type: ignore[no-untyped-call]
    return result


def weighted_resolvent(gram: Tensor, strength: Tensor) -> Tensor:
    result: Tensor = WeightedResolvent.apply(gram, strength)  # type: ignore[no-untyped-call]
    return result


# --- hard labels ------------------------------------------------------------------------------------------------------


@without_autocast
def class_coding_rates(Z: Tensor, labels: Tensor, eps2: float, num_classes: int) -> tuple[Tensor, Tensor]:
    """1/2 logdet(I + d / (t_j eps2) Z_j^T Z_j) and t_j of every class."""
    rows = Z.to(factor_dtype(Z))
    classes = Classes(rows, labels, eps2, num_classes)
    rates = classes.rates()
    return rates.to(result_dtype(Z)), (classes.mass * classes.valid[..., None]).to(result_dtype(Z))


@without_autocast
def class_coding_rates_gradient(Z: Tensor, labels: Tensor, eps2: float, num_classes: int) -> Tensor:
    """Row i is the gradient of its class's rate: alpha_j z_i M_j with j = labels[i]."""
    return Classes(Z.to(factor_dtype(Z)), labels, eps2, num_classes).gradient().to(result_dtype(Z))


@without_autocast
def rate_reduction(Z: Tensor, labels: Tensor, eps2: float, num_classes: int, gamma: float) -> tuple[Tensor]:
    """R - gamma * sum_j (t_j / n) R_j."""
    rows = Z.to(factor_dtype(Z))
    gram = unweighted_gram(rows, on_samples(Z, "auto")) * plain_alpha(Z, None, eps2)
    classes = Classes(rows, labels, eps2, num_classes)
    compression = (classes.mass * classes.rates()).sum(-1) / max(Z.shape[-2], 1)
    return ((0.5 * log_det_identity_plus(gram) - gamma * compression).to(result_dtype(Z)),)


@without_autocast
def rate_reduction_gradient(Z: Tensor, labels: Tensor, eps2: float, num_classes: int, gamma: float) -> Tensor:
    """alpha Z M - gamma (t_j / n) alpha_j z_i M_j, j = labels[i]."""
    rows = Z.to(factor_dtype(Z))
    alpha = plain_alpha(Z, None, eps2)
    expansion = alpha * rows_times_inverse(rows, alpha, on_samples(Z, "auto"))
    classes = Classes(rows, labels, eps2, num_classes)
    share = classes.own(classes.mass) / max(Z.shape[-2], 1)
    return (expansion - gamma * share[..., None] * classes.gradient()).to(result_dtype(Z))


# --- ReduNet's operators ----------------------------------------------------------------------------------------------


@without_autocast
def rate_operator(Z: Tensor, alpha: float) -> Tensor:
    """alpha (I + alpha Z^T Z)^{-1}."""
    return exact_operator(Z, alpha).to(result_dtype(Z))


@without_autocast
def rate_operator_gradient(grad: Tensor, Z: Tensor, operator: Tensor, alpha: float) -> Tensor:
    """-Z O (grad + grad^T) O for the operator O = alpha (I + alpha Z^T Z)^{-1}.

    Z O is small where Z is large. An O rounded to float32 would cost a relative error of trace(alpha Z^T Z) * 2^-24
    there, so O is computed again where it was rounded.
    """
    dtype = factor_dtype(Z)
    exact = operator if operator.dtype == dtype else exact_operator(Z, alpha)
    grad = grad.to(dtype)
    return (-(Z.to(dtype) @ exact) @ (grad + grad.mT) @ exact).to(result_dtype(Z))


def exact_operator(Z: Tensor, alpha: float) -> Tensor:
    rows = Z.to(factor_dtype(Z))
    features = identity(Z.shape[-1], rows)
    samples_side = on_samples(Z, "auto")
    factor, valid = factor_identity_plus(unweighted_gram(rows, samples_side) * alpha)
    half = solve_triangular(factor, rows if samples_side else features, upper=False)
    product = half.mT @ half
    # With fewer samples than features by the Woodbury identity, M = I - alpha Z^T (I + alpha Z Z^T)^{-1} Z.
    inverse = features - alpha * product if samples_side else product
    operator: Tensor = alpha * inverse * valid[..., None, None]
    return operator
