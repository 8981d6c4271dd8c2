"""CRATE's layers as people compute them today. Tokens are rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, relu, scaled_dot_product_attention

STEP, LAMBDA = 0.1, 0.1


def published_ista(tokens: Tensor, dictionary: Tensor) -> Tensor:
    """Three dense products."""
    once = linear(tokens, dictionary)
    twice = linear(once, dictionary.t())
    analysis = linear(tokens, dictionary.t())
    return relu(tokens + (STEP * (analysis - twice) - STEP * LAMBDA))


def ista_with_two_products(tokens: Tensor, dictionary: Tensor) -> Tensor:
    return relu(tokens + STEP * ((tokens - linear(tokens, dictionary)) @ dictionary) - STEP * LAMBDA)


def _heads(tokens: Tensor, projection: Tensor, heads: int) -> Tensor:
    return linear(tokens, projection).unflatten(-1, (heads, -1)).transpose(1, 2)


def attention_by_softmax(tokens: Tensor, projection: Tensor, out: Tensor, bias: Tensor, heads: int) -> Tensor:
    """The published layer: one projection for query, key and value, scores and weights stored."""
    w = _heads(tokens, projection, heads)
    weights = torch.softmax(w @ w.transpose(-1, -2) * w.shape[-1] ** -0.5, dim=-1)
    return linear((weights @ w).transpose(1, 2).flatten(2), out, bias)


def attention_fused(tokens: Tensor, projection: Tensor, out: Tensor, bias: Tensor, heads: int) -> Tensor:
    w = _heads(tokens, projection, heads)
    return linear(scaled_dot_product_attention(w, w, w).transpose(1, 2).flatten(2), out, bias)
