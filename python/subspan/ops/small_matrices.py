"""Singular value and eigen-decompositions of many small matrices at once."""

from __future__ import annotations

from typing import Any

from .. import _check, _native, _route

composite: Any = None  # without torch there is nothing to compose
if _check.torch is not None:
    from ..composite import small_matrices as composite


def _rank(M: Any) -> int:
    return int(min(M.shape[-2:]))


def _svd_shapes(M: Any) -> tuple[tuple[int, ...], ...]:
    *batch, rows, columns = M.shape
    rank = _rank(M)
    return (*batch, rank), (*batch, rows, rank), (*batch, rank, columns), tuple(batch)


def _real(M: Any) -> bool:
    return M.dtype in (_check.torch.float32, _check.torch.float64)


def _svd_cuda_serves(M: Any) -> bool:
    if not _real(M):
        return False
    return bool(max(M.shape[-2:]) <= _native.cuda().small_svd_max_length(M.element_size(), _rank(M), M.device.index))


_small_svd = _route.register(
    _route.Op(
        name="small_svd",
        inputs=(("M", 2),),
        schema="",
        outputs=("compute", "compute", "compute", "int32"),
        shapes=_svd_shapes,
        kernel=_native.cpu.small_svd,
        composite=lambda M: composite.small_svd(M),
        backward=lambda g, saved, tensors, parameters, scaled: (_as(composite.svd_gradient(*saved, *g), tensors[0]),),
        saves=(),
        graded=3,
        cuda_kernel=lambda *args: _native.cuda().small_svd(*args),
        cuda_serves=_svd_cuda_serves,
    )
)


def _values_backward(g: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any) -> tuple[Any]:
    """By a decomposition with vectors, which is differentiable where the gradient will be differentiated."""
    values, left, right = _route.outputs_in_backward("small_svd", 3, tensors[0])
    return (_as(composite.svd_gradient(values, left, right, g, None, None), tensors[0]),)


_small_svdvals = _route.register(
    _route.Op(
        name="small_svdvals",
        inputs=(("M", 2),),
        schema="",
        outputs=("compute", "int32"),
        shapes=lambda M: ((*M.shape[:-2], _rank(M)), tuple(M.shape[:-2])),
        kernel=lambda M, values, info, threads: _native.cpu.small_svdvals(M, values, None, None, info, threads),
        composite=lambda M: composite.small_svd(M)[::3],
        gradient=lambda M: (),  # backward needs nothing but the matrix
        backward=_values_backward,
        saves=(),
        cuda_kernel=lambda M, values, info, stream: _native.cuda().small_svd(M, values, None, None, info, stream),
        cuda_serves=_svd_cuda_serves,
    )
)

_small_eigh = _route.register(
    _route.Op(
        name="small_eigh",
        inputs=(("A", 2),),
        schema="",
        outputs=("compute", "compute", "int32"),
        shapes=lambda A: (tuple(A.shape[:-1]), tuple(A.shape), tuple(A.shape[:-2])),
        kernel=_native.cpu.small_eigh,
        composite=lambda A: composite.small_eigh(A),
        backward=lambda g, saved, tensors, parameters, scaled: (_as(composite.eigh_gradient(*saved, *g), tensors[0]),),
        saves=(),
        graded=2,
        cuda_kernel=lambda *args: _native.cuda().small_eigh(*args),
        cuda_serves=lambda A: _real(A) and A.shape[-1] <= 32,
    )
)


def _as(gradient: Any, like: Any) -> Any:
    return None if gradient is None else gradient.to(like.dtype)


def small_svd(M: Any, *, return_info: bool = False) -> Any:
    r"""Singular value decompositions of many small matrices.

    .. math:: M = U \operatorname{diag}(s) V^\top, \qquad U^\top U = V^\top V = I, \quad s_1 \ge s_2 \ge \dots \ge 0

    Made for matrices of up to about 32 rows or columns on the shorter side and batches of hundreds; of a single large
    matrix ``torch.linalg.svd`` makes better use.

    Args:
        M: (\*batch, m, n); float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy.
        return_info: also return the status of each item.

    Returns:
        U (\*batch, m, k), s (\*batch, k) and V^T (\*batch, k, n) with k = min(m, n), as ``torch.linalg.svd(M,
        full_matrices=False)``, float64 for float64 input and float32 otherwise; with ``return_info`` also an int32
        array (\*batch): 0, or 1 where the method stopped before the vectors were orthogonal to rounding, which no
        matrix is known to cause. An item that is not finite is NaN. U and V are orthonormal also where singular values
        are zero.

    Raises:
        TypeError, ValueError: wrong array.

    Cost:
        Some 7 to 10 sweeps of k^2 / 2 rotations of m + n entries each, up to four times as many where singular values
        are of very different sizes. No memory beyond thread-local buffers.

    Gradient:
        In closed form from U, s and V^T, which are saved; finite everywhere. Between equal singular values the terms
        that divide by their difference, and only they, are dropped: exact for functions of U V^T and of the values as a
        set, such as sums over them. Other functions of U and V have no derivative there that the upstream gradients
        know. Nothing flows through directions of zero singular values, which are not determined. Second derivatives
        differentiate that.

    Source:
        Hestenes 1958; de Rijk 1989. Replaces ``torch.linalg.svd(M, full_matrices=False)``, whose gradient is NaN or
        infinite at equal singular values.

    >>> import numpy as np, subspan
    >>> U, s, Vh = subspan.small_svd(np.array([[[0.0, 2.0], [1.0, 0.0]]]))
    >>> print(s, np.abs(U @ (s[..., None] * Vh) - [[0, 2], [1, 0]]).max() < 1e-15)
    [[2. 1.]] True
    """
    op = "small_svd"
    _check.matrix(op, "M", M)
    if return_info is not False:
        _check.flag(op, "return_info", return_info)
    values, left, right, *info = _small_svd(3 + return_info, M)
    return (left, values, right, *info)


