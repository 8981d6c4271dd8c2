"""Arrays as they come: whatever memory lies under a valid argument, and the compiled functions fed with anything."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies
from torch._subclasses.fake_tensor import FakeTensorMode

from op_row import Op, bytes_of, leaves, library_calls, same, value_and_gradients
from op_table import every_op
from subspan import _route

DOUBLE = torch.float64

# --- valid arrays in unusual memory ---


def read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def reversed_view(array: np.ndarray) -> np.ndarray:
    """Negative strides in every dimension."""
    flipped = np.flip(array).copy()
    return np.flip(flipped)


def broadcast(array: np.ndarray) -> np.ndarray:
    """Read-only, with a leading dimension of stride 0 taken away again."""
    return np.broadcast_to(array, (2, *array.shape))[1]


def field(array: np.ndarray) -> np.ndarray:
    """One field of records: strides larger than the element."""
    records = np.zeros(array.shape, [("before", "f8"), ("value", array.dtype), ("after", "f8")])
    records["value"] = array
    return records["value"]


def subclass(array: np.ndarray) -> np.ndarray:
    return array.view(type("Recorded", (np.ndarray,), {}))


def masked_memory(array: np.ndarray) -> np.ndarray:
    """The owner of the memory is gone except for this view's reference."""
    owner = np.stack([array, array])
    return owner[1]


NUMPY_VIEWS = [read_only, reversed_view, broadcast, field, subclass, masked_memory, np.asfortranarray]


@every_op
@pytest.mark.parametrize("view", NUMPY_VIEWS, ids=lambda view: view.__name__)
def test_numpy_views(op: Op, view: Callable[[np.ndarray], np.ndarray]) -> None:
    for sample in op.samples(torch.float32):
        arguments = op.change(sample.arguments, lambda tensor: tensor.numpy())
        for output, expected in zip(op(op.change(arguments, view)), op(arguments), strict=True):
            assert type(output) is np.ndarray
            same(output, expected, sample.name)


