"""The CUDA kernels, run on the host by the emulator (csrc/core/cuda/emulator.h).

The module is built with `-C cmake.define.SUBSPAN_EMULATOR=ON`; test_sanitized.py does that with AddressSanitizer.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

emulated = pytest.importorskip(
    "subspan._cuda_emulated",
    reason="built without the emulated CUDA module (SUBSPAN_EMULATOR=ON)",
    exc_type=ImportError,
)

DTYPES = [np.float32, np.float64]
#: Both ends of every range the launcher tells apart: 8, 16, 32, 64 in registers, above in shared memory, panels of 16.
SIZES = [0, 1, 2, 7, 8, 9, 16, 17, 31, 32, 33, 48, 63, 64, 65, 80, 97, 128]

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)


@pytest.fixture(autouse=True)
def fixed_schedule() -> Iterator[None]:
    emulated.set_seed(1)
    yield


def spd_logdet(A, *, inverse=False, implicit_identity=False):
    """(logdet, inverse or None, info), into arrays whose old content would be noticed."""
    logdet = np.full(A.shape[:-2], 7, A.dtype)
    info = np.full(A.shape[:-2], 99, np.int32)
    inverted = np.full(A.shape, 7, A.dtype) if inverse else None
    emulated.spd_logdet(A, logdet, inverted, info, implicit_identity, 0)
    return logdet, inverted, info


def gram(batch, n, dtype, seed=0, rows=None):
    Z = np.random.default_rng(seed).standard_normal((*batch, rows or n + 3, n)).astype(dtype)
    return np.swapaxes(Z, -1, -2) @ Z


def spd(batch, n, dtype, seed=0):
    return gram(batch, n, dtype, seed) + np.eye(n, dtype=dtype)


def from_lower(A):
    """The float64 matrix that the lower triangle of A stands for."""
    lower = np.tril(A).astype(np.float64)
    return lower + np.swapaxes(np.tril(A, -1), -1, -2)


def reference_logdet(A, *, implicit_identity=False):
    """Cholesky in long double, pivot by pivot; log1p of the pivots without the identity."""
    total = []
    for S in from_lower(A).astype(np.longdouble):
        logs = np.longdouble(0)
        for _ in range(len(S)):
            delta = S[0, 0]
            pivot = 1 + delta if implicit_identity else delta
            logs += np.log1p(delta) if implicit_identity else np.log(delta)
            S = S[1:, 1:] - np.outer(S[1:, 0], S[1:, 0]) / pivot
        total.append(float(logs))
    return np.array(total)


def assert_logdet(logdet, expected, n):
    """Four roundings of relative size eps in each pivot, and that of the result."""
    eps = np.finfo(logdet.dtype).eps
    np.testing.assert_array_less(np.abs(logdet - expected), eps * (4 * n + np.abs(expected)) + 1e-300)


def assert_inverse(inverse, M):
    """LAPACK's residual ratio, and symmetry to the last bit."""
    n = M.shape[-1]
    norms = np.linalg.norm(M, axis=(-2, -1)) * np.linalg.norm(np.linalg.inv(M), axis=(-2, -1))
    residual = np.linalg.norm(M @ inverse - np.eye(n), axis=(-2, -1))
    assert (residual / (n * np.finfo(inverse.dtype).eps * norms) < 30).all()
    np.testing.assert_array_equal(inverse, np.swapaxes(inverse, -1, -2))


@every_dtype
@pytest.mark.parametrize("inverse", [False, True], ids=["logdet", "inverse"])
@pytest.mark.parametrize("n", SIZES)
def test_values(n, inverse, dtype):
    A = spd((3,), n, dtype)
    logdet, inverted, info = spd_logdet(A, inverse=inverse)
    assert_logdet(logdet, reference_logdet(A), n)
    assert (info == 0).all()
    if inverse and n:
        assert_inverse(inverted, from_lower(A))


