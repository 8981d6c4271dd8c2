"""Maps of the Stiefel manifold, whose points are frames: matrices with orthonormal columns."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _check, _native, _route, _stiefel
from .grassmann import broadcast_bases
from .grassmann_means import double, on_cupy, result, transposed
from .orthonormalize import orthonormalize
from .skew import cayley

composite: Any = None  # without torch there is nothing to compose
_torch: Any = _check.torch
if _torch is not None:
    from ..composite import stiefel as composite

_METHODS = {"qr": 0, "polar": 1, "cayley": 2, "exp": 3}
_INVERSES = {"qr": _stiefel.inverse_qr, "polar": _stiefel.inverse_polar, "cayley": _stiefel.inverse_cayley}
_METRICS = {"euclidean": 0, "canonical": 1}

_retract_gradient = _route.register(
    _route.Op(
        name="stiefel_retract_gradient",
        inputs=(("X", 2), ("V", 2), ("grad", 2)),
        schema="int method, bool rows",
        outputs=("compute", "compute"),
        shapes=lambda X, *_: (tuple(X.shape), tuple(X.shape)),
        kernel=_native.cpu.stiefel_retract_gradient,
        composite=lambda X, V, grad, *args: composite.retract_gradient(grad, X, V, *args),
        saves=(),
        public="retract",
    )
)


def _backward(g: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any) -> Any:
    if _route.in_torch(g):
        return composite.retract_gradient(g, *tensors, *parameters)
    return tuple(d.to(x.dtype) for d, x in zip(_retract_gradient(2, *tensors, g, *parameters), tensors, strict=True))


_stiefel_retract = _route.register(
    _route.Op(
        name="stiefel_retract",
        inputs=(("X", 2), ("V", 2)),
        schema="int method, bool rows",
        outputs=("compute",),
        shapes=lambda X, *_: (tuple(X.shape),),
        kernel=_native.cpu.stiefel_retract,
        composite=lambda *args: composite.retract(*args),
        gradient=lambda *args: (),
        backward=_backward,
        saves=(),
        public="retract",
    )
)


def _apply(op: str, function: Any, rows: bool, *arrays: Any) -> Any:
    """A function of frames as columns, in float64, on arrays of any library."""
    first = arrays[0]
    if on_cupy(op, "X", first):
        import cupy

        views = [_torch.utils.dlpack.from_dlpack(array) for array in arrays]
        return cupy.from_dlpack(composite.through_double(views[0], function, tuple(views[1:]), rows))
    if _check.is_torch(first):
        return composite.through_double(first, function, arrays[1:], rows)
    frames = [double(transposed(array) if rows else array) for array in arrays]
    finite = np.asarray(np.all([np.isfinite(frame).all((-1, -2)) for frame in frames], axis=0))[..., None, None]
    with np.errstate(all="ignore"):  # of items that have no result
        value = function(*(np.where(finite, frame, 0) for frame in frames))
    value = result(np.where(finite, value, np.nan), first)
    return np.ascontiguousarray(transposed(value)) if rows else value


def _rotated_whole(X: Any, V: Any) -> Any:
    """The Cayley retraction by the n x n matrix W = P X^T - X P^T, where that is no larger than 2 k x 2 k."""
    P = V - X @ (transposed(X) @ V) / 2
    return cayley(2 * P @ transposed(X)) @ X


#: Smaller ranks are always handled by 2 k x 2 k matrices, in the kernel.
_LARGE_RANK = 16


def retract(X: Any, V: Any, method: str = "qr", *, layout: str = "columns", return_info: bool = False) -> Any:
    r"""Moves a frame in the direction of a tangent vector and keeps its columns orthonormal.

    .. math:: R_X(V) = \begin{cases}
        \operatorname{qf}(X + V) & \text{"qr": } Q \text{ of } QR,\ R_{ii} > 0 \\
        (X + V)\left((X + V)^\top (X + V)\right)^{-1/2} & \text{"polar"} \\
        (I - \tfrac12 W)^{-1} (I + \tfrac12 W)\, X & \text{"cayley"} \\
        \exp(W)\, X & \text{"exp", the geodesic of the canonical metric}
        \end{cases}

    with W = P X^T - X P^T and P = V - X X^T V / 2. All agree with X + V to first order; "polar" to second order with
    the geodesic of the Euclidean metric, "cayley" with that of the canonical metric.

    Args:
        X: (\*batch, n, k) with orthonormal columns, which is not checked; float64, float32, float16 or bfloat16, any
            strides. torch, NumPy or CuPy.
        V: (\*batch, n, k), a tangent vector at X: X^T V is skew. Broadcasts with X. Of any other V, "qr" and "polar"
            take X + V as it is; for "cayley" and "exp" its tangent part counts.
        method: "qr", "polar", "cayley" or "exp".
        layout: "rows" for frames and vectors as rows, (\*batch, k, n), read in place.
        return_info: also return the status of each item.

    Returns:
        A frame in the layout and, once the batch is broadcast, the shape of X; float64 for float64 X and float32
        otherwise. An item that is not finite is NaN. Over many steps "qr" and "polar" stay orthonormal to rounding;
        errors of "cayley" and "exp" add up with the square root of the number of steps.

        With ``return_info`` also an int32 array (\*batch): 0; -1 for an item that is not finite; with "qr" and "polar"
        of an X + V without full rank, what :func:`orthonormalize` says of it.

    Raises:
        TypeError, ValueError: wrong arrays or shapes, an unknown method or layout.

    Cost:
        Of "cayley" and "exp" 8 n k^2 flops, summed in float64, and the solution with, or the exponential of, one matrix
        of order 2 k: never one of order n, but for "cayley" with 2 k >= n and k > 16. X and V are read twice, the
        second time from cache. The gradient takes 22 n k^2 flops and an exponential of order 4 k. "qr" and "polar" cost
        one orthonormal factor of X + V. Without the kernel (on CUDA, and in second derivatives) vectors of norms above
        512 give NaN for "exp" under torch.compile and vmap.

    Gradient:
        Closed form, smooth everywhere: at V = 0, for V of any rank. X and V are saved. With "qr" and "polar" where
        X + V has full rank.

    Source:
        Wen, Yin 2013, A feasible method for optimization with orthogonality constraints (Cayley); Edelman, Arias, Smith
        1998 (the geodesic); Absil, Mahony, Sepulchre 2008, example 4.1.3 (QR and polar). Replaces ``retr`` and
        ``expmap`` of geoopt's ``CanonicalStiefel`` and ``EuclideanStiefel``, the former of which solves with n x n
        matrices, and ``Stiefel.retraction`` of pymanopt.

    >>> import numpy as np, subspan
    >>> X, V = np.array([[1.0], [0.0]]), np.array([[0.0], [np.pi / 2]])
    >>> print(subspan.retract(X, V, "exp").round(12).ravel(), subspan.retract(X, V, "qr").round(4).ravel())
    [0. 1.] [0.537  0.8436]
    """
    op = "retract"
    rows, (X, V) = broadcast_bases(op, layout, X, V=V)
    kind = _check.choice(op, "method", method, _METHODS)
    _check.flag(op, "return_info", return_info)
    if kind < 2:
        Y, info = _moved(op, X, V, method, rows)
        return (Y, info) if return_info else Y
    n, k = X.shape[-2:] if not rows else X.shape[:-3:-1]
    if method == "cayley" and k > _LARGE_RANK and 2 * k >= n:
        Y = _apply(op, _rotated_whole, rows, X, V)
    else:
        Y = _stiefel_retract(1, X, V, kind - 2, rows)[0]
    return (Y, _status(Y)) if return_info else Y


def _status(Y: Any) -> Any:
    """0, or -1 where an item is not finite."""
    constant = Y.detach() if _check.is_torch(Y) else Y
    with np.errstate(invalid="ignore"):
        finite = (constant * 0).sum((-2, -1)) == 0
    return (finite.int() if _check.is_torch(Y) else finite.astype("int32")) - 1


def _moved(op: str, X: Any, V: Any, method: str, rows: bool) -> tuple[Any, Any]:
    """The orthonormal factor of X + V, and its status."""
    compute = _check.promoted(_check.COMPUTE_DTYPE[X.dtype], _check.COMPUTE_DTYPE[V.dtype])
    n, k = X.shape[-2:] if not rows else X.shape[:-3:-1]
    if k > n:
        raise ValueError(f"{op}: X: expected frames, of no more vectors than dimensions, got shape {tuple(X.shape)}")
    total = _check.cast(X, compute) + _check.cast(V, compute)
    Q, info = orthonormalize(total, method, layout="rows" if rows else "columns", return_info=True)
    return result(Q, X), info


def inverse_retract(X: Any, Y: Any, method: str = "qr", *, layout: str = "columns") -> Any:
    r"""The tangent vector that :func:`retract` takes from one frame to another.

    .. math:: R_X(V) = Y, \qquad X^\top V + V^\top X = 0

    Args:
        X: (\*batch, n, k) with orthonormal columns, which is not checked; float64, float32, float16 or bfloat16, any
            strides. torch, NumPy or CuPy.
        Y: (\*batch, n, k), orthonormal columns. Broadcasts with X.
        method: "qr", "polar" or "cayley".
        layout: "rows" for all as rows, (\*batch, k, n).

    Returns:
        V in the layout and, once the batch is broadcast, the shape of X; float64 for float64 X and float32 otherwise.

    Raises:
        TypeError, ValueError: wrong arrays or shapes, an unknown method or layout.

    Cost:
        4 n k^2 flops in float64, and an inverse of order k ("cayley"), 16 of them ("polar") or one of every order up to
        k ("qr").

    Gradient:
        Of any order by the caller's framework. V exists near X: with M = X^T Y, where I + M is invertible ("cayley"),
        where no eigenvalue of M has a real part of 0 or less ("polar"), and where the leading blocks of M are
        invertible and the diagonal of the triangular factor comes out positive ("qr"). Elsewhere the result is not a
        number, or is no such V.

    Source:
        Kaneko, Fiori, Tanaka 2013, Empirical arithmetic averaging over the compact Stiefel manifold. Replaces
        ``inverse_retract`` of Manifolds.jl.

    >>> import numpy as np, subspan
    >>> X, V = np.array([[1.0], [0.0]]), np.array([[0.0], [0.5]])
    >>> print(subspan.inverse_retract(X, subspan.retract(X, V, "cayley"), "cayley").round(12).ravel())
    [0.  0.5]
    """
    op = "inverse_retract"
    rows, (X, Y) = broadcast_bases(op, layout, X, Y=Y)
    _check.choice(op, "method", method, dict.fromkeys(_INVERSES, 0))
    return _apply(op, _INVERSES[method], rows, X, Y)


def project_tangent(X: Any, V: Any, *, layout: str = "columns") -> Any:
    r"""The part of a matrix that is tangent to the Stiefel manifold at X.

    .. math:: V - X \operatorname{sym}(X^\top V)

    It is the nearest tangent vector in the Euclidean metric, and itself for a tangent vector.

    Args:
        X: (\*batch, n, k) with orthonormal columns, which is not checked; float64, float32, float16 or bfloat16, any
            strides. torch, NumPy or CuPy.
        V: (\*batch, n, k), any matrix. Broadcasts with X.
        layout: "rows" for both as rows, (\*batch, k, n).

    Returns:
        The tangent vector in the layout and, once the batch is broadcast, the shape of X; float64 for float64 X and
        float32 otherwise.

    Raises:
        TypeError, ValueError: wrong arrays or shapes, an unknown layout.

    Cost:
        4 n k^2 flops by the caller's framework, in float64.

    Gradient:
        Of any order by the caller's framework.

    Source:
        Edelman, Arias, Smith 1998, eq. 2.4. Replaces ``proju`` of geoopt's ``CanonicalStiefel``, which changes tangent
        vectors, and ``Stiefel.projection`` of pymanopt.

    >>> import numpy as np, subspan
    >>> print(subspan.project_tangent(np.array([[1.0], [0.0]]), np.array([[3.0], [4.0]])).ravel())
    [0. 4.]
    """
    op = "project_tangent"
    rows, (X, V) = broadcast_bases(op, layout, X, V=V)
    return _apply(op, _stiefel.project_tangent, rows, X, V)


def egrad_to_rgrad(X: Any, G: Any, metric: str = "euclidean", *, layout: str = "columns") -> Any:
    r"""The Riemannian gradient of a function on the Stiefel manifold from its Euclidean gradient.

    .. math:: \begin{cases} G - X \operatorname{sym}(X^\top G) & \text{"euclidean"} \\
        G - X G^\top X & \text{"canonical"} \end{cases}

    Args:
        X: (\*batch, n, k) with orthonormal columns, which is not checked; float64, float32, float16 or bfloat16, any
            strides. torch, NumPy or CuPy.
        G: (\*batch, n, k), the gradient with regard to the entries of X, as ``X.grad`` has it. Broadcasts with X.
        metric: in which the tangent vector represents the derivative: "euclidean", tr(V^T W), or "canonical",
            tr(V^T (I - X X^T / 2) W).
        layout: "rows" for both as rows, (\*batch, k, n).

    Returns:
        The tangent vector in the layout and, once the batch is broadcast, the shape of X; float64 for float64 X and
        float32 otherwise.

    Raises:
        TypeError, ValueError: wrong arrays or shapes, an unknown metric or layout.

    Cost:
        4 n k^2 flops by the caller's framework, in float64.

    Gradient:
        Of any order by the caller's framework.

    Source:
        Edelman, Arias, Smith 1998, eq. 2.53. Replaces ``egrad2rgrad`` of geoopt and
        ``Stiefel.euclidean_to_riemannian_gradient`` of pymanopt.

    >>> import numpy as np, subspan
    >>> print(subspan.egrad_to_rgrad(np.array([[1.0], [0.0]]), np.array([[3.0], [4.0]]), "canonical").ravel())
    [0. 4.]
    """
    op = "egrad_to_rgrad"
    rows, (X, G) = broadcast_bases(op, layout, X, G=G)
    canonical = _check.choice(op, "metric", metric, _METRICS)
    return _apply(op, _stiefel.canonical_gradient if canonical else _stiefel.project_tangent, rows, X, G)


def _carried_by_cayley(X: Any, V: Any, W: Any) -> Any:
    return _stiefel.cayley_rotation(*_stiefel.generator(X, V), W)


def _carried_by_exp(X: Any, V: Any, W: Any) -> Any:
    return _stiefel.exp_rotation(*_stiefel.generator(X, V), W)


def transport(X: Any, V: Any, W: Any, method: str = "qr", *, layout: str = "columns") -> Any:
    r"""Carries a tangent vector along with :func:`retract`: from X to R_X(V).

    .. math:: \begin{cases}
        W - Y \operatorname{sym}(Y^\top W),\ Y = R_X(V) & \text{"qr", "polar"} \\
        (I - \tfrac12 N)^{-1} (I + \tfrac12 N)\, W & \text{"cayley"} \\
        \exp(N)\, W & \text{"exp"} \end{cases}

    with the skew N = P X^T - X P^T, P = V - X X^T V / 2, that moves X in "cayley" and "exp". These two are rotations:
    inner products of tangent vectors are kept, in both metrics. "exp" is no parallel transport unless X is square.

    Args:
        X: (\*batch, n, k) with orthonormal columns, which is not checked; float64, float32, float16 or bfloat16, any
            strides. torch, NumPy or CuPy.
        V: (\*batch, n, k), the direction, a tangent vector at X.
        W: (\*batch, n, k), a tangent vector at X. The three broadcast.
        method: of the retraction: "qr", "polar", "cayley" or "exp".
        layout: "rows" for all as rows, (\*batch, k, n).

    Returns:
        The tangent vector at ``retract(X, V, method)``, in the layout and, once the batch is broadcast, the shape of X;
        float64 for float64 X and float32 otherwise.

    Raises:
        TypeError, ValueError: wrong arrays or shapes, an unknown method or layout.

    Cost:
        4 n k^2 flops after a retraction ("qr", "polar"), else 18 n k^2 and the inverse of a matrix of order 2 k or the
        exponential of one of order 4 k; by the caller's framework, in float64.

    Gradient:
        Of any order by the caller's framework.

    Source:
        Zhu 2017, A Riemannian conjugate gradient method for optimization on the Stiefel manifold (Cayley). Replaces
        ``transp`` of geoopt's manifolds, which project.

    >>> import numpy as np, subspan
    >>> X, V = np.array([[1.0], [0.0]]), np.array([[0.0], [np.pi / 2]])
    >>> print(subspan.transport(X, V, V, "exp").round(4).ravel())
    [-1.5708  0.    ]
    """
    op = "transport"
    rows, (X, V, W) = broadcast_bases(op, layout, X, V=V, W=W)
    kind = _check.choice(op, "method", method, _METHODS)
    if kind < 2:
        Y, _ = _moved(op, X, V, method, rows)
        return result(_apply(op, _stiefel.project_tangent, rows, Y, W), X)
    return _apply(op, _carried_by_cayley if method == "cayley" else _carried_by_exp, rows, X, V, W)
