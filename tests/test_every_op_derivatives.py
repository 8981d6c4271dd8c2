"""What every op must do when it is differentiated or mapped: autograd of any order, torch.func, no forward mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad

from op_row import (
    Arguments,
    Op,
    Sample,
    as_tuple,
    bounds,
    function_of,
    leaves,
    value_and_gradients,
    weighted_sum,
    within,
)
from op_table import OPS, every_op

DOUBLE = torch.float64
#: Of central differences with a step of 1e-6 in float64: the truncation is far below, the cancellation about 1e-9.
TOLERANCE = {"atol": 1e-6, "rtol": 1e-5}


# --- derivatives ---


def derivative_cases() -> Any:
    """Small samples (differences cost a call per entry) and every delicate point."""
    cases = [(op, sample) for op in OPS for sample in [*op.samples(DOUBLE), *op.degenerate()]]
    cases = [(op, s) for op, s in cases if sum(s.arguments[a].numel() for a in op.differentiated(s)) <= 130]
    return pytest.mark.parametrize(("op", "sample"), cases, ids=[f"{op.title}-{s.name}" for op, s in cases])


@derivative_cases()
def test_gradcheck(op: Op, sample: Sample) -> None:
    function, inputs = function_of(op, sample)
    assert torch.autograd.gradcheck(function, inputs, check_batched_grad=True, **TOLERANCE)


@derivative_cases()
def test_gradgradcheck(op: Op, sample: Sample) -> None:
    function, inputs = function_of(op, sample)
    exact = sum(tensor.numel() for tensor in inputs) <= 20  # else along random directions: n^3 calls would be too slow
    assert torch.autograd.gradgradcheck(
        function, inputs, gen_non_contig_grad_outputs=True, fast_mode=not exact, **TOLERANCE
    )


@every_op
def test_gradient_without_and_with_graph_agree(op: Op) -> None:
    """The kernel's gradient and the differentiable formula that second derivatives use."""
    for sample in op.samples(DOUBLE):
        arguments = leaves(op, sample)
        inputs = [arguments[name] for name in op.differentiated(sample)]
        kernel = torch.autograd.grad(weighted_sum(op, op(arguments)), inputs)
        formula = torch.autograd.grad(weighted_sum(op, op(arguments)), inputs, create_graph=True)
        limits = bounds(op, sample.arguments, DOUBLE)[1]
        for name, first, second in zip(op.differentiated(sample), kernel, formula, strict=True):
            within(first, second.detach(), 2 * limits[name], f"{sample.name}: gradient of {name}")


@every_op
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own, on first use
def test_forward_mode_raises(op: Op) -> None:
    """Anything but an error would be a tangent of zero."""
    function, inputs = function_of(op, op.sample(DOUBLE))
    primals, tangents = tuple(t.detach() for t in inputs), tuple(torch.ones_like(t) for t in inputs)
    message = f"^{op.name}: forward-mode AD"
    with pytest.raises(NotImplementedError, match=message):
        torch.func.jvp(function, primals, tangents)
    with pytest.raises(NotImplementedError, match=message):
        torch.func.jacfwd(function)(*primals)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=message):
        function(*(forward_ad.make_dual(p, t) for p, t in zip(primals, tangents, strict=True)))
    with pytest.raises(NotImplementedError, match=message):
        torch.func.hessian(lambda first: as_tuple(function(first, *primals[1:]))[0].sum())(primals[0])


# --- torch.func ---


def per_item(op: Op, arguments: Arguments, mapped: dict[str, int | None], size: int) -> list[tuple[torch.Tensor, ...]]:
    """The op in a Python loop over the mapped dimensions."""
    items = []
    for i in range(size):
        chosen = {name: arguments[name].select(dim, i) for name, dim in mapped.items() if dim is not None}
        items.append(op(arguments | chosen))
    return items


def vmapped(op: Op, arguments: Arguments, mapped: dict[str, int | None]) -> tuple[torch.Tensor, ...]:
    names = list(mapped)

    def one(*tensors: torch.Tensor) -> Any:
        return op(arguments | dict(zip(names, tensors, strict=True)))

    return as_tuple(torch.vmap(one, in_dims=tuple(mapped.values()))(*(arguments[name] for name in names)))


def check_vmap(op: Op, arguments: Arguments, mapped: dict[str, int | None], size: int) -> None:
    limits = bounds(op, per_item_arguments(arguments, mapped, 0), DOUBLE)[0]
    items = per_item(op, arguments, mapped, size)
    for k, output in enumerate(vmapped(op, arguments, mapped)):
        assert output.shape[0] == size
        for i, item in enumerate(items):
            limit = bounds(op, per_item_arguments(arguments, mapped, i), DOUBLE)[0][k] if size > 1 else limits[k]
            within(output[i], item[k], 2 * limit, f"{mapped}: item {i}")


