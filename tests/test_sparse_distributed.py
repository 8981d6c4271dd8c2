"""The FLOPs loss over a process group: two processes with gloo against one process with all rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import sparse_distributed_worker as worker
import subspan
from gloo_processes import WORLD, results_of
from sparse_distributed_worker import DTYPES, FORMS, SPLITS, Tensors

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch.distributed is not available", allow_module_level=True)

pytestmark = pytest.mark.no_sanitizer


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    return results_of(worker.__file__, tmp_path_factory.mktemp("distributed"))


def alone(form: str, dtype: torch.dtype) -> Tensors:
    """Value, and gradients of the sum of the processes' losses, in float64 from all rows."""
    given = worker.whole(dtype)
    given = {name: value.double() if value.is_floating_point() else value for name, value in given.items()}
    if form == "running":
        given["running"] = given["running"].to(dtype).double()
    parts = [worker.differentiated(form, None, dict(given), rank) for rank in range(WORLD)]
    return {name: parts[0][name] if name == "value" else parts[0][name] + parts[1][name] for name in parts[0]}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, relative: float, what: str) -> None:
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error <= relative, f"{what}: relative error {error:.3g}, allowed {relative:.3g}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("form", FORMS)
def test_one_process_with_all_rows(processes: list[dict[str, Any]], form: str, split: str, dtype: str) -> None:
    found = [process["every_form"][f"{form}/{split}/{dtype}"] for process in processes]
    truth = alone(form, DTYPES[dtype])
    compute = torch.float64 if dtype == "float64" else torch.float32
    for own in found:
        assert own["value"].dtype == compute
        assert torch.equal(own["value"], found[0]["value"])
        assert_close(own["value"], truth["value"], 40 * torch.finfo(compute).eps, "value")
    for name in truth.keys() - {"value"}:
        gradient = torch.cat([own[name] for own in found], -2)
        assert gradient.dtype == DTYPES[dtype]
        allowed = max(40 * torch.finfo(compute).eps, torch.finfo(DTYPES[dtype]).eps)
        assert_close(gradient, truth[name], allowed, f"gradient of {name}")


@pytest.mark.parametrize("form", FORMS)
def test_second_derivatives(processes: list[dict[str, Any]], form: str) -> None:
    given = worker.whole(torch.float64)
    # Each process squares the gradient of the sum of both losses, so twice that of one.
    own = torch.cat([torch.full((8,), 1.0), torch.full((4,), 2.0)]).double()
    expected = WORLD**2 * worker.penalty(form, None, dict(given), own)
    found = torch.cat([process["second_derivatives"][form] for process in processes], -2)
    assert_close(found, expected, 1e-12, form)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("split", SPLITS)
def test_data_parallel_training_is_that_of_one_process(
    processes: list[dict[str, Any]], split: str, unbiased: bool
) -> None:
    model, data = worker.encoder()
    subspan.flops_loss(model(data).relu(), unbiased=unbiased).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        for process in processes:
            assert_close(process["data_parallel"][f"{split}/{unbiased}/{name}"], parameter.grad, 1e-13, name)


def test_group_needs_tensors() -> None:
    with pytest.raises(ValueError, match="flops_loss: group: expected None where x is no torch tensor"):
        subspan.flops_loss(np.ones((3, 4)), group=object())
