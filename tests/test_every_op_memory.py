"""What every op must do with memory: read any layout, write all of its outputs and nothing else, keep its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies

from op_row import (
    ORACLE_ERROR,
    Arguments,
    Op,
    Sample,
    bounds,
    bytes_of,
    leaves,
    oracle,
    same,
    same_gradients,
    same_results,
    value_and_gradients,
    weighted_sum,
    within,
)
from op_table import every_op

REAL = [torch.float32, torch.float64]

# --- layouts ---


def embedded(tensor: torch.Tensor, *, order: tuple[int, ...], steps: tuple[int, ...], lead: int) -> torch.Tensor:
    """The same values as a view of a larger block: dimensions in another order, with gaps, at an offset. What lies
    between and around the values is NaN (labels: far out of range), so that reading it shows."""
    permuted = tensor.permute(order)
    block_shape = [size * step + lead for size, step in zip(permuted.shape, steps, strict=True)]
    block = torch.full(block_shape, float("nan") if tensor.is_floating_point() else 10**6, dtype=tensor.dtype)
    view = block[tuple(slice(lead, lead + n * step, step) for n, step in zip(permuted.shape, steps, strict=True))]
    view.copy_(permuted)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return view.permute(inverse)


def transposed(t: torch.Tensor) -> torch.Tensor:
    return embedded(t, order=tuple(reversed(range(t.ndim))), steps=(1,) * t.ndim, lead=0)


def stepped(t: torch.Tensor) -> torch.Tensor:
    return embedded(t, order=tuple(range(t.ndim)), steps=(2, 3, 1, 2, 1)[: t.ndim], lead=1)


def column_stepped(t: torch.Tensor) -> torch.Tensor:
    return embedded(t, order=tuple(range(t.ndim)), steps=(1,) * (t.ndim - 1) + (3,), lead=2)


def rotated(t: torch.Tensor) -> torch.Tensor:
    return embedded(t, order=(*range(1, t.ndim), 0), steps=(1,) * t.ndim, lead=1)


def offset(t: torch.Tensor) -> torch.Tensor:
    """Contiguous, but not aligned to a vector register."""
    block = torch.full((t.numel() + 7,), float("nan") if t.is_floating_point() else 10**6, dtype=t.dtype)
    view = block[3 : 3 + t.numel()].view(t.shape)
    view.copy_(t)
    return view


def negated(t: torch.Tensor) -> torch.Tensor:
    """A view with the negative bit: memory holds the opposite sign. Labels and half precision have no such view."""
    if t.dtype not in REAL:
        return t
    view = torch.complex(torch.zeros_like(t), -t).conj().imag
    assert view.is_neg()
    return view


LAYOUTS = [transposed, stepped, column_stepped, rotated, offset, negated]


@every_op
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("dtype", [*REAL, torch.bfloat16], ids=str)
def test_layout_does_not_matter(op: Op, layout: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype) -> None:
    """Bitwise, in the value and in the gradients."""
    for sample in op.samples(dtype):
        expected = value_and_gradients(op, leaves(op, sample))
        arguments = leaves(op, sample)
        views = op.change(arguments, layout)
        for name in op.differentiated(sample):
            views[name] = views[name].detach().requires_grad_()
            assert torch.equal(views[name], arguments[name])
        same_results(op, sample, value_and_gradients(op, views), expected)


@every_op
def test_expanded_input_is_the_repeated_input(op: Op) -> None:
    """Stride 0; the gradient of the shared item is the sum of the items'."""
    batch = op.sample(torch.float64)
    one = op.change(batch.arguments, lambda tensor: tensor[0])
    repeated = Sample("", op.change(one, lambda t: t.expand(3, *t.shape).clone()))
    outputs, gradients = value_and_gradients(op, leaves(op, repeated))
    own = leaves(op, Sample("", one))
    shared_outputs, shared_gradients = value_and_gradients(op, own)
    expanded = op.change(own, lambda t: t.expand(3, *t.shape))
    expanded_outputs = op(expanded)
    for output, shared, expected in zip(expanded_outputs, shared_outputs, outputs, strict=True):
        same(output.detach(), expected, "value")
        assert shared.shape == expected.shape[1:]
    total = sum((output[i] * (i + 1.0)).sum() for output in expanded_outputs for i in range(3) if output.requires_grad)
    names = list(shared_gradients)
    together = torch.autograd.grad(total, [own[name] for name in names])
    single = sum(output.sum() for output in op(own) if output.requires_grad)
    for name, gradient, unit in zip(
        names, together, torch.autograd.grad(single, [own[name] for name in names]), strict=True
    ):
        assert gradients[name].shape == (3, *gradient.shape)
        within(gradient, 6 * unit, 12 * bounds(op, one, torch.float64)[1][name], f"gradient of {name}")


