"""What every op must do when it is not run eagerly: compiled, exported, traced, on fake and meta tensors, disabled."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from op_row import (
    Arguments,
    Op,
    Sample,
    as_tuple,
    bounds,
    function_of,
    leaves,
    library_calls,
    same,
    value_and_gradients,
    weighted_sum,
    within,
)
from op_table import OPS, every_op

DOUBLE = torch.float64

# Torch warns of itself: Dynamo instantiates every autograd.Function that it traces, inductor uses torch.jit.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated:DeprecationWarning"),
]

# --- compilation ---


@contextlib.contextmanager
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def check_compiled(op: Op, sample: Sample, compiled: Callable[[Arguments], Any]) -> None:
    expected = value_and_gradients(op, leaves(op, sample))
    arguments = leaves(op, sample)
    outputs = compiled(arguments)
    names = op.differentiated(sample)
    gradients = torch.autograd.grad(weighted_sum(op, outputs), [arguments[name] for name in names])
    value_limits, gradient_limits = bounds(op, sample.arguments, sample.arguments[names[0]].dtype)
    for output, value, limit in zip(outputs, expected[0], value_limits, strict=True):
        assert output.dtype == value.dtype
        within(output, value, 2 * limit, f"{sample.name}: value")
    for name, gradient in zip(names, gradients, strict=True):
        within(gradient, expected[1][name], 2 * gradient_limits[name], f"{sample.name}: gradient of {name}")


def compiled_op(op: Op, **options: Any) -> Callable[[Arguments], Any]:
    # By keyword: tracing inspect.signature would turn default values into graph inputs.
    return torch.compile(lambda arguments: as_tuple(op.function(**arguments)), fullgraph=True, **options)


@every_op
@pytest.mark.no_sanitizer
def test_compile_forward_and_backward(op: Op) -> None:
    with fresh_compiler():
        compiled = compiled_op(op, backend="aot_eager")
        check_compiled(op, op.sample(DOUBLE), compiled)
        check_compiled(op, op.sample(torch.float32), compiled)


@every_op
@pytest.mark.no_sanitizer
def test_compile_with_dynamic_shapes(op: Op) -> None:
    """One graph serves another batch size."""
    sample = op.sample(DOUBLE)
    more = Sample("more", op.change(sample.arguments, lambda t: torch.cat([t, t.flip(0)])), sample.differentiable)
    with fresh_compiler(), torch._dynamo.config.patch(error_on_recompile=True):
        compiled = compiled_op(op, backend="aot_eager", dynamic=True)
        check_compiled(op, sample, compiled)
        check_compiled(op, more, compiled)


@every_op
@pytest.mark.no_sanitizer
def test_compiled_parameters_may_change(op: Op) -> None:
    """A number that differs between calls becomes a symbol of the graph."""
    sample = op.sample(DOUBLE)
    with fresh_compiler():
        compiled = compiled_op(op, backend="aot_eager")
        for factor in (1.0, 1.25, 0.5):
            scaled = {n: v * factor if isinstance(v, float) else v for n, v in sample.arguments.items()}
            check_compiled(op, dataclasses.replace(sample, arguments=scaled), compiled)


def one_op_of_each_family() -> Any:
    families: dict[str, Op] = {}
    for op in sorted(OPS, key=lambda op: len(op.arrays)):  # the one with most arrays stays
        families[op.function.__module__] = op
    return pytest.mark.parametrize("op", families.values(), ids=lambda op: op.title)


@one_op_of_each_family()
@pytest.mark.no_sanitizer
@pytest.mark.filterwarnings("ignore::FutureWarning")  # inductor's own
def test_inductor(op: Op) -> None:
    with fresh_compiler():
        check_compiled(op, op.sample(torch.float32), compiled_op(op, backend="inductor", dynamic=True))


@every_op
@pytest.mark.no_sanitizer
def test_compile_of_vmap(op: Op) -> None:
    sample = op.sample(DOUBLE)
    names = op.array_names(sample.arguments)
    with fresh_compiler():
        compiled = torch.compile(
            torch.vmap(lambda *tensors: op(sample.arguments | dict(zip(names, tensors, strict=True)))[0]),
            backend="aot_eager",
            fullgraph=True,
        )
        result = compiled(*(sample.arguments[name] for name in names))
    within(result, op(sample.arguments)[0], 2 * bounds(op, sample.arguments, DOUBLE)[0][0], "value")


@every_op
@pytest.mark.no_sanitizer
def test_export(op: Op) -> None:
    class Module(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> Any:
            return op(sample.arguments | dict(zip(names, tensors, strict=True)))

    sample = op.sample(DOUBLE)
    names = op.array_names(sample.arguments)
    tensors = tuple(sample.arguments[name] for name in names)
    program = torch.export.export(Module(), tensors)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any(target.startswith("subspan.") for target in targets), f"exported as other operations: {targets}"
    for output, expected in zip(program.module()(*tensors), op(sample.arguments), strict=True):
        same(output, expected, "exported program")


@every_op
@pytest.mark.no_sanitizer
def test_opcheck_of_every_registered_op_that_it_calls(op: Op) -> None:
    """Schema, autograd registration, fake kernel against the real one, and tracing with dynamic shapes."""
    from subspan import _route

    sample = op.sample(DOUBLE)
    calls = library_calls(op, sample)
    assert calls, "the call did not go through a registered op"
    assert set(calls) >= {row.op for row in _route.OPS.values() if row.name == (op.registered or op.name)}
    for registered, (args, kwargs) in calls.items():
        inputs = tuple(a.detach().clone() if isinstance(a, torch.Tensor) else a for a in args)
        row = next(row for row in _route.OPS.values() if row.op == registered)
        for tensor in inputs if row.differentiable else ():
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                tensor.requires_grad_()
        results = torch.library.opcheck(registered, inputs, kwargs)
        assert len(results) >= 4 and set(results.values()) == {"SUCCESS"}


@every_op
@pytest.mark.no_sanitizer
def test_compiled_forward_mode_raises(op: Op) -> None:
    function, inputs = function_of(op, op.sample(DOUBLE))
    primals, tangents = tuple(t.detach() for t in inputs), tuple(torch.ones_like(t) for t in inputs)
    compiled = torch.compile(lambda p, t: torch.func.jvp(function, p, t)[1], backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match=r"forward-mode AD|Unsupported|fullgraph"):
        compiled(primals, tangents)


# --- tensors without memory ---


@every_op
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.bfloat16], ids=str)
def test_fake_and_meta_tensors_have_the_real_shapes(op: Op, dtype: torch.dtype) -> None:
    for sample in op.samples(dtype):
        if sample.arguments.get("num_classes", 1) is None or (
            "num_classes" not in sample.arguments and "labels" in op.arrays
        ):
            continue  # the number of classes is read from the labels, which have no values here
        expected = op(sample.arguments)
        described = [(tuple(output.shape), output.dtype) for output in expected]
        meta = op(op.change(sample.arguments, lambda tensor: tensor.to("meta")))
        assert all(output.is_meta for output in meta)
        assert [(tuple(output.shape), output.dtype) for output in meta] == described, sample.name
        mode = FakeTensorMode()
        fake_arguments = op.change(leaves(op, sample), mode.from_tensor)
        with mode:
            fake = op(fake_arguments)
            gradients = torch.autograd.grad(
                weighted_sum(op, fake), [fake_arguments[name] for name in op.differentiated(sample)]
            )
        assert [(tuple(output.shape), output.dtype) for output in fake] == described, sample.name
        for name, gradient in zip(op.differentiated(sample), gradients, strict=True):
            assert gradient.shape == sample.arguments[name].shape and gradient.dtype == dtype


# --- without the kernels ---


@pytest.fixture(scope="session")
def disabled_results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    """Values and gradients of every sample, computed in a process with SUBSPAN_DISABLE=1."""
    path = tmp_path_factory.mktemp("disabled") / "results.pickle"
    environment = os.environ | {"SUBSPAN_DISABLE": "1"}
    subprocess.run([sys.executable, __file__, str(path)], env=environment, check=True, timeout=300)
    return pickle.loads(path.read_bytes())


def store_results(path: str) -> None:
    from subspan import _route

    assert all(row["path"] == "composite" for row in _route.paths() if row["device"] == "cpu")
    results = {}
    for op in OPS:
        for sample in op.samples(DOUBLE):
            numpy = op(op.change(sample.arguments, lambda tensor: tensor.numpy()))
            results[op.title, sample.name] = (*value_and_gradients(op, leaves(op, sample)), numpy)
    Path(path).write_bytes(pickle.dumps(results))


@every_op
@pytest.mark.no_sanitizer
def test_composite_gives_the_same(op: Op, disabled_results: dict[tuple[str, str], Any]) -> None:
    """To rounding; ten times the bound, because the composite may factor the larger side, where errors grow more."""
    for sample in op.samples(DOUBLE):
        outputs, gradients, numpy = disabled_results[op.title, sample.name]
        expected = value_and_gradients(op, leaves(op, sample))
        value_limits, gradient_limits = bounds(op, sample.arguments, DOUBLE)  # of the kernel's choice of side
        for k, value in enumerate(expected[0]):
            within(outputs[k], value, 10 * value_limits[k], f"{sample.name}: value")
            within(numpy[k], value, 10 * value_limits[k], f"{sample.name}: NumPy value")
            assert outputs[k].dtype == value.dtype
        for name, gradient in expected[1].items():
            within(gradients[name], gradient, 10 * gradient_limits[name], f"{sample.name}: gradient of {name}")


if __name__ == "__main__":
    store_results(sys.argv[1])
