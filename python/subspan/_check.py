"""Argument checks shared by the shape rules. Messages read `op: argument: expected X, got Y`."""

from __future__ import annotations

import math
import operator
import os
import sys
from typing import Any

import numpy as np

# `python -m subspan.search` reads files and gives JSON: it needs no torch, which takes seconds to load. While the
# package of a module that is to run is imported, argv[0] is "-m", and orig_argv has the module's name in its place.
_ARGUMENTS = getattr(sys, "argv", [])
_MODULE = sys.orig_argv[-len(_ARGUMENTS) :][:1] if _ARGUMENTS[:1] == ["-m"] else []
try:
    if _MODULE in (["subspan.search"], ["-msubspan.search"]):
        raise ImportError
    import torch as torch
except ImportError:
    torch = None  # type: ignore[assignment,unused-ignore]

#: As many as the kernels' views hold.
MAX_DIMS = 8

#: Everything is to go to the composites, so that a problem can be bisected.
DISABLED = os.environ.get("SUBSPAN_DISABLE", "0") not in ("", "0")

#: The type that results are computed and returned in, by input type.
COMPUTE_DTYPE: dict[Any, Any] = {
    np.dtype(np.float16): np.dtype(np.float32),
    np.dtype(np.float32): np.dtype(np.float32),
    np.dtype(np.float64): np.dtype(np.float64),
}
INTEGER_DTYPES: set[Any] = {np.dtype(kind) for kind in ("i1", "i2", "i4", "i8", "u1", "u2", "u4")}
if torch is not None:
    COMPUTE_DTYPE |= {
        torch.float16: torch.float32,
        torch.bfloat16: torch.float32,
        torch.float32: torch.float32,
        torch.float64: torch.float64,
    }
    INTEGER_DTYPES |= {torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8}


#: Types that need no closer look; an array of one of them is what it seems.
_USUAL: tuple[type, ...] = (np.ndarray,) if torch is None else (torch.Tensor, torch.nn.Parameter, np.ndarray)
STRIDED = None if torch is None else torch.strided


def is_torch(array: Any) -> bool:
    return torch is not None and isinstance(array, torch.Tensor)


def is_cupy(array: Any) -> bool:
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(array, cupy.ndarray)


def array_like(op: str, name: str, array: Any) -> None:
    """A torch tensor, a NumPy array or a CuPy array."""
    if not (is_torch(array) or isinstance(array, np.ndarray) or is_cupy(array)):
        raise TypeError(f"{op}: {name}: expected a torch tensor, NumPy array or CuPy array, got {type(array).__name__}")
    if is_torch(array) and array.layout is not torch.strided:
        raise TypeError(f"{op}: {name}: expected a dense tensor, got layout {array.layout}")


def same_kind(op: str, name: str, array: Any, other_name: str, other: Any) -> None:
    """Both arrays of one library and on one device."""
    kind = type(array)
    usual = kind is type(other) and kind in _USUAL  # as in `matrix`
    if usual and (kind is np.ndarray or (array.layout is STRIDED and array.device == other.device)):
        return
    array_like(op, name, array)
    if is_torch(array) != is_torch(other) or is_cupy(array) != is_cupy(other):
        raise TypeError(
            f"{op}: {name}: expected the array library of {other_name} ({type(other).__name__}), "
            f"got {type(array).__name__}"
        )
    if is_torch(array) and array.device != other.device:
        raise ValueError(f"{op}: {name}: expected the device of {other_name} ({other.device}), got {array.device}")


def floating(op: str, name: str, array: Any) -> None:
    if array.dtype not in COMPUTE_DTYPE:
        raise TypeError(f"{op}: {name}: expected float64, float32, float16 or bfloat16, got {array.dtype}")


def matrix(op: str, name: str, array: Any, least: int = 2) -> None:
    """A floating point array of at least two dimensions, or as many as are said."""
    # The usual case at the price of four comparisons; whatever fails it is looked at one property at a time.
    kind = type(array)
    usual = kind in _USUAL and array.dtype in COMPUTE_DTYPE and least <= array.ndim <= MAX_DIMS
    if usual and (kind is np.ndarray or array.layout is STRIDED):
        return
    array_like(op, name, array)
    floating(op, name, array)
    if array.ndim < least:
        plural = "s" if least > 1 else ""
        raise ValueError(f"{op}: {name}: expected at least {least} dimension{plural}, got shape {tuple(array.shape)}")
    if array.ndim > MAX_DIMS:
        raise ValueError(f"{op}: {name}: expected at most {MAX_DIMS} dimensions, got {array.ndim}")