def per_item_arguments(arguments: Arguments, mapped: dict[str, int | None], i: int) -> Arguments:
    return arguments | {name: arguments[name].select(dim, i) for name, dim in mapped.items() if dim is not None}


@every_op
def test_vmap_over_any_dimension(op: Op) -> None:
    arguments = op.sample(DOUBLE).arguments
    names = op.array_names(arguments)
    check_vmap(op, arguments, dict.fromkeys(names, 0), 3)
    moved = op.change(arguments, lambda tensor: tensor.movedim(0, 1).contiguous())
    check_vmap(op, moved, dict.fromkeys(names, 1), 3)
    last = op.change(arguments, lambda tensor: tensor.movedim(0, -1))
    check_vmap(op, last, dict.fromkeys(names, -1), 3)


@every_op
def test_vmap_with_one_argument_shared(op: Op) -> None:
    arguments = op.sample(DOUBLE).arguments
    names = op.array_names(arguments)
    for shared in names if len(names) > 1 else []:
        mapped = {name: None if name == shared else 0 for name in names}
        check_vmap(op, arguments | {shared: arguments[shared][0]}, mapped, 3)
        batched = {name: 0 for name in names if name != shared}  # and the shared one closed over
        check_vmap(op, arguments | {shared: arguments[shared][0]}, batched, 3)


@every_op
def test_vmap_inside_vmap_and_over_batches(op: Op) -> None:
    arguments = op.change(op.sample(DOUBLE).arguments, lambda t: torch.stack([t, t.flip(0)]))
    names = op.array_names(arguments)
    check_vmap(op, arguments, dict.fromkeys(names, 0), 2)  # items that are batches themselves
    inner = torch.vmap(lambda *tensors: op(arguments | dict(zip(names, tensors, strict=True)))[0])
    nested = torch.vmap(inner)(*(arguments[name] for name in names))
    within(nested, op(arguments)[0], 2 * bounds(op, arguments, DOUBLE)[0][0], "nested")


def scalar(op: Op, sample: Sample) -> tuple[Callable[..., torch.Tensor], list[str]]:
    """The weighted sum of the outputs as a function of the arrays."""
    names = op.array_names(sample.arguments)

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        return weighted_sum(op, op(sample.arguments | dict(zip(names, tensors, strict=True))))

    return function, names


@every_op
def test_func_grad_and_vmap_of_grad(op: Op) -> None:
    sample = op.sample(DOUBLE)
    function, names = scalar(op, sample)
    positions = tuple(names.index(name) for name in op.differentiated(sample))
    tensors = [sample.arguments[name] for name in names]
    expected = value_and_gradients(op, leaves(op, sample))[1]
    limits = bounds(op, sample.arguments, DOUBLE)[1]
    for name, gradient in zip(expected, torch.func.grad(function, argnums=positions)(*tensors), strict=True):
        within(gradient, expected[name], 2 * limits[name], f"func.grad of {name}")
    one = Sample("", op.change(sample.arguments, lambda tensor: tensor[1]), sample.differentiable)
    single = value_and_gradients(op, leaves(op, one))[1]
    mapped = torch.vmap(torch.func.grad(function, argnums=positions))(*tensors)
    for name, gradient in zip(expected, mapped, strict=True):
        assert gradient.shape == expected[name].shape
        within(gradient[1], single[name], 2 * limits[name][1], f"vmap(grad) of {name}")


@every_op
def test_jacrev_once_and_twice(op: Op) -> None:
    sample = Sample("", op.change(op.sample(DOUBLE).arguments, lambda tensor: tensor[0]))
    function, inputs = function_of(op, sample)
    first = inputs[0].detach()
    others = tuple(t.detach() for t in inputs[1:])

    def scalar_of(x: torch.Tensor) -> torch.Tensor:
        return sum(output.sum() for output in as_tuple(function(x, *others)))

    jacobian = torch.func.jacrev(scalar_of)(first)
    leaf = first.clone().requires_grad_()
    limit = bounds(op, sample.arguments, DOUBLE)[1][op.differentiated(sample)[0]]
    within(jacobian, torch.autograd.grad(scalar_of(leaf), leaf)[0], 2 * limit, "jacrev")
    hessian = torch.func.jacrev(torch.func.jacrev(scalar_of))(first)
    rows = torch.autograd.functional.hessian(scalar_of, first)
    assert torch.allclose(hessian, rows, rtol=1e-9, atol=1e-9 * float(rows.abs().max()))
