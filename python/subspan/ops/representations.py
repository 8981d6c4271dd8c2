"""What functions of representations share: checks of their arguments, evaluation in one type and library, and which
path a computation takes. Samples are rows, (*batch, n, d)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import _check
from . import spectra
from .spectra import library, transposed

composite: Any = None  # without torch there is nothing to compose
if _check.torch is not None:
    from ..composite import grams
    from ..composite import similarity as composite

# --- arguments --------------------------------------------------------------------------------------------------------


def check_pair(op: str, X: Any, Y: Any, name: str = "X", other: str = "Y") -> None:
    """Two representations of the same samples."""
    _check.matrix(op, name, X)
    _check.same_kind(op, other, Y, name, X)
    _check.matrix(op, other, Y)
    if X.shape[-2] != Y.shape[-2]:
        raise ValueError(
            f"{op}: {other}: expected as many samples (rows) as {name} {tuple(X.shape)}, got shape {tuple(Y.shape)}"
        )
    _check.broadcast_batch(op, other, Y, 2, name, X, 2)


def check_lists(op: str, Xs: Any, Ys: Any) -> tuple[list[Any], list[Any] | None]:
    """Lists, or stacks, of representations of the same samples."""
    lists: list[list[Any]] = []
    for name, items in (("Xs", Xs), ("Ys", Ys)):
        if items is None and name == "Ys":
            return lists[0], None
        if not (isinstance(items, Sequence) or (hasattr(items, "shape") and len(items.shape) > 2)) or not len(items):
            raise TypeError(f"{op}: {name}: expected a list of at least one representation, got {_described(items)}")
        lists.append([items[i] for i in range(len(items))])
        first = lists[0][0]
        for i, item in enumerate(lists[-1]):
            check_pair(op, first, item, "Xs[0]", f"{name}[{i}]")
            if item.shape[:-1] != first.shape[:-1]:
                raise ValueError(
                    f"{op}: {name}[{i}]: expected the shape of Xs[0] {tuple(first.shape)} but for the last dimension, "
                    f"got {tuple(item.shape)}"
                )
    return lists[0], lists[1]


def _described(items: Any) -> str:
    if hasattr(items, "shape"):
        return f"an array of shape {tuple(items.shape)}"
    return "an empty list" if isinstance(items, Sequence) and not len(items) else type(items).__name__


def check_tolerance(op: str, rank_tol: Any) -> float | None:
    if rank_tol is None:
        return None
    value = _check.number(op, "rank_tol", rank_tol)
    if value < 0:
        raise ValueError(f"{op}: rank_tol: expected a number >= 0, got {rank_tol}")
    return value


def check_truncation(op: str, rank: Any, energy: Any) -> tuple[int | None, float]:
    if rank is not None:
        rank = _check.count(op, "rank", rank)
    energy = _check.positive(op, "energy", energy)
    if energy > 1:
        raise ValueError(f"{op}: energy: expected a number in (0, 1], got {energy}")
    return rank, energy


# --- evaluation -------------------------------------------------------------------------------------------------------


def evaluate(compute: Callable[..., Any], arrays: list[Any], own_type: bool = False) -> Any:
    """compute(arrays, eps) on arrays of one library and type, outside autocast; results in the public type.

    That is float64 if any array is float64, else float32; own_type computes in it, otherwise in float64. eps is that of
    the public type.
    """
    if _check.is_cupy(arrays[0]):
        if _check.torch is None:
            raise TypeError("CuPy arrays need torch installed")
        import cupy

        result = evaluate(compute, [_check.torch.utils.dlpack.from_dlpack(a) for a in arrays], own_type)
        return tuple(map(cupy.from_dlpack, result)) if isinstance(result, tuple) else cupy.from_dlpack(result)
    xp = library(arrays[0])
    public = xp.float64 if any(a.dtype == xp.float64 for a in arrays) else xp.float32
    eps = float(xp.finfo(public).eps)
    if xp is np:
        inner = public if own_type else np.float64
        with np.errstate(all="ignore"):
            return _in_type(compute([np.asarray(a, inner) for a in arrays], eps), public)
    inner = public if own_type or arrays[0].device.type == "mps" else xp.float64
    arrays = [a.to(inner) for a in arrays]
    if not xp.amp.is_autocast_available(arrays[0].device.type):
        return _in_type(compute(arrays, eps), public)
    with xp.autocast(arrays[0].device.type, enabled=False):
        return _in_type(compute(arrays, eps), public)


def _in_type(result: Any, dtype: Any) -> Any:
    if isinstance(result, tuple):
        return tuple(_in_type(part, dtype) for part in result)
    return result.to(dtype) if _check.is_torch(result) else np.asarray(result, dtype)


def differentiated(*arrays: Any) -> bool:
    return _check.is_torch(arrays[0]) and composite.differentiated(*arrays)


def readable(*arrays: Any) -> bool:
    """Whether what is computed may depend on values: outside torch.compile and vmap, on the CPU, without a gradient."""
    return all(map(_check.readable, arrays)) and not differentiated(*arrays)


def singular_values(M: Any) -> Any:
    return composite.singular_values(M) if _check.is_torch(M) else spectra.singular_values(M)


def singular_triplets(M: Any) -> Any:
    return composite.singular_triplets(M) if differentiated(M) else spectra.singular_triplets(M)


def gram_of_columns(X: Any) -> Any:
    """X^T X, differentiated by one product where torch would take two."""
    return grams.gram(X) if differentiated(X) else transposed(X) @ X


def table(
    Xs: list[Any], Ys: list[Any] | None, entry: Callable[[int, int], Any], own: Callable[[int], Any] | None = None
) -> Any:
    """(*batch, Lx, Ly) of entry(i, j); where Ys is None only i < j are computed, the others are their mirror image and
    own(i), what is known of a representation and itself."""
    columns = len(Xs if Ys is None else Ys)
    entries: dict[tuple[int, int], Any] = {}
    for i in range(len(Xs)):
        for j in range(columns):
            if Ys is None and (j < i or (j == i and own is not None)):
                entries[i, j] = entries[j, i] if j < i or own is None else own(i)
            else:
                entries[i, j] = entry(i, j)
    xp = library(entries[0, 0])
    return xp.stack([xp.stack([entries[i, j] for j in range(columns)], -1) for i in range(len(Xs))], -2)
