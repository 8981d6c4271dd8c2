"""What every op must refuse, and how: a ValueError or TypeError that names op, argument, the expected and the given."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies

from op_row import Arguments, BadInput, Op, as_tuple, call
from op_table import OPS, every_op

DOUBLE = torch.float64


def refused(op: Op, arguments: Arguments, error: Any, argument: str, mentions: tuple[str, ...] = ()) -> None:
    with pytest.raises(error) as caught:
        call(op.function, arguments)
    message = str(caught.value)
    assert re.match(rf"{op.name}: {argument}: expected .+, got .+", message, re.DOTALL), message
    for part in mentions:
        assert part in message, f"{message!r} does not name {part}"


def bad_cases(visible_under_vmap: bool = False) -> Any:
    cases = [(op, bad) for op in OPS for bad in op.bad_inputs()]
    if visible_under_vmap:  # shapes, types and numbers, but no values of tensors
        cases = [(op, bad) for op, bad in cases if not only_values(op, bad)]
    return pytest.mark.parametrize(("op", "bad"), cases, ids=[f"{op.title}-{bad.name}" for op, bad in cases])


def only_values(op: Op, bad: BadInput) -> bool:
    """Whether nothing is wrong but the values of an array."""
    given, good = bad.changes.get(bad.argument), op.sample(DOUBLE).arguments.get(bad.argument)
    if not (isinstance(given, torch.Tensor) and isinstance(good, torch.Tensor)):
        return False
    return given.shape == good.shape and given.dtype == good.dtype


@bad_cases()
@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_bad_input_is_refused(op: Op, bad: BadInput, kind: str) -> None:
    arguments = op.sample(DOUBLE).arguments | bad.changes
    if kind == "numpy":
        arguments = {n: v.numpy() if isinstance(v, torch.Tensor) else v for n, v in arguments.items()}
    refused(op, arguments, bad.error, bad.argument, bad.mentions)


@bad_cases()
def test_bad_input_is_refused_where_a_gradient_is_asked_for(op: Op, bad: BadInput) -> None:
    arguments = op.change(
        op.sample(DOUBLE).arguments | bad.changes,
        lambda tensor: tensor.clone().requires_grad_(tensor.is_floating_point()),
    )
    refused(op, arguments, bad.error, bad.argument, bad.mentions)


@bad_cases(visible_under_vmap=True)
def test_bad_input_is_refused_under_vmap(op: Op, bad: BadInput) -> None:
    arguments = op.sample(DOUBLE).arguments | bad.changes
    names = op.array_names(arguments)
    doubled = [torch.stack([arguments[name]] * 2) for name in names]
    with pytest.raises(bad.error, match=f"{op.name}: {bad.argument}: expected .+"):
        torch.vmap(lambda *tensors: op(arguments | dict(zip(names, tensors, strict=True))))(*doubled)


# --- arrays of the wrong kind ---


def no_arrays() -> dict[str, Any]:
    return {
        "None": None,
        "string": "array",
        "list": [[1.0, 2.0], [3.0, 4.0]],
        "number": 3.5,
        "NumPy number": np.float64(2.0),
        "bytes": b"12345678",
        "memory view": memoryview(np.ones((2, 2))),
        "generator": (i for i in range(3)),
        "type": torch.Tensor,
        "object with __array__": type("Array", (), {"__array__": lambda self, *_: np.ones((2, 2))})(),
        "object with a false __dlpack__": type(
            "Liar", (), {"__dlpack__": lambda self: 1, "__dlpack_device__": lambda self: (1, 0)}
        )(),
    }


@every_op
@pytest.mark.parametrize("kind", no_arrays())
def test_no_array(op: Op, kind: str) -> None:
    arguments = op.sample(DOUBLE).arguments
    for name in op.array_names(arguments):
        if name in op.scalars and kind in ("number", "NumPy number"):
            continue
        if kind != "None" or inspect.signature(op.function).parameters[name].default is inspect.Parameter.empty:
            refused(op, arguments | {name: no_arrays()[kind]}, TypeError, name)


def numpy_types(array: np.ndarray) -> dict[str, np.ndarray]:
    """The array with types that nothing here computes in; for labels also floating ones, for the others integers."""
    integer = array.dtype.kind == "i"
    types = {
        "complex": array.astype(complex),
        "bool": array.astype(bool),
        "object": array.astype(object),
        "string": array.astype(str),
        "big endian": array.astype(array.dtype.newbyteorder(">")),
        "structured": np.zeros(array.shape, [("x", "f8")]),
        "date": np.zeros(array.shape, "M8[s]"),
    }
    if integer:
        return types | {"float": array.astype(float), "uint64": array.astype(np.uint64)}
    return types | {
        "int": array.astype(int),
        "long double": array.astype(np.longdouble),
        "uint8": array.astype(np.uint8),
    }


@every_op
@pytest.mark.parametrize("kind", [*numpy_types(np.ones(1)), "float", "uint64"])
def test_numpy_type(op: Op, kind: str) -> None:
    arguments = op.change(op.sample(DOUBLE).arguments, lambda tensor: tensor.numpy())
    for name in op.array_names(arguments):
        types = numpy_types(arguments[name])
        if kind in types:
            refused(op, arguments | {name: types[kind]}, (TypeError, ValueError), name)


#: Tensors that are no dense real matrices, by what is wrong with them.
TORCH_KINDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "complex": lambda t: t.to(torch.complex64),
    "conjugate": lambda t: t.to(torch.complex64).conj(),
    "bool": lambda t: t.bool(),
    "sparse": lambda t: t.to_sparse(),
    "compressed": lambda t: t.reshape(t.shape[0], -1).to_sparse_csr(),
    "other device": lambda t: t.to("meta"),
    "no dimension": lambda t: t.sum(),
    "ten dimensions": lambda t: t.reshape((1,) * (10 - t.ndim) + tuple(t.shape)),
    "other number type": lambda t: t.long() if t.is_floating_point() else t.double(),
    "float8": lambda t: t.float().to(torch.float8_e4m3fn),
    "quantised": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
}


@every_op
@pytest.mark.parametrize("kind", TORCH_KINDS)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta", "ignore:.*quantize.*")
def test_torch_kind(op: Op, kind: str) -> None:
    arguments = op.sample(DOUBLE).arguments
    names = op.array_names(arguments)
    for name in names:
        if (kind == "other device" and len(names) == 1) or (kind == "no dimension" and name in op.scalars):
            continue
        # Of two arguments on different devices either may be called the wrong one.
        argument = f"({'|'.join(names)})" if kind == "other device" else name
        changed = arguments | {name: TORCH_KINDS[kind](arguments[name])}
        refused(op, changed, (TypeError, ValueError), argument)


@every_op
def test_arrays_of_two_libraries(op: Op) -> None:
    arguments = op.sample(DOUBLE).arguments
    names = op.array_names(arguments)
    for name in names if len(names) > 1 else []:
        refused(op, arguments | {name: arguments[name].numpy()}, TypeError, f"({'|'.join(names)})")


@every_op
def test_too_few_dimensions(op: Op) -> None:
    arguments = op.sample(DOUBLE).arguments
    for name in op.array_names(arguments):
        for dims in range(name in op.scalars, op.arrays[name]):
            short = arguments[name][(0,) * (arguments[name].ndim - dims)]
            refused(op, arguments | {name: short}, (TypeError, ValueError), name)


@every_op
@pytest.mark.no_sanitizer
def test_under_compile_bad_arguments_still_raise(op: Op) -> None:
    """The first shape error of the row, seen through the compiler: an error, not a result."""
    bad = next((bad for bad in op.bad_inputs() if bad.mentions), None) or op.bad_inputs()[0]
    torch._dynamo.reset()
    compiled = torch.compile(lambda arguments: op(arguments), backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match="expected"):
        compiled(op.sample(DOUBLE).arguments | bad.changes)
    torch._dynamo.reset()


# --- anything at all ---


def any_array() -> strategies.SearchStrategy[Any]:
    """Torch tensors and NumPy arrays of any type and of small, often unsuitable, shapes and layouts."""
    shapes = strategies.lists(strategies.sampled_from([0, 1, 2, 3, 5, 7]), max_size=5).map(tuple)
    torch_types = [
        torch.float32,
        DOUBLE,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.uint8,
        torch.bool,
    ]
    torch_types += [torch.complex64, torch.int16]
    numpy_kinds = ["f4", "f8", "f2", "i8", "i4", "u1", "u8", "?", "c16", ">f4", "O", "S3", "g"]
    layouts = strategies.sampled_from(["plain", "transposed", "reversed", "gaps", "expanded"])
    values = strategies.sampled_from([0.0, 1.0, -1.0, float("nan"), float("inf"), 1e30])

    def numpy_array(shape: tuple[int, ...], kind: str, layout: str, value: float) -> np.ndarray:
        with np.errstate(all="ignore"):
            array = np.full(
                shape, value if kind[-1] in "fgc48216O" and kind not in ("i8", "i4", "u1", "u8") else 1
            ).astype(kind)
        if layout == "transposed":
            return array.T
        if layout == "reversed":
            return array[::-1] if array.ndim else array
        if layout == "gaps":
            return array[..., ::2] if array.ndim else array
        return np.broadcast_to(array, (2, *shape)) if layout == "expanded" else array

    def tensor(shape: tuple[int, ...], dtype: torch.dtype, layout: str, value: float) -> torch.Tensor:
        filled = torch.full(shape, value if dtype.is_floating_point or dtype.is_complex else 1).to(dtype)
        if layout == "transposed":
            return filled.permute(tuple(reversed(range(filled.ndim))))
        if layout == "gaps":
            return filled[..., ::2] if filled.ndim else filled
        return filled.expand(2, *shape) if layout == "expanded" else filled

    return strategies.one_of(
        strategies.builds(numpy_array, shapes, strategies.sampled_from(numpy_kinds), layouts, values),
        strategies.builds(tensor, shapes, strategies.sampled_from(torch_types), layouts, values),
    )


def anything() -> strategies.SearchStrategy[Any]:
    numbers = [0, 1, -1, 2, 2**31, 2**63, 10**400, -(10**400), 0.0, -0.0, 0.5, 1e-320, 1e300, -1.0, 1j]
    others = [None, True, False, "", "auto", "samples", "op: argument: expected", b"x", (), [], {}, object(), print]
    numpy = [np.float32(0.5), np.int64(3), np.bool_(True), np.array(0.5), np.array([0.5]), np.datetime64("now")]
    tensors = [torch.tensor(0.5), torch.tensor([1, 2]), torch.tensor(3)]
    odd = [float("nan"), float("inf"), Ellipsis, slice(None), range(3)]
    scalars = strategies.sampled_from([*numbers, *others, *numpy, *tensors, *odd])
    return strategies.one_of(scalars, any_array())


@every_op
@hypothesis.settings(max_examples=150)
@hypothesis.given(data=strategies.data())
def test_anything_gives_a_result_or_a_clear_error(op: Op, data: strategies.DataObject) -> None:
    """Up to three arguments of a good call are replaced by anything: it may work, or it must say what is wrong."""
    sample = data.draw(
        strategies.sampled_from([s.name for s in op.samples(DOUBLE) if s.name in ("batch", "tall", "two", "many")])
    )
    arguments = op.sample(data.draw(strategies.sampled_from([torch.float32, DOUBLE])), sample).arguments
    if data.draw(strategies.booleans()):
        arguments = op.change(arguments, lambda tensor: tensor.numpy())
    parameters = list(inspect.signature(op.function).parameters)
    names = data.draw(strategies.lists(strategies.sampled_from(parameters), min_size=1, max_size=3, unique=True))
    changed = arguments | {name: data.draw(anything(), label=name) for name in names}
    try:
        result = call(op.function, changed)
    except (ValueError, TypeError, NotImplementedError) as error:
        named = "|".join(parameters)
        assert re.match(rf"{op.name}: ({named}): ", str(error)), f"{type(error).__name__}: {error}"
        return
    first = changed[next(iter(op.arrays))]
    for output in as_tuple(result):
        assert isinstance(output, torch.Tensor if isinstance(first, torch.Tensor) else np.ndarray)