def number(op: str, name: str, value: Any) -> float:
    """A finite real number, not an array."""
    if type(value) is float and -math.inf < value < math.inf:  # all that a compiler can trace
        return value
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{op}: {name}: expected a number, got {type(value).__name__}")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise ValueError(f"{op}: {name}: expected a finite number, got {value}")
    return result


def positive(op: str, name: str, value: Any) -> float:
    if type(value) is float and 0.0 < value < math.inf:
        return value
    result = number(op, name, value)
    if not result > 0:
        raise ValueError(f"{op}: {name}: expected a number > 0, got {value}")
    return result


def count(op: str, name: str, value: Any) -> int:
    """A positive integer."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{op}: {name}: expected an integer, got {type(value).__name__}")
    try:
        result = operator.index(value)
    except TypeError:
        raise TypeError(f"{op}: {name}: expected an integer, got {type(value).__name__}") from None
    if not 0 < result < 2**31:
        raise ValueError(f"{op}: {name}: expected an integer in 1 ... 2**31 - 1, got {result}")
    return result


def choice(op: str, name: str, value: Any, choices: dict[str, int]) -> int:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{op}: {name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
    return choices[value]


def flag(op: str, name: str, value: Any) -> None:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{op}: {name}: expected True or False, got {type(value).__name__}")


def nonnegative(op: str, name: str, array: Any) -> None:
    """No negative value, where values may be read."""
    if readable(array) and bool((array < 0).any()):
        raise ValueError(f"{op}: {name}: expected nonnegative values, got {float(array[array < 0][0])}")


def process_group(op: str, group: Any, name: str, array: Any) -> None:
    """A group of torch.distributed that this process is in, for torch tensors."""
    if not is_torch(array):
        raise ValueError(
            f"{op}: group: expected None where {name} is no torch tensor (processes exchange tensors), "
            f"got {name} of type {type(array).__name__}"
        )
    if not torch.distributed.is_available() or not isinstance(group, torch.distributed.ProcessGroup):
        raise TypeError(
            f"{op}: group: expected a torch.distributed process group with this process in it, "
            f"got {type(group).__name__}"
        )


def broadcast_batch(op: str, name: str, array: Any, core: int, other_name: str, other: Any, other_core: int) -> Any:
    """The common batch shape of two arguments."""
    batch, other_batch = tuple(array.shape[: array.ndim - core]), tuple(other.shape[: other.ndim - other_core])
    if batch == other_batch:
        return batch
    got = f"got {name} {tuple(array.shape)} and {other_name} {tuple(other.shape)}"
    try:
        common = np.broadcast_shapes(batch, other_batch)
    except ValueError:
        expected = f"expected batch dimensions that broadcast with those of {other_name}"
        raise ValueError(f"{op}: {name}: {expected}, {got}") from None
    if len(common) + max(core, other_core) > MAX_DIMS:
        raise ValueError(f"{op}: {name}: expected at most {MAX_DIMS} dimensions with those of {other_name}, {got}")
    return common


def expand(array: Any, shape: tuple[int, ...]) -> Any:
    """A view of `array` with the given shape."""
    if tuple(array.shape) == shape:
        return array
    return array.expand(shape) if is_torch(array) else np.broadcast_to(array, shape)


def cast(array: Any, dtype: Any) -> Any:
    if array.dtype == dtype:
        return array
    return array.to(dtype) if is_torch(array) else array.astype(dtype)


def where(condition: Any, array: Any, other: Any) -> Any:
    if is_torch(condition):
        return torch.where(condition, array, other)
    if is_cupy(condition):
        return sys.modules["cupy"].where(condition, array, other)
    return np.where(condition, array, other)


def promoted(dtype: Any, other: Any) -> Any:
    """The type that holds values of both."""
    return torch.promote_types(dtype, other) if isinstance(dtype, torch.dtype) else np.promote_types(dtype, other)


def epsilon(dtype: Any) -> float:
    """The rounding unit of the type that arrays of `dtype` are computed in."""
    compute = COMPUTE_DTYPE[dtype]
    return 2.0**-52 if compute in (np.dtype(np.float64), torch and torch.float64) else 2.0**-23


def as_index(array: Any) -> Any:
    """Integers as int32 or int64, in the machine's byte order."""
    if is_torch(array):
        return array if array.dtype in (torch.int32, torch.int64) else array.long()
    return array if array.dtype in (np.dtype(np.int32), np.dtype(np.int64)) else array.astype(np.int64)


def readable(array: Any) -> bool:
    """Whether values may be read now: in host memory, and not under a transformation or a trace."""
    if not is_torch(array):
        return not is_cupy(array)
    if torch.compiler.is_compiling() or not array.is_cpu:
        return False
    from ._route_torch import values_available

    return values_available(array)
