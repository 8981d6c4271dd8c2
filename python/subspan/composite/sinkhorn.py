"""Sinkhorn's scaling in differentiable torch operations, for every device and for second derivatives.

As in the kernel, potentials f of the rows and g of the columns are kept in a unit of which neither scores nor
potentials overflow, and a column that no row may use keeps g = 0. Nothing is kept for each half-step but potentials:
the gradient is a formula of scores, P and upstream gradient, differentiable itself.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .factor import factor_dtype, result_dtype, without_autocast

LAST, UNROLLED, IMPLICIT = range(3)


class Unit:
    """`scores` converts to the potentials' unit, `nats` from it to natural logarithms."""

    def __init__(self, temperature: float, dtype: torch.dtype) -> None:
        per_score = 1 / temperature
        self.scores = min(per_score, 0.125)
        self.nats = min(per_score / self.scores, torch.finfo(dtype).max)


def log_sum_exp(x: Tensor, dim: int, unit: Unit) -> Tensor:
    """In the potentials' unit, over one dimension that is kept; NaN where nothing is larger than -inf."""
    peak = x.detach().amax(dim, keepdim=True)
    return peak + ((x - peak) * unit.nats).exp().sum(dim, keepdim=True).log() / unit.nats


def potentials(scores: Tensor, unit: Unit, iterations: int) -> tuple[list[Tensor | None], list[Tensor]]:
    """f and g of every pair of half-steps but the last, row step: f[t] (*batch, k, 1), and None where an even number
    starts with the columns; g[0] = 0, g[t + 1] (*batch, 1, n) is the column step after f[t]."""
    rows, columns = scores.shape[-2:]
    x = scores * unit.scores
    log_mass = math.log(rows / columns) / unit.nats
    f: list[Tensor | None] = []
    g = [torch.zeros_like(scores[..., :1, :])]
    allowed = (scores.detach() != -math.inf).any(-2, keepdim=True)
    x_allowed = torch.where(allowed, x, 0)  # its -inf would be subtracted from itself
    for step in range(iterations // 2):
        if step == 0 and iterations % 2 == 0:
            f.append(None)
            moved = x_allowed
        else:
            of_rows = -log_sum_exp(x + g[-1], -1, unit)
            f.append(of_rows)
            moved = x_allowed + of_rows
        g.append(torch.where(allowed, log_mass - log_sum_exp(moved, -2, unit), 0))
    return f, g


def matrix(scores: Tensor, temperature: float, iterations: int) -> Tensor:
    if 0 in scores.shape:
        return torch.zeros_like(scores)
    unit = Unit(temperature, scores.dtype)
    x = scores * unit.scores + potentials(scores, unit, iterations)[1][-1]
    P = ((x - x.detach().amax(-1, keepdim=True)) * unit.nats).softmax(-1)
    valid = P.detach().sum((-2, -1), keepdim=True).isfinite()  # one row without a result takes the item with it
    return torch.where(valid, P, math.nan)


class Sinkhorn(torch.autograd.Function):
    """The matrix, with the chosen one of its gradients; the result is saved, and differentiable as such."""

    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor, temperature: float, iterations: int, grad: int) -> Tensor:
        return matrix(scores.to(result_dtype(scores)), temperature, iterations)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.parameters = inputs[1:]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        scores, P = ctx.saved_tensors
        return sinkhorn_gradient(scores, P, upstream[0], *ctx.parameters).to(scores.dtype), None, None, None


@without_autocast
def sinkhorn(scores: Tensor, temperature: float, iterations: int, grad: int) -> Tensor:
    P: Tensor = Sinkhorn.apply(scores, temperature, iterations, grad)  # type: ignore[no-untyped-call]
    return P


# --- gradients --------------------------------------------------------------------------------------------------------


