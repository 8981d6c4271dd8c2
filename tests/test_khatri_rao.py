"""Log determinants of soft classes as products of large matrices, in torch operations on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from subspan.composite import khatri_rao
from subspan.composite.khatri_rao import soft_class_log_dets
from subspan.reference import coding_rate as reference

EPS2 = 0.3
#: Batch, classes, samples, features.
SHAPES = [
    ((), 5, 6, 4),
    ((), 4, 3, 7),  # fewer samples than features
    ((), 9, 4, 1),
    ((), 1, 8, 3),
    ((2, 3), 3, 5, 2),
    ((), 0, 5, 3),
    ((), 3, 0, 4),
    ((0,), 3, 5, 4),
    ((), 3, 5, 0),
]
every_shape = pytest.mark.parametrize(("batch", "classes", "samples", "features"), SHAPES, ids=str)


def problem(batch: Any, classes: int, samples: int, features: int, dtype: Any = torch.float64) -> tuple[Tensor, Tensor]:
    Z = torch.randn(*batch, samples, features, dtype=torch.float64).to(dtype)
    membership = torch.rand(*batch, classes, samples, dtype=torch.float64) + 0.05
    return Z.requires_grad_(), membership.to(dtype).requires_grad_()


def dense(Z: Tensor, membership: Tensor, eps2: float = EPS2) -> Tensor:
    """The formula, one d x d matrix per class, for torch to differentiate."""
    features = Z.shape[-1]
    grams = torch.einsum("...kn,...na,...nb->...kab", membership, Z, Z)
    scale = features / (membership.sum(-1) * eps2)
    return torch.logdet(torch.eye(features, dtype=Z.dtype) + scale[..., None, None] * grams)


def gradients(function: Any, Z: Tensor, membership: Tensor) -> tuple[Tensor, ...]:
    values = function(Z, membership)
    upstream = torch.linspace(-1, 2, values.numel(), dtype=values.dtype).reshape(values.shape)
    return torch.autograd.grad((values * upstream).sum(), (Z, membership))


def log_dets(Z: Tensor, membership: Tensor) -> Tensor:
    return soft_class_log_dets(Z, membership, EPS2)[0]


def close(got: Tensor, expected: Tensor, scale: float = 1e-12) -> None:
    assert got.shape == expected.shape
    assert bool(((got - expected).abs() <= scale * (1 + expected.abs().amax() if expected.numel() else 1.0)).all())


@every_shape
def test_values_are_the_reference(batch: Any, classes: int, samples: int, features: int) -> None:
    Z, membership = problem(batch, classes, samples, features)
    arrays = Z.detach().numpy(), membership.detach().numpy()
    expected = 2 * reference.coding_rate(arrays[0][..., None, :, :], EPS2, weights=arrays[1]) if classes else None
    for inputs in ((Z, membership), (Z.detach(), membership.detach())):
        values, mass = soft_class_log_dets(*inputs, EPS2)
        assert values.shape == mass.shape == (*batch, classes)
        np.testing.assert_allclose(mass.detach(), arrays[1].sum(-1), rtol=1e-14)
        if classes:
            np.testing.assert_allclose(values.detach(), expected, rtol=1e-12, atol=1e-12)


@every_shape
def test_gradients_are_those_of_the_formula(batch: Any, classes: int, samples: int, features: int) -> None:
    Z, membership = problem(batch, classes, samples, features)
    got = gradients(log_dets, Z, membership)
    if samples == 0:
        assert all(gradient.numel() == 0 for gradient in got)
        return
    for gradient, expected in zip(got, gradients(dense, Z, membership), strict=True):
        close(gradient, expected)


@pytest.mark.parametrize("shape", [((), 3, 4, 3), ((2,), 2, 3, 2), ((), 2, 2, 4), ((), 3, 4, 1)], ids=str)
def test_gradcheck(shape: Any) -> None:
    inputs = problem(*shape)
    both = lambda Z, membership: soft_class_log_dets(Z, membership, EPS2)  # noqa: E731
    assert torch.autograd.gradcheck(both, inputs)
    assert torch.autograd.gradgradcheck(both, inputs)


def test_gradcheck_of_collapsed_features() -> None:
    """All rows equal, and rows that are zero."""
    _, membership = problem((), 3, 4, 3)
    for row in (torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64), torch.zeros(3, dtype=torch.float64)):
        Z = row.expand(4, 3).clone().requires_grad_()
        assert torch.autograd.gradcheck(log_dets, (Z, membership))
        assert torch.autograd.gradgradcheck(log_dets, (Z, membership))


@pytest.mark.parametrize("needed", ["Z", "membership"])
def test_one_gradient_is_that_of_both(needed: str) -> None:
    Z, membership = problem((), 5, 6, 4)
    expected = gradients(log_dets, Z, membership)[needed == "membership"]
    other = (membership if needed == "Z" else Z).requires_grad_(False)
    argument = Z if needed == "Z" else membership
    values = log_dets(Z, membership)
    upstream = torch.linspace(-1, 2, 5, dtype=values.dtype)
    (gradient,) = torch.autograd.grad((values * upstream).sum(), argument)
    assert torch.equal(gradient, expected) and other.grad is None


def test_zero_entries_of_the_membership() -> None:
    """Hard classes: zeros do not make the gradient by the membership zero, and it is that of the formula."""
    Z, _ = problem((), 3, 6, 4)
    membership = torch.eye(3, dtype=torch.float64).repeat_interleave(2, 1).requires_grad_()
    for gradient, expected in zip(gradients(log_dets, Z, membership), gradients(dense, Z, membership), strict=True):
        close(gradient, expected)


def test_class_of_mass_zero_is_constant() -> None:
    Z, membership = problem((), 4, 6, 3)
    with torch.no_grad():
        membership[2] = 0
    others = torch.tensor([0, 1, 3])
    values, mass = soft_class_log_dets(Z, membership, EPS2)
    assert values[2] == 0 and mass[2] == 0
    d_Z, d_membership = torch.autograd.grad(values.sum(), (Z, membership))
    assert (d_membership[2] == 0).all()
    expected = torch.autograd.grad(dense(Z, membership[others]).sum(), (Z, membership))
    close(d_Z, expected[0])
    close(d_membership, expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_other_types_are_the_rounded_result(dtype: torch.dtype) -> None:
    Z, membership = problem((), 5, 6, 4, dtype)
    exact = Z.detach().double().requires_grad_(), membership.detach().double().requires_grad_()
    values, mass = soft_class_log_dets(Z, membership, EPS2)
    assert values.dtype == mass.dtype == torch.float32
    close(values.double(), dense(*exact), 2 * torch.finfo(torch.float32).eps)
    for got, expected in zip(gradients(log_dets, Z, membership), gradients(log_dets, *exact), strict=True):
        assert got.dtype == dtype
        close(got.double(), expected, torch.finfo(dtype).eps)


def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    Z, membership = problem((2,), 7, 6, 3)
    expected = log_dets(Z, membership), *gradients(log_dets, Z, membership)
    monkeypatch.setattr(khatri_rao, "FULL_ELEMENTS", 2 * 3 * 3 * 3)
    assert len(khatri_rao.log_dets_and_gradients(Z.detach(), membership.detach(), EPS2, True)[1]) == 3  # 3 + 3 + 1
    for got, want in zip((log_dets(Z, membership), *gradients(log_dets, Z, membership)), expected, strict=True):
        close(got, want, 1e-14)


def test_saved_memory_is_one_triangle_per_class() -> None:
    Z, membership = problem((), 20, 10, 6)
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 8
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        values, _ = soft_class_log_dets(Z, membership, EPS2)
    triangles = 20 * 6 * 7 // 2
    assert triangles <= sum(sizes.values()) <= triangles + 2 * (Z.numel() + membership.numel())
    assert values.requires_grad


def test_bad_values_stay_where_they_are() -> None:
    Z, membership = problem((3,), 4, 5, 3)
    expected = log_dets(Z, membership)
    good = torch.tensor([True, False, True])
    with torch.no_grad():
        Z[1, 2, 0] = torch.nan
    values = log_dets(Z, membership)
    assert values[1].isnan().all() and torch.equal(values[good], expected[good])
    d_Z, d_membership = torch.autograd.grad(values.sum(), (Z, membership))
    assert d_Z[1].isnan().all() and d_membership[1].isnan().all()
    assert d_Z[good].isfinite().all() and d_membership[good].isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -1.0])
def test_bad_membership_stays_in_its_class(value: float) -> None:
    Z, membership = problem((), 4, 5, 3)
    expected = log_dets(Z, membership)
    with torch.no_grad():
        membership[1, 2] = value
    values, mass = soft_class_log_dets(Z, membership, EPS2)
    good = torch.tensor([0, 2, 3])
    assert values[1].isnan() and torch.equal(values[good], expected[good])
    assert not mass[1].isfinite() and mass[good].isfinite().all()


def test_transforms() -> None:
    Z, membership = problem((3,), 4, 5, 3)
    plain = Z.detach(), membership.detach()
    close(torch.vmap(log_dets)(*plain), log_dets(*plain), 1e-14)
    one = torch.vmap(torch.func.grad(lambda *inputs: log_dets(*inputs).sum(), argnums=(0, 1)))(*plain)
    expected = torch.autograd.grad(log_dets(Z, membership).sum(), (Z, membership))
    for got, want in zip(one, expected, strict=True):
        close(got, want, 1e-14)


@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")  # torch's own
def test_compiled() -> None:
    Z, membership = problem((), 4, 5, 3)
    compiled = torch.compile(lambda *inputs: soft_class_log_dets(*inputs, EPS2)[0], fullgraph=True, backend="aot_eager")
    close(compiled(Z, membership), log_dets(Z, membership), 1e-14)
    for got, want in zip(gradients(compiled, Z, membership), gradients(log_dets, Z, membership), strict=True):
        close(got, want, 1e-14)


def test_autocast_changes_nothing() -> None:
    Z, membership = problem((), 4, 5, 3, torch.float32)
    expected = log_dets(Z, membership), *gradients(log_dets, Z, membership)
    with torch.autocast("cpu", torch.bfloat16):
        got = log_dets(Z, membership), *gradients(log_dets, Z, membership)
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


def test_packed_pieces() -> None:
    """Order and adjoint of the packed triangles."""
    Z, membership = (array.detach() for array in problem((2,), 4, 5, 3))
    products = khatri_rao.khatri_rao(Z, torch.float64)
    first, second = torch.triu_indices(3, 3)
    assert torch.equal(products, (Z[..., :, None] * Z[..., None, :])[..., first, second])
    close(
        khatri_rao.class_grams_packed(Z, membership),
        torch.einsum("bkn,bna,bnc->bkac", membership, Z, Z)[..., first, second],
        1e-14,
    )
    d_products = torch.randn_like(products)
    leaf = Z.clone().requires_grad_()
    (expected,) = torch.autograd.grad((khatri_rao.khatri_rao(leaf, torch.float64) * d_products).sum(), leaf)
    close(khatri_rao.khatri_rao_adjoint(d_products, Z), expected, 1e-14)
