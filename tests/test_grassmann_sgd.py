"""GrassmannSGD: the published step, momentum as a tangent vector, and what an optimiser of torch must do."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import subspan
from op_row import same
from sample_arrays import normal
from subspan.optim import GrassmannSGD
from subspan.optim import grassmann as module
from subspan.reference import grassmann as reference

DOUBLE = torch.float64


def bases(classes: int, k: int, n: int, dtype: torch.dtype = DOUBLE, seed: int = 0) -> Tensor:
    """(classes * k, n), orthonormal rows in each class."""
    Q = torch.linalg.qr(normal(seed, classes, n, k)).Q
    return Q.mT.reshape(classes * k, n).contiguous().to(dtype)


def orthonormality(weight: Tensor, k: int) -> float:
    P = weight.detach().double().unflatten(0, (-1, k))
    return float((P @ P.mT - torch.eye(k)).abs().max())


def projector(weight: Tensor, k: int) -> Tensor:
    P = weight.detach().double().unflatten(0, (-1, k))
    return P.mT @ torch.linalg.solve(P @ P.mT, P)


def published_step(weight: Tensor, direction: Tensor, k: int, lr: float) -> Tensor:
    """GCR's update of one parameter, from its description: project, thin SVD, geodesic."""
    P, g = weight.unflatten(0, (-1, k)).mT, direction.unflatten(0, (-1, k)).mT
    g = g - P @ (P.mT @ g)
    U, S, Vh = torch.linalg.svd(g, full_matrices=False)
    moved = (P @ Vh.mT * torch.cos(-lr * S)[..., None, :] + U * torch.sin(-lr * S)[..., None, :]) @ Vh
    return moved.mT.reshape(weight.shape)


@pytest.fixture(params=["kernel", "composite"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "composite":
        monkeypatch.setattr(module, "_kernel_serves", lambda *_: False)
    return str(request.param)


SHAPES = [(5, 3, 20), (4, 1, 9), (2, 8, 300), (3, 4, 6), (1, 16, 2500), (2, 5, 5)]


@pytest.mark.parametrize(("classes", "k", "n"), SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (DOUBLE, 1e-13)], ids=str)
def test_step_without_momentum_is_the_published_step(
    path: str, classes: int, k: int, n: int, dtype: torch.dtype, tolerance: float
) -> None:
    weight = torch.nn.Parameter(bases(classes, k, n, dtype))
    optimiser = GrassmannSGD([weight], lr=0.3, k=k, reorthonormalize_every=1000)
    for step in range(4):
        weight.grad = normal(10 + step, classes * k, n, dtype=dtype)
        expected = published_step(weight.detach().clone(), weight.grad, k, 0.3)
        optimiser.step()
        torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=tolerance)


def test_published_momentum(path: str) -> None:
    """Accumulated as it is and projected at every step, with momentum_transport=False."""
    weight = torch.nn.Parameter(bases(4, 3, 15))
    settings: dict[str, Any] = {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}
    optimiser = GrassmannSGD([weight], lr=0.1, k=3, momentum_transport=False, reorthonormalize_every=3, **settings)
    plain = torch.nn.Parameter(weight.detach().clone())
    euclidean = torch.optim.SGD([plain], lr=0.0, **settings)
    expected = weight.detach().clone()
    for step in range(7):
        weight.grad = plain.grad = normal(step, 12, 15)
        euclidean.step()
        momentum = euclidean.state[plain]["momentum_buffer"]
        expected = published_step(expected, momentum, 3, 0.1)
        optimiser.step()
        torch.testing.assert_close(projector(weight, 3), projector(expected, 3), rtol=0, atol=1e-13)
        torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-13)
        torch.testing.assert_close(optimiser.state[weight]["momentum_buffer"], momentum, rtol=0, atol=1e-13)
        with torch.no_grad():
            plain.copy_(expected)


