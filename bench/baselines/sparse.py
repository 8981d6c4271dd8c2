"""Losses of sparse activations, their choice, and products with them, as people compute them today."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


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


def linear_then_topk(x: Tensor, W: Tensor, b: Tensor, k: int) -> Tensor:
    """The TopK encoders of OpenAI, SAELens and CSR, differentiated by autograd."""
    return functional.linear(x, W, b).topk(k).values.relu()


def linear_then_sort(x: Tensor, W: Tensor, b: Tensor, k: int) -> Tensor:
    return sorted_rows(functional.linear(x, W, b), k)


class _GatheredEncoder(torch.autograd.Function):
    """sparsify's FusedEncoder: backward gathers the rows of the encoder that were used."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor, k: int) -> Tensor:
        values, indices = functional.linear(x, W, b).relu().topk(k)
        ctx.save_for_backward(x, W, indices)
        return values

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        (g,) = upstream
        x, W, indices = ctx.saved_tensors
        d_x = torch.bmm(g[:, None], W[indices])[:, 0]
        d_W = torch.zeros_like(W).index_add_(0, indices.flatten(), (g[..., None] * x[:, None]).flatten(0, 1))
        d_b = torch.zeros_like(W[:, 0]).index_add_(0, indices.flatten(), g.flatten())
        return d_x, d_W, d_b, None


def gathered_encoder(x: Tensor, W: Tensor, b: Tensor, k: int) -> Tensor:
    result: Tensor = _GatheredEncoder.apply(x, W, b, k)
    return result


def flattened_topk(x: Tensor, k: int) -> Tensor:
    """The BatchTopK of SAELens and dictionary_learning; the sum of what it keeps."""
    return x.flatten().topk(k * x.shape[0], sorted=False).values.relu().sum()


class _JumpReLU(torch.autograd.Function):
    """SAELens' JumpReLU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(x, threshold)
        ctx.bandwidth = bandwidth
        return x * (x > threshold)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        (g,) = upstream
        x, threshold = ctx.saved_tensors
        place = (x - threshold) / ctx.bandwidth
        inside = ((place > -0.5) & (place < 0.5)).to(x.dtype)
        d_threshold = (-(threshold / ctx.bandwidth) * inside * g).sum(0)
        return (x > threshold) * g, d_threshold, None


def jumprelu(x: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    result: Tensor = _JumpReLU.apply(x, threshold, bandwidth)
    return result


def soft_threshold(x: Tensor, threshold: Tensor) -> Tensor:
    """sparse-embed's soft_thresh."""
    return (x - threshold).relu() - (-x - threshold).relu()


def soft_threshold_by_sign(x: Tensor, threshold: Tensor) -> Tensor:
    return x.sign() * (x.abs() - threshold).relu()


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
