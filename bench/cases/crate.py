"""CRATE's layers at CRATE-B's token shapes.

Floors: ISTA takes two products of 2 n d^2 forward and four backward. Attention takes two such maps with their two
gradients each, and per head five products of 2 n^2 d_h beside the symmetric scores.
"""

from __future__ import annotations

from functools import partial

import torch
from torch.func import functional_call
from torch.nn.functional import layer_norm

import subspan
from baselines import crate as baseline
from harness.case import PEER, PLAIN, SUBSPAN, Bar, Case, Variant

from .coding_rate import FLOAT


def _tokens(seed: int, device: str, batch: int, n: int, d: int) -> torch.Tensor:
    tokens = torch.randn(batch, n, d, generator=torch.Generator().manual_seed(seed))
    return layer_norm(tokens, (d,)).to(device)


def _matrix(seed: int, device: str, rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, columns, generator=generator) * columns**-0.5).to(device)


def ista(batch: int, n: int, d: int, bar: float) -> Case:
    rows = batch * n
    return Case(
        name=f"ISTA {batch}×({n}×{d})",
        op="nn.ISTA",
        make_inputs=lambda seed, device: (_tokens(seed, device, batch, n, d), _matrix(seed + 1, device, d, d)),
        variants=(
            Variant(PEER, "CRATE", baseline.published_ista),
            Variant(PLAIN, "three products", baseline.published_ista),
            Variant(PLAIN, "two products", baseline.ista_with_two_products),
            Variant(SUBSPAN, "subspan", partial(subspan.ista, step=baseline.STEP, threshold=baseline.LAMBDA)),
        ),
        reference=baseline.published_ista,
        flops=6 * 2 * rows * d**2,
        bytes=2 * FLOAT * (rows * d + d**2),
        bars=(Bar(PLAIN, bar),),
        source="CRATE-B, batch 4",
    )


def attention(batch: int, n: int, d: int, heads: int, bar: float) -> Case:
    rows = batch * n
    module = subspan.nn.SubspaceAttention(d, heads, d // heads)
    names = ("qkv.weight", "to_out.0.weight", "to_out.0.bias")

    def ours(tokens: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return functional_call(module, dict(zip(names, parameters, strict=True)), (tokens,))

    def inputs(seed: int, device: str):
        weights = (_matrix(seed + i, device, d, d) for i in (1, 2))
        return _tokens(seed, device, batch, n, d), *weights, _matrix(seed + 3, device, 1, d)[0]

    return Case(
        name=f"SubspaceAttention {batch}×({n}×{d})",
        op="nn.SubspaceAttention",
        make_inputs=inputs,
        variants=(
            Variant(PEER, "CRATE", partial(baseline.attention_by_softmax, heads=heads)),
            Variant(PLAIN, "softmax", partial(baseline.attention_by_softmax, heads=heads)),
            Variant(PLAIN, "fused attention", partial(baseline.attention_fused, heads=heads)),
            Variant(SUBSPAN, "subspan", ours),
        ),
        reference=partial(baseline.attention_by_softmax, heads=heads),
        flops=6 * 2 * rows * d**2 + 6 * 2 * rows * n * d,
        bytes=2 * FLOAT * (rows * d + 2 * d**2),
        bars=(Bar(PLAIN, bar),),
        source=f"CRATE-B, {heads} heads, batch 4",
    )


CASES = (ista(4, 197, 768, bar=1.3), attention(4, 197, 768, 12, bar=1.3))
