"""Singular values and eigenvalues in float64 NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def _by_item(matrices: Array, function: Callable[[Array], Any]) -> Array:
    """Results of the finite items; of the others, which LAPACK need not survive, NaN."""
    finite = np.asarray(np.isfinite(matrices).all((-1, -2)))
    values: Array = function(np.where(finite[..., None, None], matrices, 0.0))
    return np.where(finite[..., None], values, np.nan)


def small_svdvals(M: ArrayLike) -> Array:
    """Descending."""
    return _by_item(np.asarray(M, np.float64), lambda matrices: np.linalg.svd(matrices, compute_uv=False))


def small_eigvals(A: ArrayLike) -> Array:
    """Ascending, of the matrices whose lower triangles are given."""
    return _by_item(np.tril(np.asarray(A, np.float64)), np.linalg.eigvalsh)
