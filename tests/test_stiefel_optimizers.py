"""StiefelSGD and StiefelAdam: their definition in float64, frames that stay frames, known optima, and what an optimiser
of torch must do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import optimizer_checks as checks
from op_row import same
from sample_arrays import normal
from subspan.composite.stiefel_step import inverse_root
from subspan.optim import StiefelAdam, StiefelSGD
from subspan.optim import stiefel as module
from subspan.reference import descent as reference

DOUBLE = torch.float64
REAL = [torch.float32, DOUBLE]
OPTIMISERS = [StiefelSGD, StiefelAdam]
SHAPES = [(20, 3), (3, 9, 1), (2, 2, 300, 8), (6, 4), (1, 1), (5, 5), (2, 40, 17), (1100, 4)]


def frames(*shape: int, dtype: torch.dtype = DOUBLE, seed: int = 0) -> Tensor:
    return torch.linalg.qr(normal(seed, *shape)).Q.contiguous().to(dtype)


def several(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [frames(*shape, dtype=dtype, seed=i) for i, shape in enumerate([(12, 3), (4, 30, 5), (12, 3), (300, 8)])]


def orthonormality(X: Tensor) -> float:
    X = X.detach().double()
    return float((X.mT @ X - torch.eye(X.shape[-1], dtype=DOUBLE)).abs().max())


@pytest.fixture(params=["kernel", "composite"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "composite":
        monkeypatch.setattr(module, "_by_path", lambda jobs: ([], jobs))
    return str(request.param)


# --- the definition ---

SGD_SETTINGS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.8, "dampening": 0.3},
    {"momentum": 0.8, "nesterov": True},
]


@pytest.mark.parametrize("settings", SGD_SETTINGS, ids=str)
@pytest.mark.parametrize("metric", ["euclidean", "canonical"])
@pytest.mark.parametrize("retraction", ["qr", "polar"])
@pytest.mark.parametrize("layout", ["columns", "rows"])
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_sgd_is_its_definition(
    path: str, settings: dict[str, Any], metric: str, retraction: str, layout: str, dtype: torch.dtype
) -> None:
    """Rounding of X and of the buffer at each of four steps is not amplified: 30 units bound the sum."""
    for shape in SHAPES:
        start = frames(*shape, dtype=dtype)
        weight = torch.nn.Parameter(
            start.mT.clone(memory_format=torch.contiguous_format) if layout == "rows" else start.clone()
        )
        optimiser = StiefelSGD([weight], lr=0.2, metric=metric, retraction=retraction, layout=layout, **settings)
        group = optimiser.param_groups[0]
        X, b = start.double().numpy(), None
        for step in range(4):
            G = normal(20 + step, *shape, dtype=dtype, scale=shape[-2] ** -0.5)
            weight.grad = G.mT.contiguous() if layout == "rows" else G
            optimiser.step()
            rest = (group["lr"], group["momentum"], group["dampening"], group["nesterov"], retraction, metric)
            X, b = reference.stiefel_sgd_step(X, G.double().numpy(), b, *rest)
        got = weight.detach().double().numpy()
        unit = torch.finfo(dtype).eps
        np.testing.assert_allclose(got.swapaxes(-1, -2) if layout == "rows" else got, X, rtol=0, atol=30 * unit)
        if settings:
            buffer = optimiser.state[weight]["momentum_buffer"].double().numpy()
            buffer = buffer.swapaxes(-1, -2) if layout == "rows" else buffer
            np.testing.assert_allclose(buffer, b, rtol=0, atol=60 * unit * max(1.0, float(np.abs(b).max())))


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("metric", ["euclidean", "canonical"])
@pytest.mark.parametrize("layout", ["columns", "rows"])
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_adam_is_its_definition(path: str, amsgrad: bool, metric: str, layout: str, dtype: torch.dtype) -> None:
    betas, eps = (0.8, 0.95), 1e-6
    for i, shape in enumerate(SHAPES):
        if shape == (1, 1):  # its tangent space is a point; rounding would be divided by eps
            continue
        retraction = ("qr", "polar")[i % 2]
        start = frames(*shape, dtype=dtype)
        weight = torch.nn.Parameter(
            start.mT.clone(memory_format=torch.contiguous_format) if layout == "rows" else start.clone()
        )
        optimiser = StiefelAdam([weight], 0.1, betas, eps, amsgrad, metric=metric, retraction=retraction, layout=layout)
        X, m, v, most = start.double().numpy(), np.zeros(shape), np.zeros((*shape[:-2], 1, 1)), None
        for step in range(1, 5):
            G = normal(20 + step, *shape, dtype=dtype, scale=2.0 / step)
            weight.grad = G.mT.contiguous() if layout == "rows" else G
            optimiser.step()
            X, m, v, most = reference.stiefel_adam_step(
                X, G.double().numpy(), m, v, most if amsgrad else None, step, 0.1, betas, eps, retraction, metric
            )
        got = weight.detach().double().numpy()
        np.testing.assert_allclose(
            got.swapaxes(-1, -2) if layout == "rows" else got, X, rtol=0, atol=50 * torch.finfo(dtype).eps
        )
        state = optimiser.state[weight]
        unit = 30 * torch.finfo(dtype).eps
        np.testing.assert_allclose(state["second_moment"].double().numpy(), v, rtol=unit, atol=unit * 1e-3)
        assert state["step"] == 4
        if amsgrad:
            np.testing.assert_allclose(state["largest_second_moment"].double().numpy(), most, rtol=unit, atol=unit)


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_geoopt_takes_the_same_steps(kind: type) -> None:
    """On its Euclidean Stiefel manifold, with a first momentum of 0, which geoopt lets begin as the gradient."""
    geoopt = pytest.importorskip("geoopt")
    start = frames(4, 30, 5)
    theirs = geoopt.ManifoldParameter(start.clone(), manifold=geoopt.Stiefel(canonical=False))
    ours = torch.nn.Parameter(start.clone())
    if kind is StiefelSGD:
        pair = StiefelSGD([ours], 0.1, momentum=0.9), geoopt.optim.RiemannianSGD([theirs], 0.1, momentum=0.9)
        pair[1].state[theirs]["momentum_buffer"] = torch.zeros_like(start)
    else:
        pair = StiefelAdam([ours], 0.1), geoopt.optim.RiemannianAdam([theirs], 0.1)
    for step in range(5):
        ours.grad = normal(step, 4, 30, 5)
        theirs.grad = ours.grad.clone()
        for optimiser in pair:
            optimiser.step()
    torch.testing.assert_close(ours.detach(), theirs.detach().as_subclass(Tensor), rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_one_tensor_or_many_parameters(path: str, kind: type) -> None:
    start = frames(7, 40, 4, dtype=torch.float32)
    whole, alone = torch.nn.Parameter(start.clone()), checks.parameters(list(start))
    optimisers = kind([whole], lr=0.1), kind(alone, lr=0.1)
    for step in range(3):
        whole.grad = normal(step, 7, 40, 4, dtype=torch.float32)
        for one, gradient in zip(alone, whole.grad, strict=True):
            one.grad = gradient.clone()
        for optimiser in optimisers:
            optimiser.step()
    stacked = torch.stack([one.detach() for one in alone])
    if path == "kernel":
        same(stacked, whole.detach(), "many")
    torch.testing.assert_close(stacked, whole.detach(), rtol=0, atol=1e-6)


def test_one_call_of_the_kernel_for_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = module._native.cpu.stiefel_step
    monkeypatch.setattr(module._native.cpu, "stiefel_step", lambda X, *rest: calls.append(len(X)) or original(X, *rest))
    tensors = checks.parameters(several())
    checks.train(StiefelAdam(tensors, lr=0.1), tensors, range(2))
    assert calls == [4, 4]


@pytest.mark.parametrize("size", [1, 2, 8, 33])
def test_inverse_root(size: int) -> None:
    Q, values = frames(size, size), torch.logspace(0, 8, size, dtype=DOUBLE)
    G = (Q * values) @ Q.mT
    torch.testing.assert_close(inverse_root(G), (Q * values.rsqrt()) @ Q.mT, rtol=0, atol=1e-9)


@pytest.mark.parametrize("retraction", ["qr", "polar"])
@pytest.mark.parametrize("length", [1e-12, 1.0, 1e3, 1e5])
def test_steps_of_any_length_end_in_a_frame(path: str, retraction: str, length: float) -> None:
    for shape in ((30, 4), (40, 20), (300, 8)):
        weight = torch.nn.Parameter(frames(*shape))
        weight.grad = normal(1, *shape)
        StiefelSGD([weight], lr=length, retraction=retraction).step()
        # The squared condition number of X - lr u, up to (|u| lr)^2, times a rounding, is lost at once.
        assert orthonormality(weight) < 1e-14 + 1e-16 * (30 * length) ** 2 * 1e-2 + 1e-13


# --- frames stay frames, momentum stays tangent ---


@pytest.mark.parametrize("kind", OPTIMISERS)
@pytest.mark.parametrize("retraction", ["qr", "polar"])
def test_no_drift_in_a_hundred_thousand_steps(kind: type, retraction: str) -> None:
    """In float32; every retraction starts from the products of X itself, so that the distance is that of one step:
    roundings of entries and of products, a few units."""
    start = frames(3, 6, 2, dtype=torch.float32)
    weight = torch.nn.Parameter(start.clone())
    optimiser = kind([weight], lr=0.01, retraction=retraction)
    gradients = [normal(step, 3, 6, 2, dtype=torch.float32) for step in range(50)]
    worst = 0.0
    for step in range(100_000):
        weight.grad = gradients[step % 50]
        optimiser.step()
        if step % 10_000 == 9_999:
            worst = max(worst, orthonormality(weight))
    print(f"{kind.__name__}, {retraction}: |Q^T Q - I| at most {worst:.1e} in 10^5 steps")
    assert worst < 1e-6


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_stays_on_the_manifold_in_single_precision(path: str, kind: type) -> None:
    weight = torch.nn.Parameter(frames(3, 200, 8, dtype=torch.float32))
    optimiser = kind([weight], lr=0.05, **({"momentum": 0.9} if kind is StiefelSGD else {}))
    checks.train(optimiser, [weight], range(200))
    X, b = weight.detach().double(), optimiser.state[weight]["momentum_buffer"].double()
    along = X.mT @ b
    print(f"{path}: |Q^T Q - I| {orthonormality(weight):.1e}")
    assert orthonormality(weight) < 5e-7
    assert float((along + along.mT).abs().max()) < 1e-5 * float(b.abs().max())


def test_deviations_go_with_the_first_step(path: str) -> None:
    for retraction in ("qr", "polar"):
        weight = torch.nn.Parameter(frames(20, 4) + 0.01 * normal(1, 20, 4))
        weight.grad = normal(2, 20, 4)
        StiefelSGD([weight], lr=0.01, retraction=retraction).step()
        assert orthonormality(weight) < 1e-14


# --- known optima ---

Settings = tuple[type, dict[str, Any]]
TRIED: list[Settings] = [
    (StiefelSGD, {"lr": 0.02, "momentum": 0.8}),
    (StiefelSGD, {"lr": 0.02, "momentum": 0.8, "nesterov": True, "metric": "canonical", "retraction": "polar"}),
    (StiefelAdam, {"lr": 0.05, "betas": (0.9, 0.98)}),
    (StiefelAdam, {"lr": 0.05, "amsgrad": True, "metric": "canonical", "retraction": "polar"}),
]


def minimise(loss: Callable[[Tensor], Tensor], start: Tensor, settings: Settings, steps: int = 1000) -> Tensor:
    """With a rate that falls by 3 % at every step of the second half, to 2e-7 of itself: steps of Adam have the length
    of the rate, and come no closer than that."""
    kind, more = settings
    weight = torch.nn.Parameter(start.clone())
    optimiser = kind([weight], **more)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda t: 0.97 ** max(0, t - steps // 2))
    for _ in range(steps):
        optimiser.zero_grad()
        loss(weight).backward()
        optimiser.step()
        scheduler.step()
    return weight.detach()


@pytest.mark.parametrize("settings", TRIED, ids=str)
def test_ordered_eigenvectors(settings: Settings) -> None:
    """Brockett's function tr(X^T A X N) is least at eigenvectors in the order of N, up to signs."""
    A = torch.diag(torch.arange(1.0, 9.0, dtype=DOUBLE))
    Q = frames(8, 8, seed=3)
    A, N = Q @ A @ Q.mT, torch.tensor([3.0, 2.0, 1.0], dtype=DOUBLE)
    X = minimise(lambda X: ((A @ X) * X * N).sum(), frames(8, 3, seed=1), settings)
    error = float(((Q[:, :3].mT @ X).abs() - torch.eye(3, dtype=DOUBLE)).abs().max())
    print(f"{settings}: distance from the eigenvectors {error:.1e}")
    # The slowest direction shrinks by 1 - 0.02 a step without momentum: below 1e-4 after 500, and with it far below.
    assert error < 1e-6


