"""One training, timed step by step, and two of them side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Run:
    """One network, trained with one loss of (network output, target), and what was measured on the way.

    `head` optimises parameters within the loss, if it has any; its steps are timed with the loss. `fused` updates large
    networks in one pass.
    """

    name: str
    loss: Callable[[Tensor, Tensor], Tensor]
    network: torch.nn.Module
    steps: int
    learning_rate: float = 1e-3
    head: torch.optim.Optimizer | None = None
    fused: bool = False
    losses: list[float] = field(default_factory=list)
    loss_seconds: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.learning_rate, fused=self.fused)
        optimizers = [self.optimizer] if self.head is None else [self.optimizer, self.head]
        self.schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(each, self.steps) for each in optimizers]

    def step(self, images: Any, target: Tensor) -> None:
        """One optimiser step; the loss's forward and backward pass (down to the output) is timed on its own."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        output = self.network(images)
        leaf = output.detach().requires_grad_()
        before_loss = time.perf_counter()
        loss = self.loss(leaf, target)
        loss.backward()
        if self.head is not None:
            self.head.step()
            self.head.zero_grad()
        after_loss = time.perf_counter()
        output.backward(leaf.grad)
        self.optimizer.step()
        for schedule in self.schedules:
            schedule.step()
        self.step_seconds.append(time.perf_counter() - start)
        self.loss_seconds.append(after_loss - before_loss)
        self.losses.append(loss.item())

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.network.parameters())


def train(runs: tuple[Run, ...], batches: Iterable[tuple[Any, Tensor]], progress: Callable[[], object]) -> None:
    """Trains all on the same batches, alternately step by step, so that a busy machine slows them alike."""
    for step, (images, target) in enumerate(batches):
        for run in runs if step % 2 == 0 else runs[::-1]:
            run.step(images, target)
        progress()


def largest_difference(first: Run, second: Run) -> tuple[float, float]:
    """Largest distance of two loss curves, absolute and relative to the largest loss."""
    absolute = max(abs(a - b) for a, b in zip(first.losses, second.losses, strict=True))
    return absolute, absolute / max(abs(a) for a in first.losses)
