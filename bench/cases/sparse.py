"""Sparse embeddings at the sizes of SPLADE (a vocabulary of 30522) and CSR (8192 features).

Floors: the activations are read forward and once more backward, and their gradient is written. To choose the
largest entries of a row, it is read once.
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


CASES = (
    topk_rows(512, 8192, 8, "CSR"),
    topk_rows(512, 8192, 64, "CSR"),
    topk_rows(64, 65536, 32, "sparse autoencoders"),
    flops_loss(256, 30522, "SPLADE"),
    flops_loss(512, 8192, "CSR"),
)
