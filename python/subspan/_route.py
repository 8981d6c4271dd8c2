"""How a call reaches its computation.

    plain eager tensors, CPU        -> compiled kernel, inside an autograd.Function only if a gradient is needed
    torch.compile, functorch, fake  -> autograd.Function around a registered library op (which calls the same kernel)
    devices without a kernel        -> the composite: the same algorithm in torch operations, differentiated by torch
    NumPy                           -> compiled kernel
    CuPy                            -> as the torch view of the same memory
    forward-mode AD                 -> NotImplementedError (a registered op would silently give zero tangents)

An op says what it is once, to `register`; the autograd Function, library op, fake kernel, vmap rule and eager bypass
come from here. Every use of a private torch name is in this file, each with a public fallback.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import _check, _native
from ._check import COMPUTE_DTYPE, DISABLED, torch


def not_differentiable(*_: Any) -> Any:
    """The gradient of an op that is itself a gradient: its caller is differentiated further, not the op."""
    raise NotImplementedError("the derivative of this internal op is taken through the function that calls it")


@dataclasses.dataclass(frozen=True)
class Op:
    """One registered operation. Tensor arguments come first, parameters after them.

    name:       of the op in `torch.ops.subspan`
    inputs:     name and number of core (non-batch) dimensions of each tensor argument
    schema:     library schema of the parameters, e.g. "float alpha, int side"
    outputs:    dtype of each output: "compute" (the type computed in) or "int32"
    shapes:     (*tensors, *parameters) -> shape of each output, from checked arguments
    kernel:     (*tensors, *outputs, *saved, *parameters, threads) fills outputs and, where not None, the saved arrays
    composite:  (*tensors, *parameters) -> outputs, in differentiable torch operations
    gradient:   (*tensors, *parameters) -> what `backward` needs, in differentiable torch operations
    backward:   (upstream of the first output, saved, tensors, parameters, scaled) -> gradient of each tensor, where
                scaled(upstream, saved array, tensor) is the product of the first two in the tensor's type
    saves:      which inputs' shapes the saved arrays have; empty: backward needs the graded outputs themselves, which
                it differentiates further where there is no `gradient`
    keeps_results: False where nothing is saved and backward needs no outputs either
    graded:     how many leading outputs carry gradients, all of them wanted in every call; where there are several,
                backward gets a tuple of upstreams, None where none came
    selective:  backward also takes, last, which tensors need a gradient; it gives None or anything for the others
    saved_shapes: as shapes, of the saved arrays, where they have no input's shape; saves then only counts them
    public:     the function that users call, for error messages; empty: the name
    factors:    whether the composite factors matrices, for which it may have a CUDA kernel
    cuda_kernel, cuda_serves: as kernel, with the stream's handle for the threads; whether it can take these arguments
    """

    name: str
    inputs: tuple[tuple[str, int], ...]
    schema: str
    outputs: tuple[str, ...]
    shapes: Callable[..., Sequence[tuple[int, ...]]]
    kernel: Callable[..., None]
    composite: Callable[..., Any]
    gradient: Callable[..., Any] = not_differentiable
    backward: Callable[..., Any] = not_differentiable
    selective: bool = False
    saves: tuple[int, ...] = (0,)
    keeps_results: bool = True
    graded: int = 1
    saved_shapes: Callable[..., Sequence[tuple[int, ...] | None]] | None = None
    public: str = ""
    factors: bool = False
    cuda_kernel: Callable[..., None] | None = None
    cuda_serves: Callable[..., bool] | None = None

    @property
    def differentiable(self) -> bool:
        return self.backward is not not_differentiable

    def shapes_of_saved(self, *args: Any) -> Sequence[tuple[int, ...] | None]:
        """None: of an array that does not apply, because its input is absent."""
        if self.saved_shapes is not None:
            return self.saved_shapes(*args)
        return [None if args[i] is None else tuple(args[i].shape) for i in self.saves]

    @property
    def repeats_gradient(self) -> bool:
        """Whether a gradient that will be differentiated is computed anew, by `gradient`."""
        return self.gradient is not not_differentiable

    @property
    def op(self) -> Any:
        """The registered library op."""
        return getattr(torch.ops.subspan, self.name).default


OPS: dict[str, Op] = {}
_ENTRIES: dict[str, Callable[..., Any]] = {}


def register(op: Op) -> Callable[..., Any]:
    """Registers an op and gives the function (wanted, *tensors, *parameters) -> the first `wanted` outputs, which the
    op's public functions call with checked, broadcast arguments."""
    OPS[op.name] = op
    if torch is None:
        _ENTRIES[op.name] = lambda wanted, *args: _run_numpy(op, args, wanted)
    else:
        _ENTRIES[op.name] = _register_torch(op)
    return _ENTRIES[op.name]


def call(name: str, wanted: int, *args: Any) -> Any:
    """The first `wanted` outputs of a registered op, for composites that build on it."""
    return _ENTRIES[name](wanted, *args)


def call_in_backward(name: str, *args: Any) -> Any:
    """The first output of a registered op, for a backward function, which may be traced, mapped or differentiated."""
    return outputs_in_backward(name, 1, *args)[0]


def outputs_in_backward(name: str, wanted: int, *args: Any) -> tuple[Any, ...]:
    """The first `wanted` outputs, likewise."""
    op = OPS[name]
    if torch.compiler.is_compiling():  # no Function can be traced inside a backward
        result = op.op(*args)
        return result[:wanted] if isinstance(result, tuple) else (result,)
    from ._route_torch import is_batched

    if any(isinstance(a, torch.Tensor) and is_batched(a) for a in args):
        return tuple(op.composite(*args)[:wanted])
    return tuple(_ENTRIES[name](wanted, *args))


