"""Products of Householder reflectors, which parametrise orthonormal bases and orthogonal matrices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import _check, _native, _route

composite: Any = None  # without torch there is nothing to compose
if _check.torch is not None:
    from ..composite import householder as composite

LAYOUTS = {"columns": 0, "rows": 1}
SIDES = {"left": 0, "right": 1}


def _saved_shapes(V: Any, p: int, rows: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of what csrc/ops/orthogonal/householder.h calls coefficients and factors."""
    count = V.shape[-2 if rows else -1]
    block = min((count + 7) // 8 * 8, 32)
    return (*V.shape[:-2], count, p), (*V.shape[:-2], count, block + 2)


def _wanted(array: Any, batch: Any, wanted: bool) -> tuple[int, ...]:
    return tuple(array.shape) if wanted else (*batch, 0)


_apply_gradient = _route.register(
    _route.Op(
        name="householder_apply_gradient",
        inputs=(("V", 2), ("X", 2), ("tau", 1), ("coefficients", 2), ("factors", 2), ("upstream", 2)),
        schema="bool transpose, bool right, bool rows, bool wants_V, bool wants_X, bool wants_tau",
        outputs=("compute", "compute", "compute"),
        shapes=lambda V, X, tau, w, f, g, transpose, right, rows, *wanted: tuple(
            _wanted(array, V.shape[:-2], one) for array, one in zip((V, X, tau), wanted, strict=True)
        ),
        kernel=_native.cpu.householder_apply_gradient,
        composite=lambda V, X, tau, w, f, g, transpose, right, rows, *_: composite.householder_apply_gradient(
            V, g, X, tau, transpose, right, rows
        ),
        saves=(),
        public="householder_apply",
    )
)

_product_gradient = _route.register(
    _route.Op(
        name="householder_product_gradient",
        inputs=(("V", 2), ("tau", 1), ("coefficients", 2), ("factors", 2), ("upstream", 2)),
        schema="int columns, bool rows, bool lapack, bool wants_V, bool wants_tau",
        outputs=("compute", "compute"),
        shapes=lambda V, tau, w, f, g, columns, rows, lapack, *wanted: tuple(
            _wanted(array, V.shape[:-2], one) for array, one in zip((V, tau), wanted, strict=True)
        ),
        kernel=_native.cpu.householder_product_gradient,
        composite=lambda V, tau, w, f, g, columns, rows, lapack, *_: composite.householder_product_gradient(
            V, g, tau, columns, rows, lapack
        ),
        saves=(),
        public="householder_product",
    )
)


def _rounded(gradients: Any, tensors: Any, needed: tuple[bool, ...]) -> tuple[Any, ...]:
    return tuple(g.to(t.dtype) if wanted else None for g, t, wanted in zip(gradients, tensors, needed, strict=True))


def _apply_backward(g: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any, needed: Any) -> Any:
    V, X, tau = tensors
    if _route.in_torch(g):
        gradients = composite.householder_apply_gradient(V, g, X, tau, *parameters)
    else:
        gradients = _apply_gradient(3, *tensors, *saved, g, *parameters, *needed)
    return _rounded(gradients, tensors, needed)


def _product_backward(g: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any, needed: Any) -> Any:
    V, tau = tensors
    if _route.in_torch(g):
        gradients = composite.householder_product_gradient(V, g, tau, *parameters)
    else:
        gradients = _product_gradient(2, *tensors, *saved, g, *parameters, *needed)
    return _rounded(gradients, tensors, needed)


_apply = _route.register(
    _route.Op(
        name="householder_apply",
        inputs=(("V", 2), ("X", 2), ("tau", 1)),
        schema="bool transpose, bool right, bool rows",
        outputs=("compute",),
        shapes=lambda V, X, *_: (tuple(X.shape),),
        kernel=_native.cpu.householder_apply,
        composite=lambda *args: composite.householder_apply(*args),
        gradient=lambda *args: (),
        backward=_apply_backward,
        selective=True,
        saves=(0, 0),
        saved_shapes=lambda V, X, tau, transpose, right, rows: _saved_shapes(V, X.shape[-2 if right else -1], rows),
    )
)

_product = _route.register(
    _route.Op(
        name="householder_product",
        inputs=(("V", 2), ("tau", 1)),
        schema="int columns, bool rows, bool lapack",
        outputs=("compute",),
        shapes=lambda V, tau, columns, rows, _: (
            (*V.shape[:-2], columns, V.shape[-1]) if rows else (*V.shape[:-1], columns),
        ),
        kernel=_native.cpu.householder_product,
        composite=lambda *args: composite.householder_product(*args),
        gradient=lambda *args: (),
        backward=_product_backward,
        selective=True,
        saves=(0, 0),
        saved_shapes=lambda V, tau, columns, rows, _: _saved_shapes(V, columns, rows),
    )
)


def _check_tau(op: str, V: Any, tau: Any, rows: bool, batch: Any) -> tuple[Any, tuple[int, ...]]:
    """tau, checked against V, and the batch shape of both."""
    if tau is None:
        return None, batch
    _check.same_kind(op, "tau", tau, "V", V)
    _check.matrix(op, "tau", tau, least=1)
    count = V.shape[-2 if rows else -1]
    if tau.shape[-1] != count:
        expected = f"(*batch, {count}), a number for each of the reflectors of V {tuple(V.shape)}"
        raise ValueError(f"{op}: tau: expected {expected}, got shape {tuple(tau.shape)}")
    return tau, _check.broadcast_batch(op, "tau", tau, 1, "V", _check.expand(V, (*batch, *V.shape[-2:])), 2)


def householder_apply(
    V: Any,
    X: Any,
    tau: Any = None,
    *,
    transpose: bool = False,
    side: str = "left",
    layout: str = "columns",
) -> Any:
    r"""Multiplies by a product of Householder reflectors, without forming it.

    .. math:: Y = Q X, \qquad Q = H_1 H_2 \cdots H_k, \qquad H_j = I - \tau_j v_j v_j^\top

    With the default :math:`\tau_j = 2 / \lVert v_j \rVert^2` every H_j is a reflection and Q orthogonal. A reflector of
    zeros is the identity, with a gradient of zeros.

    Args:
        V: (\*batch, m, k), the vectors v_j as columns, of any length; float64, float32, float16 or bfloat16, any
            strides. torch, NumPy or CuPy. k may be larger than m.
        X: (\*batch, m, p), or (\*batch, p, m) with ``side="right"``. Broadcasts with V. Any floating type; read as the
            type computed in.
        tau: (\*batch, k), or None for 2 / ||v||^2. Broadcasts. Any values: Q need not be orthogonal.
        transpose: multiply by Q^T.
        side: "left" for Q X, "right" for X Q: rows of X are then vectors, as a layer has them.
        layout: "rows" for the vectors as rows, V (\*batch, k, m), read in place.

    Returns:
        Of the shape of X once the batch is broadcast; float64 for float64 V and float32 otherwise.

    Raises:
        TypeError, ValueError: wrong arrays or shapes, an unknown side or layout.

    Cost:
        4 m k p + 64 m k flops. Blocks of 32 reflectors are one product each in the compact WY form, whose triangular
        factor is formed in float64 for every type; a strip of columns of X passes through all of them. Extra memory of
        a copy of V, and of a strip of X for each thread. Vectors that all items of a batch share are best used with
        ``side="right"``, where the batch becomes rows of one product.

    Gradient:
        Closed form, 8 m k p + 2 m k^2 + k^2 p flops, smooth wherever no v is zero, and for a given tau everywhere, also
        at tau = 0. V, X and tau are saved, and k (p + 34) numbers. Nothing of the size of k matrices X is formed.

    Source:
        Schreiber, Van Loan 1989, the compact WY form. Replaces ``fasth`` (fasthpp) of Mathiasen et al. 2020,
        ``torch-householder``, the chain of ``tuners/hra`` of PEFT and ``torch.ormqr``.

    >>> import numpy as np, subspan
    >>> V = np.array([[1.0], [-1.0]])  # the mirror that exchanges the two axes
    >>> print(subspan.householder_apply(V, np.array([[3.0], [4.0]])).ravel())
    [4. 3.]
    """
    op = "householder_apply"
    rows = _check.choice(op, "layout", layout, LAYOUTS) == 1
    right = _check.choice(op, "side", side, SIDES) == 1
    if transpose is not False:
        _check.flag(op, "transpose", transpose)
    _check.matrix(op, "V", V)
    _check.same_kind(op, "X", X, "V", V)
    _check.matrix(op, "X", X)
    length = V.shape[-1 if rows else -2]
    if X.shape[-1 if right else -2] != length:
        expected = f"(*batch, {f'p, {length}' if right else f'{length}, p'}) for V {tuple(V.shape)} and side {side!r}"
        raise ValueError(f"{op}: X: expected {expected}, got shape {tuple(X.shape)}")
    tau, own = _check_tau(op, V, tau, rows, tuple(V.shape[:-2]))
    batch = _check.broadcast_batch(op, "X", X, 2, "V", _check.expand(V, (*own, *V.shape[-2:])), 2)
    if right and len(batch) and math.prod(own) == 1 and batch == tuple(X.shape[:-2]):
        # Items that share their reflectors are rows of one product.
        V = V.reshape(V.shape[-2:])
        tau = None if tau is None else tau.reshape(tau.shape[-1:])
        flat = _apply(1, V, X.reshape((math.prod(X.shape[:-1]), length)), tau, bool(transpose), right, rows)[0]
        return flat.reshape(X.shape)
    V, X = (_check.expand(array, (*batch, *array.shape[-2:])) for array in (V, X))
    tau = None if tau is None else _check.expand(tau, (*batch, tau.shape[-1]))
    return _apply(1, V, X, tau, bool(transpose), right, rows)[0]


def householder_product(
    V: Any, tau: Any = None, *, columns: int | None = None, lapack: bool = False, layout: str = "columns"
) -> Any:
    r"""The first columns of a product of Householder reflectors.

    .. math:: Q E, \qquad Q = H_1 H_2 \cdots H_k, \qquad H_j = I - \tau_j v_j v_j^\top

    with E the first columns of the identity. For the default :math:`\tau_j = 2 / \lVert v_j \rVert^2` they are
    orthonormal to rounding, whatever V is: a parametrisation of orthonormal bases by any matrix. A reflector of zeros
    is the identity, with a gradient of zeros.

    Args:
        V: (\*batch, m, k), the vectors v_j as columns, of any length; float64, float32, float16 or bfloat16, any
            strides. torch, NumPy or CuPy.
        tau: (\*batch, k), or None for 2 / ||v||^2. Broadcasts with V.
        columns: how many columns of Q, at most m; None for as many as there are reflectors.
        lapack: V is as LAPACK's geqrf leaves it: vector j has a 1 at place j and zeros before it, and what V holds
            there is not read. Without tau, 2 / ||v||^2 of such vectors.
        layout: "rows" for vectors, and columns of the result, as rows: V (\*batch, k, m), read in place.

    Returns:
        (\*batch, m, columns), or (\*batch, columns, m) in the layout "rows"; float64 for float64 V and float32
        otherwise.

    Raises:
        TypeError, ValueError: wrong arrays or shapes, more columns than m.

    Cost:
        4 m k columns + 64 m k flops, half of the first term where k <= 32: products with E are rows of V.

    Gradient:
        Closed form, at most 6 m k columns + 2 m k^2 + k^2 columns flops; no m x m matrix is formed. V and tau are
        saved, and k (columns + 34) numbers. Smooth wherever no v is zero, and for a given tau everywhere.

    Source:
        Schreiber, Van Loan 1989; with ``lapack`` xORGQR. Replaces ``torch.linalg.householder_product``, whose backward
        pass forms m x m matrices.

    >>> import numpy as np, subspan
    >>> Q = subspan.householder_product(np.array([[1.0, 2.0], [2.0, 0.0], [0.0, 1.0]]))
    >>> print(abs(Q.T @ Q - np.eye(2)).max() < 1e-15)
    True
    """
    op = "householder_product"
    rows = _check.choice(op, "layout", layout, LAYOUTS) == 1
    if lapack is not False:
        _check.flag(op, "lapack", lapack)
    _check.matrix(op, "V", V)
    length, count = (V.shape[-1], V.shape[-2]) if rows else V.shape[-2:]
    if columns is None:
        columns = min(length, count)
    else:
        columns = _check.count(op, "columns", columns)
        if columns > length:
            raise ValueError(f"{op}: columns: expected at most {length} for V {tuple(V.shape)}, got {columns}")
    tau, batch = _check_tau(op, V, tau, rows, tuple(V.shape[:-2]))
    V = _check.expand(V, (*batch, *V.shape[-2:]))
    tau = None if tau is None else _check.expand(tau, (*batch, count))
    return _product(1, V, tau, columns, rows, bool(lapack))[0]


def householder_vectors(Q: Any, *, layout: str = "columns") -> Any:
    r"""Vectors of reflectors whose product has given orthonormal columns, signs included.

    The inverse of :func:`householder_product`: ``householder_product(householder_vectors(Q))`` is Q. With q what the
    reflectors before leave of column j, v_j is e_j - q, whose reflection takes e_j to q; its entry j is computed as the
    sum of squares of the others over 1 + q_j where q_j > 0, for it cancels. Where q is e_j the vector is 0.

    Args:
        Q: (\*batch, m, k) with orthonormal columns, which is not checked; float64, float32, float16 or bfloat16, any
            strides. torch, NumPy or CuPy.
        layout: "rows" for bases, and vectors, as rows, (\*batch, k, m).

    Returns:
        Of the shape of Q; vector j is zero before place j. float64 for float64 Q and float32 otherwise.

    Raises:
        TypeError, ValueError: no array of matrices, more columns than rows, an unknown layout.

    Cost:
        2 m k^2 flops in k steps of array operations in float64: for the beginning of a training, not for every step.

    Gradient:
        That of the operations, for torch tensors; undefined where a vector is 0.

    Source:
        Householder 1958. HouseholderGAN's ``model_ortho.py`` takes the vectors of LAPACK's geqrf for dense ones, whose
        product is another matrix.

    >>> import numpy as np, subspan
    >>> Q = np.array([[0.6, -0.8], [0.8, 0.6], [0.0, 0.0]])
    >>> print(abs(subspan.householder_product(subspan.householder_vectors(Q)) - Q).max() < 1e-15)
    True
    """
    op = "householder_vectors"
    rows = _check.choice(op, "layout", layout, LAYOUTS) == 1
    _check.matrix(op, "Q", Q)
    basis = Q.swapaxes(-1, -2) if rows else Q
    length, count = basis.shape[-2:]
    if count > length:
        raise ValueError(f"{op}: Q: expected at most as many vectors as their length, got shape {tuple(Q.shape)}")
    if _check.is_cupy(Q) or _check.is_torch(Q):
        vectors = _vectors_of(_check.torch.utils.dlpack.from_dlpack(basis) if _check.is_cupy(Q) else basis)
    else:
        vectors = _vectors_of(basis)
    result = _check.COMPUTE_DTYPE[Q.dtype] if not _check.is_cupy(Q) else None
    if result is None:
        import cupy

        single = vectors if Q.dtype == np.float64 else vectors.to(_check.torch.float32)
        vectors = cupy.from_dlpack(single)
    else:
        vectors = _check.cast(vectors, result)
    return vectors.swapaxes(-1, -2) if rows else vectors


def _vectors_of(basis: Any) -> Any:
    xp = _check.torch if _check.is_torch(basis) else np
    wide = xp.float32 if xp is not np and basis.device.type == "mps" else xp.float64
    rest = _check.cast(basis, wide)
    found = []
    for j in range(basis.shape[-1]):
        q = rest[..., 0]
        head, tail = q[..., j], q[..., j + 1 :]
        squares = (tail * tail).sum(-1)
        small = _check.where(head > 0, squares / (1 + _check.where(head > 0, head, 0)), 1 - head)
        parts = [xp.zeros_like(q[..., :j]), small[..., None], -tail]
        v = xp.concatenate(parts, -1)
        square = squares + small * small
        scale = _check.where(square > 0, 2 / _check.where(square > 0, square, 1), 0 * square)
        rest = rest[..., 1:]
        rest = rest - (scale[..., None] * v)[..., :, None] * (v[..., None, :] @ rest)
        found.append(v)
    return xp.stack(found, -1) if found else rest
