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


def rank1_samples(dtype: torch.dtype, shapes: Any = SHAPES) -> list[Sample]:
    made = []
    for sample in linear_samples(dtype, shapes):
        arguments = dict(sample.arguments)
        A, method = arguments.pop("A"), arguments.pop("method", "compose")
        if method != "direct":
            left, right = A[..., :1].clone(), A[..., :1, :].clone()
            arguments = {"x": arguments.pop("x"), "left": left, "right": right, **arguments}
            made.append(Sample(sample.name, arguments, summed=sample.summed))
    return made


def lowrank_samples(dtype: torch.dtype, shapes: Any = SHAPES) -> list[Sample]:
    made = []
    for seed, sample in enumerate(linear_samples(dtype, shapes)):
        arguments = dict(sample.arguments)
        S, method = arguments.pop("S"), arguments.pop("method", "compose")
        if method != "direct":
            rank = 1 + seed % 3
            U = normal(seed + 60, *S.shape[:-1], rank, dtype=dtype)
            V = normal(seed + 80, *S.shape[:-2], rank, S.shape[-1], dtype=dtype, scale=max(S.shape[-1], 1) ** -0.5)
            arguments = {"x": arguments.pop("x"), "A": arguments.pop("A"), "U": U, "V": V, **arguments}
            made.append(Sample(sample.name, arguments, summed=sample.summed))
    return made


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


def rank1_degenerate() -> list[Sample]:
    own = {"x": normal(7, 3, 6), "left": normal(1, 2, 2, 1), "right": normal(2, 2, 1, 2), "S": normal(3, 2, 2, 3)}
    zeros = {name: torch.zeros_like(own[name]) for name in ("left", "right", "S")}
    return [
        Sample(f"{name} of zeros", {n: t.clone() for n, t in (own | {name: zeros[name]}).items()}) for name in zeros
    ]


def lowrank_degenerate() -> list[Sample]:
    own = {"x": normal(7, 3, 6), "A": normal(1, 2, 2, 2), "U": normal(2, 2, 2, 1), "V": normal(3, 2, 1, 3)}
    zeros = {name: torch.zeros_like(own[name]) for name in ("A", "U", "V")}
    return [
        Sample(f"{name} of zeros", {n: t.clone() for n, t in (own | {name: zeros[name]}).items()}) for name in zeros
    ]


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


def rank1_bad() -> list[BadInput]:
    return [
        BadInput("x not divisible", {"x": torch.ones(3, 7, 5).double()}, ValueError, "x", ("4 = 2 * 2", "4 and 6")),
        BadInput("bias", {"bias": torch.ones(3, 7).double()}, ValueError, "bias", ("10 = 2 * 5", "6 and 8")),
        BadInput("left of rank two", {"left": torch.ones(3, 4, 2, 2).double()}, ValueError, "left", ("(3, 4, 2, 2)",)),
        BadInput("right a column", {"right": torch.ones(3, 4, 2, 2).double()}, ValueError, "right", ("(3, 4, 2, 2)",)),
        BadInput("other terms", {"S": torch.ones(3, 3, 5, 2).double()}, ValueError, "S", ("(3, 3, 5, 2)", "4 of left")),
        BadInput("batch", {"S": torch.ones(2, 4, 5, 2).double()}, ValueError, "S", ("(2, 4, 5, 2)",)),
    ]  # fmt: skip


