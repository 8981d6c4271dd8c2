"""Hypercomplex products whose rule or whose weights are of low rank."""

from __future__ import annotations

from typing import Any

from .. import _check, _native, _route
from .phm import check_length, map_rows, rounded, usual, wanted_shapes

composite: Any = None  # without torch there is nothing to compose
if _check.torch is not None:
    from ..composite import phm_rank as composite


def _rank_backward(g: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any, needed: Any) -> Any:
    gradients = composite.phm_rank_gradient(*tensors[:-1], g, *parameters, needed)
    return rounded(gradients, tensors, needed)


def _lowrank_backward(g: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any, needed: Any) -> Any:
    if _route.in_torch(g):
        gradients = composite.phm_linear_lowrank_gradient(*tensors[:-1], g, needed)
    else:
        gradients = _lowrank_gradient(5, *tensors[:-1], g, *needed)
    return rounded(gradients, tensors, needed)


def _lowrank_gradient_shapes(x: Any, A: Any, U: Any, V: Any, dy: Any, *wanted: bool) -> tuple[tuple[int, ...], ...]:
    batch, features = x.shape[:-2], A.shape[-2] * U.shape[-2]
    return wanted_shapes(batch, (x.shape, A.shape, U.shape, V.shape, (*batch, features)), wanted)


_rank = _route.register(
    _route.Op(
        name="phm_rank",
        inputs=(("x", 2), ("P", 2), ("V", 2), ("U", 2), ("S", 3), ("bias", 1)),
        schema="bool transposed",
        outputs=("compute",),
        shapes=lambda x, P, V, U, S, bias, transposed: (
            (*x.shape[:-1], P.shape[-2] * S.shape[-1 if transposed else -2]),
        ),
        kernel=_native.cpu.phm_rank,
        composite=lambda *args: composite.phm_rank(*args),
        gradient=lambda *args: (),
        backward=_rank_backward,
        selective=True,
        saves=(),
        public="phm_linear_rank1",
    )
)

_lowrank_gradient = _route.register(
    _route.Op(
        name="phm_linear_lowrank_gradient",
        inputs=(("x", 2), ("A", 3), ("U", 3), ("V", 3), ("dy", 2)),
        schema="bool wants_x, bool wants_A, bool wants_U, bool wants_V, bool wants_bias",
        outputs=("compute",) * 5,
        shapes=_lowrank_gradient_shapes,
        kernel=_native.cpu.phm_linear_lowrank_gradient,
        composite=lambda *args: composite.phm_linear_lowrank_gradient(*args[:5], args[5:]),
        saves=(),
        public="phm_linear_lowrank",
    )
)

_lowrank = _route.register(
    _route.Op(
        name="phm_linear_lowrank",
        inputs=(("x", 2), ("A", 3), ("U", 3), ("V", 3), ("bias", 1)),
        schema="",
        outputs=("compute",),
        shapes=lambda x, A, U, *_: ((*x.shape[:-1], A.shape[-2] * U.shape[-2]),),
        kernel=_native.cpu.phm_linear_lowrank,
        composite=lambda *args: composite.phm_linear_lowrank(*args),
        gradient=lambda *args: (),
        backward=_lowrank_backward,
        selective=True,
        saves=(),
    )
)


def _check_arrays(op: str, x: Any, factors: dict[str, Any], bias: Any) -> None:
    _check.matrix(op, "x", x, 1)
    for name, array in factors.items():
        _check.same_kind(op, name, array, "x", x)
        _check.matrix(op, name, array, 3)
    if bias is not None:
        _check.same_kind(op, "bias", bias, "x", x)
        _check.matrix(op, "bias", bias, 1)


def _expect(op: str, name: str, array: Any, right: bool, expected: str) -> None:
    if not right:
        raise ValueError(f"{op}: {name}: expected {expected}, got shape {tuple(array.shape)}")


def _transpose(array: Any) -> Any:
    return array.mT if _check.is_torch(array) else array.swapaxes(-1, -2)


