"""Hypercomplex (PHM) products: a linear map whose weight is a sum of Kronecker products."""

from __future__ import annotations

import math
from typing import Any

from .. import _check, _native, _route

composite: Any = None  # without torch there is nothing to compose
if _check.torch is not None:
    from ..composite import phm as composite

METHODS = {"auto": 0, "direct": 1, "compose": 2, "rank": 3}


def wanted_shapes(batch: tuple[int, ...], shapes: Any, wanted: tuple[bool, ...]) -> tuple[tuple[int, ...], ...]:
    """Of gradients; those that are not wanted are empty."""
    nothing = (*batch, 0)
    return tuple([shape if one else nothing for shape, one in zip(shapes, wanted, strict=True)])


def _gradient_shapes(x: Any, A: Any, S: Any, dy: Any, *wanted: bool) -> tuple[tuple[int, ...], ...]:
    batch, features = x.shape[:-2], A.shape[-2] * S.shape[-2]
    return wanted_shapes(batch, (x.shape, A.shape, S.shape, (*batch, features)), wanted)


_weight_gradient = _route.register(
    _route.Op(
        name="phm_weight_gradient",
        inputs=(("A", 3), ("S", 3), ("dW", 2)),
        schema="bool wants_A, bool wants_S",
        outputs=("compute", "compute"),
        shapes=lambda A, S, dW, *wanted: wanted_shapes(A.shape[:-3], (A.shape, S.shape), wanted),
        kernel=_native.cpu.phm_weight_gradient,
        composite=lambda A, S, dW, *wanted: composite.phm_weight_gradient(A, S, dW),
        saves=(),
        public="phm_weight",
    )
)

_linear_gradient = _route.register(
    _route.Op(
        name="phm_linear_gradient",
        inputs=(("x", 2), ("A", 3), ("S", 3), ("dy", 2)),
        schema="bool wants_x, bool wants_A, bool wants_S, bool wants_bias",
        outputs=("compute", "compute", "compute", "compute"),
        shapes=_gradient_shapes,
        kernel=_native.cpu.phm_linear_gradient,
        composite=lambda x, A, S, dy, *wanted: composite.phm_linear_gradient(x, A, S, dy),
        saves=(),
        public="phm_linear",
    )
)


def rounded(gradients: Any, tensors: Any, needed: tuple[bool, ...]) -> tuple[Any, ...]:
    return tuple(
        [
            None if not wanted else g if g.dtype is t.dtype else g.to(t.dtype)
            for g, t, wanted in zip(gradients, tensors, needed, strict=True)
        ]
    )


def _weight_backward(g: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any, needed: Any) -> Any:
    if _route.in_torch(g):
        gradients = composite.phm_weight_gradient(*tensors, g, needed)
    else:
        gradients = _weight_gradient(2, *tensors, g, *needed)
    return rounded(gradients, tensors, needed)


def _linear_backward(g: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any, needed: Any) -> Any:
    x, A, S, _ = tensors
    if _route.in_torch(g):
        gradients = composite.phm_linear_gradient(x, A, S, g, needed)
    else:
        gradients = _linear_gradient(4, x, A, S, g, *needed)
    return rounded(gradients, tensors, needed)


_weight = _route.register(
    _route.Op(
        name="phm_weight",
        inputs=(("A", 3), ("S", 3)),
        schema="",
        outputs=("compute",),
        shapes=lambda A, S: ((*A.shape[:-3], A.shape[-2] * S.shape[-2], A.shape[-1] * S.shape[-1]),),
        kernel=_native.cpu.phm_weight,
        composite=lambda *args: composite.phm_weight(*args),
        gradient=lambda *args: (),
        backward=_weight_backward,
        selective=True,
        saves=(),
    )
)


def _linear_shapes(x: Any, A: Any, S: Any, *_: Any) -> tuple[tuple[int, ...], ...]:
    features = A.shape[-2] * S.shape[-2]
    return ((x.shape[0], features),) if x.ndim == 2 else ((*x.shape[:-1], features),)


