"""What hypercomplex layers share: their rule of multiplication, and how their weights start."""

from __future__ import annotations

import math
import threading
from typing import Any

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


class _Loading(threading.local):
    """The rules that this thread's last call of load_state_dict has filled, by the name of the entry of each."""

    call: object = None
    names: dict[int, str]


_loading = _Loading()


class SharesRules(torch.nn.Module):
    """A module whose rules may be those of other modules: a state dict must have the same one for all that share it."""

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        if _loading.call is not missing_keys:  # one list for all modules of a call
            _loading.call, _loading.names = missing_keys, {}
        assigned = local_metadata.get("assign_to_params_buffers", False)  # to each its own: they share no longer
        for name, rule in self._rules(state_dict, prefix).items():
            value = state_dict[prefix + name]
            earlier = _loading.names.setdefault(id(rule), prefix + name)
            if earlier != prefix + name and not assigned and not _equal(state_dict.get(earlier, rule), value):
                expected = f"one rule for all layers that share it, got others in {earlier} and {prefix}{name}"
                error_msgs.append(f"{type(self).__name__}: {name}: expected {expected}")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _rules(self, state_dict: Any, prefix: str) -> dict[str, Tensor]:
        """Those that are loaded, by name: once for every name that a parameter has."""
        found = {**self._parameters, **self._buffers}
        return {
            name: rule
            for name, rule in found.items()
            if (name == "A" or name.startswith("A_") or name.endswith("_A")) and rule is not None
            if prefix + name in state_dict
        }


def _equal(one: Tensor, other: Tensor) -> bool:
    """NaN being equal to itself, in the type of the first."""
    if one.is_meta or other.is_meta or one.shape != other.shape:
        return True  # nothing to compare, or an error of its own
    return bool(torch.allclose(one, other.detach().to(one), rtol=0, atol=0, equal_nan=True))


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
