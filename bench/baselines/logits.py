"""Logits of class subspaces as people compute them today. The weight holds k rows for every class."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

SCALE = 25.0


def published_head(x: Tensor, weight: Tensor, k: int) -> Tensor:
    """GCR's head: normalised features, a linear layer, the norm of every group of k outputs."""
    return norm_of_groups(x / x.norm(dim=-1, keepdim=True), weight, k)


def norm_of_groups(x: Tensor, weight: Tensor, k: int) -> Tensor:
    return SCALE * linear(x, weight).reshape(x.shape[0], -1, k).norm(dim=2)


def squares_of_groups(x: Tensor, weight: Tensor, k: int) -> Tensor:
    return SCALE * linear(x, weight).reshape(x.shape[0], -1, k).square().sum(2).sqrt()


def squares_of_rows(x: Tensor, weight: Tensor, k: int) -> Tensor:
    """The product the other way round, so that a sum over a group is a sum of rows."""
    return SCALE * (weight @ x.t()).reshape(-1, k, x.shape[0]).square().sum(1).sqrt().t()


def normalised_squares(x: Tensor, weight: Tensor, k: int) -> Tensor:
    return squares_of_rows(x * x.square().sum(-1, keepdim=True).rsqrt(), weight, k)
