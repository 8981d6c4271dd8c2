"""The gradient that comes from above: there already, as a layer finds it within a network, so that no variant's time
has a share of making it, or of summing up a large result."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def upstream_of(value: Tensor) -> Tensor:
    """Another number for every entry, since equal ones would be a special case; 1 for a single number."""
    return _upstream(tuple(value.shape), value.dtype, value.device)


@functools.lru_cache(maxsize=16)
def _upstream(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if not shape:
        return torch.ones((), dtype=dtype, device=device)
    count = torch.Size(shape).numel()
    return (1 + 0.5 * torch.arange(count, dtype=torch.float64).cos()).reshape(shape).to(device, dtype)
