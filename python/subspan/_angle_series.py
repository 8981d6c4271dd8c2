"""The factor arccos(c) / sqrt(1 - c^2) of the logarithm, an angle over its sine, as a polynomial."""

from __future__ import annotations

import math

_COUNT = 23


def _cosine(multiple: int) -> float:
    """Of a multiple of half the angle between neighbouring zeros of the Chebyshev polynomial of degree _COUNT."""
    return math.cos(math.pi * (multiple % (4 * _COUNT)) / (2 * _COUNT))


def _angle_over_sine(x: float) -> float:
    z = (1 - x) / 4  # (1 - c) / 2, the squared sine of half the angle
    return math.asin(math.sqrt(z)) / math.sqrt(z * (1 - z))


def _coefficient(m: int) -> float:
    terms = (_angle_over_sine(_cosine(2 * j + 1)) * _cosine(m * (2 * j + 1)) for j in range(_COUNT))
    return math.fsum(terms) * (2 if m else 1) / _COUNT


#: Chebyshev coefficients on 0 <= c <= 1, in 2 c - 1. The function is analytic at c = 1, where it is 1, and singular at
#: c = -1 only, three times as far from the middle of the interval as its ends: each coefficient is 3 + 8^1/2 times
#: smaller than the one before, and 23 of them reach rounding.
ANGLE_OVER_SINE: tuple[float, ...] = tuple(_coefficient(m) for m in range(_COUNT))
