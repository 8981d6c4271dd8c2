"""Sparse embeddings at the sizes of SPLADE (a vocabulary of 30522) and CSR (8192 features).

Floors: the activations are read forward and once more backward, and their gradient is written. To choose the
largest entries of a row, or of all rows, they are read once. A linear encoder is its product forward, and products
with the chosen entries backward; its weights are read and their gradient written. A product with sparse codes gathers a
row of the weights for each of their entries; backward the weights are read and their gradient is written in order, and
the rows of the upstream gradient, which caches hold, are read once.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

import subspan
from baselines import sparse as baseline
from harness.case import PEER, PLAIN, SUBSPAN, Bar, Case, Variant

from .coding_rate import FLOAT


def flops_loss(rows: int, columns: int, source: str) -> Case:
    def inputs(seed: int, device: str) -> tuple[Tensor]:
        return (torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(device),)

    return Case(
        name=f"flops_loss {rows}×{columns}",
        op="flops_loss",
        make_inputs=inputs,
        variants=(
            Variant(PEER, "splade", baseline.flops_of_magnitudes),
            Variant(PLAIN, "mean of magnitudes", baseline.flops_of_magnitudes),
            Variant(PLAIN, "norms", baseline.flops_by_norms),
            Variant(SUBSPAN, "subspan", subspan.flops_loss),
        ),
        reference=baseline.flops_of_magnitudes,
        flops=3 * rows * columns,
        bytes=3 * FLOAT * rows * columns,
        bars=(Bar(PLAIN, 3), Bar("floor", 0.7)),
        source=source,
    )


def topk_rows(rows: int, columns: int, k: int, source: str) -> Case:
    def inputs(seed: int, device: str) -> tuple[Tensor]:
        return (torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(device),)

    return Case(
        name=f"topk_rows {rows}×{columns}, k = {k}",
        op="topk_rows",
        make_inputs=inputs,
        variants=(
            Variant(PEER, "sparsify", partial(baseline.relu_then_topk, k=k)),
            Variant(PLAIN, "torch.topk", partial(baseline.topk_then_relu, k=k)),
            Variant(SUBSPAN, "subspan", lambda x: subspan.topk_rows(x, k).values),
        ),
        reference=partial(baseline.sorted_rows, k=k),
        flops=rows * columns,
        bytes=FLOAT * rows * (columns + 2 * k),
        bars=(Bar(PLAIN, 4),),
        backward=False,
        source=source,
    )


def linear_topk(rows: int, columns: int, features: int, k: int, source: str, bars: tuple[Bar, ...] = ()) -> Case:
    def inputs(seed: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, columns, generator=generator)
        W = torch.randn(features, columns, generator=generator) / columns**0.5
        return x.to(device), W.to(device), (0.1 * torch.randn(features, generator=generator)).to(device)

    return Case(
        name=f"linear_topk {rows}×{columns}→{features}, k = {k}",
        op="linear_topk",
        make_inputs=inputs,
        variants=(
            Variant(PEER, "sparsify", partial(baseline.gathered_encoder, k=k)),
            Variant(PLAIN, "linear, topk, relu", partial(baseline.linear_then_topk, k=k)),
            Variant(SUBSPAN, "subspan", lambda x, W, b: subspan.linear_topk(x, W, b, k).values),
        ),
        reference=partial(baseline.linear_then_sort, k=k),
        flops=2 * rows * columns * (features + 2 * k),
        bytes=FLOAT * (2 * rows * columns + 2 * features * columns),
        bars=bars,
        source=source,
    )


def batch_topk(rows: int, columns: int, k: int, source: str) -> Case:
    def inputs(seed: int, device: str) -> tuple[Tensor]:
        return (torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(device),)

    return Case(
        name=f"batch_topk {rows}×{columns}, k = {k}",
        op="batch_topk",
        make_inputs=inputs,
        variants=(
            Variant(PEER, "SAELens", partial(baseline.flattened_topk, k=k)),
            Variant(SUBSPAN, "subspan", lambda x: subspan.batch_topk(x, k).values.sum()),
        ),
        reference=partial(baseline.flattened_topk, k=k),
        flops=rows * columns,
        bytes=FLOAT * rows * (columns + 2 * k),
        bars=(Bar(PEER, 4),),
        backward=False,
        source=source,
    )


def threshold(op: str, rows: int, columns: int, source: str) -> Case:
    def inputs(seed: int, device: str) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, columns, generator=generator)
        return x.to(device), (0.5 + torch.rand(columns, generator=generator)).to(device)

    if op == "jumprelu":
        variants = (
            Variant(PEER, "SAELens", partial(baseline.jumprelu, bandwidth=0.05)),
            Variant(SUBSPAN, "subspan", lambda x, t: subspan.jumprelu(x, t, 0.05)),
        )
    else:
        variants = (
            Variant(PEER, "sparse-embed", baseline.soft_threshold),
            Variant(PLAIN, "by sign", baseline.soft_threshold_by_sign),
            Variant(SUBSPAN, "subspan", subspan.soft_threshold),
        )
    return Case(
        name=f"{op} {rows}×{columns}",
        op=op,
        make_inputs=inputs,
        variants=variants,
        reference=variants[0].function,
        flops=4 * rows * columns,
        bytes=4 * FLOAT * rows * columns,
        bars=(Bar(PEER, 3),),
        source=source,
    )


def sparse_decode(
    n: int, k: int, columns: int, width: int, source: str, backward: bool, dtype: torch.dtype = torch.float32
) -> Case:
    def inputs(seed: int, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        indices = torch.rand(n, columns, generator=generator).topk(k).indices
        values, W = torch.rand(n, k, generator=generator), torch.randn(columns, width, generator=generator)
        return values.to(device, dtype), indices.to(device), W.to(device, dtype)

    def decode(values: Tensor, indices: Tensor, W: Tensor) -> Tensor:
        return subspan.sparse_decode(subspan.SparseRows(indices, values, columns), W)

    size = dtype.itemsize
    gathered, weights, rows = size * n * k * width, size * columns * width, FLOAT * n * width
    return Case(
        name=f"sparse_decode {n}×{k} of {columns}×{width}{'' if dtype == torch.float32 else ', bfloat16'}",
        op="sparse_decode",
        make_inputs=inputs,
        variants=(
            Variant(PEER, "SAELens", baseline.decode_by_coo)
            if dtype == torch.float32
            else Variant(PEER, "SAELens", skip="torch.sparse.mm has no bfloat16"),
            Variant(PLAIN, "embedding_bag", baseline.decode_by_bag),
            Variant(PLAIN, "gather", baseline.decode_by_gather),
            Variant(SUBSPAN, "subspan", decode),
        ),
        reference=baseline.decode_by_gather,
        flops=(6 if backward else 2) * n * k * width,
        bytes=gathered + 2 * weights + 2 * rows if backward else gathered + rows,
        bars=(Bar(PLAIN, 3 if backward else 1),),
        backward=backward,
        source=source,
    )


CASES = (
    linear_topk(1024, 768, 16384, 32, "OpenAI's sparse autoencoders of GPT-2", (Bar(PEER, 2.5),)),
    linear_topk(128, 4096, 16384, 32, "CSR, text"),
    linear_topk(16, 768, 32768, 32, "encoding of a few tokens"),
    batch_topk(1024, 16384, 32, "SAELens"),
    threshold("jumprelu", 2048, 16384, "SAELens"),
    threshold("soft_threshold", 2048, 4096, "sparse-embed"),
    sparse_decode(1024, 32, 8192, 768, "sparse autoencoders", backward=False),
    sparse_decode(1024, 32, 8192, 768, "sparse autoencoders", backward=True),
    sparse_decode(1024, 32, 16384, 768, "sparse autoencoders", backward=False),
    sparse_decode(1024, 32, 16384, 768, "sparse autoencoders", backward=True),
    sparse_decode(1024, 32, 8192, 768, "sparse autoencoders", backward=True, dtype=torch.bfloat16),
    topk_rows(512, 8192, 8, "CSR"),
    topk_rows(512, 8192, 64, "CSR"),
    topk_rows(64, 65536, 32, "sparse autoencoders"),
    flops_loss(256, 30522, "SPLADE"),
    flops_loss(512, 8192, "CSR"),
)