@every_op
def test_upstream_gradient_may_have_any_layout(op: Op) -> None:
    sample = op.sample(torch.float64)
    arguments = leaves(op, sample)
    names = op.differentiated(sample)
    output = op(arguments)[0]
    inputs = [arguments[name] for name in names]
    ones = torch.ones(())
    views = {
        "expanded": ones.double().expand(output.shape),
        "transposed": transposed(torch.ones_like(output)),
        "stepped": stepped(torch.ones_like(output)),
        "negated": negated(torch.ones_like(output)),
    }
    expected = torch.autograd.grad(output, inputs, torch.ones_like(output), retain_graph=True)
    for kind, upstream in views.items():
        gradients = torch.autograd.grad(output, inputs, upstream, retain_graph=True)
        gradients, units = (dict(zip(names, tensors, strict=True)) for tensors in (gradients, expected))
        same_gradients(op, sample.arguments, gradients, units, f"{kind} upstream gradient")


@every_op
@hypothesis.given(data=strategies.data())
def test_any_shape_and_layout(op: Op, data: strategies.DataObject) -> None:
    """Random sizes of every dimension, random layout, random number of threads: the value stays within its bound."""
    dtype = data.draw(strategies.sampled_from(REAL))
    size = strategies.integers(1, 40)
    batch = tuple(data.draw(strategies.lists(strategies.integers(0, 3), max_size=2)))
    rows, columns, seed = data.draw(size), data.draw(size), data.draw(strategies.integers(0, 10**6))
    arguments = resized(op, op.sample(dtype).arguments, batch, rows, columns, seed)
    layout = data.draw(strategies.sampled_from(LAYOUTS))
    torch.set_num_threads(data.draw(strategies.integers(1, 3)))
    outputs = op(op.change(arguments, layout))
    limits, _ = bounds(op, arguments, dtype)
    for output, value, bound in zip(outputs, oracle(op, arguments), limits, strict=False):
        within(output, value, bound + ORACLE_ERROR, f"batch {batch}, {rows} x {columns}, {layout.__name__}")


def resized(op: Op, arguments: Arguments, batch: tuple[int, ...], rows: int, columns: int, seed: int) -> Arguments:
    """Other values of other shapes: matrices become rows x columns (square ones columns x columns, made definite),
    vectors get one entry per row."""
    generator = torch.Generator().manual_seed(seed)

    def change(tensor: torch.Tensor) -> torch.Tensor:
        vector = op.arrays[name] == 1
        shape = (*batch, rows) if vector else (*batch, columns if is_square else rows, columns)
        if name in op.columns_are_rows:
            shape = (*batch, tensor.shape[-2], rows)
        if name in op.square_of_columns:
            shape = (*batch, columns, columns)
        if op.core_shapes is not None:
            shape = (*batch, *op.core_shapes(rows, columns)[name])
        if not tensor.is_floating_point():
            return torch.randint(0, int(tensor.max()) + 1, shape, generator=generator)
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        if vector or name in op.nonnegative:
            values = values.abs()
        if is_square:
            values = values @ values.mT / columns + torch.eye(columns, dtype=torch.float64)
        return values.to(tensor.dtype)

    changed = dict(arguments)
    for name in op.array_names(arguments):
        is_square = op.arrays[name] == 2 and op.square
        changed[name] = change(arguments[name])
    return changed


# --- what is written ---


GUARD = 64  # entries on both sides of every allocation


class GuardedMemory:
    """Replaces uninitialised memory by NaN (integers: -12345), between guards that nobody may write."""

    def __init__(self) -> None:
        self.blocks: list[torch.Tensor] = []

    def torch_empty(self, *size: Any, dtype: torch.dtype | None = None, device: Any = None, **_: Any) -> torch.Tensor:
        shape = torch.Size(size[0] if size and not isinstance(size[0], int) else size)
        block = ORIGINAL_EMPTY(shape.numel() + 2 * GUARD, dtype=dtype or torch.get_default_dtype(), device=device)
        block.fill_(float("nan") if block.is_floating_point() else -12345)
        self.blocks.append(block)
        return block[GUARD : GUARD + shape.numel()].view(shape)

    def torch_empty_like(self, like: torch.Tensor, *, dtype: torch.dtype | None = None, **_: Any) -> torch.Tensor:
        return self.torch_empty(like.shape, dtype=dtype or like.dtype, device=like.device)

    def new_empty(self, like: torch.Tensor, *size: Any, dtype: torch.dtype | None = None, **_: Any) -> torch.Tensor:
        return self.torch_empty(*size, dtype=dtype or like.dtype, device=like.device)

    def numpy_empty(self, shape: Any, dtype: Any = float, **_: Any) -> np.ndarray:
        if np.dtype(dtype).kind not in "fi":  # NumPy's own uses
            return ORIGINAL_NUMPY_EMPTY(shape, dtype)
        kind = torch.from_numpy(np.zeros(0, dtype)).dtype
        return self.torch_empty(torch.Size(np.broadcast_to(0, shape).shape), dtype=kind).numpy()

    def numpy_empty_like(self, like: np.ndarray, dtype: Any = None, **_: Any) -> np.ndarray:
        return self.numpy_empty(like.shape, dtype or like.dtype)

    def check_guards(self) -> None:
        for block in self.blocks:
            untouched = block.isnan() if block.is_floating_point() else block == -12345
            assert untouched[:GUARD].all() and untouched[-GUARD:].all(), "written outside of an array"