@every_op
def test_memory_mapped_file(op: Op, tmp_path: Path) -> None:
    arguments = op.change(op.sample(DOUBLE).arguments, lambda tensor: tensor.numpy())
    mapped = dict(arguments)
    for name in op.array_names(arguments):
        np.save(tmp_path / f"{name}.npy", arguments[name])
        mapped[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    for output, expected in zip(op(mapped), op(arguments), strict=True):
        same(output, expected, "memory map")


def unaligned(array: np.ndarray) -> np.ndarray:
    """Starts one byte beside where its type belongs."""
    memory = np.zeros(array.nbytes + 1, np.uint8)
    view = memory[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def packed_record(array: np.ndarray) -> np.ndarray:
    """Strides that are no multiple of the element."""
    records = np.zeros(array.shape, [("value", array.dtype), ("tail", "u1")])
    records["value"] = array
    return records["value"]


@every_op
@pytest.mark.parametrize("view", [unaligned, packed_record], ids=lambda view: view.__name__)
def test_unaligned_memory_is_read_right_or_refused(op: Op, view: Callable[[np.ndarray], np.ndarray]) -> None:
    arguments = op.change(op.sample(DOUBLE).arguments, lambda tensor: tensor.numpy())
    for name in op.array_names(arguments):
        try:
            outputs = op(arguments | {name: view(arguments[name])})
        except ValueError as error:
            assert str(error).startswith(f"{op.name}: {name}: expected "), error
            continue
        for output, expected in zip(outputs, op(arguments), strict=True):
            same(output, expected, f"{view.__name__} {name}")


@every_op
def test_unaligned_tensor_is_read_right_or_refused(op: Op) -> None:
    sample = op.sample(torch.float32)
    for name in op.array_names(sample.arguments):
        array = sample.arguments[name]
        memory = bytearray(1 + array.numpy().nbytes)
        memory[1:] = array.numpy().tobytes()
        shifted = torch.frombuffer(memory, dtype=array.dtype, offset=1).view(array.shape)
        assert torch.equal(shifted, array)
        try:
            outputs = op(sample.arguments | {name: shifted})
        except ValueError as error:
            assert str(error).startswith(f"{op.name}: {name}: expected "), error
            continue
        for output, expected in zip(outputs, op(sample.arguments), strict=True):
            same(output, expected, f"unaligned {name}")


@every_op
def test_integer_types(op: Op) -> None:
    """Labels of any signed type and uint8, torch and NumPy."""
    sample = op.sample(DOUBLE)
    integers = [name for name in op.array_names(sample.arguments) if not sample.arguments[name].is_floating_point()]
    for dtype in (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8):
        for name in integers:
            changed = sample.arguments | {name: sample.arguments[name].to(dtype)}
            both = (changed, op.change(changed, lambda tensor: tensor.numpy()))
            for arguments in both:
                for output, expected in zip(op(arguments), op(sample.arguments), strict=True):
                    same(output, expected, f"{name} as {dtype}")


@every_op
def test_many_batch_dimensions(op: Op) -> None:
    """Up to eight dimensions in all; more are refused."""
    sample = op.sample(DOUBLE)
    for extra in range(1, 8):
        arguments = op.change(sample.arguments, lambda t, extra=extra: t.reshape((1,) * extra + tuple(t.shape)))
        if max(arguments[name].ndim for name in op.array_names(arguments)) > 8:
            with pytest.raises(ValueError, match=rf"^{op.name}: \w+: expected at most 8 dimensions, got \d"):
                op(arguments)
            continue
        for output, expected in zip(op(arguments), op(sample.arguments), strict=True):
            same(output.reshape(expected.shape), expected, f"{extra} more dimensions")


@every_op
def test_temporaries_live_long_enough(op: Op) -> None:
    """Nothing else refers to the arguments or, after the forward, to what backward needs."""
    sample = op.sample(torch.float32)
    expected = value_and_gradients(op, leaves(op, sample))
    for _ in range(50):
        outputs = op(op.change(sample.arguments, lambda tensor: tensor.numpy().copy()))
        for output, value in zip(outputs, expected[0], strict=True):
            same(output, value, "temporary arrays")
        held = leaves(op, sample)
        total = sum(output.sum() for output in op({**held}) if output.requires_grad)
        torch.full((1 << 16,), float("nan"))  # takes over memory that was freed too early
        total.backward()


# --- the compiled functions ---


Call = tuple[Callable[..., None], list[Any], int]


@functools.cache
def kernel_calls(op: Op) -> list[Call]:
    """Valid calls of the compiled functions behind an op: with everything that backward needs, and with values only.
    The number is that of the arguments which are inputs."""
    calls = []
    for registered, (args, _) in library_calls(op, op.sample(torch.float32)).items():
        row = next(row for row in _route.OPS.values() if row.op is registered)
        arity = len(row.inputs)
        tensors, parameters = [None if t is None else t.detach() for t in args[:arity]], args[arity:]
        shapes = zip(row.shapes(*args), row.outputs, strict=True)
        outputs = [torch.zeros(s, dtype=torch.int32 if kind == "int32" else torch.float32) for s, kind in shapes]
        saved = [None if shape is None else torch.zeros(shape) for shape in row.shapes_of_saved(*args)]
        calls.append((row.kernel, [*tensors, *outputs, *saved, *parameters, 2], arity))
        calls.append((row.kernel, [*tensors, *outputs, *(None,) * len(saved), *parameters, 2], arity))
    return calls


@every_op
def test_recorded_calls_are_valid(op: Op) -> None:
    """What the tests below distort is right before it is distorted."""
    calls = kernel_calls(op)
    assert calls
    for kernel, arguments, _ in calls:
        kernel(*arguments)


def fake_tensor(*shape: int) -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(*shape)


class Exporter:
    """Offers somebody else's DLPack capsule, or something that is none."""

    def __init__(self, capsule: Any, device: Any = (1, 0)) -> None:
        self.capsule, self.device = capsule, device

    def __dlpack__(self, **_: Any) -> Any:
        return self.capsule

    def __dlpack_device__(self) -> Any:
        return self.device


def hostile() -> strategies.SearchStrategy[Any]:
    """Arguments that the Python layer would never let through."""
    shapes = strategies.lists(strategies.sampled_from([0, 1, 2, 3, 5, 7, 40]), max_size=4)
    dtypes = [torch.float32, DOUBLE, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int8, torch.bool]
    tensors = strategies.builds(
        lambda shape, dtype, step: torch.zeros([*shape, 2]).to(dtype)[..., :: step + 1].squeeze(-1),
        shapes,
        strategies.sampled_from([*dtypes, torch.complex64]),
        strategies.integers(0, 1),
    )
    arrays = strategies.builds(
        lambda shape, kind: np.zeros(shape, kind), shapes, strategies.sampled_from(["f4", "f8", "i4", ">f4", "O", "c8"])
    )
    makers = [
        lambda: fake_tensor(3, 7, 5),
        lambda: torch.empty(3, 7, 5, device="meta"),
        lambda: torch.eye(5).to_sparse(),
        lambda: torch.zeros((1,) * 10),
        lambda: torch.zeros(3, 7, 5, requires_grad=True),
        lambda: torch.zeros(3, dtype=torch.complex64).conj(),
        lambda: Exporter(None),
        lambda: Exporter(torch.zeros(3).__dlpack__(), "cpu"),
        lambda: Exporter(torch.zeros(3).__dlpack__(), (2, 0)),
        lambda: Exporter(torch.zeros(3, 7, 5).__dlpack__()),
        lambda: object(),
        lambda: "Z",
        lambda: None,
        lambda: [1.0],
    ]
    numbers = strategies.sampled_from([-1, 0, 1, 2, 2**40, -(2**40), 0.0, 0.5, float("nan"), float("inf"), -1.0])
    return strategies.one_of(tensors, arrays, strategies.sampled_from(makers).map(lambda make: make()), numbers)


@every_op
@hypothesis.settings(max_examples=200)
@hypothesis.given(data=strategies.data())
def test_compiled_functions_survive_anything(op: Op, data: strategies.DataObject) -> None:
    """One or two arguments of a valid call are replaced: an exception or a result, and no input is written."""
    kernel, arguments, arity = data.draw(strategies.sampled_from(kernel_calls(op)), label="call")
    changed = list(arguments)
    inputs = [array for array in arguments[:arity] if isinstance(array, torch.Tensor)]
    before = [bytes_of(array) for array in inputs]
    positions = strategies.integers(0, len(arguments) - 2)  # the last is the number of threads
    for i in data.draw(strategies.lists(positions, min_size=1, max_size=2, unique=True), label="positions"):
        changed[i] = data.draw(hostile(), label=f"argument {i}")
    try:
        kernel(*changed)
    except Exception as error:
        assert str(error), f"{type(error).__name__} without a message"
    assert before == [bytes_of(array) for array in inputs], "an input was written"


@every_op
def test_compiled_functions_refuse_tensors_without_memory(op: Op) -> None:
    """Fake and meta tensors carry a null pointer."""
    for kernel, arguments, _ in kernel_calls(op):
        for i, argument in enumerate(arguments):
            if isinstance(argument, torch.Tensor):
                for empty in (fake_tensor(*argument.shape), torch.empty_like(argument, device="meta")):
                    with pytest.raises((ValueError, TypeError, RuntimeError, BufferError)):
                        kernel(*arguments[:i], empty.to(argument.dtype), *arguments[i + 1 :])