def lowrank_bad() -> list[BadInput]:
    return [
        BadInput("x not divisible", {"x": torch.ones(3, 7, 5).double()}, ValueError, "x", ("4 = 2 * 2", "4 and 6")),
        BadInput("bias", {"bias": torch.ones(3, 7).double()}, ValueError, "bias", ("10 = 2 * 5", "6 and 8")),
        BadInput("other terms of U", {"U": torch.ones(3, 3, 5, 1).double()}, ValueError, "U", ("(3, 3, 5, 1)",)),
        BadInput("other terms of V", {"V": torch.ones(3, 3, 1, 2).double()}, ValueError, "V", ("(3, 3, 1, 2)",)),
        BadInput("no rank", {"U": torch.ones(3, 4, 5, 0).double()}, ValueError, "U", ("(3, 4, 5, 0)",)),
        BadInput("batch", {"V": torch.ones(2, 4, 1, 2).double()}, ValueError, "V", ("(2, 4,", "2)")),
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


def rank1_growth(
    x: np.ndarray, left: np.ndarray, right: np.ndarray, S: np.ndarray, bias: np.ndarray | None = None
) -> Bounds:
    grown = linear_growth(x, left @ right, S, bias)
    of_rule = grown.gradients.pop("A")
    gradients = grown.gradients | {
        "left": (of_rule * np.abs(right)).sum(-1, keepdims=True),
        "right": (of_rule * np.abs(left)).sum(-2, keepdims=True),
    }
    return Bounds(grown.size + left.shape[1] + right.shape[2], grown.outputs, gradients)


def lowrank_growth(
    x: np.ndarray, A: np.ndarray, U: np.ndarray, V: np.ndarray, bias: np.ndarray | None = None
) -> Bounds:
    grown = linear_growth(x, A, np.abs(U) @ np.abs(V), bias)
    of_weights = grown.gradients.pop("S")
    gradients = grown.gradients | {
        "U": of_weights @ np.abs(V).swapaxes(-1, -2),
        "V": np.abs(U).swapaxes(-1, -2) @ of_weights,
    }
    return Bounds(grown.size + U.shape[-1] * len(A), grown.outputs, gradients)


def where_the_formula_is_nan(arguments: Arguments, item: int, row: int) -> np.ndarray:
    names = ("x", "A", "S", "bias")
    return np.isnan(reference.phm_linear(*(double_array(arguments[name])[item] for name in names)))


def rank1_is_nan(arguments: Arguments, item: int, row: int) -> np.ndarray:
    names = ("x", "left", "right", "S", "bias")
    return np.isnan(reference.phm_linear_rank1(*(double_array(arguments[name])[item] for name in names)))


def lowrank_is_nan(arguments: Arguments, item: int, row: int) -> np.ndarray:
    names = ("x", "A", "U", "V", "bias")
    return np.isnan(reference.phm_linear_lowrank(*(double_array(arguments[name])[item] for name in names)))


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
    Op(
        name="phm_linear_rank1",
        registered="phm_rank",
        function=subspan.phm_linear_rank1,
        reference=reference.phm_linear_rank1,
        arrays={"x": 2, "left": 3, "right": 3, "S": 3, "bias": 1},
        differentiable=("x", "left", "right", "S", "bias"),
        samples=rank1_samples,
        large=lambda dtype: rank1_samples(dtype, LARGE),
        degenerate=rank1_degenerate,
        growth=rank1_growth,
        bad_inputs=rank1_bad,
        core_shapes=lambda rows, columns: {
            "x": (rows, 2 * columns),
            "left": (3, 2, 1),
            "right": (3, 1, 2),
            "S": (3, rows, columns),
            "bias": (2 * rows,),
        },
        infinity=("x", "left", "right", "S", "bias"),
        confined=rank1_is_nan,
        unread={name: (name, "bias") for name in ("x", "left", "right", "S")}
        | {"bias": ("x", "left", "right", "S", "bias")},
        kernel_gradient=False,
    ),
    Op(
        name="phm_linear_lowrank",
        function=subspan.phm_linear_lowrank,
        reference=reference.phm_linear_lowrank,
        arrays={"x": 2, "A": 3, "U": 3, "V": 3, "bias": 1},
        differentiable=("x", "A", "U", "V", "bias"),
        samples=lowrank_samples,
        large=lambda dtype: lowrank_samples(dtype, LARGE),
        degenerate=lowrank_degenerate,
        growth=lowrank_growth,
        bad_inputs=lowrank_bad,
        core_shapes=lambda rows, columns: {
            "x": (rows, 2 * columns),
            "A": (3, 2, 2),
            "U": (3, rows, 4),
            "V": (3, 4, columns),
            "bias": (2 * rows,),
        },
        infinity=("x", "A", "U", "V", "bias"),
        confined=lowrank_is_nan,
        unread={name: (name, "bias") for name in ("x", "A", "U", "V")} | {"bias": ("x", "A", "U", "V", "bias")},
    ),
]  # fmt: skip