_linear = _route.register(
    _route.Op(
        name="phm_linear",
        inputs=(("x", 2), ("A", 3), ("S", 3), ("bias", 1)),
        schema="int method",
        outputs=("compute",),
        shapes=_linear_shapes,
        kernel=_native.cpu.phm_linear,
        composite=lambda *args: composite.phm_linear(*args),
        gradient=lambda *args: (),
        backward=_linear_backward,
        selective=True,
        saves=(),
    )
)


def _check_rule(op: str, name: str, A: Any) -> None:
    """At least one term, and matrices that are not empty."""
    if 0 in A.shape[-3:]:
        raise ValueError(f"{op}: {name}: expected (*batch, terms, p, q) without a zero, got shape {tuple(A.shape)}")


def _check_terms(op: str, name: str, S: Any, A_name: str, A: Any) -> None:
    if S.shape[-3] != A.shape[-3]:
        expected = f"as many terms as the {A.shape[-3]} of {A_name} {tuple(A.shape)}"
        raise ValueError(f"{op}: {name}: expected {expected}, got shape {tuple(S.shape)}")


def nearest(size: int, parts: int) -> str:
    """The sizes next to `size` that `parts` divides."""
    below = size // parts * parts
    return f"{below} and {below + parts} are the nearest" if below else f"{parts} is the least"


def check_length(op: str, name: str, array: Any, parts: int, length: int, factors: dict[str, Any]) -> None:
    """The last dimension is `parts` blocks of `length` entries."""
    size = array.shape[-1]
    if size == parts * length:
        return
    sizes = " and ".join(f"{factor} {tuple(value.shape)}" for factor, value in factors.items())
    expected = f"a last dimension of {parts * length} = {parts} * {length} for {sizes}"
    divided = "" if size % parts == 0 else f", which {parts} does not divide ({nearest(size, parts)})"
    raise ValueError(f"{op}: {name}: expected {expected}, got {size} in shape {tuple(array.shape)}{divided}")


def map_rows(
    op: str, entry: Any, x: Any, factors: dict[str, Any], bias: Any, outputs: int, parameters: tuple[Any, ...]
) -> Any:
    """The registered op on all rows of x at once, or, where a factor has batch dimensions, on the rows of each item.
    Factors have three dimensions beside those."""
    if (bias is not None and bias.ndim > 1) or any(array.ndim > 3 for array in factors.values()):
        if x.ndim < 2:
            names = ", ".join(factors)
            expected = f"(*batch, rows, features) where one of {names} and the bias has batch dimensions"
            raise ValueError(f"{op}: x: expected {expected}, got shape {tuple(x.shape)}")
        batch = tuple(x.shape[:-2])
        for name, array, core in [*((name, array, 3) for name, array in factors.items()), ("bias", bias, 1)]:
            if array is not None:
                batch = _check.broadcast_batch(op, name, array, core, "x", _check.expand(x, (*batch, *x.shape[-2:])), 2)
        x = _check.expand(x, (*batch, *x.shape[-2:]))
        arrays = [_check.expand(array, (*batch, *array.shape[-3:])) for array in factors.values()]
        bias = None if bias is None else _check.expand(bias, (*batch, outputs))
        return entry(1, x, *arrays, bias, *parameters)[0]
    if x.ndim == 2:
        return entry(1, x, *factors.values(), bias, *parameters)[0]
    rows = x.reshape((math.prod(x.shape[:-1]), x.shape[-1]))
    return entry(1, rows, *factors.values(), bias, *parameters)[0].reshape((*x.shape[:-1], outputs))


_TENSORS = () if _check.torch is None else (_check.torch.Tensor, _check.torch.nn.Parameter)


