"""Formulas of the Stiefel manifold that NumPy arrays and torch tensors share. Frames are columns, (*batch, n, k), and
all arrays of one type; everything is made of products, inverses and sums.

With P = V - X C / 2 and C = X^T V, the generator W = P X^T - X P^T is skew, and W X is the tangent part of V. It is
U Z^T with U = [P X] and Z = [X -P].
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import _check

#: How often an exponential is squared where its norm cannot be read: enough for norms of 2^9. Beyond, NaN.
MOST_SQUARINGS = 10
#: Of Newton's iteration for a sign: it doubles the digits from an error below 1; 5 bring the eigenvalues 1e-3 there.
SIGN_STEPS = 16


def transposed(array: Any) -> Any:
    return array.swapaxes(-1, -2)


def symmetric(array: Any) -> Any:
    return (array + transposed(array)) / 2


def skew(array: Any) -> Any:
    return (array - transposed(array)) / 2


def identity(like: Any, size: int) -> Any:
    if _check.is_torch(like):
        return _check.torch.eye(size, dtype=like.dtype, device=like.device)
    return np.eye(size, dtype=like.dtype)


def concatenated(*arrays: Any, axis: int = -1) -> Any:
    if _check.is_torch(arrays[0]):
        return _check.torch.cat(arrays, axis)
    return np.concatenate(arrays, axis)


def inverse(matrix: Any) -> Any:
    """Of general matrices. What has no inverse gets anything, but no error; NaN stays in its item."""
    if _check.is_torch(matrix):
        return _check.torch.linalg.inv_ex(matrix).inverse
    if not matrix.size:
        return matrix
    singular = np.asarray(np.linalg.det(matrix) == 0)[..., None, None]
    return np.where(singular, np.nan, np.linalg.inv(np.where(singular, np.eye(matrix.shape[-1]), matrix)))


def exponential(matrix: Any, measured: Any = None) -> Any:
    """By a Taylor polynomial of degree 16 where the norm is at most 1/2, then squarings. The norm is that of `measured`
    where the matrix has blocks in which it is linear."""
    measured = matrix if measured is None else measured
    size = measured.shape[-1]
    constant = measured.detach() if _check.is_torch(measured) else measured
    xp: Any = _check.torch if _check.is_torch(matrix) else np
    norm = abs(constant).sum(-1)
    norm = xp.amax(norm, -1) if size else norm.sum(-1)
    steps = xp.ceil(xp.log2(xp.where(norm > 0.5, 2 * norm, xp.ones_like(norm))))
    most = MOST_SQUARINGS
    if _check.readable(constant):
        finite = steps[xp.isfinite(steps)]
        most = int(finite.max()) if math.prod(finite.shape) else 0
    scale = xp.where(steps <= most, 2.0**-steps, xp.full_like(steps, math.nan))[..., None, None]
    A = matrix * scale
    square = A @ A
    cube = square @ A
    fourth = square @ square
    one = identity(A, A.shape[-1])

    def cubic(first: int) -> Any:
        c = [1 / math.factorial(first + i) for i in range(4)]
        return c[0] * one + c[1] * A + c[2] * square + c[3] * cube

    result = cubic(12) + fourth / math.factorial(16)
    for first in (8, 4, 0):
        result = cubic(first) + fourth @ result
    for step in range(most):
        result = xp.where((step < steps)[..., None, None], result @ result, result)
    return result


# --- tangent vectors --------------------------------------------------------------------------------------------------


def project_tangent(X: Any, V: Any) -> Any:
    return V - X @ symmetric(transposed(X) @ V)


def canonical_gradient(X: Any, G: Any) -> Any:
    return G - X @ (transposed(G) @ X)


# --- the generator W = U Z^T ------------------------------------------------------------------------------------------


def generator(X: Any, V: Any) -> tuple[Any, Any]:
    """U and Z."""
    P = V - X @ (transposed(X) @ V) / 2
    return concatenated(P, X), concatenated(X, -P)


def cayley_rotation(U: Any, Z: Any, vectors: Any) -> Any:
    """(I - W/2)^-1 (I + W/2) applied to vectors, by Woodbury's formula."""
    core = identity(U, U.shape[-1]) - transposed(Z) @ U / 2
    return vectors + U @ (inverse(core) @ (transposed(Z) @ vectors))


def exp_rotation(U: Any, Z: Any, vectors: Any) -> Any:
    """exp W applied to vectors: v + U f(Z^T U) Z^T v with f(t) = (e^t - 1) / t, which is a block of an exponential. P
    is divided by its length s, and X in Z multiplied with it, so that no block of Z^T U is much larger than W."""
    size = U.shape[-1]
    P, X = U[..., : size // 2], U[..., size // 2 :]
    s = length(P)
    U, Z = concatenated(P / s, X), concatenated(X * s, Z[..., size // 2 :])
    T = transposed(Z) @ U
    upper = concatenated(T, identity(T, size) + 0 * T)
    f = exponential(concatenated(upper, concatenated(0 * T, 0 * T), axis=-2), T)[..., :size, size:]
    return vectors + U @ (f @ (transposed(Z) @ vectors))


def length(array: Any) -> Any:
    """A constant: of an item of zeros 1."""
    constant = array.detach() if _check.is_torch(array) else array
    squares = (constant * constant).sum(-1).sum(-1)[..., None, None]
    return _check.where(squares > 0, squares, 1 + 0 * squares) ** 0.5


# --- the way back: V with retract(X, V) = Y ---------------------------------------------------------------------------


def inverse_cayley(X: Any, Y: Any) -> Any:
    """From (I - W/2) Y = (I + W/2) X with M = X^T Y: the part of V normal to X is 2 (Y - X M) (I + M)^-1, and X^T V =
    2 (I + M)^-T (M - M^T) (I + M)^-1."""
    M = transposed(X) @ Y
    to_middle = inverse(M + identity(M, M.shape[-1]))
    along = 2 * transposed(to_middle) @ (M - transposed(M)) @ to_middle
    return 2 * (Y - X @ M) @ to_middle + X @ along


def inverse_polar(X: Any, Y: Any) -> Any:
    """Y S - X for the symmetric S with M S + S M^T = 2 I, M = X^T Y: then X^T V = M S - I is skew. Newton's iteration
    for the sign of [[M, -2 I], [0, -M^T]] (Roberts 1980), whose corner becomes -2 S."""
    M = transposed(X) @ Y
    S = 0 * M + 2 * identity(M, M.shape[-1])
    for _ in range(SIGN_STEPS):
        inverted = inverse(M)
        S = (S + inverted @ S @ transposed(inverted)) / 2
        M = (M + inverted) / 2
    return Y @ (symmetric(S) / 2) - X


def inverse_qr(X: Any, Y: Any) -> Any:
    """Y R - X for the upper triangular R with M R + R^T M^T = 2 I, M = X^T Y, column by column (Kaneko, Fiori, Tanaka
    2013): row i of M times column i of R is 1, row j < i times column i is minus row i times column j."""
    M = transposed(X) @ Y
    size = M.shape[-1]
    columns: list[Any] = []
    for i in range(size):
        one = 0 * M[..., i : i + 1, :1] + 1
        before = [-(M[..., i : i + 1, : j + 1] @ columns[j]) for j in range(i)]
        columns.append(inverse(M[..., : i + 1, : i + 1]) @ concatenated(*before, one, axis=-2))
    padded = [concatenated(c, 0 * M[..., i + 1 :, :1], axis=-2) for i, c in enumerate(columns)]
    return Y @ concatenated(*padded) - X if size else Y - X
