"""What every op must not mind: autocast, other defaults, checkpoints, hooks, parameters, tensor subclasses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from op_row import Arguments, Op, Sample, leaves, same, value_and_gradients, weighted_sum
from op_table import every_op

DOUBLE = torch.float64


def assert_unchanged(op: Op, sample: Sample, run: Callable[[Arguments], Any], what: str) -> None:
    """`run` gives the bits, types and device of a plain call, in the values and the gradients."""
    expected_outputs, expected_gradients = value_and_gradients(op, leaves(op, sample))
    arguments = leaves(op, sample)
    outputs = run(arguments)
    names = op.differentiated(sample)
    gradients = torch.autograd.grad(weighted_sum(op, outputs), [arguments[name] for name in names])
    for output, expected in zip(outputs, expected_outputs, strict=True):
        assert output.device == expected.device
        same(output.detach(), expected, f"{what}: value")
    for name, gradient in zip(names, gradients, strict=True):
        same(gradient, expected_gradients[name], f"{what}: gradient of {name}")


@every_op
@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_lowers_nothing(op: Op, lower: torch.dtype) -> None:
    def under_autocast(arguments: Arguments) -> Any:
        with torch.autocast("cpu", dtype=lower):
            return op(arguments)

    for dtype in (torch.float32, DOUBLE, torch.bfloat16):
        assert_unchanged(op, op.sample(dtype), under_autocast, f"{dtype} under autocast")
    assert under_autocast(op.sample(lower).arguments)[0].dtype == torch.float32


@every_op
def test_autocast_does_not_lower_second_derivatives(op: Op) -> None:
    sample = op.sample(torch.float32)

    def hessian_product() -> list[torch.Tensor]:
        arguments = leaves(op, sample)
        inputs = [arguments[name] for name in op.differentiated(sample)]
        first = torch.autograd.grad(weighted_sum(op, op(arguments)), inputs, create_graph=True)
        total = sum(g.square().sum() for g in first)
        second = torch.autograd.grad(total, inputs, allow_unused=bool(op.unread))
        return [g for g in second if g is not None]

    plain = hessian_product()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = hessian_product()
    for one, two in zip(plain, lowered, strict=True):
        same(two, one, "second derivative under autocast")


@every_op
def test_default_dtype_and_device_change_nothing(op: Op) -> None:
    def other_defaults(arguments: Arguments) -> Any:
        with torch.device("meta"):
            return op(arguments)

    for dtype in (torch.float32, DOUBLE):
        assert_unchanged(op, op.sample(dtype), other_defaults, "default device meta")
    sample = op.sample(torch.float32)
    expected = value_and_gradients(op, leaves(op, sample))
    torch.set_default_dtype(DOUBLE)
    outputs, gradients = value_and_gradients(op, leaves(op, sample))
    for output, value in zip(outputs, expected[0], strict=True):
        same(output, value, "default dtype float64")
    for name, gradient in gradients.items():
        same(gradient, expected[1][name], "default dtype float64")


@every_op
@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
def test_checkpoint(op: Op, reentrant: bool) -> None:
    def checkpointed(arguments: Arguments) -> Any:
        names = op.array_names(arguments)
        return checkpoint(
            lambda *tensors: op(arguments | dict(zip(names, tensors, strict=True))),
            *(arguments[name] for name in names),
            use_reentrant=reentrant,
        )

    sample = op.sample(torch.float32)
    if reentrant:  # it only supports backward(), not grad()
        expected = value_and_gradients(op, leaves(op, sample))[1]
        arguments = leaves(op, sample)
        weighted_sum(op, checkpointed(arguments)).backward()
        for name, gradient in expected.items():
            same(arguments[name].grad, gradient, f"gradient of {name}")
    else:
        assert_unchanged(op, sample, checkpointed, "checkpoint")


class Plain(torch.Tensor):
    """A subclass that changes nothing; torch runs every operation through __torch_function__."""


class Counting(torch.Tensor):
    """Counts the operations it takes part in."""

    operations = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.operations += 1
        return super().__torch_function__(func, types, args, kwargs or {})


class Wrapped(torch.Tensor):
    """Holds another tensor and has no memory of its own: a kernel that reads its pointer would read nothing."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Wrapped:
        outer = torch.Tensor._make_wrapper_subclass(cls, inner.shape, strides=inner.stride(), dtype=inner.dtype)
        outer.inner = inner
        return outer

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        unwrap = lambda x: x.inner if isinstance(x, cls) else x  # noqa: E731
        wrap = lambda x: cls(x) if isinstance(x, torch.Tensor) else x  # noqa: E731
        plain = torch.utils._pytree.tree_map(unwrap, (args, kwargs or {}))
        return torch.utils._pytree.tree_map(wrap, func(*plain[0], **plain[1]))


@every_op
@pytest.mark.parametrize("kind", [Plain, Counting, Wrapped], ids=lambda kind: kind.__name__)
def test_tensor_subclasses(op: Op, kind: type) -> None:
    sample = op.sample(DOUBLE)
    expected = value_and_gradients(op, leaves(op, sample))

    def converted(tensor: torch.Tensor) -> Any:
        return Wrapped(tensor) if kind is Wrapped else tensor.as_subclass(kind)

    arguments = op.change(sample.arguments, converted)
    for name in op.differentiated(sample):
        arguments[name] = arguments[name].detach().requires_grad_()
    outputs = op(arguments)
    inputs = [arguments[name] for name in op.differentiated(sample)]
    gradients = torch.autograd.grad(weighted_sum(op, outputs), inputs)

    def plain(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.inner if isinstance(tensor, Wrapped) else tensor.detach().as_subclass(torch.Tensor)

    for output, value in zip(outputs, expected[0], strict=True):
        same(plain(output), value, f"value of {kind.__name__}")
    for name, gradient in zip(op.differentiated(sample), gradients, strict=True):
        same(plain(gradient), expected[1][name], f"gradient of {name}")


@every_op
def test_parameters(op: Op) -> None:
    sample = op.sample(torch.float32)
    expected = value_and_gradients(op, leaves(op, sample))
    names = op.differentiated(sample)
    parameters = {name: torch.nn.Parameter(sample.arguments[name].clone()) for name in names}
    outputs, gradients = value_and_gradients(op, sample.arguments | parameters)
    for output, value in zip(outputs, expected[0], strict=True):
        assert type(output) is torch.Tensor
        same(output, value, "value")
    for name in names:
        same(gradients[name], expected[1][name], f"gradient of {name}")


@every_op
def test_hooks_accumulation_and_anomaly_mode(op: Op) -> None:
    sample = op.sample(torch.float32)
    expected = value_and_gradients(op, leaves(op, sample))[1]
    arguments = leaves(op, sample)
    seen: list[str] = []
    for name in expected:
        arguments[name].register_hook(lambda gradient, name=name: seen.append(name))
    for _ in range(2):
        weighted_sum(op, op(arguments)).backward()
    assert sorted(seen) == sorted([*expected, *expected])
    for name, gradient in expected.items():
        same(arguments[name].grad, gradient + gradient, f"accumulated gradient of {name}")
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
        value_and_gradients(op, leaves(op, sample))
