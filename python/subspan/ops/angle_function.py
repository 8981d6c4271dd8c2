"""The registered ops of principal angles, and the one function through which the public ones call them."""

from __future__ import annotations

import dataclasses
from typing import Any

from .. import _check, _native, _route
from .._angle_functions import ANGLES, COSINES

composite: Any = None  # without torch there is nothing to compose
pairwise_composite: Any = None
if _check.torch is not None:
    from ..composite import angles as composite
    from ..composite import pairwise_angles as pairwise_composite

_SCHEMA = "int function, bool squared, bool padded, bool orthonormal, float rank_tol"
_PAIRWISE_SCHEMA = "int function, bool squared, bool padded"
_LAYOUTS = {"columns": 0, "rows": 1}


def _value_shapes(A: Any, B: Any, function: int, *_: Any) -> tuple[tuple[int, ...], ...]:
    *batch, rows, p = A.shape
    count = min(p, B.shape[-1])
    value = (*batch, count) if function in (ANGLES, COSINES) else tuple(batch)
    return value, tuple(batch), (*batch, rows, count), (*batch, rows, count)


_gradient = _route.register(
    _route.Op(
        name="subspace_angles_gradient",
        inputs=(("A", 2), ("B", 2), ("upstream", 0)),
        schema=_SCHEMA,
        outputs=("compute", "compute"),
        shapes=lambda A, B, *_: (tuple(A.shape), tuple(B.shape)),
        kernel=_native.cpu.subspace_angles_gradient,
        composite=lambda A, B, g, *rest: composite.subspace_angles_gradient(
            A, B, composite.subspace_angles(A, B, *rest)[0], g, *rest
        ),
        saves=(),
        public="subspace_distance",
    )
)


def _backward(g: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any) -> tuple[Any, Any]:
    """By kernel, but in torch operations where the gradient will be differentiated."""
    (A, B), (value,) = tensors, saved
    if _route.in_torch(g):
        d_A, d_B = composite.subspace_angles_gradient(A, B, value, g, *parameters)
    else:
        d_A, d_B = _gradient(2, A, B, g, *parameters)
    return d_A.to(A.dtype), d_B.to(B.dtype)


_op = _route.Op(
    name="principal_angles",
    inputs=(("A", 2), ("B", 2)),
    schema=_SCHEMA,
    outputs=("compute", "int32", "compute", "compute"),
    shapes=_value_shapes,
    kernel=_native.cpu.principal_angles,
    composite=lambda *args: composite.subspace_angles(*args),
    backward=_backward,
    saves=(),
)

_orthonormal_basis = _route.register(
    _route.Op(
        name="orthonormal_basis",
        inputs=(("A", 2),),
        schema="float rank_tol",
        outputs=("compute", "compute", "int32"),
        shapes=lambda A, _: (tuple(A.shape), (*A.shape[:-2], A.shape[-1], A.shape[-1]), tuple(A.shape[:-2])),
        kernel=_native.cpu.orthonormal_basis,
        composite=lambda A, rank_tol: pairwise_composite.orthonormal_basis_of_span(A, rank_tol),
        backward=lambda g, saved, tensors, parameters, scaled: (
            pairwise_composite.span_gradient(tensors[0], *saved, g[0]).to(tensors[0].dtype),
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
        composite=lambda *args: (pairwise_composite.pairwise_phi(*args),),
        saves=(),
        public="principal_angles",
    )
)


def _pairwise_backward(g: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any) -> tuple[Any, Any]:
    """From the derivatives with respect to all products A_i^T B_j, which are a matrix of the size of their matrix."""
    (A, B), (value,) = tensors, saved
    if _route.in_torch(g):
        d_A, d_B = pairwise_composite.pairwise_gradient(A, B, value, g, *parameters)
    else:
        d_A, d_B = pairwise_composite.from_phi(A, B, _pairwise_phi(1, A, B, g.contiguous(), *parameters)[0])
    return d_A.to(A.dtype), d_B.to(B.dtype)


def _pairwise_shapes(A: Any, B: Any, function: int, *_: Any) -> tuple[tuple[int, ...], ...]:
    pairs = (*A.shape[:-2], B.shape[-3])
    count = (min(A.shape[-1], B.shape[-1]),) if function in (ANGLES, COSINES) else ()
    return (*pairs, *count), pairs


_pairwise_op = _route.Op(
    name="pairwise_principal_angles",
    inputs=(("A", 3), ("B", 3)),
    schema=_PAIRWISE_SCHEMA,
    outputs=("compute", "int32"),
    shapes=_pairwise_shapes,
    kernel=_native.cpu.pairwise_principal_angles,
    composite=lambda *args: pairwise_composite.pairwise_angles(*args),
    backward=_pairwise_backward,
    saves=(),
)

# Errors name what was called.
_PUBLIC = ("principal_angles", "principal_cosines", "subspace_distance", "subspace_similarity")
_paired, _pairwise = {}, {}
for _name in _PUBLIC:
    _kernels = getattr(_native.cpu, _name), getattr(_native.cpu, f"pairwise_{_name}")
    _paired[_name] = _route.register(dataclasses.replace(_op, name=_name, kernel=_kernels[0]))
    _pairwise[_name] = _route.register(
        dataclasses.replace(_pairwise_op, name=f"pairwise_{_name}", kernel=_kernels[1], public=_name)
    )


def bases(op: str, A: Any, B: Any, layout: str, rank_tol: float | None) -> tuple[Any, Any, float]:
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


def _broadcast(op: str, A: Any, B: Any) -> tuple[Any, Any]:
    if A.ndim == 2 and B.ndim == 2:
        return A, B
    batch = _check.broadcast_batch(op, "A", A, 2, "B", B, 2)
    return _check.expand(A, (*batch, *A.shape[-2:])), _check.expand(B, (*batch, *B.shape[-2:]))


def flags(op: str, **flags: Any) -> None:
    for name, value in flags.items():
        if value is not False and value is not True:
            _check.flag(op, name, value)


def angle_function(
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
    equal: bool = False,
) -> tuple[Any, ...]:
    """The value, then principal vectors and status where they are wanted."""
    flags(op, pairwise=pairwise, assume_orthonormal=orthonormal)
    if return_vectors is not False or return_info is not False:
        flags(op, return_vectors=return_vectors, return_info=return_info)
    same = A is B
    A, B, tolerance = bases(op, A, B, layout, rank_tol)
    if equal and A.shape[-1] != B.shape[-1]:
        raise ValueError(f"{op}: B: expected as many vectors as A ({A.shape[-1]}), got {B.shape[-1]}; see unequal")
    if pairwise:
        if return_vectors:
            raise ValueError(f"{op}: return_vectors: expected False with pairwise, got True")
        A, B = _sets(op, A, B)
        rank_A = rank_B = None
        if not orthonormal:
            A, _, rank_A = _orthonormal_basis(3, A, tolerance)
            B, _, rank_B = (A, None, rank_A) if same else _orthonormal_basis(3, B, tolerance)
        value, info = _pairwise[op](2, A, _other(A, B), function, squared, padded)
        return (value, _pairwise_info(info, rank_A, rank_B, A, B)) if return_info else (value,)
    A, B = _broadcast(op, A, B)
    parameters = (function, squared, padded, orthonormal, tolerance)
    if not return_vectors:
        return tuple(_paired[op](1 + return_info, A, _other(A, B), *parameters))
    value, info, left, right = _paired[op](4, A, _other(A, B), *parameters)
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
