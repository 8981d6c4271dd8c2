"""Newton-Schulz iterations: nearly orthogonal matrices by products alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _check, _native, _route

composite: Any = None  # without torch there is nothing to compose
if _check.torch is not None:
    from ..composite import newton_schulz as composite

Polynomial = tuple[float, float, float]

# Theorem 3.1 with l = 1e-3; `reference.newton_schulz.polar_express` computes these numbers.
_OPTIMAL = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
_SAFETY = 1.01  # divides the argument, so that rounding leads nobody out of the interval of convergence
_QUINTIC = (15 / 8, -10 / 8, 3 / 8)

#: The polynomials a x + b x^3 + c x^5 by name, one for a step; the last one also serves all later steps.
POLYNOMIALS: dict[str, tuple[Polynomial, ...]] = {
    "muon": ((3.4445, -4.7750, 2.0315),),
    "polar_express": (*((a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5) for a, b, c in _OPTIMAL), _QUINTIC),
    "cubic": ((3 / 2, -1 / 2, 0.0),),
    "quintic": (_QUINTIC,),
}

_newton_schulz = _route.register(
    _route.Op(
        name="newton_schulz",
        inputs=(("G", 2),),
        schema="float[] coefficients",
        outputs=("compute",),
        shapes=lambda G, *_: (tuple(G.shape),),
        kernel=_native.cpu.newton_schulz,
        composite=lambda *args: composite.newton_schulz(*args),
        gradient=lambda *args: (),
        backward=lambda g, saved, tensors, parameters, scaled: (
            composite.newton_schulz_gradient(g, *tensors, *parameters),
        ),
        saves=(),
    )
)


def polynomials(steps: int, coefficients: Any) -> list[Polynomial]:
    """a, b and c of every step."""
    op, name = "newton_schulz", "coefficients"
    steps = _check.count(op, "steps", steps)
    if isinstance(coefficients, str):
        _check.choice(op, name, coefficients, dict.fromkeys(POLYNOMIALS, 0))
        given: list[Any] = list(POLYNOMIALS[coefficients])
    elif not isinstance(coefficients, (tuple, list)) or not coefficients:
        kinds = f"{', '.join(map(repr, POLYNOMIALS))}, (a, b, c) or a list of such"
        got = type(coefficients).__name__ if not isinstance(coefficients, (tuple, list)) else "nothing"
        raise TypeError(f"{op}: {name}: expected {kinds}, got {got}")
    else:
        given = list(coefficients) if isinstance(coefficients[0], (tuple, list)) else [coefficients]
        for polynomial in given:
            if not isinstance(polynomial, (tuple, list)) or len(polynomial) != 3:
                raise ValueError(f"{op}: {name}: expected three numbers (a, b, c) for a step, got {polynomial!r}")
        given = [tuple(_check.number(op, name, number) for number in polynomial) for polynomial in given]
    return [given[min(k, len(given) - 1)] for k in range(steps)]


def newton_schulz(G: Any, steps: int = 5, coefficients: Any = "muon") -> Any:
    r"""Matrices with the singular vectors of G and singular values near 1, by products of matrices alone.

    .. math:: X_0 = \frac{G}{\|G\|_F}, \qquad X_{k+1} = a_k X_k + b_k (X_k X_k^\top) X_k + c_k (X_k X_k^\top)^2 X_k

    With G = U S V^T this is U p(S) V^T for a composition p of odd polynomials of S / |G|. How close p comes to 1 is the
    coefficients' choice. Five steps of ``"muon"`` take singular values above 3e-3 |G| to between 0.68 and 1.21, and
    smaller ones to at most 485 times themselves: meant, and not orthogonal. Eight of ``"polar_express"`` take all above
    1e-3 |G| to 1 within rounding, five to between 0.84 and 1.13.

    Args:
        G: (\*batch, m, n), wide or tall, or a list of such arrays of any shapes and types, which are worked on
            together; float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy, one kind in a list.
        steps: of the iteration, an integer >= 1.
        coefficients: ``"muon"``; ``"polar_express"``, the optimal composition for singular values in [1e-3, 1] with the
            published safety factor of 1.01; ``"cubic"`` (3/2, -1/2, 0) and ``"quintic"`` (15/8, -5/4, 3/8), the methods
            of Newton and Schulz; (a, b, c) for all steps; or a list of (a, b, c), one for each step, the last of which
            also serves all later steps.

    Returns:
        The shape and type of G, or a list of them; computed in float64 for float64 input and in float32 otherwise. A
        matrix of zeros gives zeros; one that is not finite gives NaN.

    Raises:
        TypeError, ValueError: wrong arrays, a number of steps that is no integer >= 1, wrong coefficients.

    Cost:
        With s = min(m, n) and l = max(m, n): s^2 (4 s steps + 3 l) flops, since all but the first and the last product
        are of symmetric s x s matrices. Where small singular values would be lost in that, and before a last step that
        undoes errors, the iteration starts anew from X_k, for 3 s^2 (l - s) flops more. Scratch memory of four s x s
        matrices for each thread, and less than one matrix of G for the rest. On devices without a kernel matrices of
        equal shape in a list are stacked.

    Gradient:
        In closed form. Nothing is saved but G: the backward pass repeats the iteration and keeps X_k of every step
        while it runs. At G = 0, where no derivative exists, it is 0.

    Source:
        Jordan et al. 2024, Muon, ``zeropower_via_newtonschulz5`` of KellerJordan/Muon; Amsel, Persson, Musco, Gower
        2025, The Polar Express (arXiv 2505.16932), theorem 3.1 and section 4.4; the iteration on the shorter side is
        Gram Newton-Schulz (Dao-AILab). Replaces ``torch.optim.Muon``'s loop over matrices.

    >>> import numpy as np, subspan
    >>> Q = subspan.newton_schulz(np.array([[3.0, 0.0], [0.0, -0.1]]), 8, "polar_express")
    >>> print(Q.round(6) + 0.0)
    [[ 1.  0.]
     [ 0. -1.]]
    """
    result = newton_schulz_unrounded(G, steps, coefficients)
    if isinstance(G, (list, tuple)):
        return [_check.cast(X, matrix.dtype) for X, matrix in zip(result, G, strict=True)]
    return _check.cast(result, G.dtype)


def newton_schulz_unrounded(G: Any, steps: int = 5, coefficients: Any = "muon") -> Any:
    """newton_schulz in the type that it is computed in: float32 where G is of half precision."""
    op = "newton_schulz"
    if not isinstance(G, (list, tuple)):
        _check.matrix(op, "G", G)
        numbers = [number for polynomial in polynomials(steps, coefficients) for number in polynomial]
        return _newton_schulz(1, G, numbers)[0]
    for i, matrix in enumerate(G):
        if not (_check.is_torch(matrix) or isinstance(matrix, np.ndarray) or _check.is_cupy(matrix)):
            raise TypeError(f"{op}: G: expected arrays in a list, got {type(matrix).__name__} at position {i}")
        name = f"G[{i}]"
        _check.matrix(op, name, matrix)
        if i > 0:
            _check.same_kind(op, name, matrix, "G[0]", G[0])
    numbers = [number for polynomial in polynomials(steps, coefficients) for number in polynomial]
    return of_list(list(G), numbers) if G else []


def of_list(matrices: list[Any], numbers: Sequence[float], least_norm: float = 0.0) -> list[Any]:
    """All of a list in one call of the kernel, where no call has to be recorded. `least_norm`, for those that need no
    gradient: matrices of a smaller norm are divided by this instead."""
    if _route.kernel_serves(matrices):
        results = [_route.empty_result(matrix) for matrix in matrices]
        arrays = _route.kernel_arrays(matrices)
        _native.cpu.newton_schulz_list(arrays, results, list(numbers), least_norm, _route.threads())
        return results
    if least_norm > 0:
        raised: list[Any] = composite.by_shape(matrices, lambda stack: composite.iterate(stack, numbers, least_norm))
        return raised
    if _check.is_torch(matrices[0]) and not matrices[0].is_cpu:
        stacked: list[Any] = composite.by_shape(matrices, lambda stack: _newton_schulz(1, stack, numbers)[0])
        return stacked
    return [_newton_schulz(1, matrix, numbers)[0] for matrix in matrices]
