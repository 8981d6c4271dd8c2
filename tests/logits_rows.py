"""The row of the op table for the logits of class subspaces."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

import subspan
from op_row import Arguments, BadInput, Bounds, Op, Sample, double_array
from sample_arrays import normal
from subspan.reference import subspace_logits as reference

#: Name, batch of x, features n, batch of W, classes, k, layout. Tiles of 8 vectors are read where they lie.
SHAPES: list[tuple[str, tuple[int, ...], int, tuple[int, ...], int, int, str]] = [
    ("batch", (3,), 4, (3,), 4, 2, "columns"),
    ("tall", (9,), 4, (), 3, 2, "columns"),
    ("one row", (), 6, (), 2, 3, "columns"),
    ("one entry", (1,), 1, (), 1, 1, "columns"),
    ("lines", (4,), 3, (), 5, 1, "rows"),
    ("no features", (3,), 0, (), 2, 2, "columns"),
    ("no vectors", (3,), 4, (), 2, 0, "rows"),
    ("no classes", (3,), 4, (), 0, 2, "columns"),
    ("no rows", (0,), 4, (), 3, 2, "columns"),
    ("two batch dimensions", (2, 2), 4, (), 3, 2, "rows"),
    ("a basis for each of many", (37,), 4, (37,), 2, 2, "columns"),
    ("many", (37,), 6, (), 5, 3, "rows"),
    ("more vectors than features", (4,), 3, (), 2, 5, "columns"),
    ("tiles of columns", (65,), 48, (), 9, 8, "columns"),
    ("tiles of rows", (50,), 64, (), 5, 16, "rows"),
    ("long", (10,), 300, (), 7, 5, "rows"),
    ("bases of groups", (2, 5), 6, (2, 1), 3, 2, "rows"),
    ("blocked", (40,), 70, (), 30, 9, "columns"),
]

LARGE = [
    ("large", (300,), 301, (), 50, 8, "columns"),
    ("large rows", (130,), 610, (), 33, 8, "rows"),
    ("large batch", (13,), 90, (13,), 13, 10, "columns"),
]


def samples(dtype: torch.dtype, shapes: list[Any] = SHAPES) -> list[Sample]:
    made = []
    for seed, (name, batch, n, own, classes, k, layout) in enumerate(shapes):
        x = normal(seed, *batch, n, dtype=dtype)
        core = (n, k) if layout == "columns" else (k, n)
        W = normal(seed + 90, *own, classes, *core, dtype=dtype, scale=max(n, 1) ** -0.5)
        made.append(Sample(name, {"x": x, "W": W, "scale": 1.5, "layout": layout}))
    if shapes is not SHAPES:
        return [replace(s, arguments=s.arguments | {"normalize": i == 1}) for i, s in enumerate(made)]
    x, W = normal(1, 5, dtype=dtype), normal(5, 3, 6, 2, dtype=dtype)
    x48, W48 = normal(6, 60, 48, dtype=dtype), normal(7, 9, 8, 48, dtype=dtype)
    return [
        *made,
        Sample("shared feature", {"x": x, "W": normal(2, 3, 2, 5, 2, dtype=dtype)}, summed=3),
        Sample("normalised", {"x": normal(4, 9, 6, dtype=dtype), "W": W, "scale": 25.0, "normalize": True}),
        Sample("normalised tiles", {"x": x48, "W": W48, "layout": "rows", "normalize": True}),
        Sample("negative scale", {"x": x, "W": normal(3, 2, 5, 2, dtype=dtype), "scale": -2.0}),
    ]


def degenerate() -> list[Sample]:
    """Away from the kink, a projection of length 0, which test_subspace_logits.py looks at."""
    x = normal(1, 3, 4)
    bases = normal(2, 3, 4, 2)
    repeated = bases[..., :1].expand(3, 4, 2).clone()
    axes = torch.eye(4, dtype=torch.float64)
    points = {
        "repeated vectors": (x, repeated),
        "equal classes": (x, bases[:1].expand(3, 4, 2).clone()),
        "a vector of zeros": (x, bases * torch.tensor([1.0, 0.0]).double()),
        "orthogonal to one vector": (axes[:2] + axes[2], torch.stack([axes[:, :2], axes[:, 1:3]])),
        "inside the subspace": (axes[:1], axes[:, :2][None].clone()),
        "a whole space": (x, axes[None].clone()),
        "small": (0.1 * x, bases),
        "equal features": (x[:1].expand(3, 4).clone(), bases),
    }
    return [
        Sample(f"{name}{', normalised' * normalize}", {"x": x, "W": W, "scale": 2.0, "normalize": normalize})
        for name, (x, W) in points.items()
        for normalize in (False, True)
    ]


def bad_inputs() -> list[BadInput]:
    return [
        BadInput("other length", {"W": torch.ones(3, 4, 5, 2).double()}, ValueError, "W", ("(3, 4, 5, 2)", "(3, 4)")),
        BadInput("other layout", {"layout": "rows"}, ValueError, "W", ("(3, 4, 4, 2)", "'rows'")),
        BadInput("batch", {"W": torch.ones(2, 4, 4, 2).double()}, ValueError, "W", ("(3, 4)",)),
        BadInput("layout unknown", {"layout": "samples"}, ValueError, "layout"),
        BadInput("layout None", {"layout": None}, ValueError, "layout"),
        BadInput("normalize None", {"normalize": None}, TypeError, "normalize"),
        BadInput("scale NaN", {"scale": float("nan")}, ValueError, "scale"),
        BadInput("scale infinite", {"scale": float("inf")}, ValueError, "scale"),
        BadInput("scale string", {"scale": "25"}, TypeError, "scale"),
    ]


def growth(
    x: np.ndarray, W: np.ndarray, *, scale: float = 1.0, layout: str = "columns", normalize: bool = False
) -> Bounds:
    """With a_c = |W_c|^T |x| a projection z_c errs by eps n a_c, its length by that of the vector of errors, and its
    direction by twice that over the length. The length of x has an error of n roundings, relative to itself."""
    bases = W if layout == "columns" else W.swapaxes(-1, -2)
    classes, n, k = bases.shape
    absolute, size, scale = np.abs(bases), np.abs(x), abs(scale)
    errors = np.einsum("n,cnk->ck", size, absolute)
    lengths = np.linalg.norm(np.einsum("n,cnk->ck", x, bases), axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        directions = 2 * np.linalg.norm(errors, axis=-1) / lengths
    coefficients = scale * (1 + np.where(lengths > 0, directions, 0))[:, None] * np.ones((classes, k))
    if normalize:
        scale, coefficients = scale / np.linalg.norm(x), coefficients / np.linalg.norm(x)
    d_x = np.einsum("ck,cnk->n", coefficients, absolute)
    if normalize:
        d_x = d_x + 4 * size / np.linalg.norm(x) ** 2 * (size @ d_x)
    d_W = coefficients[:, None, :] * size[None, :, None]
    outputs = (scale * np.linalg.norm(errors, axis=-1),)
    return Bounds(n + classes * k + 4, outputs, {"x": d_x, "W": d_W if layout == "columns" else d_W.swapaxes(-1, -2)})


def where_the_formula_is_nan(arguments: Arguments, item: int, row: int) -> np.ndarray:
    """A feature reaches the logits of every class, a basis those of its own."""
    return np.isnan(reference.subspace_logits(double_array(arguments["x"])[item], double_array(arguments["W"])[item]))


ROWS = [
    Op(
        name="subspace_logits",
        function=subspan.subspace_logits,
        reference=reference.subspace_logits,
        arrays={"x": 1, "W": 3},
        differentiable=("x", "W"),
        samples=samples,
        large=lambda dtype: samples(dtype, LARGE),
        degenerate=degenerate,
        growth=growth,
        bad_inputs=bad_inputs,
        core_shapes=lambda rows, columns: {"x": (columns,), "W": (rows, columns, 3)},
        infinity=("x", "W"),
        confined=where_the_formula_is_nan,
    )
]
