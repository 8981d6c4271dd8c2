"""Singular spaces of representations, for NumPy arrays and torch tensors alike and without gradients.

Samples are rows, (*batch, n, d). Gram matrices and decompositions are those of the array's own library. An item that is
not finite is decomposed as zeros and its results are made NaN afterwards: LAPACK would raise, and for the whole batch.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from .. import _check
from .small_matrices import small_svdvals


def library(array: Any) -> Any:
    return _check.torch if _check.is_torch(array) else np


def transposed(matrix: Any) -> Any:
    return matrix.swapaxes(-1, -2)


def held(array: Any) -> Any:
    """The array as a constant of differentiation."""
    return array.detach() if _check.is_torch(array) else array


def apply_where(condition: Any, array: Any, function: Any) -> Any:
    """function(array) where the condition holds, else 0, with gradient 0 even if `function` has none there."""
    xp = library(array)
    return xp.where(condition, function(xp.where(condition, array, 1.0)), 0.0)


def finite_items(matrices: Any) -> tuple[Any, Any]:
    """The matrices with those that are not finite set to zero, and a factor of each: 1, or NaN if it was not finite."""
    xp = library(matrices)
    finite = xp.isfinite(matrices).all(-1).all(-1)
    return xp.where(finite[..., None, None], matrices, 0.0), xp.where(finite, 1.0, math.nan)


def centred(X: Any, eps: float) -> tuple[Any, Any]:
    """X minus the means of its columns, and what the rounding of the means may leave of a constant X in norm.

    The mean of what is left is subtracted once more, so that constant columns come out as roundings of roundings.
    """
    samples = X.shape[-2]
    means = X.mean(-2) if samples else X.sum(-2)
    rows = X - means[..., None, :]
    if samples:
        rows = rows - rows.mean(-2)[..., None, :]
    return rows, eps * math.sqrt(samples) * library(X).sqrt((held(means) ** 2).sum(-1))


def unit_norm(X: Any, eps: float) -> tuple[Any, Any]:
    """Centred X of unit Frobenius norm, zero where X is constant; and where it is not.

    The norm is taken as a constant of differentiation: for functions that do not depend on the scale of X.
    """
    xp = library(X)
    rows, floor = centred(X, eps)
    if xp is np:
        norm = np.sqrt(np.einsum("...ij,...ij->...", rows, rows, dtype=np.float64))
    else:
        wide = rows.dtype if rows.device.type == "mps" else xp.float64
        norm = xp.linalg.vector_norm(rows.detach(), dim=(-2, -1), dtype=wide)
    varies = norm > floor
    factor = xp.where(xp.isfinite(norm), apply_where(varies, norm, lambda x: 1 / x), math.nan)
    return rows * _check.cast(factor, rows.dtype)[..., None, None], varies


# --- all singular directions ------------------------------------------------------------------------------------------


class Basis(NamedTuple):
    """left diag(values) right^T is X, values descending. `kept` is 1 for a direction in use and 0 for others, of which
    left and right are arbitrary (but finite)."""

    left: Any
    values: Any
    right: Any
    kept: Any


def thin_svd(X: Any, eps: float) -> tuple[Any, Any, Any]:
    """left (n, k), values, right (d, k) with k = min(n, d).

    float64 data take the SVD of X. float32 data take the eigenvectors of the float64 Gram matrix of the smaller side:
    the square of a condition number of 1e6, which is all that float32 data can have, leaves float64 four digits.
    """
    xp = library(X)
    X, valid = finite_items(X)
    valid = valid[..., None]
    if eps < 1e-12 or 0 in X.shape[-2:]:
        left, values, right = xp.linalg.svd(X, full_matrices=False)
        return left * valid[..., None], values * valid, transposed(right) * valid[..., None]
    wide = X.shape[-2] < X.shape[-1]
    gram = X @ transposed(X) if wide else transposed(X) @ X
    values, vectors = _eigh(gram)
    values, vectors = xp.sqrt(xp.clip(xp.flip(values, (-1,)), 0.0, None)), xp.flip(vectors, (-1,))
    vectors = vectors * valid[..., None]
    inverse = apply_where(values > 0, values, lambda x: 1 / x)
    image = (transposed(X) if wide else X) @ vectors * inverse[..., None, :]
    left, right = (vectors, image) if wide else (image, vectors)
    return left, values * valid, right


def alive(values: Any, floor: Any, tolerance: float) -> Any:
    """1 for singular values that are more than rounding, 0 for others."""
    xp = library(values)
    least = xp.maximum(tolerance * values[..., :1], floor[..., None])
    return _check.cast(values > least, values.dtype)


def default_tolerance(X: Any, eps: float) -> float:
    return float(eps * max(X.shape[-2:]))


def whole_basis(X: Any, floor: Any, eps: float, tolerance: float | None) -> Basis:
    """All singular directions of centred X that are not rounding."""
    left, values, right = thin_svd(X, eps)
    tolerance = default_tolerance(X, eps) if tolerance is None else tolerance
    return Basis(left, values, right, alive(values, floor, tolerance))


def whiten(X: Any, floor: Any, eps: float, tolerance: float | None) -> tuple[Any, Any, Any]:
    """(U, T, kept): orthonormal U = X T of the column space of centred X. Dead directions are columns of zeros."""
    tolerance = default_tolerance(X, eps) if tolerance is None else tolerance
    if X.ndim == 2 and X.shape[0] > X.shape[1] > 0 and _check.readable(X):
        found = _whiten_by_qr(X, floor, tolerance)
        if found is not None:
            return found
    xp = library(X)
    left, values, right, kept = whole_basis(X, floor, eps, tolerance)
    inverse = apply_where(kept > 0, values, lambda x: 1 / x)
    zero = 0 * values[..., None, :]  # NaN where the item is
    return xp.where(kept[..., None, :] > 0, left, zero), right * inverse[..., None, :], kept


def _whiten_by_qr(X: Any, floor: Any, tolerance: float) -> tuple[Any, Any, Any] | None:
    """Of one matrix that is safely of full rank, else None: 1 / |R^-1|_F bounds the smallest singular value from below,
    and Householder's Q spans the columns to rounding times the condition number."""
    xp = library(X)
    U, R = xp.linalg.qr(X)
    if not bool((abs(R.diagonal()) > 0).all()):  # NaN too
        return None
    if _check.is_torch(X):
        T = xp.linalg.solve_triangular(R, xp.eye(len(R), dtype=R.dtype, device=R.device), upper=True)
    else:
        T = np.linalg.inv(R)
    least = max(tolerance * float((X**2).sum()) ** 0.5, float(floor))
    return (U, T, xp.ones_like(R[0])) if 1 / float((T**2).sum()) ** 0.5 > least else None


