"""Compacter's adapter: a bottleneck between two low-rank hypercomplex products, in one pass over the rows."""

from __future__ import annotations

import math
from typing import Any

from .. import _check, _native, _route
from .phm import check_length, phm_weight, rounded

composite: Any = None  # without torch there is nothing to compose
if _check.torch is not None:
    from ..composite import phm_adapter as composite

ACTIVATIONS = {"relu": 0, "gelu": 1, "gelu_tanh": 2, "silu": 3}
_FACTORS = (("A", 3), ("U", 3), ("V", 3), ("bias", 1))
_INPUTS = (("x", 2), *_FACTORS, *((f"up_{name}", core) for name, core in _FACTORS))


def _output_shape(x: Any, *arrays: Any) -> tuple[int, ...]:
    return (*x.shape[:-1], arrays[4].shape[-2] * arrays[5].shape[-2])


def _gradient_shapes(x: Any, *arguments: Any) -> tuple[tuple[int, ...], ...]:
    arrays, (wants_x, wants_factors) = arguments[:8], arguments[-2:]
    nothing = (*x.shape[:-2], 0)
    shapes = [nothing if a is None or not wants_factors else tuple(a.shape) for a in arrays]
    return (tuple(x.shape) if wants_x else nothing, *shapes)


_gradient = _route.register(
    _route.Op(
        name="phm_adapter_gradient",
        inputs=(*_INPUTS, ("dy", 2)),
        schema="int activation, bool residual, bool wants_x, bool wants_factors",
        outputs=("compute",) * 9,
        shapes=_gradient_shapes,
        kernel=_native.cpu.phm_adapter_gradient,
        composite=lambda x, *args: composite.phm_adapter_gradient(
            x, args[:4], args[4:8], args[8], *args[9:11], (args[11], *(args[12],) * 8)
        ),
        saves=(),
        public="phm_adapter",
    )
)


def _backward(g: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any, needed: Any) -> Any:
    if _route.in_torch(g):
        x, *factors = tensors
        gradients = composite.phm_adapter_gradient(x, tuple(factors[:4]), tuple(factors[4:]), g, *parameters, needed)
    else:
        gradients = _gradient(9, *tensors, g, *parameters, needed[0], any(needed[1:]))
    return rounded(gradients, tensors, needed)


_adapter = _route.register(
    _route.Op(
        name="phm_adapter",
        inputs=_INPUTS,
        schema="int activation, bool residual",
        outputs=("compute",),
        shapes=lambda *args: (_output_shape(*args),),
        kernel=_native.cpu.phm_adapter,
        composite=lambda *args: composite.phm_adapter(*args),
        gradient=lambda *args: (),
        backward=_backward,
        selective=True,
        saves=(),
    )
)


def _one_term(A: Any, S: Any) -> list[Any]:
    """A map of full rank as A, U and V of one term and one component: 1, I and its weight or, where that has fewer
    columns than rows, 1, its weight and I. Both are composed, which costs as much as a few rows of x."""
    W = phm_weight(A, S)
    size = min(W.shape[-2:])
    if _check.is_torch(W):
        identity = _check.torch.eye(size, dtype=W.dtype, device=W.device)
    else:
        identity = W[..., :size, :size] * 0
        identity[..., range(size), range(size)] = 1
    matrices = (identity, W) if W.shape[-2] <= W.shape[-1] else (W, identity)
    left, right = (_check.expand(m, (*W.shape[:-2], *m.shape[-2:])) for m in matrices)
    one = identity[..., :1, :1]
    return [_check.expand(one, (*W.shape[:-2], 1, 1))[..., None, :, :], left[..., None, :, :], right[..., None, :, :]]


def _factors(op: str, name: str, given: Any, x: Any) -> list[Any]:
    """A, U, V and the bias of (A, U, V, bias), or of (A, S, bias), whose weight is composed."""
    if not isinstance(given, (tuple, list)) or len(given) not in (3, 4):
        got = f"{len(given)} entries" if isinstance(given, (tuple, list)) else type(given).__name__
        raise TypeError(f"{op}: {name}: expected (A, U, V, bias) or (A, S, bias), got {got}")
    *matrices, bias = given
    for letter, array in zip("AUV" if len(given) == 4 else "AS", matrices, strict=True):
        label = f"{name}_{letter}"
        _check.same_kind(op, label, array, "x", x)
        _check.matrix(op, label, array, 3)
        if 0 in array.shape[-3:]:
            expected = "(*batch, terms, rows, columns) without a zero"
            raise ValueError(f"{op}: {label}: expected {expected}, got shape {tuple(array.shape)}")
        if array.shape[-3] != matrices[0].shape[-3]:
            expected = f"as many terms as the {matrices[0].shape[-3]} of {name}_A {tuple(matrices[0].shape)}"
            raise ValueError(f"{op}: {label}: expected {expected}, got shape {tuple(array.shape)}")
    if bias is not None:
        _check.same_kind(op, f"{name}_bias", bias, "x", x)
        _check.matrix(op, f"{name}_bias", bias, 1)
    if len(matrices) == 2:
        A, S = matrices
        if bias is not None:
            check_length(op, f"{name}_bias", bias, A.shape[-2], S.shape[-2], {f"{name}_A": A, f"{name}_S": S})
        _check.broadcast_batch(op, f"{name}_S", S, 3, f"{name}_A", A, 3)
        compute = _check.COMPUTE_DTYPE[x.dtype]
        matrices = _one_term(_check.cast(A, compute), _check.cast(S, compute))
    A, U, V = matrices
    if U.shape[-1] != V.shape[-2]:
        expected = f"(*batch, {V.shape[-3]}, {U.shape[-1]}, k) for {name}_U {tuple(U.shape)}"
        raise ValueError(f"{op}: {name}_V: expected {expected}, got shape {tuple(V.shape)}")
    sizes = {f"{name}_A": A, f"{name}_U": U}
    if bias is not None:
        check_length(op, f"{name}_bias", bias, A.shape[-2], U.shape[-2], sizes)
    compute = _check.COMPUTE_DTYPE[x.dtype]
    return [*(_check.cast(array, compute) for array in matrices), None if bias is None else _check.cast(bias, compute)]


