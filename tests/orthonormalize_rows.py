"""The rows of the op table for orthonormal bases by QR and by the polar factorisation."""

from __future__ import annotations

import numpy as np
import torch

import subspan
from op_row import BadInput, Bounds, Op, Sample
from sample_arrays import normal
from subspan.reference import orthonormalize as reference

SHAPES: dict[str, tuple[int, ...]] = {
    "tall": (9, 4),
    "square": (5, 5),
    "one column": (6, 1),
    "one entry": (1, 1),
    "no columns": (4, 0),
    "nothing": (0, 0),
    "batch": (3, 7, 5),
    "two batch dimensions": (2, 2, 6, 4),
    "empty batch": (0, 4, 3),
    "many": (37, 6, 3),
    "in lanes": (11, 30, 9),
    "blocked tall": (90, 37),
    "blocked batch": (2, 65, 40),
    "in float32": (2, 83, 32),
}

LARGE_SHAPES: dict[str, tuple[int, ...]] = {
    "large tall": (700, 70),
    "large batch": (13, 90, 40),
    "large frames": (20, 900, 8),
    "large tiny": (9000, 3, 3),
}


def samples(method: str, dtype: torch.dtype, shapes: dict[str, tuple[int, ...]] = SHAPES) -> list[Sample]:
    made = []
    for seed, (name, shape) in enumerate(shapes.items()):
        arguments = {"A": normal(seed, *shape, dtype=dtype), "method": method}
        if name not in ("square", "many", "large batch"):
            arguments["return_r"] = True
        made.append(Sample(name, arguments))
    if shapes is not SHAPES:
        return made
    A = normal(30, 3, 8, 2, dtype=dtype)
    return [
        *made,
        Sample("as rows", {"A": A.mT.contiguous(), "method": method, "layout": "rows"}),
        Sample("as rows, strided", {"A": A.mT, "method": method, "return_r": True, "layout": "rows"}),
        Sample("blocked as rows", {"A": normal(31, 30, 70, dtype=dtype), "method": method, "layout": "rows"}),
        Sample("with info", {"A": A, "method": method, "return_info": True}),
        Sample("with everything", {"A": A, "method": method, "return_r": True, "return_info": True}),
    ]


def degenerate(method: str) -> list[Sample]:
    """Where a gradient through singular values would fail."""
    frame = torch.linalg.qr(normal(1, 7, 3)).Q
    turn = torch.linalg.qr(normal(2, 3, 3)).Q
    values = torch.tensor([2.0, 2.0, 0.5], dtype=torch.float64)
    points = {
        "orthonormal": frame,
        "negative": -frame,
        "orthogonal": torch.linalg.qr(normal(3, 4, 4)).Q,
        "identity": torch.eye(3, dtype=torch.float64),
        "equal singular values": frame * values @ turn,
        "all equal": 3 * frame @ turn,
        "one column": frame[:, :1],
        "one entry": torch.full((1, 1), -2.0, dtype=torch.float64),
        "graded": frame * torch.tensor([1.0, 1e-2, 10.0]) @ turn,
    }
    return [
        Sample(f"{name}{', R' * with_r}", {"A": A.clone(), "method": method, "return_r": with_r})
        for name, A in points.items()
        for with_r in (False, True)
    ]


def growth(A: np.ndarray, method: str = "qr", *, return_r: bool = False, layout: str = "columns") -> Bounds:
    """A change E of A turns Q by at most sqrt(2) || E R^-1 ||, R by || A || times that, H by sqrt(2) || E ||. The
    gradient is a product of R^-1 with what is of the size of dQ and of R dR."""
    frame = A.T if layout == "rows" else A
    n, k = frame.shape
    R = reference.qr(frame)[1]
    size = n + 2 * k + 8
    if not A.size:
        outputs = (np.zeros(A.shape), np.zeros((k, k)))
        return Bounds(size, outputs[: 1 + return_r], {"A": np.zeros(A.shape)})
    norm, inverse = np.linalg.norm(R), np.linalg.norm(np.linalg.inv(R))
    condition = norm * inverse
    of_R = norm * (condition if method == "qr" else 2)
    upstream = np.sqrt(n * k) + (norm * k if return_r else 0)
    d_A = 4 * upstream * inverse * (1 + condition)
    return Bounds(
        size,
        (np.full(A.shape, condition), np.full((k, k), of_R))[: 1 + return_r],
        {"A": np.full(A.shape, d_A)},
    )


def bad_inputs(method: str) -> list[BadInput]:
    wide = torch.ones(3, 4, 5, dtype=torch.float64)
    return [
        BadInput("wide", {"A": wide}, ValueError, "A", ("(3, 4, 5)",)),
        BadInput("tall as rows", {"layout": "rows"}, ValueError, "A", ("(3, 7, 5)",)),
        BadInput("method unknown", {"method": "svd"}, ValueError, "method", ("svd",)),
        BadInput("method None", {"method": None}, ValueError, "method"),
        BadInput("layout unknown", {"layout": "samples"}, ValueError, "layout"),
        BadInput("layout None", {"layout": None}, ValueError, "layout"),
        BadInput("return_r number", {"return_r": 1}, TypeError, "return_r"),
        BadInput("return_info None", {"return_info": None}, TypeError, "return_info"),
    ]


def row(method: str) -> Op:
    return Op(
        name="orthonormalize",
        variant=method,
        function=subspan.orthonormalize,
        reference=reference.orthonormalize,
        arrays={"A": 2},
        differentiable=("A",),
        samples=lambda dtype: samples(method, dtype),
        large=lambda dtype: samples(method, dtype, LARGE_SHAPES),
        degenerate=lambda: degenerate(method),
        growth=growth,
        bad_inputs=lambda: bad_inputs(method),
        core_shapes=lambda rows, columns: {"A": (rows, min(rows, columns))},
    )


ROWS = [row("qr"), row("polar")]
