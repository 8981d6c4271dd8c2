"""Rates over a process group: two processes with gloo against one process with all samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import distributed_worker as worker
import subspan
from distributed_worker import DTYPES, EPS2, FEATURES, RATES, SAMPLES, SPLITS, Tensors
from gloo_processes import WORLD, results_of
from op_row import SAFETY

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch.distributed is not available", allow_module_level=True)

pytestmark = pytest.mark.no_sanitizer
Found = dict[str, dict[str, Tensors]]


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """What each of two processes found."""
    return results_of(worker.__file__, tmp_path_factory.mktemp("distributed"))


@pytest.fixture
def alone() -> Iterator[Any]:
    """A group of this process only."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


def membership_parts(Z: torch.Tensor, membership: torch.Tensor) -> torch.Tensor:
    """worker.reduction_parts of a membership, as the paper has it: Yu et al. 2020, equations (4) and (5)."""
    samples, features = Z.shape[-2:]
    mass = membership.sum(-1)
    some = mass > 0
    alpha = torch.where(some, features / EPS2 / torch.where(some, mass, 1), 0)
    grams = torch.einsum("...ni,...kn,...nj->...kij", Z, membership, Z)
    rates = 0.5 * torch.logdet(torch.eye(features, dtype=Z.dtype) + alpha[..., None, None] * grams)
    whole = torch.logdet(torch.eye(features, dtype=Z.dtype) + features / (samples * EPS2) * Z.mT @ Z)
    rate, compressed = 0.5 * whole, (mass * rates).sum(-1) / samples
    return torch.stack([rate - 0.7 * compressed, rate, compressed])


def single(name: str) -> Callable[..., torch.Tensor]:
    """The rate on one process, as a function that takes a group like the others."""
    if name.endswith("membership"):
        return lambda group, *arguments: membership_parts(*arguments)
    rate = RATES[name][0]
    return lambda group, *arguments: rate(None, *arguments)


def expected(name: str, arguments: Tensors) -> Tensors:
    """Value, and gradients of the sum of the processes' losses, in float64 from all samples."""
    arguments = {key: value.double() if value.is_floating_point() else value for key, value in arguments.items()}
    names = [key for key, value in arguments.items() if value.is_floating_point()]
    arguments |= {key: arguments[key].requires_grad_() for key in names}
    value = single(name)(None, *arguments.values())
    total = sum(worker.upstream(value, rank) for rank in range(WORLD))
    gradients = torch.autograd.grad(value, [arguments[key] for key in names], total)
    return {"value": value.detach()} | dict(zip(names, gradients, strict=True))


def joined(processes: list[Found], check: str, case: str, key: str) -> torch.Tensor:
    """The samples' gradients of all processes side by side."""
    return torch.cat([process["first"][check][f"{case}/{key}"] for process in processes], -2 if key == "Z" else -1)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, relative: float, what: str) -> None:
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error <= relative, f"{what}: relative error {error:.3g}, allowed {relative:.3g}"


def precision(dtype: torch.dtype) -> float:
    """Relative to the largest entry: everything is float64 until the result is rounded."""
    return 1e-12 if dtype == torch.float64 else torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", RATES)
def test_one_process_with_all_samples(processes: list[Found], name: str, split: str, dtype: str) -> None:
    case = f"{name}/{split}/{dtype}"
    truth = expected(name, worker.whole(name, DTYPES[dtype]))
    for process in processes:
        value = process["first"]["every_rate"][f"{case}/value"]
        assert value.dtype == (torch.float64 if dtype == "float64" else torch.float32)
        assert_close(value, truth["value"], precision(value.dtype), case)
    for key in truth.keys() - {"value"}:
        found = joined(processes, "every_rate", case, key)
        assert found.dtype == DTYPES[dtype]
        assert_close(found, truth[key], precision(found.dtype), f"{case}: gradient of {key}")


