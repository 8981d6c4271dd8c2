"""The subspace of directions in which subspaces differ."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from .. import _check
from .grassmann import LAYOUTS
from .grassmann_means import detached, double, namespace, on_cupy, result, transposed
from .small_matrices import small_svd


def difference_subspace(
    A: Any,
    B: Any,
    middle: Any = None,
    *,
    order: int = 1,
    tol: float | None = None,
    layout: str = "columns",
    return_info: bool = False,
) -> Any:
    r"""The directions in which two subspaces differ, or by which a third one between them leaves their geodesic.

    .. math:: \text{order 1: } \operatorname{span}\left\{\frac{v_i - u_i}{\|v_i - u_i\|} : \theta_i > 0\right\},
        \qquad A^\top B = U \cos\theta\, V^\top,\ u = A U,\ v = B V

    the difference subspace D(A, B): the eigenvectors of P_A + P_B with eigenvalues between 0 and 1. Order 2 is D(M, C),
    C the ``middle`` and M the principal component subspace of A and B, which the u_i + v_i span and which for equal
    dimensions is the midpoint of their geodesic: the central difference A - 2 C + B of subspaces.

    Args:
        A: (\*batch, n, p) with orthonormal columns, which is not checked; float64, float32, float16 or bfloat16, any
            strides. torch, NumPy or CuPy.
        B: (\*batch, n, q), orthonormal columns; the batch that of A.
        middle: (\*batch, n, c), for order 2 only: the subspace that follows A and precedes B.
        order: 1 or 2.
        tol: number >= 0: differences v_i - u_i of at most this norm count as none; None means 16 n^1/2 units of
            rounding.
        layout: "rows" for all as rows.
        return_info: also return the dimension.

    Returns:
        (\*batch, n, r), orthonormal columns, the largest angle first, then columns of zeros where an angle vanishes; r
        is min(p, q), for order 2 min(p, q, c). float64 for float64 A and float32 otherwise. With ``return_info`` a pair
        with an int32 array (\*batch): how many columns are not zero, or -1 for an item that is not finite and
        therefore NaN.

    Raises:
        TypeError, ValueError: wrong arrays, shapes or numbers; ``middle`` without order 2 or missing with it.

    Cost:
        A singular value decomposition of size p x q and one of n x r, both in float64.

    Gradient:
        None: the result is a constant to autograd, as a basis within equal angles is arbitrary.

    Source:
        Order 1: Fukui, Maki 2015, Difference Subspace and Its Generalization for Subspace-Based Methods. Order 2:
        Fukui, Valois, Souza, Kobayashi 2024, Second-order difference subspace, arXiv:2409.08563, of three subspaces.

    >>> import numpy as np, subspan
    >>> A, B = np.eye(3)[:, :2], np.eye(3)[:, [0, 2]]  # a common axis, and a right angle
    >>> print(abs(subspan.difference_subspace(A, B)).round(4).tolist())
    [[0.0, 0.0], [0.7071, 0.0], [0.7071, 0.0]]
    """
    op = "difference_subspace"
    rows = _check.choice(op, "layout", layout, LAYOUTS) == 1
    _check.matrix(op, "A", A)
    others = {"B": B} if middle is None else {"B": B, "middle": middle}
    for name, array in others.items():
        _check.same_kind(op, name, array, "A", A)
        _check.matrix(op, name, array)
        if array.shape[-1 if rows else -2] != A.shape[-1 if rows else -2] or array.shape[:-2] != A.shape[:-2]:
            raise ValueError(
                f"{op}: {name}: expected vectors as long as those of A {tuple(A.shape)} and its batch, "
                f"got shape {tuple(array.shape)}"
            )
    if isinstance(order, (bool, np.bool_)) or _index(op, order) not in (1, 2):
        raise ValueError(f"{op}: order: expected 1 or 2, got {order!r}")
    if (order == 2) != (middle is not None):
        raise ValueError(
            f"{op}: middle: expected {'a third subspace with order 2' if order == 2 else 'None with order 1'}, "
            f"got {'None' if middle is None else tuple(middle.shape)}"
        )
    if tol is not None and _check.number(op, "tol", tol) < 0:
        raise ValueError(f"{op}: tol: expected a number >= 0, got {tol}")
    if return_info is not False:
        _check.flag(op, "return_info", return_info)
    if on_cupy(op, "A", A):
        views = [_check.torch.utils.dlpack.from_dlpack(array) for array in (A, *others.values())]
        both = difference_subspace(*views, order=order, tol=tol, layout=layout, return_info=True)
        import cupy

        both = tuple(cupy.from_dlpack(array) for array in both)
        return both if return_info else both[0]
    columns = [double(detached(transposed(array) if rows else array)) for array in (A, *others.values())]
    xp = namespace(A)
    if tol is None:
        tol = 16 * math.sqrt(columns[0].shape[-2]) * float(xp.finfo(_check.COMPUTE_DTYPE[A.dtype]).eps)
    if xp is np:  # which warns of what is not finite
        with np.errstate(all="ignore"):
            basis, norms = _differences(columns, order)
    else:
        basis, norms = _differences(columns, order)
    kept = norms > tol
    good = xp.isfinite(norms).all(-1)
    basis = xp.where(kept[..., None, :], basis, 0 * xp.ones_like(basis))
    basis = result(xp.where(good[..., None, None], basis, math.nan * xp.ones_like(basis)), A)
    basis = transposed(basis) if rows else basis
    if not return_info:
        return basis
    dimension = kept.sum(-1)
    dimension = xp.where(good, dimension, 0 * dimension - 1)
    return basis, _check.cast(dimension, xp.int32)


def _differences(columns: list[Any], order: int) -> tuple[Any, Any]:
    """Orthonormal directions of the differences of canonical vectors, and their norms."""
    first, second = columns[0], columns[1]
    if order == 2:
        u, v = _canonical(first, second)
        total = u + v  # of norms 2 cos(theta / 2), at least the root of 2
        first, second = total / ((total**2).sum(-2) ** 0.5)[..., None, :], columns[2]
    u, v = _canonical(first, second)
    basis, norms, _ = small_svd(v - u)
    return basis, norms


def _index(op: str, order: Any) -> int:
    try:
        return operator.index(order)
    except TypeError:
        raise ValueError(f"{op}: order: expected 1 or 2, got {order!r}") from None


def _canonical(A: Any, B: Any) -> tuple[Any, Any]:
    """The canonical vectors of both, pair by pair."""
    U, _, Vt = small_svd(transposed(A) @ B)
    return A @ U, B @ transposed(Vt)
