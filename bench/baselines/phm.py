"""Hypercomplex layers as people compute them today. A (terms, p, q), S (terms, l, k), y = x W^T with the sum
W = sum_i A_i (x) S_i of Kronecker products."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear


def kronecker_products(A: Tensor, S: Tensor) -> Tensor:
    """All of them by one broadcast product, as matrices."""
    blocks = A[:, :, None, :, None] * S[:, None, :, None, :]
    return blocks.reshape(A.shape[0], A.shape[1] * S.shape[1], A.shape[2] * S.shape[2])


def kronecker_sum(x: Tensor, A: Tensor, S: Tensor) -> Tensor:
    """phc-gnn, Compacter, adapters and HyperNets: `terms` matrices of the size of W, their sum, a product."""
    return x @ kronecker_products(A, S).sum(0).t()


def weight(A: Tensor, S: Tensor) -> Tensor:
    """One product with the rule, and its two middle dimensions exchanged: the best plain PyTorch."""
    (terms, p, q), (_, rows, columns) = A.shape, S.shape
    W = A.reshape(terms, p * q).t() @ S.reshape(terms, rows * columns)
    return W.reshape(p, q, rows, columns).transpose(1, 2).reshape(p * rows, q * columns)


def through_weight(x: Tensor, A: Tensor, S: Tensor) -> Tensor:
    return linear(x, weight(A, S))


def einsum_weight(x: Tensor, A: Tensor, S: Tensor) -> Tensor:
    """The line that the maintainers of phc-gnn answer complaints with."""
    W = torch.einsum("ipq,ilk->plqk", A, S)
    return linear(x, W.reshape(A.shape[1] * S.shape[1], A.shape[2] * S.shape[2]))


def mixed_after(x: Tensor, A: Tensor, S: Tensor) -> Tensor:
    """Every component of x meets every S_i in one product; the rule mixes the results."""
    (terms, p, q), (_, rows, columns) = A.shape, S.shape
    products = x.reshape(-1, columns) @ S.reshape(terms * rows, columns).t()
    mixed = A.permute(1, 2, 0).reshape(p, q * terms) @ products.reshape(len(x), q * terms, rows)
    return mixed.reshape(len(x), p * rows)


def lowrank_through_weight(x: Tensor, A: Tensor, U: Tensor, V: Tensor) -> Tensor:
    return through_weight(x, A, U @ V)


def lowrank_kronecker_sum(x: Tensor, A: Tensor, U: Tensor, V: Tensor) -> Tensor:
    """Compacter with factorized_phm_W."""
    return kronecker_sum(x, A, U @ V)


def lowrank_steps(x: Tensor, A: Tensor, U: Tensor, V: Tensor) -> Tensor:
    """V, the rule, U: the order in which the factors are small."""
    (_, _, q), rows = A.shape, len(x)
    products = torch.einsum("bqk,irk->bqir", x.reshape(rows, q, V.shape[-1]), V)
    return torch.einsum("ipq,bqir,ilr->bpl", A, products, U).reshape(rows, A.shape[1] * U.shape[1])


class Packed:
    """oneDNN's linear layer, with the weight in its own layout as inductor freezes it: packed at the first call."""

    def __init__(self) -> None:
        self.weights: dict[int, Tensor] = {}

    def __call__(self, x: Tensor, W: Tensor) -> Tensor:
        packed = self.weights.get(W.data_ptr())
        if packed is None:
            packed = torch.ops.mkldnn._reorder_linear_weight(W, len(x))
            self.weights[W.data_ptr()] = packed
        return torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
