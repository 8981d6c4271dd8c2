"""What every optimiser of subspan.optim must do, as functions of how to make one; the test files call them."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from op_row import same
from sample_arrays import normal

Make = Callable[[list[Tensor]], torch.optim.Optimizer]
Start = Callable[[], list[Tensor]]


def parameters(tensors: list[Tensor]) -> list[Tensor]:
    return [torch.nn.Parameter(tensor.detach().clone()) for tensor in tensors]


def train(optimiser: torch.optim.Optimizer, tensors: list[Tensor], steps: range, scale: float = 1.0) -> None:
    for step in steps:
        for i, tensor in enumerate(tensors):
            tensor.grad = normal(100 * step + i, *tensor.shape, dtype=tensor.dtype, scale=scale)
        optimiser.step()


def all_same(first: list[Tensor], second: list[Tensor], what: str) -> None:
    for one, two in zip(first, second, strict=True):
        same(one.detach(), two.detach(), what)


def resumes_bitwise(make: Make, start: list[Tensor], way: str) -> None:
    """By "state_dict", "file", "deepcopy" or "pickle", after 3 of 9 steps."""
    tensors = parameters(start)
    optimiser = make(tensors)
    train(optimiser, tensors, range(3))
    if way == "deepcopy":
        others, other = copy.deepcopy((tensors, optimiser))
    elif way == "pickle":
        memory = io.BytesIO()
        torch.save((tensors, optimiser), memory)
        memory.seek(0)
        others, other = torch.load(memory, weights_only=False)
    else:
        others = parameters(tensors)
        other = make(others)
        state = copy.deepcopy(optimiser.state_dict())
        if way == "file":
            memory = io.BytesIO()
            torch.save(state, memory)
            memory.seek(0)
            state = torch.load(memory)
        other.load_state_dict(state)
    train(optimiser, tensors, range(3, 9))
    train(other, others, range(3, 9))
    all_same(others, tensors, way)


WAYS = ["state_dict", "file", "deepcopy", "pickle"]


def any_threads_same_bits(make: Make, start: list[Tensor], steps: int = 5) -> None:
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        tensors = parameters(start)
        train(make(tensors), tensors, range(steps))
        results.append(tensors)
    for result in results[1:]:
        all_same(result, results[0], "threads")


def nan_touches_its_own_only(make: Make, start: list[Tensor], value: float) -> None:
    """An entry of the second of three gradients; the others go on as if nothing were."""
    clean, tensors = parameters(start), parameters(start)
    optimisers = make(clean), make(tensors)
    for step in range(2):
        for i, (one, two) in enumerate(zip(clean, tensors, strict=True)):
            one.grad = normal(10 * step + i, *one.shape, dtype=one.dtype)
            two.grad = one.grad.clone()
        if step == 0:
            gradient = tensors[1].grad
            assert gradient is not None
            gradient.view(-1)[3] = value
        for optimiser in optimisers:
            optimiser.step()
    assert tensors[1].isnan().any()
    for i in (0, 2):
        same(tensors[i].detach(), clean[i].detach(), "another parameter")


def behaves_like_an_optimizer(make: Make, start: list[Tensor]) -> None:
    """Closure, scheduler, missing gradients, autograd's version counter, sparse gradients."""
    tensors = parameters(start)
    idle = parameters(start[:1])[0]
    optimiser = make([*tensors, idle])
    lr = optimiser.param_groups[0]["lr"]
    scheduler = torch.optim.lr_scheduler.StepLR(optimiser, 1, 0.5)
    before = idle.detach().clone()

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = torch.stack([(tensor**4).sum() for tensor in tensors]).sum()
        loss.backward()
        return loss

    losses = [float(optimiser.step(closure).detach()) for _ in range(4)]
    assert losses[-1] < losses[0], losses
    scheduler.step()
    assert optimiser.param_groups[0]["lr"] == 0.5 * lr
    same(idle.detach(), before, "no gradient")
    assert idle not in optimiser.state
    loss = tensors[0].square().sum()
    tensors[0].grad = torch.ones_like(tensors[0])
    optimiser.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    moved = [tensor.detach().clone() for tensor in tensors]
    tensors[-1].grad = torch.zeros_like(tensors[-1]).to_sparse()
    with pytest.raises(TypeError, match=rf"{type(optimiser).__name__}: params: expected dense gradients, got .+"):
        optimiser.step()
    all_same(tensors, moved, "refused before any work")


def maximize_is_descent_of_the_negative(make: Callable[..., torch.optim.Optimizer], start: list[Tensor]) -> None:
    up, down = parameters(start), parameters(start)
    optimisers = make(up, maximize=True), make(down)
    for step in range(3):
        for i, (one, two) in enumerate(zip(up, down, strict=True)):
            one.grad = normal(10 * step + i, *one.shape, dtype=one.dtype)
            two.grad = -one.grad
        for optimiser in optimisers:
            optimiser.step()
    all_same(up, down, "maximize")


def refuses(make: Callable[[], Any], name: str, argument: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"^{name}: {argument}: expected .+, got .+"):
        make()
