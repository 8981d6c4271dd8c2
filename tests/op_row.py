"""What a row of the op table says, and how a test calls it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

#: Every bound is SAFETY * size * eps * growth: `size` terms are added in the longest sum, `growth` is the op's
#: first-order sensitivity to an error of one rounding in each of those terms. The analysis gives 1; the rest is room
#: for the terms of second order. LAPACK's own tests pass below 30.
SAFETY = 2
#: A reference in float64 forms I + alpha G on its own side: it errs by roundings of 1, however small the value.
ORACLE_ERROR = 1000 * torch.finfo(torch.float64).eps

Arguments = dict[str, Any]
Results = tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]  # outputs, gradients by argument


@dataclasses.dataclass(frozen=True)
class Sample:
    """One call. Arrays are torch tensors; `differentiable` overrides the row's where a point forbids differences."""

    name: str
    arguments: Arguments
    differentiable: tuple[str, ...] | None = None
    summed: int = 1  # gradients that torch adds after each was rounded to the argument's type


@dataclasses.dataclass(frozen=True)
class BadInput:
    """Changes to the row's "batch" sample that must raise `error`, as `op: argument: expected X, got Y`."""

    name: str
    changes: Arguments
    error: type[Exception] | tuple[type[Exception], ...]
    argument: str
    mentions: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Growth of rounding errors in every entry of the outputs and of the arguments' gradients, for one item."""

    size: int
    outputs: tuple[Any, ...]
    gradients: dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Op:
    name: str
    function: Callable[..., Any]
    reference: Callable[..., Any]  # the same call on float64 NumPy arrays
    arrays: dict[str, int]  # array arguments, and how many of their dimensions are not batch
    differentiable: tuple[str, ...]
    samples: Callable[[torch.dtype], list[Sample]]  # one is "batch": three items, every array batched
    large: Callable[[torch.dtype], list[Sample]]  # enough work for every thread
    degenerate: Callable[[], list[Sample]]  # float64 points at which a gradient is delicate
    growth: Callable[..., Bounds]  # the same call on the float64 arrays of one item
    bad_inputs: Callable[[], list[BadInput]]
    square: bool = False  # matrices must be square, symmetric and positive definite
    columns_are_rows: tuple[str, ...] = ()  # matrices with a column for every row of the first array
    square_of_columns: tuple[str, ...] = ()  # matrices as large as the first array has columns, both ways
    core_shapes: Callable[[int, int], dict[str, tuple[int, ...]]] | None = None  # of arrays that are no such matrices
    nonnegative: tuple[str, ...] = ()  # arguments of which negative values are refused
    minus_infinity: tuple[str, ...] = ()  # arguments of which -inf is a value like any other
    infinity: tuple[str, ...] = ()  # arguments of which infinities of both signs are
    scalars: tuple[str, ...] = ()  # arguments that may be a number, or an array of no dimension
    constant_outputs: int = 0  # trailing outputs that carry no gradient, beside a status
    constrain: Callable[[Arguments], Arguments] = dict  # free arguments to valid ones, differentiably
    variant: str = ""  # of a name that has several rows
    registered: str = ""  # of the registered op, where it is not the name
    kernel_gradient: bool = True  # False: the gradient is a formula in torch's own products, which promise no bits
    confined: Callable[[Arguments, int, int], Any] | None = None  # (arguments, item, row) -> mask: where NaN must show
    unread: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # what a gradient does not depend on

    def __repr__(self) -> str:
        return f"<op {self.title}>"

    @property
    def title(self) -> str:
        return f"{self.name} {self.variant}".strip()

    def __call__(self, arguments: Arguments) -> tuple[Any, ...]:
        return as_tuple(call(self.function, arguments))

    def sample(self, dtype: torch.dtype, name: str = "batch") -> Sample:
        return next(sample for sample in self.samples(dtype) if sample.name == name)

    def differentiated(self, sample: Sample) -> list[str]:
        names = self.differentiable if sample.differentiable is None else sample.differentiable
        return [name for name in names if isinstance(sample.arguments.get(name), torch.Tensor)]

    def array_names(self, arguments: Arguments) -> list[str]:
        return [name for name in self.arrays if isinstance(arguments.get(name), (torch.Tensor, np.ndarray))]

    def change(self, arguments: Arguments, change: Callable[[Any], Any]) -> Arguments:
        """The arguments with `change` applied to every array."""
        return arguments | {name: change(arguments[name]) for name in self.array_names(arguments)}


