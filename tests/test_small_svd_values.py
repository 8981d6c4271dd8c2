"""Singular values alone of small matrices, by bidiagonal reduction and quotient-difference transforms: their accuracy
on matrices chosen to be hard, and that a matrix does not notice what is beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from sample_arrays import normal, uniform
from subspan import _native

REAL = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def singular_values(M: Tensor, threads: int = 2) -> tuple[Tensor, Tensor]:
    """The values and the kernel's reports."""
    *batch, m, n = M.shape
    dtype = torch.float64 if M.dtype == torch.float64 else torch.float32
    values = torch.full((*batch, min(m, n)), -1, dtype=dtype)
    info = torch.full(batch, -1, dtype=torch.int32)
    _native.cpu.small_svd(M, values, None, None, info, threads)
    return values, info


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


def shapes(n: int) -> list[tuple[int, int]]:
    return [(n, n), (n + 1, n), (n, 2 * n + 1), (3 * n, n)]


def assert_accurate(found: dict[str, Tensor], exact: np.ndarray) -> None:
    """Errors relative to the largest value grow as the root of the size."""
    M = torch.stack(list(found.values()))
    m, n = M.shape[-2:]
    values, info = singular_values(M)
    assert info.eq(0).all(), [name for name, report in zip(found, info, strict=True) if report]
    assert (values.diff() <= 0).all()
    assert (values >= 0).all()
    limits = torch.finfo(M.dtype)
    for name, ours, right in zip(found, values.numpy(), exact, strict=True):
        error = np.abs(ours.astype(exact.dtype) - right).max()
        bound = 4 * limits.eps * math.sqrt(max(m, n)) * right[0] + limits.eps * limits.smallest_normal
        assert error <= bound, (name, m, n, float(error / (limits.eps * right[0])) if right[0] else ours)


@pytest.mark.parametrize("sizes", [range(1, 21), range(21, 41), range(41, 56), range(56, 71)], ids=str)
def test_accuracy_in_float32(sizes: range) -> None:
    for size in sizes:
        for m, n in shapes(size)[: 4 if size in (1, 2, 3, 4, 7, 8, 16, 17, 32, 33) else 1]:
            found = matrices(m, n, torch.float32)
            exact = np.linalg.svd(torch.stack(list(found.values())).double().numpy(), compute_uv=False)
            assert_accurate(found, exact)


@pytest.mark.parametrize("sizes", [range(1, 12), range(12, 18), range(18, 23), (33,), (48,)], ids=str)
def test_accuracy_in_float64(sizes: range) -> None:
    for size in sizes:
        for m, n in shapes(size)[: 4 if size < 12 else 1]:
            found = matrices(m, n, torch.float64)
            assert_accurate(found, exact_values(torch.stack(list(found.values())).numpy()))


@REAL
def test_known_values(dtype: torch.dtype) -> None:
    for n in range(1, 71):
        second_difference = (2 * torch.eye(n) - torch.ones(n - 1).diag(1) - torch.ones(n - 1).diag(-1)).to(dtype)
        angles = torch.arange(n, 0, -1, dtype=torch.float64) * torch.pi / (2 * (n + 1))
        order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
        diagonal = torch.arange(n, 0, -1).to(dtype)[order].diag()[order.flip(0)]
        ours, info = singular_values(torch.stack([second_difference, diagonal, torch.zeros(n, n, dtype=dtype)]))
        epsilon = torch.finfo(dtype).eps
        expected = 4 * angles.sin() ** 2
        assert info.eq(0).all()
        assert (ours[0] - expected).abs().max() <= 4 * epsilon * math.sqrt(n) * expected[0]
        assert (ours[1] - torch.arange(n, 0, -1)).abs().max() <= 4 * epsilon * math.sqrt(n) * n
        assert ours[2].eq(0).all()
    hadamard = torch.ones(1, 1, dtype=dtype)
    for power in range(7):
        ours, _ = singular_values(hadamard)
        assert (ours - 2 ** (power / 2)).abs().max() <= 4 * torch.finfo(dtype).eps * 2**power
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])


@REAL
@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 3), (8, 8), (5, 21), (17, 16), (33, 33)])
def test_a_matrix_does_not_notice_others(m: int, n: int, dtype: torch.dtype) -> None:
    M = torch.stack(list(matrices(m, n, dtype).values()))
    together, _ = singular_values(M)
    for shift in (1, 7, 16):
        assert singular_values(M.roll(shift, 0))[0].equal(together.roll(shift, 0))
    for index in range(0, len(M), 5):
        assert singular_values(M[index])[0].equal(together[index])
    for wrong in (math.nan, math.inf, -math.inf):
        spoiled = M.clone()
        spoiled[::3, -1, 0] = wrong
        values, info = singular_values(spoiled)
        assert values[::3].isnan().all()
        assert info.eq(0).all()
        kept = torch.arange(len(M)) % 3 != 0
        assert values[kept].equal(together[kept])


@REAL
@pytest.mark.parametrize(("m", "n"), [(8, 8), (40, 12), (33, 70)])
def test_any_number_of_threads_gives_the_same_bits(m: int, n: int, dtype: torch.dtype) -> None:
    M = normal(0, 701, m, n, dtype=dtype)
    alone, _ = singular_values(M, 1)
    for threads in (2, 3, 8):
        assert singular_values(M, threads)[0].equal(alone)


@REAL
def test_strides_and_empty_arrays(dtype: torch.dtype) -> None:
    M = normal(0, 5, 4, 9, 14, dtype=dtype)
    for view in (M[:, ::2, 1:, ::2], M.transpose(0, 1), M[1:2].expand(3, -1, -1, -1), M.flip(0)[..., ::3]):
        values, info = singular_values(view)
        assert values.equal(singular_values(view.contiguous())[0])
        assert info.eq(0).all()
    columns_first = M.mT.contiguous().mT
    assert singular_values(columns_first)[0].equal(singular_values(M)[0])
    for shape in ((0, 3, 3), (4, 0, 3), (4, 3, 0)):
        values, info = singular_values(torch.zeros(shape, dtype=dtype))
        assert values.numel() == 0
        assert info.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    M = normal(0, 19, 7, 12, dtype=dtype)
    assert singular_values(M)[0].equal(singular_values(M.float())[0])
