"""Nested subspaces: overlaps of all leading dimensions, and the distance between flags."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _check
from .angles import subspace_distance


def _orthonormal_pair(op: str, names: tuple[str, str], A: Any, B: Any) -> tuple[Any, Any]:
    """Two bases of the same type with vectors of one length."""
    for name, basis in zip(names, (A, B), strict=True):
        _check.matrix(op, name, basis)
    _check.same_kind(op, names[1], B, names[0], A)
    if A.shape[-2] != B.shape[-2]:
        raise ValueError(
            f"{op}: {names[1]}: expected vectors of {A.shape[-2]} entries as in {names[0]}, got shapes "
            f"{tuple(A.shape)} and {tuple(B.shape)}"
        )
    _check.broadcast_batch(op, names[0], A, 2, names[1], B, 2)
    common = _check.promoted(A.dtype, B.dtype)
    return _check.cast(A, common), _check.cast(B, common)


def nested_overlap(Qa: Any, Qb: Any, *, mean: bool = False) -> Any:
    r"""Overlap of every leading subspace of one basis with every leading subspace of another.

    .. math:: O_{ij} = \|Q_a[:, :i]^\top Q_b[:, :j]\|_F^2 = \sum_k \cos^2\theta_k, \qquad i = 1 \dots p,\ j = 1 \dots q

    How many dimensions the first i directions of one share with the first j of the other, for all i and j at once:
    prefix sums of the squares of one product.

    Args:
        Qa: (\*batch, n, p), orthonormal columns in order of importance; float64, float32, float16 or bfloat16, any
            strides. torch, NumPy or CuPy.
        Qb: (\*batch, n, q), likewise; batch dimensions broadcast.
        mean: divide by min(i, j), which gives the mean squared cosine.

    Returns:
        (\*batch, p, q), float64 for float64 input and float32 otherwise; entry [i - 1, j - 1] is that of the first i
        and the first j. NaN in an item stays in it.

    Raises:
        TypeError, ValueError: wrong arrays; vectors of different lengths; ``mean`` not True or False.

    Cost:
        2 n p q flops in float64, and p q numbers.

    Gradient:
        That of the formula, a polynomial, by the framework; derivatives of any order.

    Source:
        Replaces the overlaps of safety-subspaces, which decompose both matrices again for every number of directions.

    >>> import numpy as np, subspan
    >>> print(subspan.nested_overlap(np.eye(3)[:, :2], np.eye(3)[:, [1, 0]]))
    [[0. 1.]
     [1. 2.]]
    """
    op = "nested_overlap"
    Qa, Qb = _orthonormal_pair(op, ("Qa", "Qb"), Qa, Qb)
    if mean is not False:
        _check.flag(op, "mean", mean)
    if _check.is_torch(Qa):
        from ..composite.flags import nested_overlap as torch_overlap

        return torch_overlap(Qa, Qb, mean)
    if _check.is_cupy(Qa):
        import cupy

        from_dlpack = _check.torch.utils.dlpack.from_dlpack
        return cupy.from_dlpack(nested_overlap(from_dlpack(Qa), from_dlpack(Qb), mean=mean))
    dtype = _check.COMPUTE_DTYPE[Qa.dtype]
    squares = (Qa.astype(np.float64).swapaxes(-1, -2) @ Qb.astype(np.float64)) ** 2
    overlap = squares.cumsum(-2).cumsum(-1)
    if mean:
        overlap /= np.minimum(np.arange(1, overlap.shape[-2] + 1)[:, None], np.arange(1, overlap.shape[-1] + 1))
    return overlap.astype(dtype)


def _dimensions(op: str, signature: Any, most: int) -> list[int]:
    """Increasing dimensions of nested subspaces."""
    if isinstance(signature, (str, bytes)) or not isinstance(signature, Sequence):
        raise TypeError(f"{op}: signature: expected a sequence of integers, got {type(signature).__name__}")
    try:
        dimensions = [operator.index(d) for d in signature]
    except TypeError:
        raise TypeError(f"{op}: signature: expected integers, got {signature!r}") from None
    increasing = all(a < b for a, b in zip([0, *dimensions], dimensions, strict=False))
    if not dimensions or not increasing or dimensions[-1] > most:
        raise ValueError(
            f"{op}: signature: expected increasing dimensions from 1 to {most}, the number of vectors, "
            f"got {signature!r}"
        )
    return dimensions


def flag_distance(A: Any, B: Any, signature: Sequence[int], *, squared: bool = False) -> Any:
    r"""Chordal distance between two flags, nested subspaces spanned by the leading columns of two bases.

    .. math:: d^2 = \sum_i \left(m_i - \|A_i^\top B_i\|_F^2\right) = \sum_i \sum_k \sin^2\theta_{ik}

    A_i and B_i are the m_i columns by which the i-th subspace grows, theta_ik the principal angles between their spans.

    Args:
        A: (\*batch, n, k), orthonormal columns; float64, float32, float16 or bfloat16, any strides. torch, NumPy or
            CuPy.
        B: (\*batch, n, l), likewise; batch dimensions broadcast.
        signature: dimensions of the nested subspaces, increasing, for example (1, 3): a line in a three-dimensional
            space, spanned by the first column and by the first three. The last is at most min(k, l); columns beyond it
            play no part.
        squared: the square of the distance, which is smooth where the distance is 0.

    Returns:
        (\*batch), float64 for float64 input and float32 otherwise. Exact to rounding also for small distances, since it
        is made of sines, not of differences from m_i. An item that is not finite is NaN.

    Raises:
        TypeError, ValueError: wrong arrays; vectors of different lengths; a signature that does not increase or does
            not fit.

    Cost:
        As ``subspace_distance`` of the columns of every step.

    Gradient:
        That of ``subspace_distance(..., squared=True, assume_orthonormal=True)`` for the columns of every step; at
        distance 0 the distance, which has none, gets 0.

    Source:
        Ye, Wong and Lim 2022; Mankovich et al. 2022. Replaces ``chordal_distance`` of FlagAveraging, which clamps what
        rounding makes negative.

    >>> import numpy as np, subspan
    >>> print(subspan.flag_distance(np.eye(3)[:, :2], np.eye(3)[:, [1, 0]], (1, 2), squared=True))
    2.0
    """
    op = "flag_distance"
    A, B = _orthonormal_pair(op, ("A", "B"), A, B)
    dimensions = _dimensions(op, signature, min(A.shape[-1], B.shape[-1]))
    if squared is not False:
        _check.flag(op, "squared", squared)
    total: Any = 0
    for start, stop in zip([0, *dimensions], dimensions, strict=False):
        a, b = A[..., start:stop], B[..., start:stop]
        total = total + subspace_distance(a, b, "chordal", squared=True, assume_orthonormal=True)
    if squared:
        return total
    if _check.is_torch(total):
        from ..composite.flags import root

        return root(total)
    return total**0.5
