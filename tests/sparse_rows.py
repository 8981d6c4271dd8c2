"""The rows of the op table for sparse embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import subspan
from op_row import Arguments, BadInput, Bounds, Op, Sample
from sample_arrays import LARGE_SHAPES, SHAPES, delicate_features, features, normal
from subspan.reference import sparse as reference

Shapes = dict[str, tuple[int, ...]]
#: More rows than are summed up in one block, and more columns than one thread takes at a time.
LONG: Shapes = {"long": (2100, 5), "long rows": (3, 4200), "large batch": (13, 90, 40)}


def samples(dtype: torch.dtype, shapes: Shapes = SHAPES) -> list[Sample]:
    return [Sample(name, {"x": x}) for name, x in features(dtype, shapes)]


def flops_samples(dtype: torch.dtype, shapes: Shapes = SHAPES) -> list[Sample]:
    unbiased = [Sample(f"{s.name}, unbiased", s.arguments | {"unbiased": True}) for s in samples(dtype, shapes)]
    return samples(dtype, shapes) + unbiased


def cross_samples(dtype: torch.dtype, shapes: Shapes = SHAPES) -> list[Sample]:
    made = [
        Sample(name, {"x": x, "y": normal(seed + 70, *x.shape[:-2], x.shape[-2] + 2, x.shape[-1], dtype=dtype)})
        for seed, (name, x) in enumerate(features(dtype, shapes))
    ]
    if shapes is not SHAPES:
        return made
    x, y = normal(1, 3, 6, 4, dtype=dtype), normal(2, 5, 4, dtype=dtype)
    return [
        *made,
        Sample("shared y", {"x": x, "y": y}, summed=3),
        Sample("shared x", {"x": x[0], "y": normal(3, 3, 5, 4, dtype=dtype)}, summed=3),
        Sample("no rows of y", {"x": x[0], "y": y[:0]}),
    ]


def degenerate() -> list[Sample]:
    """At zeros a magnitude has no second derivative; their gradient is looked at in test_sparse.py."""
    return [Sample(name, {"x": x}) for name, x in delicate_features().items() if name not in ("zero", "zero row")]


def mask_bad() -> list[BadInput]:
    return [
        BadInput("mask of numbers", {"row_mask": torch.ones(3, 7).double()}, TypeError, "row_mask"),
        BadInput("mask of columns", {"row_mask": torch.ones(3, 5).bool()}, ValueError, "row_mask", ("(3, 5)", "7, 5)")),
        BadInput("mask of no row", {"row_mask": torch.tensor(True)}, ValueError, "row_mask"),
    ]


def flops_bad() -> list[BadInput]:
    return [*mask_bad(), BadInput("a number for unbiased", {"unbiased": 1}, TypeError, "unbiased")]


def cross_bad() -> list[BadInput]:
    return [
        BadInput("other columns", {"y": torch.ones(3, 9, 4).double()}, ValueError, "y", ("(3, 9, 4)", "(3, 7, 5)")),
        BadInput("batch", {"y": torch.ones(2, 9, 5).double()}, ValueError, "y", ("(2, 9, 5)", "(3, 7, 5)")),
        BadInput("other type", {"y": torch.ones(3, 9, 5)}, TypeError, "y", ("float32", "float64")),
        BadInput("unbiased", {"unbiased": True}, ValueError, "unbiased"),
    ]


def flops_growth(x: np.ndarray, *, unbiased: bool = False) -> Bounds:
    """Sums of magnitudes of n rows err by n eps relative to themselves, for the sum of their squares that is twice."""
    n, d = x.shape
    sums, ones = np.abs(x).sum(0), np.ones_like(x)
    if unbiased:
        scale = 1 / max(n * (n - 1), 1)
        return Bounds(n + d + 2, (3 * scale * (sums**2).sum(),), {"x": 2 * scale * (sums * ones + np.abs(x))})
    means = sums / max(n, 1)
    return Bounds(n + d + 2, (2 * (means**2).sum(),), {"x": 2 / max(n, 1) * means * ones})


def cross_growth(x: np.ndarray, y: np.ndarray) -> Bounds:
    (n, d), m = x.shape, len(y)
    means, others = reference.column_means(x), reference.column_means(y)
    gradients = {"x": others / max(n, 1) * np.ones_like(x), "y": means / max(m, 1) * np.ones_like(y)}
    return Bounds(n + m + d + 2, ((means * others).sum(),), gradients)


def l1_growth(x: np.ndarray) -> Bounds:
    n, d = x.shape
    return Bounds(n + d + 2, (np.abs(x).sum() / max(n, 1),), {"x": np.ones_like(x) / max(n, 1)})


# --- topk_rows ---


def topk(x: Any, k: int, by: str = "value", relu: bool = True) -> tuple[Any, Any]:
    rows = subspan.topk_rows(x, k, by, relu)
    return rows.values, rows.indices


#: (rows, columns, k): so few columns that all are sorted, and so many that groups of them are looked at first.
TOPK_SHAPES: dict[str, tuple[tuple[int, ...], int]] = {
    "batch": ((3, 7, 5), 2),
    "all": ((4, 6), 6),
    "one entry": ((1, 1), 1),
    "no rows": ((0, 4), 2),
    "empty batch": ((0, 3, 4), 3),
    "two batch dimensions": ((2, 2, 3, 9), 4),
    "groups": ((3, 700), 5),
    "many of many": ((2, 900), 300),
    "more than is compared": ((2, 5000), 260),
}


def topk_samples(dtype: torch.dtype, shapes: Any = TOPK_SHAPES) -> list[Sample]:
    made = []
    for seed, (name, (shape, k)) in enumerate(shapes.items()):
        x = normal(seed, *shape, dtype=dtype)
        made.append(Sample(name, {"x": x, "k": k}))
        if name != "batch":
            made.append(Sample(f"{name}, magnitudes", {"x": x, "k": k, "by": "abs", "relu": seed % 2 == 0}))
    if shapes is not TOPK_SHAPES:
        return made
    few = normal(30, 5, 400, dtype=dtype).mul(1.5).round()
    return [
        *made,
        Sample("equal entries", {"x": few, "k": 40}),
        Sample("zeros", {"x": 0 * few, "k": 40, "relu": False}),
    ]


def topk_degenerate() -> list[Sample]:
    """Where the picks that relu cuts off get no gradient, and where equal entries are none of them picked."""
    negative = -normal(31, 3, 6).abs()
    return [Sample("nothing positive", {"x": negative, "k": 3}), Sample("kept", {"x": negative, "k": 3, "relu": False})]


def topk_bad() -> list[BadInput]:
    return [
        BadInput("more than columns", {"k": 6}, ValueError, "k", ("(3, 7, 5)", "6")),
        BadInput("none", {"k": 0}, ValueError, "k"),
        BadInput("a fraction", {"k": 2.0}, TypeError, "k"),
        BadInput("unknown rank", {"by": "size"}, ValueError, "by", ("'size'",)),
        BadInput("a number to cut off at", {"relu": 0}, TypeError, "relu"),
    ]


def topk_growth(x: np.ndarray, k: int, by: str = "value", relu: bool = True) -> Bounds:
    """Entries are copied without a rounding, in the gradient those of the upstream gradient."""
    zeros = np.zeros((len(x), k))
    return Bounds(1, (zeros, zeros), {"x": np.ones_like(x)})


def topk_is_nan(arguments: Arguments, item: int, row: int) -> np.ndarray:
    """A row with NaN begins with it; infinity is a number."""
    expected = np.zeros((7, 2), bool)
    expected[row, 0] = bool(arguments["x"][item, row, 0].isnan())
    return expected


ROWS = [
    Op(
        name="flops_loss",
        function=subspan.flops_loss,
        reference=reference.flops_loss,
        arrays={"x": 2},
        differentiable=("x",),
        samples=flops_samples,
        large=lambda dtype: flops_samples(dtype, LARGE_SHAPES | LONG),
        degenerate=degenerate,
        growth=flops_growth,
        bad_inputs=flops_bad,
    ),
    Op(
        name="flops_loss",
        variant="of two sides",
        function=subspan.flops_loss,
        reference=reference.flops_loss,
        arrays={"x": 2, "y": 2},
        differentiable=("x", "y"),
        samples=cross_samples,
        large=lambda dtype: cross_samples(dtype, LARGE_SHAPES | LONG),
        degenerate=lambda: [s for s in cross_samples(torch.float64) if s.name in ("one entry", "no samples")],
        growth=cross_growth,
        bad_inputs=cross_bad,
        core_shapes=lambda rows, columns: {"x": (rows, columns), "y": (rows + 3, columns)},
    ),
    Op(
        name="l1_loss",
        function=subspan.l1_loss,
        reference=reference.l1_loss,
        arrays={"x": 2},
        differentiable=("x",),
        samples=samples,
        large=lambda dtype: samples(dtype, LARGE_SHAPES | LONG),
        degenerate=degenerate,
        growth=l1_growth,
        bad_inputs=mask_bad,
    ),
    Op(
        name="topk_rows",
        function=topk,
        reference=reference.topk_rows,
        arrays={"x": 2},
        differentiable=("x",),
        samples=topk_samples,
        large=lambda dtype: topk_samples(dtype, {"large": ((300, 2000), 33), "large batch": ((5, 60, 300), 12)}),
        degenerate=topk_degenerate,
        growth=topk_growth,
        bad_inputs=topk_bad,
        core_shapes=lambda rows, columns: {"x": (rows, columns + 1)},
        infinity=("x",),
        confined=topk_is_nan,
        unread={"x": ("x",)},
        kernel_gradient=False,
    ),
]
