"""Muon with all matrices of a model in one call."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _check, _native, _route
from ..composite.newton_schulz import by_shape
from ..ops.newton_schulz import of_list, polynomials
from ._descent import (
    Descent,
    Job,
    add_,
    check_floating,
    check_fraction,
    check_lr,
    check_nonnegative,
    grouped,
    lerp,
    lerp_,
    mul_,
    overlapping,
)

_ADJUSTMENTS = {"original": 0, "match_rms_adamw": 1}
_TYPES = (torch.float64, torch.float32, torch.bfloat16)


class Muon(Descent):
    r"""Momentum that is made nearly orthogonal: the optimiser of the matrices of a network, all of them in one call.

    .. math::
        B \leftarrow \mu B + (1 - \mu) G, \qquad U = \mu B + (1 - \mu) G \text{ or } B, \qquad
        W \leftarrow (1 - \eta \lambda) W - \eta\, s(W)\, \mathrm{NS}(U / \max(\|U\|_F, \varepsilon))

    with NS the iteration of :func:`subspan.newton_schulz`. Every step collects the matrices of all groups with equal
    settings of it, of whatever shapes, and hands them over together.

    Args:
        params: parameters of two or more dimensions, or groups of them. More than two are flattened to (first, all
            others), as for the kernels of convolutions. Vectors, embeddings and heads belong to another optimiser.
        lr: eta, a number >= 0 or a tensor of one element, which is never read on the host.
        weight_decay: lambda, decoupled: >= 0.
        momentum: mu, in [0, 1). B starts at 0.
        nesterov: U = mu B + (1 - mu) G in place of B.
        ns_coefficients: (a, b, c), the name of a polynomial or a list of (a, b, c), as in ``newton_schulz``.
        eps: a norm below this counts as this, >= 0.
        ns_steps: steps of the iteration.
        adjust_lr_fn: s, for a matrix of m rows and n columns: None or "original" for max(1, m / n)^1/2, and
            "match_rms_adamw" for max(m, n)^1/2 / 5.
        stacked: the parameters of a group are stacks (\*batch, m, n) of matrices, and are not flattened.
        ns_dtype: type of the iteration. None is float64 for float64 parameters and float32 for all others;
            ``torch.bfloat16`` computes as ``torch.optim.Muon`` does, matrices of equal shape stacked, which a GPU is
            fast at and a CPU is not.
        maximize: ascends.

    ``step`` synchronises with no device and keeps no counter: it can be captured in a CUDA graph. State:
    "momentum_buffer".

    Raises:
        TypeError, ValueError: a number out of range, parameters of fewer than two dimensions, stacks of more than
            eight, complex parameters, sparse gradients.

    Cost:
        Of the iteration, see ``newton_schulz``; beside it every array is passed over once, on the CPU in one call of a
        kernel for all matrices in float32 and float64. Memory: the buffer, and the update of one matrix for each
        thread; elsewhere, and for half precision, the update of all parameters during a step.

    Source:
        Jordan et al. 2024, Muon; the factor of "match_rms_adamw" from Liu et al. 2025, Muon is Scalable for LLM
        Training. Replaces ``torch.optim.Muon``, which loops over matrices, takes two dimensions only and iterates in
        bfloat16.

    >>> import torch, subspan
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.Flatten(), torch.nn.Linear(32, 4))
    >>> optimiser = subspan.optim.Muon([p for p in model.parameters() if p.ndim >= 2], lr=0.02)
    >>> model(torch.randn(2, 1, 4, 4)).square().sum().backward()
    >>> optimiser.step()
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: Any = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        stacked: bool = False,
        ns_dtype: torch.dtype | None = None,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
            "stacked": stacked,
            "ns_dtype": ns_dtype,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        op = self._name
        check_lr(op, group["lr"])
        check_nonnegative(op, "weight_decay", group["weight_decay"])
        check_nonnegative(op, "eps", group["eps"])
        check_fraction(op, "momentum", group["momentum"])
        for name in ("nesterov", "stacked", "maximize"):
            _check.flag(op, name, group[name])
        try:
            polynomials(group["ns_steps"], group["ns_coefficients"])
        except (TypeError, ValueError) as error:  # these know the names of another function's arguments
            text = str(error).replace("newton_schulz: steps", f"{op}: ns_steps")
            raise type(error)(text.replace("newton_schulz: coefficients", f"{op}: ns_coefficients")) from None
        if group["adjust_lr_fn"] is not None:
            _check.choice(op, "adjust_lr_fn", group["adjust_lr_fn"], _ADJUSTMENTS)
        if group["ns_dtype"] is not None and group["ns_dtype"] not in _TYPES:
            kinds = "None, torch.float64, torch.float32 or torch.bfloat16"
            raise ValueError(f"{op}: ns_dtype: expected {kinds}, got {group['ns_dtype']}")
        check_floating(op, group["params"])
        for parameter in group["params"]:
            if parameter.ndim < 2:
                raise ValueError(f"{op}: params: expected 2 or more dimensions, got shape {tuple(parameter.shape)}")
            if group["stacked"] and parameter.ndim > _check.MAX_DIMS:
                expected = f"at most {_check.MAX_DIMS} dimensions of stacked matrices"
                raise ValueError(f"{op}: params: expected {expected}, got shape {tuple(parameter.shape)}")

    def _update(self, jobs: list[Job]) -> None:
        for parameter, _, _ in jobs:
            if "momentum_buffer" not in self.state[parameter]:
                buffer = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                self.state[parameter]["momentum_buffer"] = buffer
        shared = overlapping([parameter for parameter, _, _ in jobs])
        served = [job for job in jobs if _suits_kernel(job) and id(job[0]) not in shared]
        if served and not _route.kernel_serves([tensor for job in served for tensor in job[:2]]):
            served = [job for job in served if _route.kernel_serves(job[:2])]
        for members in grouped(served, _iteration_of_groups()):
            self._step_by_kernel(members)
        if len(served) < len(jobs):
            kept = {id(job[0]) for job in served}
            self._step_by_lists([job for job in jobs if id(job[0]) not in kept])

    def _step_by_kernel(self, jobs: list[Job]) -> None:
        """In place; arrays that are not packed through copies."""
        coefficients, eps, _, _ = _iteration(jobs[0][2], jobs[0][0].device)
        arrays: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        numbers: list[float] = []
        changed: list[tuple[Tensor, Tensor]] = []
        for parameter, gradient, group in jobs:
            buffer = self.state[parameter]["momentum_buffer"]
            for to, tensor in zip(arrays, (parameter.detach(), gradient, buffer), strict=True):
                packed = tensor.contiguous()
                to.append(packed if packed.ndim == 2 else _as_matrix(packed, group))
            changed += [(parameter, arrays[0][-1]), (buffer, arrays[2][-1])]
            lr = group["lr"]
            kept = 1 - lr * group["weight_decay"]
            numbers += (_rate(group, arrays[0][-1]), kept, group["momentum"], float(group["nesterov"]))
        flat = [number for polynomial in coefficients for number in polynomial]
        _native.cpu.muon_step(*arrays, numbers, flat, eps, _route.threads())
        for tensor, packed in changed:
            if tensor.data_ptr() == packed.data_ptr():
                torch.autograd.graph.increment_version(tensor)
            else:
                tensor.copy_(packed.reshape(tensor.shape))

    def _step_by_lists(self, jobs: list[Job]) -> None:
        updates = self._directions(jobs)
        moved: list[tuple[Tensor, Tensor, float | Tensor]] = []
        for group in self.param_groups:
            decayed = [parameter for parameter, _, own in jobs if own is group]
            if decayed and group["weight_decay"] != 0:
                mul_(decayed, 1 - group["lr"] * group["weight_decay"])
        key = _iteration_of_groups()
        for members in grouped(list(zip(jobs, updates, strict=True)), lambda item: key(item[0])):
            matrices = [_as_matrix(update, job[2]) for job, update in members]
            for (job, update), matrix in zip(members, _orthogonal(matrices, members[0][0]), strict=True):
                moved.append((job[0], matrix.reshape(update.shape), _rate(job[2], matrix)))
        for same in grouped(moved, lambda item: (_number(item[2]), item[0].device)):
            parameters, changes = [item[0] for item in same], [item[1] for item in same]
            rate = same[0][2]
            if isinstance(rate, Tensor):
                mul_(changes, rate)
                rate = 1.0
            add_(parameters, changes, -rate)

    def _directions(self, jobs: list[Job]) -> list[Tensor]:
        """U of every parameter, B being brought up to date."""
        directions: dict[int, Tensor] = {}
        for same in grouped(jobs, lambda job: (job[2]["momentum"], job[2]["nesterov"], job[0].device)):
            momentum, nesterov = same[0][2]["momentum"], same[0][2]["nesterov"]
            gradients = [gradient.to(parameter.dtype) for parameter, gradient, _ in same]
            buffers = [self.state[parameter]["momentum_buffer"] for parameter, _, _ in same]
            lerp_(buffers, gradients, 1 - momentum)
            ahead = lerp(gradients, buffers, momentum) if nesterov else buffers
            directions.update((id(parameter), u) for (parameter, _, _), u in zip(same, ahead, strict=True))
        return [directions[id(parameter)] for parameter, _, _ in jobs]


