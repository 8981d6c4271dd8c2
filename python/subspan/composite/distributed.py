"""Rates of samples that are spread over the processes of a group, in differentiable torch operations.

Gram matrices, masses and counts of the features' side are sums over samples, so the processes add theirs up, packed
into one buffer, and each computes the rate of all samples from the same sums. What is differentiated is the sum of what
the processes make of the rate. Two adjoint steps say this:

    total   a value of each process -> their sum, the same everywhere       its gradient is `share`
    share   a value that is the same everywhere -> each process's own copy  its gradient is `total`

Between the two everything is replicated, gradients too: all processes compute the same bits. So the backward pass
exchanges one number per rate rather than matrices, and derivatives of any order are right. Every process has to make
the same calls, backward passes included. torch.compile traces the all-reduces into its graph and vmap maps them; only
batches of upstream gradients (is_grads_batched) are not exchanged.

Gram matrices are formed, summed and factored in float64 (float32 on devices without it), see factor.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _route
from .factor import factor_dtype, one_where, result_dtype, without_autocast
from .grams import class_grams, gram, membership_grams

# --- between processes ------------------------------------------------------------------------------------------------


class Total(torch.autograd.Function):
    @staticmethod
    def forward(own: Tensor, group: Any) -> Tensor:
        total = own.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return share(upstream[0], ctx.group), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], own: Tensor, group: Any) -> tuple[Tensor, Any]:
        return total(own, group), in_dims[0]


class Share(torch.autograd.Function):
    @staticmethod
    def forward(common: Tensor, group: Any) -> Tensor:
        return common.view_as(common)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return total(upstream[0], ctx.group), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], common: Tensor, group: Any) -> tuple[Tensor, Any]:
        return share(common, group), in_dims[0]


def total(own: Tensor, group: Any) -> Tensor:
    """The sum over the processes; its gradient is the common upstream gradient."""
    result: Tensor = Total.apply(own, group)  # type: ignore[no-untyped-call]
    return result


def share(common: Tensor, group: Any) -> Tensor:
    """The same value; its gradient is the sum of the processes' upstream gradients."""
    result: Tensor = Share.apply(common, group)  # type: ignore[no-untyped-call]
    return result


