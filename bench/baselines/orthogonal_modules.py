"""Orthogonal parametrisations and layers as they are computed today: torch's own, HouseholderGAN's, PEFT's OFT."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.nn.utils.parametrizations import orthogonal

from .householder import gan_weight


def torch_map(kind: str, shape: tuple[int, int], base: Tensor) -> torch.nn.Module:
    """torch.nn.utils.parametrizations.orthogonal's map from its parameter to the weight, with a given base."""
    layer = torch.nn.Linear(shape[1], shape[0], bias=False, dtype=base.dtype)
    parametrization = orthogonal(layer, "weight", kind).parametrizations["weight"][0]  # type: ignore[index, union-attr]
    parametrization.base = base
    return parametrization


def gan_layer(U: Tensor, V: Tensor, scales: Tensor, x: Tensor) -> Tensor:
    """HouseholderGAN's EqualLinear: both chains whole, then the weight, then the product."""
    return linear(x, gan_weight(U, V, scales))


def hra_layer(vectors: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    """PEFT's HRA: the chain as a matrix, one reflection after the other, then its product with the frozen weight."""
    unit = vectors / vectors.norm(dim=0)
    chain = torch.eye(len(vectors), dtype=vectors.dtype, device=vectors.device)
    for j in range(vectors.shape[1]):
        u = unit[:, j : j + 1]
        chain = chain - 2 * chain @ u @ u.mT
    return linear(x, weight @ chain)


def skew_of_packed(a: Tensor, size: int) -> Tensor:
    """The skew matrices whose entries above the diagonal are a, as PEFT's OFT forms them."""
    rows, columns = torch.triu_indices(size, size, 1, device=a.device)
    upper = torch.zeros(len(a), size, size, dtype=a.dtype, device=a.device)
    upper[:, rows, columns] = a
    return upper - upper.mT


def oft_by_solve(a: Tensor, size: int) -> Tensor:
    """(I - A)^-1 (I + A): PEFT's exact variant, with its own sign."""
    A, one = skew_of_packed(a, size), torch.eye(size, dtype=a.dtype, device=a.device)
    return torch.linalg.solve(one - A, one + A)


def oft_by_inverse(a: Tensor, size: int) -> Tensor:
    """Whose gradient is made of products alone."""
    A, one = skew_of_packed(a, size), torch.eye(size, dtype=a.dtype, device=a.device)
    return 2 * torch.linalg.inv(one - A) - one


def oft_by_series(a: Tensor, size: int) -> Tensor:
    """PEFT's default: five terms of the Neumann series."""
    A = skew_of_packed(a, size)
    square = A @ A
    cube = square @ A
    return torch.eye(size, dtype=a.dtype, device=a.device) + 2 * A + 2 * square + 2 * cube + cube @ A
