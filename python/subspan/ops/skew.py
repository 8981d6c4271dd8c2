"""Orthogonal matrices from skew ones: the Cayley transform and the exponential."""

from __future__ import annotations

import math
from typing import Any

from .. import _check, _native, _route

cayley_composite: Any = None  # without torch there is nothing to compose
expm_composite: Any = None
if _check.torch is not None:
    from ..composite import cayley as cayley_composite
    from ..composite import skew_expm as expm_composite

_cayley_gradient = _route.register(
    _route.Op(
        name="cayley_gradient",
        inputs=(("W", 2), ("G", 2)),
        schema="",
        outputs=("compute",),
        shapes=lambda W, G: (tuple(W.shape),),
        kernel=_native.cpu.cayley_gradient,
        composite=lambda W, G: (cayley_composite.cayley_gradient(W, G),),
        saves=(),
        public="cayley",
    )
)


def _cayley_backward(g: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any) -> tuple[Any]:
    """By kernel, but in torch operations where the gradient will be differentiated or is one of many."""
    (W,) = saved
    if _route.in_torch(g):
        gradient = cayley_composite.cayley_gradient(W, g)
    else:
        (gradient,) = _cayley_gradient(1, W, g)
    return (gradient.to(tensors[0].dtype),)


_cayley = _route.register(
    _route.Op(
        name="cayley",
        inputs=(("A", 2),),
        schema="",
        outputs=("compute",),
        shapes=lambda A: (tuple(A.shape),),
        kernel=_native.cpu.cayley,
        composite=lambda A: cayley_composite.cayley(A),
        gradient=lambda A: (cayley_composite.cayley_inverse(A),),
        backward=_cayley_backward,
    )
)

_triangle_gradient = _route.register(
    _route.Op(
        name="cayley_of_triangle_gradient",
        inputs=(("W", 2), ("turned", 2), ("G", 2)),
        schema="",
        outputs=("compute",),
        shapes=lambda W, *_: (tuple(W.shape),),
        kernel=_native.cpu.cayley_of_triangle_gradient,
        composite=lambda *args: (cayley_composite.cayley_of_triangle_gradient(*args),),
        saves=(),
        public="orthogonal",
    )
)


def _triangle_backward(g: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any) -> tuple[Any, None]:
    """As _cayley_backward. The base is a constant."""
    W, turned = saved
    turned = None if tensors[1] is None else turned
    if _route.in_torch(g):
        gradient = cayley_composite.cayley_of_triangle_gradient(W, turned, g)
    else:
        (gradient,) = _triangle_gradient(1, W, turned, g)
    return gradient.to(tensors[0].dtype), None


_triangle = _route.register(
    _route.Op(
        name="cayley_of_triangle",
        inputs=(("A", 2), ("base", 2)),
        schema="",
        outputs=("compute",),
        shapes=lambda A, base: (tuple(A.shape),),
        kernel=_native.cpu.cayley_of_triangle,
        composite=lambda *args: cayley_composite.cayley_of_triangle(*args),
        gradient=lambda *args: cayley_composite.triangle_inverse(*args),
        backward=_triangle_backward,
        saves=(0, 1),
        public="orthogonal",
    )
)


def cayley_of_triangle(A: Any, base: Any = None) -> Any:
    """base Q, or Q, for the Cayley transform Q of L - L^T, where L is the strict lower triangle of A (*batch, n, n), of
    which nothing else is read; without a gradient to base, of equal batch shape and of the type computed in."""
    return _triangle(1, A, base)[0]