def truncated_basis(X: Any, floor: Any, eps: float, rank: int | None, energy: float) -> Basis:
    """Those of the `rank` largest singular values, or as many as hold the fraction `energy` of the sum of squares."""
    basis = whole_basis(X, floor, eps, None)
    values, kept = basis.values, basis.kept
    if rank is not None:
        index = library(X).arange(values.shape[-1], **({"device": X.device} if _check.is_torch(X) else {}))
        return basis._replace(kept=kept * _check.cast(index < rank, kept.dtype))
    if energy < 1:
        squares = (values / where_all(values)) ** 2
        before = squares.cumsum(-1) - squares
        kept = kept * _check.cast(before < energy * squares.sum(-1)[..., None], kept.dtype)
    return basis._replace(kept=kept)


def where_all(values: Any) -> Any:
    """The largest of descending values, 1 where it is 0: to divide by."""
    largest = values[..., :1]
    return library(values).where(largest > 0, largest, 1.0)


# --- few singular directions ------------------------------------------------------------------------------------------

#: Vectors in a block beyond those asked for: they take up clusters around the last one.
SPARE = 6


@functools.lru_cache(maxsize=16)
def _start(size: int, block: int) -> np.ndarray:
    """Fixed vectors in general position."""
    return np.linalg.qr(np.random.default_rng(0).standard_normal((size, block)))[0]