def phm_adapter(x: Any, down: Any, up: Any, activation: str = "gelu", residual: bool = True) -> Any:
    r"""An adapter of two hypercomplex layers and an activation, added to its input, in one pass over the rows of x.

    .. math:: y = x + f(x D^\top + b)\, E^\top + c, \qquad D = \sum_i A_i \otimes U_i V_i, \quad
        E = \sum_i A'_i \otimes U'_i V'_i

    Args:
        x: (\*rows, features); float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy. Where a factor
            has batch dimensions, (\*batch, rows, features).
        down: (A, U, V, b), the factors of D: A (terms, p, q), U (terms, l, rank), V (terms, rank, k) with
            features = q k, and b (p l,) or None; or (A, S, b), S (terms, l, k) in place of U V. All may have batch
            dimensions. Any floating type; read as the type computed in.
        up: the factors of E likewise, which takes the p l hidden units, and c.
        activation: f: "relu", "gelu", "gelu_tanh" (the approximation, ``gelu_new`` of T5) or "silu" (``swish``).
        residual: whether x is added, to as many outputs.

    Returns:
        (\*rows, outputs), or (\*batch, rows, outputs); float64 for float64 x and float32 otherwise.

    Raises:
        TypeError, ValueError: wrong arrays or shapes, an unknown activation, maps that do not follow each other.

    Cost:
        2 terms rank (q k + p l + p q) flops a row for each map. x is read and y written once; hidden units stay in the
        cache. Extra memory of a few rows for each thread.

    Gradient:
        Closed form. x and the factors are saved; hidden units are computed again, 16 rows at a time. Two more passes
        over the rows of dy and x give every gradient. At the kink of relu that of 0.

    Source:
        Karimi Mahabadi et al. 2021, Compacter: Efficient Low-Rank Hypercomplex Adapter Layers, section 3. Replaces
        ``HyperComplexAdapter`` of ``Compacter`` and ``Adapter`` with ``phm_layer`` of ``adapters``, whose matrices are
        the transposed ones.

    >>> import numpy as np, subspan
    >>> A = subspan.algebra("complex", 2)
    >>> one, i = np.array([[[1.0]], [[0.0]]]), np.array([[[0.0]], [[1.0]]])
    >>> x = np.array([1.0, 2.0])  # 1 + 2i; times i is -2 + i, of which relu leaves i
    >>> print(subspan.phm_adapter(x, (A, i, None), (A, one, None), "relu"))
    [1. 3.]
    """
    op = "phm_adapter"
    number = _check.choice(op, "activation", activation, ACTIVATIONS)
    _check.flag(op, "residual", residual)
    _check.matrix(op, "x", x, 1)
    first, second = _factors(op, "down", down, x), _factors(op, "up", up, x)
    check_length(op, "x", x, first[0].shape[-1], first[2].shape[-1], {"down_A": first[0], "down_V": first[2]})
    hidden = first[0].shape[-2] * first[1].shape[-2]
    taken, outputs = second[0].shape[-1] * second[2].shape[-1], second[0].shape[-2] * second[1].shape[-2]
    if taken != hidden:
        raise ValueError(f"{op}: up: expected a map of the {hidden} hidden units that down gives, got one of {taken}")
    if residual and outputs != x.shape[-1]:
        raise ValueError(f"{op}: up: expected as many outputs as x {tuple(x.shape)} has features, got {outputs}")
    if _check.is_torch(x):  # torch.compile does not trace a function that is given one tensor twice
        second = [b.view_as(b) if b is not None and any(b is a for a in first) else b for b in second]
    arrays = [*first, *second]
    cores = [core for _, core in _FACTORS] * 2
    if all(a is None or a.ndim == core for a, core in zip(arrays, cores, strict=True)):
        rows = x if x.ndim == 2 else x.reshape((math.prod(x.shape[:-1]), x.shape[-1]))
        y = _adapter(1, rows, *arrays, number, bool(residual))[0]
        return y if x.ndim == 2 else y.reshape((*x.shape[:-1], outputs))
    if x.ndim < 2:
        expected = "(*batch, rows, features) where a factor has batch dimensions"
        raise ValueError(f"{op}: x: expected {expected}, got shape {tuple(x.shape)}")
    batch = tuple(x.shape[:-2])
    names = [f"{side}_{name}" for side in ("down", "up") for name, _ in _FACTORS]
    for name, array, core in zip(names, arrays, cores, strict=True):
        if array is not None:
            batch = _check.broadcast_batch(op, name, array, core, "x", _check.expand(x, (*batch, *x.shape[-2:])), 2)
    x = _check.expand(x, (*batch, *x.shape[-2:]))
    arrays = [
        None if a is None else _check.expand(a, (*batch, *a.shape[a.ndim - core :]))
        for a, core in zip(arrays, cores, strict=True)
    ]
    return _adapter(1, x, *arrays, number, bool(residual))[0]
