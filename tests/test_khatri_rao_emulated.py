"""The CUDA kernels of products of features, run on the host by the emulator, and the path of soft classes through them.

As test_cuda_emulated.py. The factorisation of packed triangles has its own tests in test_packed_logdet_emulated.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from packed_triangles import assert_same, entries, full
from subspan.composite import khatri_rao
from subspan.composite.khatri_rao import soft_class_log_dets
from test_cuda_emulated import emulated, every_dtype

#: One entry, around a warp (one warp per sample, or four), more than one tile of 2048 entries.
FEATURES = [1, 2, 3, 31, 32, 33, 63, 64, 65, 100, 130]
every_features = pytest.mark.parametrize("d", FEATURES)


@pytest.fixture(autouse=True)
def fixed_schedule() -> Iterator[None]:
    emulated.set_seed(1)
    yield


def normal(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def pack(Z):
    products = np.full((*Z.shape[:-1], entries(Z.shape[-1])), 7, Z.dtype)
    emulated.khatri_rao_pack(Z, products, 0)
    return products


def unpack(d_products, Z):
    d_Z = np.full(Z.shape, 7, Z.dtype)
    emulated.khatri_rao_unpack(d_products, Z, d_Z, 0)
    return d_Z


# --- products of features ---------------------------------------------------------------------------------------------


@every_dtype
@every_features
def test_products_are_rounded_once(d, dtype):
    Z = normal((11, d), dtype)
    rows, columns = np.triu_indices(d)
    np.testing.assert_array_equal(pack(Z), Z[:, rows] * Z[:, columns])


def test_products_of_many_features():
    """Positions in a triangle come out of a square root in float32, which is inexact from order 4608 on."""
    d = 4610
    Z = normal((1, d), np.float32)
    rows, columns = np.triu_indices(d)
    np.testing.assert_array_equal(pack(Z), Z[:, rows] * Z[:, columns])


@every_dtype
@every_features
def test_adjoint(d, dtype):
    Z, d_products = normal((11, d), dtype), normal((11, entries(d)), dtype, seed=1)
    triangle = np.triu(full(d_products, d).astype(np.float64))
    both, exact = triangle + np.swapaxes(triangle, -1, -2), Z.astype(np.float64)
    error = np.abs(unpack(d_products, Z) - np.einsum("nab,nb->na", both, exact))
    size = np.einsum("nab,nb->na", np.abs(both), np.abs(exact))
    np.testing.assert_array_less(
        error, (d + 8) * np.finfo(dtype).eps * size + 1e-300
    )  # d + 1 terms, whatever their order


@every_dtype
@pytest.mark.parametrize("d", [3, 40])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 7, 8, 9, 16, 17, 300])
def test_any_number_of_samples(count, d, dtype):
    """Blocks and teams that are not full, and more blocks than a grid of the emulator holds."""
    Z, d_products = normal((count, d), dtype), normal((count, entries(d)), dtype, seed=1)
    products, d_Z = pack(Z), unpack(d_products, Z)
    for i in {0, count // 2, count - 1}:
        np.testing.assert_array_equal(products[i], pack(Z[i : i + 1])[0])
        np.testing.assert_array_equal(d_Z[i], unpack(d_products[i : i + 1], Z[i : i + 1])[0])


@every_dtype
@pytest.mark.parametrize("d", [5, 40])
def test_strides_of_features(d, dtype):
    Z, d_products = normal((2, 3, 4, d), dtype), normal((2, 3, 4, entries(d)), dtype, seed=1)
    expected = pack(Z), unpack(d_products, Z)
    spaced = np.full((2, 5, 12, 2 * d), np.nan, dtype)
    spaced[:, :3, ::3, ::2] = Z
    layouts = {
        "columns first": np.swapaxes(np.ascontiguousarray(np.swapaxes(Z, -1, -2)), -1, -2),
        "batch last": np.moveaxis(np.ascontiguousarray(np.moveaxis(Z, (0, 1), (-1, -2))), (-1, -2), (0, 1)),
        "spaced": spaced[:, :3, ::3, ::2],
        "negative": np.ascontiguousarray(Z[::-1, :, ::-1, ::-1])[::-1, :, ::-1, ::-1],
    }
    for name, layout in layouts.items():
        assert layout.strides != Z.strides, name
        assert_same((pack(layout), unpack(d_products, layout)), expected)
    expanded = np.broadcast_to(Z[0, 0], (4, 3, 4, d))
    np.testing.assert_array_equal(pack(expanded), np.broadcast_to(expected[0][0, 0], (4, 3, 4, entries(d))))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 3, 4), (2, 0, 4), (0, 0)], ids=str)
def test_no_features_or_samples(shape):
    Z = np.zeros(shape)
    assert pack(Z).shape == (*shape[:-1], entries(shape[-1]))
    assert unpack(pack(Z), Z).shape == shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_read_exactly(dtype):
    """Every value of the type: subnormal, infinite and NaN ones included."""
    stored = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).reshape(-1, 8)
    wide = stored.float()
    rows, columns = torch.triu_indices(8, 8)
    products = torch.full((len(stored), entries(8)), 7.0)
    emulated.khatri_rao_pack(stored, products, 0)
    torch.testing.assert_close(products, wide[:, rows] * wide[:, columns], rtol=0, atol=0, equal_nan=True)

    Z, d_products = torch.from_numpy(normal((9, 40), np.float32)).to(dtype), normal((9, entries(40)), np.float32)
    d_Z = torch.full((9, 40), 7.0)
    emulated.khatri_rao_unpack(d_products, Z, d_Z, 0)
    np.testing.assert_array_equal(d_Z, unpack(d_products, Z.float().numpy()))


@every_dtype
@pytest.mark.parametrize("d", [5, 70])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_sample_that_is_not_finite_stays_alone(value, d, dtype):
    Z, d_products = normal((9, d), dtype), normal((9, entries(d)), dtype, seed=1)
    expected = pack(Z), unpack(d_products, Z)
    Z[4, d - 1] = value
    products, d_Z = pack(Z), unpack(d_products, Z)
    good = np.arange(9) != 4
    assert_same((products[good], d_Z[good]), (expected[0][good], expected[1][good]))
    assert np.isfinite(products[4]).sum() == entries(d - 1) and not np.isfinite(d_Z[4]).any()


@every_dtype
@pytest.mark.parametrize("d", [20, 100])
def test_adjoint_does_not_depend_on_the_schedule(d, dtype):
    Z, d_products = normal((9, d), dtype), normal((9, entries(d)), dtype, seed=1)
    expected = unpack(d_products, Z)
    for seed in range(2, 6):
        emulated.set_seed(seed)
        np.testing.assert_array_equal(unpack(d_products, Z), expected)


def test_wrong_arguments():
    Z, products = np.zeros((2, 3)), np.zeros((2, 6))
    pack_calls = {
        "khatri_rao_pack: Z: expected at least 2": (np.zeros(3), products),
        "khatri_rao_pack: Z: expected a floating": (Z.astype(np.int32), products),
        "khatri_rao_pack: products: wrong dtype": (Z, products.astype(np.float32)),
        "khatri_rao_pack: products: expected 12 elements": (Z, np.zeros((2, 5))),
        "khatri_rao_pack: products: expected a packed": (Z, np.zeros((2, 12))[:, ::2]),
    }
    unpack_calls = {
        "khatri_rao_unpack: d_products: expected 12": (np.zeros((2, 9)), Z, Z),
        "khatri_rao_unpack: d_products: expected a packed": (np.zeros((6, 2)).T, Z, Z),
        "khatri_rao_unpack: d_Z: wrong dtype": (products, Z, Z.astype(np.float32)),
    }
    for function, calls in ((emulated.khatri_rao_pack, pack_calls), (emulated.khatri_rao_unpack, unpack_calls)):
        for message, arguments in calls.items():
            with pytest.raises(ValueError, match=message):
                function(*arguments, 0)
    with pytest.raises(ValueError, match="khatri_rao_max_features: itemsize"):
        emulated.khatri_rao_max_features(2, 0)


@every_dtype
def test_most_features(dtype):
    limit = emulated.khatri_rao_max_features(np.dtype(dtype).itemsize, 0)
    Z = normal((1, limit), dtype)
    d_products = np.ones((1, entries(limit)), dtype)
    sums = unpack(d_products, Z)  # z_i + sum of z
    np.testing.assert_allclose(sums, Z + Z.sum(-1, dtype=np.float64), atol=limit * np.finfo(dtype).eps)
    many = np.zeros((1, limit + 1), dtype)
    products = np.empty((1, entries(limit + 1)), dtype)
    for call in (
        lambda: emulated.khatri_rao_pack(many, products, 0),
        lambda: emulated.khatri_rao_unpack(products, many, many, 0),
    ):
        with pytest.raises(ValueError, match=f"Z: expected at most {limit} features .*, got {limit + 1}"):
            call()


# --- the whole path, products by torch --------------------------------------------------------------------------------


class Recorder:
    """The emulated module, counting the calls of its kernels."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        function = getattr(emulated, name)

        def counted(*arguments: Any) -> Any:
            self.calls[name] += 1
            return function(*arguments)

        return counted


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(khatri_rao, "kernels", lambda array: recorder)
    return recorder


