"""Small matrices that are hard on the computation of singular values and eigenvalues, and their exact values."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sample_arrays import normal, uniform


def orthonormal(seed: int, n: int, k: int) -> Tensor:
    return torch.linalg.qr(normal(seed, n, k)).Q


def with_values(seed: int, m: int, n: int, values: np.ndarray) -> Tensor:
    k = len(values)
    return orthonormal(seed, m, k) * torch.from_numpy(values) @ orthonormal(seed + 1, n, k).mT


def powers(count: int, base: float, largest: int) -> Tensor:
    return base ** -torch.arange(count, dtype=torch.float64).clamp_max(largest)


def divided(seed: int, m: int, n: int) -> Iterator[tuple[str, Tensor]]:
    """Matrices that fall apart into blocks, in exact arithmetic or by many zeros."""
    r, c = m // 2, n // 2
    for name, scales in {"two blocks": (1.0, 1e-3), "two blocks, small first": (1e-3, 1.0)}.items():
        M = torch.zeros(m, n, dtype=torch.float64)
        M[:r, :c] = scales[0] * normal(seed, r, c)
        M[r:, c:] = scales[1] * normal(seed + 1, m - r, n - c)
        yield name, M
    blocks, twins = torch.zeros(2, m, n, dtype=torch.float64)
    for i in range(0, m, 3):
        blocks[i : i + 3, i : i + 3] = normal(seed + i, *blocks[i : i + 3, i : i + 3].shape)
    for i in range(0, min(m, n) - 1, 2):
        twins[i : i + 2, i : i + 2] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    yield "many blocks", blocks
    yield "equal blocks", twins
    yield "sparse", normal(seed, m, n) * (uniform(seed, m, n) < 0.35)
    for name, rows, columns in (("zero columns", 1, 2), ("zero rows", 2, 1), ("first zero", m + 1, n + 1)):
        M = normal(seed, m, n)
        if columns > 1:
            M[:, ::columns] = 0
        if rows > 1:
            M[::rows] = 0
        yield name, M


def with_spectrum(seed: int, m: int, n: int) -> Iterator[tuple[str, Tensor]]:
    k = min(m, n)
    at = np.arange(k)
    yield "clustered", with_values(seed, m, n, 1 + 1e-9 * at)
    yield "two values", with_values(seed, m, n, np.where(at < k // 2, 3.0, 1.0))
    yield "one large", with_values(seed, m, n, np.where(at == 0, 1.0, 1e-3))
    yield "one very large", with_values(seed, m, n, np.where(at == 0, 1.0, 1e-9))
    yield "one small", with_values(seed, m, n, np.where(at == k - 1, 1e-7, 1.0))
    yield "clusters", with_values(seed, m, n, 0.5 ** (at // 4))
    yield "close pairs", with_values(seed, m, n, 1 + at // 2 + 1e-6 * (at % 2))
    yield "geometric", with_values(seed, m, n, np.geomspace(1, 1e-12, k))
    yield "rank one", normal(seed, m, 1) @ normal(seed + 1, 1, n)
    yield "half rank", normal(seed, m, (k + 1) // 2) @ normal(seed + 1, (k + 1) // 2, n)


def matrices(m: int, n: int, dtype: torch.dtype) -> dict[str, Tensor]:
    seed = 100 * m + n
    i, j = torch.arange(m, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    random = normal(seed, m, n)
    least = 1e-41 if dtype == torch.float32 else 1e-310
    sine, cosine = math.sin(1.2), math.cos(1.2)
    near = (i - j).abs() == 1
    found = {
        "normal": random,
        "uniform": uniform(seed, m, n),
        "columns graded down": random * powers(n, 10, 30),
        "columns graded up": random * powers(n, 10, 30).flip(0),
        "graded both ways": random * powers(n, 3, 40) * powers(m, 3, 40)[:, None],
        "zero": torch.zeros(m, n),
        "ones": torch.ones(m, n),
        "identity": torch.eye(m, n),
        "permutation": torch.eye(m, n)[torch.randperm(m, generator=torch.Generator().manual_seed(seed))],
        "orthonormal": orthonormal(seed, m, n) if m >= n else orthonormal(seed, n, m).mT,
        "signs": random.sign(),
        "hilbert": 1 / (i + j + 1),
        "kahan": sine**i * ((i == j).double() - cosine * (j > i)),
        "second difference": 2.0 * (i == j) - 1.0 * near,
        "wilkinson": (i - m // 2).abs() * (i == j) + near,
        "upper bidiagonal": 1.0 * (i == j) + (j == i + 1),
        "diagonal": (7 * i % 11 + 1) * (i == j),
        "diagonal, graded": powers(m, 10, 30)[:, None] * (i == j),
        "tiny": 1e-30 * random,
        "huge": 1e30 * random,
        "subnormal": least * random,
        "largest": uniform(seed, m, n) * (torch.finfo(dtype).max / (2 * max(m, n))),
        **dict(divided(seed, m, n)),
        **dict(with_spectrum(seed, m, n)),
    }
    return {name: M.to(dtype) for name, M in found.items()}


def exact_values(M: np.ndarray) -> np.ndarray:
    """By Jacobi's method in long double: LAPACK in float64 may be wrong by 35 units in the last place (clustered)."""
    wide = M.shape[-2] < M.shape[-1]
    x = np.ascontiguousarray((M if wide else M.swapaxes(-1, -2)).astype(np.longdouble))  # rows become orthogonal
    size = np.abs(x).max((-2, -1), keepdims=True)
    size[size == 0] = 1
    x /= size
    count = x.shape[-2]
    if count % 2:
        x = np.concatenate([x, np.zeros_like(x[:, :1])], 1)
    half = x.shape[-2] // 2
    epsilon = np.finfo(np.longdouble).eps
    for _ in range(30):
        largest = 0
        for _ in range(max(2 * half - 1, 1)):
            p, q = x[:, :half], x[:, half:][:, ::-1]
            a, b, g = (p * p).sum(-1), (q * q).sum(-1), (p * q).sum(-1)
            proper = np.minimum(a, b) > (16 * epsilon) ** 2 * (x * x).sum((-2, -1))[:, None]
            largest = max(largest, (np.abs(g) / np.where(proper, np.sqrt(a * b), np.inf)).max())
            zeta = (b - a) / np.where(g == 0, 1, 2 * g)
            tangent = np.where(zeta < 0, -1, 1) / (np.abs(zeta) + np.sqrt(1 + zeta * zeta))
            tangent = np.where(proper & (g != 0), tangent, 0)[..., None]
            cosine = 1 / np.sqrt(1 + tangent * tangent)
            p, q = cosine * (p - tangent * q), cosine * (tangent * p + q)
            x = np.concatenate([p[:, :1], q[:, :1], p[:, 1:], q[:, 1:][:, ::-1]], 1)  # the next pairs of a round robin
        if largest < 8 * epsilon * x.shape[-1]:
            break
    else:
        raise AssertionError("the reference has not converged")
    return size[..., 0] * -np.sort(-np.sqrt((x * x).sum(-1)))[:, :count]


def exact_eigenvalues(A: np.ndarray) -> np.ndarray:
    """Of symmetric matrices, ascending: singular values of what a multiple of the identity has made definite."""
    A = A.astype(np.longdouble)
    shift = 2 * np.abs(A).sum(-1).max(-1)
    return exact_values(A + shift[:, None, None] * np.eye(A.shape[-1]))[:, ::-1] - shift[:, None]