@pytest.mark.parametrize("settings", TRIED, ids=str)
def test_leading_eigenspace(settings: Settings) -> None:
    Q = frames(12, 12, seed=3)
    A = (Q * torch.arange(12.0, 0.0, -1.0, dtype=DOUBLE)) @ Q.mT
    X = minimise(lambda X: -((A @ X) * X).sum() / 2, frames(12, 4, seed=1), settings)
    error = float((X @ X.mT - Q[:, :4] @ Q[:, :4].mT).abs().max())
    print(f"{settings}: distance of the projectors {error:.1e}")
    assert error < 1e-6


@pytest.mark.parametrize("settings", TRIED, ids=str)
def test_orthogonal_procrustes(settings: Settings) -> None:
    """min |A X - B|^2 over frames with A^T A = I is the polar factor of A^T B."""
    A, B = frames(15, 10, seed=1), normal(2, 15, 3)
    U, _, Vh = torch.linalg.svd(A.mT @ B, full_matrices=False)
    start = minimise(lambda X: (A @ X - B).square().sum() / 2, frames(10, 3, seed=3), settings)
    error = float((start - U @ Vh).abs().max())
    print(f"{settings}: distance from the polar factor {error:.1e}")
    assert error < 1e-6


# --- what an optimiser of torch must do ---


