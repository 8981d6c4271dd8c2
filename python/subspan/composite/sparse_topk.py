"""The largest entries of every row in torch operations."""

from __future__ import annotations

from torch import Tensor

from .factor import result_dtype


def topk_rows(x: Tensor, k: int, by: int, relu: bool) -> tuple[Tensor, Tensor]:
    """A stable sort, for torch.topk takes any of equal entries. NaN comes first."""
    ranked = x.detach().abs() if by == 1 else x.detach()
    indices = ranked.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return chosen(x, indices, relu), indices.int()


def chosen(x: Tensor, indices: Tensor, relu: bool) -> Tensor:
    values = x.gather(-1, indices.long()).to(result_dtype(x))
    return values.relu() + 0 if relu else values  # torch keeps the sign of -0