def usual(x: Any, *factors: Any, bias: Any = None) -> bool:
    """Whether these are rows of x, factors of three dimensions and a bias of one, all dense tensors in host memory and
    of the type computed in: at the price of a few comparisons. Whatever fails them is looked at one property at a
    time."""
    if type(x) not in _TENSORS or x.ndim != 2 or not x.is_cpu:
        return False
    dtype, strided = x.dtype, x.layout
    if strided is not _check.STRIDED or _check.COMPUTE_DTYPE.get(dtype) is not dtype:
        return False
    for array in factors:
        if type(array) not in _TENSORS or array.ndim != 3 or array.dtype is not dtype:
            return False
        if array.layout is not strided or not array.is_cpu:
            return False
    return bias is None or (
        type(bias) in _TENSORS and bias.ndim == 1 and bias.dtype is dtype and bias.layout is strided and bias.is_cpu
    )


def _rank_entry(op: str, A: Any, x: Any) -> Any:
    """The registered op of few products, for the decomposition of a rule that is constant."""
    from .phm_decomposition import constant_factors

    P, V, U = constant_factors(op, A, x)

    def entry(wanted: int, x: Any, S: Any, bias: Any) -> Any:
        if S.ndim == 3:
            return _route.call("phm_rank", wanted, x, P, V, U, S, bias, False)
        batch = tuple(S.shape[:-3])
        factors = (_check.expand(factor, (*batch, *factor.shape)) for factor in (P, V, U))
        return _route.call("phm_rank", wanted, x, *factors, S, bias, False)

    return entry


def phm_weight(A: Any, S: Any) -> Any:
    r"""The weight of a hypercomplex layer: a sum of Kronecker products, in one pass over it.

    .. math:: W = \sum_i A_i \otimes S_i, \qquad W_{(p, a), (q, b)} = \sum_i A_{i, p, q}\, S_{i, a, b}

    Features are component-major: output p l + a is entry a of component p.

    Args:
        A: (\*batch, terms, p, q), the rule of multiplication; float64, float32, float16 or bfloat16, any strides.
            torch, NumPy or CuPy. It need not be square, nor have as many terms as rows.
        S: (\*batch, terms, l, k), the components of the weight. Broadcasts with A. Any floating type; read as the type
            computed in.

    Returns:
        (\*batch, p l, q k), float64 for float64 A and float32 otherwise.

    Raises:
        TypeError, ValueError: wrong arrays or shapes, different numbers of terms.

    Cost:
        2 terms p q l k flops; S is read and W written once, and no Kronecker product is formed. S is copied where its
        columns are not neighbours in memory.

    Gradient:
        Closed form: dS_i is the sum of A_i[p, q] times the blocks of the upstream gradient, dA_i[p, q] the inner
        product of S_i with block (p, q). One pass over the upstream gradient each; A and S are saved.

    Source:
        Zhang et al. 2021, Beyond Fully-Connected Layers with Quaternions, equation 3. Replaces the Kronecker products
        of ``phc-gnn``, ``Compacter``, ``adapters`` and ``HyperNets``, which form terms matrices of the size of W.

    >>> import numpy as np, subspan
    >>> A = subspan.algebra("complex", 2)
    >>> print(subspan.phm_weight(A, np.array([[[3.0]], [[4.0]]])))  # 3 + 4i
    [[ 3. -4.]
     [ 4.  3.]]
    """
    op = "phm_weight"
    _check.matrix(op, "A", A, 3)
    _check.same_kind(op, "S", S, "A", A)
    _check.matrix(op, "S", S, 3)
    _check_rule(op, "A", A)
    _check_terms(op, "S", S, "A", A)
    batch = _check.broadcast_batch(op, "S", S, 3, "A", A, 3)
    compute = _check.COMPUTE_DTYPE[A.dtype]
    A, S = (_check.expand(_check.cast(array, compute), (*batch, *array.shape[-3:])) for array in (A, S))
    return _weight(1, A, S)[0]


