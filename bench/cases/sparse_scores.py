"""Inner products of sparse rows in contrastive losses (CSR) and retrieval (SPLADE), and matching pursuit (MP-SAE).

Floors. Scores: the multiply-adds sum_j n_j^Q n_j^D, once more for either gradient; the entries read with their columns,
their gradients written; the scores written and their gradient read. Pursuit: the products with all atoms once, and one
multiply-add for each at every further step; the atoms and rows read, their gradients written.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import subspan
from baselines import sparse_scores as baseline
from harness.case import PEER, PLAIN, SUBSPAN, Bar, Case, Variant

from .coding_rate import FLOAT

INDEX = 4


def _places(generator: np.random.Generator, rows: int, columns: int, k: int, exponent: float) -> Tensor:
    """k different columns for each row, column j with a probability that falls as 1 / j^exponent."""
    # The k largest of independent keys log(p_j) + Gumbel noise are a sample without replacement.
    logits = -exponent * np.log(np.arange(1, columns + 1))
    parts = []
    for first in range(0, rows, 256):
        keys = logits + generator.gumbel(size=(min(256, rows - first), columns))
        parts.append(np.argpartition(-keys, k, axis=1)[:, :k])
    return torch.from_numpy(np.concatenate(parts))


def scores(
    queries: tuple[int, int], documents: tuple[int, int], columns: int, exponent: float, backward: bool, source: str
) -> Case:
    """(rows, entries of each) of both sides."""
    (n_q, k_q), (n_d, k_d) = queries, documents

    def indices(seed: int) -> tuple[Tensor, Tensor]:
        generator = np.random.default_rng(seed)
        return (
            _places(generator, n_q, columns, k_q, exponent),
            _places(generator, n_d, columns, k_d, exponent),
        )

    def inputs(seed: int, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        q_indices, d_indices = indices(seed)
        q, d = torch.rand(n_q, k_q, generator=generator), torch.rand(n_d, k_d, generator=generator)
        return tuple(array.to(device) for array in (q, d, q_indices, d_indices))

    def ours(q: Tensor, d: Tensor, q_indices: Tensor, d_indices: Tensor) -> Any:
        return subspan.sparse_scores(
            subspan.SparseRows(q_indices, q, columns), subspan.SparseRows(d_indices, d, columns)
        )

    counts = [np.bincount(side.numpy().reshape(-1), minlength=columns) for side in indices(0)]
    multiply_adds = int(counts[0] @ counts[1])
    entries, pairs = n_q * k_q + n_d * k_d, n_q * n_d
    passes = 3 if backward else 1
    zipf = f", Zipf {exponent:g}" if exponent else ""
    return Case(
        name=f"sparse_scores {n_q}×{n_d}, {columns} columns, {k_q} and {k_d} entries{zipf}",
        op="sparse_scores",
        make_inputs=inputs,
        variants=(
            Variant(PEER, "COO, sentence-transformers", partial(baseline.coo_scores, columns=columns)),
            Variant(PLAIN, "dense", partial(baseline.dense_scores, columns=columns)),
            Variant(PLAIN, "CSR times dense", partial(baseline.csr_scores, columns=columns)),
            Variant(SUBSPAN, "subspan", ours),
        ),
        reference=partial(baseline.dense_scores, columns=columns),
        flops=2 * multiply_adds * passes,
        bytes=(FLOAT + INDEX) * entries * passes + FLOAT * pairs * (2 if backward else 1),
        bars=(Bar(PLAIN, 5),),
        backward=backward,
        source=source,
    )


def pursuit(rows: int, dim: int, atoms: int, steps: int, backward: bool, source: str) -> Case:
    def inputs(seed: int, device: str) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, dim, generator=generator)
        W = torch.nn.functional.normalize(torch.randn(atoms, dim, generator=generator), dim=1)
        return x.to(device), W.to(device)

    products = 2 * rows * atoms * dim + 2 * rows * atoms * (steps - 1)
    return Case(
        name=f"matching_pursuit {rows}×{dim}, {atoms} atoms, {steps} steps",
        op="matching_pursuit",
        make_inputs=inputs,
        variants=(
            Variant(PEER, "MP-SAE", partial(baseline.pursuit, steps=steps)),
            Variant(PLAIN, "gathered atoms", partial(baseline.pursuit_by_rows, steps=steps)),
            Variant(SUBSPAN, "subspan", lambda x, W: subspan.matching_pursuit(x, W, steps).values),
        ),
        reference=partial(baseline.pursuit_by_rows, steps=steps),
        flops=products + (12 * rows * steps * dim if backward else 0),
        bytes=FLOAT * (rows + atoms) * dim * (2 if backward else 1),
        bars=(Bar(PLAIN, 1.5),),
        backward=backward,
        source=source,
    )


CASES = (
    scores((1024, 32), (1024, 32), 8192, 0.0, False, "CSR, contrastive loss in a batch"),
    scores((1024, 32), (1024, 32), 8192, 0.0, True, "CSR, contrastive loss in a batch"),
    scores((512, 44), (8192, 120), 30522, 0.9, False, "SPLADE, columns as frequent as words"),
    scores((128, 44), (128, 120), 30522, 0.9, True, "SPLADE, training batch"),
    pursuit(512, 768, 8192, 16, False, "MP-SAE, GPT-2 small"),
    pursuit(512, 768, 8192, 16, True, "MP-SAE, GPT-2 small"),
    pursuit(4096, 512, 2048, 16, True, "MP-SAE, more rows than atoms"),
)