def phm_linear_rank1(x: Any, left: Any, right: Any, S: Any, bias: Any = None) -> Any:
    r"""A hypercomplex layer whose rule is a column times a row for each term: one small product for each.

    .. math:: y = x W^\top + b, \qquad W = \sum_i (l_i r_i^\top) \otimes S_i, \qquad
        y_p = \sum_i l_{i, p} \Big(\sum_q r_{i, q}\, x_q\Big) S_i^\top + b_p

    Args:
        x: (\*rows, q k); float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy. Where a factor has
            batch dimensions, (\*batch, rows, q k).
        left: (terms, p, 1), the columns l_i; or (\*batch, terms, p, 1). Any floating type; read as the type computed
            in.
        right: (terms, 1, q), the rows r_i. Likewise.
        S: (terms, l, k), the components of the weight. Likewise.
        bias: (p l,) or (\*batch, p l), or None.

    Returns:
        (\*rows, p l), or (\*batch, rows, p l); float64 for float64 x and float32 otherwise.

    Raises:
        TypeError, ValueError: wrong arrays or shapes. A width that the rule does not divide is named together with the
            nearest that it divides.

    Cost:
        2 terms l k flops a row beside the mixing: for n terms 1 / n of a dense layer. Extra memory of terms k entries
        for each of up to 128 rows of x.

    Gradient:
        Closed form, products of the same sizes: two more for x and S, and two more for left and right. Mixed rows of x
        and of the upstream gradient, terms k and terms l entries a row, are formed in the backward pass.

    Source:
        Karimi Mahabadi et al. 2021, Compacter, ``factorized_phm_rule``; the rule of the first PHM code has this form
        with right rows of ones. Replaces ``PHMLinear`` of ``Compacter`` and ``adapters``.

    >>> import numpy as np, subspan
    >>> left, right = np.array([[[1.0], [2.0]]]), np.array([[[3.0, 4.0]]])
    >>> print(subspan.phm_linear_rank1(np.array([1.0, 1.0]), left, right, np.ones((1, 1, 1))))
    [ 7. 14.]
    """
    op = "phm_linear_rank1"
    _check_arrays(op, x, {"left": left, "right": right, "S": S}, bias)
    terms, p, q = left.shape[-3], left.shape[-2], right.shape[-1]
    _expect(op, "left", left, left.shape[-1] == 1 and terms > 0 and p > 0, "(*batch, terms, p, 1) without a zero")
    rows = f"(*batch, {terms}, 1, q) for left {tuple(left.shape)}"
    _expect(op, "right", right, tuple(right.shape[-3:-1]) == (terms, 1) and q > 0, rows)
    _expect(op, "S", S, S.shape[-3] == terms, f"as many terms as the {terms} of left {tuple(left.shape)}")
    sizes = {"left": left, "right": right, "S": S}
    check_length(op, "x", x, q, S.shape[-1], sizes)
    if bias is not None:
        check_length(op, "bias", bias, p, S.shape[-2], sizes)
    compute = _check.COMPUTE_DTYPE[x.dtype]
    factors = {n: _check.cast(array, compute) for n, array in (("left", left), ("right", right), ("S", S))}
    bias = None if bias is None else _check.cast(bias, compute)

    def entry(wanted: int, x: Any, left: Any, right: Any, S: Any, bias: Any) -> Any:
        return _rank(wanted, x, _transpose(left[..., 0]), _transpose(right[..., 0, :]), None, S, bias, False)

    return map_rows(op, entry, x, factors, bias, p * S.shape[-2], ())


def phm_linear_lowrank(x: Any, A: Any, U: Any, V: Any, bias: Any = None) -> Any:
    r"""A hypercomplex layer whose weights are of low rank, which are not multiplied out.

    .. math:: y = x W^\top + b, \qquad W = \sum_i A_i \otimes (U_i V_i)

    Args:
        x: (\*rows, q k); float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy. Where a factor has
            batch dimensions, (\*batch, rows, q k).
        A: (terms, p, q), the rule of multiplication; or (\*batch, terms, p, q). Any floating type; read as the type
            computed in.
        U: (terms, l, rank), the left factors. Likewise.
        V: (terms, rank, k), the right factors. Likewise.
        bias: (p l,) or (\*batch, p l), or None.

    Returns:
        (\*rows, p l), or (\*batch, rows, p l); float64 for float64 x and float32 otherwise.

    Raises:
        TypeError, ValueError: wrong arrays or shapes. A width that the rule does not divide is named together with the
            nearest that it divides.

    Cost:
        2 terms rank (q k + p l + p q) flops a row, which is less than those of the whole weight where
        terms rank (q k + p l) < p q l k: elsewhere :func:`phm_linear` of U V is better. x is read and y written once;
        extra memory of a few rows for each thread.

    Gradient:
        Closed form, twice the flops and those of the products with V, which are computed again. One pass over x and
        the upstream gradient gives every gradient. x and the factors are saved.

    Source:
        Karimi Mahabadi et al. 2021, Compacter: Efficient Low-Rank Hypercomplex Adapter Layers, section 3.2. Replaces
        ``PHMLinear`` with ``factorized_phm=True`` of ``Compacter`` and ``adapters``.

    >>> import numpy as np, subspan
    >>> A = subspan.algebra("complex", 2)
    >>> U, V = np.array([[[3.0]], [[4.0]]]), np.ones((2, 1, 1))
    >>> print(subspan.phm_linear_lowrank(np.array([1.0, 2.0]), A, U, V))  # (3 + 4i) (1 + 2i)
    [-5. 10.]
    """
    op = "phm_linear_lowrank"
    if usual(x, A, U, V, bias=bias):
        (terms, p, q), (of_U, l, rank), (k,) = A.shape, U.shape, V.shape[2:]  # noqa: E741
        fitting = x.shape[1] == q * k and of_U == terms and tuple(V.shape[:2]) == (terms, rank) and 0 not in A.shape
        if fitting and rank > 0 and (bias is None or bias.shape[0] == p * l):
            return _lowrank(1, x, A, U, V, bias)[0]
    _check_arrays(op, x, {"A": A, "U": U, "V": V}, bias)
    terms, p, q = A.shape[-3:]
    _expect(op, "A", A, 0 not in (terms, p, q), "(*batch, terms, p, q) without a zero")
    rank = U.shape[-1]
    _expect(op, "U", U, U.shape[-3] == terms and rank > 0, f"(*batch, {terms}, l, rank) for A {tuple(A.shape)}")
    _expect(op, "V", V, tuple(V.shape[-3:-1]) == (terms, rank), f"(*batch, {terms}, {rank}, k) for U {tuple(U.shape)}")
    sizes = {"A": A, "U": U, "V": V}
    check_length(op, "x", x, q, V.shape[-1], sizes)
    if bias is not None:
        check_length(op, "bias", bias, p, U.shape[-2], sizes)
    compute = _check.COMPUTE_DTYPE[x.dtype]
    factors = {n: _check.cast(array, compute) for n, array in (("A", A), ("U", U), ("V", V))}
    bias = None if bias is None else _check.cast(bias, compute)
    return map_rows(op, _lowrank, x, factors, bias, p * U.shape[-2], ())
