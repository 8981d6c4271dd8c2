"""Gram matrices of the features, one per class, whose gradients save the samples and nothing larger.

Torch would differentiate a product of the samples with themselves by two products, and would keep, for classes, every
class's copy of the samples. Written as one function each, a Gram matrix costs one product either way.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import _check
from .classes import CHUNK_ELEMENTS


def gram(rows: Tensor) -> Tensor:
    """Z^T Z."""
    result: Tensor = Gram.apply(rows)  # type: ignore[no-untyped-call]
    return result


def membership_grams(rows: Tensor, membership: Tensor) -> Tensor:
    """Z^T diag(pi_j) Z of every row pi_j of the membership (*batch, k, n): (*batch, k, d, d)."""
    result: Tensor = MembershipGrams.apply(rows, membership)  # type: ignore[no-untyped-call]
    return result


def class_grams(rows: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Z_j^T Z_j and the number of samples t_j of every class.

    A label out of range belongs to no class; where labels can be read, they have been checked.
    """
    if _check.readable(labels) and _check.readable(rows):
        labels = labels.long()
        counts = rows.new_zeros(*labels.shape[:-1], num_classes)
        counts.scatter_add_(-1, labels, rows.new_ones(labels.shape))
        grams: Tensor = ClassGrams.apply(rows, labels, num_classes)  # type: ignore[no-untyped-call]
        return grams, counts
    membership = indicator(labels, num_classes, rows)
    return membership_grams(rows, membership), membership.sum(-1)


def indicator(labels: Tensor, num_classes: int, rows: Tensor) -> Tensor:
    """The membership (*batch, k, n) that labels describe."""
    numbers = torch.arange(num_classes, device=labels.device, dtype=torch.int64)
    return (labels[..., None, :] == numbers[:, None]).to(rows.dtype)


class Gram(torch.autograd.Function):
    """Z^T Z; the gradient is Z (G + G^T)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor) -> Tensor:
        return rows.mT @ rows

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        (matrix,) = upstream
        (rows,) = ctx.saved_tensors
        gradient: Tensor = rows @ (matrix + matrix.mT)
        return gradient


class MembershipGrams(torch.autograd.Function):
    """Z^T diag(pi_j) Z, some classes at a time; see `membership_gradient`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, membership: Tensor) -> Tensor:
        features = rows.shape[-1]
        grams = []
        for first, last in chunks(rows, membership.shape[-2]):
            weighted = rows.mT[..., None, :, :] * membership[..., first:last, None, :]
            grams.append((weighted.flatten(-3, -2) @ rows).unflatten(-2, (last - first, features)))
        return torch.cat(grams, -3)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, membership = ctx.saved_tensors
        d_rows, d_membership = membership_gradient(upstream[0], rows, membership)
        return d_rows, d_membership if ctx.needs_input_grad[1] else None


def membership_gradient(upstream: Tensor, rows: Tensor, membership: Tensor) -> tuple[Tensor, Tensor]:
    """sum_j pi_ji z_i (G_j + G_j^T) for z_i, and z_i G_j z_i^T for pi_ji."""
    d_rows = torch.zeros_like(rows)
    d_membership = []
    for first, last in chunks(rows, membership.shape[-2]):
        matrices = upstream[..., first:last, :, :]
        inner = rows[..., None, :, :] @ (matrices + matrices.mT)
        d_rows = d_rows + (inner * membership[..., first:last, :, None]).sum(-3)
        d_membership.append(0.5 * (inner * rows[..., None, :, :]).sum(-1))
    return d_rows, torch.cat(d_membership, -2)


def chunks(rows: Tensor, num_classes: int) -> Iterator[tuple[int, int]]:
    """Ranges of classes for which a copy of the samples per class stays small."""
    step = max(1, CHUNK_ELEMENTS // max(math.prod(rows.shape), 1))
    for first in range(0, num_classes, step):
        yield first, min(first + step, num_classes)


class ClassGrams(torch.autograd.Function):
    """Z_j^T Z_j by sorting the samples by label: n d^2 for any number of classes. Reads the labels."""

    @staticmethod
    def forward(rows: Tensor, labels: Tensor, num_classes: int) -> Tensor:
        *batch, _, features = rows.shape
        grams = rows.new_zeros(*batch, num_classes, features, features)
        for item, order, segments in segments_of(labels, num_classes):
            ordered = rows[item][order]
            for j, first, last in segments:
                members = ordered[first:last]
                torch.mm(members.mT, members, out=grams[item][j])
        return grams

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        rows, labels, ctx.num_classes = inputs
        ctx.save_for_backward(rows, labels)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (matrices,) = upstream
        rows, labels = ctx.saved_tensors
        if torch.is_grad_enabled() or not _check.readable(matrices):  # to be differentiated, or a batch of upstreams
            return membership_gradient(matrices, rows, indicator(labels, ctx.num_classes, rows))[0], None, None
        gradient = torch.zeros_like(rows, memory_format=torch.contiguous_format)
        for item, order, segments in segments_of(labels, ctx.num_classes):
            ordered = rows[item][order]
            product = torch.zeros_like(ordered)
            for j, first, last in segments:
                matrix = matrices[item][j]
                torch.mm(ordered[first:last], matrix + matrix.mT, out=product[first:last])
            gradient[item].index_copy_(0, order, product)
        return gradient, None, None


def segments_of(
    labels: Tensor, num_classes: int
) -> Iterator[tuple[tuple[int, ...], Tensor, list[tuple[int, int, int]]]]:
    """Of every item its index, the order that sorts its samples by label, and (class, first, last) of each class."""
    for item in itertools.product(*map(range, labels.shape[:-1])):
        own = labels[item]
        ends = torch.bincount(own, minlength=num_classes).cumsum(0).tolist()
        starts = [0, *ends[:-1]]
        present = [(j, first, last) for j, (first, last) in enumerate(zip(starts, ends, strict=True)) if first < last]
        yield item, own.argsort(stable=True), present
