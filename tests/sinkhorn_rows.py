"""The row of sinkhorn in the op table.

Differences of the value show the gradient "unrolled". They show "last" where it is the same, with one half-step, so the
other samples of "last" are too large for differences; it and "implicit" have tests of their own in test_sinkhorn.py.
"""

from __future__ import annotations

import torch

import subspan
from coding_rate_rows import not_positive
from op_row import BadInput, Op, Sample
from sample_arrays import LARGE_SHAPES, SHAPES, features, normal
from sinkhorn_growth import sinkhorn_growth
from subspan.reference import sinkhorn as reference

UNROLLED = {"temperature": 0.5, "iterations": 5, "grad": "unrolled"}


def sinkhorn_samples(dtype: torch.dtype) -> list[Sample]:
    samples = [Sample(name, {"scores": scores} | UNROLLED) for name, scores in features(dtype, SHAPES)]
    scores, larger = normal(1, 3, 6, 4, dtype=dtype), normal(2, 2, 40, 21, dtype=dtype)
    square = normal(3, 5, 5, dtype=dtype)
    return [
        *samples,
        Sample("softmax", {"scores": scores, "temperature": 0.3, "iterations": 1, "grad": "last"}),
        Sample("columns first", {"scores": scores} | UNROLLED | {"iterations": 4}),
        Sample("two half-steps", {"scores": square} | UNROLLED | {"iterations": 2}),
        Sample("warm", {"scores": square} | UNROLLED | {"temperature": 30.0}),
        Sample("cold", {"scores": 0.1 * square} | UNROLLED | {"temperature": 0.01}),
        Sample("defaults", {"scores": larger, "temperature": 0.5}),
        Sample("last, columns first", {"scores": larger, "temperature": 0.5, "iterations": 4}),
        Sample("last, many", {"scores": larger, "temperature": 0.5, "iterations": 30}),
    ]


def large_sinkhorn(dtype: torch.dtype) -> list[Sample]:
    return [
        Sample(f"{name}, {grad}", {"scores": scores, "temperature": 0.5, "iterations": 5, "grad": grad})
        for name, scores in features(dtype, LARGE_SHAPES)
        for grad in ("last", "unrolled")
    ]


def sinkhorn_degenerate() -> list[Sample]:
    forbidden = normal(4, 4, 4)
    forbidden[0, 1] = forbidden[2, 3] = -100  # so unlikely that it is never chosen
    points = {
        "equal scores": torch.zeros(3, 4, dtype=torch.float64),
        "equal rows": normal(5, 1, 4).expand(5, 4).clone(),
        "a permutation": 20 * torch.eye(4, dtype=torch.float64),
        "blocks": 20 * torch.block_diag(torch.ones(2, 2), torch.ones(2, 3)).double(),
        "nearly forbidden": forbidden,
        "one entry": normal(6, 1, 1),
        "one row": normal(7, 1, 4),
        "one column": normal(8, 4, 1),
        "no rows": torch.zeros(0, 3, dtype=torch.float64),
    }
    return [
        Sample(f"{name}, {iterations} half-steps", {"scores": scores} | UNROLLED | {"iterations": iterations})
        for name, scores in points.items()
        for iterations in (4, 5)
    ]


def sinkhorn_bad() -> list[BadInput]:
    return [
        *not_positive("temperature"),
        BadInput("no half-step", {"iterations": 0}, ValueError, "iterations"),
        BadInput("negative half-steps", {"iterations": -1}, ValueError, "iterations"),
        BadInput("half of a half-step", {"iterations": 2.5}, TypeError, "iterations"),
        BadInput("too many half-steps", {"iterations": 2**31}, ValueError, "iterations"),
        BadInput("True half-steps", {"iterations": True}, TypeError, "iterations"),
        BadInput("gradient unknown", {"grad": "first"}, ValueError, "grad"),
        BadInput("gradient None", {"grad": None}, ValueError, "grad"),
        BadInput("gradient number", {"grad": 1}, ValueError, "grad"),
    ]


ROWS = [
    Op(
        name="sinkhorn",
        function=subspan.sinkhorn,
        reference=reference.sinkhorn,
        arrays={"scores": 2},
        differentiable=("scores",),
        samples=sinkhorn_samples,
        large=large_sinkhorn,
        degenerate=sinkhorn_degenerate,
        growth=sinkhorn_growth,
        bad_inputs=sinkhorn_bad,
        minus_infinity=("scores",),
    )
]
