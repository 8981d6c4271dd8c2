"""Rules of multiplication as few products: decompositions of (terms, p, q) arrays into rank-one terms."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import _check
from .phm_algebra import algebra

Array = NDArray[np.float64]
#: Of sum ||terms|| / ||A||, by which rounding errors of the products grow.
AMPLIFICATION = 100.0
#: Relative, that is accepted.
RESIDUAL = 1e-8


class RankDecomposition(NamedTuple):
    """A[i, p, q] = sum_r U[i, r] P[p, r] V[q, r], as float64 NumPy arrays, and how well it holds."""

    P: Array
    V: Array
    U: Array
    residual: float
    amplification: float

    @property
    def rank(self) -> int:
        return int(self.P.shape[1])


def _report(A: Array, P: Array, V: Array, U: Array) -> RankDecomposition:
    size = max(float(np.linalg.norm(A)), np.finfo(float).tiny)
    residual = float(np.linalg.norm(np.einsum("ir,pr,qr->ipq", U, P, V) - A)) / size
    terms = np.linalg.norm(P, axis=0) * np.linalg.norm(V, axis=0) * np.linalg.norm(U, axis=0)
    return RankDecomposition(P, V, U, residual, float(terms.sum()) / size)


# --- forms that are known ---


def _rank_one_slices(A: Array) -> tuple[Array, Array, Array] | None:
    """Every A_i a column times a row: one product for each."""
    left, values, right = np.linalg.svd(A)
    if not (values[:, 1:] <= 1e-14 * values[:, :1]).all():
        return None
    return (left[:, :, 0] * values[:, :1]).T, right[:, 0].T, np.eye(len(A))


def _convolution(A: Array) -> tuple[Array, Array, Array] | None:
    """Circular convolution, or with the weights' inverse elements, by the real discrete Fourier transform; a product of
    complex numbers takes three real ones."""
    n = len(A)
    if A.shape != (n, n, n):
        return None
    if np.array_equal(A, algebra("cyclic", n)):
        order = np.arange(n)
    elif np.array_equal(A, algebra("cyclic", n, conjugate=True)):
        order = -np.arange(n) % n
    else:
        return None
    P, V, U = [], [], []
    for frequency in range(n // 2 + 1):
        angles = 2 * np.pi * (frequency * np.arange(n) % n) / n
        cosine, sine = np.cos(angles), np.sin(angles)
        if 2 * frequency % n == 0:
            P.append(cosine / n)
            V.append(cosine)
            U.append(cosine)
            continue
        # (a + ib)(c + id) = (k1 - k3) + i (k1 + k2) with k1 = c (a + b), k2 = a (d - c), k3 = b (c + d)
        P += [2 / n * (cosine - sine), -2 / n * sine, -2 / n * cosine]
        V += [cosine, -sine - cosine, cosine - sine]
        U += [cosine - sine, cosine, -sine]
    return np.array(P).T, np.array(V).T, np.array(U).T[order]


def _best_signs(L: Array) -> tuple[Array, Array, Array]:
    """Signs of rows, columns and weights that make most entries of L, whose entry (p, q) has weight p xor q, one."""
    n = len(L)
    index = np.bitwise_xor.outer(np.arange(n), np.arange(n))
    by_weight = L[np.arange(n), index]  # [w, p]: the entry of row p that has weight w
    columns = index  # of that entry

    def majority(rows: Array, signs: Array) -> tuple[Array, int]:
        sums = (by_weight * rows * signs[columns]).sum(-1)
        return np.where(sums < 0, -1.0, 1.0), int(np.abs(sums).sum())

    best = (np.ones(n), np.ones(n), majority(np.ones(n), np.ones(n))[0])
    most = majority(best[0], best[1])[1]
    if n <= 8:
        halves = [np.array((1.0, *signs)) for signs in itertools.product((1.0, -1.0), repeat=n - 1)]
        for rows, signs in itertools.product(halves, halves):
            weights, count = majority(rows, signs)
            if count > most:
                best, most = (rows, signs, weights), count
        return best
    for _ in range(4 * n):  # one sign after the other, as long as it helps
        before = most
        for side, place in itertools.product((0, 1), range(n)):
            trial = [best[0].copy(), best[1].copy()]
            trial[side][place] *= -1
            weights, count = majority(*trial)
            if count > most:
                best, most = (trial[0], trial[1], weights), count
        if most == before:
            break
    return best


def _signed_xor(A: Array) -> tuple[Array, Array, Array] | None:
    """Cayley-Dickson algebras and Klein groups: entry (p, q) is plus or minus weight p xor q. Up to signs of rows,
    columns and weights most entries are those of the Klein group, which Walsh functions diagonalise; each of the
    others takes one product more."""
    n = len(A)
    if A.shape != (n, n, n) or n & (n - 1) or n > 16:
        return None
    rows, columns = np.indices((n, n))
    L = A[rows ^ columns, rows, columns]
    if np.count_nonzero(A) != n * n or not (np.abs(L) == 1).all():
        return None
    row_signs, column_signs, weight_signs = _best_signs(L)
    walsh = np.ones((1, 1))
    while len(walsh) < n:
        walsh = np.kron(walsh, np.array([[1.0, 1.0], [1.0, -1.0]]))
    corrections = np.argwhere(L * np.outer(row_signs, column_signs) * weight_signs[rows ^ columns] < 0)
    P = [walsh / n * row_signs[:, None]]
    V = [walsh * column_signs[:, None]]
    U = [walsh * weight_signs[:, None]]
    one = np.eye(n)
    for p, q in corrections:
        P.append(2 * L[p, q] * one[:, [p]])
        V.append(one[:, [q]])
        U.append(one[:, [p ^ q]])
    return np.hstack(P), np.hstack(V), np.hstack(U)


# --- alternating least squares ---


def _alternate(A: Array, rank: int, seed: int, iterations: int, tol: float) -> RankDecomposition:
    """Each factor in turn solves its least-squares problem, damped less and less."""
    generator = np.random.default_rng(seed)
    size = float(np.linalg.norm(A))
    unit = A / size
    factors = [generator.standard_normal((length, rank)) for length in A.shape]
    unfolded = [np.moveaxis(unit, axis, 0).reshape(A.shape[axis], -1) for axis in range(3)]
    damping, one = 1e-2, np.eye(rank)
    for step in range(iterations):
        for axis in range(3):
            first, second = (factors[other] for other in range(3) if other != axis)
            pairs = (first[:, None] * second).reshape(-1, rank)
            gram = (first.T @ first) * (second.T @ second) + damping * one
            factors[axis] = np.linalg.solve(gram, (unfolded[axis] @ pairs + damping * factors[axis]).T).T
        damping = max(damping * 0.99, 1e-13)
        if step % 50 == 49:
            norms = [np.linalg.norm(factor, axis=0) for factor in factors]
            common = np.cbrt(norms[0] * norms[1] * norms[2])
            factors = [f * (common / np.maximum(norm, 1e-300)) for f, norm in zip(factors, norms, strict=True)]
            if np.linalg.norm(np.einsum("ir,pr,qr->ipq", *factors) - unit) < tol / 10:
                break
    U, P, V = factors
    return _report(A, P * size, V, U)


def _attempts(A: Array, rank: int | None) -> Iterator[tuple[int, int, int]]:
    """Ranks, seeds and iterations to try, from the rank below which no generic rule goes."""
    terms, p, q = A.shape
    if rank is not None:
        yield from ((rank, seed, 3000) for seed in range(6))
        return
    least = max(np.linalg.matrix_rank(np.moveaxis(A, axis, 0).reshape(A.shape[axis], -1)) for axis in range(3))
    generic = -(-terms * p * q // (terms + p + q - 2))
    for candidate in range(int(least), p * q):
        if candidate > generic + 4:
            return
        yield from ((candidate, seed, 1500) for seed in range(1 if candidate < generic else 4))


def rank_decomposition(A: Any, rank: int | None = None, *, tol: float = RESIDUAL) -> RankDecomposition:
    r"""A fixed rule of multiplication as a sum of rank-one terms: how many products a layer with that rule takes.

    .. math:: A_{i, p, q} = \sum_{r=1}^{R} U_{i, r} P_{p, r} V_{q, r}
        \quad\Rightarrow\quad y_p = \sum_r P_{p, r} \Big(\sum_q V_{q, r} x_q\Big) \Big(\sum_i U_{i, r} S_i\Big)^\top

    which is R / (p q) of the flops of the whole weight. Exact where it is known: R = 3 for complex numbers, 8 for
    quaternions, 30 for octonions, with sides and conjugates; 2 n - floor(n / 2) - 1 for circular convolution; n for
    Klein groups; one for each term where every A_i is a column times a row. Otherwise by alternating least squares from
    fixed starts, which is refused where it does not converge or is badly conditioned.

    Args:
        A: (terms, p, q), the rule. torch, NumPy or CuPy.
        rank: R, or None for the least that is found below p q.
        tol: largest relative residual that is accepted, > 0.

    Returns:
        A named tuple of P (p, R), V (q, R), U (terms, R), float64 NumPy arrays, ``residual``, relative to ||A||, and
        ``amplification``, the sum of the norms of the terms over ||A||, at most 100: rounding errors grow by about as
        much. ``rank`` is R.

    Raises:
        TypeError, ValueError: wrong arguments, values that cannot be read, no decomposition of that rank found.

    Cost:
        None for the rules that are known. A second or two for a learned rule of n = 3 to 6, about ten for n = 8; for
        n = 12 minutes, after which it was refused. For a rule that is frozen, not for every step of a training: the
        terms jump as the rule moves.

    Gradient:
        Not differentiable: the arrays are constants.

    Source:
        Carroll, Chang 1970 and Harshman 1970 for the iteration; Howell, Lafon 1975 for the quaternions' rank 8;
        octonions as 8 products in Walsh functions and 22 corrections.

    >>> import numpy as np, subspan
    >>> print(subspan.rank_decomposition(subspan.algebra("quaternion", 4)).rank)
    8
    """
    op = "rank_decomposition"
    _check.matrix(op, "A", A, 3)
    if A.ndim != 3 or 0 in tuple(A.shape):
        raise ValueError(f"{op}: A: expected shape (terms, p, q) without a zero, got {tuple(A.shape)}")
    tol = _check.positive(op, "tol", tol)
    rank = None if rank is None else _check.count(op, "rank", rank)
    return _decomposition(op, readable_rule(op, A), rank, tol)


def readable_rule(op: str, A: Any) -> Array:
    """The values of a rule as float64."""
    if _check.is_cupy(A):
        A = A.get()
    elif _check.is_torch(A):
        if not _check.readable(A.detach().cpu() if A.is_cuda else A):
            raise ValueError(f"{op}: A: expected values that can be read, got a tensor that is traced or has none")
        A = A.detach().cpu().double().resolve_neg().numpy()
    rule = np.ascontiguousarray(A, dtype=np.float64)
    if not np.isfinite(rule).all():
        raise ValueError(f"{op}: A: expected finite values, got NaN or infinity")
    return rule


def _decomposition(op: str, rule: Array, rank: int | None, tol: float) -> RankDecomposition:
    found, best = _search(rule.tobytes(), rule.shape, rank, tol)
    if found is None:
        of_rank = f"of rank below {rule.shape[1] * rule.shape[2]}" if rank is None else f"of rank {rank}"
        got = "none" if best is None else f"residual {best.residual:.1e} and amplification {best.amplification:.0f}"
        raise ValueError(f"{op}: A: expected a rule with a decomposition {of_rank} within {tol:g}, got {got}")
    return found


@functools.lru_cache(maxsize=64)
def _search(
    values: bytes, shape: tuple[int, ...], rank: int | None, tol: float
) -> tuple[RankDecomposition | None, RankDecomposition | None]:
    """The decomposition, or None and the one of least residual that was refused."""
    A = np.frombuffer(values).reshape(shape)
    known = []
    for form in (_rank_one_slices, _convolution, _signed_xor):
        factors = form(A)
        if factors is not None and (rank is None or factors[0].shape[1] <= rank):
            known.append(_report(A, *factors))
    if known:
        return min(known, key=lambda one: one.rank), None
    best: RankDecomposition | None = None
    for candidate, seed, iterations in _attempts(A, rank):
        trial = _alternate(A, candidate, seed, iterations, tol)
        if trial.residual <= tol and trial.amplification <= AMPLIFICATION:
            return trial, None
        if best is None or trial.residual < best.residual:
            best = trial
    return None, best


def constant_factors(op: str, A: Any, x: Any) -> tuple[Any, ...]:
    """P, V and U of a constant rule, as arrays like x in the type computed in."""
    if A.ndim != 3:
        raise ValueError(f"{op}: A: expected one rule (terms, p, q) for method 'rank', got shape {tuple(A.shape)}")
    if _check.is_torch(A) and A.requires_grad and _check.torch.is_grad_enabled():
        raise ValueError(f"{op}: A: expected a constant for method 'rank', got a tensor that requires a gradient")
    compute = _check.COMPUTE_DTYPE[x.dtype]
    if _check.is_torch(x):
        # Its values are looked up in every call: they may have changed.
        if _check.readable(A) and A.dtype is compute and not (A.is_neg() or A.requires_grad):
            values = A.numpy()
        else:
            values = readable_rule(op, A)
        return _torch_factors(op, values.tobytes(), values.dtype.str, values.shape, x.device, compute)
    factors = _decomposition(op, readable_rule(op, A), None, RESIDUAL)[:3]
    if _check.is_cupy(x):
        import cupy

        return tuple(cupy.asarray(f, dtype=compute) for f in factors)
    return tuple(f.astype(compute) for f in factors)


@functools.lru_cache(maxsize=64)
def _torch_factors(
    op: str, values: bytes, kind: str, shape: tuple[int, ...], device: Any, compute: Any
) -> tuple[Any, ...]:
    rule = np.frombuffer(values, kind).reshape(shape).astype(np.float64)
    if not np.isfinite(rule).all():
        raise ValueError(f"{op}: A: expected finite values, got NaN or infinity")
    factors = _decomposition(op, rule, None, RESIDUAL)[:3]
    return tuple(_check.torch.from_numpy(f).to(device=device, dtype=compute) for f in factors)
