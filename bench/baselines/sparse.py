"""Losses of sparse activations as people compute them today."""

from __future__ import annotations

from torch import Tensor


def flops_of_magnitudes(x: Tensor) -> Tensor:
    """FLOPS of naver/splade: the square of the mean magnitude of every column, summed up."""
    return (x.abs().mean(dim=0) ** 2).sum()


def flops_by_norms(x: Tensor) -> Tensor:
    """The magnitudes summed by the L1 norm, which does not store them for the backward pass."""
    return x.norm(p=1, dim=0).square().sum() / x.shape[0] ** 2