def _number(rate: float | Tensor) -> Any:
    """Rates that are tensors are not compared by value, which would have to be read."""
    return id(rate) if isinstance(rate, Tensor) else rate


def _iteration(group: dict[str, Any], device: torch.device) -> Any:
    """What matrices must agree in to be iterated together. float32 and float64 may differ, devices may not."""
    coefficients = tuple(polynomials(group["ns_steps"], group["ns_coefficients"]))
    return coefficients, group["eps"], group["ns_dtype"], device


def _iteration_of_groups() -> Callable[[Job], Any]:
    """That of a job, found once for a group."""
    known: dict[tuple[int, torch.device], Any] = {}

    def iteration(job: Job) -> Any:
        own = id(job[2]), job[0].device
        if own not in known:
            known[own] = _iteration(job[2], job[0].device)
        return known[own]

    return iteration


def _suits_kernel(job: Job) -> bool:
    """Whether the kernel, where one serves, takes the whole step: in the type of the parameter, at a rate that is a
    number."""
    parameter, gradient, group = job
    dtype = parameter.dtype
    if dtype not in (torch.float32, torch.float64) or gradient.dtype != dtype or isinstance(group["lr"], Tensor):
        return False
    return group["ns_dtype"] in (None, dtype)


def _as_matrix(update: Tensor, group: dict[str, Any]) -> Tensor:
    return update if group["stacked"] or update.ndim == 2 else update.flatten(1)


