"""Rows of the op table for classes with soft membership: a (k, n) matrix in place of n labels."""

from __future__ import annotations

import numpy as np
import torch

import subspan
from coding_rate_growth import soft_class_growth, soft_reduction_growth
from coding_rate_rows import not_positive
from op_row import Arguments, BadInput, Op, Sample
from sample_arrays import LARGE_SHAPES, SHAPES, delicate_features, features, normal, uniform
from subspan.reference import coding_rate as reference


def soft_samples(dtype: torch.dtype, shapes: dict[str, tuple[int, ...]] = SHAPES) -> list[Sample]:
    samples = []
    for seed, (name, Z) in enumerate(features(dtype, shapes)):
        *batch, n, _ = Z.shape
        for k in (4, 30):  # a Gram matrix per class, and all at once
            if k == 4 or batch == []:
                membership = uniform(seed, *batch, k, n, dtype=dtype)
                title = name if k == 4 else f"{name}, many classes"
                samples.append(Sample(title, {"Z": Z, "labels": membership, "eps2": 0.5}))
    if shapes is not SHAPES:
        return samples
    Z = normal(1, 3, 8, 4, dtype=dtype)
    zeros = uniform(2, 3, 5, 8, dtype=dtype)
    zeros[:, 1] = 0  # a class without mass
    zeros[1, 0, ::2] = 0
    return [
        *samples,
        Sample("one class", {"Z": Z, "labels": uniform(3, 3, 1, 8, dtype=dtype), "eps2": 0.5, "num_classes": 1}),
        Sample("square", {"Z": Z, "labels": uniform(4, 3, 8, 8, dtype=dtype), "eps2": 0.2}),
        Sample("shared membership", {"Z": Z, "labels": uniform(5, 2, 8, dtype=dtype), "eps2": 0.5}),
        Sample("shared features", {"Z": Z[0], "labels": uniform(6, 3, 2, 8, dtype=dtype), "eps2": 0.5}, summed=3),
        Sample("zeros", {"Z": Z, "labels": zeros, "eps2": 0.5}),
    ]


def large_soft(dtype: torch.dtype) -> list[Sample]:
    many = {"Z": normal(1, 150, 40, dtype=dtype), "labels": uniform(2, 120, 150, dtype=dtype), "eps2": 0.3}
    return [*soft_samples(dtype, LARGE_SHAPES), Sample("large, many classes", many)]


def soft_degenerate() -> list[Sample]:
    samples = []
    for name, Z in delicate_features().items():
        for k in (2, 24):
            samples.append(Sample(f"{name}, {k} classes", {"Z": Z, "labels": uniform(8, k, len(Z)), "eps2": 0.4}))
    return samples


def soft_bad() -> list[BadInput]:
    negative = torch.ones(3, 4, 7, dtype=torch.float64)
    negative[1, 2, 4] = -0.5
    bad = [
        BadInput(
            "transposed", {"labels": torch.ones(3, 7, 4).double()}, ValueError, "labels", ("(3, 7, 4)", "(3, 7, 5)")
        ),
        BadInput("batch", {"labels": torch.ones(2, 4, 7).double()}, ValueError, "labels", ("(2, 4, 7)", "(3, 7, 5)")),
        BadInput("no class", {"labels": torch.ones(3, 0, 7).double()}, ValueError, "labels", ("(3, 0, 7)",)),
        BadInput("negative", {"labels": negative}, ValueError, "labels"),
        BadInput("other classes", {"num_classes": 5}, ValueError, "num_classes", ("5", "(3, 4, 7)")),
        BadInput("integers", {"labels": torch.ones(3, 4, 7, dtype=torch.int64)}, ValueError, "labels"),
    ]
    return bad + not_positive("eps2")


def soft_reduction_samples(dtype: torch.dtype) -> list[Sample]:
    samples = soft_samples(dtype)
    batch = next(sample.arguments for sample in samples if sample.name == "batch")
    return [
        *samples,
        Sample("gamma", batch | {"gamma": 0.3}),
        Sample("parts", batch | {"gamma": -2.0, "return_parts": True}, summed=3),
    ]


def soft_reduction_bad() -> list[BadInput]:
    return [*soft_bad(), BadInput("gamma NaN", {"gamma": float("nan")}, ValueError, "gamma")]


def classes_of_entry(arguments: Arguments, item: int, row: int) -> np.ndarray:
    """A NaN among the features reaches every class, one in a row of the membership its own."""
    membership = arguments["labels"].detach().numpy()
    if not np.isfinite(arguments["Z"].detach().numpy()[item]).all():
        return np.ones(membership.shape[-2], bool)
    return ~np.isfinite(membership[item]).all(-1)


ROWS = [
    Op(
        name="class_coding_rates",
        variant="soft",
        registered="soft_class_coding_rates",
        function=subspan.class_coding_rates,
        reference=reference.class_coding_rates,
        arrays={"Z": 2, "labels": 2},
        differentiable=("Z", "labels"),
        samples=soft_samples,
        large=large_soft,
        degenerate=soft_degenerate,
        growth=soft_class_growth,
        bad_inputs=soft_bad,
        columns_are_rows=("labels",),
        nonnegative=("labels",),
        confined=classes_of_entry,
    ),
    Op(
        name="rate_reduction",
        variant="soft",
        registered="soft_rate_reduction",
        function=subspan.rate_reduction,
        reference=reference.rate_reduction,
        arrays={"Z": 2, "labels": 2},
        differentiable=("Z", "labels"),
        samples=soft_reduction_samples,
        large=large_soft,
        degenerate=soft_degenerate,
        growth=soft_reduction_growth,
        bad_inputs=soft_reduction_bad,
        columns_are_rows=("labels",),
        nonnegative=("labels",),
    ),
]