def test_all_processes_have_the_same_bits(processes: list[Found]) -> None:
    first, second = (process["first"]["every_rate"] for process in processes)
    values = [case for case in first if case.endswith("/value")]
    assert len(values) == len(RATES) * len(SPLITS) * len(DTYPES)
    for case in values:
        assert torch.equal(first[case], second[case]), case


def test_every_run_has_the_same_bits(processes: list[Found]) -> None:
    for process in processes:
        for check, results in process["again"].items():
            for case, result in results.items():
                assert torch.equal(result, process["first"][check][case]), f"{check}: {case}"


@pytest.mark.parametrize("name", [name for name in RATES if not name.startswith("batched")])
def test_second_derivatives(processes: list[Found], name: str) -> None:
    own = torch.tensor([1.0] * 16 + [2.0] * 7, dtype=torch.float64)
    truth = WORLD**2 * worker.penalty(single(name), None, worker.whole(name, torch.float64), own)
    found = torch.cat([process["first"]["second_derivatives"][name] for process in processes])
    assert_close(found, truth, 1e-11, name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("split", SPLITS)
def test_data_parallel_averages_to_the_gradient_of_one_process(
    processes: list[Found], split: str, dtype: torch.dtype
) -> None:
    model, data = worker.model_and_input(dtype)
    model = model.double()
    worker.loss_of(None, model(data.double()), worker.whole("labels", dtype)["labels"]).backward()
    relative = 1e-10 if dtype == torch.float64 else SAFETY * SAMPLES * torch.finfo(dtype).eps
    for name, parameter in model.named_parameters():
        for process in processes:
            found = process["first"]["data_parallel"][f"{split}/{dtype}/{name}"]
            assert parameter.grad is not None
            assert_close(found, parameter.grad, relative, name)


def test_autocast_leaves_gram_matrices_alone(processes: list[Found]) -> None:
    found = [process["first"]["autocast"] for process in processes]
    features = torch.cat([part["features"] for part in found])
    assert features.dtype == torch.bfloat16
    Z = features.double().requires_grad_()
    rate = subspan.coding_rate(Z, EPS2)
    (gradient,) = torch.autograd.grad(rate, Z)
    for part in found:
        assert_close(part["value"], rate.detach(), torch.finfo(torch.float32).eps, "rate")
    halves = torch.cat([part["gradient"] for part in found])
    assert_close(halves, WORLD * gradient, torch.finfo(torch.bfloat16).eps, "gradient")


@pytest.mark.parametrize("name", [name for name in RATES if name.startswith("batched")])
def test_nan_of_one_process_is_everywhere_in_its_item(processes: list[Found], name: str) -> None:
    truth = expected(name, worker.whole(name, torch.float64))
    for process in processes:
        value = process["first"]["not_finite"][f"{name}/value"]
        assert value[..., 0].isnan().all()
        assert_close(value[..., 1], truth["value"][..., 1], 1e-12, name)
    for key in truth.keys() - {"value"}:
        gradient = joined(processes, "not_finite", name, key)
        assert gradient[0].isnan().all(), key
        assert_close(gradient[1], truth[key][1], 1e-12, key)


def test_collapsed_single_precision_features(processes: list[Found]) -> None:
    Z = worker.collapsed_features()
    ordered = torch.cat([Z[0::2], Z[1::2]]).double()
    labels = torch.arange(2).repeat_interleave(20)
    for process in processes:
        found = process["first"]["collapsed"]
        eps = torch.finfo(torch.float32).eps
        assert_close(found["value"], worker.coding_rate(None, ordered), eps, "rate")
        assert_close(found["labels"], worker.reduction_parts(None, ordered, labels), eps, "rate reduction")


@pytest.mark.parametrize("name", [name for name in RATES if not name.startswith("batched")])
def test_compiled(processes: list[Found], name: str) -> None:
    truth = expected(name, worker.whole(name, torch.float64))
    for process in processes:
        assert_close(process["first"]["compiled"][f"{name}/value"], truth["value"], 1e-12, name)
    for key in truth.keys() - {"value"}:
        assert_close(joined(processes, "compiled", name, key), truth[key], 1e-12, f"{name}: gradient of {key}")


def test_mapped(processes: list[Found]) -> None:
    arguments = worker.whole("batched labels", torch.float64)
    Z = arguments["Z"].requires_grad_()
    value = worker.reduction_parts(None, Z, arguments["labels"])[0]
    (gradient,) = torch.autograd.grad(value.sum(), Z)
    found = [process["first"]["mapped"] for process in processes]
    for part in found:
        assert_close(part["value"], value, 1e-12, "value")
    assert_close(torch.cat([part["gradient"] for part in found], -2), WORLD * gradient, 1e-12, "gradient")


# --- a group of one process -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in RATES if not name.startswith("batched")])
def test_derivatives(alone: Any, name: str) -> None:
    torch.set_num_threads(1)
    arguments = worker.whole(name, torch.float64)
    names = [key for key, value in arguments.items() if value.is_floating_point()]
    arguments = {key: value[..., :5, :3] if key == "Z" else value[..., :5] for key, value in arguments.items()}
    # Weights are only defined from 0 on.
    leaves = [(arguments[key] + (0.1 if key != "Z" else 0)).requires_grad_() for key in names]

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        return RATES[name][0](alone, *(arguments | dict(zip(names, tensors, strict=True))).values())

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("samples", [0, 1, 3])
@pytest.mark.parametrize("name", ["rate", "weighted", "labels", "membership"])
def test_few_samples_and_no_weight(alone: Any, name: str, samples: int) -> None:
    arguments = worker.part(worker.whole(name, torch.float64), (samples,), 0)
    if "weights" in arguments:
        arguments["weights"].zero_()
    rate = RATES[name][0]
    found = worker.differentiated("", dict(arguments), rate, alone, 0)
    if samples == 0 or name == "weighted":
        assert all(not result.any() for result in found.values())
    else:
        truth = worker.differentiated("", dict(arguments), single(name), None, 0)
        for key, result in found.items():
            torch.testing.assert_close(result, truth[key], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0), (0, 0, 0)], ids=str)