def _orthogonal(matrices: list[Tensor], job: Job) -> list[Tensor]:
    coefficients, eps, dtype, _ = _iteration(job[2], job[0].device)
    if dtype is torch.bfloat16:
        return by_shape(
            [matrix.bfloat16() for matrix in matrices], lambda stack: _in_bfloat16(stack, coefficients, eps)
        )
    if dtype is not None:
        matrices = [matrix.to(dtype) for matrix in matrices]
    return of_list(matrices, [number for polynomial in coefficients for number in polynomial], eps)


def _in_bfloat16(G: Tensor, coefficients: Any, eps: float) -> Tensor:
    """The iteration on X itself, in products of bfloat16, of a stack of matrices."""
    X = G.mT if G.shape[-2] > G.shape[-1] else G
    X = X / torch.linalg.matrix_norm(X, keepdim=True).clamp(min=eps)
    for a, b, c in coefficients:
        A = X @ X.mT
        X = a * X + (b * A + c * (A @ A)) @ X
    result: Tensor = X.mT if G.shape[-2] > G.shape[-1] else X
    return result


def _rate(group: dict[str, Any], matrix: Tensor) -> Any:
    rows, columns = matrix.shape[-2:]
    if group["adjust_lr_fn"] == "match_rms_adamw":
        return group["lr"] * (0.2 * math.sqrt(max(rows, columns)))
    return group["lr"] * math.sqrt(max(1.0, rows / max(columns, 1)))
