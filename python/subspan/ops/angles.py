"""Principal angles between subspaces, distances and similarities made of them."""

from __future__ import annotations

from typing import Any

from .. import _check, _native, _route
from .._angle_functions import ANGLES, COSINES, METRICS, SIMILARITIES

composite: Any = None  # without torch there is nothing to compose
if _check.torch is not None:
    from ..composite import angles as composite

_SCHEMA = "int function, bool squared, bool padded, bool orthonormal, float rank_tol"
_PAIRWISE_SCHEMA = "int function, bool squared, bool padded"
_LAYOUTS = {"columns": 0, "rows": 1}
_ORDERS = {"ascending": 0, "descending": 1}
_UNEQUAL = {"nearest": 0, "padded": 1, "raise": 2}


def _value_shapes(A: Any, B: Any, function: int, *_: Any) -> tuple[tuple[int, ...], ...]:
    *batch, rows, p = A.shape
    count = min(p, B.shape[-1])
    value = (*batch, count) if function in (ANGLES, COSINES) else tuple(batch)
    return value, tuple(batch), (*batch, rows, count), (*batch, rows, count)


_gradient = _route.register(
    _route.Op(
        name="subspace_angles_gradient",
        inputs=(("A", 2), ("B", 2), ("value", 0), ("upstream", 0)),
        schema=_SCHEMA,
        outputs=("compute", "compute"),
        shapes=lambda A, B, *_: (tuple(A.shape), tuple(B.shape)),
        kernel=lambda A, B, value, *rest: _native.cpu.subspace_angles_gradient(A, B, *rest),
        composite=lambda *args: composite.subspace_angles_gradient(*args),
        saves=(),
        public="subspace_distance",
    )
)


def _backward(g: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any) -> tuple[Any, Any]:
    """By kernel, but in torch operations where the gradient will be differentiated."""
    (A, B), (value,) = tensors, saved
    from .._route_torch import is_batched

    if _check.torch.is_grad_enabled() or is_batched(g):
        d_A, d_B = composite.subspace_angles_gradient(A, B, value, g, *parameters)
    else:
        d_A, d_B = _gradient(2, A, B, value, g, *parameters)
    return d_A.to(A.dtype), d_B.to(B.dtype)


_subspace_angles = _route.register(
    _route.Op(
        name="subspace_angles",
        inputs=(("A", 2), ("B", 2)),
        schema=_SCHEMA,
        outputs=("compute", "int32", "compute", "compute"),
        shapes=_value_shapes,
        kernel=_native.cpu.subspace_angles,
        composite=lambda *args: composite.subspace_angles(*args),
        backward=_backward,
        saves=(),
        public="principal_angles",
    )
)


_orthonormal_basis = _route.register(
    _route.Op(
        name="orthonormal_basis",
        inputs=(("A", 2),),
        schema="float rank_tol",
        outputs=("compute", "compute", "int32"),
        shapes=lambda A, _: (tuple(A.shape), (*A.shape[:-2], A.shape[-1], A.shape[-1]), tuple(A.shape[:-2])),
        kernel=_native.cpu.orthonormal_basis,
        composite=lambda A, rank_tol: composite.orthonormal_basis_of_span(A, rank_tol),
        backward=lambda g, saved, tensors, parameters, scaled: (
            composite.span_gradient(tensors[0], *saved, g[0]).to(tensors[0].dtype),
        ),
        saves=(),
        graded=2,
        public="principal_angles",
    )
)

_pairwise_phi = _route.register(
    _route.Op(
        name="pairwise_angles_gradient",
        inputs=(("A", 3), ("B", 3), ("upstream", 0)),
        schema=_PAIRWISE_SCHEMA,
        outputs=("compute",),
        shapes=lambda A, B, *_: ((*A.shape[:-2], A.shape[-1], B.shape[-3], B.shape[-1]),),
        kernel=_native.cpu.pairwise_angles_gradient,
        composite=lambda *args: (composite.pairwise_phi(*args),),
        saves=(),
        public="principal_angles",
    )
)


def _pairwise_backward(g: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any) -> tuple[Any, Any]:
    """From the derivatives with respect to all products A_i^T B_j, which are a matrix of the size of their matrix."""
    (A, B), (value,) = tensors, saved
    from .._route_torch import is_batched

    if _check.torch.is_grad_enabled() or is_batched(g):
        d_A, d_B = composite.pairwise_gradient(A, B, value, g, *parameters)
    else:
        d_A, d_B = composite.from_phi(A, B, _pairwise_phi(1, A, B, g.contiguous(), *parameters)[0])
    return d_A.to(A.dtype), d_B.to(B.dtype)


