"""Sinkhorn's scaling as it is defined, in float64 NumPy, one matrix at a time.

Sinkhorn, Diagonal equivalence to matrices with prescribed row and column sums, 1967
Cuturi, Sinkhorn Distances: Lightspeed Computation of Optimal Transport, 2013, arXiv:1306.0895
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def sinkhorn(scores: ArrayLike, temperature: float, iterations: int = 5, grad: str = "last") -> Array:
    """diag(u) exp(scores / temperature) diag(v): the logarithms of u and v in turn, the rows last. `grad` says what the
    derivative is to be, and makes no difference here."""
    scores = np.asarray(scores, dtype=np.float64)
    P = np.zeros(scores.shape)
    for item in np.ndindex(scores.shape[:-2]):
        if P[item].size:
            log_u, log_v = log_scalings(scores[item] / temperature, iterations)[-1]
            P[item] = np.exp(scores[item] / temperature + log_u[:, None] + log_v)
            if np.isnan(P[item]).any():
                P[item] = np.nan
    return P


def log_scalings(exponents: Array, iterations: int) -> list[tuple[Array, Array]]:
    """log u and log v after every half-step; rows sum to 1 after a row step, columns to k/n after a column step."""
    rows, columns = exponents.shape
    log_u, log_v = np.zeros(rows), np.zeros(columns)
    steps = []
    for remaining in range(iterations, 0, -1):
        if remaining % 2:
            log_u = -log_sum_exp(exponents + log_v)
        else:
            sums = log_sum_exp((exponents + log_u[:, None]).T)
            log_v = np.where(sums == -np.inf, 0, np.log(rows / columns) - sums)
        steps.append((log_u, log_v))
    return steps


def log_sum_exp(x: Array) -> Array:
    """Over the last dimension; -inf where every entry is."""
    peak = x.max(-1)
    finite = np.where(np.isfinite(peak), peak, 0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        result: Array = finite + np.log(np.exp(x - finite[..., None]).sum(-1))
    return result
