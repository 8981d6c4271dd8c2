"""A sparse text encoder as people write it in PyTorch, from the published description of its loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

import subspan


def copied_decode(rows: subspan.SparseRows, weight: Tensor, bias: Tensor) -> Tensor:
    """The product of sparse rows and a matrix, in torch's quickest way."""
    product: Tensor = embedding_bag(rows.indices, weight, rows.offsets[:-1], per_sample_weights=rows.values, mode="sum")
    return product + bias


class CopiedFlops(torch.nn.Module):
    """SPLADE's regulariser: the sum of squares of the column means, with a weight that rises quadratically."""

    def __init__(self, weight: float, steps: int) -> None:
        super().__init__()
        self.weight, self.steps, self.t = weight, steps, 0

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * min(1.0, self.t / self.steps) ** 2 * (x.abs().mean(dim=0) ** 2).sum()

    def step(self) -> None:
        self.t += 1
