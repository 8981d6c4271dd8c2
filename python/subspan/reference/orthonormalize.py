"""QR and polar factors in float64 NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def qr(A: Array) -> tuple[Array, Array]:
    """With a diagonal of R that is not negative."""
    Q, R = np.linalg.qr(A)
    signs = np.where(np.diagonal(R, axis1=-2, axis2=-1) < 0, -1.0, 1.0)
    return Q * signs[..., None, :], R * signs[..., :, None]


def polar(A: Array) -> tuple[Array, Array]:
    """U V^T and V diag(s) V^T of A = U diag(s) V^T."""
    U, s, Vt = np.linalg.svd(A, full_matrices=False)
    return U @ Vt, np.swapaxes(Vt, -1, -2) * s[..., None, :] @ Vt


def orthonormalize(
    A: ArrayLike, method: str = "qr", *, return_r: bool = False, layout: str = "columns", return_info: bool = False
) -> Array | tuple[Array, ...]:
    frame = np.asarray(A, np.float64)
    frame = np.swapaxes(frame, -1, -2) if layout == "rows" else frame
    finite = np.asarray(np.isfinite(frame).all((-1, -2)))
    Q, R = (qr if method == "qr" else polar)(np.where(finite[..., None, None], frame, 0.0))
    Q, R = (np.where(finite[..., None, None], factor, np.nan) for factor in (Q, R))
    Q = np.swapaxes(Q, -1, -2) if layout == "rows" else Q
    outputs = (Q, *([R] if return_r else []), *([np.where(finite, 0, -1)] if return_info else []))
    return outputs if len(outputs) > 1 else Q