def _pairwise_shapes(A: Any, B: Any, function: int, *_: Any) -> tuple[tuple[int, ...], ...]:
    pairs = (*A.shape[:-2], B.shape[-3])
    count = (min(A.shape[-1], B.shape[-1]),) if function in (ANGLES, COSINES) else ()
    return (*pairs, *count), pairs


_pairwise_angles = _route.register(
    _route.Op(
        name="pairwise_angles",
        inputs=(("A", 3), ("B", 3)),
        schema=_PAIRWISE_SCHEMA,
        outputs=("compute", "int32"),
        shapes=_pairwise_shapes,
        kernel=_native.cpu.pairwise_angles,
        composite=lambda *args: composite.pairwise_angles(*args),
        backward=_pairwise_backward,
        saves=(),
        public="principal_angles",
    )
)


def _bases(op: str, A: Any, B: Any, layout: str, rank_tol: float | None) -> tuple[Any, Any, float]:
    """Both as columns and of one type, and the tolerance."""
    _check.matrix(op, "A", A)
    _check.matrix(op, "B", B)
    _check.same_kind(op, "B", B, "A", A)
    if _check.choice(op, "layout", layout, _LAYOUTS):
        A, B = A.swapaxes(-1, -2), B.swapaxes(-1, -2)
    for name, basis in (("A", A), ("B", B)):
        if basis.shape[-1] > basis.shape[-2]:
            raise ValueError(
                f"{op}: {name}: expected at most as many vectors as they have entries, "
                f"got {basis.shape[-1]} vectors of {basis.shape[-2]} entries"
            )
    if A.shape[-2] != B.shape[-2]:
        raise ValueError(
            f"{op}: B: expected vectors of {A.shape[-2]} entries as in A, got {B.shape[-2]} "
            f"(shapes {tuple(A.shape)} and {tuple(B.shape)} as columns)"
        )
    if A.dtype != B.dtype:
        common = _check.promoted(A.dtype, B.dtype)
        A, B = _check.cast(A, common), _check.cast(B, common)
    if rank_tol is None:
        return A, B, max(A.shape[-2], 1) * _check.epsilon(A.dtype)
    tolerance = _check.number(op, "rank_tol", rank_tol)
    if tolerance < 0:
        raise ValueError(f"{op}: rank_tol: expected a number >= 0, got {rank_tol}")
    return A, B, tolerance


def _sets(op: str, A: Any, B: Any) -> tuple[Any, Any]:
    """Sets of bases with one batch shape."""
    for name, bases in (("A", A), ("B", B)):
        if bases.ndim < 3:
            raise ValueError(
                f"{op}: {name}: expected at least 3 dimensions with pairwise, a set of bases, "
                f"got shape {tuple(bases.shape)}"
            )
    batch = _check.broadcast_batch(op, "A", A, 3, "B", B, 3)
    return _check.expand(A, (*batch, *A.shape[-3:])), _check.expand(B, (*batch, *B.shape[-3:]))


def _paired(op: str, A: Any, B: Any) -> tuple[Any, Any]:
    if A.ndim == 2 and B.ndim == 2:
        return A, B
    batch = _check.broadcast_batch(op, "A", A, 2, "B", B, 2)
    return _check.expand(A, (*batch, *A.shape[-2:])), _check.expand(B, (*batch, *B.shape[-2:]))


def _flags(op: str, **flags: Any) -> None:
    for name, value in flags.items():
        if value is not False and value is not True:
            _check.flag(op, name, value)


