"""Rules of multiplication of the algebras that hypercomplex layers are named after."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _check

SIDES = {"left": 0, "right": 1}
#: The dimensions of the division algebras and of the next that doubling gives.
DIMENSIONS = {"complex": 2, "quaternion": 4, "octonion": 8, "sedenion": 16}
NAMES = {name: i for i, name in enumerate((*DIMENSIONS, "cyclic", "klein"))}


def _cayley_dickson(n: int) -> np.ndarray:
    """T[i, p, q] = coefficient p of e_i e_q, with (a, b)(c, d) = (a c - d* b, d a + b c*) for halves of the numbers."""
    if n == 1:
        return np.ones((1, 1, 1))
    half, m = _cayley_dickson(n // 2), n // 2
    sign = np.where(np.arange(m) == 0, 1.0, -1.0)  # of a conjugate's coefficients
    swapped = half.transpose(2, 1, 0)  # coefficient p of e_q e_i
    T = np.zeros((n, n, n))
    T[:m, :m, :m] = half
    T[m:, :m, m:] = -swapped * sign
    T[:m, m:, m:] = swapped
    T[m:, m:, :m] = half * sign
    return T


def _group(n: int, product: Any) -> np.ndarray:
    """The group algebra of indices 0 ... n - 1."""
    T = np.zeros((n, n, n))
    i, q = np.indices((n, n))
    T[i, product(i, q), q] = 1
    return T


def algebra(name: str, n: int, side: str = "left", conjugate: bool = False) -> Any:
    r"""The rule of an algebra's multiplication, for :func:`phm_linear` and :func:`phm_weight`.

    .. math:: (w \cdot x)_p = \sum_{i, q} A_{i, p, q}\, w_i\, x_q

    so that a layer with components S multiplies by hypercomplex numbers whose coefficients are matrices.

    Args:
        name: "complex" (n = 2), "quaternion" (4), "octonion" (8) and "sedenion" (16) by Cayley-Dickson doubling,
            (a, b)(c, d) = (a c - d* b, d a + b c*); "cyclic", circular convolution of any length; "klein", the group
            algebra of n = 2^m bit strings, e_i e_q = e_(i xor q).
        n: dimension of the algebra.
        side: "left" for w x, "right" for x w.
        conjugate: w* in place of w: its imaginary coefficients, or, of a group, the inverse elements.

    Returns:
        (n, n, n), a float64 NumPy array of 0, 1 and -1; ``torch.from_numpy`` makes a tensor of it.

    Raises:
        TypeError, ValueError: an unknown name or side, a dimension that the algebra does not have.

    Cost:
        n^3 entries, built anew in every call.

    Gradient:
        Not differentiable: constants.

    Source:
        Cayley-Dickson as in Baez 2002, The Octonions. ``phc-gnn``'s "standard" rule is the quaternions' only for n = 4
        and no division algebra beyond; the quaternion layers of SpeechBrain and Orkis are "quaternion", left; those of
        the first PHM code, and ``phc-gnn``'s newer class, have ``conjugate=True``.

    >>> import numpy as np, subspan
    >>> A = subspan.algebra("quaternion", 4)
    >>> i, j = np.eye(4)[1:3]
    >>> print(np.einsum("ipq,i,q->p", A, i, j))  # i j = k
    [0. 0. 0. 1.]
    """
    op = "algebra"
    _check.choice(op, "name", name, NAMES)
    right = _check.choice(op, "side", side, SIDES) == 1
    _check.flag(op, "conjugate", conjugate)
    n = _check.count(op, "n", n)
    if n != DIMENSIONS.get(name, n):
        raise ValueError(f"{op}: n: expected {DIMENSIONS[name]} for {name!r}, got {n}")
    if name == "klein" and n & (n - 1):
        raise ValueError(f"{op}: n: expected a power of two for 'klein', got {n}")
    if name == "cyclic":
        T = _group(n, lambda i, q: (i + q) % n)
    elif name == "klein":
        T = _group(n, lambda i, q: i ^ q)
    else:
        T = _cayley_dickson(n)
    if right:
        T = T.transpose(2, 1, 0)
    if conjugate:
        if name == "cyclic":
            T = T[-np.arange(n) % n]
        elif name in DIMENSIONS:
            T = T * np.where(np.arange(n) == 0, 1.0, -1.0)[:, None, None]
    return np.ascontiguousarray(T)
