"""The rows of the op table for products of Householder reflectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import subspan
from op_row import Arguments, BadInput, Bounds, Op, Sample, double_array
from sample_arrays import normal
from subspan.reference import householder as reference

#: (*batch, m, k) of V, and p.
SHAPES: dict[str, tuple[tuple[int, ...], int]] = {
    "tall": ((9, 4), 3),
    "more reflectors than rows": ((4, 9), 5),
    "one reflector": ((6, 1), 2),
    "one entry": ((1, 1), 1),
    "no rows": ((0, 4), 3),
    "no reflectors": ((5, 0), 3),
    "no columns": ((5, 3), 0),
    "batch": ((3, 7, 5), 4),
    "two batch dimensions": ((2, 2, 4, 6), 3),
    "empty batch": ((0, 4, 3), 2),
    "square": ((8, 8), 8),
    "whole tiles": ((2, 16, 8), 16),
    "many": ((37, 6, 3), 2),
    "two blocks": ((90, 37), 21),
    "three blocks": ((33, 70), 40),
    "wide": ((2, 65, 40), 77),
}
LARGE: dict[str, tuple[tuple[int, ...], int]] = {
    "large tall": ((700, 70), 90),
    "large square": ((160, 160), 160),
    "large batch": ((13, 130, 16), 40),
}


def reflectors(seed: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    return normal(seed, *shape, dtype=dtype)


def taus(seed: int, V: torch.Tensor) -> torch.Tensor:
    """About 1 / ||v||^2, the first one 0, some of them negative."""
    tau = normal(seed, *V.shape[:-2], V.shape[-1]) / max(V.shape[-2], 1)
    tau[..., :1] = 0
    return tau.to(V.dtype)


def apply_samples(dtype: torch.dtype, shapes: dict[str, Any] = SHAPES) -> list[Sample]:
    made = []
    for seed, (name, (shape, p)) in enumerate(shapes.items()):
        V = reflectors(seed, *shape, dtype=dtype)
        X = normal(seed + 40, *shape[:-1], p, dtype=dtype)
        made.append(Sample(name, {"V": V, "X": X} | ({"tau": taus(seed, V)} if seed % 2 else {})))
    if shapes is not SHAPES:
        return made
    V, X = reflectors(1, 3, 40, 34, dtype=dtype), normal(2, 3, 40, 19, dtype=dtype)
    small, row = reflectors(3, 16, 8, dtype=dtype), normal(4, 3, 5, 16, dtype=dtype)
    return [
        *made,
        Sample("transposed", {"V": V, "X": X, "transpose": True}),
        Sample("transposed, tau", {"V": V, "X": X, "tau": taus(5, V), "transpose": True}),
        Sample("from the right", {"V": V, "X": X.mT.contiguous(), "side": "right"}),
        Sample("from the right, transposed, tau", {
            "V": V, "X": X.mT.contiguous(), "tau": taus(6, V), "side": "right", "transpose": True,
        }),
        Sample("as rows", {"V": V.mT.contiguous(), "X": X, "layout": "rows"}),
        Sample("shared by rows", {"V": small, "X": row, "side": "right"}),
        Sample("shared as rows, tau", {
            "V": small.mT.contiguous(), "X": row, "tau": taus(7, small), "side": "right", "layout": "rows",
        }),
        Sample("shared V", {"V": small, "X": row.mT.contiguous()}, summed=3),
        Sample("shared X", {"V": V, "X": X[0], "tau": taus(8, V)[0]}, summed=3),
    ]  # fmt: skip


def product_samples(dtype: torch.dtype, shapes: dict[str, Any] = SHAPES) -> list[Sample]:
    made = []
    for seed, (name, (shape, _)) in enumerate(shapes.items()):
        V = reflectors(seed, *shape, dtype=dtype)
        made.append(Sample(name, {"V": V} | ({"tau": taus(seed, V)} if seed % 2 else {})))
    if shapes is not SHAPES:
        return made
    V, two = reflectors(1, 3, 12, 8, dtype=dtype), reflectors(2, 3, 80, 34, dtype=dtype)
    return [
        *made,
        Sample("fewer columns", {"V": V, "columns": 3}),
        Sample("all columns", {"V": V, "tau": taus(1, V), "columns": 12}),
        Sample("two blocks, all columns", {"V": two, "columns": 80}),
        Sample("LAPACK", {"V": V, "lapack": True}),
        Sample("LAPACK, tau", {"V": V, "tau": taus(2, V), "lapack": True}),
        Sample("as rows", {"V": V.mT.contiguous(), "tau": taus(3, V), "layout": "rows"}),
        Sample("two blocks as rows", {"V": two.mT.contiguous(), "layout": "rows", "columns": 50}),
        Sample("LAPACK as rows", {"V": V.mT, "layout": "rows", "lapack": True}),
        Sample("shared tau", {"V": V, "tau": taus(4, V)[0]}, summed=3),
    ]


def delicate() -> dict[str, tuple[torch.Tensor, torch.Tensor | None]]:
    """Where a formula that divides by tau, or by what a triangular factor has on its diagonal, would fail."""
    V = normal(1, 6, 3)
    repeated = V[:, :1].expand(6, 3).clone()
    orthonormal = torch.linalg.qr(V).Q.clone()
    zero = torch.zeros(3, dtype=torch.float64)
    one = torch.tensor([0.0, 0.3, 0.0]).double()
    return {
        "duplicates": (repeated, None),
        "opposite duplicates": (repeated * torch.tensor([1.0, -1.0, 2.0]).double(), None),
        "orthonormal": (orthonormal, None),
        "as many as rows": (normal(2, 4, 4), None),
        "one reflector": (normal(3, 5, 1), None),
        "one entry": (normal(4, 1, 1), None),
        "tau = 0": (V, zero.clone()),
        "some tau = 0": (V, one.clone()),
        "duplicates, tau": (repeated, one + 0.1),
        "duplicates, tau = 0": (repeated, zero.clone()),
        "a reflector of zeros, tau": (V * torch.tensor([1.0, 0.0, 1.0]).double(), one + 0.2),
        "as many as rows, tau": (normal(5, 4, 4), torch.tensor([0.0, 0.5, -0.2, 0.1]).double()),
        "two blocks": (normal(6, 4, 34), None),
        "two blocks, tau": (normal(7, 3, 33), 0.3 * normal(8, 33)),
    }


def with_tau(tau: torch.Tensor | None) -> Arguments:
    return {} if tau is None else {"tau": tau.clone()}


def apply_degenerate() -> list[Sample]:
    made = [
        Sample(f"{name}{', transposed' * transpose}", {
            "V": V.clone(), "X": normal(30, V.shape[0], 2), **with_tau(tau), "transpose": transpose,
        })
        for name, (V, tau) in delicate().items()
        for transpose in (False, True)
    ]  # fmt: skip
    return [*made, Sample("X = 0", {"V": normal(1, 4, 2), "X": torch.zeros(4, 2).double()})]


def product_degenerate() -> list[Sample]:
    return [Sample(name, {"V": V.clone(), **with_tau(tau)}) for name, (V, tau) in delicate().items()]


def apply_bad() -> list[BadInput]:
    return [
        BadInput("other length", {"X": torch.ones(3, 8, 4).double()}, ValueError, "X", ("(3, 8, 4)", "(3, 7, 5)")),
        BadInput("other side", {"side": "right"}, ValueError, "X", ("(3, 7, 4)", "'right'")),
        BadInput("batch", {"X": torch.ones(2, 7, 4).double()}, ValueError, "X", ("(2, 7, 4)", "(3, 7, 5)")),
        BadInput("other layout", {"layout": "rows"}, ValueError, "X", ("(3, 7, 4)",)),
        BadInput("tau of another length", {"tau": torch.ones(3, 4).double()}, ValueError, "tau", ("(3, 4)", "5")),
        BadInput("batch of tau", {"tau": torch.ones(2, 5).double()}, ValueError, "tau", ("(2, 5)",)),
        BadInput("side unknown", {"side": "both"}, ValueError, "side"),
        BadInput("layout unknown", {"layout": 1}, ValueError, "layout"),
        BadInput("transpose None", {"transpose": None}, TypeError, "transpose"),
    ]


def product_bad() -> list[BadInput]:
    return [
        BadInput("too many columns", {"columns": 8}, ValueError, "columns", ("7", "8", "(3, 7, 5)")),
        BadInput("no columns", {"columns": 0}, ValueError, "columns"),
        BadInput("columns of a fraction", {"columns": 2.0}, TypeError, "columns"),
        BadInput("tau of another length", {"tau": torch.ones(3, 4).double()}, ValueError, "tau", ("(3, 4)", "5")),
        BadInput("batch of tau", {"tau": torch.ones(2, 5).double()}, ValueError, "tau", ("(2, 5)",)),
        BadInput("layout unknown", {"layout": "row"}, ValueError, "layout"),
        BadInput("lapack number", {"lapack": 1}, TypeError, "lapack"),
    ]


# --- growth of rounding errors ---


def _factors(V: np.ndarray, tau: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(I + U D)^-1 and (I + D U)^-T."""
    overlaps = np.triu(V.T @ V, 1)
    return _inverse_plus_one(overlaps * tau), _inverse_plus_one(overlaps * tau[:, None]).T