@without_autocast
def sinkhorn_gradient(
    scores: Tensor, P: Tensor, upstream: Tensor, temperature: float, iterations: int, grad: int
) -> Tensor:
    """The gradient in the type of P, as a differentiable function of the three tensors."""
    if 0 in P.shape:
        return torch.zeros_like(P)
    if grad == IMPLICIT:
        return implicit_gradient(P, upstream, temperature)
    last = P * (upstream - (P * upstream).sum(-1, keepdim=True))
    if grad == UNROLLED:
        last = last - earlier_steps(scores.to(P.dtype), last.sum(-2, keepdim=True), temperature, iterations)
    return last * min(1 / temperature, torch.finfo(P.dtype).max)


def earlier_steps(scores: Tensor, d_g: Tensor, temperature: float, iterations: int) -> Tensor:
    """What to subtract for all half-steps but the last, backwards, for the gradient d_g of the last g.

    With Q the matrix after a column step over its column sums: Q d_g, and -sum_j Q_ij d_g_j to the rows; with R the
    matrix after a row step: R d_f, and -sum_i R_ij d_f_i to the columns.
    """
    unit = Unit(temperature, scores.dtype)
    f, g = potentials(scores, unit, iterations)
    x = scores * unit.scores
    log_mass = math.log(scores.shape[-2] / scores.shape[-1]) / unit.nats
    total = torch.zeros_like(scores)
    for step in reversed(range(len(f))):
        of_rows = f[step]
        moved = x if of_rows is None else x + of_rows
        change = ((moved + (g[step + 1] - log_mass)) * unit.nats).exp() * d_g
        total = total + change
        if of_rows is None:
            break
        d_f = -change.sum(-1, keepdim=True)
        change = ((moved + g[step]) * unit.nats).exp() * d_f
        total = total + change
        d_g = -change.sum(-2, keepdim=True)
    return total


def implicit_gradient(P: Tensor, upstream: Tensor, temperature: float) -> Tensor:
    """P o (G - a - b) / temperature with [diag(r) P; P^T diag(c)] [a; b] = [rowsum(G o P); colsum(G o P)].

    The longer side is eliminated. What remains, scaled to D^-1/2 (...) D^-1/2 = I - K^T K with K = r^-1/2 P c^-1/2, is
    positive semidefinite with the null vector c^1/2 of the shift (a + t, b - t). Adding the projection on it makes the
    matrix definite and leaves the solution, since the right-hand side has no part in it. Where P falls apart into
    blocks there is such a shift for each, which makes no difference to a + b where P is not zero: a few roundings on
    the diagonal keep the factor from breaking down at them.
    """
    if P.shape[-2] < P.shape[-1]:
        return implicit_gradient(P.mT, upstream.mT, temperature).mT
    exact, G = P.to(factor_dtype(P)), upstream.to(factor_dtype(P))
    weighted = exact * G
    r, c = exact.sum(-1, keepdim=True), exact.sum(-2, keepdim=True).mT
    over_r, over_c = inverse_root(r), inverse_root(c)
    root_c = c * over_c
    K = over_r * exact * over_c.mT
    a, b = over_r * weighted.sum(-1, keepdim=True), over_c * weighted.sum(-2, keepdim=True).mT
    size = K.shape[-1]
    diagonal = torch.eye(size, dtype=K.dtype, device=K.device) * (1 + 8 * size * torch.finfo(K.dtype).eps)
    system = diagonal - K.mT @ K + root_c @ root_c.mT / c.sum(-2, keepdim=True)
    factor, _ = torch.linalg.cholesky_ex(system)
    of_columns = torch.cholesky_solve(b - K.mT @ a, factor)
    of_rows = (a - K @ of_columns) * over_r
    gradient = exact * (G - of_rows - (of_columns * over_c).mT) * (1 / temperature)
    return gradient.to(P.dtype)


def inverse_root(sums: Tensor) -> Tensor:
    """0 for a forbidden column, whose entries are all 0."""
    positive = sums.detach() != 0
    return torch.where(positive, torch.where(positive, sums, 1).rsqrt(), 0)


def sinkhorn_gradient_backward(grad: Tensor, tensors: tuple[Tensor, ...], parameters: tuple[Any, ...]) -> Any:
    """Of sinkhorn_gradient itself, by torch."""
    pull = torch.func.vjp(lambda *three: sinkhorn_gradient(*three, *parameters), *tensors)[1]
    return pull(grad)