def path_inputs(dtype, samples, classes, d):
    Z, membership = normal((2, samples, d), np.float64), np.random.default_rng(1).random((2, classes, samples))
    inputs = torch.from_numpy(Z).to(dtype), torch.from_numpy(membership).to(dtype)
    return tuple(array.requires_grad_() for array in inputs)


def value_and_gradients(Z, membership):
    values, mass = soft_class_log_dets(Z, membership, 0.5)
    upstream = torch.linspace(-1, 2, values.numel(), dtype=values.dtype).reshape(values.shape)
    return values, mass, *torch.autograd.grad((values * upstream).sum(), (Z, membership))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("d", [1, 6, 20, 40, 70])
def test_path_through_kernels(recorder, monkeypatch, d, dtype):
    monkeypatch.setattr(khatri_rao, "PACKED_ELEMENTS", 2 * entries(d) * 5)  # two chunks, of 5 and 4 classes
    inputs = path_inputs(dtype, 10, 9, d)
    got = value_and_gradients(*inputs)
    assert recorder.calls["khatri_rao_pack"] == 2 and recorder.calls["khatri_rao_unpack"] == 1
    assert recorder.calls["packed_logdet"] == 2
    assert got[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)

    monkeypatch.setattr(khatri_rao, "kernels", lambda array: None)
    exact = tuple(array.detach().double().requires_grad_() for array in inputs)
    scale = d / (exact[1].sum(-1) * 0.5)
    grams = torch.einsum("bkn,bna,bnc->bkac", exact[1], exact[0], exact[0])
    condition = float(torch.linalg.cond(torch.eye(d) + (scale[..., None, None] * grams).detach()).max())
    bound = 30 * torch.finfo(got[0].dtype).eps * condition
    for one, expected, argument in zip(got, value_and_gradients(*exact), (*got[:2], *inputs), strict=True):
        own = 2 * torch.finfo(argument.dtype).eps if argument.dtype == torch.bfloat16 else 0.0
        error = torch.linalg.vector_norm(one.double() - expected)
        assert error <= (bound + own) * torch.linalg.vector_norm(expected)


