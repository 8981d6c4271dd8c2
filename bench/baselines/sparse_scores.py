"""Inner products of sparse rows and greedy sparse codes as people compute them today."""

from __future__ import annotations

import torch
from torch import Tensor


def dense_rows(values: Tensor, indices: Tensor, columns: int) -> Tensor:
    return values.new_zeros(len(values), columns).scatter_add(1, indices, values)


def dense_scores(q: Tensor, d: Tensor, q_indices: Tensor, d_indices: Tensor, columns: int) -> Tensor:
    """CSR's contrastive loss: codes kept dense."""
    return dense_rows(q, q_indices, columns) @ dense_rows(d, d_indices, columns).mT


def coo_scores(q: Tensor, d: Tensor, q_indices: Tensor, d_indices: Tensor, columns: int) -> Tensor:
    """dot_score of sentence-transformers: a product of COO tensors, then dense."""
    return torch.mm(_coo(q, q_indices, columns), _coo(d, d_indices, columns).transpose(0, 1)).to_dense()


def csr_scores(q: Tensor, d: Tensor, q_indices: Tensor, d_indices: Tensor, columns: int) -> Tensor:
    """A CSR tensor times the dense documents."""
    order = q_indices.argsort(1)
    offsets = torch.arange(0, q.numel() + 1, q.shape[1])
    rows = torch.sparse_csr_tensor(
        offsets, q_indices.gather(1, order).reshape(-1), q.gather(1, order).reshape(-1), (len(q), columns)
    )
    return torch.sparse.mm(rows, dense_rows(d, d_indices, columns).mT)


def _coo(values: Tensor, indices: Tensor, columns: int) -> Tensor:
    rows = torch.arange(len(values)).repeat_interleave(values.shape[1])
    return torch.sparse_coo_tensor(torch.stack([rows, indices.reshape(-1)]), values.reshape(-1), (len(values), columns))


def pursuit(x: Tensor, W: Tensor, steps: int) -> Tensor:
    """MatchingPursuitSAE of mpsae/MP-SAE for a given number of steps: every step a product with all atoms, the code of
    the step as a dense matrix, and its product with the atoms."""
    residual, values = x, []
    for _ in range(steps):
        value, index = torch.max(torch.relu(residual @ W.mT), dim=1, keepdim=True)
        code = torch.zeros(len(x), len(W), dtype=x.dtype).scatter(1, index, value)
        residual = residual - code @ W
        values.append(value)
    return torch.cat(values, 1)


def pursuit_by_rows(x: Tensor, W: Tensor, steps: int) -> Tensor:
    """The same with the chosen atoms gathered."""
    residual, values = x, []
    for _ in range(steps):
        value, index = (residual @ W.mT).max(1)
        value = value.relu()
        residual = residual - value[:, None] * W[index]
        values.append(value)
    return torch.stack(values, 1)
