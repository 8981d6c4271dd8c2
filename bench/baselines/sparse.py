"""Losses of sparse activations, and products with sparse codes, as people compute them today."""

from __future__ import annotations

import torch
from torch import Tensor


def flops_of_magnitudes(x: Tensor) -> Tensor:
    """FLOPS of naver/splade: the square of the mean magnitude of every column, summed up."""
    return (x.abs().mean(dim=0) ** 2).sum()


def flops_by_norms(x: Tensor) -> Tensor:
    """The magnitudes summed by the L1 norm, which does not store them for the backward pass."""
    return x.norm(p=1, dim=0).square().sum() / x.shape[0] ** 2


def topk_then_relu(x: Tensor, k: int) -> Tensor:
    """The TopK encoders of CSR, SAELens and OpenAI: relu of the k largest."""
    return x.topk(k).values.relu()


def relu_then_topk(x: Tensor, k: int) -> Tensor:
    """EleutherAI's sparsify."""
    return x.relu().topk(k, sorted=False).values.sort(descending=True).values


def sorted_rows(x: Tensor, k: int) -> Tensor:
    return torch.sort(x, descending=True).values[..., :k].relu()


def decode_by_bag(values: Tensor, indices: Tensor, W: Tensor) -> Tensor:
    return torch.nn.functional.embedding_bag(indices, W, per_sample_weights=values, mode="sum")


def decode_by_gather(values: Tensor, indices: Tensor, W: Tensor) -> Tensor:
    """EleutherAI's sparsify without Triton."""
    return (values.unsqueeze(-1) * W[indices]).sum(-2)


def decode_by_coo(values: Tensor, indices: Tensor, W: Tensor) -> Tensor:
    """SAELens: a COO tensor of the codes times the decoder."""
    rows = torch.arange(len(indices)).repeat_interleave(indices.shape[-1])
    places = torch.stack([rows, indices.reshape(-1)])
    shape = (len(indices), len(W))
    codes = torch.sparse_coo_tensor(places, values.reshape(-1), shape, check_invariants=False)
    return torch.sparse.mm(codes, W)