def reference_step(P: np.ndarray, g: np.ndarray, b: np.ndarray | None, first: bool, group: dict[str, Any]) -> Any:
    """Columns; the definition, by singular value decompositions."""

    def project(v: np.ndarray) -> np.ndarray:
        return v - P @ (P.swapaxes(-1, -2) @ v)

    g = (-g if group["maximize"] else g) + group["weight_decay"] * P
    dampening = 0.0 if first else group["dampening"]
    b = g if b is None else group["momentum"] * b + (1 - dampening) * g
    u = g + group["momentum"] * b if group["nesterov"] else b
    D = -group["lr"] * project(u)
    moved = reference.grassmann_transport(P, D, project(b)) if group["momentum_transport"] else b
    return reference.grassmann_exp(P, D), moved


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("transport", [False, True])
@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize(("classes", "k", "n"), SHAPES)
def test_step_is_its_definition(
    path: str, nesterov: bool, transport: bool, layout: str, classes: int, k: int, n: int
) -> None:
    rows = layout == "rows"
    start = bases(classes, k, n)
    weight = torch.nn.Parameter(start if rows else start.unflatten(0, (classes, k)).mT.contiguous())
    optimiser = GrassmannSGD(
        [weight],
        lr=0.2,
        momentum=0.8,
        dampening=0.0 if nesterov else 0.3,
        weight_decay=0.1,
        nesterov=nesterov,
        k=k,
        layout=layout,
        maximize=True,
        momentum_transport=transport,
    )

    def as_columns(tensor: Tensor) -> np.ndarray:
        tensor = tensor.detach()
        return (tensor.unflatten(0, (classes, k)).mT if rows else tensor).numpy().copy()

    P, b = as_columns(weight), None
    for step in range(4):
        weight.grad = normal(20 + step, *weight.shape)
        P, b = reference_step(P, as_columns(weight.grad), b, step == 0, optimiser.param_groups[0])
        optimiser.step()
        np.testing.assert_allclose(as_columns(weight), P, rtol=0, atol=1e-12)
        np.testing.assert_allclose(as_columns(optimiser.state[weight]["momentum_buffer"]), b, rtol=0, atol=1e-11)


def test_stays_on_the_manifold_in_single_precision(path: str) -> None:
    """Bases orthonormal, momentum tangent, to rounding, after many steps."""
    weight = torch.nn.Parameter(bases(6, 4, 40, torch.float32))
    optimiser = GrassmannSGD([weight], lr=0.05, momentum=0.9, k=4)
    for step in range(200):
        weight.grad = normal(step, 24, 40, dtype=torch.float32)
        optimiser.step()
    momentum = optimiser.state[weight]["momentum_buffer"].double().unflatten(0, (6, 4))
    P = weight.detach().double().unflatten(0, (6, 4))
    assert orthonormality(weight, 4) < 2e-6
    assert float((P @ momentum.mT).abs().max()) < 1e-5 * float(momentum.abs().max())


def test_momentum_keeps_its_length_and_direction(path: str) -> None:
    """With momentum 1 and no further gradients the steps follow one geodesic."""
    weight = torch.nn.Parameter(bases(3, 2, 10))
    optimiser = GrassmannSGD([weight], lr=0.1, momentum=1.0, k=2)
    start = weight.detach().clone()
    first = normal(1, 6, 10)
    for step in range(8):
        weight.grad = first if step == 0 else torch.zeros_like(first)
        optimiser.step()
    expected = published_step(start, first, 2, 0.8)
    torch.testing.assert_close(projector(weight, 2), projector(expected, 2), rtol=0, atol=1e-12)


def test_orthonormalises_at_its_own_steps(path: str) -> None:
    """Counted for each parameter, whatever the others do."""
    crooked = [torch.nn.Parameter(bases(3, 2, 9) + 1e-5 * normal(i, 6, 9)) for i in range(2)]
    optimiser = GrassmannSGD(crooked, lr=1e-3, momentum=0.9, k=2, reorthonormalize_every=3)
    for step in range(1, 7):
        crooked[0].grad = normal(step, 6, 9)
        crooked[1].grad = normal(step, 6, 9) if step > 2 else None
        optimiser.step()
        assert (orthonormality(crooked[0], 2) < 1e-8) == (step >= 3), step
        assert (orthonormality(crooked[1], 2) < 1e-8) == (step >= 5), step