def _inverse_plus_one(strict: np.ndarray) -> np.ndarray:
    """(I + N)^-1 of a strictly upper triangular N, without pivots, which large entries let cancel."""
    inverse = np.eye(len(strict))
    for i in reversed(range(len(strict))):
        inverse[i] -= strict[i, i + 1 :] @ inverse[i + 1 :]
    return inverse


def _grown(V: np.ndarray, X: np.ndarray, tau: np.ndarray | None, transposed: bool) -> tuple[Any, dict[str, Any]]:
    """Of Q X and its gradients. A product V^T X errs by |V|^T |X|, which the triangular factor passes on; so does an
    error of its own entries, products of |V|^T |V| with what it is applied to."""
    D = reference.taus(V) if tau is None else tau
    forward, backward = _factors(V, D)[:: -1 if transposed else 1]
    size, strength, G = np.abs(V), np.abs(D)[:, None], np.ones(X.shape)
    w, a = np.abs(forward @ (V.T @ X)), np.abs(backward) @ (size.T @ G)
    P, R = strength * w, strength * a
    of_w = w + np.abs(forward) @ (size.T @ np.abs(X) + size.T @ size @ P)
    of_a = a + np.abs(backward) @ (size.T @ G + size.T @ size @ R)
    of_P, of_R = strength * of_w, strength * of_a
    of_C = of_R @ P.T + R @ of_P.T
    value = np.abs(X) + size @ of_P
    gradients = {
        "V": G @ of_P.T + np.abs(X) @ of_R.T + size @ (of_C + of_C.T),
        "X": G + size @ of_R,
        "tau": (of_a * w + a * of_w).sum(-1),
    }
    return value, gradients