def small_svdvals(M: Any, *, return_info: bool = False) -> Any:
    r"""Singular values of many small matrices, in descending order.

    .. math:: s_i = \sqrt{\lambda_i(M^\top M)}

    Args:
        M: (\*batch, m, n); float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy.
        return_info: also return the status of each item.

    Returns:
        (\*batch, min(m, n)), float64 for float64 input and float32 otherwise; with ``return_info`` a pair with an int32
        array (\*batch): 0, or 1 where the method stopped early. An item that is not finite is NaN.

    Raises:
        TypeError, ValueError: wrong array.

    Cost:
        Without vectors, see ``small_svd``. No memory beyond thread-local buffers.

    Gradient:
        ``U diag(g) V^T``, for which backward decomposes M again, with vectors. Bounded; at equal singular values one
        of the subgradients. Second derivatives exist where singular values are distinct; between equal ones their terms
        are dropped.

    Source:
        Replaces ``torch.linalg.svdvals``, ``torch.linalg.norm(M, "nuc")`` and ``torch.linalg.norm(M, 2)``.

    >>> import numpy as np, subspan
    >>> print(subspan.small_svdvals(np.diag([3.0, 4.0])))
    [4. 3.]
    """
    op = "small_svdvals"
    _check.matrix(op, "M", M)
    if return_info is not False:
        _check.flag(op, "return_info", return_info)
    outputs = _small_svdvals(1 + return_info, M)
    return tuple(outputs) if return_info else outputs[0]


def small_eigh(A: Any, *, return_info: bool = False) -> Any:
    r"""Eigen-decompositions of many small symmetric matrices.

    .. math:: A = Q \operatorname{diag}(\lambda) Q^\top, \qquad Q^\top Q = I, \quad \lambda_1 \le \lambda_2 \le \dots

    Args:
        A: (\*batch, n, n), symmetric; only the lower triangle is read. float64, float32, float16 or bfloat16, any
            strides. torch, NumPy or CuPy.
        return_info: also return the status of each item.

    Returns:
        Eigenvalues (\*batch, n), ascending, and eigenvectors (\*batch, n, n) as columns, as ``torch.linalg.eigh``,
        float64 for float64 input and float32 otherwise; with ``return_info`` also an int32 array (\*batch): 0, or 1
        where the method stopped early. An item that is not finite is NaN.

    Raises:
        TypeError: A is no array of a floating point type.
        ValueError: A is not (\*batch, n, n).

    Cost:
        Some 6 to 9 sweeps of n^2 / 2 rotations of 3 n entries each. No memory beyond thread-local buffers.

    Gradient:
        In closed form from values and vectors, which are saved; symmetric and finite everywhere. Terms between two
        equal eigenvalues are dropped: exact for functions of the values as a set, such as sums over them. Other
        functions of vectors have no derivative there that the upstream gradients know.

    Source:
        Jacobi 1846. Replaces ``torch.linalg.eigh``, whose gradient is NaN or infinite at equal eigenvalues.

    >>> import numpy as np, subspan
    >>> values, vectors = subspan.small_eigh(np.array([[2.0, 1.0], [1.0, 2.0]]))
    >>> print(values.round(12), np.abs(vectors).round(4))
    [1. 3.] [[0.7071 0.7071]
     [0.7071 0.7071]]
    """
    op = "small_eigh"
    _check.matrix(op, "A", A)
    if A.shape[-1] != A.shape[-2]:
        raise ValueError(f"{op}: A: expected square matrices (*batch, n, n), got shape {tuple(A.shape)}")
    if return_info is not False:
        _check.flag(op, "return_info", return_info)
    return tuple(_small_eigh(2 + return_info, A))