def phm_linear(x: Any, A: Any, S: Any, bias: Any = None, *, method: str = "auto") -> Any:
    r"""A hypercomplex layer: a linear map whose weight is a sum of Kronecker products and is not formed.

    .. math:: y = x W^\top + b, \qquad W = \sum_i A_i \otimes S_i

    Features are component-major: feature q k + b of x is entry b of component q.

    Args:
        x: (\*rows, q k); float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy. Where A or S has
            batch dimensions, (\*batch, rows, q k).
        A: (terms, p, q), the rule of multiplication, learned or of :func:`algebra`; or (\*batch, terms, p, q). Any
            floating type; read as the type computed in.
        S: (terms, l, k), the components of the weight; or (\*batch, terms, l, k). Likewise.
        bias: (p l,) or (\*batch, p l), or None.
        method: "direct" mixes the components of x first, after which every entry of S is read once: for few rows.
            "compose" composes blocks of W in the cache, as they are multiplied. "auto" takes one by the shapes. "rank"
            is for a rule that is constant: as many products as :func:`rank_decomposition` finds, 8 of 16 for
            quaternions. Its values are read in every call, for which a GPU is waited for; it must not require a
            gradient.

    Returns:
        (\*rows, p l), or (\*batch, rows, p l); float64 for float64 x and float32 otherwise.

    Raises:
        TypeError, ValueError: wrong arrays or shapes, an unknown method. A width that the rule does not divide is named
            together with the nearest that it divides. With "rank" a rule that has batch dimensions, requires a
            gradient, cannot be read or has no decomposition.

    Cost:
        For n terms of an n x n rule, 2 in out flops for each row, as of a dense layer, and 2 n in out for composing
        W once for up to 480 rows; n times fewer weights are read, which for few rows is what takes time. Extra memory
        of up to 480 rows of x, or terms times x where "direct" is asked for, never of W.

    Gradient:
        Closed form, in blocks: dx = dy W and the blocks of dy^T x, which are contracted with A to dS and with S to dA
        while they are in the cache. 4 in out flops a row and 6 n in out. x, A and S are saved.

    Source:
        Zhang et al. 2021, Beyond Fully-Connected Layers with Quaternions, equations 2 and 3. Replaces ``PHMLinear`` of
        ``phc-gnn``, ``HyperNets`` and, with A_i and S_i transposed, ``Compacter`` and ``adapters``.

    >>> import numpy as np, subspan
    >>> A, S = subspan.algebra("complex", 2), np.array([[[3.0]], [[4.0]]])
    >>> print(subspan.phm_linear(np.array([1.0, 2.0]), A, S))  # (3 + 4i) (1 + 2i)
    [-5. 10.]
    """
    op = "phm_linear"
    path = _check.choice(op, "method", method, METHODS)
    if usual(x, A, S, bias=bias):
        (terms, p, q), (weights, l, k) = A.shape, S.shape  # noqa: E741
        fitting = x.shape[1] == q * k and terms == weights and terms * p * q > 0
        if fitting and (bias is None or bias.shape[0] == p * l):
            if path != METHODS["rank"]:
                return _linear(1, x, A, S, bias, path)[0]
            return _rank_entry(op, A, x)(1, x, S, bias)[0]
    _check.matrix(op, "x", x, 1)
    for name, array in (("A", A), ("S", S)):
        _check.same_kind(op, name, array, "x", x)
        _check.matrix(op, name, array, 3)
    _check_rule(op, "A", A)
    _check_terms(op, "S", S, "A", A)
    given = {"A": A, "S": S}
    check_length(op, "x", x, A.shape[-1], S.shape[-1], given)
    if bias is not None:
        _check.same_kind(op, "bias", bias, "x", x)
        _check.matrix(op, "bias", bias, 1)
        check_length(op, "bias", bias, A.shape[-2], S.shape[-2], given)
    compute = _check.COMPUTE_DTYPE[x.dtype]
    rule, A, S = A, _check.cast(A, compute), _check.cast(S, compute)
    bias = None if bias is None else _check.cast(bias, compute)
    if path == METHODS["rank"]:
        entry = _rank_entry(op, rule, x)
        return map_rows(op, entry, x, {"S": S}, bias, A.shape[-2] * S.shape[-2], ())
    return map_rows(op, _linear, x, {"A": A, "S": S}, bias, A.shape[-2] * S.shape[-2], (path,))
