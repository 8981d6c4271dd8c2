"""The row of the op table for matching pursuit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import subspan
from op_row import Arguments, BadInput, Bounds, Op, Sample
from sample_arrays import normal
from subspan.reference import sparse as reference


def pursuit(x: Any, W: Any, steps: int, by: str = "value", relu: bool = True) -> tuple[Any, Any, Any]:
    rows, residual = subspan.matching_pursuit(x, W, steps, by, relu, return_residual=True)
    return rows.values, residual, rows.indices


#: (shape of x, atoms, steps)
SHAPES: dict[str, tuple[tuple[int, ...], int, int]] = {
    "batch": ((3, 7, 5), 9, 2),
    "one row": ((1, 6), 30, 3),
    "one atom": ((4, 5), 1, 1),
    "no rows": ((0, 4), 5, 2),
    "empty batch": ((0, 3, 4), 5, 2),
    "two batch dimensions": ((2, 2, 3, 6), 7, 2),
    "updated": ((60, 90), 40, 4),
    "tiles": ((21, 9), 60, 3),
}
#: The first forms the Gram matrix of its atoms, the others do not.
LARGE = {"updated": ((700, 80), 300, 7), "recomputed": ((150, 90), 900, 3), "large batch": ((9, 40, 30), 50, 4)}


def samples(dtype: torch.dtype, shapes: Any = SHAPES) -> list[Sample]:
    made = []
    for seed, (name, (shape, atoms, steps)) in enumerate(shapes.items()):
        W = normal(seed + 40, *shape[:-2], atoms, shape[-1])
        W = (W / W.norm(dim=-1, keepdim=True)).to(dtype)
        arguments: Arguments = {"x": normal(seed, *shape, dtype=dtype), "W": W, "steps": steps}
        made.append(Sample(name, arguments))
        if name != "batch":
            made.append(Sample(f"{name}, magnitudes", arguments | {"by": "abs", "relu": False}))
    if shapes is SHAPES:
        shared = made[0].arguments | {"W": made[0].arguments["W"][0]}
        made.append(Sample("one dictionary", shared, summed=3))
    return made


def degenerate() -> list[Sample]:
    """Coefficients that relu cuts off; atoms that are chosen again, as they are not of length 1."""
    x, W = normal(31, 3, 4).abs(), normal(32, 5, 4).abs()
    again = torch.tensor([[0.5, 0.1, 0.0], [0.0, 0.6, 0.2]], dtype=torch.float64)
    return [
        Sample("nothing positive", {"x": x, "W": -W, "steps": 2}),
        Sample("negative", {"x": x, "W": -W / 2, "steps": 2, "relu": False}),
        Sample("chosen again", {"x": normal(33, 4, 3).abs(), "W": again, "steps": 4}),
    ]


def bad() -> list[BadInput]:
    return [
        BadInput("other length", {"W": torch.ones(3, 9, 4).double()}, ValueError, "W", ("(3, 9, 4)", "(3, 7, 5)")),
        BadInput("batch", {"W": torch.ones(2, 9, 5).double()}, ValueError, "W", ("(2, 9, 5)", "(3, 7, 5)")),
        BadInput("other type", {"W": torch.ones(3, 9, 5)}, TypeError, "W", ("float32", "float64")),
        BadInput("no atoms", {"W": torch.ones(3, 0, 5).double()}, ValueError, "W", ("(3, 0, 5)",)),
        BadInput("no steps", {"steps": 0}, ValueError, "steps"),
        BadInput("a fraction", {"steps": 2.0}, TypeError, "steps"),
        BadInput("unknown rank", {"by": "size"}, ValueError, "by", ("'size'",)),
        BadInput("a number to cut off at", {"relu": 0}, TypeError, "relu"),
    ]


def growth(x: np.ndarray, W: np.ndarray, steps: int, by: str = "value", relu: bool = True) -> Bounds:
    """Errors of a row's residual r, in length: a step with the atom a multiplies them by the norm of I - a a^T and adds
    a rounding of r, of the coefficient v and of v a. Backwards likewise for u, the gradient in the residual, which
    begins with one for each entry."""
    n, d = x.shape
    chosen = reference.matching_pursuit(x, W, steps, by, relu)[2]
    values, residuals, d_x, d_W = np.zeros((n, steps)), np.zeros((n, d)), np.zeros((n, d)), np.zeros(W.shape)
    for row in range(n):
        r, error, before = x[row], 0.0, []
        for step in range(steps):
            a = W[chosen[row, step]]
            length, size = np.linalg.norm(a), np.linalg.norm(r)
            value = max(a @ r, 0) if relu else a @ r
            values[row, step] = length * (error + size)
            before.append((a, length, size, error, abs(value), values[row, step]))
            error = max(1, abs(1 - length**2)) * error + (length**2 + 1) * size
            r = r - value * a
        residuals[row] = error
        u, wrong = np.sqrt(d), 0.0
        for step in reversed(range(steps)):
            _, length, size, error, value, value_error = before[step]
            y, y_error = 1 + length * u, length * wrong + 1 + 2 * length * u
            own = y_error * size + y * error + value * wrong + value_error * u + y * size + value * u
            d_W[chosen[row, step]] += own
            wrong = max(1, abs(1 - length**2)) * wrong + length * y_error + u
            u = max(1, abs(1 - length**2)) * u + length
        d_x[row] = wrong + u
    return Bounds(d + n, (values, residuals, np.zeros((n, steps))), {"x": d_x, "W": d_W})


def is_nan(arguments: Arguments, item: int, row: int) -> np.ndarray:
    """A row of x spoils its own code; an atom every row's, for NaN is the largest of products."""
    expected = np.zeros((7, 2), bool)
    x, W = arguments["x"][item], arguments["W"][item]
    expected[~x.isfinite().all(-1).numpy()] = True
    return expected | bool(W.isnan().any())


ROWS = [
    Op(
        name="matching_pursuit",
        function=pursuit,
        reference=reference.matching_pursuit,
        arrays={"x": 2, "W": 2},
        differentiable=("x", "W"),
        samples=samples,
        large=lambda dtype: samples(dtype, LARGE),
        degenerate=degenerate,
        growth=growth,
        bad_inputs=bad,
        core_shapes=lambda rows, columns: {"x": (rows, columns + 3), "W": (7, columns + 3)},
        infinity=("W",),
        confined=is_nan,
        unread={"x": ("x",)},
    ),
]
