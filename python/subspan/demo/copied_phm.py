"""The PHM layer in the form people copy, written afresh from its description."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear


class CopiedPHMLinear(torch.nn.Module):
    r"""x W^T + b with W = sum_i A_i (x) S_i, formed in every forward pass.

    Kept because it is what runs today, in phc-gnn, Compacter, adapters and HyperNets: one broadcast product makes n
    matrices of the size of W, which are then added.

    Args:
        in_features, out_features: multiples of n.
        n: how many products are added; the rule has n matrices of n x n.
    """

    def __init__(self, in_features: int, out_features: int, n: int) -> None:
        super().__init__()
        self.A = torch.nn.Parameter(torch.randn(n, n, n) / n)
        self.S = torch.nn.Parameter(torch.randn(n, out_features // n, in_features // n) * (n / in_features) ** 0.5)
        self.bias = torch.nn.Parameter(torch.zeros(out_features))

    def weight(self) -> Tensor:
        blocks = self.A[:, :, None, :, None] * self.S[:, None, :, None, :]
        n, p, rows, q, columns = blocks.shape
        return blocks.reshape(n, p * rows, q * columns).sum(0)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight(), self.bias)
