"""The logarithm of the Grassmann manifold, and averages of subspaces."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import _check
from .._angle_series import ANGLE_OVER_SINE
from .grassmann import LAYOUTS, broadcast_bases, grassmann_exp
from .small_matrices import small_svd

composite: Any = None  # without torch there is nothing to compose
_torch: Any = _check.torch
if _torch is not None:
    from ..composite import grassmann as composite


def transposed(array: Any) -> Any:
    return array.swapaxes(-1, -2)


def double(array: Any) -> Any:
    if not _check.is_torch(array):
        return array.astype(np.float64)
    return array.to(_torch.float32 if array.device.type == "mps" else _torch.float64)


def result(array: Any, like: Any) -> Any:
    return _check.cast(array, _check.COMPUTE_DTYPE[like.dtype])


def namespace(array: Any) -> Any:
    return _torch if _check.is_torch(array) else np


def _through_torch(function: Any, *arrays: Any) -> Any:
    """The function of the CuPy arrays' memory as torch tensors."""
    import cupy

    views = (_torch.utils.dlpack.from_dlpack(array) if _check.is_cupy(array) else array for array in arrays)
    return cupy.from_dlpack(function(*views))


def on_cupy(op: str, name: str, array: Any) -> bool:
    if _check.is_cupy(array) and _torch is None:
        raise TypeError(f"{op}: {name}: CuPy arrays need torch installed")
    return _check.is_cupy(array)


def grassmann_log(X: Any, Y: Any, *, layout: str = "columns") -> Any:
    r"""The direction in which the geodesic from the span of X reaches the span of Y after unit time.

    .. math:: \log_X(Y) = (Y V - X U C)\, \frac{\theta}{\sin\theta}\, U^\top, \qquad
        X^\top Y = U C V^\top,\ \cos\theta = C

    Args:
        X: (\*batch, n, k) with orthonormal columns, which is not checked; float64, float32, float16 or bfloat16, any
            strides. torch, NumPy or CuPy.
        Y: (\*batch, n, k), orthonormal columns. Broadcasts with X.
        layout: "rows" for both as rows, (\*batch, k, n).

    Returns:
        D with X^T D = 0 and singular values in [0, pi/2], the principal angles, such that ``grassmann_exp(X, D)`` spans
        what Y spans; in the layout and, once the batch is broadcast, the shape of X; float64 for float64 X and float32
        otherwise. Where an angle is pi/2 there are several such D, and one of them is returned.

    Raises:
        TypeError, ValueError: wrong arrays or shapes, an unknown layout.

    Cost:
        3 products of 2 n k^2 flops by the caller's framework, in float64, and one singular value decomposition of a
        k x k matrix.

    Gradient:
        Of any order, through the polar factor of X^T Y and a polynomial: at X = Y and at repeated angles too. It does
        not exist where angles are pi/2 and grows like 1 / (cos theta_i + cos theta_j) towards them; where that is
        infinite the term is left out.

    Source:
        Edelman, Arias, Smith 1998; Absil, Mahony, Sepulchre 2004, which invert X^T Y and fail at pi/2. Replaces
        ``Grassmann.log`` of pymanopt and ``gr_log`` of FlagAveraging.

    >>> import numpy as np, subspan
    >>> X, Y = np.array([[1.0], [0.0]]), np.array([[0.6], [-0.8]])
    >>> print(subspan.grassmann_log(X, Y).round(4).ravel())
    [ 0.     -0.9273]
    """
    op = "grassmann_log"
    rows, (X, Y) = broadcast_bases(op, layout, X, Y=Y)
    if on_cupy(op, "X", X):
        return _through_torch(lambda *pair: composite.grassmann_log(*pair, rows), X, Y)
    if _check.is_torch(X):
        return composite.grassmann_log(X, Y, rows)
    x, y = (double(transposed(array) if rows else array) for array in (X, Y))
    finite = np.asarray(np.isfinite(x).all((-1, -2)) & np.isfinite(y).all((-1, -2)))[..., None, None]
    x, y = np.where(finite, x, 0), np.where(finite, y, 0)
    M = transposed(x) @ y
    U, C, Vt = small_svd(M)
    factor = np.polynomial.chebyshev.chebval(2 * C - 1, ANGLE_OVER_SINE)
    vector = (y - x @ M) @ ((transposed(Vt) * factor[..., None, :]) @ transposed(U))
    vector = result(np.where(finite, vector, np.nan), X)
    return np.ascontiguousarray(transposed(vector)) if rows else vector