def test_empty(alone: Any, shape: tuple[int, ...]) -> None:
    Z = torch.randn(shape, requires_grad=True)
    labels = torch.zeros(shape[:-1], dtype=torch.int64)
    membership = torch.ones(*shape[:-2], worker.CLASSES, shape[-2])
    for value in (worker.coding_rate(alone, Z), worker.coding_rate(alone, Z, torch.ones(shape[:-1]))):
        assert torch.equal(value, torch.zeros(shape[0]))
        assert torch.autograd.grad(value.sum(), Z)[0].shape == shape
    for value in (worker.reduction_parts(alone, Z, labels), worker.reduction_parts(alone, Z, membership)):
        assert torch.equal(value, torch.zeros(3, shape[0]))
        assert torch.autograd.grad(value.sum(), Z)[0].shape == shape


def test_any_strides_and_broadcast_batches(alone: Any) -> None:
    Z = torch.randn(SAMPLES, 2 * FEATURES, 3, dtype=torch.float64).permute(2, 0, 1)[:, ::2, ::2]
    labels = torch.arange(Z.shape[-2], dtype=torch.uint8).remainder(worker.CLASSES)
    weights = torch.rand(2, 1, Z.shape[-2], dtype=torch.float64)
    for rate, other in ((worker.coding_rate, weights), (worker.reduction_parts, labels)):
        torch.testing.assert_close(rate(alone, Z, other), rate(None, Z, other), rtol=1e-12, atol=1e-12)


