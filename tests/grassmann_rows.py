"""The rows of the op table for the maps of the Grassmann manifold."""

from __future__ import annotations

import torch

import subspan
from grassmann_growth import exp_growth, transport_growth
from op_row import BadInput, Op, Sample
from sample_arrays import LARGE_SHAPES, SHAPES, features, normal
from subspan.reference import grassmann as reference


def basis(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Orthonormal columns, or rows where there are more columns than rows."""
    matrix = normal(seed, *shape)
    if shape[-1] > shape[-2]:
        return torch.linalg.qr(matrix.mT).Q.mT.to(dtype)
    return torch.linalg.qr(matrix).Q.contiguous().to(dtype)


def tangent(seed: int, X: torch.Tensor, angle: float) -> torch.Tensor:
    """Orthogonal to X, of about this spectral norm."""
    x = X.double()
    if X.shape[-2] <= X.shape[-1]:
        return torch.zeros_like(X)
    D = normal(seed, *X.shape)
    D = D - x @ (x.mT @ D)
    norm = torch.linalg.matrix_norm(D, keepdim=True)
    return (angle * D / norm.clamp(min=1e-3)).to(X.dtype)


def samples(dtype: torch.dtype, shapes: dict[str, tuple[int, ...]] = SHAPES) -> list[Sample]:
    made = []
    for seed, (name, D) in enumerate(features(dtype, shapes)):
        X = basis(seed + 80, *D.shape, dtype=dtype)
        made.append(Sample(name, {"X": X, "D": D, "project": name in ("tall", "many")}))
    if shapes is not SHAPES:
        return made
    X, shared = basis(1, 3, 8, 2, dtype=dtype), basis(2, 8, 2, dtype=dtype)
    D, row = tangent(3, X, 1.0), normal(4, 2, 8, dtype=dtype)
    return [
        *made,
        Sample("tangent", {"X": X, "D": D}),
        Sample("as rows", {"X": X.mT.contiguous(), "D": D.mT.contiguous(), "layout": "rows"}),
        Sample("as rows, projected", {"X": X.mT, "D": row, "project": True, "layout": "rows"}, summed=3),
        Sample("shared X", {"X": shared, "D": normal(5, 3, 8, 2, dtype=dtype), "project": True}, summed=3),
        Sample("a full turn", {"X": X[0], "D": tangent(6, X[0], 6.3)}),
        Sample("a small turn", {"X": X[0], "D": tangent(6, X[0], 1e-3)}),
    ]  # fmt: skip


def degenerate() -> list[Sample]:
    """Where a gradient through the singular value decomposition of D would fail."""
    X = basis(1, 9, 3)
    repeated = tangent(2, basis(1, 9, 1), 1.0)
    frame = torch.linalg.qr(torch.cat([X, normal(3, 9, 3)], -1)).Q[:, 3:]
    low_rank = tangent(4, X, 1.0)
    low_rank[:, 2] = low_rank[:, 1]
    points = {
        "D = 0": (X, torch.zeros_like(X)),
        "equal angles": (X, 0.7 * frame),
        "equal and zero angles": (X, frame * torch.tensor([0.7, 0.7, 0.0])),
        "angles of half a turn": (X, torch.pi * frame),
        "rank two": (X, low_rank),
        "one vector": (basis(1, 9, 1), repeated),
        "one vector, D = 0": (basis(1, 9, 1), torch.zeros(9, 1, dtype=torch.float64)),
        "two dimensions": (basis(5, 2, 2), torch.zeros(2, 2, dtype=torch.float64)),
        "large angles": (X, 9.0 * frame),
    }
    return [
        Sample(f"{name}{', projected' * project}", {"X": X.clone(), "D": D.clone(), "project": project})
        for name, (X, D) in points.items()
        for project in (False, True)
    ]


def bad_inputs() -> list[BadInput]:
    return [
        BadInput("other length", {"D": torch.ones(3, 8, 5).double()}, ValueError, "D", ("(3, 8, 5)", "(3, 7, 5)")),
        BadInput("other number", {"D": torch.ones(7, 4).double()}, ValueError, "D", ("(7, 4)", "(3, 7, 5)")),
        BadInput("batch", {"D": torch.ones(2, 7, 5).double()}, ValueError, "D", ("(2, 7, 5)", "(3, 7, 5)")),
        BadInput("layout unknown", {"layout": "row"}, ValueError, "layout"),
        BadInput("layout number", {"layout": 1}, ValueError, "layout"),
        BadInput("project number", {"project": 1}, TypeError, "project"),
        BadInput("project None", {"project": None}, TypeError, "project"),
    ]


def transport_samples(dtype: torch.dtype, shapes: dict[str, tuple[int, ...]] = SHAPES) -> list[Sample]:
    made = []
    for seed, (name, V) in enumerate(features(dtype, shapes)):
        X = basis(seed + 80, *V.shape, dtype=dtype)
        made.append(Sample(name, {"X": X, "D": normal(seed + 40, *V.shape, dtype=dtype, scale=0.3), "V": V}))
    if shapes is not SHAPES:
        return made
    X, shared = basis(1, 3, 8, 2, dtype=dtype), basis(2, 8, 2, dtype=dtype)
    D, V = tangent(3, X, 1.0), tangent(4, X, 1.0)
    return [
        *made,
        Sample("tangent", {"X": X, "D": D, "V": V}),
        Sample("as rows", {"X": X.mT, "D": D.mT.contiguous(), "V": V.mT, "layout": "rows"}),
        Sample("shared", {"X": shared, "D": normal(5, 3, 8, 2, dtype=dtype), "V": shared}, summed=3),
        Sample("along itself", {"X": X[0], "D": D[0], "V": D[0]}),
        Sample("a full turn", {"X": X[0], "D": 6.3 * D[0], "V": V[0]}),
    ]


def transport_degenerate() -> list[Sample]:
    return [
        Sample(sample.name, {"X": sample.arguments["X"], "D": sample.arguments["D"], "V": normal(30, *shape)})
        for sample in degenerate()
        if not sample.arguments["project"]
        for shape in (sample.arguments["D"].shape,)
    ]


def transport_bad() -> list[BadInput]:
    return [
        *(bad for bad in bad_inputs() if "project" not in bad.changes),
        BadInput("other length of V", {"V": torch.ones(3, 8, 5).double()}, ValueError, "V", ("(3, 8, 5)", "(3, 7, 5)")),
        BadInput("batch of V", {"V": torch.ones(2, 7, 5).double()}, ValueError, "V", ("(2, 7, 5)", "(3, 7, 5)")),
    ]


ROWS = [
    Op(
        name="grassmann_exp",
        function=subspan.grassmann_exp,
        reference=reference.grassmann_exp,
        arrays={"X": 2, "D": 2},
        differentiable=("X", "D"),
        samples=samples,
        large=lambda dtype: samples(dtype, LARGE_SHAPES),
        degenerate=degenerate,
        growth=exp_growth,
        bad_inputs=bad_inputs,
        kernel_gradient=False,
    ),
    Op(
        name="grassmann_transport",
        function=subspan.grassmann_transport,
        reference=reference.grassmann_transport,
        arrays={"X": 2, "D": 2, "V": 2},
        differentiable=("X", "D", "V"),
        samples=transport_samples,
        large=lambda dtype: transport_samples(dtype, LARGE_SHAPES),
        degenerate=transport_degenerate,
        growth=transport_growth,
        bad_inputs=transport_bad,
        kernel_gradient=False,
    ),
]
