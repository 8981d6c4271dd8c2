"""The rows of the op table for products with sparse rows, of the layout with as many entries in every row; CSR and the
ways in which a gradient in the weights may come are in test_sparse_products.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import subspan
from op_row import Arguments, BadInput, Bounds, Op, Sample
from sample_arrays import classes, normal
from subspan.reference import sparse as reference

COLUMNS = 6


def sparse(values: Any, indices: Any, columns: int) -> subspan.SparseRows:
    """The container takes int32 and int64; other integers are for its callers to convert."""
    small = (torch.int8, torch.int16, torch.uint8, *map(np.dtype, ("i1", "i2", "u1")))
    if isinstance(indices, (torch.Tensor, np.ndarray)) and indices.dtype in small:
        indices = indices.to(torch.int32) if isinstance(indices, torch.Tensor) else indices.astype(np.int32)
    return subspan.SparseRows(indices, values, columns)


def named(op: str, error: Exception) -> Exception:
    """What the container refuses, and what an op refuses of one, by the names of the functions here."""
    text = str(error).replace("SparseRows:", f"{op}:").replace(": S.", ": ").replace(": S: ", ": indices: ")
    return type(error)(text)


def decode(values: Any, indices: Any, W: Any, bias: Any = None, *, columns: int = COLUMNS) -> Any:
    try:
        return subspan.sparse_decode(sparse(values, indices, columns), W, bias)
    except (TypeError, ValueError) as error:
        raise named("sparse_decode", error) from None


def sample_products(G: Any, W: Any, values: Any, indices: Any, *, columns: int = COLUMNS) -> Any:
    try:
        return subspan.sddmm(G, W, sparse(values, indices, columns)).values
    except (TypeError, ValueError) as error:
        raise named("sddmm", error) from None


def transposed(values: Any, indices: Any, G: Any, *, columns: int = COLUMNS) -> Any:
    try:
        return subspan.sparse_t_dense(sparse(values, indices, columns), G)
    except (TypeError, ValueError) as error:
        raise named("sparse_t_dense", error) from None


def decode_reference(values: Any, indices: Any, W: Any, bias: Any = None, *, columns: int = COLUMNS) -> Any:
    return reference.sparse_decode(values, indices, W, bias)


def sample_reference(G: Any, W: Any, values: Any, indices: Any, *, columns: int = COLUMNS) -> Any:
    return reference.sddmm(G, W, indices)


def transposed_reference(values: Any, indices: Any, G: Any, *, columns: int = COLUMNS) -> Any:
    return reference.sparse_t_dense(values, indices, G, columns)


#: (batch, rows, entries of a row, columns, D). Entries repeat a column wherever there are more of them than columns.
Shape = tuple[tuple[int, ...], int, int, int, int]
SHAPES: dict[str, Shape] = {
    "batch": ((3,), 7, 2, COLUMNS, 5),
    "one entry": ((), 1, 1, 1, 1),
    "one of each row": ((), 5, 1, 4, 3),
    "more entries than columns": ((), 4, 7, 3, 4),
    "no entries": ((), 3, 0, 4, 2),
    "no rows": ((), 0, 2, 4, 3),
    "no width": ((), 3, 2, 4, 0),
    "empty batch": ((0,), 3, 2, 4, 3),
    "two batch dimensions": ((2, 2), 3, 2, 4, 17),
    "groups": ((), 9, 13, 40, 35),
    "chunks": ((), 3, 150, 90, 33),
    "long column": ((), 150, 2, 2, 16),
}
LARGE: dict[str, Shape] = {
    "large": ((), 700, 20, 300, 200),
    "large batch": ((13,), 60, 9, 50, 100),
    "few columns": ((), 4000, 3, 3, 150),
}


def arrays_of(seed: int, shape: Shape, dtype: torch.dtype) -> tuple[Arguments, Arguments]:
    batch, rows, entries, columns, width = shape
    indices = classes(seed, *batch, rows, entries, k=columns, dtype=(torch.int32, torch.int64)[seed % 2])
    if columns > 2 and rows > 2 and entries > 0:
        indices[..., :3, 0] = torch.tensor([0, 2, 2], dtype=indices.dtype)  # columns in which a NaN is looked for
    sparse_rows = {"values": normal(seed, *batch, rows, entries, dtype=dtype), "indices": indices}
    G, W = normal(seed + 50, *batch, rows, width, dtype=dtype), normal(seed + 90, *batch, columns, width, dtype=dtype)
    return sparse_rows, {"G": G, "W": W, "bias": normal(seed + 130, *batch, width, dtype=dtype)}


def with_columns(shape: Shape) -> Arguments:
    return {} if shape[3] == COLUMNS else {"columns": shape[3]}


def decode_samples(dtype: torch.dtype, shapes: dict[str, Shape] = SHAPES) -> list[Sample]:
    made = []
    for seed, (name, shape) in enumerate(shapes.items()):
        S, dense = arrays_of(seed, shape, dtype)
        bias = {"bias": dense["bias"]} if seed % 3 == 0 else {}
        made.append(Sample(name, S | {"W": dense["W"]} | bias | with_columns(shape)))
    if shapes is not SHAPES:
        return made
    S, dense = arrays_of(20, SHAPES["batch"], dtype)
    own = dense["W"][0], dense["bias"][0]
    return [
        *made,
        Sample("shared W", S | {"W": own[0]}),
        Sample("shared W and bias", S | {"W": own[0], "bias": own[1]}),
        Sample("bias of each item", S | {"W": own[0], "bias": dense["bias"]}, summed=3),
        Sample("shared rows", {name: array[0] for name, array in S.items()} | {"W": dense["W"]}, summed=3),
    ]


def sddmm_samples(dtype: torch.dtype, shapes: dict[str, Shape] = SHAPES) -> list[Sample]:
    made = []
    for seed, (name, shape) in enumerate(shapes.items()):
        S, dense = arrays_of(seed, shape, dtype)
        made.append(Sample(name, {"G": dense["G"], "W": dense["W"]} | S | with_columns(shape)))
    if shapes is not SHAPES:
        return made
    S, dense = arrays_of(21, SHAPES["batch"], dtype)
    one = {name: array[0] for name, array in S.items()}
    return [
        *made,
        Sample("shared W", {"G": dense["G"], "W": dense["W"][0]} | S),
        Sample("shared G", {"G": dense["G"][0], "W": dense["W"]} | S, summed=3),
        Sample("shared places", {"G": dense["G"], "W": dense["W"][0]} | one),
    ]


def transposed_samples(dtype: torch.dtype, shapes: dict[str, Shape] = SHAPES) -> list[Sample]:
    made = []
    for seed, (name, shape) in enumerate(shapes.items()):
        S, dense = arrays_of(seed, shape, dtype)
        made.append(Sample(name, S | {"G": dense["G"]} | with_columns(shape)))
    if shapes is not SHAPES:
        return made
    S, dense = arrays_of(22, SHAPES["batch"], dtype)
    one = {name: array[0] for name, array in S.items()}
    return [
        *made,
        Sample("shared G", S | {"G": dense["G"][0]}, summed=3),
        Sample("shared rows", one | {"G": dense["G"]}, summed=3),
    ]


def nothing(function: Callable[[torch.dtype], list[Sample]]) -> list[Sample]:
    """Where sums are empty, and where all entries are of one column."""
    samples = {sample.name: sample for sample in function(torch.float64)}
    same = samples["groups"].arguments
    together = same | {"indices": torch.zeros_like(same["indices"])}
    zero = {name: torch.zeros_like(array) for name, array in together.items() if name in ("values", "W", "G")}
    few = {name: array for name, array in (together | zero).items() if name != "columns"}
    few = {n: a[:2, :3] if n in ("values", "indices", "G") else a[:4, :3] if n == "W" else a for n, a in few.items()}
    few = {name: array[..., :3] if name == "bias" else array for name, array in few.items()}
    return [samples["no rows"], samples["no entries"], Sample("zeros", few | {"columns": 4})]


# --- growth of rounding errors, for upstream gradients of at most 1 ---


def decode_growth(values: Any, indices: Any, W: Any, bias: Any = None, *, columns: int = COLUMNS) -> Bounds:
    (n, k), width = values.shape, W.shape[-1]
    sizes = None if bias is None else np.abs(bias)
    gradients = {
        "values": reference.sddmm(np.ones((n, width)), np.abs(W), indices),
        "W": reference.sparse_t_dense(np.abs(values), indices, np.ones((n, width)), columns),
        "bias": n * np.ones(width),
    }
    return Bounds(
        n * k + n + width + 2, (reference.sparse_decode(np.abs(values), indices, np.abs(W), sizes),), gradients
    )


def sddmm_growth(G: Any, W: Any, values: Any, indices: Any, *, columns: int = COLUMNS) -> Bounds:
    ones = np.ones(indices.shape)
    gradients = {
        "G": reference.sparse_decode(ones, indices, np.abs(W)),
        "W": reference.sparse_t_dense(ones, indices, np.abs(G), columns),
    }
    return Bounds(indices.size + W.shape[-1] + 2, (reference.sddmm(np.abs(G), np.abs(W), indices),), gradients)


def transposed_growth(values: Any, indices: Any, G: Any, *, columns: int = COLUMNS) -> Bounds:
    ones = np.ones((columns, G.shape[-1]))
    gradients = {
        "values": reference.sddmm(np.abs(G), ones, indices),
        "G": reference.sparse_decode(np.abs(values), indices, ones),
    }
    size = values.size + G.shape[-1] + 2
    return Bounds(size, (reference.sparse_t_dense(np.abs(values), indices, np.abs(G), columns),), gradients)


# --- where NaN shows ---


def where_nan(function: Callable[..., Any], names: tuple[str, ...]) -> Callable[[Arguments, int, int], np.ndarray]:
    def mask(arguments: Arguments, item: int, row: int) -> np.ndarray:
        own = {name: arguments[name][item].detach() for name in names if name in arguments}
        doubles = {name: array.double().numpy() if array.is_floating_point() else array for name, array in own.items()}
        return np.isnan(function(**doubles))

    return mask


# --- what is refused ---


def places_bad() -> list[BadInput]:
    return [
        BadInput("column too high", {"indices": torch.full((3, 7, 2), COLUMNS).int()}, ValueError, "indices"),
        BadInput("negative column", {"indices": torch.full((3, 7, 2), -1).int()}, ValueError, "indices"),
        BadInput("places of other shape", {"indices": torch.zeros(3, 7, 3).int()}, ValueError, "indices"),
    ]


def decode_bad() -> list[BadInput]:
    shapes = ("(3, 5, 5)", "(3, 7, 6)")
    return [
        BadInput("rows of W", {"W": torch.ones(3, 5, 5).double()}, ValueError, "W", shapes),
        BadInput("batch of W", {"W": torch.ones(2, 6, 5).double()}, ValueError, "W", ("(2, 6, 5)", "(3, 7, 2)")),
        BadInput("type of W", {"W": torch.ones(3, 6, 5)}, TypeError, "W", ("float32", "float64")),
        BadInput("length of bias", {"bias": torch.ones(3, 4).double()}, ValueError, "bias", ("(3, 4)", "(3, 6, 5)")),
        BadInput("batch of bias", {"bias": torch.ones(2, 5).double()}, ValueError, "bias", ("(2, 5)", "(3, 6, 5)")),
        *places_bad(),
    ]


def sddmm_bad() -> list[BadInput]:
    return [
        BadInput("width", {"W": torch.ones(3, 6, 4).double()}, ValueError, "W", ("(3, 6, 4)", "(3, 7, 5)")),
        BadInput("batch of W", {"W": torch.ones(2, 6, 5).double()}, ValueError, "W", ("(2, 6, 5)", "(3, 7, 5)")),
        BadInput("type of W", {"W": torch.ones(3, 6, 5)}, TypeError, "W", ("float32", "float64")),
        BadInput("rows of G", {"G": torch.ones(3, 8, 5).double()}, ValueError, "indices", ("(3, 8, 5)", "(3, 7, 6)")),
        *places_bad(),
    ]


def transposed_bad() -> list[BadInput]:
    return [
        BadInput("rows of G", {"G": torch.ones(3, 8, 5).double()}, ValueError, "G", ("(3, 8, 5)", "(3, 7, 6)")),
        BadInput("batch of G", {"G": torch.ones(2, 7, 5).double()}, ValueError, "G", ("(2, 7, 5)", "(3, 7, 2)")),
        BadInput("type of G", {"G": torch.ones(3, 7, 5)}, TypeError, "G", ("float32", "float64")),
        *places_bad(),
    ]


ROWS = [
    Op(
        name="sparse_decode",
        function=decode,
        reference=decode_reference,
        arrays={"values": 2, "indices": 2, "W": 2, "bias": 1},
        differentiable=("values", "W", "bias"),
        samples=decode_samples,
        large=lambda dtype: decode_samples(dtype, LARGE),
        degenerate=lambda: nothing(decode_samples),
        growth=decode_growth,
        bad_inputs=decode_bad,
        core_shapes=lambda rows, columns: {
            "values": (rows, 2),
            "indices": (rows, 2),
            "W": (COLUMNS, columns),
            "bias": (columns,),
        },
        infinity=("values", "W", "bias"),
        confined=where_nan(reference.sparse_decode, ("values", "indices", "W", "bias")),
        unread={"values": ("values", "bias"), "W": ("W", "bias"), "bias": ("values", "W", "bias")},
    ),
    Op(
        name="sddmm",
        function=sample_products,
        reference=sample_reference,
        arrays={"G": 2, "W": 2, "values": 2, "indices": 2},
        differentiable=("G", "W"),
        samples=sddmm_samples,
        large=lambda dtype: sddmm_samples(dtype, LARGE),
        degenerate=lambda: nothing(sddmm_samples),
        growth=sddmm_growth,
        bad_inputs=sddmm_bad,
        core_shapes=lambda rows, columns: {
            "G": (rows, columns),
            "W": (COLUMNS, columns),
            "values": (rows, 2),
            "indices": (rows, 2),
        },
        infinity=("G", "W"),
        confined=where_nan(reference.sddmm, ("G", "W", "indices")),
        unread={"G": ("G",), "W": ("W",)},
    ),
    Op(
        name="sparse_t_dense",
        function=transposed,
        reference=transposed_reference,
        arrays={"values": 2, "indices": 2, "G": 2},
        differentiable=("values", "G"),
        samples=transposed_samples,
        large=lambda dtype: transposed_samples(dtype, LARGE),
        degenerate=lambda: nothing(transposed_samples),
        growth=transposed_growth,
        bad_inputs=transposed_bad,
        core_shapes=lambda rows, columns: {"values": (rows, 2), "indices": (rows, 2), "G": (rows, columns)},
        infinity=("values", "G"),
        confined=where_nan(
            lambda **arrays: reference.sparse_t_dense(**arrays, columns=COLUMNS), ("values", "indices", "G")
        ),
        unread={"values": ("values",), "G": ("G",)},
    ),
]