def test_traffic(alone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One all-reduce of triangles, masses and a count; one of a number per rate in the backward pass."""
    sent: list[int] = []
    all_reduce = torch.distributed.all_reduce

    def recorded(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append(tensor.numel() * tensor.element_size())
        return all_reduce(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.distributed, "all_reduce", recorded)
    triangle = 4 * FEATURES * (FEATURES + 1)
    for name, forward, backward in (
        ("rate", triangle + 8, 8),
        ("weighted", triangle + 8, 8),
        ("labels", worker.CLASSES * triangle + 8 * (worker.CLASSES + 1), 16),
        ("membership", (worker.CLASSES + 1) * triangle + 8 * (worker.CLASSES + 1), 16),
    ):
        sent.clear()
        worker.differentiated("", worker.whole(name, torch.float32), RATES[name][0], alone, 0)
        assert sent == [forward, backward], name


def test_status(alone: Any) -> None:
    Z = torch.randn(2, 5, 3)
    Z[1, 0, 0] = torch.nan
    rate, info = subspan.coding_rate(Z, EPS2, return_info=True, group=alone)
    assert info.tolist() == [0, -1]
    assert rate.isnan().tolist() == [False, True]


@pytest.mark.parametrize("d", range(6))
def test_packed_triangles(d: int) -> None:
    from subspan.composite.distributed import pack, unpack

    matrices = torch.randn(2, 3, d, d)
    matrices = matrices + matrices.mT
    assert pack(matrices).shape == (2, 3, d * (d + 1) // 2)
    assert torch.equal(unpack(pack(matrices), d), matrices)


def rate_of(Z: Any, **arguments: Any) -> Any:
    return subspan.coding_rate(Z, EPS2, **arguments)


def reduction_of(Z: Any, labels: Any, **arguments: Any) -> Any:
    return subspan.rate_reduction(Z, labels, EPS2, **arguments)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "coding_rate: group: expected None .* ndarray", lambda g: rate_of(np.eye(3), group=g)),
        (TypeError, "coding_rate: group: .*process group.* got str", lambda g: rate_of(torch.eye(3), group="gloo")),
        (ValueError, "coding_rate: side: .*got 'samples'", lambda g: rate_of(torch.eye(3), side="samples", group=g)),
        (
            ValueError,
            "coding_rate: weights: expected nonnegative values, got -1.0",
            lambda g: rate_of(torch.eye(3), weights=-torch.ones(3), group=g),
        ),
        (
            ValueError,
            "rate_reduction: group: expected None .* ndarray",
            lambda g: reduction_of(np.eye(3), np.arange(3), num_classes=3, group=g),
        ),
        (
            ValueError,
            "rate_reduction: num_classes: .*got None",
            lambda g: reduction_of(torch.eye(3), torch.arange(3), group=g),
        ),
        (
            ValueError,
            r"rate_reduction: labels: expected values in 0 ... 1, got 2",
            lambda g: reduction_of(torch.eye(3), torch.arange(3), num_classes=2, group=g),
        ),
        (
            ValueError,
            r"rate_reduction: labels: expected a membership .*got membership \(3, 2\)",
            lambda g: reduction_of(torch.eye(3), torch.ones(3, 2), group=g),
        ),
        (
            ValueError,
            r"rate_reduction: num_classes: expected the rows of the membership .*got 4",
            lambda g: reduction_of(torch.eye(3), torch.ones(2, 3), num_classes=4, group=g),
        ),
        (
            ValueError,
            "rate_reduction: labels: expected nonnegative values, got -1.0",
            lambda g: reduction_of(torch.eye(3), -torch.ones(2, 3), group=g),
        ),
        (
            TypeError,
            "rate_reduction: labels: expected integers",
            lambda g: reduction_of(torch.eye(3), torch.ones(3, dtype=torch.bool), num_classes=2, group=g),
        ),
        (
            TypeError,
            "rate_reduction: gamma: ",
            lambda g: reduction_of(torch.eye(3), torch.arange(3), num_classes=3, gamma="1", group=g),
        ),
    ],
)
def test_wrong_arguments(alone: Any, error: type[Exception], message: str, call: Callable[[Any], Any]) -> None:
    with pytest.raises(error, match=message):
        call(alone)
