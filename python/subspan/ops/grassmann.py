"""Maps of the Grassmann manifold, whose points are the spans of orthonormal bases."""

from __future__ import annotations

from typing import Any

from .. import _check, _native, _route

composite: Any = None  # without torch there is nothing to compose
if _check.torch is not None:
    from ..composite import grassmann as composite

LAYOUTS = {"columns": 0, "rows": 1}

_exp = _route.register(
    _route.Op(
        name="grassmann_exp",
        inputs=(("X", 2), ("D", 2)),
        schema="bool project, bool rows",
        outputs=("compute",),
        shapes=lambda X, *_: (tuple(X.shape),),
        kernel=_native.cpu.grassmann_exp,
        composite=lambda *args: (composite.grassmann_exp(*args),),
        gradient=lambda *args: (),
        backward=lambda g, saved, tensors, parameters, scaled: composite.grassmann_exp_gradient(
            g, *tensors, *parameters
        ),
        saves=(),
    )
)

_transport = _route.register(
    _route.Op(
        name="grassmann_transport",
        inputs=(("X", 2), ("D", 2), ("V", 2)),
        schema="bool rows",
        outputs=("compute",),
        shapes=lambda X, *_: (tuple(X.shape),),
        kernel=_native.cpu.grassmann_transport,
        composite=lambda *args: (composite.grassmann_transport(*args),),
        gradient=lambda *args: (),
        backward=lambda g, saved, tensors, parameters, scaled: composite.grassmann_transport_gradient(
            g, *tensors, *parameters
        ),
        saves=(),
    )
)


def broadcast_bases(op: str, layout: str, X: Any, **others: Any) -> tuple[bool, list[Any]]:
    """Whether vectors are rows, and all arrays checked against X and with the batch shape of all."""
    rows = _check.choice(op, "layout", layout, LAYOUTS) == 1
    _check.matrix(op, "X", X)
    shape = tuple(X.shape)
    batch = shape[:-2]
    for name, array in others.items():
        _check.same_kind(op, name, array, "X", X)
        _check.matrix(op, name, array)
        if tuple(array.shape) == shape:
            continue
        if tuple(array.shape[-2:]) != shape[-2:]:
            expected = "(*batch, k, n)" if rows else "(*batch, n, k)"
            raise ValueError(f"{op}: {name}: expected {expected} as X {tuple(X.shape)}, got shape {tuple(array.shape)}")
        batch = _check.broadcast_batch(op, name, array, 2, "X", _check.expand(X, (*batch, *shape[-2:])), 2)
    full = (*batch, *shape[-2:])
    return rows, [_check.expand(array, full) for array in (X, *others.values())]


def grassmann_exp(X: Any, D: Any, *, project: bool = False, layout: str = "columns") -> Any:
    r"""The end of the geodesic that starts at the span of X in the direction D, after unit time.

    .. math:: \exp_X(D) = X \cos G^{1/2} + D\, G^{-1/2} \sin G^{1/2}, \qquad G = D^\top D

    The singular values of D are the angles by which the span turns.

    Args:
        X: (\*batch, n, k) with orthonormal columns, which is not checked; float64, float32, float16 or bfloat16, any
            strides. torch, NumPy or CuPy.
        D: (\*batch, n, k), a tangent vector at X: X^T D = 0. Broadcasts with X. May be 0 or of any rank.
        project: D is any matrix, and D - X X^T D is used in its place.
        layout: "rows" for bases and directions as rows, (\*batch, k, n), read in place.

    Returns:
        An orthonormal basis of the end point, in the layout and, once the batch is broadcast, the shape of X; float64
        for float64 X and float32 otherwise.

    Raises:
        TypeError, ValueError: wrong arrays or shapes, an unknown layout, ``project`` not True or False.

    Cost:
        5 n k^2 flops, 11 n k^2 with ``project``, and about 7 + 2 log4 ||G|| products of k x k matrices. X and D are
        read twice, the second time from cache. There is no singular value decomposition and no eigen-decomposition:
        both functions are entire in G and computed from products. The Gram matrix is summed, and its functions
        computed, in float64 for every type. Without the kernel (on CUDA, and in gradients under torch.compile and
        vmap) angles above 512 radians are NaN.

    Gradient:
        Closed form, smooth everywhere: at D = 0, at equal and at vanishing singular values. X and D are saved.

    Source:
        Edelman, Arias, Smith 1998, eq. 2.65. Replaces ``Grassmann.exp`` of pymanopt and the update of GCR's
        ``gcr/rsgd.py``, which take a singular value decomposition of D.

    >>> import numpy as np, subspan
    >>> X, D = np.array([[1.0], [0.0]]), np.array([[0.0], [np.pi / 2]])  # a quarter of a turn
    >>> print(abs(subspan.grassmann_exp(X, D)).round(12).ravel())
    [0. 1.]
    """
    op = "grassmann_exp"
    rows, (X, D) = broadcast_bases(op, layout, X, D=D)
    if project is not False:
        _check.flag(op, "project", project)
    return _exp(1, X, D, bool(project), rows)[0]


def grassmann_transport(X: Any, D: Any, V: Any, *, layout: str = "columns") -> Any:
    r"""Carries a tangent vector along the geodesic of :func:`grassmann_exp`, parallel to itself.

    .. math:: \Gamma_D V = V - \left(D\,\frac{I - \cos G^{1/2}}{G} + X\,G^{-1/2} \sin G^{1/2}\right) D^\top V,
        \qquad G = D^\top D

    The result is tangent at ``grassmann_exp(X, D)`` in the basis that function returns: inner products of two vectors
    that are carried along are kept.

    Args:
        X: (\*batch, n, k) with orthonormal columns, which is not checked; float64, float32, float16 or bfloat16, any
            strides. torch, NumPy or CuPy.
        D: (\*batch, n, k), the direction, a tangent vector at X: X^T D = 0. May be 0 or of any rank.
        V: (\*batch, n, k), a tangent vector at X. The three broadcast.
        layout: "rows" for all as rows, (\*batch, k, n), read in place.

    Returns:
        The vector at the end point, in the layout and, once the batch is broadcast, the shape of X; float64 for float64
        X and float32 otherwise.

    Raises:
        TypeError, ValueError: wrong arrays or shapes, an unknown layout.

    Cost:
        9 n k^2 flops and about 9 + 2 log4 ||G|| products of k x k matrices, as in :func:`grassmann_exp`.

    Gradient:
        Closed form, smooth everywhere. X, D and V are saved.

    Source:
        Edelman, Arias, Smith 1998, eq. 2.68, which takes the singular value decomposition of D.

    >>> import numpy as np, subspan
    >>> X, D = np.array([[1.0], [0.0], [0.0]]), np.array([[0.0], [np.pi / 2], [0.0]])
    >>> print(subspan.grassmann_transport(X, D, D + [[0], [0], [1]]).round(4).ravel())
    [-1.5708  0.      1.    ]
    """
    rows, (X, D, V) = broadcast_bases("grassmann_transport", layout, X, D=D, V=V)
    return _transport(1, X, D, V, rows)[0]
