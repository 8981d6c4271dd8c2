"""Orthonormal bases of the span of a frame: by QR, and the nearest one, by the polar factorisation."""

from __future__ import annotations

from typing import Any

from .. import _check, _native, _route

composite: Any = None  # without torch there is nothing to compose
if _check.torch is not None:
    from ..composite import orthonormalize as composite

_METHODS = {"qr": 0, "polar": 1}
_LAYOUTS = {"columns": 0, "rows": 1}

_gradient = _route.register(
    _route.Op(
        name="orthonormalize_gradient",
        inputs=(("Q", 2), ("triangle", 2), ("d_Q", 2), ("d_triangle", 2)),
        schema="bool polar, bool rows",
        outputs=("compute",),
        shapes=lambda Q, *_: (tuple(Q.shape),),
        kernel=_native.cpu.orthonormalize_gradient,
        composite=lambda *args: (composite.orthonormalize_gradient(*args),),
        saves=(),
        public="orthonormalize",
    )
)


def _shapes(A: Any, polar: bool, rows: bool) -> tuple[tuple[int, ...], ...]:
    shape = tuple(A.shape)
    count = shape[-2 if rows else -1]
    return shape, (*shape[:-2], count, count), shape[:-2]


def _backward(g: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any) -> tuple[Any]:
    """By kernel, but in torch operations where the gradient will be differentiated or is one of many."""
    arrays = (*saved, *g)
    if _route.in_torch(*arrays):
        d_A = composite.orthonormalize_gradient(*arrays, *parameters)
    else:
        d_A = _gradient(1, *arrays, *parameters)[0]
    return (d_A.to(tensors[0].dtype),)


_orthonormalize = _route.register(
    _route.Op(
        name="orthonormalize",
        inputs=(("A", 2),),
        schema="bool polar, bool rows",
        outputs=("compute", "compute", "int32"),
        shapes=_shapes,
        kernel=_native.cpu.orthonormalize,
        composite=lambda *args: composite.orthonormalize(*args),
        backward=_backward,
        saves=(),
        graded=2,
    )
)


def orthonormalize(
    A: Any, method: str = "qr", *, return_r: bool = False, layout: str = "columns", return_info: bool = False
) -> Any:
    r"""Orthonormal columns with the span of the columns of A.

    .. math:: A = Q R, \qquad Q^\top Q = I, \qquad R = \begin{cases}
        \text{upper triangular, } R_{ii} \ge 0 & \text{"qr"} \\
        (A^\top A)^{1/2} & \text{"polar"} \end{cases}

    Of A with independent columns both are unique and smooth. "qr" keeps the spans of the first columns; the polar
    factor is the matrix with orthonormal columns that is nearest to A.

    Args:
        A: (\*batch, n, k), k <= n; float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy.
        method: "qr" or "polar".
        return_r: also return R, the symmetric positive semidefinite factor for "polar".
        layout: "rows" for frames as rows, (\*batch, k, n), read without a copy: Q is then (\*batch, k, n) too, and
            A = R^T Q.
        return_info: also return the status of each item.

    Returns:
        Q in the shape of A, float64 for float64 input and float32 otherwise; then R (\*batch, k, k) with ``return_r``;
        then an int32 array (\*batch) with ``return_info``: 0 for independent columns; -1 for an item that is not
        finite, which is NaN; for dependent columns the 1-based index of the first that lies in the span of those
        before it ("qr"), or the number of singular values that are zero to rounding ("polar").

        Q is orthonormal for every A. A column in the span of those before it, to n units of rounding of float64 of its
        norm, has a diagonal entry of exactly 0 in R, and its column of Q is some unit vector orthogonal to the others;
        likewise the polar factor is one of several where A has no full rank.

    Raises:
        TypeError: A is no array of a floating point type, or a flag is not True or False.
        ValueError: more columns than rows, an unknown method or layout.

    Cost:
        2 n k^2 flops and k^3 / 3 for a Cholesky factor of A^T A, as many again where a second pass is needed, in
        float64 for every type; well-conditioned float32 frames of 32, 48, 64 ... columns in float32 with float64 block
        sums. A second pass is needed from condition numbers of about 1e3 on (float32) or 2 on (float64); from 1e6 on
        Householder's reflections take over, item by item. Frames of at most 64 entries and 16 rows are orthonormalised
        column by column, several at once. The polar factor adds the factors of a k x k matrix, by Halley's iteration,
        or by Jacobi's method where R is too ill-conditioned for that. No memory beyond thread-local buffers.

    Gradient:
        Closed form in Q and R, which are saved; the polar one divides by sums of singular values, never by differences.
        Nothing flows through dependent columns ("qr") or through singular values that are zero to rounding ("polar"),
        where no derivative exists. Second derivatives differentiate the closed form.

    Source:
        CholeskyQR: Yamamoto, Nakatsukasa, Yanagisawa, Fukaya 2015. Gradient of QR: Walter and Lehmann 2012. Halley's
        iteration: Nakatsukasa, Bai, Gygi 2010. Replaces ``torch.linalg.qr`` with a sign fix, and U V^T of
        ``torch.linalg.svd``, whose gradient is NaN at orthonormal A.

    >>> import numpy as np, subspan
    >>> Q, R = subspan.orthonormalize(np.array([[0.0, 2.0], [3.0, 5.0]]), return_r=True)
    >>> print(Q.round(12), R.round(12))
    [[0. 1.]
     [1. 0.]] [[3. 5.]
     [0. 2.]]
    """
    op = "orthonormalize"
    _check.matrix(op, "A", A)
    polar = _check.choice(op, "method", method, _METHODS) == 1
    rows = _check.choice(op, "layout", layout, _LAYOUTS) == 1
    n, k = A.shape[-2:][::-1] if rows else A.shape[-2:]
    if k > n:
        raise ValueError(
            f"{op}: A: expected no more {'rows' if rows else 'columns'} than entries of one, got shape {tuple(A.shape)}"
        )
    if return_r is not False:
        _check.flag(op, "return_r", return_r)
    if return_info is not False:
        _check.flag(op, "return_info", return_info)
    wanted = 3 if return_info else 2 if return_r or getattr(A, "requires_grad", False) else 1
    Q, *others = _orthonormalize(wanted, A, polar, rows)
    if not return_r and not return_info:
        return Q
    return (Q, *others) if return_r else (Q, *others[1:])