def made(kind: type, **more: Any) -> Callable[..., torch.optim.Optimizer]:
    own = {"momentum": 0.9, "dampening": 0.1} if kind is StiefelSGD else {"amsgrad": True}
    return lambda tensors, **rest: kind(tensors, lr=0.05, **own, **more, **rest)


@pytest.mark.parametrize("kind", OPTIMISERS)
@pytest.mark.parametrize("way", checks.WAYS)
def test_state_goes_on_where_it_was(path: str, kind: type, way: str) -> None:
    checks.resumes_bitwise(made(kind), several(), way)
    checks.resumes_bitwise(made(kind), several(torch.bfloat16), way)
    if kind is StiefelAdam:
        checks.resumes_bitwise(made(kind, capturable=True), several(), way)


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_any_number_of_threads_gives_the_same_bits(kind: type) -> None:
    start = [frames(40, 300, 4, dtype=torch.float32), frames(40000, 6, dtype=torch.float32), *several()]
    checks.any_threads_same_bits(made(kind), start)


@pytest.mark.parametrize("kind", OPTIMISERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_stays_in_its_frame(path: str, kind: type, value: float) -> None:
    checks.nan_touches_its_own_only(made(kind), several()[:3], value)
    clean, weight = checks.parameters([several()[1]] * 2)
    for tensor in (clean, weight):
        tensor.grad = normal(1, *tensor.shape, dtype=torch.float32)
        if tensor is weight:
            tensor.grad[2, 5, 1] = value
        optimiser = made(kind)([tensor])
        optimiser.step()
    assert weight[2].isnan().all() and optimiser.state[weight]["momentum_buffer"][2].isnan().all()
    rest = [0, 1, 3]
    same(weight.detach()[rest], clean.detach()[rest], "other frames")


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_what_torch_asks_of_an_optimizer(kind: type) -> None:
    checks.behaves_like_an_optimizer(made(kind), several(DOUBLE))
    checks.maximize_is_descent_of_the_negative(made(kind), several())


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_groups_rates_as_tensors_and_types(kind: type) -> None:
    first, second = several(DOUBLE), several(DOUBLE)
    groups = [{"params": checks.parameters(first[:2]), "lr": torch.tensor(0.1, dtype=DOUBLE)}]
    groups.append({"params": checks.parameters(first[2:]), "lr": 0.3, "retraction": "polar"})
    together = [tensor for group in groups for tensor in group["params"]]
    checks.train(kind(groups), together, range(3))
    for part, lr, retraction in ((slice(0, 2), 0.1, "qr"), (slice(2, 4), 0.3, "polar")):
        alone = checks.parameters(second)
        checks.train(kind(alone, lr=lr, retraction=retraction), alone, range(3))
        checks.all_same(together[part], alone[part], "group")


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_parameters_in_any_memory(kind: type) -> None:
    start = frames(9, 2)
    contiguous = torch.nn.Parameter(start.clone())
    block = torch.full((18, 5), float("nan"), dtype=DOUBLE)
    view = block[::2, 1::2]
    view.copy_(start)
    strided = torch.nn.Parameter(view)
    for weight in (contiguous, strided):
        checks.train(kind([weight], lr=0.1), [weight], range(3))
    same(strided.detach(), contiguous.detach(), "strided")
    assert block[1::2].isnan().all() and block[:, ::2].isnan().all()
    half = torch.nn.Parameter(frames(9, 2, dtype=torch.bfloat16))
    checks.train(kind([half], lr=0.1), [half], range(3))
    assert half.dtype == torch.bfloat16 and orthonormality(half) < 0.03
    torch.testing.assert_close(half.detach().double(), contiguous.detach(), rtol=0, atol=0.05)


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_in_a_compiled_function_and_empty(kind: type) -> None:
    empty = checks.parameters([torch.zeros(0, 5, 2), torch.zeros(5, 0)])
    checks.train(kind(empty, lr=0.1), empty, range(2))
    first, second = checks.parameters(several()), checks.parameters(several())
    optimisers = kind(first, lr=0.1), kind(second, lr=0.1)
    steps = torch.compile(optimisers[0].step, backend="eager"), optimisers[1].step
    for step in range(2):
        for i, (one, two) in enumerate(zip(first, second, strict=True)):
            one.grad = two.grad = normal(10 * step + i, *one.shape, dtype=torch.float32)
        for take in steps:
            take()
    for one, two in zip(first, second, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_amsgrad_asked_for_later() -> None:
    tensors = checks.parameters(several())
    optimiser = StiefelAdam(tensors, lr=0.1)
    checks.train(optimiser, tensors, range(2))
    optimiser.param_groups[0]["amsgrad"] = True
    checks.train(optimiser, tensors, range(2, 4))
    state = optimiser.state[tensors[0]]
    assert (state["largest_second_moment"] >= state["second_moment"]).all()


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"lr": -1.0}, ValueError, "lr"),
    ({"lr": "0.1"}, TypeError, "lr"),
    ({"weight_decay": 0.1}, ValueError, "weight_decay"),
    ({"retraction": "svd"}, ValueError, "retraction"),
    ({"metric": "flat"}, ValueError, "metric"),
    ({"layout": "rows"}, ValueError, "params"),
    ({"layout": None}, ValueError, "layout"),
    ({"maximize": 1}, TypeError, "maximize"),
]
BAD_SGD = [
    ({"momentum": float("nan")}, ValueError, "momentum"),
    ({"momentum": -0.1}, ValueError, "momentum"),
    ({"dampening": None}, TypeError, "dampening"),
    ({"nesterov": True}, ValueError, "nesterov"),
    ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, ValueError, "nesterov"),
]
BAD_ADAM = [
    ({"betas": 0.9}, ValueError, "betas"),
    ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\]"),
    ({"eps": 0.0}, ValueError, "eps"),
    ({"amsgrad": 1}, TypeError, "amsgrad"),
    ({"capturable": 1}, TypeError, "capturable"),
]