@every_dtype
@pytest.mark.parametrize("inverse", [False, True], ids=["logdet", "inverse"])
@pytest.mark.parametrize("n", SIZES)
def test_values_with_implicit_identity(n, inverse, dtype):
    A = gram((3,), n, dtype)
    logdet, inverted, info = spd_logdet(A, inverse=inverse, implicit_identity=True)
    assert_logdet(logdet, reference_logdet(A, implicit_identity=True), n)
    assert (info == 0).all()
    if inverse and n:
        assert_inverse(inverted, from_lower(A) + np.eye(n))


@every_dtype
def test_largest_size(dtype):
    n = emulated.spd_logdet_max_size(np.dtype(dtype).itemsize, 0)
    A = gram((1,), n, dtype)
    logdet, inverted, _ = spd_logdet(A, inverse=True, implicit_identity=True)
    assert_logdet(logdet, reference_logdet(A, implicit_identity=True), n)
    assert_inverse(inverted, from_lower(A) + np.eye(n))
    assert spd_logdet(A, implicit_identity=True)[0] == pytest.approx(logdet, rel=1e-6)

    too_large = np.zeros((n + 1, n + 1), dtype)
    with pytest.raises(ValueError, match=f"spd_logdet: A: expected matrices of order at most {n} .*, got {n + 1}"):
        spd_logdet(too_large)


@every_dtype
@pytest.mark.parametrize(("batch", "n"), [(1100, 2), (530, 9), (37, 70)], ids=["8", "16", "block"])
def test_batch_larger_than_a_grid(batch, n, dtype):
    """The emulator's grid holds 16 blocks, so that these are launched in parts."""
    A = spd((batch,), n, dtype)
    logdet, inverted, info = spd_logdet(A, inverse=True)
    np.testing.assert_allclose(logdet, np.linalg.slogdet(from_lower(A))[1], rtol=20 * n * np.finfo(dtype).eps)
    assert_inverse(inverted, from_lower(A))
    assert (info == 0).all()


@every_dtype
@pytest.mark.parametrize("n", [5, 20, 70])
def test_only_the_lower_triangle_is_read(n, dtype):
    A = spd((2,), n, dtype)
    expected = spd_logdet(A, inverse=True)
    A[(slice(None), *np.triu_indices(n, 1))] = np.nan
    for got, want in zip(spd_logdet(A, inverse=True), expected, strict=True):
        np.testing.assert_array_equal(got, want)


@every_dtype
@pytest.mark.parametrize("n", [6, 40])
def test_strides(n, dtype):
    A = spd((2, 3), n, dtype)
    expected = spd_logdet(A, inverse=True)
    spaced = np.full((2, 5, 3 * n, 2 * n), np.nan, dtype)
    spaced[:, :3, ::3, ::2] = A
    layouts = {
        "columns first": np.swapaxes(np.ascontiguousarray(np.swapaxes(A, -1, -2)), -1, -2),
        "batch last": np.moveaxis(np.ascontiguousarray(np.moveaxis(A, (0, 1), (-1, -2))), (-1, -2), (0, 1)),
        "spaced": spaced[:, :3, ::3, ::2],
        "negative": np.ascontiguousarray(A[::-1, :, ::-1, ::-1])[::-1, :, ::-1, ::-1],
    }
    for name, layout in layouts.items():
        assert layout.strides != A.strides
        for got, want in zip(spd_logdet(layout, inverse=True), expected, strict=True):
            np.testing.assert_array_equal(got, want, err_msg=name)

    expanded = np.broadcast_to(A[0, 0], (4, 3, n, n))
    logdet, _, _ = spd_logdet(expanded)
    np.testing.assert_array_equal(logdet, np.full((4, 3), expected[0][0, 0]))


def test_zero_batch():
    logdet, inverted, info = spd_logdet(np.zeros((0, 3, 5, 5)), inverse=True)
    assert logdet.shape == info.shape == (0, 3) and inverted.shape == (0, 3, 5, 5)