_packed_gradient = _route.register(
    _route.Op(
        name="cayley_of_packed_gradient",
        inputs=(("W", 2), ("G", 2)),
        schema="",
        outputs=("compute",),
        shapes=lambda W, G: ((*W.shape[:-2], W.shape[-1] * (W.shape[-1] - 1) // 2),),
        kernel=_native.cpu.cayley_of_packed_gradient,
        composite=lambda W, G: (cayley_composite.cayley_of_packed_gradient(W, G),),
        saves=(),
        public="OrthogonalBlocks",
    )
)


def _packed_backward(g: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any) -> tuple[Any]:
    """As _cayley_backward."""
    (W,) = saved
    if _route.in_torch(g):
        gradient = cayley_composite.cayley_of_packed_gradient(W, g)
    else:
        (gradient,) = _packed_gradient(1, W, g)
    return (gradient.to(tensors[0].dtype),)


def _packed_shape(a: Any) -> tuple[int, ...]:
    """The order n of n (n - 1) / 2 numbers."""
    n = (1 + math.isqrt(1 + 8 * a.shape[-1])) // 2
    return (*a.shape[:-1], n, n)


_packed = _route.register(
    _route.Op(
        name="cayley_of_packed",
        inputs=(("a", 1),),
        schema="",
        outputs=("compute",),
        shapes=lambda a: (_packed_shape(a),),
        kernel=lambda a, *rest: _native.cpu.cayley_of_packed(a[..., None, :], *rest),
        composite=lambda a: cayley_composite.cayley_of_packed(a),
        gradient=lambda a: (cayley_composite.packed_inverse(a),),
        backward=_packed_backward,
        saves=(0,),
        saved_shapes=lambda a: (_packed_shape(a),),
        public="OrthogonalBlocks",
    )
)


def cayley_of_packed(a: Any) -> Any:
    """(I - A)^-1 (I + A) of the skew matrix A of order n with the entries a (*batch, n (n - 1) / 2) above the diagonal,
    row after row, as torch.triu_indices orders them."""
    return _packed(1, a)[0]


_skew_expm_gradient = _route.register(
    _route.Op(
        name="skew_expm_gradient",
        inputs=(("A", 2), ("Q", 2), ("G", 2)),
        schema="",
        outputs=("compute",),
        shapes=lambda A, *_: (tuple(A.shape),),
        kernel=_native.cpu.skew_expm_gradient,
        composite=lambda A, Q, G: (expm_composite.skew_expm_gradient(A, G),),
        saves=(),
        public="skew_expm",
    )
)


def _skew_expm_backward(g: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any) -> tuple[Any]:
    """As _cayley_backward. The kernel makes use of the result, the formula that is differentiated does not."""
    (A,) = tensors
    if _route.in_torch(g):
        gradient = expm_composite.skew_expm_gradient(A, g)
    else:
        (gradient,) = _skew_expm_gradient(1, A, *saved, g)
    return (gradient.to(A.dtype),)


_skew_expm = _route.register(
    _route.Op(
        name="skew_expm",
        inputs=(("A", 2),),
        schema="",
        outputs=("compute",),
        shapes=lambda A: (tuple(A.shape),),
        kernel=_native.cpu.skew_expm,
        composite=lambda A: expm_composite.skew_expm(A),
        gradient=lambda A: (),
        backward=_skew_expm_backward,
        saves=(),
    )
)


def square(op: str, name: str, array: Any) -> None:
    _check.matrix(op, name, array)
    if array.shape[-1] != array.shape[-2]:
        raise ValueError(f"{op}: {name}: expected square matrices (*batch, n, n), got shape {tuple(array.shape)}")


def cayley(A: Any) -> Any:
    r"""The Cayley transform: a rotation matrix for every skew matrix.

    .. math:: Q = \left(I - \tfrac12 K\right)^{-1} \left(I + \tfrac12 K\right), \qquad K = \tfrac12 (A - A^\top)

    Only the skew part of A counts, so that A may be a free parameter: with its lower triangle alone, K is half of what
    ``torch.nn.utils.parametrizations.orthogonal`` takes. Every orthogonal Q without the eigenvalue -1 is the transform
    of one K.

    Args:
        A: (\*batch, n, n); float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy.

    Returns:
        Q (\*batch, n, n), float64 for float64 input and float32 otherwise. An item that is not finite is NaN.

    Raises:
        TypeError: A is no array of a floating point type.
        ValueError: A is not (\*batch, n, n).

    Cost:
        2 n^3 flops and 4 n^3 for the gradient: one inverse W = (I - K/2)^-1 without row exchanges, which its symmetric
        part I allows, with Q = 2 W - I. Up to n = 64 matrices lie side by side in SIMD lanes. Where the sum of absolute
        values in a row of K exceeds 32, one or two steps of Newton's method follow, 4 n^3 flops each; a float32 matrix
        for which it exceeds 900 is inverted in float64.

    Gradient:
        (S - S^T) / 2 with S = W^T G W^T, smooth everywhere: two products. A and W are saved. Second derivatives in
        torch operations.

    Source:
        Cayley 1846, Sur quelques propriétés des déterminants gauches. Replaces ``torch.linalg.solve(I - K/2,
        I + K/2)``, the map "cayley" of ``torch.nn.utils.parametrizations.orthogonal`` and, exactly, the truncated
        Neumann series of PEFT's OFT.

    >>> import numpy as np, subspan
    >>> print(subspan.cayley(np.array([[0.0, -4.0], [0.0, 0.0]])))  # K = [[0, -2], [2, 0]]: a quarter of a turn
    [[ 0. -1.]
     [ 1.  0.]]
    """
    square("cayley", "A", A)
    return _cayley(1, A)[0]


def skew_expm(A: Any) -> Any:
    r"""The exponential of a skew matrix, a rotation matrix.

    .. math:: Q = \exp K, \qquad K = \tfrac12 (A - A^\top)

    Only the skew part of A counts, so that A may be a free parameter. Every rotation is the exponential of some K.

    Args:
        A: (\*batch, n, n); float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy.

    Returns:
        Q (\*batch, n, n), orthogonal to rounding for K of any size; float64 for float64 input and float32 otherwise. An
        item that is not finite is NaN.

    Raises:
        TypeError: A is no array of a floating point type.
        ValueError: A is not (\*batch, n, n).

    Cost:
        4 products of n x n matrices and an inverse (5 in float64), one more product for every doubling of the norm of K
        beyond 1.9 (0.95) and 2 after every fourth. The gradient takes 11 (18) products and 3 for every doubling of the
        largest sum of absolute values in a row of K beyond 0.5: no matrix of order 2 n is formed. Without the kernel
        (on CUDA, and in second derivatives) a norm above 512 is NaN under torch.compile and vmap.

    Gradient:
        The integral of exp(t K) N exp(-t K) over t from 0 to 1, where N is the skew part of Q^T g, by commutators and
        doublings; smooth everywhere, equal angles included. A and Q are saved. Second derivatives in torch operations.

    Source:
        Higham 2005, The scaling and squaring method for the matrix exponential revisited. Replaces
        ``torch.matrix_exp(K)``, whose gradient is the exponential of a matrix of order 2 n, and the map "matrix_exp" of
        ``torch.nn.utils.parametrizations.orthogonal``.

    >>> import numpy as np, subspan
    >>> print(subspan.skew_expm(np.array([[0.0, -np.pi], [0.0, 0.0]])).round(12))  # K is half of it: a quarter turn
    [[ 0. -1.]
     [ 1.  0.]]
    """
    square("skew_expm", "A", A)
    return _skew_expm(1, A)[0]