def paths() -> list[dict[str, str]]:
    """Which path each op takes on each device, and why."""
    rows = []
    for name in OPS:
        if DISABLED:
            cpu = ("composite", "SUBSPAN_DISABLE is set")
        else:
            cpu = ("kernel", f"compiled for x86-64-{_native.cpu_level}")
        rows.append({"op": name, "device": "cpu", "path": cpu[0], "why": cpu[1]})
        cuda = ("none", "torch is not installed") if torch is None else _cuda_path(name)
        rows.append({"op": name, "device": "cuda", "path": cuda[0], "why": cuda[1]})
    return rows


#: Ops whose CUDA kernel a committed measurement on a GPU shows correct and faster than the composite.
CUDA_DEFAULT: frozenset[str] = frozenset()
_CUDA_ASKED = os.environ.get("SUBSPAN_CUDA_KERNELS", "0") not in ("", "0")


def cuda_asked(name: str) -> bool:
    """Whether CUDA kernels are to run for what is named, and can."""
    return not DISABLED and (_CUDA_ASKED or name in CUDA_DEFAULT) and not _native.cuda_problem()


def cuda_kernel_serves(name: str, *args: Any) -> bool:
    """Whether the op named runs its CUDA kernel on these arguments."""
    op = OPS[name]
    if op.cuda_kernel is None or op.cuda_serves is None or not args[0].is_cuda or not cuda_asked(name):
        return False
    return op.cuda_serves(*args)


def _cuda_path(name: str) -> tuple[str, str]:
    if DISABLED:
        return "composite", "SUBSPAN_DISABLE is set"
    if OPS[name].cuda_kernel is None:
        share = "; its log determinants take the path of spd_logdet" if OPS[name].factors else ""
        return "composite", "torch operations" + share
    if _native.cuda_problem():
        return "composite", _native.cuda_problem()
    if name in CUDA_DEFAULT:
        return "kernel", "measured faster than the composite"
    if _CUDA_ASKED:
        return "kernel", "SUBSPAN_CUDA_KERNELS is set"
    return "composite", "the kernel is not yet measured on a GPU; SUBSPAN_CUDA_KERNELS=1 selects it"


def in_torch(*upstreams: Any) -> bool:
    """Whether the gradient that these lead to will be differentiated, or is one of many: torch operations make it."""
    from ._route_torch import is_batched

    return torch.is_grad_enabled() or any(is_batched(g) for g in upstreams if g is not None)


def threads() -> int:
    return torch.get_num_threads() if torch is not None else _native.cpu.max_threads()


def kernel_serves(arrays: Sequence[Any]) -> bool:
    """Whether a kernel may be called on these arrays without further ado: in host memory, watched by no tracer and with
    no gradient to be recorded."""
    if DISABLED or _check.is_cupy(arrays[0]):
        return False
    if torch is None or isinstance(arrays[0], np.ndarray):
        return True
    from ._route_torch import plain

    return plain(arrays)


def kernel_arrays(arrays: Sequence[Any]) -> list[Any]:
    """As kernels take them: fields of packed records, which lie at odd addresses, are copied."""
    return [np.require(a, requirements="A") if isinstance(a, np.ndarray) else a for a in arrays]


def empty_result(like: Any) -> Any:
    """An array of the same shape, in the type that is computed in."""
    compute = COMPUTE_DTYPE[like.dtype]
    return np.empty(like.shape, compute) if isinstance(like, np.ndarray) else like.new_empty(like.shape, dtype=compute)


# --- NumPy and CuPy ---------------------------------------------------------------------------------------------------


def _run_numpy(op: Op, args: tuple[Any, ...], wanted: int) -> tuple[np.ndarray, ...]:
    tensors, parameters = args[: len(op.inputs)], args[len(op.inputs) :]
    if not isinstance(tensors[0], np.ndarray):
        raise TypeError(f"{op.public or op.name}: {op.inputs[0][0]}: CuPy arrays need torch installed")
    # Fields of packed records lie at odd addresses; such an array is copied.
    tensors = tuple(a if a is None else np.require(a, requirements="A") for a in tensors)
    compute = COMPUTE_DTYPE[tensors[0].dtype]
    kinds = list(zip(op.shapes(*args), op.outputs, strict=True))
    outputs = [np.empty(shape, compute if kind == "compute" else np.int32) for shape, kind in kinds[:wanted]]
    missing = (None,) * (len(op.outputs) - wanted + len(op.saves))
    op.kernel(*tensors, *outputs, *missing, *parameters, threads())
    return tuple(outputs)


# --- torch -----------------------------------------------------------------------------------------------------------


def _register_torch(op: Op) -> Callable[..., Any]:
    from ._route_torch import torch_entry

    def otherwise(wanted: int, args: tuple[Any, ...]) -> Any:
        if _check.is_cupy(args[0]):
            import cupy

            outputs = entry(wanted, *(torch.utils.dlpack.from_dlpack(a) if _check.is_cupy(a) else a for a in args))
            return tuple(cupy.from_dlpack(output) for output in outputs)
        if DISABLED:
            outputs = entry(wanted, *(torch.from_numpy(np.array(a)) if isinstance(a, np.ndarray) else a for a in args))
            return tuple(output.numpy() for output in outputs)
        return _run_numpy(op, args, wanted)

    entry = torch_entry(op, otherwise)
    return entry