@every_dtype
@pytest.mark.parametrize(("n", "bad"), [(5, 0), (5, 4), (20, 7), (33, 32), (50, 40), (70, 15), (70, 16), (70, 69)])
def test_not_positive_definite(n, bad, dtype):
    """The first bad pivot is named, the item is NaN, its neighbours in the same warp keep their last bit."""
    A = spd((3,), n, dtype)
    expected, expected_inverse, _ = spd_logdet(A, inverse=True)
    A[1, bad, bad] = -1
    logdet, inverted, info = spd_logdet(A, inverse=True)
    assert info.tolist() == [0, bad + 1, 0]
    assert np.isnan(logdet[1]) and np.isnan(inverted[1]).all()
    np.testing.assert_array_equal(logdet[::2], expected[::2])
    np.testing.assert_array_equal(inverted[::2], expected_inverse[::2])


@every_dtype
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (-1, 0), (-1, -1)], ids=["first", "corner", "last"])
@pytest.mark.parametrize("n", [4, 20, 50, 70])
@pytest.mark.parametrize("implicit_identity", [False, True], ids=["plain", "implicit"])
def test_not_finite_stays_in_its_item(implicit_identity, n, place, value, dtype):
    A = spd((3,), n, dtype)
    expected, expected_inverse, _ = spd_logdet(A, inverse=True, implicit_identity=implicit_identity)
    A[1][place] = value
    logdet, inverted, info = spd_logdet(A, inverse=True, implicit_identity=implicit_identity)
    assert info[0] == info[2] == 0
    assert info[1] == -1 if implicit_identity else info[1] > 0
    assert np.isnan(logdet[1]) and np.isnan(inverted[1]).all()
    np.testing.assert_array_equal(logdet[::2], expected[::2])
    np.testing.assert_array_equal(inverted[::2], expected_inverse[::2])


@every_dtype
@pytest.mark.parametrize("n", [4, 16, 32, 64, 100])
def test_tiny_trace_keeps_its_digits(n, dtype):
    """alpha * trace = 8e-6: 1 + A rounds most of A away, log1p of the pivots does not."""
    A = gram((3,), n, np.float64)
    A = (A * (8e-6 / np.trace(A, axis1=-2, axis2=-1))[:, None, None]).astype(dtype)
    logdet, _, _ = spd_logdet(A, implicit_identity=True)
    np.testing.assert_allclose(logdet, reference_logdet(A, implicit_identity=True), rtol=5 * np.finfo(dtype).eps)


@every_dtype
@pytest.mark.parametrize("n", [4, 32, 64, 100])
def test_collapsed_features(n, dtype):
    """All rows equal: logdet(I + s u u^T) = log(1 + s), and a condition number of 1 + s."""
    strength = 1e4
    u = np.random.default_rng(0).standard_normal((3, n))
    u /= np.linalg.norm(u, axis=-1, keepdims=True)
    A = (strength * u[:, :, None] * u[:, None, :]).astype(dtype)
    logdet, inverted, info = spd_logdet(A, inverse=True, implicit_identity=True)
    expected = np.log1p(np.linalg.eigvalsh(from_lower(A))).sum(-1)
    np.testing.assert_allclose(logdet, expected, atol=4 * np.finfo(dtype).eps * strength)
    assert (info >= 0).all()
    assert_inverse(inverted, from_lower(A) + np.eye(n))


