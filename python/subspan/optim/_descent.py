"""What the optimisers of this library share: groups that are checked before they are added, closures, gradients that
are refused before anything is changed, and arithmetic on lists of tensors."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from .. import _check

#: A parameter with its gradient and the group that it is in.
Job = tuple[Tensor, Tensor, dict[str, Any]]


class Descent(torch.optim.Optimizer):
    """An optimiser whose step is one call of `_update` with all parameters that have gradients."""

    #: Entries of the state that keep their own type when a state is loaded; torch gives them that of the parameter.
    _own_type: tuple[str, ...] = ()
    #: Whether `_update` is handed the negative gradient where a group is to ascend.
    _negates = True

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        try:
            self._check_group(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of an older version, or of the optimiser that this replaces: settings that it lacks have their defaults."""
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient. A closure is evaluated first, and its loss returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        jobs = [
            (parameter, self._gradient(parameter.grad, group), group)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if jobs:
            self._update(jobs)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        parameters = chain.from_iterable(group["params"] for group in self.param_groups)
        for index, parameter in zip(saved, parameters, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                if name in self._own_type:
                    self.state[parameter][name] = value.to(parameter.device, copy=True)

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _check_group(self, group: dict[str, Any]) -> None:
        raise NotImplementedError

    def _update(self, jobs: list[Job]) -> None:
        raise NotImplementedError

    def _gradient(self, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        if gradient.is_sparse:
            raise TypeError(f"{self._name}: params: expected dense gradients, got a sparse one")
        return gradient.neg() if group["maximize"] and self._negates else gradient


def check_floating(op: str, parameters: Sequence[Tensor]) -> None:
    for parameter in parameters:
        if parameter.dtype not in _check.COMPUTE_DTYPE:
            expected = "real floating point parameters (a complex one as torch.view_as_real)"
            raise TypeError(f"{op}: params: expected {expected}, got {parameter.dtype}")


def check_lr(op: str, lr: Any) -> None:
    """A number >= 0, or a tensor of one element, whose value is not read: that might wait for a device."""
    if isinstance(lr, Tensor):
        if lr.numel() != 1 or not lr.is_floating_point():
            raise ValueError(f"{op}: lr: expected a floating point tensor of one element, got shape {tuple(lr.shape)}")
        return
    check_nonnegative(op, "lr", lr)


def check_nonnegative(op: str, name: str, value: Any) -> None:
    if not _check.number(op, name, value) >= 0:
        raise ValueError(f"{op}: {name}: expected a number >= 0, got {value}")


def check_fraction(op: str, name: str, value: Any) -> None:
    if not 0 <= _check.number(op, name, value) < 1:
        raise ValueError(f"{op}: {name}: expected a number in [0, 1), got {value}")


def check_betas(op: str, betas: Any) -> None:
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"{op}: betas: expected two numbers, got {betas!r}")
    for i, beta in enumerate(betas):
        check_fraction(op, f"betas[{i}]", beta)


def grouped(jobs: Sequence[Any], key: Callable[[Any], Hashable]) -> list[list[Any]]:
    """Those of equal key together, in the order of their first members."""
    groups: dict[Hashable, list[Any]] = {}
    for job in jobs:
        groups.setdefault(key(job), []).append(job)
    return list(groups.values())


def overlapping(tensors: Sequence[Tensor]) -> set[int]:
    """The id of every tensor that may share memory with another: such ones are changed one after the other."""
    spans = []
    for tensor in tensors:
        last = tensor.numel() - 1
        if last >= 0 and not tensor.is_contiguous():
            last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        start = tensor.data_ptr()
        spans.append((start, start + (last + 1) * tensor.element_size(), id(tensor)))
    spans.sort()
    found: set[int] = set()
    widest = (0, 0, 0)
    for span in spans:
        if span[0] < widest[1]:
            found.update((span[2], widest[2]))
        if span[1] > widest[1]:
            widest = span
    return found


# --- arithmetic on lists; torch's own, which is private, or one tensor after the other ---

_lerp_: Callable[..., Any] | None = getattr(torch, "_foreach_lerp_", None)
_lerp: Callable[..., Any] | None = getattr(torch, "_foreach_lerp", None)
_mul_: Callable[..., Any] | None = getattr(torch, "_foreach_mul_", None)
_add_: Callable[..., Any] | None = getattr(torch, "_foreach_add_", None)


def lerp_(tensors: list[Tensor], ends: list[Tensor], weight: float) -> None:
    if _lerp_ is not None:
        _lerp_(tensors, ends, weight)
        return
    for tensor, end in zip(tensors, ends, strict=True):
        tensor.lerp_(end, weight)


def lerp(tensors: list[Tensor], ends: list[Tensor], weight: float) -> list[Tensor]:
    if _lerp is not None:
        return list(_lerp(tensors, ends, weight))
    return [tensor.lerp(end, weight) for tensor, end in zip(tensors, ends, strict=True)]


def mul_(tensors: list[Tensor], factor: float | Tensor) -> None:
    if isinstance(factor, Tensor):
        factor = factor.reshape(())  # a rate may be an array of one element
    if _mul_ is not None:
        _mul_(tensors, factor)
        return
    for tensor in tensors:
        tensor.mul_(factor)


def add_(tensors: list[Tensor], others: list[Tensor], alpha: float) -> None:
    if _add_ is not None:
        _add_(tensors, others, alpha=alpha)
        return
    for tensor, other in zip(tensors, others, strict=True):
        tensor.add_(other, alpha=alpha)
