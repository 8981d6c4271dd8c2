"""The CUDA kernels of small_svd, run on the host by the emulator. As test_cuda_emulated.py."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from subspan import _native
from test_cuda_emulated import emulated, every_dtype

#: (rows, columns) at both ends of every range the launcher tells apart: a thread, five shapes of groups, shared memory.
SHAPES = [(1, 1), (2, 2), (3, 4), (4, 4), (4, 1), (5, 5), (8, 8), (8, 2), (3, 7), (9, 8), (16, 8), (16, 3)]
SHAPES += [(9, 9), (16, 16), (12, 15), (17, 9), (32, 16), (20, 32), (32, 31), (17, 8), (33, 32), (40, 5), (2, 70)]
#: One of each range.
ONE_EACH = [(3, 3), (7, 8), (14, 6), (13, 16), (18, 12), (20, 20), (50, 6)]


@pytest.fixture(autouse=True)
def fixed_schedule() -> Iterator[None]:
    emulated.set_seed(1)
    yield


def small_svd(M, *, vectors=True):
    """(values, left, right, info), into arrays whose old content would be noticed."""
    *batch, m, n = M.shape
    k = min(m, n)
    values, info = np.full((*batch, k), 7, M.dtype), np.full(batch, 99, np.int32)
    left = np.full((*batch, m, k), 7, M.dtype) if vectors else None
    right = np.full((*batch, k, n), 7, M.dtype) if vectors else None
    emulated.small_svd(M, values, left, right, info, 0)
    return values, left, right, info


def normal(*shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def assert_orthonormal(columns, eps):
    """A rotation keeps a norm up to one rounding, and each column takes part in some 8 k; its own norm has `rows`."""
    rows, k = columns.shape[-2:]
    product = np.swapaxes(columns, -1, -2).astype(np.float64) @ columns
    assert (np.abs(product - np.eye(k)) <= (4 * k + np.sqrt(rows)) * eps).all()


def assert_svd(result, M):
    """LAPACK's bounds: errors of size eps times the dimensions, relative to the largest singular value."""
    values, left, right, info = result
    m, n = M.shape[-2:]
    eps, exact = np.finfo(M.dtype).eps, M.astype(np.float64)
    expected = np.linalg.svd(exact, compute_uv=False)
    bound = eps * (m + n) * expected.max(-1, initial=0)[..., None] + np.finfo(M.dtype).smallest_subnormal * (m + n)
    assert (np.abs(values - expected) <= bound).all()
    assert (values >= 0).all() and (np.diff(values) <= 0).all()
    assert (info == 0).all()
    if left is not None:
        assert_orthonormal(left, eps)
        assert_orthonormal(np.swapaxes(right, -1, -2), eps)
        product = (left.astype(np.float64) * values[..., None, :]) @ right
        assert (np.abs(product - exact) <= bound[..., None]).all()


@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_decompositions(shape, dtype):
    M = normal(5, *shape, dtype=dtype)
    M[1] = 0
    M[2] = np.outer(M[2, :, 0], M[2, 0])
    M[3] = np.eye(*shape)
    result = small_svd(M)
    assert_svd(result, M)
    plain = small_svd(M, vectors=False)
    assert_svd(plain, M)
    np.testing.assert_allclose(plain[0], result[0], rtol=0, atol=np.finfo(dtype).eps * 4 * result[0].max())
    assert (result[0][1] == 0).all() and (result[0][3] == 1).all()


