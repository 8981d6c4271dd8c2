"""The row of the op table for CRATE's ISTA step."""

from __future__ import annotations

import numpy as np
import torch

import subspan
from op_row import Arguments, BadInput, Bounds, Op, Sample, double_array
from sample_arrays import LARGE_SHAPES, SHAPES, delicate_features, features, normal
from subspan.reference import crate as reference


def samples(dtype: torch.dtype, shapes: dict[str, tuple[int, ...]] = SHAPES) -> list[Sample]:
    made = []
    for seed, (name, x) in enumerate(features(dtype, shapes)):
        d = x.shape[-1]
        D = normal(seed + 70, *x.shape[:-2], d, d, dtype=dtype, scale=max(d, 1) ** -0.5)
        made.append(Sample(name, {"x": x, "D": D, "step": 0.3, "threshold": 0.2}))
    if shapes is not SHAPES:
        return made
    x, D = normal(1, 3, 8, 4, dtype=dtype), normal(2, 4, 4, dtype=dtype, scale=0.5)
    return [
        *made,
        Sample("shared dictionary", {"x": x, "D": D, "step": 0.3, "threshold": 0.1}, summed=3),
        Sample("shared tokens", {"x": x[0], "D": normal(3, 3, 4, 4, dtype=dtype, scale=0.5)}, summed=3),
        Sample("default step", {"x": x[1], "D": D}),
    ]


def degenerate() -> list[Sample]:
    """A threshold away from the values, so that no argument of relu lies at its kink."""
    made = []
    for name, x in delicate_features().items():
        D = normal(6, x.shape[1], x.shape[1], scale=0.5)
        made.append(Sample(name, {"x": x, "D": D, "step": 0.1, "threshold": -60.0}))
        made.append(Sample(f"{name}, all off", {"x": x, "D": D, "step": 0.1, "threshold": 60.0}))
    return made


def bad_inputs() -> list[BadInput]:
    return [
        BadInput("not square", {"D": torch.ones(3, 5, 4).double()}, ValueError, "D", ("(3, 5, 4)", "(3, 7, 5)")),
        BadInput("other size", {"D": torch.ones(4, 4).double()}, ValueError, "D", ("(4, 4)", "(3, 7, 5)")),
        BadInput("batch", {"D": torch.ones(2, 5, 5).double()}, ValueError, "D", ("(2, 5, 5)", "(3, 7, 5)")),
        BadInput("step NaN", {"step": float("nan")}, ValueError, "step"),
        BadInput("step string", {"step": "0.1"}, TypeError, "step"),
        BadInput("threshold infinite", {"threshold": float("inf")}, ValueError, "threshold"),
    ]


def growth(x: np.ndarray, D: np.ndarray, step: float = 0.1, threshold: float = 0.1) -> Bounds:
    """Every product is bounded by the product of absolute values; upstream gradients by one."""
    n, d = x.shape
    size, absolute = np.abs(x), np.abs(D)
    residual = size + size @ absolute.T
    code = size + step * residual @ absolute + step * abs(threshold)
    ones = np.ones_like(x)
    back = step * ones @ absolute.T
    d_x = ones + back + back @ absolute
    d_D = step * residual.T @ ones + back.T @ size
    return Bounds(3 * d + n + 3, (code,), {"x": d_x, "D": d_D})


def where_the_formula_is_nan(arguments: Arguments, item: int, row: int) -> np.ndarray:
    """A token reaches its own row of the result, the dictionary every row."""
    return np.isnan(reference.ista(double_array(arguments["x"])[item], double_array(arguments["D"])[item]))


ROWS = [
    Op(
        name="ista",
        registered="affine_product",
        function=subspan.ista,
        reference=reference.ista,
        arrays={"x": 2, "D": 2},
        differentiable=("x", "D"),
        samples=samples,
        large=lambda dtype: samples(dtype, LARGE_SHAPES),
        degenerate=degenerate,
        growth=growth,
        bad_inputs=bad_inputs,
        square_of_columns=("D",),
        infinity=("x", "D"),
        confined=where_the_formula_is_nan,
    )
]
