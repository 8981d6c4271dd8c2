"""The FLOPs regulariser's schedules against their published recursions, and what training must not disturb."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import subspan
from sample_arrays import normal
from subspan.nn import FlopsRegularizer, MatryoshkaLoss

STEPS = 12
SCHEDULES = {
    "constant": {},
    "linear": {"steps": 8},
    "quadratic": {"steps": 8},
    "inverse_l1": {},
    "target": {"rate": 0.02, "target": 4.0},
    "target_rising": {"rate": 0.02, "target": 4.0},
}


def batches(count: int = STEPS) -> list[torch.Tensor]:
    return [normal(seed, 6, 5).relu() for seed in range(count)]


def weights(regularizer: FlopsRegularizer, task_losses: list[float] | None = None) -> list[float]:
    """What multiplied the loss of each batch."""
    found = []
    for i, x in enumerate(batches()):
        found.append(float(regularizer(x) / subspan.flops_loss(x)))
        regularizer.step(*([] if task_losses is None else [task_losses[i]]))
    return found


@pytest.mark.parametrize(("schedule", "power"), [("linear", 1), ("quadratic", 2)])
def test_rising(schedule, power):
    expected = [0.3 * min(1.0, t / 8) ** power for t in range(STEPS)]
    assert weights(FlopsRegularizer(0.3, schedule, steps=8)) == pytest.approx(expected, rel=1e-6)


def test_constant_is_the_loss():
    assert weights(FlopsRegularizer(0.3)) == pytest.approx([0.3] * STEPS, rel=1e-6)
    assert weights(FlopsRegularizer(0.0)) == [0.0] * STEPS


def test_inverse_l1():
    """lambda over the exponential average of the L1 norms, without its bias towards 0; nothing in the first steps."""
    expected, moving = [], 0.0
    for t, x in enumerate(batches()):
        mean = moving / (1 - 0.99**t) if t else None
        expected.append(0.0 if t <= 5 or mean is None else 0.3 / mean)
        moving = 0.99 * moving + 0.01 * float(x.abs().sum(-1).mean())
    assert weights(FlopsRegularizer(0.3, "inverse_l1")) == pytest.approx(expected, rel=1e-5)
    assert expected[-1] > 0


def test_target_moves_both_ways_and_stays_nonnegative():
    losses = [5.0, 1.0, 1.0, 9.0, 30.0, 2.0] * 2
    expected, strength = [], 0.1
    for loss in losses:
        expected.append(strength)
        strength = max(0.0, strength + 0.02 * (4.0 - loss))
    assert weights(FlopsRegularizer(0.1, "target", rate=0.02, target=4.0), losses) == pytest.approx(expected, abs=1e-6)
    assert 0.0 in expected and max(expected) > 0.1


def test_target_rising_only_rises():
    losses = [5.0, 1.0, 1.0, 9.0, 30.0, 2.0] * 2
    regularizer = FlopsRegularizer(0.1, "target_rising", rate=0.02, target=4.0)
    below = [sum(loss < 4.0 for loss in losses[:t]) for t in range(STEPS)]
    assert weights(regularizer, losses) == pytest.approx([0.1 + 0.02 * count for count in below], abs=1e-6)


def test_means_are_averages_over_batches():
    regularizer = FlopsRegularizer(1.0, ema_decay=0.75, columns=5)
    running = None
    for x in batches():
        x.requires_grad_()
        mean = x.detach().abs().mean(0)
        running = mean if running is None else 0.75 * running + 0.25 * mean
        loss = regularizer(x)
        loss.backward()
        assert loss.item() == pytest.approx(running.square().sum().item(), rel=1e-6)
        torch.testing.assert_close(x.grad, 2 / 6 * running * x.detach().sign())
        regularizer.step()
    regularizer.eval()
    last = batches()[0]
    assert regularizer(last).item() == pytest.approx(subspan.flops_loss(last).item(), rel=1e-6)


def test_state_resumes():
    first = FlopsRegularizer(0.3, "quadratic", steps=8, ema_decay=0.75, columns=5)
    for x in batches(3):
        first(x)
        first.step()
    second = FlopsRegularizer(0.3, "quadratic", steps=8, ema_decay=0.75, columns=5)
    second.load_state_dict(first.state_dict())
    for x in batches(4):
        assert torch.equal(first(x), second(x))
        first.step(), second.step()
    assert torch.equal(copy.deepcopy(first)(x), first(x))


def test_forward_twice_is_the_same():
    """As activation checkpointing and the accumulation of gradients have it."""
    regularizer = FlopsRegularizer(0.3, "inverse_l1", ema_decay=0.5, columns=5)
    for x in batches(8):
        assert torch.equal(regularizer(x), regularizer(x))
        regularizer.step()
    x = batches(1)[0].requires_grad_()
    checkpoint(regularizer, x, use_reentrant=False).backward()
    again = batches(1)[0].requires_grad_()
    regularizer(again).backward()
    assert torch.equal(x.grad, again.grad) and x.grad.abs().max() > 0


def test_step_before_the_backward_pass():
    for schedule, options in SCHEDULES.items():
        regularizer = FlopsRegularizer(0.3, schedule, ema_decay=0.5, columns=5, **options)
        for x in batches(8):
            loss = regularizer(x.requires_grad_())
            expected = torch.autograd.grad(loss, x, retain_graph=True)[0]
            regularizer.step(1.0)
            loss.backward()
            assert torch.equal(x.grad, expected)


def test_masks_and_the_other_side_are_passed_on():
    q, d = normal(1, 6, 5), normal(2, 4, 5)
    mask = torch.arange(6) < 4
    regularizer = FlopsRegularizer(2.0)
    assert regularizer(q, y=d, row_mask=mask) == 2 * subspan.flops_loss(q, y=d, row_mask=mask)
    unbiased = FlopsRegularizer(2.0, unbiased=True)
    assert unbiased(q) == 2 * subspan.flops_loss(q, unbiased=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": -1.0}, "weight: expected a number >= 0"),
        ({"weight": "1"}, "weight"),
        ({"weight": 1.0, "schedule": "cubic"}, "schedule"),
        ({"weight": 1.0, "schedule": "linear"}, "steps: expected a number with schedule 'linear'"),
        ({"weight": 1.0, "steps": 5}, "steps: expected None with schedule 'constant'"),
        ({"weight": 1.0, "schedule": "target", "rate": 1.0}, "target: expected a number"),
        ({"weight": 1.0, "schedule": "target", "target": 1.0}, "rate: expected a number"),
        ({"weight": 1.0, "ema_decay": 0.5}, "columns: expected a number with ema_decay"),
        ({"weight": 1.0, "columns": 5}, "columns"),
        ({"weight": 1.0, "ema_decay": 1.0, "columns": 5}, r"ema_decay: expected a number in \[0, 1\)"),
        ({"weight": 1.0, "ema_decay": 0.5, "columns": 5, "unbiased": True}, "unbiased"),
    ],
)
def test_wrong_parameters(arguments, message):
    with pytest.raises((TypeError, ValueError), match=f"^FlopsRegularizer: .*{message}"):
        FlopsRegularizer(**arguments)


def test_missing_task_loss():
    with pytest.raises(
        ValueError, match=r"^FlopsRegularizer\.step: task_loss: expected the loss of the task, got None"
    ):
        FlopsRegularizer(1.0, "target", rate=1.0, target=1.0).step()


# --- MatryoshkaLoss ---


def distance(x, y):
    return (x - y).square().sum()


def test_matryoshka_of_dense_prefixes():
    x, y = normal(1, 4, 6).requires_grad_(), normal(2, 4, 6)
    loss = MatryoshkaLoss(distance, sizes=(2, 6), weights=(0.5, 2.0))(x, y)
    loss.backward()
    assert loss.item() == pytest.approx((0.5 * distance(x[:, :2], y[:, :2]) + 2 * distance(x, y)).item())
    inside = torch.arange(6) < 2
    torch.testing.assert_close(x.grad, 2 * (x - y).detach() * (2 + 0.5 * inside))


def test_matryoshka_of_unit_prefixes():
    x, y = normal(1, 4, 6), normal(2, 4, 6)
    unit = torch.nn.functional.normalize
    loss = MatryoshkaLoss(distance, sizes=(2, 3), normalize=True)(x, y)
    expected = sum(distance(unit(x[:, :size], dim=-1), unit(y[:, :size], dim=-1)) for size in (2, 3))
    assert loss.item() == pytest.approx(expected.item())


def test_matryoshka_of_sparse_rows_is_that_of_smaller_k():
    x = normal(3, 5, 20)
    codes = subspan.topk_rows(x, 8)
    loss = MatryoshkaLoss(lambda s: (s.to_dense() - x).square().sum(), sizes=(2, 8))(codes)
    expected = sum((subspan.topk_rows(x, k).to_dense() - x).square().sum() for k in (2, 8))
    assert loss.item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MatryoshkaLoss(3, (1,)), "loss: expected a function"),
        (lambda: MatryoshkaLoss(distance, ()), "sizes: expected at least one"),
        (lambda: MatryoshkaLoss(distance, (0,)), "sizes"),
        (lambda: MatryoshkaLoss(distance, (1, 2), (1.0,)), "weights: expected 2 numbers"),
        (lambda: MatryoshkaLoss(distance, (1,), (-1.0,)), "weights: expected 1 numbers >= 0"),
        (lambda: MatryoshkaLoss(distance, (1,))(), "embeddings: expected at least one"),
        (lambda: MatryoshkaLoss(distance, (9,))(normal(1, 4, 6)), "embeddings: expected at least 9 features"),
        (
            lambda: MatryoshkaLoss(distance, (1,))(subspan.SparseRows.from_dense(normal(1, 4, 6))),
            "embeddings: expected as many entries in every row",
        ),
    ],
)
def test_matryoshka_bad_input(call, message):
    with pytest.raises((TypeError, ValueError), match=f"^MatryoshkaLoss: {message}"):
        call()
