"""The row of the op table for the covariance contrast."""

from __future__ import annotations

import numpy as np
import torch

import subspan
from coding_rate_rows import not_positive
from op_row import BadInput, Bounds, Op, Sample
from sample_arrays import LARGE_SHAPES, SHAPES, delicate_features, features, normal
from subspan.reference import coding_rate as reference


def samples(dtype: torch.dtype, shapes: dict[str, tuple[int, ...]] = SHAPES) -> list[Sample]:
    made = []
    for seed, (name, z) in enumerate(features(dtype, shapes)):
        C = normal(seed + 50, *z.shape[:-2], z.shape[-1], z.shape[-1], dtype=dtype)  # not symmetric
        made.append(Sample(name, {"z": z, "C": C, "beta": 0.7}))
    if shapes is not SHAPES:
        return made
    z, C = normal(1, 3, 8, 4, dtype=dtype), normal(2, 4, 4, dtype=dtype)
    return [
        *made,
        Sample("shared C", {"z": z, "C": C, "beta": 0.9}),
        Sample("shared features", {"z": z[0], "C": normal(4, 3, 4, 4, dtype=dtype), "beta": 0.9}, summed=3),
        Sample("nothing kept", {"z": z[0], "C": C, "beta": 0.0}),
        Sample("all kept", {"z": z[0], "C": C, "beta": 1.0}),
    ]


def degenerate() -> list[Sample]:
    return [
        Sample(name, {"z": z, "C": normal(5, z.shape[1], z.shape[1]), "beta": 0.6})
        for name, z in delicate_features().items()
    ]


def bad_inputs() -> list[BadInput]:
    return [
        BadInput("not square", {"C": torch.ones(3, 5, 4).double()}, ValueError, "C", ("(3, 5, 4)", "(3, 7, 5)")),
        BadInput("other size", {"C": torch.ones(3, 4, 4).double()}, ValueError, "C", ("(3, 4, 4)", "(3, 7, 5)")),
        BadInput("batch", {"C": torch.ones(2, 5, 5).double()}, ValueError, "C", ("(2, 5, 5)", "(3, 7, 5)")),
        BadInput("beta above 1", {"beta": 1.5}, ValueError, "beta"),
        BadInput("a number to detach", {"detach_covariance": 1}, TypeError, "detach_covariance"),
        *(bad for bad in not_positive("beta") if bad.name != "beta zero"),
    ]


def growth(z: np.ndarray, C: np.ndarray, beta: float, *, detach_covariance: bool = False) -> Bounds:
    """B is computed to |E_ij| <= n eps radii_i radii_j with radii = sqrt(diag B), by Cauchy-Schwarz; sums of products
    of entries of size |C'| and |B| follow."""
    n, d = z.shape
    count = max(n, 1)
    radii = np.sqrt((z**2).sum(0) / count)
    B = np.outer(radii, radii)
    updated = beta * np.abs(C) + (1 - beta) * B
    share = (1 - beta) * (1 if detach_covariance else 2)
    matrix = beta * (np.abs(C) + np.abs(C.T)) / 2 + share * B
    return Bounds(n + d, (2 * (updated * B).sum(), updated), {"z": 2 / count * np.abs(z) @ matrix * 2})


ROWS = [
    Op(
        name="covariance_contrast",
        function=subspan.covariance_contrast,
        reference=reference.covariance_contrast,
        arrays={"z": 2, "C": 2},
        differentiable=("z",),
        samples=samples,
        large=lambda dtype: samples(dtype, LARGE_SHAPES),
        degenerate=degenerate,
        growth=growth,
        bad_inputs=bad_inputs,
        square_of_columns=("C",),
        constant_outputs=1,
    )
]
