"""The row of the op table for inner products of sparse rows, whose values are the arguments."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

import subspan
from op_row import Arguments, BadInput, Bounds, Op, Sample
from sample_arrays import normal
from subspan.reference import sparse as reference
from subspan.sparse_rows import unchecked

COLUMNS = 6


def places(shape: tuple[int, ...], step: int, library: Any = np) -> Any:
    """Columns of the entries of a matrix (n, k), now and then twice in a row."""
    entries = library.arange(math.prod(shape)).reshape(shape)
    return (entries * step + entries // 4) % COLUMNS


def sparse(values: Any, step: int) -> Any:
    """Sparse rows with these values in columns that follow from the shape; what is no array is passed on."""
    if isinstance(values, torch.Tensor):
        shape = tuple(values.shape[-2:])
        if torch.compiler.is_compiling():  # torch traces its own operations, but must not compute in a forked child
            indices = places(shape, step, torch)
        else:
            indices = torch.from_numpy(np.asarray(places(shape, step)))
        return unchecked(indices.to(values.device).expand(values.shape), values, COLUMNS)
    if isinstance(values, np.ndarray):
        return unchecked(np.broadcast_to(places(values.shape[-2:], step), values.shape), values, COLUMNS)
    return values


def scores(Q: Any, D: Any) -> Any:
    return subspan.sparse_scores(sparse(Q, 5), sparse(D, 7))


def dense(values: np.ndarray, step: int) -> np.ndarray:
    indices = np.broadcast_to(places(values.shape[-2:], step), values.shape)
    return reference.dense_rows(indices, values, COLUMNS)


def dense_product(Q: np.ndarray, D: np.ndarray) -> np.ndarray:
    return np.asarray(dense(Q, 5) @ dense(D, 7).swapaxes(-1, -2))


#: (shape of Q's values, shape of D's)
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "batch": ((3, 7, 5), (3, 9, 4)),
    "one entry": ((1, 1), (1, 1)),
    "one query": ((1, 3), (40, 2)),
    "no queries": ((0, 3), (5, 2)),
    "no documents": ((4, 3), (0, 2)),
    "no entries": ((4, 0), (3, 2)),
    "empty batch": ((0, 4, 3), (0, 2, 3)),
    "two batch dimensions": ((2, 2, 3, 4), (2, 2, 4, 3)),
    "blocks": ((37, 3), (50, 6)),
}
LARGE = {"windows": ((5, 12), (20000, 5)), "few of many": ((600, 4), (500, 3)), "large batch": ((9, 60, 6), (9, 50, 5))}


def samples(dtype: torch.dtype, shapes: Any = SHAPES) -> list[Sample]:
    made = [
        Sample(name, {"Q": normal(seed, *q, dtype=dtype), "D": normal(seed + 50, *d, dtype=dtype)})
        for seed, (name, (q, d)) in enumerate(shapes.items())
    ]
    if shapes is SHAPES:
        Q, D = normal(80, 3, 4, 3, dtype=dtype), normal(81, 5, 2, dtype=dtype)
        made.append(Sample("shared documents", {"Q": Q, "D": D}, summed=3))
    return made


def growth(Q: np.ndarray, D: np.ndarray) -> Bounds:
    """A score is a sum of at most k_Q k_D products, a gradient of at most n k."""
    q, d = np.abs(dense(Q, 5)), np.abs(dense(D, 7))
    at_q = np.take_along_axis(np.broadcast_to(d.sum(0), (len(Q), COLUMNS)), places(Q.shape, 5), -1)
    at_d = np.take_along_axis(np.broadcast_to(q.sum(0), (len(D), COLUMNS)), places(D.shape, 7), -1)
    size = Q.shape[-1] * D.shape[-1] + len(Q) * Q.shape[-1] + len(D) * D.shape[-1]
    return Bounds(size, (q @ d.T,), {"Q": at_q, "D": at_d})


def bad() -> list[BadInput]:
    return [
        BadInput("batch", {"D": torch.ones(2, 9, 4).double()}, ValueError, "D", ("(2, 9, 4)", "(3, 7, 5)")),
        BadInput("other type", {"D": torch.ones(3, 9, 4)}, TypeError, "D", ("float32", "float64")),
        BadInput("one dimension", {"Q": torch.ones(4).double()}, ValueError, "Q", ("(4,)",)),
    ]


def is_nan(arguments: Arguments, item: int, row: int) -> np.ndarray:
    """NaN shows in the scores of its row with the rows that have its column."""
    q, d = (dense(arguments[name].detach().double().numpy()[item], step) for name, step in (("Q", 5), ("D", 7)))
    filled_q, filled_d = (q != 0).astype(float), (d != 0).astype(float)
    found = np.where(np.isnan(q), 1.0, 0.0) @ filled_d.T + filled_q @ np.where(np.isnan(d), 1.0, 0.0).T
    return found > 0


ROWS = [
    Op(
        name="sparse_scores",
        function=scores,
        reference=dense_product,
        arrays={"Q": 2, "D": 2},
        differentiable=("Q", "D"),
        samples=samples,
        large=lambda dtype: samples(dtype, LARGE),
        degenerate=lambda: [],
        growth=growth,
        bad_inputs=bad,
        core_shapes=lambda rows, columns: {"Q": (rows, columns), "D": (rows + 2, columns + 1)},
        infinity=("Q", "D"),
        confined=is_nan,
        unread={"Q": ("Q",), "D": ("D",)},
    ),
]
