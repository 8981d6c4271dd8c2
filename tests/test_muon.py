"""Muon: its definition in float64, torch.optim.Muon, the ways of the shapes, and what an optimiser of torch must do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import optimizer_checks as checks
from op_row import same
from sample_arrays import normal
from subspan import _check
from subspan.ops.newton_schulz import polynomials
from subspan.optim import Muon, _descent
from subspan.reference import descent as reference

DOUBLE = torch.float64
SHAPES = [(9, 16), (64, 27), (1, 40), (40, 1), (130, 200), (33, 33), (200, 100)]


@pytest.fixture(params=["kernel", "composite"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "composite":
        monkeypatch.setattr("subspan._route.DISABLED", True)
        monkeypatch.setattr("subspan._route_torch.DISABLED", True)
        monkeypatch.setattr(_check, "DISABLED", True)
    return str(request.param)


def matrices(dtype: torch.dtype = DOUBLE, shapes: list[tuple[int, ...]] = SHAPES) -> list[Tensor]:
    return [normal(seed, *shape, dtype=dtype) for seed, shape in enumerate(shapes)]


def error_of(got: Tensor, start: Tensor, want: np.ndarray) -> float:
    """Of the change, by its largest entry."""
    change = want - start.double().numpy()
    return float(np.abs(got.detach().double().numpy() - want).max() / np.abs(change).max())


def definition(start: list[Tensor], steps: int, group: dict[str, Any]) -> list[np.ndarray]:
    W, B = [w.double().numpy() for w in start], [np.zeros(w.shape) for w in start]
    iteration = polynomials(group["ns_steps"], group["ns_coefficients"])
    for step in range(steps):
        for i, w in enumerate(start):
            G = normal(100 * step + i, *w.shape, dtype=w.dtype).double().numpy()
            W[i], B[i] = reference.muon_step(
                W[i],
                G,
                B[i],
                group["lr"],
                group["weight_decay"],
                group["momentum"],
                group["nesterov"],
                iteration,
                group["eps"],
                group["adjust_lr_fn"] or "original",
            )
    return W


SETTINGS: list[dict[str, Any]] = [
    {},
    {"nesterov": False, "momentum": 0.8, "weight_decay": 0.0},
    {"adjust_lr_fn": "match_rms_adamw", "ns_steps": 3},
    {"adjust_lr_fn": "original", "ns_coefficients": (2.0, -1.5, 0.5), "momentum": 0.0},
    {"ns_coefficients": "polar_express", "ns_steps": 8},
    {"eps": 100.0},
]


def rounding(start: Tensor, want: np.ndarray, steps: int, group: dict[str, Any]) -> float:
    """What roundings of the type may amount to, relative to the change: of the update, which the iteration multiplies
    by its slope at 0 (3.4445^5 = 485 for Muon's polynomial), twice since its Gram matrix is rounded too, and one for
    each of two changes of the parameter in a step."""
    unit = torch.finfo(start.dtype).eps / 2
    slope = np.prod([a for a, _, _ in polynomials(group["ns_steps"], group["ns_coefficients"])])
    own = 2 * steps * np.abs(want).max() / np.abs(want - start.double().numpy()).max()
    return float(unit * (2 * slope + own))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_step_is_its_definition(path: str, settings: dict[str, Any], dtype: torch.dtype) -> None:
    start = matrices(dtype)
    tensors = checks.parameters(start)
    optimiser = Muon(tensors, lr=0.02, **settings)
    checks.train(optimiser, tensors, range(4))
    group = optimiser.param_groups[0]
    wanted = definition(start, 4, group)
    errors = [error_of(*triple) for triple in zip(tensors, start, wanted, strict=True)]
    bounds = [rounding(w, want, 4, group) for w, want in zip(start, wanted, strict=True)]
    print(f"{path}, {dtype}: relative error of four steps at most {max(errors):.1e}, bound {min(bounds):.1e}")
    assert all(error < bound for error, bound in zip(errors, bounds, strict=True))


def test_same_numbers_as_torch_but_for_its_rounding() -> None:
    """torch iterates in bfloat16: its error against float64 is that type's, ours is float32's, and both are printed.
    With ns_dtype=torch.bfloat16 the two differ by roundings of bfloat16 only."""
    start = matrices(torch.float32)
    ours, theirs, rounded = (checks.parameters(start) for _ in range(3))
    optimiser = Muon(ours, lr=0.02)
    for one, tensors in (
        (optimiser, ours),
        (torch.optim.Muon(theirs, lr=0.02), theirs),
        (Muon(rounded, lr=0.02, ns_dtype=torch.bfloat16), rounded),
    ):
        checks.train(one, tensors, range(4))
    wanted = definition(start, 4, optimiser.param_groups[0])
    errors = [
        max(error_of(*triple) for triple in zip(tensors, start, wanted, strict=True))
        for tensors in (ours, theirs, rounded)
    ]
    print("relative errors: subspan {:.1e}, torch.optim.Muon {:.1e}, in bfloat16 {:.1e}".format(*errors))
    assert errors[0] < 2e-5 < errors[1]
    assert errors[2] < 1.5 * errors[1]


def test_float64_iteration_of_float32_parameters() -> None:
    start = matrices(torch.float32)
    errors = []
    for dtype in (None, DOUBLE):
        tensors = checks.parameters(start)
        optimiser = Muon(tensors, lr=0.02, weight_decay=0.0, momentum=0.0, ns_dtype=dtype)
        checks.train(optimiser, tensors, range(1))
        wanted = definition(start, 1, optimiser.param_groups[0])
        errors.append(max(error_of(*triple) for triple in zip(tensors, start, wanted, strict=True)))
    print("float32 iteration {:.1e}, float64 iteration {:.1e}".format(*errors))
    # What remains are the roundings of the update and of W, a change of which is about lr / sqrt(200).
    assert errors[1] < 2**-24 * (2 * 5 / (0.02 / 200**0.5) + 2) and errors[1] <= errors[0] * 1.05


def test_least_norm_counts_for_small_updates(path: str) -> None:
    """Below eps the step becomes linear in the gradient, as in torch; at 0 it is 0."""
    eps, steps = 1e-3, []
    for scale in (1e-9, 1e-10, 1e-25, 0.0):
        weight = torch.nn.Parameter(torch.zeros(12, 7, dtype=DOUBLE))
        weight.grad = normal(1, 12, 7, scale=scale)
        Muon([weight], lr=1.0, weight_decay=0.0, eps=eps).step()
        steps.append(float(weight.detach().norm()))
    # With X = 1e-5 the cubic terms of five steps are below 1e-4 of the linear ones, which grow to 485 X.
    assert steps[0] / steps[1] == pytest.approx(10, rel=1e-4) and steps[1] / steps[2] == pytest.approx(1e15, rel=1e-4)
    assert steps[3] == 0


def test_more_dimensions_are_flattened_and_stacks_are_not(path: str) -> None:
    kernel = normal(1, 6, 4, 3, 3)
    flat, conv, last = (torch.nn.Parameter(kernel.clone()) for _ in range(3))
    flat = torch.nn.Parameter(kernel.reshape(6, 36).clone())
    last = torch.nn.Parameter(kernel.clone().to(memory_format=torch.channels_last))
    stack = torch.nn.Parameter(normal(2, 5, 6, 8))
    alone = [torch.nn.Parameter(part.clone()) for part in stack.detach()]
    optimiser = Muon([{"params": [conv, flat, last, *alone]}, {"params": [stack], "stacked": True}], lr=0.1)
    for step in range(3):
        conv.grad = normal(10 + step, 6, 4, 3, 3)
        last.grad = conv.grad.to(memory_format=torch.channels_last)
        flat.grad = conv.grad.reshape(6, 36)
        stack.grad = normal(20 + step, 5, 6, 8)
        for part, gradient in zip(alone, stack.grad, strict=True):
            part.grad = gradient.clone()
        optimiser.step()
    same(conv.detach().reshape(6, 36), flat.detach(), "flattened")
    same(last.detach().contiguous(), conv.detach(), "channels last")
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(stack.detach(), torch.stack([part.detach() for part in alone]), rtol=0, atol=1e-13)


def test_one_call_for_all_matrices_and_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    from subspan.optim import muon as module

    original = module._native.cpu.muon_step
    monkeypatch.setattr(module._native.cpu, "muon_step", lambda W, *rest: calls.append(len(W)) or original(W, *rest))
    tensors = checks.parameters(matrices(torch.float32)) + checks.parameters(matrices(DOUBLE))
    groups = [{"params": tensors[:4]}, {"params": tensors[4:], "lr": 0.1, "weight_decay": 0.0, "momentum": 0.5}]
    checks.train(Muon(groups, lr=0.02), tensors, range(2))
    assert calls == [len(tensors)] * 2


def test_versions_of_what_changes_go_up(path: str) -> None:
    """So that autograd refuses to use a weight that it saved before a step, packed or not."""
    for weight in (normal(1, 6, 8), normal(1, 8, 6).mT, normal(1, 8, 6)[::2]):
        parameter = torch.nn.Parameter(weight)
        optimiser = Muon([parameter], lr=0.1)
        parameter.grad = normal(2, *weight.shape)
        optimiser.step()
        before = [tensor._version for tensor in (parameter, optimiser.state[parameter]["momentum_buffer"])]
        optimiser.step()
        after = [tensor._version for tensor in (parameter, optimiser.state[parameter]["momentum_buffer"])]
        assert all(two > one for one, two in zip(before, after, strict=True))


def test_groups_have_their_own_settings() -> None:
    start = matrices(DOUBLE, SHAPES[:4])
    tensors = checks.parameters(start)
    settings: list[dict[str, Any]] = [{"lr": 0.1, "momentum": 0.5}, {"ns_steps": 2, "weight_decay": 0.5}]
    optimiser = Muon([{"params": tensors[:2], **settings[0]}, {"params": tensors[2:], **settings[1]}], lr=0.01)
    checks.train(optimiser, tensors, range(3))
    for i, group in enumerate(optimiser.param_groups):
        wanted = definition(start, 3, group)
        for tensor, want in list(zip(tensors, wanted, strict=True))[2 * i : 2 * i + 2]:
            np.testing.assert_allclose(tensor.detach().numpy(), want, rtol=0, atol=1e-12)


def test_rate_as_a_tensor() -> None:
    start = matrices(torch.float32)
    numbers, tensors = checks.parameters(start), checks.parameters(start)
    checks.train(Muon(numbers, lr=0.5), numbers, range(3))
    rate = torch.tensor(0.5)
    checks.train(Muon(tensors, lr=rate), tensors, range(3))
    for one, two in zip(numbers, tensors, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    assert rate == 0.5


def test_lists_without_foreach(monkeypatch: pytest.MonkeyPatch) -> None:
    start = matrices(torch.float32)
    first, second = checks.parameters(start), checks.parameters(start)
    checks.train(Muon(first, lr=0.1), first, range(3))
    for name in ("_lerp", "_lerp_", "_mul_", "_add_"):
        monkeypatch.setattr(_descent, name, None)
    checks.train(Muon(second, lr=0.1), second, range(3))
    checks.all_same(first, second, "foreach")


def test_half_precision() -> None:
    start = matrices(torch.bfloat16)
    tensors = checks.parameters(start)
    optimiser = Muon(tensors, lr=0.05)
    checks.train(optimiser, tensors, range(2))
    wanted = definition(start, 2, optimiser.param_groups[0])
    for tensor, want in zip(tensors, wanted, strict=True):
        assert tensor.dtype == torch.bfloat16
        np.testing.assert_allclose(tensor.detach().double().numpy(), want, rtol=0.02, atol=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_least_squares_are_solved(path: str, dtype: torch.dtype) -> None:
    """min |A W - Y|^2 with A W* = Y. A step has length lr in every direction, so that W comes no closer than about the
    rate, and with a rate that falls as 0.97^t it follows that: the bound is ten times the last rate."""
    A, solution = normal(1, 60, 20, dtype=dtype), normal(2, 20, 12, dtype=dtype)
    Y = A @ solution
    weight = torch.nn.Parameter(torch.zeros(20, 12, dtype=dtype))
    optimiser = Muon([weight], lr=0.3, weight_decay=0.0, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.97)
    for _ in range(300):
        optimiser.zero_grad()
        (A @ weight - Y).square().sum().backward()
        optimiser.step()
        scheduler.step()
    error = float(torch.linalg.matrix_norm(weight.detach() - solution, 2))
    last = optimiser.param_groups[0]["lr"]
    print(f"{path}, {dtype}: |W - W*| = {error:.1e} at a last rate of {last:.1e}")
    assert error < 10 * last


@pytest.mark.parametrize("way", checks.WAYS)
def test_state_goes_on_where_it_was(path: str, way: str) -> None:
    checks.resumes_bitwise(lambda tensors: Muon(tensors, lr=0.1), matrices(torch.float32), way)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    checks.any_threads_same_bits(lambda tensors: Muon(tensors, lr=0.1), matrices(torch.float32))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_stays_in_its_parameter(path: str, value: float) -> None:
    checks.nan_touches_its_own_only(lambda tensors: Muon(tensors, lr=0.1), matrices(torch.float32)[:3], value)


def test_what_torch_asks_of_an_optimizer() -> None:
    checks.behaves_like_an_optimizer(lambda tensors: Muon(tensors, lr=0.1), matrices())
    checks.maximize_is_descent_of_the_negative(lambda tensors, **more: Muon(tensors, lr=0.1, **more), matrices())


def test_weight_decay_is_decoupled() -> None:
    weight = torch.nn.Parameter(normal(1, 4, 6))
    before = weight.detach().clone()
    weight.grad = torch.zeros(4, 6, dtype=DOUBLE)
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(weight.detach(), 0.95 * before, rtol=1e-15, atol=0)


def test_state_of_torchs_own() -> None:
    """What torch.optim.Muon does not have is as when the optimiser was made."""
    parameter = torch.nn.Parameter(normal(1, 12, 20))
    parameter.grad = normal(2, 12, 20)
    before = torch.optim.Muon([parameter], lr=0.1)
    before.step()
    after = Muon([parameter], lr=0.5)
    after.load_state_dict(before.state_dict())
    after.step()
    assert after.param_groups[0]["lr"] == 0.1 and after.param_groups[0]["stacked"] is False
    assert torch.isfinite(parameter).all()


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_rate_of_one_element_has_any_shape(shape: tuple[int, ...]) -> None:
    start = matrices(torch.float32)
    numbers, tensors = checks.parameters(start), checks.parameters(start)
    checks.train(Muon(numbers, lr=0.5), numbers, range(2))
    checks.train(Muon(tensors, lr=torch.full(shape, 0.5)), tensors, range(2))
    for number, tensor in zip(numbers, tensors, strict=True):
        torch.testing.assert_close(tensor, number, rtol=1e-5, atol=1e-6)


def test_parameters_that_share_memory_are_changed_in_turn(path: str) -> None:
    base = normal(1, 80, 80, dtype=DOUBLE)
    both = [torch.nn.Parameter(base), torch.nn.Parameter(base.mT)]
    apart = checks.parameters([normal(1, 80, 80, dtype=DOUBLE)] * 2)
    for i, (own, alone) in enumerate(zip(both, apart, strict=True)):
        own.grad = normal(2 + i, 80, 80, dtype=DOUBLE)
        alone.grad = own.grad.clone()
    start = base.clone()
    Muon(both, lr=0.1, weight_decay=0.0).step()
    Muon(apart, lr=0.1, weight_decay=0.0).step()
    changes = [parameter.detach() - start for parameter in apart]
    torch.testing.assert_close(base, start + changes[0] + changes[1].mT, rtol=0, atol=1e-12)


def test_empty_parameters() -> None:
    tensors = checks.parameters([torch.zeros(*shape) for shape in ((0, 5), (5, 0), (0, 3, 3), (4, 0, 3), (3, 2))])
    checks.train(Muon(tensors, lr=0.1), tensors, range(2))


def test_in_a_compiled_function() -> None:
    tensors, others = checks.parameters(matrices(torch.float32)), checks.parameters(matrices(torch.float32))
    optimiser, other = Muon(tensors, lr=0.1), Muon(others, lr=0.1)
    compiled = torch.compile(optimiser.step, backend="eager")
    for step in range(2):
        for i, (one, two) in enumerate(zip(tensors, others, strict=True)):
            one.grad = two.grad = normal(10 * step + i, *one.shape, dtype=torch.float32)
        compiled()
        other.step()
    for one, two in zip(tensors, others, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "error", "argument"),
    [
        ({"lr": -1.0}, ValueError, "lr"),
        ({"lr": "0.1"}, TypeError, "lr"),
        ({"lr": torch.ones(2)}, ValueError, "lr"),
        ({"momentum": 1.0}, ValueError, "momentum"),
        ({"momentum": -0.1}, ValueError, "momentum"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay"),
        ({"eps": float("nan")}, ValueError, "eps"),
        ({"nesterov": 1}, TypeError, "nesterov"),
        ({"stacked": None}, TypeError, "stacked"),
        ({"ns_steps": 0}, ValueError, "ns_steps"),
        ({"ns_coefficients": (1.0, 2.0)}, ValueError, "ns_coefficients"),
        ({"ns_coefficients": 3}, TypeError, "ns_coefficients"),
        ({"adjust_lr_fn": "rms"}, ValueError, "adjust_lr_fn"),
        ({"ns_dtype": torch.float16}, ValueError, "ns_dtype"),
    ],
    ids=str,
)
def test_bad_settings(settings: dict[str, Any], error: type[Exception], argument: str) -> None:
    checks.refuses(lambda: Muon(checks.parameters(matrices()), **settings), "Muon", argument, error)


def test_bad_parameters() -> None:
    optimiser = Muon(checks.parameters(matrices()))
    for bad, error in ((torch.ones(3), ValueError), (torch.ones(3, 3, dtype=torch.complex64), TypeError)):
        group = {"params": [torch.nn.Parameter(bad)]}
        checks.refuses(lambda group=group: optimiser.add_param_group(group), "Muon", "params", error)
        assert len(optimiser.param_groups) == 1


def test_stacks_of_too_many_dimensions_are_refused_before_a_step() -> None:
    most, more = (torch.nn.Parameter(torch.ones(*[1] * (ndim - 2), 2, 3)) for ndim in (8, 9))
    optimiser = Muon([{"params": [most], "stacked": True}])
    most.grad = torch.ones_like(most)
    optimiser.step()
    checks.refuses(lambda: Muon([more], stacked=True), "Muon", "params", ValueError)
    flat = Muon([more])  # as (1, all others), whatever the dimensions
    more.grad = torch.ones_like(more)
    flat.step()
