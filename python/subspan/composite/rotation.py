"""cos G^1/2, G^-1/2 sin G^1/2 and G^-1 (I - cos G^1/2) of symmetric positive semidefinite matrices G, in torch.

All three are entire in G, so that polynomials and products suffice: Taylor polynomials of degree 8 where the norm is at
most 1, after division by a power of 4, and then doublings of the angles. There are no eigenvectors, hence derivatives
of any order exist everywhere: torch differentiates products of matrices.

With W = I - cos: W(4A) = 4 W - 2 W^2, sine(4A) = sine - W sine, versine(4A) = sine^2 / 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _check

#: How often angles are doubled where the norm cannot be read: enough for G of norm 4^9, angles of 512. Beyond, NaN.
MOST_DOUBLINGS = 9

#: A matrix, or a matrix and its derivative in some direction.
Dual = tuple[Tensor, ...]


def times(a: Dual, b: Dual) -> Dual:
    value = a[0] @ b[0]
    return (value,) if len(a) == 1 else (value, a[0] @ b[1] + a[1] @ b[0])


def scaled(a: Dual, factor: float | Tensor) -> Dual:
    return tuple(part * factor for part in a)


def plus(a: Dual, b: Dual) -> Dual:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def plus_identity(a: Dual, factor: float) -> Dual:
    size = a[0].shape[-1]
    return (a[0] + factor * torch.eye(size, dtype=a[0].dtype, device=a[0].device), *a[1:])


def polynomial(A: Dual, square: Dual, cube: Dual, first: int) -> Dual:
    """sum_m (-A)^m / (2 m + first)! for m = 0 ... 8."""
    c = [(-1) ** m / math.factorial(2 * m + first) for m in range(9)]

    def of_degree_2(m: int) -> Dual:
        return plus_identity(plus(scaled(A, c[m + 1]), scaled(square, c[m + 2])), c[m])

    return plus(of_degree_2(0), times(cube, plus(of_degree_2(3), times(cube, of_degree_2(6)))))


def rotation_functions(G: Tensor, direction: Tensor | None = None) -> tuple[Dual, Dual, Dual]:
    """cosine, sine and versine of G (*batch, k, k), each with its derivative in a direction of broadcasting shape."""
    norm = G.detach().abs().sum(-1).amax(-1) if G.shape[-1] else G.detach().new_zeros(G.shape[:-2])
    doublings = (norm.log2() / 2).ceil().clamp(min=0)
    most = MOST_DOUBLINGS
    if _check.readable(norm):
        finite = doublings[doublings.isfinite()]
        most = int(finite.max()) if finite.numel() else 0
    scale = torch.where(doublings <= most, torch.exp2(-2 * doublings), math.nan)[..., None, None]
    # All that follows is differentiated as a function of A, in the direction that has been scaled as G was.
    A = scaled((G,) if direction is None else (G, direction), scale)
    square = times(A, A)
    cube = times(square, A)
    sine, versine = polynomial(A, square, cube, 1), polynomial(A, square, cube, 2)
    W = times(A, versine)
    for step in range(most):
        active = (step < doublings)[..., None, None]
        versine = chosen(active, scaled(times(sine, sine), 0.5), versine)
        next_sine = plus(sine, scaled(times(W, sine), -1))
        W = chosen(active, plus(scaled(W, 4), scaled(times(W, W), -2)), W)
        sine = chosen(active, next_sine, sine)
    return plus_identity(scaled(W, -1), 1), sine, versine


def chosen(where: Tensor, a: Dual, b: Dual) -> Dual:
    return tuple(torch.where(where, x, y) for x, y in zip(a, b, strict=True))
