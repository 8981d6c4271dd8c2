"""The CUDA kernel of small_eigh, run on the host by the emulator. As test_cuda_emulated.py."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from test_cuda_emulated import emulated, every_dtype
from test_small_svd_emulated import assert_orthonormal, normal

#: Both ends of every range the launcher tells apart: groups of 4, 8, 16 and 32 lanes.
ORDERS = [1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 25, 32]
ONE_EACH = [3, 6, 11, 19]


@pytest.fixture(autouse=True)
def fixed_schedule() -> Iterator[None]:
    emulated.set_seed(1)
    yield


def small_eigh(A, *, vectors=True):
    """(values, vectors, info), into arrays whose old content would be noticed."""
    values, info = np.full(A.shape[:-1], 7, A.dtype), np.full(A.shape[:-2], 99, np.int32)
    columns = np.full(A.shape, 7, A.dtype) if vectors else None
    emulated.small_eigh(A, values, columns, info, 0)
    return values, columns, info


def symmetric(batch, n, dtype, seed=0):
    A = normal(batch, n, n, dtype=np.float64, seed=seed)
    return (A + np.swapaxes(A, -1, -2)).astype(dtype)


def with_values(values, n, dtype, seed=0):
    Q = np.linalg.qr(normal(len(values), n, n, dtype=np.float64, seed=seed))[0]
    A = (Q * np.asarray(values)[:, None]) @ np.swapaxes(Q, -1, -2)
    return ((A + np.swapaxes(A, -1, -2)) / 2).astype(dtype)


def assert_eigh(result, A):
    """LAPACK's bounds: errors of size eps times the order, relative to the largest eigenvalue."""
    values, vectors, info = result
    n, eps, exact = A.shape[-1], np.finfo(A.dtype).eps, A.astype(np.float64)
    expected = np.linalg.eigvalsh(exact)
    bound = eps * 2 * n * np.abs(expected).max(-1, initial=0)[..., None]
    assert (np.abs(values - expected) <= bound).all()
    assert (np.diff(values) >= 0).all() and (info == 0).all()
    if vectors is not None:
        assert_orthonormal(vectors, eps)
        product = (vectors.astype(np.float64) * values[..., None, :]) @ np.swapaxes(vectors, -1, -2)
        assert (np.abs(product - exact) <= bound[..., None]).all()


@every_dtype
@pytest.mark.parametrize("n", ORDERS)
def test_decompositions(n, dtype):
    A = symmetric(6, n, dtype)
    A[1] = 0
    A[2] = np.outer(A[2, 0], A[2, 0])
    A[3] = np.eye(n)
    A[4] = np.diag(np.arange(n)[::-1])
    result = small_eigh(A)
    assert_eigh(result, A)
    plain = small_eigh(A, vectors=False)
    assert_eigh(plain, A)
    np.testing.assert_array_equal(plain[0], result[0])
    assert (result[0][1] == 0).all() and (result[0][3] == 1).all()
    np.testing.assert_array_equal(result[0][4], np.arange(n))  # a diagonal matrix is only sorted


