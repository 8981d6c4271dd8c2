"""The CUDA kernels that factor packed triangles, run on the host by the emulator.

As test_cuda_emulated.py, whose references and bounds these tests use.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from packed_triangles import assert_same, entries, full, halved, packed
from test_cuda_emulated import SIZES, assert_inverse, assert_logdet, emulated, every_dtype, gram, reference_logdet

SCALES = [0.5, 1.0, 2.0]  # exact factors, so that the reference sees the same matrix


@pytest.fixture(autouse=True)
def fixed_schedule() -> Iterator[None]:
    emulated.set_seed(1)
    yield


def packed_logdet(triangles, scale, *, gradient=True):
    """(logdet, info, gradient or None), into arrays whose old content would be noticed."""
    logdet = np.full(triangles.shape[:-1], 7, triangles.dtype)
    info = np.full(triangles.shape[:-1], 99, np.int32)
    result = np.full(triangles.shape, 7, triangles.dtype) if gradient else None
    emulated.packed_logdet(triangles, scale, logdet, info, result, 0)
    return logdet, info, result


@every_dtype
@pytest.mark.parametrize("gradient", [False, True], ids=["logdet", "gradient"])
@pytest.mark.parametrize("d", SIZES)
def test_log_determinants(d, gradient, dtype):
    A, scale = gram((3,), d, dtype), np.array(SCALES, dtype)
    logdet, info, result = packed_logdet(packed(A), scale, gradient=gradient)
    scaled = scale[:, None, None] * full(packed(A), d)
    assert_logdet(logdet, reference_logdet(scaled, implicit_identity=True), d)
    assert (info == 0).all()
    if gradient and d:
        assert_inverse(halved(result, d), np.eye(d) + scaled.astype(np.float64))


@every_dtype
@pytest.mark.parametrize("d", [1, 8, 30, 50, 70])
def test_gradient_in_the_memory_of_the_input(d, dtype):
    triangles, scale = packed(gram((5,), d, dtype)), np.linspace(0.1, 1, 5, dtype=dtype)
    expected = packed_logdet(triangles, scale)
    logdet, info = np.full(5, 7, dtype), np.full(5, 99, np.int32)
    emulated.packed_logdet(triangles, scale, logdet, info, triangles, 0)
    assert_same((logdet, info, triangles), expected)
    without_info = np.full(5, 7, dtype)
    emulated.packed_logdet(packed(gram((5,), d, dtype)), scale, without_info, None, None, 0)
    np.testing.assert_allclose(without_info, logdet, rtol=20 * d * np.finfo(dtype).eps)


@every_dtype
def test_largest_packed_size(dtype):
    d = emulated.packed_logdet_max_size(np.dtype(dtype).itemsize, 0)
    assert d == emulated.spd_logdet_max_size(np.dtype(dtype).itemsize, 0)
    A = gram((1,), d, dtype)
    logdet, _, gradient = packed_logdet(packed(A), np.ones(1, dtype))
    assert_logdet(logdet, reference_logdet(full(packed(A), d), implicit_identity=True), d)
    assert_inverse(halved(gradient, d), full(packed(A), d).astype(np.float64) + np.eye(d))
    with pytest.raises(
        ValueError, match=f"packed_logdet: packed: expected matrices of order at most {d} .*, got {d + 1}"
    ):
        packed_logdet(np.zeros((1, entries(d + 1)), dtype), np.ones(1, dtype))


@every_dtype
@pytest.mark.parametrize(("count", "d"), [(1100, 2), (530, 9), (37, 70)], ids=["8", "16", "block"])
def test_more_triangles_than_a_grid(count, d, dtype):
    triangles, scale = packed(gram((count,), d, dtype)), np.resize(np.array(SCALES, dtype), count)
    logdet, info, gradient = packed_logdet(triangles, scale)
    M = np.eye(d) + scale[:, None, None] * full(triangles, d).astype(np.float64)
    np.testing.assert_allclose(logdet, np.linalg.slogdet(M)[1], rtol=20 * d * np.finfo(dtype).eps)
    assert_inverse(halved(gradient, d), M)
    assert (info == 0).all()


@pytest.mark.parametrize("shape", [(0, 6), (3, 0), (2, 3, 10), (0, 0)], ids=str)
def test_shapes_of_triangles(shape):
    logdet, info, gradient = packed_logdet(np.zeros(shape), np.ones(shape[:-1]))
    d = {6: 3, 0: 0, 10: 4}[shape[-1]]
    assert logdet.shape == shape[:-1] and (logdet == 0).all() and (info == 0).all()
    np.testing.assert_array_equal(gradient, np.broadcast_to(packed(np.eye(d)), shape))


@every_dtype
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["first", "corner", "last", "scale"])
@pytest.mark.parametrize("d", [4, 20, 50, 70])
def test_triangle_that_is_not_finite_stays_alone(d, place, value, dtype):
    triangles, scale = packed(gram((3,), d, dtype)), np.array(SCALES, dtype)
    expected = packed_logdet(triangles, scale)
    if place == "scale":
        scale[1] = value
    else:
        triangles[1, {"first": 0, "corner": d - 1, "last": -1}[place]] = value
    logdet, info, gradient = packed_logdet(triangles, scale)
    assert info.tolist() == [0, -1, 0]
    assert np.isnan(logdet[1]) and np.isnan(gradient[1]).all()
    assert_same((logdet[::2], info[::2], gradient[::2]), tuple(array[::2] for array in expected))


@every_dtype
@pytest.mark.parametrize("d", [4, 20, 50, 70])
def test_clamped_pivots_of_triangles_are_counted(d, dtype):
    A = np.zeros((2, d, d), dtype)
    A[1, range(d), range(d)] = 0.5
    A[1, 0, 0] = A[1, d - 1, d - 1] = -1e-6
    logdet, info, gradient = packed_logdet(packed(A), np.array([1, 2], dtype))
    assert info.tolist() == [0, 2] and logdet[0] == 0
    np.testing.assert_allclose(logdet[1], (d - 2) * np.log(2), rtol=4 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(gradient[0], packed(np.eye(d)))
    expected = packed(np.diag([1] + [0.5] * (d - 2) + [1]))
    np.testing.assert_allclose(gradient[1], expected, rtol=4 * np.finfo(dtype).eps)


@every_dtype
@pytest.mark.parametrize("d", [4, 16, 32, 64, 100])
def test_tiny_scale_keeps_its_digits(d, dtype):
    """scale * trace = 8e-6: 1 + A rounds most of A away, log1p of the pivots does not."""
    triangles = packed(gram((3,), d, dtype))
    scale = (8e-6 / np.trace(full(triangles, d), axis1=-2, axis2=-1)).astype(dtype)
    logdet, _, _ = packed_logdet(triangles, scale, gradient=False)
    expected = reference_logdet(scale[:, None, None].astype(np.float64) * full(triangles, d), implicit_identity=True)
    np.testing.assert_allclose(logdet, expected, rtol=5 * np.finfo(dtype).eps)


@every_dtype
@pytest.mark.parametrize("d", [12, 64, 100])
def test_log_determinants_do_not_depend_on_the_schedule(d, dtype):
    triangles, scale = packed(gram((5,), d, dtype)), np.ones(5, dtype)
    expected = packed_logdet(triangles, scale)
    for seed in range(2, 5):
        emulated.set_seed(seed)
        assert_same(packed_logdet(triangles, scale), expected)


def test_wrong_arguments():
    triangles, one, two = np.zeros((1, 6)), np.zeros(1), np.zeros(2)
    bad_calls = {
        "packed: expected at least 1": (np.zeros(()), one, one, None, None),
        "packed: expected triangles": (np.zeros((1, 5)), one, one, None, None),
        "packed: expected a packed": (np.zeros((1, 12))[:, ::2], one, one, None, None),
        "packed: expected a floating": (np.zeros((1, 6), np.int32), one, one, None, None),
        "scale: expected 1 elements": (triangles, two, one, None, None),
        "scale: wrong dtype": (triangles, one.astype(np.float32), one, None, None),
        "logdet: expected 1": (triangles, one, two, None, None),
        "info: wrong dtype": (triangles, one, one, one, None),
        "gradient: expected 6": (triangles, one, one, None, np.zeros((2, 6))),
        "float32 or float64": (*(array.astype(np.float16) for array in (triangles, one, one)), None, None),
    }
    for message, arguments in bad_calls.items():
        with pytest.raises(ValueError, match="packed_logdet: .*" + message):
            emulated.packed_logdet(*arguments, 0)
    with pytest.raises(ValueError, match="packed_logdet_max_size: itemsize"):
        emulated.packed_logdet_max_size(2, 0)