# --- means ------------------------------------------------------------------------------------------------------------


def flag_mean(bases: Any, k: int | None = None, weights: Any = None, *, layout: str = "columns") -> Any:
    r"""Nested averages of subspaces: the leading left singular vectors of all weighted bases side by side.

    .. math:: U_k \text{ of } \left[\sqrt{w_1} X_1, \dots, \sqrt{w_m} X_m\right] = U S V^\top

    The first j columns span the subspace of dimension j of which the weighted sum of squared chordal distances to the
    given ones is least.

    Args:
        bases: (\*batch, m, n, p) with orthonormal columns, which is not checked; float64, float32, float16 or bfloat16,
            any strides. torch, NumPy or CuPy. Columns of zeros stand for a subspace of a smaller dimension.
        k: how many vectors, at most min(n, m p); None means p.
        weights: (\*batch, m), >= 0; None means equal ones.
        layout: "rows" for bases and result as rows, (\*batch, m, p, n).

    Returns:
        (\*batch, n, k), orthonormal, most common direction first; float64 for float64 bases and float32 otherwise.
        Directions beyond the rank of all bases together are arbitrary.

    Raises:
        TypeError, ValueError: wrong arrays, shapes or numbers.

    Cost:
        An eigen-decomposition of size min(n, m p), of the smaller Gram matrix, in float64.

    Gradient:
        None: the result is a constant to autograd. The vectors are not differentiable where singular values meet.

    Source:
        Draper, Kirby, Marks, Marrinan, Peterson 2014, A flag representation for finite collections of subspaces of
        mixed dimensions; ``FlagMean`` of SuMMET, ``flag_mean`` of FlagAveraging.

    >>> import numpy as np, subspan
    >>> X = np.stack([np.eye(3)[:, :2], np.eye(3)[:, [0, 2]], np.eye(3)[:, :2]])
    >>> print(abs(subspan.flag_mean(X)).round(6).tolist())
    [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    """
    op = "flag_mean"
    rows, columns, weights = _collection(op, bases, weights, layout)
    m, n, p = columns.shape[-3:]
    count = p if k is None else _check.count(op, "k", k)
    if count > min(n, m * p):
        raise ValueError(f"{op}: k: expected at most min(n, m p) = {min(n, m * p)}, got {count}")
    if on_cupy(op, "bases", bases):
        return _through_torch(
            lambda b, w: flag_mean(b, k, w if weights is not None else None, layout=layout),
            bases,
            bases if weights is None else weights,
        )
    mean = result(_flag_mean(detached(columns), count, detached(weights)), bases)
    return transposed(mean) if rows else mean