def leading_left(X: Any, rank: int) -> tuple[Any, Any] | None:
    """The `rank` leading left singular vectors of one matrix (n, d) and their singular values; None where the spectrum
    does not allow them at a fraction of the cost of all.

    Block Golub-Kahan-Lanczos with full reorthogonalisation: with orthonormal Q and W, X W = Q B, and
    X^T Q = W B^T + W' C on the last block of Q, with the next block W' of W. A singular triplet (y, s, z) of B thus has
    the residual |X^T Q y - s W z| = |C y_last|, without another product.
    """
    xp, block = library(X), rank + SPARE
    most = min(X.shape) // 3
    if block > most or not bool(xp.isfinite(X).all()):
        return None
    start = _start(X.shape[1], block)
    W = xp.as_tensor(start, dtype=X.dtype, device=X.device) if _check.is_torch(X) else start.astype(X.dtype)
    Q, B = xp.linalg.qr(X @ W)
    last = Q
    tolerance = 16 * float(xp.finfo(X.dtype).eps)
    while True:
        new, _, coupling = _orthogonal_to(W, transposed(X) @ last)
        y, s, _ = xp.linalg.svd(B)
        residual = ((coupling @ y[-block:, :rank]) ** 2).sum(0).max() ** 0.5
        if bool(residual <= tolerance * s[0]):
            return Q @ y[:, :rank], s[:rank]
        if Q.shape[1] + block > most:
            return None
        last, above, corner = _orthogonal_to(Q, X @ new)
        B = xp.concatenate([xp.concatenate([B, above], -1), xp.concatenate([0 * transposed(above), corner], -1)], -2)
        Q, W = xp.concatenate([Q, last], -1), xp.concatenate([W, new], -1)


def _orthogonal_to(basis: Any, block: Any) -> tuple[Any, Any, Any]:
    """(new, along, R) with block = basis along + new R. Twice, so that columns that all but vanish at the first time
    are orthogonal to the basis as well."""
    xp = library(block)
    along = transposed(basis) @ block
    new, R = xp.linalg.qr(block - basis @ along)
    again = transposed(basis) @ new
    new, R_again = xp.linalg.qr(new - basis @ again)
    return new, along + again @ R, R_again @ R


# --- small matrices ---------------------------------------------------------------------------------------------------


#: Up to this size a matrix per SIMD lane is faster than LAPACK, one after the other.
_SMALL = 64


def _eigh(gram: Any) -> tuple[Any, Any]:
    """Eigenvalues, ascending, and eigenvectors of a batch of symmetric matrices, small or not."""
    values, vectors = library(gram).linalg.eigh(gram)
    return values, vectors


def singular_values(M: Any) -> Any:
    """Descending; NaN for an item that is not finite."""
    if min(M.shape[-2:]) <= _SMALL:
        return small_svdvals(M)
    M, valid = finite_items(M)
    values = _check.torch.linalg.svdvals(M) if _check.is_torch(M) else np.linalg.svd(M, compute_uv=False)
    return values * valid[..., None]


def singular_triplets(M: Any) -> tuple[Any, Any, Any]:
    """values, left, right: M = left diag(values) right^T."""
    M, valid = finite_items(M)
    left, values, right = library(M).linalg.svd(M, full_matrices=False)
    return values * valid[..., None], left * valid[..., None, None], transposed(right) * valid[..., None, None]


def entropy_slope(values: Any) -> Any:
    """-(log x + 1), the derivative of -x log x, of eigenvalues x; 0 for those that are rounding of 0."""
    return -apply_where(values > 0, values, lambda x: library(values).log(x) + 1)


def eigenvalues(gram: Any) -> Any:
    """Of a positive semidefinite matrix, ascending; 0 for what is rounding of 0."""
    gram, valid = finite_items(gram)
    return without_rounding(library(gram).linalg.eigvalsh(gram)) * valid[..., None]


def without_rounding(values: Any) -> Any:
    """Ascending eigenvalues of a positive semidefinite matrix with those that are rounding of 0 set to 0."""
    xp = library(values)
    least = values.shape[-1] * float(xp.finfo(values.dtype).eps) * values[..., -1:]
    return xp.where(values > least, values, 0.0)
