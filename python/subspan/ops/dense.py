"""Dense products of layers, and the layers' functions that are made of them."""

from __future__ import annotations

import math
from typing import Any

from .. import _check, _native, _route

composite: Any = None  # without torch there is nothing to compose
if _check.torch is not None:
    from ..composite import dense as composite


def _affine_backward(g: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any, needed: Any) -> Any:
    """The gradients are affine products themselves, of transposed views."""
    A, B, E = tensors
    scale, _, relu = parameters
    if relu:
        (result,) = saved
        g = _check.torch.where(result > 0, g, 0 * result)  # NaN where the result is
    d_A = d_B = None
    if needed[0]:
        d_A = _route.call_in_backward("affine_product", g, B.mT, None, scale, 0.0, False).to(A.dtype)
    if needed[1]:
        d_B = _route.call_in_backward("affine_product", g.mT, A.mT.to(B.dtype), None, scale, 0.0, False).to(B.dtype)
    return d_A, d_B, None if E is None else g.to(E.dtype)


_affine_product = _route.register(
    _route.Op(
        name="affine_product",
        inputs=(("A", 2), ("B", 2), ("E", 2)),
        schema="float scale, float shift, bool relu",
        outputs=("compute",),
        shapes=lambda A, B, *_: ((*A.shape[:-1], B.shape[-2]),),
        kernel=_native.cpu.affine_product,
        composite=lambda *args: composite.affine_product(*args),
        gradient=lambda *args: composite.affine_product(*args) if args[-1] else (),
        backward=_affine_backward,
        selective=True,
        saves=(),
        public="ista",
    )
)


def affine_product(A: Any, B: Any, E: Any = None, scale: float = 1.0, shift: float = 0.0, relu: bool = False) -> Any:
    """scale A B^T + E + shift for A (m, k), B (n, k), E (m, n) of equal batch shape; with relu its positive part."""
    if E is A and _check.is_torch(A):
        E = A.view_as(A)  # torch.compile does not trace a function that is given one tensor twice
    return _affine_product(1, A, B, E, scale, shift, relu)[0]


def ista(x: Any, D: Any, step: float = 0.1, threshold: float = 0.1) -> Any:
    r"""One step of iterative shrinkage and thresholding towards a sparse code in a dictionary: CRATE's ISTA layer.

    .. math:: \operatorname{relu}\left(x + \eta\,(x - x D^\top) D - \eta\lambda\right)

    Args:
        x: (\*batch, n, d), rows are tokens; float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy.
        D: (d, d), the dictionary, or (\*batch, d, d); row i of x D^T holds the products of token i with the rows of D.
        step: eta, finite number.
        threshold: lambda, finite number.

    Returns:
        (\*batch, n, d), float64 for float64 input and float32 otherwise.

    Raises:
        TypeError, ValueError: wrong arrays or shapes, a parameter that is not a finite number.

    Cost:
        4 n d^2 flops: two products, where x D - (x D^T) D as published takes three. 8 n d^2 in the backward pass.

    Gradient:
        With S the upstream gradient where the result is positive and P = eta S D^T: to x, S + P - P D; to D,
        eta (x - x D^T)^T S - P^T x. At the kink, where the argument of relu is 0, that of 0. x, x - x D^T and the
        result are saved.

    Source:
        Yu et al. 2023, White-Box Transformers via Sparse Rate Reduction, the ISTA block; ``FeedForward`` in
        ``model/crate.py`` of Ma-Lab-Berkeley/CRATE.

    >>> import numpy as np, subspan
    >>> print(subspan.ista(np.array([[1.0, -1.0]]), np.eye(2), threshold=0.5))
    [[0.95 0.  ]]
    """
    op = "ista"
    _check.matrix(op, "x", x)
    _check.same_kind(op, "D", D, "x", x)
    _check.matrix(op, "D", D)
    features = x.shape[-1]
    if tuple(D.shape[-2:]) != (features, features):
        raise ValueError(f"{op}: D: expected (*batch, d, d) for x {tuple(x.shape)}, got shape {tuple(D.shape)}")
    step, threshold = _check.number(op, "step", step), _check.number(op, "threshold", threshold)
    batch = _check.broadcast_batch(op, "D", D, 2, "x", x, 2)
    compute, shape = _check.COMPUTE_DTYPE[x.dtype], (*batch, *x.shape[-2:])
    rows, D = _check.cast(x, compute), _check.cast(D, compute)
    if D.ndim == 2:  # one product for all tokens of all items
        rows = rows.reshape(math.prod(x.shape[:-1]), features)
    else:
        rows, D = _check.expand(rows, shape), _check.expand(D, (*batch, features, features))
    transposed = D.mT if _check.is_torch(D) else D.swapaxes(-1, -2)
    residual = affine_product(rows, D, rows, -1.0)
    code = affine_product(residual, transposed, rows, step, -step * threshold, True)
    return code.reshape(shape)
