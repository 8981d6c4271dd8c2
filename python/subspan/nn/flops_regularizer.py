"""The FLOPs regulariser with the published schedules of its weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _check
from ..ops.sparse import flops_loss, l1_loss

_NAME = "FlopsRegularizer"
_RISING = {"linear": 1, "quadratic": 2}
_SCHEDULES = {"constant": 0, **_RISING, "inverse_l1": 3, "target": 4, "target_rising": 5}
_L1_DECAY = 0.99  # of the moving mean of "inverse_l1", which counts from the sixth step
_L1_DELAY = 5


class FlopsRegularizer(torch.nn.Module):
    r"""weight(t) :func:`subspan.flops_loss`, with a weight that follows the training.

    .. math:: \lambda_t \sum_j m_j^2, \qquad m_j = \frac1n \sum_i |x_{ij}|

    Call :meth:`step` once after every step of the optimiser: it moves the schedule and, with ``ema_decay``, takes the
    means of the last batch into the running ones. The forward pass changes no state that it reads, so that activation
    checkpointing and the accumulation of gradients see one weight. Queries and documents, which are regularised with
    weights of their own, take a regulariser each.

    Args:
        weight: number >= 0, the largest one of "linear" and "quadratic".
        schedule: "constant"; "linear", weight min(1, t/steps), or "quadratic", weight min(1, t/steps)^2, as in SPLADE
            and sentence-transformers (``dynamic_4`` of sparse-embed); "inverse_l1", weight over a moving mean of the L1
            norm of the rows, 0 in the first five steps (``dynamic_1``); "target", which starts at ``weight`` and moves
            by rate (target - task loss), never below 0 (``dynamic_2``); "target_rising", which grows by ``rate`` in
            every step whose task loss is below target (``dynamic_3``, whose own target falls: assign ``target``).
        steps: of the rise of "linear" and "quadratic".
        rate: of "target" and "target_rising".
        target: task loss that these two hold.
        unbiased: see :func:`subspan.flops_loss`.
        ema_decay: number in [0, 1): column means are exponential averages over batches, that of the first batch being
            its own; needs ``columns``. In evaluation means are those of the batch.
        columns: length of a row, with ``ema_decay`` only.
        group: process group whose processes share the batch, see :func:`subspan.flops_loss`.

    Raises:
        TypeError, ValueError: wrong parameters; in :meth:`step` a missing task loss.

    Source:
        Paria et al. 2020, Minimizing FLOPs to Learn Efficient Sparse Representations, section 4. Replaces ``FLOPS``
        with ``RegWeightScheduler`` of naver/splade, and ``FlopsLoss`` with ``SpladeRegularizerWeightSchedulerCallback``
        of sentence-transformers (warmup_ratio of the training's steps are ``steps`` here).

    >>> import torch
    >>> from subspan.nn import FlopsRegularizer
    >>> regularizer = FlopsRegularizer(3e-2, "quadratic", steps=2)
    >>> x = torch.tensor([[1.0, 0.0, 2.0], [1.0, 0.0, 0.0]])
    >>> for _ in range(3):
    ...     print(round(regularizer(x).item(), 4))
    ...     regularizer.step()
    0.0
    0.015
    0.06
    """

    t: Tensor
    strength: Tensor
    running: Tensor | None
    latest: Tensor | None
    l1: Tensor
    moving_l1: Tensor

    def __init__(
        self,
        weight: float,
        schedule: str = "constant",
        *,
        steps: int | None = None,
        rate: float | None = None,
        target: float | None = None,
        unbiased: bool = False,
        ema_decay: float | None = None,
        columns: int | None = None,
        group: Any = None,
    ) -> None:
        super().__init__()
        self.weight = _check.number(_NAME, "weight", weight)
        if self.weight < 0:
            raise ValueError(f"{_NAME}: weight: expected a number >= 0, got {weight}")
        _check.choice(_NAME, "schedule", schedule, _SCHEDULES)
        self.schedule = schedule
        _needed(schedule, "steps", steps, schedule in _RISING)
        self.steps = None if steps is None else _check.count(_NAME, "steps", steps)
        by_loss = schedule.startswith("target")
        _needed(schedule, "rate", rate, by_loss)
        _needed(schedule, "target", target, by_loss)
        self.rate = None if rate is None else _check.positive(_NAME, "rate", rate)
        self.target = None if target is None else _check.number(_NAME, "target", target)
        _check.flag(_NAME, "unbiased", unbiased)
        self.unbiased = bool(unbiased)
        if (ema_decay is None) != (columns is None):
            raise ValueError(f"{_NAME}: columns: expected a number with ema_decay and None without, got {columns}")
        if ema_decay is not None:
            ema_decay = _check.number(_NAME, "ema_decay", ema_decay)
            if not 0 <= ema_decay < 1:
                raise ValueError(f"{_NAME}: ema_decay: expected a number in [0, 1), got {ema_decay}")
            if self.unbiased:
                raise ValueError(f"{_NAME}: unbiased: expected False together with ema_decay, got True")
        self.ema_decay = ema_decay
        self.averages = False  # whether there was a first batch
        self.group = group
        means = None if columns is None else torch.zeros(_check.count(_NAME, "columns", columns))
        self.register_buffer("t", torch.zeros((), dtype=torch.int64))
        self.register_buffer("strength", torch.tensor(0.0 if schedule in (*_RISING, "inverse_l1") else self.weight))
        self.register_buffer("running", means)
        self.register_buffer("latest", None if means is None else means.clone(), persistent=False)
        self.register_buffer("moving_l1", torch.zeros(()))
        self.register_buffer("l1", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor, *, y: Tensor | None = None, row_mask: Tensor | None = None) -> Tensor:
        """The weighted loss, a tensor of shape (*batch), of activations (*batch, n, d); y as in `flops_loss`."""
        options: dict[str, Any] = {"y": y, "unbiased": self.unbiased, "row_mask": row_mask, "group": self.group}
        if self.training and self.ema_decay is not None and self.latest is not None:
            loss, means = flops_loss(x, ema=(self.running, self.ema_decay if self.averages else 0.0), **options)
            self.latest.copy_(means)
        else:
            loss = flops_loss(x, **options)
        if self.training and self.schedule == "inverse_l1":
            self.l1.copy_(l1_loss(x.detach(), row_mask=row_mask).mean())
        weighted: Tensor = self.strength * loss
        return weighted

    @torch.no_grad()
    def step(self, task_loss: Tensor | float | None = None) -> None:
        """After a step of the optimiser. The schedules by target need the loss of the task, without the regulariser."""
        # Buffers are replaced, not written to: a graph that awaits its backward pass holds them.
        if self.schedule.startswith("target") and task_loss is None:
            raise ValueError(f"{_NAME}.step: task_loss: expected the loss of the task, got None")
        self.t += 1
        if self.running is not None and self.latest is not None:
            self.running = self.latest.clone()
            self.averages = True
        if self.schedule in _RISING:
            assert self.steps is not None
            share = (self.t / self.steps).clamp(max=1.0)
            self.strength = self.weight * share ** _RISING[self.schedule]
        elif self.schedule == "inverse_l1":
            self.moving_l1.lerp_(self.l1, 1 - _L1_DECAY)
            mean = self.moving_l1 / (1 - _L1_DECAY**self.t)
            self.strength = torch.where((self.t > _L1_DELAY) & (mean > 0), self.weight / mean, 0.0)
        elif task_loss is not None and self.rate is not None and self.target is not None:
            loss = torch.as_tensor(task_loss, dtype=self.strength.dtype, device=self.strength.device)
            if self.schedule == "target":
                self.strength = (self.strength + self.rate * (self.target - loss)).clamp(min=0)
            else:
                self.strength = self.strength + self.rate * (loss < self.target)

    def get_extra_state(self) -> dict[str, bool]:
        return {"averages": self.averages}

    def set_extra_state(self, state: dict[str, bool]) -> None:
        self.averages = state["averages"]

    def extra_repr(self) -> str:
        options = [f"weight={self.weight:g}", f"schedule={self.schedule!r}"]
        for name in ("steps", "rate", "target", "ema_decay"):
            if getattr(self, name) is not None:
                options.append(f"{name}={getattr(self, name):g}")
        return ", ".join([*options, *(["unbiased=True"] if self.unbiased else [])])


def _needed(schedule: str, name: str, value: Any, needed: bool) -> None:
    if needed != (value is not None):
        wanted = "a number" if needed else "None"
        raise ValueError(f"{_NAME}: {name}: expected {wanted} with schedule {schedule!r}, got {value}")
