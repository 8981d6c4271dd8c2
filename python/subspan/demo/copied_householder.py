"""HouseholderGAN's projector in the form people copy, written afresh from its description."""

from __future__ import annotations

import torch
from torch import Tensor


class CopiedProjector(torch.nn.Module):
    r"""x W^T with W = U[:, :r] diag(s) V[:r] for square orthogonal U and V, products of as many dense reflectors.

    Kept because it is what runs today: reflectors are merged into blocks of four, and the blocks are multiplied one
    after the other on the whole identity, though r columns of each product are used. The original's merge writes into
    its operands, which torch refuses to differentiate; here it does not.

    Args:
        features: length n of a feature, a multiple of four.
        rank: r.
    """

    def __init__(self, features: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.U = torch.nn.Parameter(torch.randn(features, features))
        self.V = torch.nn.Parameter(torch.randn(features, features))
        self.scales = torch.nn.Parameter(torch.ones(rank))

    def factors(self) -> tuple[Tensor, Tensor]:
        """U[:, :r] and V[:r]."""
        return product_of_blocks(self.U)[:, : self.rank], product_of_blocks(self.V)[: self.rank]

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.factors()
        weight = left * self.scales @ right
        return torch.nn.functional.linear(x, weight)


def product_of_blocks(vectors: Tensor) -> Tensor:
    """H_1 ... H_n for the columns of a square matrix, from the last block of four to the first."""
    unit = (vectors / vectors.norm(dim=0)).T[:, :, None]
    W, Y = 2 * unit, unit
    for _ in range(2):  # (I - W1 Y1^T) (I - W2 Y2^T) = I - [W1, W2 - W1 Y1^T W2] [Y1, Y2]^T
        merged = W[1::2] - W[0::2] @ (Y[0::2].mT @ W[1::2])
        W, Y = torch.cat([W[0::2], merged], -1), torch.cat([Y[0::2], Y[1::2]], -1)
    product = torch.eye(len(vectors), dtype=vectors.dtype)
    for left, right in zip(reversed(W.unbind()), reversed(Y.unbind()), strict=True):
        product = product - left @ (right.T @ product)
    return product