@every_dtype
@pytest.mark.parametrize("shape", ONE_EACH, ids=str)
def test_repeated_and_deficient(shape, dtype):
    """Singular values that repeat, that are tiny and zero, and columns that are equal or zero."""
    m, n = shape
    k = min(m, n)
    U, V = (np.linalg.qr(normal(4, size, k, dtype=np.float64, seed=size))[0] for size in (m, n))
    values = np.ones((4, k))
    values[1, 1:] = 1e-3
    values[2] = np.linspace(1, 0, k) ** 8
    values[3, k // 2 :] = 0
    M = ((U * values[:, None]) @ np.swapaxes(V, -1, -2)).astype(dtype)
    equal = normal(2, *shape, dtype=dtype)
    equal[0, :, 1:] = equal[0, :, :1]
    equal[1, :, -1] = equal[1, 0] = 0
    M = np.concatenate([M, equal])
    assert_svd(small_svd(M), M)


@every_dtype
@pytest.mark.parametrize("shape", [(4, 4), (8, 8), (16, 10), (30, 24), (60, 8)], ids=str)
def test_small_singular_values_keep_their_digits(shape, dtype):
    """Of graded columns: the method's error is relative to each column, not to the largest (Demmel, Veselic 1992)."""
    m, n = shape
    columns = np.linalg.qr(normal(3, m, n, dtype=np.float64))[0]
    grades = 2.0 ** -np.arange(n)[::-1] if dtype == np.float32 else 10.0 ** -np.arange(n)[::-1]
    M = ((columns + 0.1 / n * normal(3, m, n, dtype=np.float64, seed=1)) * grades).astype(dtype)
    values, _, _, info = small_svd(M)
    # The reference, too, must not lose them: R of the graded columns, longest first, keeps their relative accuracy.
    expected = np.array([_graded_values(item) for item in M.astype(np.longdouble)])
    np.testing.assert_allclose(values, expected, rtol=8 * (m + n) * np.finfo(dtype).eps)
    assert (info == 0).all()


def _graded_values(M):
    """One-sided Jacobi in long double, column by column."""
    X = M[:, np.argsort(-np.linalg.norm(M.astype(np.float64), axis=0))].copy()
    for _ in range(20):
        for p in range(X.shape[1]):
            for q in range(p + 1, X.shape[1]):
                x, y = X[:, p].copy(), X[:, q].copy()
                g = x @ y
                if g == 0:
                    continue
                zeta = (y @ y - x @ x) / (2 * g)
                t = np.copysign(1, zeta) / (abs(zeta) + np.sqrt(1 + zeta * zeta))
                c = 1 / np.sqrt(1 + t * t)
                X[:, p], X[:, q] = c * x - c * t * y, c * t * x + c * y
    return np.sort(np.sqrt((X * X).sum(0)))[::-1].astype(np.float64)


@every_dtype
@pytest.mark.parametrize("shape", [(2, 2), (6, 6), (20, 20), (2, 40)], ids=str)
@pytest.mark.parametrize("place", ["smallest", "small", "large"])
def test_scales(place, shape, dtype):
    """Squares of entries would underflow or overflow; the smallest are subnormal."""
    info = np.finfo(dtype)
    scale = {
        "smallest": float(info.smallest_subnormal) * 1000,
        "small": float(info.tiny),
        "large": float(info.max) / 200,
    }
    M = (np.clip(normal(3, *shape, dtype=np.float64), -3, 3) * scale[place]).astype(dtype)
    result = small_svd(M)
    scaled = (M.astype(np.float64) / scale[place], result[0].astype(np.float64) / scale[place])
    expected = np.linalg.svd(scaled[0], compute_uv=False)
    rounding = sum(shape) * (info.eps if place == "large" else max(info.eps, info.smallest_subnormal / scale[place]))
    np.testing.assert_allclose(scaled[1], expected, rtol=0, atol=rounding * expected.max())
    if place == "large":
        assert_orthonormal(result[1], info.eps)


@every_dtype
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", ONE_EACH, ids=str)
def test_item_that_is_not_finite_stays_alone(shape, value, dtype):
    """Its neighbours in the same warp keep their last bit."""
    M = normal(3, *shape, dtype=dtype)
    expected = small_svd(M)
    M[1, -1, 0] = value
    result = small_svd(M)
    for got, want in zip(result[:3], expected[:3], strict=True):
        assert np.isnan(got[1]).all()
        np.testing.assert_array_equal(got[::2], want[::2])
    assert result[3][0] == result[3][2] == 0
    assert np.isnan(small_svd(M, vectors=False)[0][1]).all()


@every_dtype
@pytest.mark.parametrize(
    ("batch", "shape"),
    [(2100, (3, 2)), (270, (6, 7)), (150, (4, 10)), (70, (34, 2))],
    ids=["thread", "8", "16", "shared"],
)
def test_batch_larger_than_a_grid(batch, shape, dtype):
    """The emulator's grid holds 16 blocks, so that these are launched in parts; an item does not see its neighbours."""
    M = normal(batch, *shape, dtype=dtype)
    result = small_svd(M)
    assert_svd(result, M)
    for item in (0, 1, batch // 2, batch - 1):
        for got, alone in zip(result, small_svd(M[item]), strict=True):
            np.testing.assert_array_equal(got[item], alone)


@every_dtype
@pytest.mark.parametrize("shape", [(4, 3), (7, 7), (5, 12), (36, 3)], ids=str)
def test_strides(shape, dtype):
    m, n = shape
    M = normal(2, 3, m, n, dtype=dtype)
    expected = small_svd(M)
    spaced = np.full((2, 5, 3 * m, 2 * n), np.nan, dtype)
    spaced[:, :3, ::3, ::2] = M
    layouts = {
        "columns first": np.swapaxes(np.ascontiguousarray(np.swapaxes(M, -1, -2)), -1, -2),
        "batch last": np.moveaxis(np.ascontiguousarray(np.moveaxis(M, (0, 1), (-1, -2))), (-1, -2), (0, 1)),
        "spaced": spaced[:, :3, ::3, ::2],
        "negative": np.ascontiguousarray(M[::-1, :, ::-1, ::-1])[::-1, :, ::-1, ::-1],
    }
    for name, layout in layouts.items():
        assert layout.strides != M.strides
        for got, want in zip(small_svd(layout), expected, strict=True):
            np.testing.assert_array_equal(got, want, err_msg=name)
    values = small_svd(np.broadcast_to(M[0, 0], (4, 3, m, n)))[0]
    np.testing.assert_array_equal(values, np.broadcast_to(expected[0][0, 0], values.shape))


@pytest.mark.parametrize("shape", [(0, 3, 5, 5), (2, 0, 4), (2, 40, 0), (2, 0, 9000), (3, 0, 0)], ids=str)
def test_empty(shape):
    values, left, right, info = small_svd(np.zeros(shape))
    assert values.size == 0 and left.size == 0 and right.size == 0 and (info == 0).all()


@every_dtype
@pytest.mark.parametrize("shape", [(8, 8), (16, 10), (40, 7)], ids=str)
def test_results_do_not_depend_on_the_schedule(shape, dtype):
    M = normal(5, *shape, dtype=dtype)
    M[2, :, -1] = 0
    expected = small_svd(M)
    for seed in range(2, 5):
        emulated.set_seed(seed)
        for got, want in zip(small_svd(M), expected, strict=True):
            np.testing.assert_array_equal(got, want)


@every_dtype
@pytest.mark.parametrize("rank", [1, 8, 32])
def test_longest(rank, dtype):
    length = emulated.small_svd_max_length(np.dtype(dtype).itemsize, rank, 0)
    M = normal(rank, length, dtype=dtype)
    values, left, _, info = small_svd(M)
    expected = np.linalg.svd(M.astype(np.float64), compute_uv=False)
    # A product of columns this long errs by the square root of their length, in a direction that does not accumulate.
    np.testing.assert_allclose(values, expected, rtol=4 * np.sqrt(length) * np.finfo(dtype).eps)
    assert info == 0
    assert_orthonormal(left, np.finfo(dtype).eps)
    with pytest.raises(ValueError, match=f"small_svd: M: expected at most {length} .*, got {length + 1}"):
        small_svd(np.zeros((length + 1, rank), dtype))


def test_kernel_and_cpu_agree():
    """The same numbers from both devices, to rounding."""
    M = normal(9, 12, 12, dtype=np.float64)
    values, left, right, _ = small_svd(M)
    other = np.empty_like(values)
    _native.cpu.small_svd(M, other, None, None, None, 1)
    np.testing.assert_allclose(values, other, rtol=1e-13)
    np.testing.assert_allclose((left * other[:, None]) @ right, M, atol=1e-13)


def test_wrong_arguments():
    M, values, left, right = np.eye(4)[None], np.zeros((1, 4)), np.zeros((1, 4, 4)), np.zeros((1, 4, 4))
    bad_calls = {
        "M: expected at least 2": (np.zeros(4), values, None, None, None),
        "M: expected a floating": (M.astype(np.int32), values, None, None, None),
        "M: expected at most 32 rows or columns on the shorter side, got 33": (
            np.eye(33),
            np.zeros(33),
            None,
            None,
            None,
        ),
        "values: wrong dtype": (M, values.astype(np.float32), None, None, None),
        "values: expected 4 elements": (M, np.zeros((1, 5)), None, None, None),
        "left: expected with right": (M, values, left, None, None),
        "left: expected 16": (M, values, left[..., :3].copy(), right, None),
        "right: expected a packed": (M, values, left, np.zeros((1, 4, 8))[..., ::2], None),
        "info: wrong dtype": (M, values, None, None, np.zeros(1)),
        "float32 or float64": (M.astype(np.float16), values.astype(np.float32), None, None, None),
    }
    for message, arguments in bad_calls.items():
        with pytest.raises(ValueError, match="small_svd: .*" + message):
            emulated.small_svd(*arguments, 0)
    with pytest.raises(ValueError, match="small_svd_max_length: itemsize"):
        emulated.small_svd_max_length(2, 8, 0)
    assert emulated.small_svd_max_length(8, 33, 0) == 0