def apply_growth(
    V: np.ndarray,
    X: np.ndarray,
    tau: np.ndarray | None = None,
    *,
    transpose: bool = False,
    side: str = "left",
    layout: str = "columns",
) -> Bounds:
    v = V.T if layout == "rows" else V
    right = side == "right"
    value, gradients = _grown(v, X.T if right else X, tau, transpose != right)
    if right:
        value, gradients["X"] = value.T, gradients["X"].T
    if layout == "rows":
        gradients["V"] = gradients["V"].T
    return Bounds(sum(v.shape) + X.shape[-2 if right else -1] + 4, (value,), gradients)


def product_growth(
    V: np.ndarray,
    tau: np.ndarray | None = None,
    *,
    columns: int | None = None,
    lapack: bool = False,
    layout: str = "columns",
) -> Bounds:
    v = V.T if layout == "rows" else V
    if lapack:
        v = np.tril(v, -1) + np.eye(*v.shape)
    columns = min(v.shape) if columns is None else columns
    value, gradients = _grown(v, np.eye(v.shape[0], columns), tau, False)
    if layout == "rows":
        value, gradients["V"] = value.T, gradients["V"].T
    return Bounds(sum(v.shape) + columns + 4, (value,), gradients)


def where_the_formula_is_nan(arguments: Arguments, item: int, row: int) -> np.ndarray:
    """A reflector reaches all of the result, a column of X its own."""
    bad = ~np.isfinite(double_array(arguments["X"])[item]).all(-2, keepdims=True)
    others = [double_array(arguments[name])[item] for name in ("V", "tau") if arguments.get(name) is not None]
    return bad | (not all(np.isfinite(array).all() for array in others))


ROWS = [
    Op(
        name="householder_apply",
        function=subspan.householder_apply,
        reference=reference.householder_apply,
        arrays={"V": 2, "X": 2, "tau": 1},
        differentiable=("V", "X", "tau"),
        samples=apply_samples,
        large=lambda dtype: apply_samples(dtype, LARGE),
        degenerate=apply_degenerate,
        growth=apply_growth,
        bad_inputs=apply_bad,
        core_shapes=lambda rows, columns: {"V": (rows, columns), "X": (rows, 3), "tau": (columns,)},
        confined=where_the_formula_is_nan,
    ),
    Op(
        name="householder_product",
        function=subspan.householder_product,
        reference=reference.householder_product,
        arrays={"V": 2, "tau": 1},
        differentiable=("V", "tau"),
        samples=product_samples,
        large=lambda dtype: product_samples(dtype, LARGE),
        degenerate=product_degenerate,
        growth=product_growth,
        bad_inputs=product_bad,
        core_shapes=lambda rows, columns: {"V": (rows, columns), "tau": (columns,)},
    ),
]
