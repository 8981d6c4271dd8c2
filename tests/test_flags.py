"""Nested subspaces: overlaps of all leading dimensions against one pair at a time, and distances between flags."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import subspan
from op_row import within
from sample_arrays import normal
from subspan.reference import angles as reference

EPS = np.finfo(np.float64).eps


def orthonormal(seed: int, *shape: int) -> torch.Tensor:
    return torch.linalg.qr(normal(seed, *shape)).Q.contiguous()


def test_overlap_of_every_pair_of_leading_subspaces() -> None:
    Qa, Qb = orthonormal(1, 3, 9, 4), orthonormal(2, 3, 9, 6)
    for mean in (False, True):
        overlap = subspan.nested_overlap(Qa, Qb, mean=mean)
        assert overlap.shape == (3, 4, 6)
        for i in range(1, 5):
            for j in range(1, 7):
                kind = "mean_cos2" if mean else "overlap"
                expected = reference.subspace_similarity(Qa[..., :i].numpy(), Qb[..., :j].numpy(), kind)
                within(overlap[:, i - 1, j - 1], expected, 100 * EPS, f"{i}, {j}")


def test_overlap_of_equal_bases_counts_dimensions() -> None:
    Q = orthonormal(3, 8, 5)
    counts = torch.minimum(torch.arange(1.0, 6)[:, None], torch.arange(1.0, 6))
    within(subspan.nested_overlap(Q, Q), counts.double(), 100 * EPS, "counts")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_overlap_types_and_libraries(dtype: torch.dtype) -> None:
    Qa, Qb = orthonormal(1, 9, 4).to(dtype), orthonormal(2, 9, 3).to(dtype)
    overlap = subspan.nested_overlap(Qa, Qb)
    assert overlap.dtype == torch.float32
    if dtype is torch.bfloat16:
        return
    array = subspan.nested_overlap(Qa.numpy(), Qb.numpy())
    assert array.dtype == np.float32
    within(array, overlap, 1e-6, "NumPy")


def test_overlap_derivatives_and_transforms() -> None:
    Qa, Qb = orthonormal(1, 2, 5, 3).requires_grad_(), orthonormal(2, 5, 2).requires_grad_()
    assert torch.autograd.gradcheck(subspan.nested_overlap, (Qa, Qb))
    assert torch.autograd.gradgradcheck(subspan.nested_overlap, (Qa, Qb))
    compiled = torch.compile(subspan.nested_overlap, fullgraph=True)
    within(compiled(Qa.detach(), Qb.detach()), subspan.nested_overlap(Qa.detach(), Qb.detach()), 10 * EPS, "compiled")
    mapped = torch.func.vmap(subspan.nested_overlap, in_dims=(0, None))(Qa.detach(), Qb.detach())
    within(mapped, subspan.nested_overlap(Qa.detach(), Qb.detach()), 10 * EPS, "mapped")


def test_overlap_nan_stays_in_its_item() -> None:
    Qa, Qb = orthonormal(1, 3, 9, 4), orthonormal(2, 3, 9, 6)
    clean = subspan.nested_overlap(Qa, Qb)
    Qa[1, 2, 0] = np.nan
    overlap = subspan.nested_overlap(Qa, Qb)
    assert overlap[1].isnan().all()
    assert torch.equal(overlap[::2], clean[::2])


def flag_formula(A: torch.Tensor, B: torch.Tensor, signature: tuple[int, ...]) -> torch.Tensor:
    """Chordal distance as FlagAveraging writes it, squared."""
    total = torch.zeros(A.shape[:-2], dtype=torch.float64)
    for start, stop in zip((0, *signature), signature, strict=False):
        product = A[..., start:stop].mT @ B[..., start:stop]
        total = total + (stop - start) - (product**2).sum((-2, -1))
    return total


@pytest.mark.parametrize("signature", [(1,), (1, 3), (2, 3, 5), (5,)], ids=str)
def test_flag_distance_is_the_published_formula(signature: tuple[int, ...]) -> None:
    A, B = orthonormal(1, 4, 9, 5), orthonormal(2, 4, 9, 6)
    expected = flag_formula(A, B, signature)
    within(subspan.flag_distance(A, B, signature, squared=True), expected, 100 * EPS, "square")
    within(subspan.flag_distance(A, B, signature), expected.sqrt(), 100 * EPS, "distance")
    within(subspan.flag_distance(A.numpy(), B.numpy(), signature), expected.sqrt(), 100 * EPS, "NumPy")


def test_flag_distance_keeps_small_distances() -> None:
    """The difference of m and a sum of squares would be 0 or the root of a rounding error, 1e-8."""
    Q = orthonormal(3, 9, 6)
    angles = torch.tensor([1e-9, 2e-10, 3e-11], dtype=torch.float64)
    A, B = Q[:, :3], Q[:, :3] * angles.cos() + Q[:, 3:] * angles.sin()
    within(subspan.flag_distance(A, B, (1, 3)), angles.norm(), 1e-14, "distance")


def test_flag_distance_sees_the_order_that_spans_do_not() -> None:
    Q = orthonormal(4, 7, 3)
    turned = Q[:, [1, 0, 2]]
    assert subspan.subspace_distance(Q, turned).item() < 1e-14
    within(subspan.flag_distance(Q, turned, (1, 3), squared=True), 2.0, 100 * EPS, "square")


def test_flag_distance_gradients() -> None:
    free_A, free_B = normal(1, 2, 7, 3).requires_grad_(), normal(2, 2, 7, 3).requires_grad_()

    def distance(squared: bool) -> Any:
        def of(A: torch.Tensor, B: torch.Tensor) -> Any:
            return subspan.flag_distance(torch.linalg.qr(A).Q, torch.linalg.qr(B).Q, (1, 3), squared=squared)

        return of

    for squared in (False, True):
        assert torch.autograd.gradcheck(distance(squared), (free_A, free_B))
        assert torch.autograd.gradgradcheck(distance(squared), (free_A, free_B))
    Q = orthonormal(3, 7, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(subspan.flag_distance(Q, Q.detach().clone(), (1, 3)), Q)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("function", "arguments", "error", "message"),
    [
        ("nested_overlap", (torch.ones(4, 2), torch.ones(5, 2)), ValueError, "Qb: expected vectors of 4"),
        ("nested_overlap", (torch.ones(4, 2), np.ones((4, 2))), TypeError, "Qb: expected the array library"),
        ("nested_overlap", (torch.ones(4, 2).int(), torch.ones(4, 2)), TypeError, "Qa: expected float64"),
        ("nested_overlap", (torch.ones(2, 4, 2), torch.ones(3, 4, 2)), ValueError, "Qa: expected batch"),
        ("flag_distance", (torch.ones(4, 2), torch.ones(4, 2), (2, 1)), ValueError, "signature: expected increasing"),
        ("flag_distance", (torch.ones(4, 2), torch.ones(4, 2), (1, 3)), ValueError, "signature: expected increasing"),
        ("flag_distance", (torch.ones(4, 2), torch.ones(4, 2), ()), ValueError, "signature: expected increasing"),
        ("flag_distance", (torch.ones(4, 2), torch.ones(4, 2), (0, 1)), ValueError, "signature: expected increasing"),
        ("flag_distance", (torch.ones(4, 2), torch.ones(4, 2), (1.5,)), TypeError, "signature: expected integers"),
        ("flag_distance", (torch.ones(4, 2), torch.ones(4, 2), "12"), TypeError, "signature: expected a sequence"),
        ("flag_distance", (torch.ones(4, 2), torch.ones(4, 2), 1), TypeError, "signature: expected a sequence"),
    ],
)
def test_wrong_arguments(function: str, arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{function}: {message}"):
        getattr(subspan, function)(*arguments)


def test_flags_are_checked() -> None:
    Q = orthonormal(1, 4, 2)
    with pytest.raises(TypeError, match=r"^nested_overlap: mean: "):
        subspan.nested_overlap(Q, Q, mean=1)
    with pytest.raises(TypeError, match=r"^flag_distance: squared: "):
        subspan.flag_distance(Q, Q, (1,), squared="yes")