def test_finds_the_dominant_subspace(path: str) -> None:
    A = normal(1, 30, 12)
    covariance = A.mT @ A
    weight = torch.nn.Parameter(bases(1, 3, 12))
    optimiser = GrassmannSGD([weight], lr=0.004, momentum=0.8, k=3, maximize=True)
    for _ in range(400):
        optimiser.zero_grad()
        (weight @ covariance * weight).sum().backward()
        optimiser.step()
    top = torch.linalg.eigh(covariance).eigenvectors[:, -3:]
    torch.testing.assert_close(projector(weight, 3)[0], top @ top.mT, rtol=0, atol=1e-8)


def test_ordinary_parameters_are_updated_as_by_torch() -> None:
    for settings in (
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1},
        {"momentum": 0.9, "nesterov": True, "maximize": True},
    ):
        ours, theirs = (torch.nn.Parameter(normal(1, 4, 5)) for _ in range(2))
        head = torch.nn.Parameter(bases(2, 2, 5))
        optimiser = GrassmannSGD([{"params": [ours]}, {"params": [head], "k": 2}], lr=0.1, **settings)
        expected = torch.optim.SGD([theirs], lr=0.1, **settings)
        for step in range(5):
            ours.grad = theirs.grad = normal(step, 4, 5)
            head.grad = normal(step, 4, 5)
            optimiser.step()
            expected.step()
            torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)
        assert orthonormality(head, 2) < 1e-14


def train(optimiser: GrassmannSGD, weight: Tensor, steps: range) -> None:
    for step in steps:
        weight.grad = normal(step, *weight.shape, dtype=weight.dtype)
        optimiser.step()


@pytest.mark.parametrize("way", ["state_dict", "file", "deepcopy"])
def test_state_goes_on_where_it_was(path: str, way: str) -> None:
    def new() -> tuple[torch.nn.Parameter, GrassmannSGD]:
        weight = torch.nn.Parameter(bases(3, 2, 11, torch.float32))
        return weight, GrassmannSGD([weight], lr=0.1, momentum=0.9, k=2, reorthonormalize_every=4)

    weight, optimiser = new()
    train(optimiser, weight, range(3))
    if way == "deepcopy":
        other_weight, other = copy.deepcopy((weight, optimiser))
    else:
        other_weight, other = new()
        state = copy.deepcopy(optimiser.state_dict())
        if way == "file":
            memory = io.BytesIO()
            torch.save(state, memory)
            memory.seek(0)
            state = torch.load(memory)
        other.load_state_dict(state)
        with torch.no_grad():
            other_weight.copy_(weight)
    train(optimiser, weight, range(3, 9))
    train(other, other_weight, range(3, 9))
    same(other_weight.detach(), weight.detach(), way)
    assert other.state[other_weight]["step"] == 9


def test_any_number_of_threads_gives_the_same_bits() -> None:
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        many = torch.nn.Parameter(bases(40, 4, 300, torch.float32))
        long = torch.nn.Parameter(bases(1, 6, 40000, torch.float32))
        optimiser = GrassmannSGD([{"params": [many], "k": 4}, {"params": [long], "k": 6}], lr=0.1, momentum=0.9)
        for step in range(6):
            for weight in (many, long):
                weight.grad = normal(step, *weight.shape, dtype=torch.float32)
            optimiser.step()
        results.append((many.detach(), long.detach()))
    for result in results[1:]:
        for one, two in zip(result, results[0], strict=True):
            same(one, two, "threads")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_stays_in_its_class(path: str, value: float) -> None:
    clean, weight = (torch.nn.Parameter(bases(4, 2, 20, torch.float32)) for _ in range(2))
    optimisers = [GrassmannSGD([w], lr=0.1, momentum=0.9, k=2, reorthonormalize_every=1) for w in (clean, weight)]
    clean.grad, weight.grad = (normal(1, 8, 20, dtype=torch.float32) for _ in range(2))
    weight.grad[3, 5] = value  # class 1
    for optimiser in optimisers:
        optimiser.step()
    assert weight[2:4].isnan().all() and optimisers[1].state[weight]["momentum_buffer"][2:4].isnan().all()
    rest = [0, 1, 4, 5, 6, 7]
    same(weight.detach()[rest], clean.detach()[rest], "other classes")


