"""Errors of principal angles against pairs of subspaces whose angles are known: a Markdown table on standard output.

    python bench/angles_accuracy.py > bench/results/angles_accuracy.md

The largest absolute error over ten random pairs in 200 dimensions, in radians and float64; in the last table float32,
against the angles of the rounded bases.
"""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy
import scipy.linalg
import torch

sys.path.insert(0, str(Path(__file__).parent))

import subspan
from baselines import angles as baseline

ENTRIES, DRAWS = 200, 10
QUARTER = math.pi / 4
CASES: dict[str, list[float]] = {
    "1.4, 1e-9": [1.4, 1e-9],
    "1.4, 1e-6, 1e-9": [1.4, 1e-6, 1e-9],
    "1e-3 ... 1e-11": [10.0**-k for k in range(3, 12)],
    "1.57 ... 1e-10": [1.57, 0.5, 1e-3, 1e-6, 1e-10],
    "π/2, 1, 1e-8": [math.pi / 2, 1, 1e-8],
    "π/2, π/2, π/2": [math.pi / 2] * 3,
    "π/4 ∓ 1e-9": [QUARTER - 1e-9, QUARTER, QUARTER + 1e-9],
    "0.3 five times": [0.3] * 5,
    "1e-11 three times": [1e-11] * 3,
    "0 four times": [0.0] * 4,
}


def construct(rng: np.random.Generator, angles: list[float], condition: float) -> tuple[np.ndarray, np.ndarray]:
    """Bases Q1 R and (Q1 cos + Q2 sin) R' with R, R' of the given condition number."""
    k = len(angles)
    Q = np.linalg.qr(rng.standard_normal((ENTRIES, 2 * k)))[0]
    turned = Q[:, :k] * np.cos(angles) + Q[:, k:] * np.sin(angles)
    stretch = np.geomspace(1, 1 / condition, k)

    def mixed() -> np.ndarray:
        left, right = (np.linalg.qr(rng.standard_normal((k, k)))[0] for _ in range(2))
        return left * stretch @ right

    return Q[:, :k] @ mixed(), turned @ mixed()


def of_torch(function: Callable[..., torch.Tensor]) -> Callable[..., np.ndarray]:
    return lambda A, B: function(torch.from_numpy(A), torch.from_numpy(B)).double().numpy()


WAYS: dict[str, Callable[..., np.ndarray]] = {
    "subspan": lambda A, B: subspan.principal_angles(A, B),
    "scipy.linalg.subspace_angles": scipy.linalg.subspace_angles,
    "torch QR, svdvals, acos": of_torch(baseline.by_qr),
    "torch QR, two SVDs, atan2": of_torch(baseline.by_residuals),
}


def table(title: str, condition: float, dtype: type) -> None:
    print(f"\n## {title}\n\n| angles | {' | '.join(WAYS)} |\n|---|{'---:|' * len(WAYS)}")
    for name, angles in CASES.items():
        rng, errors = np.random.default_rng(0), dict.fromkeys(WAYS, 0.0)
        for _ in range(DRAWS):
            A, B = (basis.astype(dtype) for basis in construct(rng, angles, condition))
            exact = np.sort(angles) if dtype is np.float64 else WAYS["subspan"](A.astype(float), B.astype(float))
            for way, function in WAYS.items():
                errors[way] = max(errors[way], np.abs(np.sort(function(A, B)).astype(float) - exact).max())
        print(f"| {name} | {' | '.join(f'{error:.1e}' for error in errors.values())} |")


if __name__ == "__main__":
    print("# Errors of principal angles\n")
    print(f"Printed by `bench/angles_accuracy.py`: the largest absolute error, in radians, of {DRAWS} random pairs in")
    print(f"{ENTRIES} dimensions whose angles are known by construction. torch {torch.__version__}, ", end="")
    print(f"scipy {scipy.__version__}, numpy {np.__version__}, {platform.machine()}, subspan {subspan.__version__}.")
    table("Orthonormal bases, float64", 1.0, np.float64)
    table("Bases of condition number 1000, float64", 1e3, np.float64)
    table(
        "Orthonormal bases rounded to float32, against the exact angles of what they were rounded to", 1.0, np.float32
    )