def karcher_mean(
    bases: Any,
    weights: Any = None,
    *,
    iterations: int = 50,
    tol: float | None = None,
    layout: str = "columns",
) -> Any:
    r"""The subspace of which the weighted sum of squared geodesic distances to the given ones is least.

    .. math:: X \leftarrow \exp_X\left(\sum_i w_i \log_X(X_i) \Big/ \sum_i w_i\right)

    Starts at the flag mean and repeats until the mean of the logarithms has a norm of at most ``tol``. The minimum is
    unique if all subspaces lie within a geodesic distance of pi/4 of one; otherwise a stationary point is found.

    Args:
        bases: (\*batch, m, n, k) with orthonormal columns, which is not checked; float64, float32, float16 or bfloat16,
            any strides. torch, NumPy or CuPy.
        weights: (\*batch, m), >= 0; None means equal ones.
        iterations: at most so many; always so many where values cannot be read, on CUDA and under torch.compile and
            vmap, of which those after convergence change nothing.
        tol: number >= 0; None means 20 units of rounding times the root of k.
        layout: "rows" for bases and result as rows, (\*batch, m, k, n).

    Returns:
        (\*batch, n, k), orthonormal; float64 for float64 bases and float32 otherwise.

    Raises:
        TypeError, ValueError: wrong arrays, shapes or numbers.

    Cost:
        m logarithms and one exponential map per iteration. The error falls by a factor of about the square of the
        largest angle to the mean at each.

    Gradient:
        Through the iterations, as they compose; the start is a constant. The memory is that of all iterations.

    Source:
        Karcher 1977; Absil, Mahony, Sepulchre 2004, section 6. Missing from pymanopt (issue 63); ``KarcherMean`` of
        SuMMET.

    >>> import numpy as np, subspan
    >>> angles = np.array([0.1, 0.2, 0.6])
    >>> lines = np.stack([np.cos(angles), np.sin(angles)], -1)[..., None]
    >>> print(np.arctan(np.divide(*subspan.karcher_mean(lines)[::-1])).round(6))
    [0.3]
    """
    op = "karcher_mean"
    rows, columns, weights = _collection(op, bases, weights, layout)
    m, n, k = columns.shape[-3:]
    if k > n or m == 0:
        raise ValueError(f"{op}: bases: expected m >= 1 bases with k <= n, got shape {tuple(bases.shape)}")
    iterations = _check.count(op, "iterations", iterations)
    if tol is not None and _check.number(op, "tol", tol) < 0:
        raise ValueError(f"{op}: tol: expected a number >= 0, got {tol}")
    if on_cupy(op, "bases", bases):
        return _through_torch(
            lambda b, w: karcher_mean(
                b, w if weights is not None else None, iterations=iterations, tol=tol, layout=layout
            ),
            bases,
            bases if weights is None else weights,
        )
    xp = namespace(bases)
    points = result(columns, bases)
    tol = 20 * float(xp.finfo(points.dtype).eps) * math.sqrt(k) if tol is None else tol
    mean = result(_flag_mean(detached(columns), k, detached(weights)), bases)
    share = double(weights) if weights is not None else xp.ones_like(double(columns[..., 0, 0]))
    share = result(share / share.sum(-1)[..., None], bases)[..., None, None]
    for _ in range(iterations):
        step = (grassmann_log(mean[..., None, :, :], points) * share).sum(-3)
        moving = (detached(step) ** 2).sum((-1, -2)) > tol**2
        mean = grassmann_exp(mean, xp.where(moving[..., None, None], step, 0 * step), project=True)
        if _check.readable(moving) and not moving.any():
            break
    return transposed(mean) if rows else mean


def _collection(op: str, bases: Any, weights: Any, layout: str) -> tuple[bool, Any, Any]:
    """Whether vectors are rows, the bases as columns, and the checked weights in the batch shape of the bases."""
    rows = _check.choice(op, "layout", layout, LAYOUTS) == 1
    _check.matrix(op, "bases", bases)
    if bases.ndim < 3:
        expected = "(*batch, m, p, n)" if rows else "(*batch, m, n, p)"
        raise ValueError(f"{op}: bases: expected {expected}, got shape {tuple(bases.shape)}")
    if weights is not None:
        _check.same_kind(op, "weights", weights, "bases", bases)
        _check.floating(op, "weights", weights)
        if weights.ndim < 1 or weights.shape[-1] != bases.shape[-3]:
            raise ValueError(
                f"{op}: weights: expected one weight per basis of {tuple(bases.shape)}, got {tuple(weights.shape)}"
            )
        batch = _check.broadcast_batch(op, "weights", weights, 1, "bases", bases, 3)
        if tuple(batch) != tuple(bases.shape[:-3]):
            raise ValueError(
                f"{op}: weights: expected the batch of bases {tuple(bases.shape)}, got {tuple(weights.shape)}"
            )
        _check.nonnegative(op, "weights", weights)
        weights = _check.expand(weights, tuple(bases.shape[:-2]))
    return rows, transposed(bases) if rows else bases, weights


def detached(array: Any) -> Any:
    return array.detach() if _check.is_torch(array) else array


def _flag_mean(columns: Any, k: int, weights: Any) -> Any:
    """In float64."""
    xp = namespace(columns)
    bases = double(columns)
    if weights is not None:
        bases = bases * (double(weights) ** 0.5)[..., None, None]
    m, n, p = bases.shape[-3:]
    side = bases.swapaxes(-3, -2).reshape(*bases.shape[:-3], n, m * p)
    good = xp.isfinite(side).all(-1).all(-1)[..., None, None]
    side = xp.where(good, side, 0 * xp.ones_like(side))
    if n <= m * p:
        vectors = xp.linalg.eigh(side @ transposed(side))[1]
    else:
        vectors = side @ xp.linalg.eigh(transposed(side) @ side)[1]
    # Largest first. Images of the eigenvectors of the smaller Gram matrix are orthogonal, in their order; where the
    # rank is less than k, orthogonalisation completes them.
    leading = xp.flip(vectors[..., vectors.shape[-1] - k :], (-1,))
    Q = xp.linalg.qr(leading)[0] if n > m * p else leading
    return xp.where(good, Q, math.nan * xp.ones_like(Q))
