"""The row of the op table for hypercomplex adapters, called with its factors one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import subspan
from op_row import Arguments, BadInput, Bounds, Op, Sample, double_array
from phm_rows import lowrank_growth
from sample_arrays import normal
from subspan.reference import phm as reference

ARRAYS = {"x": 2, "down_A": 3, "down_U": 3, "down_V": 3, "down_bias": 1, "up_A": 3, "up_U": 3, "up_V": 3, "up_bias": 1}
#: Batch, rows, and terms, p, q, l, k, rank of both maps, by name.
Sizes = tuple[int, int, int, int, int, int]
SHAPES: dict[str, tuple[tuple[int, ...], int, Sizes, Sizes]] = {
    "quaternion size": ((), 3, (4, 4, 4, 1, 2, 1), (4, 4, 4, 2, 1, 1)),
    "one of everything": ((), 1, (1, 1, 1, 1, 1, 1), (1, 1, 1, 1, 1, 1)),
    "batch": ((3,), 7, (4, 5, 2, 2, 8, 2), (4, 2, 2, 8, 5, 1)),
    "two batch dimensions": ((2, 2), 2, (1, 2, 1, 1, 3, 1), (2, 1, 2, 3, 1, 2)),
    "empty batch": ((0,), 3, (2, 2, 2, 1, 2, 1), (2, 2, 2, 2, 1, 1)),
    "no rows": ((), 0, (2, 2, 2, 1, 2, 1), (2, 2, 2, 2, 1, 1)),
    "odd widths": ((), 19, (3, 3, 3, 3, 7, 2), (3, 3, 3, 7, 3, 3)),
    "one component": ((), 5, (1, 1, 1, 5, 18, 5), (1, 1, 1, 18, 5, 5)),
}
LARGE: dict[str, tuple[tuple[int, ...], int, Sizes, Sizes]] = {
    "large": ((), 530, (4, 4, 4, 6, 48, 1), (4, 4, 4, 48, 6, 1)),
    "large batch": ((5,), 40, (2, 2, 2, 4, 35, 4), (2, 2, 2, 35, 4, 4)),
}
KINDS = ("gelu", "silu", "gelu_tanh", "relu")


def sides(given: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(tuple(given[f"{side}_{name}"] for name in ("A", "U", "V", "bias")) for side in ("down", "up"))


def call(
    x: Any,
    down_A: Any,
    down_U: Any,
    down_V: Any,
    up_A: Any,
    up_U: Any,
    up_V: Any,
    down_bias: Any = None,
    up_bias: Any = None,
    *,
    activation: str,
    residual: bool,
) -> Any:
    return subspan.phm_adapter(x, *sides(locals()), activation, residual)


def call_reference(x: Any, *, activation: str, residual: bool, **factors: Any) -> Any:
    return reference.phm_adapter(x, *sides(factors), activation, residual)


def side(seed: int, dtype: torch.dtype, batch: tuple[int, ...], sizes: Sizes) -> tuple[torch.Tensor, ...]:
    terms, p, q, l, k, rank = sizes  # noqa: E741
    A = normal(seed, *batch, terms, p, q, dtype=dtype, scale=(terms * q) ** -0.5)
    U = normal(seed + 10, *batch, terms, l, rank, dtype=dtype, scale=rank**-0.5)
    V = normal(seed + 20, *batch, terms, rank, k, dtype=dtype, scale=k**-0.5)
    return A, U, V, normal(seed + 30, *batch, p * l, dtype=dtype)


def samples(dtype: torch.dtype, shapes: Any = SHAPES) -> list[Sample]:
    made = []
    for seed, (name, (batch, rows, down, up)) in enumerate(shapes.items()):
        x = normal(seed + 90, *batch, rows, down[2] * down[4], dtype=dtype)
        arrays = (x, *side(seed, dtype, batch, down), *side(seed + 40, dtype, batch, up))
        options = {"activation": KINDS[seed % 3], "residual": up[1] * up[3] == down[2] * down[4]}
        made.append(Sample(name, dict(zip(ARRAYS, arrays, strict=True)) | options))
    if shapes is not SHAPES:
        return made
    own = dict(zip(ARRAYS, (normal(1, 3, 4, 6, dtype=dtype), *arrays_of_one(dtype)), strict=True))
    return [
        *made,
        Sample("one adapter for all", own | {"activation": "gelu", "residual": True}, summed=3),
        Sample(
            "no biases",
            own | {"x": own["x"][0], "down_bias": None, "up_bias": None, "activation": "silu", "residual": True},
        ),
        Sample("no residual", own | {"x": own["x"][0], "activation": "relu", "residual": False}),
    ]


def arrays_of_one(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    sizes = (2, 2, 2, 2, 3, 1), (2, 2, 2, 3, 2, 1)
    return (*side(2, dtype, (), sizes[0]), *side(60, dtype, (), sizes[1]))


def degenerate() -> list[Sample]:
    own = dict(zip(ARRAYS, (normal(7, 3, 6), *arrays_of_one(torch.float64)), strict=True))
    options = {"activation": "gelu", "residual": True}
    zeros = [
        Sample(
            f"{name} of zeros", {n: t.clone() for n, t in own.items()} | {name: torch.zeros_like(own[name])} | options
        )
        for name in ("x", "down_A", "down_V", "up_A", "up_U")
    ]
    far = own | {"down_bias": torch.tensor([40.0, -40.0, 9.0, -9.0]).double()}
    return [*zeros, *(Sample(f"{kind} far from 0", far | options | {"activation": kind}) for kind in KINDS)]


def bad() -> list[BadInput]:
    ones = torch.ones
    return [
        BadInput("x not divisible", {"x": ones(3, 7, 5).double()}, ValueError, "x", ("16 = 2 * 8", "4 and 6")),
        BadInput("bias", {"down_bias": ones(3, 7).double()}, ValueError, "down_bias", ("10 = 5 * 2", "5 and 10")),
        BadInput("bias up", {"up_bias": ones(3, 7).double()}, ValueError, "up_bias", ("16 = 2 * 8", "6 and 8")),
        BadInput("terms", {"down_U": ones(3, 3, 2, 2).double()}, ValueError, "down_U", ("(3, 3, 2, 2)", "4 of")),
        BadInput("other rank", {"up_V": ones(3, 4, 2, 5).double()}, ValueError, "up_V", ("(3, 4, 2, 5)",)),
        BadInput("no rank", {"down_U": ones(3, 4, 2, 0).double()}, ValueError, "down_U", ("(3, 4, 2, 0)",)),
        BadInput("hidden units", {"up_V": ones(3, 4, 1, 4).double()}, ValueError, "up", ("10 hidden", "8")),
        BadInput(
            "outputs",
            {"up_U": ones(3, 4, 4, 1).double(), "up_bias": ones(3, 8).double()},
            ValueError,
            "up",
            ("(3, 7, 16)", "8"),
        ),
        BadInput("batch", {"up_A": ones(2, 4, 2, 2).double()}, ValueError, "up_A", ("(2, 4, 2, 2)",)),
        BadInput("activation unknown", {"activation": "tanh"}, ValueError, "activation", ("'gelu'",)),
        BadInput("residual no flag", {"residual": 1}, TypeError, "residual"),
    ]


def growth(
    x: np.ndarray,
    down_A: np.ndarray,
    down_U: np.ndarray,
    down_V: np.ndarray,
    down_bias: np.ndarray | None,
    up_A: np.ndarray,
    up_U: np.ndarray,
    up_V: np.ndarray,
    up_bias: np.ndarray | None,
    *,
    activation: str,
    residual: bool,
) -> Bounds:
    """Activations here have |f(z)| <= |z|, |f'| <= 1.2 and |f''| <= 1.2, and are computed to 8 roundings of (1 + z^2),
    which the exponential of z^2 costs. An error of z passes to f(z) and f'(z)."""
    size = np.abs
    down = lowrank_growth(x, down_A, down_U, down_V, down_bias)
    z = down.outputs[0]
    hidden = 1.2 * z + 8 * z * (1 + z * z) / down.size  # its own error, in units of the down product's
    up = lowrank_growth(z, up_A, up_U, up_V, up_bias)
    E = reference.phm_weight(size(up_A), size(up_U) @ size(up_V))
    y = up.outputs[0] + hidden @ E.T + (size(x) if residual else 0)
    D = reference.phm_weight(size(down_A), size(down_U) @ size(down_V))
    # Upstream gradients are at most 1: what reaches z, with the error of f', and what comes of it.
    slope = 1.2 * (1 + z * (1 + 8 * (1 + z * z) / down.size))
    d_z = np.ones_like(y) @ E * slope
    blocks = (d_z.T @ size(x)).reshape(down_A.shape[1], down_U.shape[1], down_A.shape[2], down_V.shape[2])
    up_blocks = (np.ones_like(y).T @ hidden).reshape(up_A.shape[1], up_U.shape[1], up_A.shape[2], up_V.shape[2])

    def of_factors(A: np.ndarray, U: np.ndarray, V: np.ndarray, blocks: np.ndarray) -> tuple[np.ndarray, ...]:
        dS = np.einsum("ipq,plqk->ilk", size(A), blocks)
        dA = np.einsum("ilk,plqk->ipq", size(U) @ size(V), blocks)
        return dA, dS @ size(V).swapaxes(-1, -2), size(U).swapaxes(-1, -2) @ dS

    gradients = {"x": d_z @ D + (1 if residual else 0), "down_bias": d_z.sum(0), "up_bias": np.ones_like(y).sum(0)}
    gradients |= dict(zip(("down_A", "down_U", "down_V"), of_factors(down_A, down_U, down_V, blocks), strict=True))
    gradients |= dict(zip(("up_A", "up_U", "up_V"), of_factors(up_A, up_U, up_V, up_blocks), strict=True))
    return Bounds(down.size + up.size + x.shape[0], (y,), gradients)


def is_nan(arguments: Arguments, item: int, row: int) -> np.ndarray:
    arrays = {name: double_array(arguments[name])[item] for name in ARRAYS}
    with np.errstate(all="ignore"):
        return np.isnan(call_reference(**arguments | arrays))


ROWS = [
    Op(
        name="phm_adapter",
        function=call,
        reference=call_reference,
        arrays=ARRAYS,
        differentiable=tuple(ARRAYS),
        samples=samples,
        large=lambda dtype: samples(dtype, LARGE),
        degenerate=degenerate,
        growth=growth,
        bad_inputs=bad,
        core_shapes=lambda rows, columns: {
            "x": (rows, 2 * columns),
            "down_A": (3, 2, 2),
            "down_U": (3, 3, 2),
            "down_V": (3, 2, columns),
            "down_bias": (6,),
            "up_A": (2, 2, 2),
            "up_U": (2, columns, 1),
            "up_V": (2, 1, 3),
            "up_bias": (2 * columns,),
        },
        infinity=tuple(ARRAYS),
        confined=is_nan,
        unread={"up_bias": tuple(ARRAYS)} | {name: (name, "up_bias") for name in ARRAYS if name != "up_bias"},
    )
]