def as_tuple(result: Any) -> tuple[Any, ...]:
    return tuple(result) if isinstance(result, tuple) else (result,)


def call(function: Callable[..., Any], arguments: Arguments) -> Any:
    """Passes by position what may be passed by position, as users do."""
    positional, keywords = [], dict(arguments)
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD or name not in keywords:
            break
        positional.append(keywords.pop(name))
    return function(*positional, **keywords)


def double_array(tensor: torch.Tensor) -> np.ndarray:
    """The same values as float64; labels as int64."""
    tensor = tensor.detach().cpu()
    return tensor.double().numpy() if tensor.is_floating_point() else tensor.long().numpy()


def batch_shape(op: Op, arguments: Arguments) -> tuple[int, ...]:
    return np.broadcast_shapes(
        *(arguments[a].shape[: arguments[a].ndim - op.arrays[a]] for a in op.array_names(arguments))
    )


def oracle(op: Op, arguments: Arguments) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(output) for output in as_tuple(call(op.reference, op.change(arguments, double_array))))


def bounds(op: Op, arguments: Arguments, dtype: torch.dtype) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Largest error that rounding explains, in every entry of the outputs and of the gradients for an upstream gradient
    of at most one. Where an argument is shared by items, their errors add."""
    arrays = op.change(arguments, double_array)
    batch = batch_shape(op, arrays)
    names = op.array_names(arrays)
    full = {a: np.broadcast_to(arrays[a], batch + arrays[a].shape[arrays[a].ndim - op.arrays[a] :]) for a in names}
    eps = SAFETY * torch.finfo(dtype).eps
    gradients = {name: np.zeros(arrays[name].shape) for name in op.differentiable if name in names}
    outputs: list[np.ndarray] = []
    known = {name: value for name, value in arrays.items() if name != "return_info"}
    for index in np.ndindex(batch):
        growth = call(op.growth, known | {name: full[name][index] for name in names})
        status = (0.0,) if arguments.get("return_info") else ()  # a whole number, exact
        outputs = outputs or [np.zeros((*batch, *np.shape(output))) for output in (*growth.outputs, *status)]
        for total, output in zip(outputs, (*growth.outputs, *status), strict=True):
            total[index] = eps * growth.size * output
        for name, total in gradients.items():
            own = index[len(batch) - (total.ndim - op.arrays[name]) :] if total.ndim > op.arrays[name] else ()
            own = tuple(0 if size == 1 else i for i, size in zip(own, total.shape, strict=False))
            total[own] += eps * growth.size * growth.gradients[name]
    return outputs or [np.zeros(1)] * len(oracle(op, arguments)), gradients  # no items: nothing to bound


def within(actual: Any, expected: Any, bound: Any, what: str) -> None:
    """Every entry within its bound; NaN only where NaN is expected."""
    actual, expected = (
        np.asarray(double_array(torch.as_tensor(actual))),
        np.asarray(double_array(torch.as_tensor(expected))),
    )
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    if not actual.size:
        return
    error = np.abs(actual - expected)
    bound = np.broadcast_to(bound, actual.shape)
    assert (error <= bound).all(), (
        f"{what}: {np.max(error / np.maximum(bound, 1e-300)):.3g} times its bound of rounding errors"
    )


def same(first: Any, second: Any, what: str) -> None:
    """Bitwise, NaN equal to NaN, also of the same type."""
    first, second = torch.as_tensor(first), torch.as_tensor(second)
    assert first.dtype == second.dtype, f"{what}: {first.dtype} and {second.dtype}"
    assert first.shape == second.shape, f"{what}: {tuple(first.shape)} and {tuple(second.shape)}"
    assert torch.equal(first.isnan(), second.isnan()), f"{what}: NaN in different places"
    different = (first != second) & ~first.isnan()
    assert not different.any(), f"{what}: {int(different.sum())} of {first.numel()} entries differ"


def same_gradients(op: Op, arguments: Arguments, first: dict[str, Any], second: dict[str, Any], what: str) -> None:
    """Bitwise where the kernel computes gradients; else to the rounding errors of both."""
    assert first.keys() == second.keys()
    for name, gradient in first.items():
        if op.kernel_gradient or torch.equal(gradient, second[name]):
            same(gradient, second[name], f"{what}: gradient of {name}")
            continue
        dtype = arguments[name].dtype
        limit = bounds(op, arguments, torch.promote_types(dtype, torch.float32))[1][name]
        rounded = torch.finfo(dtype).eps * double_array(second[name].abs())
        within(gradient, second[name], 2 * limit + rounded, f"{what}: gradient of {name}")


def same_results(op: Op, sample: Sample, first: Results, second: Results) -> None:
    for i, (output, expected) in enumerate(zip(first[0], second[0], strict=True)):
        same(output, expected, f"{sample.name}: output {i}")
    same_gradients(op, sample.arguments, first[1], second[1], sample.name)


def bytes_of(view: torch.Tensor) -> bytes:
    """Of the whole block of memory that a tensor is a view of."""
    return torch.empty(0, dtype=torch.uint8).set_(view.untyped_storage()).numpy().tobytes()


def leaves(op: Op, sample: Sample) -> Arguments:
    """The sample with fresh tensors, those that are differentiated requiring a gradient."""
    names = op.differentiated(sample)
    fresh = op.change(sample.arguments, lambda t: t.detach().clone(memory_format=torch.contiguous_format))
    return fresh | {name: fresh[name].requires_grad_() for name in names}


def differentiable_outputs(op: Op, outputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(o for o in outputs[: len(outputs) - op.constant_outputs] if o.is_floating_point())


def weighted_sum(op: Op, outputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """A scalar of all outputs that carry a gradient, each entry with an upstream gradient of its own in [-1, 1]."""
    total: Any = 0
    for output in differentiable_outputs(op, outputs):
        entries = torch.arange(output.numel(), device=output.device).reshape(output.shape)
        total = total + (output * torch.cos(entries.to(output.dtype))).sum()
    return total


def value_and_gradients(op: Op, arguments: Arguments) -> Results:
    """The outputs, and the gradient of their weighted sum in every argument that requires one."""
    names = [name for name in op.array_names(arguments) if arguments[name].requires_grad]
    outputs = op(arguments)
    every = all(arguments[name].requires_grad for name in op.differentiable if name in op.array_names(arguments))
    carry = [output.requires_grad for output in differentiable_outputs(op, outputs)]
    assert all(carry) if every else carry[0], "an output has lost its gradient"
    gradients = torch.autograd.grad(weighted_sum(op, outputs), [arguments[name] for name in names])
    return tuple(output.detach() for output in outputs), dict(zip(names, gradients, strict=True))


def function_of(op: Op, sample: Sample) -> tuple[Callable[..., Any], list[torch.Tensor]]:
    """The op as a function of its differentiated arguments alone, returning the outputs that carry a gradient."""
    names = op.differentiated(sample)
    arguments = leaves(op, sample)

    def function(*tensors: torch.Tensor) -> Any:
        outputs = op(arguments | op.constrain(dict(zip(names, tensors, strict=True))))
        outputs = differentiable_outputs(op, outputs)
        return outputs if len(outputs) > 1 else outputs[0]

    return function, [arguments[name] for name in names]


class Recorder(TorchDispatchMode):
    """Remembers the library's own ops that are called, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[Any, tuple[Any, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "subspan":
            self.calls.setdefault(func, (args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def library_calls(op: Op, sample: Sample) -> dict[Any, tuple[Any, Any]]:
    """The library's own ops that forward and backward call when a tracer watches, with their arguments."""
    arguments = leaves(op, sample)
    with Recorder() as recorder:
        total = weighted_sum(op, op(arguments))
        torch.autograd.grad(total, [arguments[name] for name in op.differentiated(sample)])
    return recorder.calls