ORIGINAL_EMPTY = torch.empty
ORIGINAL_NUMPY_EMPTY = np.empty


@pytest.fixture
def guarded_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[GuardedMemory]:
    memory = GuardedMemory()
    monkeypatch.setattr(torch, "empty", memory.torch_empty)
    monkeypatch.setattr(torch, "empty_like", memory.torch_empty_like)
    monkeypatch.setattr(
        torch.Tensor,
        "new_empty",
        lambda like, *size, dtype=None, **_: memory.torch_empty(*size, dtype=dtype or like.dtype),
    )
    monkeypatch.setattr(np, "empty", memory.numpy_empty)
    monkeypatch.setattr(np, "empty_like", memory.numpy_empty_like)
    yield memory
    memory.check_guards()


@every_op
@pytest.mark.parametrize("dtype", [*REAL, torch.bfloat16], ids=str)
def test_every_output_is_written(op: Op, dtype: torch.dtype, guarded_memory: GuardedMemory) -> None:
    """Uninitialised memory is NaN here: the results must not change, and nothing outside of them may be written."""
    for sample in op.samples(dtype):
        with pytest.MonkeyPatch.context() as plain:
            plain.setattr(torch, "empty", ORIGINAL_EMPTY)
            expected = value_and_gradients(op, leaves(op, sample))
        same_results(op, sample, value_and_gradients(op, leaves(op, sample)), expected)
        if dtype in REAL:
            outputs = op(op.change(sample.arguments, lambda tensor: tensor.numpy()))
            for output, value in zip(outputs, expected[0], strict=True):
                same(output, value, f"{sample.name}: NumPy")
        guarded_memory.check_guards()
    assert guarded_memory.blocks, "nothing was allocated through the replaced functions: this test sees nothing"


@every_op
@pytest.mark.parametrize("dtype", [*REAL, torch.bfloat16], ids=str)
def test_inputs_are_never_written(op: Op, dtype: torch.dtype) -> None:
    """Nor is what lies around them, nor do results share their memory; forward and backward."""
    for sample in op.samples(dtype):
        blocks, inputs, before = stepped_inputs(op, sample)
        outputs = op(sample.arguments | blocks)
        gradients = torch.autograd.grad(weighted_sum(op, outputs), inputs)
        assert before == [bytes_of(block) for block in blocks.values()], sample.name
        owned = {block.untyped_storage().data_ptr() for block in blocks.values() if block.numel()}
        for result in (*outputs, *gradients):
            assert not result.numel() or result.untyped_storage().data_ptr() not in owned, "shares memory with an input"


@every_op
@pytest.mark.no_sanitizer  # second derivatives are torch's own operations
def test_second_derivatives_write_no_input(op: Op) -> None:
    for dtype in [*REAL, torch.bfloat16]:
        sample = op.sample(dtype)
        blocks, inputs, before = stepped_inputs(op, sample)
        gradients = torch.autograd.grad(weighted_sum(op, op(sample.arguments | blocks)), inputs, create_graph=True)
        total = sum(gradient.square().sum() for gradient in gradients)
        torch.autograd.grad(total, inputs, allow_unused=bool(op.unread))
        assert before == [bytes_of(block) for block in blocks.values()]


def stepped_inputs(op: Op, sample: Sample) -> tuple[Arguments, list[torch.Tensor], list[bytes]]:
    """Every array inside a larger block; those that are differentiated; and all bytes of the blocks."""
    blocks = {name: stepped(sample.arguments[name]) for name in op.array_names(sample.arguments)}
    inputs = [blocks[name].requires_grad_() for name in op.differentiated(sample)]
    return blocks, inputs, [bytes_of(block) for block in blocks.values()]


@every_op
def test_changing_an_input_before_backward_is_seen(op: Op) -> None:
    """Either the gradient was computed with the value, or autograd's version check raises; never a wrong gradient."""
    sample = op.sample(torch.float64)
    right = value_and_gradients(op, leaves(op, sample))[1]
    arguments = leaves(op, sample)
    copies = {name: arguments[name] * 1 for name in right}
    total = weighted_sum(op, op(arguments | copies))
    with torch.no_grad():
        for copy in copies.values():
            copy.mul_(3)
    try:
        gradients = torch.autograd.grad(total, [arguments[name] for name in right])
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
        return
    same_gradients(op, sample.arguments, dict(zip(right, gradients, strict=True)), right, "input changed")


@every_op
def test_backward_twice(op: Op) -> None:
    """What was saved for backward is not scaled in place."""
    sample = op.sample(torch.float32)
    arguments = leaves(op, sample)
    inputs = [arguments[name] for name in op.differentiated(sample)]
    output = op(arguments)[0]
    upstream = torch.full_like(output, 0.3)
    first = [gradient.clone() for gradient in torch.autograd.grad(output, inputs, upstream, retain_graph=True)]
    second = torch.autograd.grad(output, inputs, upstream)
    for one, two in zip(first, second, strict=True):
        same(one, two, "second backward")
