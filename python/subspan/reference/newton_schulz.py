"""Newton-Schulz iterations in float64 NumPy: polynomials of singular values, and those that are optimal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Polynomial = tuple[float, float, float]

#: Polar Express, section 4.4 of Amsel et al. 2025: polynomials are made for intervals no longer than this, from below.
CUSHION = 0.02407327424182761


def newton_schulz(G: ArrayLike, polynomials: Sequence[Polynomial]) -> Array:
    """U p_K(... p_1(s / |s|)) V^T of G = U s V^T, with p(x) = a x + b x^3 + c x^5."""
    matrices = np.asarray(G, np.float64)
    if not matrices.size:
        return np.zeros(matrices.shape)
    finite = np.isfinite(matrices).all((-1, -2), keepdims=True)
    U, s, Vt = np.linalg.svd(np.where(finite, matrices, 0.0), full_matrices=False)
    norm = np.linalg.norm(s, axis=-1, keepdims=True)
    x = np.divide(s, norm, out=np.zeros_like(s), where=norm > 0)
    return np.where(finite, (U * compose(x, polynomials)[..., None, :]) @ Vt, np.nan)


def compose(x: Array, polynomials: Sequence[Polynomial]) -> Array:
    for a, b, c in polynomials:
        x = a * x + b * x**3 + c * x**5
    return x


def optimal_quintic(lower: float, upper: float) -> Polynomial:
    """The odd polynomial of degree five closest to 1 on [lower, upper], by Remez's exchange.

    By Chebyshev's theorem 1 - p takes its largest value at four points with alternating signs, of which two are the
    ends of the interval and two are where p' = 0.
    """
    if lower > (1 - 5e-6) * upper:  # the limit of a short interval: Newton-Schulz of degree five
        return 15 / 8 / upper, -10 / 8 / upper**3, 3 / 8 / upper**5
    inner, error, previous = np.array([(3 * lower + upper) / 4, (lower + 3 * upper) / 4]), 1.0, np.inf
    while abs(error - previous) > 1e-15:
        x, previous = np.array([lower, *inner, upper]), error
        system = np.stack([x, x**3, x**5, [1.0, -1.0, 1.0, -1.0]], axis=1)
        a, b, c, error = np.linalg.solve(system, np.ones(4))
        inner = np.sqrt((-3 * b + np.array([-1, 1]) * np.sqrt(9 * b**2 - 20 * a * c)) / (10 * c))
    return float(a), float(b), float(c)


def polar_express(lower: float, steps: int, cushion: float = CUSHION) -> list[Polynomial]:
    """The composition closest to 1 on [lower, 1]: each polynomial is optimal for where the previous ones lead
    (theorem 3.1 of Amsel et al. 2025), and scaled so that this interval is centred at 1."""
    low, high, polynomials = lower, 1.0, []
    for _ in range(steps):
        polynomial = optimal_quintic(max(low, cushion * high), high)
        ends = compose(np.array([low, high]), [polynomial])
        a, b, c = (2 * coefficient / float(ends.sum()) for coefficient in polynomial)
        polynomials.append((a, b, c))
        low = float(compose(np.array([low]), [(a, b, c)])[0])
        high = 2 - low
    return polynomials
