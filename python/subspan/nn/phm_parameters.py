"""What hypercomplex layers share: their rule of multiplication, and how their weights start."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _check
from ..ops.phm import nearest
from ..ops.phm_algebra import NAMES, algebra

RULES = {"learned": -1, **NAMES}


def check_sizes(op: str, n: int, **given: int) -> None:
    """All of them multiples of n."""
    n = _check.count(op, "n", n)
    for name, size in given.items():
        _check.count(op, name, size)
        if size % n:
            raise ValueError(f"{op}: {name}: expected a multiple of n = {n}, got {size} ({nearest(size, n)})")


def add_rule(module: torch.nn.Module, name: str, rule: str, n: int, like: dict[str, object]) -> None:
    """A learned rule as a parameter, that of an algebra as a buffer."""
    _check.choice(type(module).__name__, "rule", rule, RULES)
    A = torch.empty(n, n, n, **like)  # type: ignore[call-overload]
    if rule == "learned":
        module.register_parameter(name, torch.nn.Parameter(A))
    else:
        algebra(rule, n)  # that it exists
        module.register_buffer(name, A)


@torch.no_grad()
def reset_rule(A: Tensor, rule: str) -> None:
    """Entries of which the sums of squares over the terms are 1 on average; or the algebra's."""
    n = A.shape[-1]
    if rule == "learned":
        A.uniform_(-1, 1).mul_(math.sqrt(3 / n))
    else:
        A.copy_(torch.from_numpy(algebra(rule, n)))


@torch.no_grad()
def reset_components(S: Tensor, A: Tensor, inputs: int) -> None:
    """S for entries of W with variance 1 / (3 inputs), as torch's layers have them."""
    strength = A.square().sum().item() / (A.shape[-2] * A.shape[-1])
    limit = 1 / math.sqrt(inputs * max(strength, torch.finfo(A.dtype).tiny))
    S.uniform_(-limit, limit)
