"""The rows of the op table for the retractions of the Stiefel manifold that have a kernel."""

from __future__ import annotations

import functools

import numpy as np
import torch

import subspan
from grassmann_rows import basis
from op_row import BadInput, Bounds, Op, Sample
from sample_arrays import normal
from subspan.reference import skew
from subspan.reference import stiefel as reference

#: Shapes (*batch, n, k) of frames by name.
SHAPES: dict[str, tuple[int, ...]] = {
    "tall": (9, 4),
    "square": (4, 4),
    "one column": (6, 1),
    "one entry": (1, 1),
    "batch": (3, 7, 5),
    "two batch dimensions": (2, 2, 6, 3),
    "empty batch": (0, 4, 3),
    "many": (37, 6, 3),
    "blocks": (90, 37),
}
LARGE_SHAPES: dict[str, tuple[int, ...]] = {"large tall": (2100, 20), "large batch": (13, 300, 16)}


def tangent(X: torch.Tensor, V: torch.Tensor) -> torch.Tensor:
    product = X.mT @ V
    return V - X @ (product + product.mT) / 2


def samples(dtype: torch.dtype, method: str, shapes: dict[str, tuple[int, ...]] = SHAPES) -> list[Sample]:
    made = []
    for seed, (name, shape) in enumerate(shapes.items()):
        X = basis(seed + 80, *shape)
        V = tangent(X, normal(seed, *shape, scale=shape[-2] ** -0.5))
        made.append(Sample(name, {"X": X.to(dtype), "V": V.to(dtype), "method": method}))
    if shapes is not SHAPES:
        return made
    X, shared = basis(1, 3, 8, 2, dtype=dtype), basis(2, 8, 2, dtype=dtype)
    V = tangent(X, normal(3, 3, 8, 2, dtype=dtype))
    return [
        *made,
        Sample("not tangent", {"X": X, "V": normal(4, 3, 8, 2, dtype=dtype), "method": method}),
        Sample("as rows", {"X": X.mT.contiguous(), "V": V.mT, "method": method, "layout": "rows"}),
        Sample("shared X", {"X": shared, "V": normal(5, 3, 8, 2, dtype=dtype), "method": method}, summed=3),
        Sample("far", {"X": X[0], "V": 5 * V[0], "method": method}),
    ]  # fmt: skip


def degenerate(method: str) -> list[Sample]:
    X = basis(1, 9, 3)
    frame = torch.linalg.qr(torch.cat([X, normal(3, 9, 3)], -1)).Q[:, 3:]
    rank_one = tangent(X, torch.outer(normal(2, 9), normal(4, 3)))
    points = {
        "V = 0": (X, torch.zeros_like(X)),
        "equal lengths": (X, 0.7 * frame),
        "within the span": (X, X @ torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, 0, 0]], dtype=torch.float64)),
        "rank one": (X, rank_one),
        "not tangent": (X, normal(5, 9, 3)),
        "along X": (X, X.clone()),
        "one column": (basis(6, 5, 1), normal(7, 5, 1)),
        "one entry": (torch.ones(1, 1).double(), torch.ones(1, 1).double()),
        "k = n": (basis(8, 3, 3), normal(9, 3, 3)),
        "k = n, V = 0": (basis(8, 3, 3), torch.zeros(3, 3).double()),
    }
    return [Sample(name, {"X": X, "V": V, "method": method}) for name, (X, V) in points.items()]


def growth(X: np.ndarray, V: np.ndarray, method: str, layout: str = "columns") -> Bounds:
    """W is made of two products, and its rotation O, whose derivative O - 1 + W is bounded by that of the exponential,
    moves by what W does. Every entry of X weighs as much as its share of X."""
    x, v = (array.T if layout == "rows" else array for array in (X, V))
    n, k = x.shape
    size, ones, g = np.linalg.norm(x, 2), np.ones((n, k)), np.ones((n, k))
    length = np.linalg.norm(v, 2)
    P = length * (1 + size**2)
    W = 2 * P * size  # and its error
    rotation = (skew.skew_expm if method == "exp" else skew.cayley)(reference.generator(x, v))
    moved = np.abs(rotation) @ np.abs(x) + np.abs(v) + W * (size + P)
    total = np.linalg.norm(g)
    d_x = np.abs(rotation.T) @ g + total * (1 + W) * (P * (1 + size) + W) * ones
    d_v = (total * (1 + W) * (1 + size**2) * (1 + size)) * ones
    flip = (lambda a: a.T) if layout == "rows" else (lambda a: a)
    return Bounds(n + 4 * k + 8, (flip(moved * ones),), {"X": flip(d_x), "V": flip(d_v)})


def bad_inputs() -> list[BadInput]:
    return [
        BadInput("other length", {"V": torch.ones(3, 8, 5).double()}, ValueError, "V", ("(3, 8, 5)", "(3, 7, 5)")),
        BadInput("other number", {"V": torch.ones(7, 4).double()}, ValueError, "V", ("(7, 4)", "(3, 7, 5)")),
        BadInput("batch", {"V": torch.ones(2, 7, 5).double()}, ValueError, "V", ("(2, 7, 5)", "(3, 7, 5)")),
        BadInput("layout unknown", {"layout": "row"}, ValueError, "layout"),
        BadInput("method unknown", {"method": "svd"}, ValueError, "method", ("'svd'", "'cayley'")),
        BadInput("method None", {"method": None}, ValueError, "method"),
    ]


def row(method: str) -> Op:
    return Op(
        name="retract",
        variant=method,
        registered="stiefel_retract",
        function=subspan.retract,
        reference=reference.retract,
        arrays={"X": 2, "V": 2},
        differentiable=("X", "V"),
        samples=functools.partial(samples, method=method),
        large=lambda dtype: samples(dtype, method, LARGE_SHAPES),
        degenerate=functools.partial(degenerate, method),
        growth=growth,
        bad_inputs=bad_inputs,
    )


ROWS = [row("cayley"), row("exp")]