def test_parameters_in_any_memory() -> None:
    """Strided parameters are updated in place, and half precision through torch operations."""
    contiguous = torch.nn.Parameter(bases(3, 2, 14))
    block = torch.full((14, 13), float("nan"), dtype=DOUBLE)
    view = block[:, 1::2].T
    view.copy_(contiguous.detach())
    strided = torch.nn.Parameter(view)
    assert strided.data_ptr() == view.data_ptr()
    for weight in (contiguous, strided):
        train(GrassmannSGD([weight], lr=0.1, momentum=0.9, k=2), weight, range(3))
    same(strided.detach(), contiguous.detach(), "strided")
    assert block[:, ::2].isnan().all()
    half = torch.nn.Parameter(bases(3, 2, 14, torch.bfloat16))
    train(GrassmannSGD([half], lr=0.1, momentum=0.9, k=2), half, range(3))
    torch.testing.assert_close(projector(half, 2), projector(contiguous, 2), rtol=0, atol=0.2)
    assert orthonormality(half, 2) < 0.02


def test_autograd_sees_that_the_parameter_changed() -> None:
    weight = torch.nn.Parameter(bases(2, 2, 8))
    loss = weight.square().sum()
    weight.grad = torch.ones_like(weight)
    GrassmannSGD([weight], lr=0.1, k=2).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_closure_scheduler_and_no_gradient() -> None:
    weight, idle = torch.nn.Parameter(bases(2, 2, 8)), torch.nn.Parameter(bases(2, 2, 8, seed=1))
    optimiser = GrassmannSGD([weight, idle], lr=0.1, k=2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimiser, 1, 0.5)
    before = idle.detach().clone()

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = weight.pow(4).sum()
        loss.backward()
        return loss

    assert optimiser.step(closure).detach() > optimiser.step(closure).detach()
    scheduler.step()
    assert optimiser.param_groups[0]["lr"] == 0.05
    same(idle.detach(), before, "no gradient")
    with pytest.raises(ValueError, match=r"GrassmannSGD: params: expected .*, got shape \(3, 8\)"):
        optimiser.add_param_group({"params": [torch.nn.Parameter(torch.ones(3, 8))], "k": 2})
    assert len(optimiser.param_groups) == 1


@pytest.mark.parametrize(
    ("settings", "error", "argument"),
    [
        ({"lr": -1.0}, ValueError, "lr"),
        ({"lr": "0.1"}, TypeError, "lr"),
        ({"momentum": float("nan")}, ValueError, "momentum"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay"),
        ({"dampening": None}, TypeError, "dampening"),
        ({"nesterov": True}, ValueError, "nesterov"),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, ValueError, "nesterov"),
        ({"k": 0}, ValueError, "k"),
        ({"k": 2.0}, TypeError, "k"),
        ({"k": 4}, ValueError, "params"),
        ({"k": 2, "layout": "columns"}, ValueError, "params"),
        ({"k": 2, "layout": "row"}, ValueError, "layout"),
        ({"k": 2, "maximize": 1}, TypeError, "maximize"),
        ({"k": 2, "reorthonormalize_every": 0}, ValueError, "reorthonormalize_every"),
    ],
    ids=str,
)
def test_bad_settings(settings: dict[str, Any], error: type[Exception], argument: str) -> None:
    with pytest.raises(error, match=f"GrassmannSGD: {argument}: expected .+, got .+"):
        GrassmannSGD([torch.nn.Parameter(bases(3, 2, 9))], **settings)


def test_sparse_gradients_are_refused() -> None:
    weight = torch.nn.Parameter(bases(2, 2, 8))
    weight.grad = torch.zeros(4, 8, dtype=DOUBLE).to_sparse()
    with pytest.raises(TypeError, match="GrassmannSGD: params: expected dense gradients"):
        GrassmannSGD([weight], lr=0.1, k=2).step()


def test_no_classes() -> None:
    weight = torch.nn.Parameter(torch.zeros(0, 8))
    weight.grad = torch.zeros(0, 8)
    GrassmannSGD([weight], lr=0.1, momentum=0.9, k=2).step()
    assert subspan.optim.GrassmannSGD is GrassmannSGD