def principal_angles(
    A: Any,
    B: Any,
    *,
    pairwise: bool = False,
    assume_orthonormal: bool = False,
    order: str = "ascending",
    rank_tol: float | None = None,
    return_vectors: bool = False,
    return_info: bool = False,
    layout: str = "columns",
) -> Any:
    r"""Principal angles between the spans of two bases, each exact to rounding from 0 to pi/2.

    .. math:: \cos\theta_i = \sigma_i(Q_A^\top Q_B), \qquad \theta_i = \operatorname{atan2}\left(
        \sigma_i(Q_B V - Q_A U C),\ \cos\theta_i\right)

    Q_A, Q_B are orthonormal bases of the spans and U C V^T = Q_A^T Q_B. The sines come from residuals, so that no digits
    are lost near zero, as they are in every arccos.

    Args:
        A, B: (\*batch, n, p) and (\*batch, n, q), bases as columns, p, q <= n; batch dimensions broadcast. float64,
            float32, float16 or bfloat16, any strides. torch, NumPy or CuPy.
        pairwise: every basis of A with every one of B: (\*batch, N, n, p) and (\*batch, M, n, q) give (\*batch, N, M,
            ...); the same array twice is recognised, and done in half the time.
        assume_orthonormal: the columns are orthonormal as they are; saves most of the work on tall bases. Gradients
            are then the tangent (projected) ones.
        order: "ascending" or "descending" angles.
        rank_tol: a column that the columns before it span to this fraction of its norm counts as dependent; None means
            n times the rounding unit of the type.
        return_vectors: also return the principal vectors Q_A U and Q_B V, (\*batch, n, min(p, q)) each, constants to
            autograd; not with ``pairwise``.
        return_info: also return an int32 array (\*batch): how many angles the bases' ranks leave,
            min(rank A, rank B); -1 where an item is not finite.
        layout: "rows" for bases as rows, (\*batch, p, n), which are read in place.

    Returns:
        (\*batch, min(p, q)) in radians, float64 for float64 input and float32 otherwise. Where ranks are smaller, the
        angles that are missing are pi/2. An item that is not finite is NaN.

    Raises:
        TypeError, ValueError: wrong arrays or options; vectors of different lengths; more vectors than entries.

    Cost:
        Per pair 2 n (p^2 + q^2) flops for orthonormal bases, 2 n p q for cosines and as much three times for sines
        where an angle is below pi/4, all in float64 also for float32 input; some n (p + q) float64 numbers per thread.

    Gradient:
        Of each angle in closed form, bounded, computed anew in backward; only A and B are saved. It is the gradient of
        the span: orthogonal to the basis. At angles of 0, where none exists, 0; at equal angles one of the
        subgradients. Second derivatives of single angles exist where angles are distinct.

    Source:
        Bjorck and Golub 1973; Knyazev and Argentati 2002. Replaces ``scipy.linalg.subspace_angles``, which takes the
        sine for the wrong angles when a large one and a tiny one meet, and ``torch.linalg.svdvals(A.mT @ B).acos()``.

    >>> import numpy as np, subspan
    >>> A = np.eye(4)[:, :2]
    >>> B = np.array([[1.0, 0], [0, 1], [1e-9, 0], [0, 1]])
    >>> print(subspan.principal_angles(A, B))
    [1.00000000e-09 7.85398163e-01]
    """
    op = "principal_angles"
    descending = _check.choice(op, "order", order, _ORDERS)
    outputs = _angles(op, ANGLES, A, B, pairwise, assume_orthonormal, rank_tol, layout, return_vectors, return_info)
    if descending:
        outputs = tuple(_reversed(x) if i == 0 or x.ndim > outputs[0].ndim else x for i, x in enumerate(outputs))
    return outputs if len(outputs) > 1 else outputs[0]


def _reversed(array: Any) -> Any:
    return array.flip(-1) if _check.is_torch(array) else array[..., ::-1]


def _angles(
    op: str,
    function: int,
    A: Any,
    B: Any,
    pairwise: bool,
    orthonormal: bool,
    rank_tol: float | None,
    layout: str,
    return_vectors: bool = False,
    return_info: bool = False,
    squared: bool = False,
    padded: bool = False,
) -> tuple[Any, ...]:
    """The value, then principal vectors and status where they are wanted."""
    _flags(op, pairwise=pairwise, assume_orthonormal=orthonormal)
    if return_vectors is not False or return_info is not False:
        _flags(op, return_vectors=return_vectors, return_info=return_info)
    same = A is B
    A, B, tolerance = _bases(op, A, B, layout, rank_tol)
    if pairwise:
        if return_vectors:
            raise ValueError(f"{op}: return_vectors: expected False with pairwise, got True")
        A, B = _sets(op, A, B)
        rank_A = rank_B = None
        if not orthonormal:
            A, _, rank_A = _orthonormal_basis(3, A, tolerance)
            B, _, rank_B = (A, None, rank_A) if same else _orthonormal_basis(3, B, tolerance)
        value, info = _pairwise_angles(2, A, _other(A, B), function, squared, padded)
        return (value, _pairwise_info(info, rank_A, rank_B, A, B)) if return_info else (value,)
    A, B = _paired(op, A, B)
    parameters = (function, squared, padded, orthonormal, tolerance)
    if not return_vectors:
        return tuple(_subspace_angles(1 + return_info, A, _other(A, B), *parameters))
    value, info, left, right = _subspace_angles(4, A, _other(A, B), *parameters)
    return (value, left, right, info) if return_info else (value, left, right)


def _other(A: Any, B: Any) -> Any:
    """B, but another view of it if it is A: torch.compile does not trace a function that is given one tensor twice."""
    return B.view_as(B) if B is A and _check.is_torch(A) else B


def _pairwise_info(info: Any, rank_A: Any, rank_B: Any, A: Any, B: Any) -> Any:
    """How many angles the ranks leave; the kernel says -1 where a pair is not finite."""
    if rank_A is None:
        return _check.where(info < 0, info, info + min(A.shape[-1], B.shape[-1]))
    left, right = rank_A[..., :, None], rank_B[..., None, :]
    return _check.where(info < 0, info, _check.where(left < right, left, right))