def test_path_without_a_gradient_keeps_no_inverse(recorder):
    Z, membership = (array.detach() for array in path_inputs(torch.float32, 10, 9, 6))
    values, _ = soft_class_log_dets(Z, membership, 0.5)
    assert recorder.calls == {"khatri_rao_max_features": 1, "khatri_rao_pack": 1, "packed_logdet_max_size": 1,
                              "packed_logdet": 1}  # fmt: skip
    assert not values.requires_grad


def test_path_of_second_derivatives_and_transforms_is_torch(recorder):
    inputs = path_inputs(torch.float64, 3, 2, 3)
    assert torch.autograd.gradgradcheck(lambda *arrays: soft_class_log_dets(*arrays, 0.5)[0], inputs)
    plain = tuple(array.detach() for array in inputs)
    recorder.calls.clear()
    mapped = torch.vmap(lambda *arrays: soft_class_log_dets(*arrays, 0.5)[0])(*plain)
    assert not recorder.calls
    torch.testing.assert_close(mapped, soft_class_log_dets(*plain, 0.5)[0], rtol=1e-13, atol=1e-13)
    assert recorder.calls


def test_path_where_tf32_is_allowed_is_float64(recorder, monkeypatch):
    inputs = path_inputs(torch.float32, 4, 3, 3)
    monkeypatch.setattr(khatri_rao, "_tf32_allowed", lambda: True)
    assert khatri_rao.product_dtype(inputs[0].detach()) == torch.float64
    values, *_ = value_and_gradients(*inputs)
    assert values.dtype == torch.float32 and recorder.calls["packed_logdet"] == 1


@pytest.mark.parametrize("limited", ["khatri_rao_max_features", "packed_logdet_max_size"])
def test_path_falls_back_where_a_kernel_does_not_fit(recorder, monkeypatch, limited):
    inputs = path_inputs(torch.float64, 4, 3, 5)
    expected = value_and_gradients(*inputs)
    recorder.calls.clear()
    monkeypatch.setattr(recorder, limited, lambda itemsize, device: 4, raising=False)
    for got, want in zip(value_and_gradients(*inputs), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert ("khatri_rao_pack" in recorder.calls) == (limited == "packed_logdet_max_size")
    assert ("packed_logdet" in recorder.calls) == (limited == "khatri_rao_max_features")


def test_path_with_nothing(recorder):
    for samples, classes, d in ((0, 3, 4), (3, 0, 4), (3, 2, 0)):
        values, mass, d_Z, d_membership = value_and_gradients(*path_inputs(torch.float64, samples, classes, d))
        assert (values == 0).all() and values.shape == mass.shape == (2, classes)
        assert (d_Z == 0).all() and (d_membership == 0).all()
