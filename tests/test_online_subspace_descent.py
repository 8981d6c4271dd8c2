"""OnlineSubspaceDescent: its definition in float64, a frame that stays one, what it finds, and what an optimiser of
torch must do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import optimizer_checks as checks
from op_row import same
from sample_arrays import normal
from subspan.optim import OnlineSubspaceDescent
from subspan.reference import descent as reference

DOUBLE = torch.float64
REAL = [torch.float32, DOUBLE]
SHAPES = [(9, 16), (30, 12), (12, 12), (70, 40)]
RANK = 3


def matrices(dtype: torch.dtype = DOUBLE) -> list[Tensor]:
    return [normal(seed, *shape, dtype=dtype) for seed, shape in enumerate(SHAPES)]


def made(tensors: list[Tensor], **more: Any) -> OnlineSubspaceDescent:
    return OnlineSubspaceDescent(tensors, lr=0.05, rank=RANK, **more)


def orthonormality(frame: Tensor) -> float:
    frame = frame.double()
    return float((frame.mT @ frame - torch.eye(frame.shape[-1], dtype=DOUBLE)).abs().max())


@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_step_is_its_definition(dtype: torch.dtype) -> None:
    """Rounding may amount to 9000 units: P begins at a point where D is nothing but the rounding of 12 products,
    of which delta lets 1e4 units through for each, by a rate of 0.3 and to entries of W by one of 0.05, in 5 steps."""
    settings: dict[str, Any] = {"betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1, "scale": 0.5, "subspace_lr": 0.3}
    start = matrices(dtype)
    tensors = checks.parameters(start)
    optimiser = made(tensors, **settings)
    checks.train(optimiser, tensors, range(5))
    for i, (tensor, begin) in enumerate(zip(tensors, start, strict=True)):
        turned = begin.shape[0] > begin.shape[1]
        W, P, M, V = begin.double().numpy(), None, np.zeros(()), np.zeros(())
        W = W.T if turned else W
        for step in range(5):
            G = normal(100 * step + i, *begin.shape, dtype=dtype).double().numpy()
            G = G.T if turned else G
            W, P, M, V = reference.online_subspace_step(
                W, G, P, M, V, step + 1, 0.05, (0.8, 0.9), 1e-3, 0.1, RANK, 0.5, 0.3
            )
        got = tensor.detach().double().numpy()
        bound = 9000 * torch.finfo(dtype).eps
        np.testing.assert_allclose(got.T if turned else got, W, rtol=0, atol=bound)
        frame = optimiser.state[tensor]["frame"]
        np.testing.assert_allclose(frame @ frame.mT, P @ P.T, rtol=0, atol=bound)
        assert orthonormality(frame) < 10 * torch.finfo(dtype).eps


def test_moments_are_of_the_rank() -> None:
    tensors = checks.parameters(matrices(torch.bfloat16))
    optimiser = made(tensors)
    checks.train(optimiser, tensors, range(2))
    for tensor in tensors:
        state, (short, long) = optimiser.state[tensor], sorted(tensor.shape)
        shapes = {name: tuple(state[name].shape) for name in ("frame", "exp_avg", "exp_avg_sq")}
        assert shapes == {"frame": (short, RANK), "exp_avg": (RANK, long), "exp_avg_sq": (RANK, long)}
        assert {state[name].dtype for name in shapes} == {torch.float32} and tensor.dtype == torch.bfloat16


def test_ordinary_parameters_are_updated_as_by_torch() -> None:
    """Without a rank, and where the rank is no less than the shorter side."""
    for settings in ({}, {"weight_decay": 0.1}, {"betas": (0.5, 0.7), "maximize": True}):
        ours, theirs = (checks.parameters([normal(1, 4, 5), normal(2, 7), normal(3, 3, 40)]) for _ in range(2))
        groups = [{"params": ours[:2]}, {"params": ours[2:], "rank": 3}]
        optimiser = OnlineSubspaceDescent(groups, lr=0.1, **settings)
        expected = torch.optim.AdamW(theirs, lr=0.1, **{"weight_decay": 0.0, **settings})
        checks.train(optimiser, ours, range(5))
        checks.train(expected, theirs, range(5))
        for one, two in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-13, atol=1e-14)


def test_frame_stays_orthonormal_and_follows_the_gradient() -> None:
    """In float32, against gradients whose leading directions are known: the frame turns by 0.1 in a step, so that its
    angle to them ends below that."""
    U, V = torch.linalg.qr(normal(1, 20, 20)).Q, torch.linalg.qr(normal(2, 50, 20)).Q
    values = torch.cat([torch.full((RANK,), 5.0), torch.ones(20 - RANK)]).double()
    weight = torch.nn.Parameter(torch.zeros(20, 50))
    optimiser = made([weight], subspace_lr=0.1)
    weight.grad = normal(3, 20, 50, dtype=torch.float32)
    optimiser.step()
    worst = 0.0
    for step in range(1000):
        weight.grad = ((U * values) @ V.mT + 0.01 * normal(step, 20, 50)).float()
        optimiser.step()
        worst = max(worst, orthonormality(optimiser.state[weight]["frame"]))
    missed = optimiser.state[weight]["frame"].double()
    missed = missed - U[:, :RANK] @ (U[:, :RANK].mT @ missed)
    print(f"|P^T P - I| at most {worst:.1e}, sine of the angle to the leading directions {float(missed.norm()):.1e}")
    assert worst < 1e-6 and float(missed.norm()) < 0.1


@pytest.mark.parametrize("shape", [(12, 30), (30, 12)], ids=str)
def test_least_squares_are_solved(shape: tuple[int, int]) -> None:
    """min |A W - Y|^2 with A W* = Y and A^T A = I: gradients are of full rank 12, learned through 4 directions at a
    time. The rate falls to 3e-7 of itself, and the distance below a thousandth of a percent of |W*|."""
    A, solution = torch.linalg.qr(normal(1, 40, shape[0])).Q, normal(2, *shape)
    Y = A @ solution
    weight = torch.nn.Parameter(torch.zeros(shape, dtype=DOUBLE))
    optimiser = OnlineSubspaceDescent([weight], lr=0.05, rank=4, betas=(0.9, 0.99))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda t: 0.985 ** max(0, t - 1000))
    for _ in range(2000):
        optimiser.zero_grad()
        (A @ weight - Y).square().sum().backward()
        optimiser.step()
        scheduler.step()
    error = float((weight.detach() - solution).norm() / solution.norm())
    print(f"{shape}: |W - W*| / |W*| = {error:.1e}")
    assert error < 1e-5


@pytest.mark.parametrize("way", checks.WAYS)
def test_state_goes_on_where_it_was(way: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        checks.resumes_bitwise(made, matrices(dtype), way)
    checks.resumes_bitwise(lambda tensors: made(tensors, capturable=True), matrices(torch.float32), way)


def test_capturable_counts_in_a_tensor() -> None:
    first, second = checks.parameters(matrices()), checks.parameters(matrices())
    optimisers = made(first), made(second, capturable=True)
    for optimiser, tensors in zip(optimisers, (first, second), strict=True):
        checks.train(optimiser, tensors, range(3))
    for one, two in zip(first, second, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    assert optimisers[0].state[first[0]]["step"] == 3
    assert isinstance(optimisers[1].state[second[0]]["step"], Tensor)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_stays_in_its_parameter(value: float) -> None:
    checks.nan_touches_its_own_only(made, [normal(seed, 9, 16, dtype=torch.float32) for seed in range(3)], value)


def test_what_torch_asks_of_an_optimizer() -> None:
    checks.behaves_like_an_optimizer(made, matrices())
    checks.maximize_is_descent_of_the_negative(made, matrices())


def test_zero_gradients_and_rates_as_tensors() -> None:
    weight = torch.nn.Parameter(normal(1, 6, 9))
    before = weight.detach().clone()
    weight.grad = torch.zeros(6, 9, dtype=DOUBLE)
    optimiser = made([weight])
    optimiser.step()
    same(weight.detach(), before, "no change")
    assert orthonormality(optimiser.state[weight]["frame"]) < 1e-14
    first, second = checks.parameters(matrices()), checks.parameters(matrices())
    checks.train(OnlineSubspaceDescent(first, lr=0.1, rank=2), first, range(3))
    checks.train(OnlineSubspaceDescent(second, lr=torch.tensor(0.1, dtype=DOUBLE), rank=2), second, range(3))
    for one, two in zip(first, second, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-13, atol=1e-13)


def test_without_turning_the_frame_stays() -> None:
    weight = torch.nn.Parameter(normal(1, 6, 9))
    optimiser = made([weight], subspace_lr=0.0)
    checks.train(optimiser, [weight], range(1))
    before = optimiser.state[weight]["frame"].clone()
    checks.train(optimiser, [weight], range(1, 4))
    torch.testing.assert_close(optimiser.state[weight]["frame"], before, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("settings", "error", "argument"),
    [
        ({"lr": -1.0}, ValueError, "lr"),
        ({"betas": (0.9,)}, ValueError, "betas"),
        ({"betas": (1.0, 0.9)}, ValueError, r"betas\[0\]"),
        ({"eps": 0.0}, ValueError, "eps"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay"),
        ({"rank": 0}, ValueError, "rank"),
        ({"rank": 2.0}, TypeError, "rank"),
        ({"scale": 0.0}, ValueError, "scale"),
        ({"subspace_lr": -0.1}, ValueError, "subspace_lr"),
        ({"maximize": 1}, TypeError, "maximize"),
        ({"capturable": 1}, TypeError, "capturable"),
    ],
    ids=str,
)
def test_bad_settings(settings: dict[str, Any], error: type[Exception], argument: str) -> None:
    name = "OnlineSubspaceDescent"
    checks.refuses(lambda: OnlineSubspaceDescent(checks.parameters(matrices()), **settings), name, argument, error)


def test_bad_parameters() -> None:
    optimiser = made(checks.parameters(matrices()))
    for bad, error in (
        (torch.ones(3), ValueError),
        (torch.ones(3, 3, 3), ValueError),
        (torch.ones(3, 3) * 1j, TypeError),
    ):
        group = {"params": [torch.nn.Parameter(bad)]}
        checks.refuses(lambda group=group: optimiser.add_param_group(group), "OnlineSubspaceDescent", "params", error)
        assert len(optimiser.param_groups) == 1
