"""The row of the op table for Newton-Schulz iterations. It is of the function whose result is not rounded back to half
precision; lists of matrices and that rounding have own tests.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from op_row import BadInput, Bounds, Op, Sample
from sample_arrays import LARGE_SHAPES, SHAPES, delicate_features, features, normal
from subspan.ops.newton_schulz import newton_schulz_unrounded, polynomials
from subspan.reference import newton_schulz as reference

OWN = [(2.0, -1.5, 0.5), (1.5, -0.5, 0.0)]  # three steps: the second polynomial twice
VARIANTS: dict[str, dict[str, Any]] = {
    "eight steps of polar_express": {"steps": 8, "coefficients": "polar_express"},
    "one step": {"steps": 1},
    "cubic": {"steps": 4, "coefficients": "cubic"},
    "quintic": {"steps": 4, "coefficients": "quintic"},
    "one polynomial": {"steps": 2, "coefficients": (2, -1.5, 0.5)},
    "own polynomials": {"steps": 3, "coefficients": OWN},
}


def samples(dtype: torch.dtype, shapes: dict[str, tuple[int, ...]] = SHAPES) -> list[Sample]:
    made = [Sample(name, {"G": G}) for name, G in features(dtype, shapes)]
    if shapes is SHAPES:
        made += [Sample(name, {"G": normal(40, 2, 5, 9, dtype=dtype)} | variant) for name, variant in VARIANTS.items()]
        made.append(
            Sample("tall, own polynomials", {"G": normal(41, 20, 6, dtype=dtype)} | VARIANTS["own polynomials"])
        )
    return made


def degenerate() -> list[Sample]:
    """Where the derivative of a singular value decomposition does not exist; that of this function does but at 0. Steps
    that multiply small values by thousands have derivatives too large for differences."""
    points = {name: M for name, M in delicate_features().items() if name != "zero"}
    return [
        Sample(f"{name}, {variant}", {"G": M.clone()} | VARIANTS[variant])
        for name, M in points.items()
        for variant in ("quintic", "own polynomials")
    ]


def growth(G: np.ndarray, steps: int = 5, coefficients: Any = "muon") -> Bounds:
    """In the spectral norm, which bounds every entry. A step is a function of X = U diag(x) V^T of slope p', and p'' is
    that of its gradient; on the shorter side it also meets the error of R, which is |R_0| times the square of the
    growth since the last start. That is up to 12, where the kernel starts anew, by an estimate that is taken to be
    right to a factor of two."""
    m, n = G.shape
    values = np.linalg.svd(G, compute_uv=False)
    norm = np.linalg.norm(values)
    if not norm:
        return Bounds(m + n, (np.zeros(G.shape),), {"G": np.zeros(G.shape)})
    x, error, noise = values / norm, 1.0, np.linalg.norm((values / norm) ** 4) ** 0.5
    slopes, gradient_errors = [], []
    for a, b, c in polynomials(steps, coefficients):
        largest = x.max()
        r = np.linspace(0, largest, 200) ** 2
        slope = np.abs(a + 3 * b * r + 5 * c * r**2).max()
        bend = 6 * abs(b) * largest + 20 * abs(c) * largest**3
        rounding = abs(a) + 3 * abs(b) * r[-1] + 5 * abs(c) * r[-1] ** 2
        slopes.append(slope)
        gradient_errors.append(bend * error + rounding)
        error = slope * error + rounding * largest + (abs(b) + 2 * abs(c) * r[-1]) * min(noise, 24) * largest
        noise = min(noise * np.abs(a + b * r + c * r**2).max() ** 2, 24)
        x = np.abs(reference.compose(x, [(a, b, c)]))
    product = np.prod(slopes)
    gradient = sum(product / slope * own for slope, own in zip(slopes, gradient_errors, strict=True) if slope)
    gradient = 2 * (gradient + product) * np.sqrt(m * n) / norm
    return Bounds(m + n, (np.full(G.shape, error),), {"G": np.full(G.shape, gradient)})


def bad_inputs() -> list[BadInput]:
    return [
        BadInput("vector", {"G": torch.ones(3).double()}, ValueError, "G", ("(3,)",)),
        BadInput("no steps", {"steps": 0}, ValueError, "steps"),
        BadInput("half a step", {"steps": 2.5}, TypeError, "steps"),
        BadInput("name", {"coefficients": "moun"}, ValueError, "coefficients", ("'muon'", "'moun'")),
        BadInput("number", {"coefficients": 1.5}, TypeError, "coefficients"),
        BadInput("no polynomials", {"coefficients": []}, TypeError, "coefficients"),
        BadInput("two numbers", {"coefficients": (1.5, -0.5)}, ValueError, "coefficients", ("(1.5, -0.5)",)),
        BadInput("two numbers in a list", {"coefficients": [(1.5, -0.5)]}, ValueError, "coefficients"),
        BadInput("string in a list", {"coefficients": [(1.0, "b", 2.0)]}, TypeError, "coefficients"),
        BadInput("infinity", {"coefficients": (1.0, float("inf"), 2.0)}, ValueError, "coefficients"),
    ]


def of_reference(G: np.ndarray, steps: int = 5, coefficients: Any = "muon") -> np.ndarray:
    return reference.newton_schulz(G, polynomials(steps, coefficients))


ROWS = [
    Op(
        name="newton_schulz",
        function=newton_schulz_unrounded,
        reference=of_reference,
        arrays={"G": 2},
        differentiable=("G",),
        samples=samples,
        large=lambda dtype: samples(dtype, LARGE_SHAPES),
        degenerate=degenerate,
        growth=growth,
        bad_inputs=bad_inputs,
        kernel_gradient=False,
    )
]