@every_dtype
@pytest.mark.parametrize("n", ONE_EACH)
def test_repeated_and_opposite_values(n, dtype):
    values = np.ones((4, n))
    values[0, ::2] = -1
    values[1, 1:] = 1e-3
    values[2] = np.linspace(1, 0, n) ** 8
    values[3, n // 2 :] = 0
    A = with_values(values, n, dtype)
    assert_eigh(small_eigh(A), A)


@every_dtype
@pytest.mark.parametrize("n", [2, 6, 20])
@pytest.mark.parametrize("place", ["smallest", "small", "large"])
def test_scales(place, n, dtype):
    """Squares of entries would underflow or overflow; the smallest are subnormal."""
    info = np.finfo(dtype)
    scale = {
        "smallest": float(info.smallest_subnormal) * 1000,
        "small": float(info.tiny),
        "large": float(info.max) / 200,
    }
    A = (np.clip(symmetric(3, n, np.float64), -3, 3) * scale[place]).astype(dtype)
    values, vectors, _ = small_eigh(A)
    expected = np.linalg.eigvalsh(A.astype(np.float64) / scale[place])
    rounding = 2 * n * (info.eps if place == "large" else max(info.eps, info.smallest_subnormal / scale[place]))
    np.testing.assert_allclose(values.astype(np.float64) / scale[place], expected, rtol=0, atol=rounding * 3 * n)
    if place == "large":
        assert_orthonormal(vectors, info.eps)


@every_dtype
@pytest.mark.parametrize("n", [3, 8, 12, 25])
def test_only_the_lower_triangle_is_read(n, dtype):
    A = symmetric(2, n, dtype)
    expected = small_eigh(A)
    A[(slice(None), *np.triu_indices(n, 1))] = np.nan
    for got, want in zip(small_eigh(A), expected, strict=True):
        np.testing.assert_array_equal(got, want)


@every_dtype
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", ONE_EACH)
def test_item_that_is_not_finite_stays_alone(n, value, dtype):
    """Its neighbours in the same warp keep their last bit."""
    A = symmetric(3, n, dtype)
    expected = small_eigh(A)
    A[1, -1, 0] = value
    result = small_eigh(A)
    for got, want in zip(result[:2], expected[:2], strict=True):
        assert np.isnan(got[1]).all()
        np.testing.assert_array_equal(got[::2], want[::2])
    assert result[2][0] == result[2][2] == 0


@every_dtype
@pytest.mark.parametrize(("batch", "n"), [(530, 3), (270, 5), (135, 9), (67, 17)])
def test_batch_larger_than_a_grid(batch, n, dtype):
    """The emulator's grid holds 16 blocks, so that these are launched in parts; an item does not see its neighbours."""
    A = symmetric(batch, n, dtype)
    result = small_eigh(A)
    assert_eigh(result, A)
    for item in (0, 1, batch // 2, batch - 1):
        for got, alone in zip(result, small_eigh(A[item]), strict=True):
            np.testing.assert_array_equal(got[item], alone)


@every_dtype
@pytest.mark.parametrize("n", [4, 7, 20])
def test_strides(n, dtype):
    A = symmetric(6, n, dtype).reshape(2, 3, n, n)
    expected = small_eigh(A)
    spaced = np.full((2, 5, 3 * n, 2 * n), np.nan, dtype)
    spaced[:, :3, ::3, ::2] = A
    layouts = {
        "batch last": np.moveaxis(np.ascontiguousarray(np.moveaxis(A, (0, 1), (-1, -2))), (-1, -2), (0, 1)),
        "spaced": spaced[:, :3, ::3, ::2],
        "negative": np.ascontiguousarray(A[::-1, :, ::-1, ::-1])[::-1, :, ::-1, ::-1],
        "columns first": np.swapaxes(np.ascontiguousarray(np.swapaxes(A, -1, -2)), -1, -2),
    }
    for name, layout in layouts.items():
        assert layout.strides != A.strides
        for got, want in zip(small_eigh(layout), expected, strict=True):
            np.testing.assert_array_equal(got, want, err_msg=name)
    values = small_eigh(np.broadcast_to(A[0, 0], (4, 3, n, n)))[0]
    np.testing.assert_array_equal(values, np.broadcast_to(expected[0][0, 0], values.shape))


@pytest.mark.parametrize("shape", [(0, 3, 5, 5), (2, 0, 0), (0, 0, 0)], ids=str)
def test_empty(shape):
    values, vectors, info = small_eigh(np.zeros(shape))
    assert values.size == 0 and vectors.size == 0 and (info == 0).all()


@every_dtype
@pytest.mark.parametrize("n", ONE_EACH)
def test_results_do_not_depend_on_the_schedule(n, dtype):
    A = symmetric(5, n, dtype)
    expected = small_eigh(A)
    for seed in range(2, 5):
        emulated.set_seed(seed)
        for got, want in zip(small_eigh(A), expected, strict=True):
            np.testing.assert_array_equal(got, want)


def test_wrong_arguments():
    A, values = np.eye(4)[None], np.zeros((1, 4))
    bad_calls = {
        "A: expected at least 2": (np.zeros(4), values, None, None),
        "A: expected a floating": (A.astype(np.int32), values, None, None),
        "A: expected square matrices, got 4 x 5": (np.zeros((1, 4, 5)), values, None, None),
        "A: expected matrices of order at most 32, got 33": (np.eye(33), np.zeros(33), None, None),
        "values: wrong dtype": (A, values.astype(np.float32), None, None),
        "values: expected 4 elements": (A, np.zeros((1, 5)), None, None),
        "vectors: expected a packed": (A, values, np.zeros((1, 4, 8))[..., ::2], None),
        "info: wrong dtype": (A, values, None, np.zeros(1)),
        "float32 or float64": (A.astype(np.float16), values.astype(np.float32), None, None),
    }
    for message, arguments in bad_calls.items():
        with pytest.raises(ValueError, match="small_eigh: .*" + message):
            emulated.small_eigh(*arguments, 0)
