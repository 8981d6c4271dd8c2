"""The rows of the op table for hypercomplex products."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import subspan
from op_row import Arguments, BadInput, Bounds, Op, Sample, double_array
from sample_arrays import normal
from subspan.reference import phm as reference

#: (batch, terms, p, q, l, k) by name.
SHAPES: dict[str, tuple[tuple[int, ...], int, int, int, int, int]] = {
    "quaternion size": ((), 4, 4, 4, 2, 1),
    "one term": ((), 1, 1, 1, 3, 5),
    "rectangular rule": ((), 2, 3, 1, 2, 2),
    "batch": ((3,), 4, 2, 2, 5, 2),
    "two batch dimensions": ((2, 2), 3, 2, 1, 1, 2),
    "empty batch": ((0,), 2, 2, 2, 2, 3),
    "no rows of S": ((), 2, 2, 2, 0, 3),
    "no columns of S": ((), 2, 2, 2, 3, 0),
    "odd widths": ((), 5, 5, 5, 9, 7),
    "many terms": ((), 12, 4, 3, 17, 21),
    "more than one block": ((2,), 3, 3, 2, 47, 90),
}
LARGE: dict[str, tuple[tuple[int, ...], int, int, int, int, int]] = {
    "large": ((), 4, 4, 4, 125, 90),
    "large rule": ((), 16, 16, 16, 20, 18),
    "large batch": ((5,), 8, 8, 8, 16, 24),
}
ROWS_OF_X = {"odd widths": 1, "many terms": 17, "more than one block": 40, "large": 530, "large rule": 9}


def factors(seed: int, dtype: torch.dtype, shape: Any) -> Arguments:
    batch, terms, p, q, l, k = shape  # noqa: E741
    A = normal(seed, *batch, terms, p, q, dtype=dtype, scale=(terms * q) ** -0.5)
    return {"A": A, "S": normal(seed + 50, *batch, terms, l, k, dtype=dtype, scale=max(k, 1) ** -0.5)}


def weight_samples(dtype: torch.dtype, shapes: Any = SHAPES) -> list[Sample]:
    made = [Sample(name, factors(seed, dtype, shape)) for seed, (name, shape) in enumerate(shapes.items())]
    if shapes is not SHAPES:
        return made
    A, S = normal(1, 2, 2, 2, dtype=dtype), normal(2, 3, 2, 2, 3, dtype=dtype)
    return [*made, Sample("shared rule", {"A": A, "S": S}, summed=3)]


def linear_samples(dtype: torch.dtype, shapes: Any = SHAPES) -> list[Sample]:
    made = []
    for seed, (name, shape) in enumerate(shapes.items()):
        batch, _, p, q, l, k = shape  # noqa: E741
        x = normal(seed + 20, *batch, ROWS_OF_X.get(name, 7 if name == "batch" else 3), q * k, dtype=dtype)
        bias = normal(seed + 40, *batch, p * l, dtype=dtype)
        methods = ("auto",) if name in ("batch", "empty batch") or shapes is not SHAPES else ("direct", "compose")
        made += [
            Sample(
                name if method == "auto" else f"{name}, {method}",
                {"x": x, **factors(seed, dtype, shape), "bias": bias, "method": method},
            )
            for method in methods
        ]
    if shapes is not SHAPES:
        return made
    x, bias = normal(4, 3, 5, 6, dtype=dtype), normal(5, 4, dtype=dtype)
    own, S = factors(1, dtype, ((), 2, 2, 2, 2, 3)), normal(6, 3, 2, 2, 3, dtype=dtype)
    return [
        *made,
        Sample("one factor pair for all", {"x": x, **own, "bias": bias}, summed=3),
        Sample("no bias", {"x": x[0], **own}),
        Sample("no rows", {"x": x[0, :0], **own, "bias": bias}),
        Sample("one rule, weights of each item", {"x": x, "A": own["A"], "S": S}, summed=3),
        Sample("one x for weights of each item", {"x": x[0], "A": own["A"], "S": S}, summed=3),
    ]  # fmt: skip


def weight_degenerate() -> list[Sample]:
    own = factors(3, torch.float64, ((), 2, 2, 2, 2, 3))
    return [
        Sample("rule of zeros", own | {"A": torch.zeros(2, 2, 2).double()}),
        Sample("weights of zeros", own | {"S": torch.zeros(2, 2, 3).double()}),
        Sample("complex", own | {"A": torch.from_numpy(subspan.algebra("complex", 2))}),
    ]


def linear_degenerate() -> list[Sample]:
    x, bias = normal(7, 3, 6), normal(8, 4)
    return [Sample(s.name, {"x": x.clone(), **s.arguments, "bias": bias.clone()}) for s in weight_degenerate()]


def _bad_factors() -> list[BadInput]:
    return [
        BadInput("other terms", {"S": torch.ones(3, 3, 5, 2).double()}, ValueError, "S", ("(3, 3, 5, 2)", "4 of A")),
        BadInput("no terms", {"A": torch.ones(3, 0, 2, 2).double()}, ValueError, "A", ("(3, 0, 2, 2)",)),
    ]


def weight_bad() -> list[BadInput]:
    other_batch = BadInput("batch", {"S": torch.ones(2, 4, 5, 2).double()}, ValueError, "S", ("(2, 4, 5, 2)",))
    return [*_bad_factors(), other_batch]


def linear_bad() -> list[BadInput]:
    return [
        BadInput("x not divisible", {"x": torch.ones(3, 7, 5).double()}, ValueError, "x", ("4 = 2 * 2", "4 and 6")),
        BadInput("x too narrow", {"x": torch.ones(3, 7, 1).double()}, ValueError, "x", ("2 is the least",)),
        BadInput("x of another width", {"x": torch.ones(3, 7, 6).double()}, ValueError, "x", ("(3, 7, 6)", "4")),
        BadInput(
            "bias not divisible", {"bias": torch.ones(3, 7).double()}, ValueError, "bias", ("10 = 2 * 5", "6 and 8")
        ),
        BadInput("batch of S", {"S": torch.ones(2, 4, 5, 2).double()}, ValueError, "S", ("(2, 4, 5, 2)",)),
        BadInput("batch of bias", {"bias": torch.ones(2, 10).double()}, ValueError, "bias", ("(2, 10)",)),
        BadInput("method unknown", {"method": "cp"}, ValueError, "method"),
        BadInput("method of another type", {"method": 1}, ValueError, "method"),
        *_bad_factors(),
    ]


# --- growth of rounding errors: every sum of products is bounded by the sum of absolute values ---


def weight_growth(A: np.ndarray, S: np.ndarray) -> Bounds:
    size, strength = np.abs(S), np.abs(A)
    gradients = {
        "A": np.broadcast_to(size.sum((1, 2))[:, None, None], A.shape),
        "S": np.broadcast_to(strength.sum((1, 2))[:, None, None], S.shape),
    }
    longest = max(A.shape[0], A.shape[1] * A.shape[2], S.shape[1] * S.shape[2])
    return Bounds(longest + 2, (reference.phm_weight(strength, size),), gradients)


def linear_growth(
    x: np.ndarray, A: np.ndarray, S: np.ndarray, bias: np.ndarray | None = None, *, method: str = "auto"
) -> Bounds:
    W = reference.phm_weight(np.abs(A), np.abs(S))
    y = np.abs(x) @ W.T + (0 if bias is None else np.abs(bias))
    ones = np.ones_like(y)
    blocks = (ones.T @ np.abs(x)).reshape(A.shape[1], S.shape[1], A.shape[2], S.shape[2])
    gradients = {
        "x": ones @ W,
        "A": np.einsum("ilk,plqk->ipq", np.abs(S), blocks),
        "S": np.einsum("ipq,plqk->ilk", np.abs(A), blocks),
        "bias": ones.sum(0),
    }
    size = sum(W.shape) + x.shape[0] + A.shape[0] + S.shape[1] * S.shape[2]
    return Bounds(size + 3, (y,), gradients)


def where_the_formula_is_nan(arguments: Arguments, item: int, row: int) -> np.ndarray:
    names = ("x", "A", "S", "bias")
    return np.isnan(reference.phm_linear(*(double_array(arguments[name])[item] for name in names)))


def weight_is_nan(arguments: Arguments, item: int, row: int) -> np.ndarray:
    return np.isnan(reference.phm_weight(*(double_array(arguments[name])[item] for name in ("A", "S"))))


ROWS = [
    Op(
        name="phm_weight",
        function=subspan.phm_weight,
        reference=reference.phm_weight,
        arrays={"A": 3, "S": 3},
        differentiable=("A", "S"),
        samples=weight_samples,
        large=lambda dtype: weight_samples(dtype, LARGE),
        degenerate=weight_degenerate,
        growth=weight_growth,
        bad_inputs=weight_bad,
        core_shapes=lambda rows, columns: {"A": (3, 2, 2), "S": (3, rows, columns)},
        infinity=("A", "S"),
        confined=weight_is_nan,
        unread={"A": ("A",), "S": ("S",)},
    ),
    Op(
        name="phm_linear",
        function=subspan.phm_linear,
        reference=reference.phm_linear,
        arrays={"x": 2, "A": 3, "S": 3, "bias": 1},
        differentiable=("x", "A", "S", "bias"),
        samples=linear_samples,
        large=lambda dtype: linear_samples(dtype, LARGE),
        degenerate=linear_degenerate,
        growth=linear_growth,
        bad_inputs=linear_bad,
        core_shapes=lambda rows, columns: {
            "x": (rows, 2 * columns), "A": (3, 2, 2), "S": (3, rows, columns), "bias": (2 * rows,)
        },
        infinity=("x", "A", "S", "bias"),
        confined=where_the_formula_is_nan,
        unread={"x": ("x", "bias"), "A": ("A", "bias"), "S": ("S", "bias"), "bias": ("x", "A", "S", "bias")},
    ),
]  # fmt: skip
