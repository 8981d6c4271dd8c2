"""How rounding errors grow in Sinkhorn's scaling, per item, in float64.

A half-step is a logsumexp: it computes a potential to an error of its own, of the exponents (three roundings of scores
and potentials over the temperature), of the sum and of the exponential and logarithm. It passes on the errors of the
potentials it reads no larger than they are, since its weights are a probability. So the errors of all half-steps add,
and the logarithm of an entry is wrong by at most twice their sum: once through its exponent, once through the row's
sum.
"""

from __future__ import annotations

import numpy as np

from op_row import Bounds
from subspan.reference.sinkhorn import log_scalings, sinkhorn


def sum_size(scores: np.ndarray) -> int:
    """Roundings of the longest sum, of the exponential, the logarithm and the product with the reciprocal."""
    return max(scores.shape) + 3


def log_growth(scores: np.ndarray, temperature: float, iterations: int) -> float:
    """Growth of the error in the logarithm of an entry."""
    exponents = scores / temperature
    steps = log_scalings(exponents, iterations)
    largest = np.abs(exponents).max() + max(np.abs(log_u).max() + np.abs(log_v).max() for log_u, log_v in steps)
    return float(iterations * (1 + 3 * largest / sum_size(scores)))


def sinkhorn_growth(scores: np.ndarray, temperature: float, iterations: int = 5, grad: str = "last") -> Bounds:
    size = sum_size(scores)
    if not scores.size:
        return Bounds(size, (np.zeros(scores.shape),), {"scores": np.zeros(scores.shape)})
    P = sinkhorn(scores, temperature, iterations)
    growth = log_growth(scores, temperature, iterations)
    # P o (G - rowsum(G o P)): P is wrong by a factor in both places, and |G| <= 1.
    error = 3 * P
    if grad == "unrolled":
        error = error + earlier_errors(scores / temperature, P, iterations)
    if grad == "implicit":
        error = implicit_errors(P)
    return Bounds(size, (growth * P,), {"scores": growth * error / temperature})


def earlier_errors(exponents: np.ndarray, P: np.ndarray, iterations: int) -> np.ndarray:
    """The recursion of the gradient with absolute values, for the largest gradient of the potentials and its error."""
    mass = exponents.shape[0] / exponents.shape[1]
    largest, error = 2 * P.sum(0), 5 * P.sum(0)  # the column sums' own roundings are two more
    total = np.zeros_like(P)
    steps = log_scalings(exponents, iterations)[:-1]
    for number, (log_u, log_v) in reversed(list(enumerate(steps, start=1))):
        of_columns = (iterations - number) % 2 == 1
        weights = np.exp(exponents + log_u[:, None] + log_v) / (mass if of_columns else 1)
        if not of_columns:
            weights = weights.T
        # An entry of weights is wrong by a factor, and so is the sum of the products.
        passed = weights * (error + 2 * largest)
        total += passed if of_columns else passed.T
        error, largest = passed.sum(1), (weights * largest).sum(1)
    return total


def implicit_errors(P: np.ndarray) -> np.ndarray:
    """[a; b] = M^+ rhs moves by M^+ (d rhs - dM [a; b]) to first order, where every entry of M and rhs, |rhs| <= M's
    sums, is wrong by a factor."""
    r, c = P.sum(1), P.sum(0)
    M = np.block([[np.diag(r), P], [P.T, np.diag(c)]])
    inverse = np.abs(np.linalg.pinv(M))
    sums = np.concatenate([r, c])
    solution = inverse @ sums
    moved = inverse @ (2 * sums + 2 * M @ solution)
    reach = 2 + solution[: len(r), None] + solution[None, len(r) :] + moved[: len(r), None] + moved[None, len(r) :]
    return P * reach
