"""Newton-Schulz iterations and their gradient in torch operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .factor import factor_dtype, identity, result_dtype, without_autocast

#: The error of R_0, a unit of rounding where G is of rank one, may grow by this before the iteration starts anew.
NOISE = 256.0


def _normalised(G: Tensor, dtype: torch.dtype, least_norm: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """X = G / |G| with no more rows than columns, and two factors whose quotient is 1 / |G|, the second a constant.

    Entries are divided by the largest before they are squared; X does not depend on that. 0 / 0 is 0. A norm below
    the least counts as that.
    """
    X = G.to(dtype)
    X = X.mT if X.shape[-2] > X.shape[-1] else X
    largest = X.detach().abs().amax((-2, -1), keepdim=True)
    scale = torch.where(largest == 0, 1, largest)
    X = X / scale
    squares = X.square().sum((-2, -1), keepdim=True)
    if least_norm > 0:
        squares = torch.maximum(squares, (least_norm / scale).square())
    inverse = torch.where(squares == 0, 0, torch.where(squares == 0, 1, squares).rsqrt())
    return X * inverse, inverse, scale


def _turned(X: Tensor, like: Tensor) -> Tensor:
    return X.mT if like.shape[-2] > like.shape[-1] else X


def _largest_factor(a: float, b: float, c: float) -> float:
    """By which a step multiplies singular values of at most one."""
    turn = -b / (2 * c) if c else -1.0
    inside = abs(a + b * turn / 2) if 0 < turn < 1 else 0.0
    return max(abs(a), abs(a + b + c), inside)


def _corrects_errors(a: float, b: float, c: float) -> bool:
    """Whether 1 is a fixed point that errors do not leave."""
    return abs(a + b + c - 1) < 1e-6 and abs(a + 3 * b + 5 * c) < 1e-6


def _steps(coefficients: Sequence[float]) -> list[tuple[float, float, float]]:
    return [(coefficients[i], coefficients[i + 1], coefficients[i + 2]) for i in range(0, len(coefficients), 3)]


def _factor(R: Tensor, a: float, b: float, c: float) -> Tensor:
    Z = b * R + a * identity(R.shape[-1], R)
    return Z + c * (R @ R) if c else Z


@without_autocast
def iterate(G: Tensor, coefficients: Sequence[float], least_norm: float = 0.0) -> Tensor:
    """On the shorter side; see the kernel. It starts anew where a matrix of rank one would need it, and before a last
    step that undoes errors of X."""
    if not G.numel():
        return torch.empty_like(G, dtype=result_dtype(G))
    X = _normalised(G, result_dtype(G), least_norm)[0]
    R, growth, steps = X @ X.mT, 1.0, _steps(coefficients)
    Q: Tensor | None = None
    for k, (a, b, c) in enumerate(steps):
        Z = _factor(R, a, b, c)
        Q = Z if Q is None else Q @ Z
        growth *= _largest_factor(a, b, c) ** 2
        correcting = k + 2 == len(steps) and _corrects_errors(*steps[-1])
        if k + 1 == len(steps) or growth > NOISE or correcting:
            X, Q, growth = Q @ X, None, 1.0
            R = X @ X.mT if k + 1 < len(steps) else R
        else:
            R = (R @ Z) @ Z
    return _turned(X, G)


class _NewtonSchulz(torch.autograd.Function):
    """torch would keep every matrix of the iteration for its gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(G: Tensor, coefficients: Sequence[float]) -> Tensor:
        return iterate(G, coefficients)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.coefficients = inputs[1]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (G,) = ctx.saved_tensors
        return newton_schulz_gradient(upstream[0], G, ctx.coefficients), None


def newton_schulz(G: Tensor, coefficients: Sequence[float]) -> tuple[Tensor]:
    result: Tensor = _NewtonSchulz.apply(G, coefficients)  # type: ignore[no-untyped-call]
    return (result,)


@without_autocast
def newton_schulz_gradient(g: Tensor, G: Tensor, coefficients: Sequence[float]) -> Tensor:
    """The iteration again, every X kept, and then its steps backwards. Of X' = (a I + b A + c A^2) X with A = X X^T:

    dX = (a I + b A + c A^2) g + (D + D^T) X, where D = b W + c (A W + W A) and W = g X^T.
    """
    if not G.numel():
        return torch.zeros_like(G)
    # Autocast, which may be on when this is differentiated, leaves float64 alone.
    X, inverse, scale = _normalised(G, factor_dtype(G) if torch.is_grad_enabled() else result_dtype(G))
    start = X
    g = _turned(g, G).to(X.dtype)
    kept: list[tuple[Tensor, Tensor]] = []
    steps = _steps(coefficients)
    for a, b, c in steps:
        A = X @ X.mT
        kept.append((X, A))
        X = _factor(A, a, b, c) @ X
    for (X, A), (a, b, c) in zip(reversed(kept), reversed(steps), strict=True):
        W = g @ X.mT
        D = b * W
        if c:
            D = D + c * (A @ W + W @ A)
        g = _factor(A, a, b, c) @ g + (D + D.mT) @ X
    along = (start * g).sum((-2, -1), keepdim=True)
    return _turned((g - start * along) * inverse / scale, G).to(G.dtype)


def by_shape(matrices: list[Tensor], function: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The function of each, evaluated on stacks of those of equal shape and type: a device runs few large products
    faster than many small ones."""
    groups: dict[tuple[torch.Size, torch.dtype, torch.device], list[int]] = {}
    for i, matrix in enumerate(matrices):
        groups.setdefault((matrix.shape, matrix.dtype, matrix.device), []).append(i)
    results = list(matrices)
    for members in groups.values():
        values = function(torch.stack([matrices[i] for i in members]))
        for i, value in zip(members, values.unbind(0), strict=True):
            results[i] = value
    return results