@every_dtype
@pytest.mark.parametrize("n", [4, 20, 50, 70])
def test_clamped_pivots_are_counted(n, dtype):
    A = np.zeros((2, n, n), dtype)
    A[1, range(n), range(n)] = 1
    A[1, 0, 0] = A[1, n - 1, n - 1] = -1e-6
    logdet, inverted, info = spd_logdet(A, inverse=True, implicit_identity=True)
    assert info.tolist() == [0, 2]
    assert logdet[0] == 0
    np.testing.assert_allclose(logdet[1], (n - 2) * np.log(2), rtol=4 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(inverted[0], np.eye(n))
    np.testing.assert_allclose(np.diag(inverted[1]), [1] + [0.5] * (n - 2) + [1], rtol=4 * np.finfo(dtype).eps)


@every_dtype
@pytest.mark.parametrize("n", [8, 64, 90])
@pytest.mark.parametrize("power", [-140, -100, 100, 120], ids=lambda power: f"2^{power}")
def test_determinant_out_of_range(power, n, dtype):
    """det = 2^(n power) overflows or underflows everything; 2^-140 is subnormal in float32."""
    A = np.ldexp(np.eye(n)[None], power).astype(dtype)
    logdet, _, info = spd_logdet(A)
    np.testing.assert_allclose(logdet, n * power * np.log(2), rtol=2 * np.finfo(dtype).eps)
    assert info[0] == 0


@every_dtype
@pytest.mark.parametrize("n", [12, 64, 100])
def test_results_do_not_depend_on_the_schedule(n, dtype):
    A = spd((5,), n, dtype)
    expected = spd_logdet(A, inverse=True)
    for seed in range(2, 5):
        emulated.set_seed(seed)
        for got, want in zip(spd_logdet(A, inverse=True), expected, strict=True):
            np.testing.assert_array_equal(got, want)


def test_two_threads_at_once():
    matrices = [spd((4,), n, np.float64, seed=n) for n in (10, 40, 20, 70)]
    expected = [spd_logdet(A, inverse=True) for A in matrices]
    with ThreadPoolExecutor(2) as pool:
        for results, wanted in zip(pool.map(lambda A: spd_logdet(A, inverse=True), matrices), expected, strict=True):
            for got, want in zip(results, wanted, strict=True):
                np.testing.assert_array_equal(got, want)


def test_wrong_arguments():
    A, logdet = np.eye(4)[None], np.zeros(1)
    bad_calls = {
        "square": (np.zeros((1, 4, 5)), logdet, None, None),
        "dimensions": (np.zeros(4), logdet, None, None),
        "logdet: wrong dtype": (A, np.zeros(1, np.float32), None, None),
        "logdet: expected 1 elements": (A, np.zeros(2), None, None),
        "inverse: expected a packed": (A, logdet, np.zeros((1, 4, 8))[..., ::2], None),
        "info: wrong dtype": (A, logdet, None, np.zeros(1, np.int64)),
        "float32 or float64": (A.astype(np.float16), np.zeros(1, np.float32), None, None),
        "A: expected a floating point": (A.astype(np.int32), np.zeros(1, np.float32), None, None),
    }
    for message, arguments in bad_calls.items():
        with pytest.raises(ValueError, match=message):
            emulated.spd_logdet(*arguments, False, 0)
    with pytest.raises(ValueError, match="itemsize"):
        emulated.spd_logdet_max_size(2, 0)


# --- the emulator itself ----------------------------------------------------------------------------------------------

SEEDS = range(8)
WRONG_RESULT = ["block_barrier", "warp_barrier", "reused_memory"]
DEADLOCK = ["divergent_barrier", "early_return"]


@pytest.mark.parametrize("kernel", [*WRONG_RESULT, *DEADLOCK, "shared_overflow"])
def test_emulator_runs_sound_kernels(kernel):
    for seed in SEEDS:
        emulated.set_seed(seed)
        assert emulated.selftest(kernel, False) == 0


@pytest.mark.parametrize("kernel", WRONG_RESULT)
def test_emulator_exposes_a_missing_barrier(kernel):
    wrong = []
    for seed in SEEDS:
        emulated.set_seed(seed)
        wrong.append(emulated.selftest(kernel, True))
    assert any(wrong)


@pytest.mark.parametrize("kernel", DEADLOCK)
def test_emulator_exposes_a_barrier_that_not_all_reach(kernel):
    with pytest.raises(RuntimeError, match="cannot go on"):
        emulated.selftest(kernel, True)
    assert emulated.selftest(kernel, False) == 0  # and recovers


@pytest.mark.skipif(not emulated.sanitized, reason="only AddressSanitizer sees an access past the end of shared memory")
def test_sanitizer_sees_past_the_end_of_shared_memory():
    code = (
        "import importlib.util, sys;"
        "spec = importlib.util.spec_from_file_location('subspan._cuda_emulated', sys.argv[1]);"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module);"
        "module.selftest('shared_overflow', True)"
    )
    command = [sys.executable, "-c", code, emulated.__file__]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr and "shared_overflow_kernel" in result.stderr