@pytest.mark.parametrize(
    ("kind", "bad"),
    [(kind, bad) for kind in OPTIMISERS for bad in BAD]
    + [(StiefelSGD, bad) for bad in BAD_SGD]
    + [(StiefelAdam, bad) for bad in BAD_ADAM],
    ids=str,
)
def test_bad_settings(kind: type, bad: tuple[dict[str, Any], type[Exception], str]) -> None:
    settings, error, argument = bad
    checks.refuses(lambda: kind(checks.parameters(several()), **settings), kind.__name__, argument, error)


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_bad_parameters(kind: type) -> None:
    optimiser = kind(checks.parameters(several()))
    wide, crooked = torch.eye(3)[:2], torch.ones(4, 2)
    for bad, error in (
        (wide, ValueError),
        (crooked, ValueError),
        (torch.ones(3), ValueError),
        (torch.full((3, 2), float("nan")), ValueError),
        (torch.eye(3, dtype=torch.complex64), TypeError),
    ):
        group = {"params": [torch.nn.Parameter(bad)]}
        checks.refuses(lambda group=group: optimiser.add_param_group(group), kind.__name__, "params", error)
        assert len(optimiser.param_groups) == 1
    with pytest.raises(
        ValueError, match=r"weight_decay: expected 0, got 0\.1: X is orthogonal to every tangent vector"
    ):
        kind(checks.parameters(several()), weight_decay=0.1)
