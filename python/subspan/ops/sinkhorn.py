"""Doubly stochastic matrices from scores: Sinkhorn's scaling of rows and columns."""

from __future__ import annotations

from typing import Any

from .. import _check, _native, _route

composite: Any = None  # without torch there is nothing to compose
if _check.torch is not None:
    from ..composite import sinkhorn as composite

_GRADS = {"last": 0, "unrolled": 1, "implicit": 2}
_IMPLICIT = _GRADS["implicit"]
_SCHEMA = "float temperature, int iterations, int grad"


def _backward(upstream: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any) -> tuple[Any]:
    """By kernel, but in torch operations where the gradient will be differentiated, or is that of the fixed point."""
    (scores, *_), P = tensors, saved[0]
    arguments = (scores, P, upstream, *parameters)
    if parameters[2] == _IMPLICIT or _route.in_torch(upstream):
        gradient = composite.sinkhorn_gradient(*arguments)
    else:
        gradient = _sinkhorn_gradient(1, *arguments)[0]
    return (gradient.to(scores.dtype),)


_sinkhorn_gradient = _route.register(
    _route.Op(
        name="sinkhorn_gradient",
        inputs=(("scores", 2), ("P", 2), ("upstream", 2)),
        schema=_SCHEMA,
        outputs=("compute",),
        shapes=lambda scores, *_: (tuple(scores.shape),),
        kernel=_native.cpu.sinkhorn_gradient,
        composite=lambda *args: (composite.sinkhorn_gradient(*args),),
        gradient=lambda *args: (composite.sinkhorn_gradient(*args),),
        backward=lambda g, saved, tensors, parameters, scaled: composite.sinkhorn_gradient_backward(
            g, tensors, parameters
        ),
        saves=(),
    )
)

_sinkhorn = _route.register(
    _route.Op(
        name="sinkhorn",
        inputs=(("scores", 2),),
        schema=_SCHEMA,
        outputs=("compute",),
        shapes=lambda scores, *_: (tuple(scores.shape),),
        kernel=_native.cpu.sinkhorn,
        composite=lambda *args: (composite.sinkhorn(*args),),
        gradient=lambda *args: (composite.sinkhorn(*args),),
        backward=_backward,
        saves=(),
    )
)


def sinkhorn(scores: Any, temperature: float, iterations: int = 5, grad: str = "last") -> Any:
    r"""Scales the exponentials of scores so that rows sum to 1 and columns, in the limit, to equal amounts.

    .. math:: P = \operatorname{diag}(u) \exp(\text{scores} / \text{temperature}) \operatorname{diag}(v)

    In turn u makes every row sum to 1 and v every column to k/n, ``iterations`` half-steps of which the last is one of
    the rows: rows sum to 1 whatever the number. An odd number starts with the rows, an even one with the columns.

    Args:
        scores: (\*batch, k, n); float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy. -inf forbids
            a pairing: its probability is 0. A forbidden column stays 0, a forbidden row makes its item NaN.
        temperature: number > 0. Small ones approach a matching, large ones the uniform matrix.
        iterations: number of half-steps, >= 1. One is the softmax of every row. Always all are done: what is returned
            does not depend on a test of convergence.
        grad: which derivative is meant, see below: "last", "unrolled" or "implicit".

    Returns:
        (\*batch, k, n), float64 for float64 input and float32 otherwise. Entries below the smallest normal number are
        0. In the logarithm an entry is exact to some roundings of the largest ``|scores| / temperature``.

    Raises:
        TypeError, ValueError: wrong array; temperature not a finite number > 0; iterations not an integer >= 1; an
            unknown ``grad``.

    Cost:
        (iterations + 1) / 2 passes over the scores with one exponential of each entry; two more for a step in which
        some column all but underflows. No memory beyond some vectors of k and n. "unrolled" adds as many passes and
        exponentials again in the forward direction and one per pair of half-steps backwards; "implicit"
        k n m + m^3 / 3 multiplications in float64 with m = min(k, n).

    Gradient:
        Saved are the scores and P, nothing for each half-step. With upstream G, o the entrywise product:

        - "last": the derivative of the last half-step alone, with v a constant:
          ``P o (G - rowsum(G o P)) / temperature``.
        - "unrolled": the derivative of what is computed, through all half-steps.
        - "implicit": the derivative of the limit of infinitely many half-steps, evaluated at P as if P were that limit:
          ``P o (G - a - b) / temperature`` where a (of the rows) and b (of the columns) solve
          ``[diag(r) Q; Q^T diag(c)] [a; b] = [rowsum(G o P); colsum(G o P)]``, Q = P, with its own row and column sums
          r and c. Only a + b is unique and only that is used.

        "last" and "unrolled" agree for one iteration. "unrolled" converges to "implicit" as iterations grow, at the
        rate of P itself. "last" agrees with neither in general: it ignores that v answers to the scores. The gradient
        of a forbidden pairing is 0. Second derivatives differentiate the formula that was chosen.

    Source:
        Sinkhorn 1967; Cuturi 2013, Sinkhorn Distances. ``SinkhornDistance`` of LeslieTrue/CPP, whose plan times its
        number of columns is this with ``grad="last"`` for a square matrix and an odd number of iterations.

    >>> import numpy as np, subspan
    >>> P = subspan.sinkhorn(np.array([[2.0, 1.0], [1.0, 1.0]]), 0.5)  # one pairing is better than the others
    >>> print(P.round(4), P.sum(1))
    [[0.7393 0.2607]
     [0.2773 0.7227]] [1. 1.]
    """
    op = "sinkhorn"
    _check.matrix(op, "scores", scores)
    temperature = _check.positive(op, "temperature", temperature)
    iterations = _check.count(op, "iterations", iterations)
    return _sinkhorn(1, scores, temperature, iterations, _check.choice(op, "grad", grad, _GRADS))[0]
