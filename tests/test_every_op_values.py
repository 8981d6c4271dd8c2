"""What every op must do with numbers: values and gradients within their bounds, types, NumPy, NaN and infinity."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from op_row import (
    ORACLE_ERROR,
    Op,
    Sample,
    bounds,
    leaves,
    oracle,
    same,
    same_gradients,
    same_results,
    value_and_gradients,
    within,
)
from op_table import OPS, every_op

REAL = [torch.float32, torch.float64]
HALF = [torch.float16, torch.bfloat16]


CASES = [(op, sample.name) for op in OPS for sample in op.samples(torch.float64)]
every_sample = pytest.mark.parametrize(("op", "name"), CASES, ids=[f"{op.title}-{name}" for op, name in CASES])


# --- values and gradients ---


@every_sample
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_value_is_the_reference(op: Op, name: str, dtype: torch.dtype) -> None:
    sample = op.sample(dtype, name)
    outputs, expected = op(sample.arguments), oracle(op, sample.arguments)
    assert len(outputs) == len(expected)
    for output, value, bound in zip(outputs, expected, bounds(op, sample.arguments, dtype)[0], strict=True):
        assert output.dtype == (dtype if output.is_floating_point() else torch.int32)
        within(output, value, bound + ORACLE_ERROR, "value")


@every_sample
def test_float32_gradient_is_the_float64_gradient(op: Op, name: str) -> None:
    """The float64 gradient itself is held against differences of the value by gradcheck."""
    sample = op.sample(torch.float32, name)
    double = dataclasses.replace(sample, arguments=op.change(sample.arguments, as_type(torch.float64)))
    gradients = value_and_gradients(op, leaves(op, sample))[1]
    expected = value_and_gradients(op, leaves(op, double))[1]
    assert gradients.keys() == expected.keys() and gradients
    for argument, bound in bounds(op, sample.arguments, torch.float32)[1].items():
        if argument in gradients:
            assert gradients[argument].dtype == torch.float32
            within(gradients[argument], expected[argument], bound, f"gradient of {argument}")


def as_type(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor


@every_sample
@pytest.mark.parametrize("half", HALF, ids=str)
def test_half_input_is_its_float32_value(op: Op, name: str, half: torch.dtype) -> None:
    """Bitwise: what is read as half is computed as the same numbers in float32; only the gradient is rounded back."""
    rounded = op.sample(half, name)
    single = dataclasses.replace(rounded, arguments=op.change(rounded.arguments, as_type(torch.float32)))
    outputs, gradients = value_and_gradients(op, leaves(op, rounded))
    expected_outputs, expected_gradients = value_and_gradients(op, leaves(op, single))
    for output, expected in zip(outputs, expected_outputs, strict=True):
        same(output, expected, "value")
    if rounded.summed == 1:
        rounded_back = {argument: gradient.to(half) for argument, gradient in expected_gradients.items()}
        same_gradients(op, rounded.arguments, gradients, rounded_back, name)
        return
    for argument, gradient in gradients.items():
        expected = expected_gradients[argument]
        within(gradient, expected, rounded.summed * torch.finfo(half).eps * expected.abs().max(), argument)


@every_op
def test_gradient_is_asked_for_or_not(op: Op) -> None:
    """Every choice of differentiated arguments gives the same value and the same gradient of those that are chosen."""
    sample = op.sample(torch.float32)
    outputs, gradients = value_and_gradients(op, leaves(op, sample))
    names = op.differentiated(sample)
    for count in range(len(names)):
        for chosen in itertools.combinations(names, count):
            arguments = leaves(op, Sample("", sample.arguments, chosen))
            results = op(arguments)
            for result, output in zip(results, outputs, strict=True):
                same(result.detach(), output, f"value with gradients of {chosen}")
                assert chosen or not result.requires_grad
            if chosen:
                alone = value_and_gradients(op, arguments)[1]
                same_gradients(op, arguments, alone, {name: gradients[name] for name in chosen}, "alone")
    with torch.no_grad():
        for result, output in zip(op(leaves(op, sample)), outputs, strict=True):
            assert not result.requires_grad
            same(result, output, "value under no_grad")
    with torch.inference_mode():
        for result, output in zip(op(op.change(sample.arguments, torch.clone)), outputs, strict=True):
            same(result.clone(), output, "value in inference mode")


@every_op
def test_repeats_are_bitwise_equal(op: Op) -> None:
    for sample in [*op.samples(torch.float32), *op.large(torch.float32)]:
        first = value_and_gradients(op, leaves(op, sample))
        for _ in range(3):
            same_results(op, sample, value_and_gradients(op, leaves(op, sample)), first)


# --- NumPy ---


@every_op
@pytest.mark.parametrize("dtype", [*REAL, torch.float16], ids=str)
def test_numpy_gives_numpy_with_the_same_bits(op: Op, dtype: torch.dtype) -> None:
    for sample in op.samples(dtype):
        outputs = op(op.change(sample.arguments, lambda tensor: tensor.numpy()))
        for output, expected in zip(outputs, op(sample.arguments), strict=True):
            assert isinstance(output, np.ndarray), f"{sample.name}: {type(output)}"
            same(output, expected, sample.name)


@every_op
def test_cupy_gives_cupy(op: Op) -> None:
    cupy = pytest.importorskip("cupy")
    if not cupy.is_available():
        pytest.skip("no CUDA device")
    sample = op.sample(torch.float64)
    outputs = op(op.change(sample.arguments, lambda tensor: cupy.asarray(tensor.numpy())))
    for output, value, bound in zip(
        outputs, oracle(op, sample.arguments), bounds(op, sample.arguments, torch.float64)[0], strict=True
    ):
        assert isinstance(output, cupy.ndarray)
        within(cupy.asnumpy(output), value, bound, "value")


# --- NaN and infinity ---


@every_op
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("dtype", [*REAL, torch.float16], ids=str)
def test_nan_stays_in_its_item(op: Op, value: float, dtype: torch.dtype) -> None:
    """One bad number in one item: that item's value and gradient are NaN, every other item keeps every bit."""
    sample = op.sample(dtype)
    clean_outputs, clean_gradients = value_and_gradients(op, leaves(op, sample))
    for argument in op.differentiated(sample):
        if argument in (*op.nonnegative, *op.minus_infinity) and value < 0:
            continue
        if argument in op.infinity and np.isinf(value):
            continue
        for row in (0, 2):
            arguments = leaves(op, sample)
            with torch.no_grad():
                arguments[argument][(1, row) if op.arrays[argument] == 1 else (1, row, 0)] = value
            outputs, gradients = value_and_gradients(op, arguments)
            for output, clean in zip(outputs, clean_outputs, strict=True):
                same(output[::2], clean[::2], f"other items, {argument} row {row}")
            mask = torch.ones(()) if op.confined is None else torch.from_numpy(op.confined(arguments, 1, row))
            reached = outputs[0][1].isnan()
            assert reached[mask.bool().expand(reached.shape)].all(), f"{argument} row {row}: {outputs[0][1]}"
            for name, gradient in gradients.items():
                same(gradient[::2], clean_gradients[name][::2], f"gradient of {name} in other items")
                seen = argument in op.unread.get(name, ()) or gradient[1].isnan().any()
                assert seen, f"gradient of {name} hides the {value} in {argument}"
