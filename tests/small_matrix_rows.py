"""The row of the op table for singular values of small matrices. Their gradients are those of single values, which
exist where these are simple and not zero. small_svd and small_eigh give vectors of either sign and have own tests.
"""

from __future__ import annotations

import numpy as np
import torch

import subspan
from op_row import BadInput, Bounds, Op, Sample
from sample_arrays import LARGE_SHAPES, SHAPES, features, normal
from subspan.reference import small_matrices as reference


def samples(dtype: torch.dtype, shapes: dict[str, tuple[int, ...]] = SHAPES) -> list[Sample]:
    return [Sample(name, {"M": M}) for name, M in features(dtype, shapes)]


def simple() -> list[Sample]:
    shapes = {"square": (4, 4), "tall": (6, 3), "wide": (2, 5), "one row": (1, 4), "one entry": (1, 1)}
    return [Sample(name, {"M": normal(seed, *shape)}) for seed, (name, shape) in enumerate(shapes.items())]


def growth(M: np.ndarray) -> Bounds:
    """An error of a rounding in every entry moves every value by at most |M|, and the vectors of one by |M| over its
    distance to the others, and to minus itself, which is what the derivative of its vectors divides by."""
    values = reference.small_svdvals(M)
    if not M.size:
        return Bounds(sum(M.shape), (np.zeros(len(values)),), {"M": np.zeros(M.shape)})
    largest = values.max()
    apart = np.abs(values[:, None] - values) + np.eye(len(values)) * largest
    smallest = max(min(apart.min(), 2 * values.min() if min(M.shape) > 1 else largest), 1e-300)
    return Bounds(sum(M.shape), (np.full(len(values), largest),), {"M": np.full(M.shape, 1 + largest / smallest)})


def bad_inputs() -> list[BadInput]:
    return [
        BadInput("info number", {"return_info": 1}, TypeError, "return_info"),
        BadInput("info None", {"return_info": None}, TypeError, "return_info"),
    ]


ROWS = [
    Op(
        name="small_svdvals",
        function=subspan.small_svdvals,
        reference=reference.small_svdvals,
        arrays={"M": 2},
        differentiable=("M",),
        samples=samples,
        large=lambda dtype: samples(dtype, LARGE_SHAPES),
        degenerate=simple,
        growth=growth,
        bad_inputs=bad_inputs,
        kernel_gradient=False,
    )
]