def totals(group: Any, grams: list[Tensor], masses: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Sums over the processes of symmetric matrices (*batch, k, d, d) and of numbers (*batch, k), in one all-reduce.

    Counts come back with the gradient of the buffer: their callers detach them, or the matrices would be saved for it.
    """
    shapes = [matrices.shape[-3:] for matrices in grams]
    packed = [pack(matrices).flatten(-2) for matrices in grams]
    buffer = total(torch.cat([*packed, *masses], -1), group)
    parts = buffer.split([*(part.shape[-1] for part in packed), *(mass.shape[-1] for mass in masses)], -1)
    sums = [
        unpack(part.unflatten(-1, (shape[0], shape[-1] * (shape[-1] + 1) // 2)), shape[-1])
        for part, shape in zip(parts, shapes, strict=False)
    ]
    return sums, [part.clone() for part in parts[len(grams) :]]  # a view would keep the buffer


def pack(matrices: Tensor) -> Tensor:
    """The d (d + 1) / 2 different entries of each symmetric matrix [[A, C^T], [C, B]] with A as large as B or by one
    larger: the triangles of A and B, one below and one above the diagonal of a rectangle, then C."""
    size = matrices.shape[-1]
    upper, odd = size - size // 2, size % 2
    below = torch.nn.functional.pad(matrices[..., :upper, :upper].tril(), (0, 0, 1 - odd, 0))
    above = torch.nn.functional.pad(matrices[..., upper:, upper:].triu(), (odd, 0, 0, 1))
    return torch.cat([(below + above).flatten(-2), matrices[..., upper:, :upper].flatten(-2)], -1)


def unpack(packed: Tensor, size: int) -> Tensor:
    upper, lower, odd = size - size // 2, size // 2, size % 2
    triangles, rectangle = packed.split([upper * (lower + 1), lower * upper], -1)
    triangles, rectangle = triangles.unflatten(-1, (lower + 1, upper)), rectangle.unflatten(-1, (lower, upper))
    first, second = triangles[..., 1 - odd :, :].tril(), triangles[..., :lower, odd:].triu()
    first, second = first + first.tril(-1).mT, second + second.triu(1).mT
    return torch.cat([torch.cat([first, rectangle.mT], -1), torch.cat([rectangle, second], -1)], -2)


# --- rates ------------------------------------------------------------------------------------------------------------


@without_autocast
def coding_rate(
    Z: Tensor, weights: Tensor | None, alpha: float | None, eps2: float, scale: float, group: Any
) -> tuple[Tensor, Tensor]:
    """The rate of the samples of all processes, and the status of its factor; arguments as in coding_rate.py."""
    rows = Z.to(factor_dtype(Z))
    if weights is None:
        (grams,), (mass,) = totals(group, [gram(rows)[..., None, :, :]], [count(rows)])
        mass = mass.detach()
    else:
        w = nonnegative(weights.to(rows.dtype))
        (grams,), (mass,) = totals(group, [membership_grams(rows, w[..., None, :])], [w.sum(-1, keepdim=True)])
    strength = alpha_of(rows, mass, eps2) if alpha is None else mass.new_full((1,), alpha)
    log_det, info = log_dets(grams, strength)
    rate = share(scale * log_det.squeeze(-1), group)
    return rate.to(result_dtype(Z)), info.squeeze(-1)


@without_autocast
def rate_reduction(
    Z: Tensor, labels: Tensor, eps2: float, num_classes: int, gamma: float, return_parts: bool, group: Any
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """R - gamma * sum_j (t_j / n) R_j of the samples of all processes; with return_parts also R and the sum.

    labels: integers (*batch, n), or the membership (*batch, k, n) as floating point numbers.
    """
    rows = Z.to(factor_dtype(Z))
    if labels.is_floating_point():
        membership = nonnegative(labels.to(rows.dtype))
        (grams, whole), (mass, samples) = totals(
            group,
            [membership_grams(rows, membership), gram(rows)[..., None, :, :]],
            [membership.sum(-1), count(rows)],
        )
        samples = samples.detach()
    else:
        own, mass = class_grams(rows, labels, num_classes)
        (grams,), (mass, samples) = totals(group, [own], [mass, count(rows)])
        mass, samples = mass.detach(), samples.detach()
        del own
        # A label out of range is in no class.
        whole = grams.sum(-3, keepdim=True) * one_where(mass.sum(-1) == samples[..., 0], rows)[..., None, None, None]
    rate = 0.5 * log_dets(whole, alpha_of(rows, samples, eps2))[0].squeeze(-1)
    rates = 0.5 * log_dets(grams, alpha_of(rows, mass, eps2))[0]
    compressed = (mass * rates).sum(-1) / samples.squeeze(-1).clamp(min=1)
    shared = share(torch.stack([rate, compressed]), group)
    rate, compressed = shared.to(result_dtype(Z)).unbind()
    delta = (shared[0] - gamma * shared[1]).to(result_dtype(Z))
    return (delta, rate, compressed) if return_parts else delta


def nonnegative(weights: Tensor) -> Tensor:
    """NaN where a weight is negative."""
    return weights * one_where(weights.detach() >= 0, weights)


def count(rows: Tensor) -> Tensor:
    """The number of samples of each item, (*batch, 1)."""
    return rows.new_full((*rows.shape[:-2], 1), rows.shape[-2])


def alpha_of(rows: Tensor, mass: Tensor, eps2: float) -> Tensor:
    """d / (mass * eps2), and 0 where there is no mass: the rate of nothing is constant."""
    some = mass.detach() > 0
    return torch.where(some, rows.shape[-1] / eps2 / torch.where(some, mass, 1), 0)


def log_dets(grams: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """log det (I + alpha_j S_j), and the status of each."""
    log_det, info = _route.call("spd_logdet", 2, alpha[..., None, None] * grams, True)
    return log_det, info
