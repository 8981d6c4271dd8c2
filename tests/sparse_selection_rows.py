"""The rows of the op table for activations that are chosen or cut off."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import subspan
from op_row import Arguments, BadInput, Bounds, Op, Sample
from sample_arrays import LARGE_SHAPES, SHAPES, normal, uniform
from subspan._check import COMPUTE_DTYPE
from subspan.ops.sparse_topk import of_all_rows
from subspan.reference import sparse as reference

# --- linear_topk ---

#: (shape of x, features, k): fewer rows than a tile and more, columns in one block and in two, all of few features.
LINEAR_SHAPES: dict[str, tuple[tuple[int, ...], int, int]] = {
    "batch": ((3, 7, 5), 9, 2),
    "all": ((4, 6), 5, 5),
    "one entry": ((1, 1), 1, 1),
    "no rows": ((0, 4), 3, 2),
    "no columns": ((2, 0), 3, 2),
    "empty batch": ((0, 3, 4), 6, 3),
    "two batch dimensions": ((2, 2, 3, 4), 8, 4),
    "more than a group": ((5, 12), 150, 7),
}
LARGE_LINEAR: dict[str, tuple[tuple[int, ...], int, int]] = {
    "rows and features": ((300, 40), 1100, 20),
    "few rows of many features": ((3, 30), 3000, 33),
    "long rows": ((20, 1500), 100, 8),
    "large batch": ((5, 60, 30), 300, 12),
}


def linear_topk(x: Any, W: Any, b: Any = None, k: int = 1, by: str = "value", relu: bool = True) -> tuple[Any, Any]:
    rows = subspan.linear_topk(x, W, b, k, by=by, relu=relu)
    return rows.values, rows.indices


def linear_reference(x: Any, W: Any, b: Any = None, k: int = 1, by: str = "value", relu: bool = True) -> Any:
    return reference.linear_topk(x, W, b, k, by=by, relu=relu)


def linear_samples(dtype: torch.dtype, shapes: Any = LINEAR_SHAPES) -> list[Sample]:
    """Outputs that lie apart by more than rounding: the order of the chosen ones is compared."""
    made = []
    for seed, (name, (shape, features, k)) in enumerate(shapes.items()):
        x, W = normal(seed, *shape, dtype=dtype), normal(seed + 40, *shape[:-2], features, shape[-1], dtype=dtype)
        b = normal(seed + 80, *shape[:-2], features, dtype=dtype)
        made.append(Sample(name, {"x": x, "W": W, "b": b, "k": k}))
        if name not in ("batch", "no columns"):
            other = {"by": "abs", "relu": seed % 2 == 0}
            made.append(Sample(f"{name}, magnitudes", {"x": x, "W": W, "b": None, "k": k} | other))
    if shapes is not LINEAR_SHAPES:
        return made
    W, b = normal(60, 9, 5, dtype=dtype), normal(61, 9, dtype=dtype)
    return [*made, Sample("shared W", {"x": normal(62, 2, 3, 5, dtype=dtype), "W": W, "b": b, "k": 3}, summed=2)]


def linear_degenerate() -> list[Sample]:
    """Where relu cuts all picks off, and where features are equal but none of them picked."""
    x, W = normal(63, 3, 4), normal(64, 6, 4)
    W[2] = W[4]
    b = torch.full((6,), -50.0, dtype=torch.float64)
    b[[0, 1, 3]] += torch.tensor([1.0, 2.0, 3.0]) * 10
    return [
        Sample("nothing positive", {"x": x, "W": W, "b": b, "k": 3}),
        Sample("kept", {"x": x, "W": W, "b": b, "k": 3, "relu": False}),
    ]


def linear_bad() -> list[BadInput]:
    double = torch.float64
    return [
        BadInput("more than features", {"k": 10}, ValueError, "k", ("(3, 9, 5)", "10")),
        BadInput("none", {"k": 0}, ValueError, "k"),
        BadInput("unknown rank", {"by": "size"}, ValueError, "by", ("'size'",)),
        BadInput("a number to cut off at", {"relu": 0}, TypeError, "relu"),
        BadInput("columns of W", {"W": torch.ones(3, 9, 4, dtype=double)}, ValueError, "W", ("(3, 7, 5)", "(3, 9, 4)")),
        BadInput("batch of W", {"W": torch.ones(2, 9, 5, dtype=double)}, ValueError, "W", ("(3, 7, 5)", "(2, 9, 5)")),
        BadInput("type of W", {"W": torch.ones(3, 9, 5)}, TypeError, "W", ("float64", "float32")),
        BadInput("features of b", {"b": torch.ones(3, 8, dtype=double)}, ValueError, "b", ("(3, 9, 5)", "(3, 8)")),
        BadInput("type of b", {"b": torch.ones(3, 9)}, TypeError, "b", ("float64", "float32")),
    ]


def linear_growth(
    x: np.ndarray, W: np.ndarray, b: Any = None, k: int = 1, by: str = "value", relu: bool = True
) -> Bounds:
    """Sums of d products and b; gradients of at most n or k terms."""
    (n, d), features = x.shape, len(W)
    sizes = np.abs(x) @ np.abs(W).T + (0 if b is None else np.abs(b))
    chosen = np.sort(sizes, -1)[:, ::-1][:, :1] if features else np.zeros((n, 1))
    gradients = {"x": k * np.abs(W).max(0, initial=0) * np.ones_like(x), "W": np.abs(x).sum(0) * np.ones_like(W)}
    if b is not None:
        gradients["b"] = n * np.ones_like(b)
    return Bounds(d + n + k + 2, (chosen * np.ones((n, k)), np.zeros((n, k))), gradients)


def linear_is_nan(arguments: Arguments, item: int, row: int) -> np.ndarray:
    """A row with NaN begins with it."""
    expected = np.zeros((7, 2), bool)
    bad = [bool(arguments[name][item].isnan().any()) for name in ("W", "b")]
    expected[:, 0] = any(bad)
    expected[row, 0] |= bool(arguments["x"][item, row].isnan().any())
    return expected


# --- batch_topk ---

BATCH_SHAPES: dict[str, tuple[tuple[int, ...], int]] = {
    "batch": ((3, 7, 5), 2),
    "all": ((4, 6), 6),
    "one entry": ((1, 1), 1),
    "no rows": ((0, 4), 2),
    "groups": ((3, 700), 5),
    "one row": ((1, 500), 30),
}


def batch_topk(x: Any, k: int, relu: bool = True) -> tuple[Any, Any, Any]:
    """Values, columns and how many entries each row has; CSR is of one matrix, the op behind it takes batches."""
    dense = isinstance(x, np.ndarray) or (isinstance(x, torch.Tensor) and x.layout is torch.strided)
    if dense and x.dtype in COMPUTE_DTYPE and 2 < x.ndim <= 8:
        empty = 0 in x.shape[:-2]
        subspan.batch_topk(x.sum(tuple(range(x.ndim - 2))) if empty else x[(0,) * (x.ndim - 2)], k, relu)  # the checks
        return of_all_rows(x, k, relu)
    rows = subspan.batch_topk(x, k, relu)
    counts = rows.offsets[1:] - rows.offsets[:-1]
    return rows.values, rows.indices, counts.int() if isinstance(x, torch.Tensor) else counts.astype(np.int32)


def batch_reference(x: np.ndarray, k: int, relu: bool = True) -> Any:
    if x.ndim == 2:
        return reference.batch_topk(x, k, relu)
    if len(x) == 0:
        return tuple(np.empty((0, *part.shape)) for part in batch_reference(x.sum(0), k, relu))
    return tuple(np.stack(parts) for parts in zip(*(batch_reference(item, k, relu) for item in x), strict=True))


def batch_samples(dtype: torch.dtype, shapes: Any = BATCH_SHAPES) -> list[Sample]:
    made = []
    for seed, (name, (shape, k)) in enumerate(shapes.items()):
        x = normal(seed + 20, *shape, dtype=dtype)
        made.append(Sample(name, {"x": x, "k": k}))
        if name != "batch":
            made.append(Sample(f"{name}, kept", {"x": x, "k": k, "relu": False}))
    if shapes is not BATCH_SHAPES:
        return made
    few = normal(50, 5, 400, dtype=dtype).mul(1.5).round()
    return [
        *made,
        Sample("equal entries", {"x": few, "k": 40}),
        Sample("zeros", {"x": 0 * few, "k": 40, "relu": False}),
        Sample("all in one row", {"x": few + 100 * torch.tensor([0, 0, 1, 0, 0])[:, None].to(dtype), "k": 80}),
    ]


def batch_degenerate() -> list[Sample]:
    negative = -normal(51, 3, 6).abs()
    return [Sample("nothing positive", {"x": negative, "k": 3}), Sample("kept", {"x": negative, "k": 3, "relu": False})]


def batch_bad() -> list[BadInput]:
    return [
        BadInput("more than columns", {"k": 6}, ValueError, "k", ("(7, 5)", "6")),
        BadInput("none", {"k": 0}, ValueError, "k"),
        BadInput("a fraction", {"k": 2.0}, TypeError, "k"),
        BadInput("a number to cut off at", {"relu": 0}, TypeError, "relu"),
    ]


def batch_growth(x: np.ndarray, k: int, relu: bool = True) -> Bounds:
    """Entries are copied without a rounding."""
    zeros = np.zeros(k * len(x))
    return Bounds(1, (zeros, zeros, np.zeros(len(x))), {"x": np.ones_like(x)})


def batch_is_nan(arguments: Arguments, item: int, row: int) -> np.ndarray:
    values, _, _ = reference.batch_topk(arguments["x"][item].detach().double().numpy(), arguments["k"])
    return np.isnan(values)


# --- thresholds ---

#: More rows than are summed up in one block, and more columns than one task takes.
LONG: dict[str, tuple[int, ...]] = {"long": (300, 5), "long rows": (3, 4200)}
SMALL: dict[str, tuple[int, ...]] = {name: SHAPES[name] for name in ("batch", "one entry", "no samples", "empty batch")}
SMALL |= {"two batch dimensions": (2, 2, 4, 6), "tall": (9, 4), "blocked": (33, 70)}


def threshold_samples(dtype: torch.dtype, shapes: Any = SMALL, **others: Any) -> list[Sample]:
    """No entry is as near to its threshold as differences are taken."""
    made = []
    for seed, (name, shape) in enumerate(shapes.items()):
        x = normal(seed + 70, *shape, dtype=torch.float64)
        threshold = uniform(seed + 90, *shape[:-2], shape[-1])
        x += torch.where((x.abs() - threshold[..., None, :]).abs() < 0.02, 0.1, 0.0).to(x.dtype)
        made.append(Sample(name, {"x": x.to(dtype), "threshold": threshold.to(dtype)} | others))
    if shapes is not SMALL:
        return made
    x = made[0].arguments["x"]
    one = torch.tensor(0.5, dtype=dtype)
    return [
        *made,
        Sample("shared thresholds", {"x": x, "threshold": made[0].arguments["threshold"][1]} | others),
        Sample("shared x", {"x": x[0], "threshold": made[0].arguments["threshold"]} | others, summed=3),
        Sample("one threshold", {"x": x + 3, "threshold": one[None]} | others),
    ]


def jump_samples(dtype: torch.dtype, shapes: Any = SMALL) -> list[Sample]:
    """No entry is in a window, where the gradient to the threshold is no derivative; see test_sparse_selection.py."""
    return threshold_samples(dtype, shapes, bandwidth=0.001)


def threshold_bad() -> list[BadInput]:
    return [
        BadInput("other columns", {"threshold": torch.ones(3, 4).double()}, ValueError, "threshold", ("(3, 4)",)),
        BadInput("batch", {"threshold": torch.ones(2, 5).double()}, ValueError, "threshold", ("(2, 5)",)),
    ]


def jump_bad() -> list[BadInput]:
    return [
        *threshold_bad(),
        BadInput("no width", {"bandwidth": 0.0}, ValueError, "bandwidth"),
        BadInput("infinite width", {"bandwidth": float("inf")}, ValueError, "bandwidth"),
        BadInput("a width of text", {"bandwidth": "wide"}, TypeError, "bandwidth"),
    ]


def soft_bad() -> list[BadInput]:
    return [
        *threshold_bad(),
        BadInput("negative", {"threshold": -torch.ones(3, 5).double()}, ValueError, "threshold"),
        BadInput("a negative number", {"threshold": -0.5}, ValueError, "threshold"),
    ]


def threshold_growth(x: np.ndarray, threshold: np.ndarray, bandwidth: float = 1.0) -> Bounds:
    """One rounding, and the sum of a column."""
    sizes = np.abs(x) + np.abs(threshold)
    sums = max(len(x), 1) * np.ones_like(threshold) * (x.shape[-1] if threshold.shape[-1:] == (1,) else 1)
    return Bounds(len(x) + 2, (sizes,), {"x": np.ones_like(x), "threshold": sums})


def threshold_is_nan(arguments: Arguments, item: int, row: int) -> np.ndarray:
    """What takes part in NaN, and no other entry."""
    bad = arguments["x"][item].isnan() | arguments["threshold"][item].isnan()
    return bad.detach().numpy()


def threshold_shapes(rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {"x": (rows, columns), "threshold": (columns,)}


ROWS = [
    Op(
        name="linear_topk",
        function=linear_topk,
        reference=linear_reference,
        arrays={"x": 2, "W": 2, "b": 1},
        differentiable=("x", "W", "b"),
        samples=linear_samples,
        large=lambda dtype: linear_samples(dtype, LARGE_LINEAR),
        degenerate=linear_degenerate,
        growth=linear_growth,
        bad_inputs=linear_bad,
        core_shapes=lambda rows, columns: {"x": (rows, columns), "W": (rows + 3, columns), "b": (rows + 3,)},
        infinity=("x", "W", "b"),
        confined=linear_is_nan,
        unread={"x": ("x", "b"), "W": ("W", "b"), "b": ("x", "W", "b")},
    ),
    Op(
        name="batch_topk",
        function=batch_topk,
        reference=batch_reference,
        arrays={"x": 2},
        differentiable=("x",),
        samples=batch_samples,
        large=lambda dtype: batch_samples(dtype, {"large": ((300, 2000), 33), "large batch": ((5, 60, 300), 12)}),
        degenerate=batch_degenerate,
        growth=batch_growth,
        bad_inputs=batch_bad,
        core_shapes=lambda rows, columns: {"x": (rows, columns + 1)},
        infinity=("x",),
        confined=batch_is_nan,
        unread={"x": ("x",)},
        kernel_gradient=False,
    ),
    Op(
        name="jumprelu",
        function=subspan.jumprelu,
        reference=reference.jumprelu,
        arrays={"x": 2, "threshold": 1},
        differentiable=("x", "threshold"),
        samples=jump_samples,
        large=lambda dtype: jump_samples(dtype, LARGE_SHAPES | LONG),
        degenerate=list,
        growth=threshold_growth,
        bad_inputs=jump_bad,
        core_shapes=threshold_shapes,
        scalars=("threshold",),
        infinity=("x", "threshold"),
        confined=threshold_is_nan,
    ),
    Op(
        name="soft_threshold",
        function=subspan.soft_threshold,
        reference=reference.soft_threshold,
        arrays={"x": 2, "threshold": 1},
        differentiable=("x", "threshold"),
        samples=threshold_samples,
        large=lambda dtype: threshold_samples(dtype, LARGE_SHAPES | LONG),
        degenerate=list,
        growth=threshold_growth,
        bad_inputs=soft_bad,
        core_shapes=threshold_shapes,
        scalars=("threshold",),
        nonnegative=("threshold",),
        infinity=("x", "threshold"),
        confined=threshold_is_nan,
    ),
]
