"""Principal angles: accuracy from 0 to pi/2, invariances, principal vectors, ranks, and extreme bases."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

import subspan
from angle_cases import (
    ANGLES,
    DOUBLE,
    HALF,
    angle_bound,
    double,
    exact_angles,
    invertible,
    largest,
    orthogonal,
    pair,
    unit,
)
from sample_arrays import normal

CASES = pytest.mark.parametrize("angles", ANGLES.values(), ids=ANGLES.keys())
REAL = pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)


# --- constructed pairs ------------------------------------------------------------------------------------------------


@CASES
@pytest.mark.parametrize("orthonormal", [False, True], ids=["", "assume_orthonormal"])
@pytest.mark.parametrize("extra", [(0, 0), (3, 0), (0, 3)], ids=["p=q", "p>q", "p<q"])
def test_constructed(angles: tuple[float, ...], orthonormal: bool, extra: tuple[int, int]) -> None:
    for seed, n in itertools.product(range(3), (24, 200)):
        A, B = pair(10 * seed, n, angles, len(angles) + extra[0], len(angles) + extra[1])
        got = subspan.principal_angles(A, B, assume_orthonormal=orthonormal)
        assert largest(got - double(angles)) <= angle_bound(n), (seed, n, got - double(angles))
        cosines = subspan.principal_cosines(A, B, assume_orthonormal=orthonormal)
        assert largest(cosines - double(angles).cos()) <= angle_bound(n), (seed, n)


@CASES
@pytest.mark.parametrize("condition", [1e2, 1e5, 1e8])
def test_constructed_from_other_bases(angles: tuple[float, ...], condition: float) -> None:
    for seed, n in itertools.product(range(3), (24, 200)):
        A, B = pair(10 * seed, n, angles, condition=condition)
        got = subspan.principal_angles(A, B)
        assert largest(got - double(angles)) <= angle_bound(n, condition), (seed, n, got)


@CASES
@pytest.mark.parametrize("orthonormal", [False, True], ids=["", "assume_orthonormal"])
def test_pairs_of_a_batch(angles: tuple[float, ...], orthonormal: bool) -> None:
    """As many pairs as lanes, and more, each with angles of its own."""
    n = 40
    shifted = [[min(t * 2.0**-k, HALF) for t in angles] for k in range(21)]
    A, B = (torch.stack(side) for side in zip(*(pair(k, n, t) for k, t in enumerate(shifted)), strict=True))
    got = subspan.principal_angles(A, B, assume_orthonormal=orthonormal)
    assert largest(got - double(shifted)) <= angle_bound(n)


@CASES
@pytest.mark.parametrize("half", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_narrow_types_are_no_less_exact(angles: tuple[float, ...], half: torch.dtype) -> None:
    """The angles of the rounded bases, rounded once: float64 inside, also for the orthonormalisation."""
    A, B = (side.to(half) for side in pair(1, 60, angles, condition=10))
    wide = subspan.principal_angles(A.double(), B.double(), rank_tol=60 * unit(torch.float32))
    got = subspan.principal_angles(A, B)
    assert got.dtype == torch.float32
    assert largest((got.double() - wide) / wide.clamp(min=1e-30)) <= unit(torch.float32)


@CASES
def test_float32_is_within_the_rounding_of_its_input(angles: tuple[float, ...]) -> None:
    """Rounding moves an orthonormal basis by at most eps / 2 in the Frobenius norm of its sqrt(k) columns."""
    A, B = pair(2, 200, angles)
    moved = 2 * math.sqrt(len(angles)) * unit(torch.float32) / 2
    for orthonormal in (False, True):
        got = subspan.principal_angles(A.float(), B.float(), assume_orthonormal=orthonormal)
        bound = moved + HALF * unit(torch.float32)
        if orthonormal:  # and what was rounded is no longer orthonormal, by as much again
            bound += moved
        assert largest(got.double() - double(angles)) <= bound


@pytest.mark.parametrize(
    "shape", [(5, 2, 2), (7, 3, 2), (6, 2, 4), (9, 4, 4), (8, 5, 5), (4, 4, 2), (6, 1, 3)], ids=str
)
def test_exact_arithmetic(shape: tuple[int, int, int]) -> None:
    """Of random binary numbers; and of a basis and the same with small changes."""
    n, p, q = shape
    for seed, nearness in itertools.product(range(3), (1.0, 1e-6, 1e-10)):
        A = normal(seed, n, p)
        B = normal(seed + 10, n, q)
        B[:, : min(p, q)] = A[:, : min(p, q)] + nearness * B[:, : min(p, q)]
        condition = max(float(torch.linalg.cond(X)) for X in (A, B))
        exact = [float(t) for t in exact_angles(A, B)]
        got = subspan.principal_angles(A, B)
        assert largest(got - double(exact)) <= angle_bound(n, condition), (seed, nearness)


@pytest.mark.parametrize("columns", [32, 48, 64])
def test_many_cosines_of_every_size(columns: int) -> None:
    """From 1 to 1e-15: of such matrices Jacobi's method needs three times the sweeps of random ones."""
    angles = torch.logspace(0, -15, columns, dtype=DOUBLE).acos().tolist()
    A, B = pair(3, 200, angles)
    got, info = subspan.principal_angles(A, B, return_info=True)
    assert info.item() == columns
    assert largest(got - double(angles)) <= angle_bound(200)


# --- invariances ------------------------------------------------------------------------------------------------------


def generic(n: int = 30, p: int = 4, q: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    angles = (1e-7, 0.4, 1.3)[: min(p, q)]
    A, B = pair(7, n, angles, p, q)
    return A, B, double(angles)


@pytest.mark.parametrize("sizes", [(4, 3), (3, 3), (3, 5)], ids=str)
def test_invariances(sizes: tuple[int, int]) -> None:
    A, B, angles = generic(30, *sizes)
    bound = angle_bound(30, 1e3)
    p, q = sizes
    moved = {
        "another basis of A": (A @ invertible(1, p, 1e3), B),
        "another basis of B": (A, B @ invertible(2, q, 1e3)),
        "rotated": (orthogonal(3, 30) @ A, orthogonal(3, 30) @ B),
        "swapped": (B, A),
        "scaled columns": (
            A * torch.logspace(-200, 200, p, dtype=DOUBLE),
            B * torch.logspace(150, -150, q, dtype=DOUBLE),
        ),
        "reversed columns": (A.flip(-1), B.flip(-1)),
        "signs": (-A, B),
        "zero rows": (torch.nn.functional.pad(A, (0, 0, 3, 4)), torch.nn.functional.pad(B, (0, 0, 3, 4))),
    }
    for name, (left, right) in moved.items():
        assert largest(subspan.principal_angles(left, right) - angles) <= bound, name


def test_angles_of_complements() -> None:
    """The angles between A's and B's orthogonal complements that are not zero are those between A and B."""
    for seed, (p, q) in enumerate([(2, 2), (3, 2), (2, 5), (5, 5)]):
        n, angles = 12, (1e-9, 0.2, 0.9, 1.1, 1.5)[: min(p, q)]
        A, B = pair(seed, n, angles, p, q)
        complements = [torch.linalg.qr(X, mode="complete").Q[:, X.shape[1] :] for X in (A, B)]
        got = subspan.principal_angles(*complements)
        expected = torch.zeros(min(n - p, n - q), dtype=DOUBLE)
        expected[len(expected) - len(angles) :] = double(angles)
        assert largest(got - expected) <= angle_bound(n), (p, q, got, expected)


@pytest.mark.parametrize(
    "shape", [(5, 3, 4), (4, 4, 2), (4, 4, 4), (6, 5, 5), (3, 3, 1), (1, 1, 1), (2, 2, 2)], ids=str
)
def test_spaces_too_large_to_miss_each_other(shape: tuple[int, int, int]) -> None:
    n, p, q = shape
    A, B = normal(1, 20, n, p), normal(2, 20, n, q)
    shared = p + q - n
    assert shared > 0
    got = subspan.principal_angles(A, B)
    condition = max(float(torch.linalg.cond(X).max()) for X in (A, B))
    assert largest(got[:, :shared]) <= angle_bound(n, condition)


@pytest.mark.parametrize("sizes", [(5, 2), (2, 5), (3, 3), (1, 4), (8, 8)], ids=str)
def test_a_subspace_of_the_other(sizes: tuple[int, int]) -> None:
    p, q = sizes
    for orthonormal in (False, True):
        large = torch.linalg.qr(normal(3, 9, 50, max(p, q))).Q
        small = large @ torch.linalg.qr(normal(4, 9, max(p, q), min(p, q))).Q
        A, B = (large, small) if p > q else (small, large)
        got = subspan.principal_angles(A, B, assume_orthonormal=orthonormal)
        assert largest(got) <= angle_bound(50)


@REAL
def test_lines(dtype: torch.dtype) -> None:
    """One vector each: the angle between lines, whatever the vectors' signs and lengths."""
    x, y = normal(5, 500, 9, dtype=dtype), normal(6, 500, 9, dtype=dtype)
    y[:200] = x[:200] + 1e-3 * y[:200]
    y[100:110] = -x[100:110]
    wide_x, wide_y = x.double(), y.double()
    along = (wide_x * wide_y).sum(-1).abs()
    unit_x = wide_x / wide_x.norm(dim=-1, keepdim=True)
    across = (wide_y - unit_x * (unit_x * wide_y).sum(-1, keepdim=True)).norm(dim=-1) * wide_x.norm(dim=-1)
    exact = torch.atan2(across, along)
    for signs in itertools.product((1, -1, 1e-3), (1, -3)):
        got = subspan.principal_angles(signs[0] * x[..., None], signs[1] * y[..., None])[:, 0]
        # In float32 a length of 1e-3 or 3 rounds the vectors' entries.
        bound = angle_bound(9) + HALF * (0 if dtype == DOUBLE else 3 * unit(dtype))
        assert largest(got.double() - exact) <= bound


# --- principal vectors ------------------------------------------------------------------------------------------------


@CASES
@pytest.mark.parametrize("extra", [(0, 0), (2, 0), (0, 2)], ids=["p=q", "p>q", "p<q"])
@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_principal_vectors(angles: tuple[float, ...], extra: tuple[int, int], order: str) -> None:
    r, n = len(angles), 50
    A, B = pair(4, n, angles, r + extra[0], r + extra[1])
    bound = angle_bound(n)
    got, left, right = subspan.principal_angles(A, B, order=order, return_vectors=True)
    expected = double(angles if order == "ascending" else angles[::-1])
    assert largest(got - expected) <= bound
    assert left.shape == right.shape == (n, r)
    for basis, vectors in ((A, left), (B, right)):
        assert largest(vectors - basis @ (basis.mT @ vectors)) <= bound, "in the span"
        assert largest(vectors.mT @ vectors - torch.eye(r, dtype=DOUBLE)) <= bound, "orthonormal"
    assert largest(left.mT @ right - torch.diag(got.cos())) <= bound
    # The other side's vector leaves at right angles to this side's space.
    residual = right - left * got.cos()
    assert largest(A.mT @ residual) <= bound
    assert largest(residual.norm(dim=0) - got.sin()) <= bound


def test_principal_vectors_of_exactly_orthogonal_spaces() -> None:
    """Any orthonormal ones of each space."""
    A, B = torch.eye(9, 3, dtype=DOUBLE), torch.eye(9, dtype=DOUBLE)[:, 3:8] @ orthogonal(1, 5)
    for left, right in ((A, B), (B, A), (A, torch.cat([A[:, :1], B], -1))):
        angles, *vectors = subspan.principal_angles(left, right, return_vectors=True)
        r, shared = len(angles), left.shape[1] + right.shape[1] - 8
        assert largest(angles - double([0] * shared + [HALF] * (r - shared))) <= 4 * unit(DOUBLE)
        for basis, found in zip((left, right), vectors, strict=True):
            assert largest(found.mT @ found - torch.eye(r, dtype=DOUBLE)) <= angle_bound(9)
            assert largest(found - basis @ (basis.mT @ found)) <= angle_bound(9)


def test_vectors_carry_no_gradient_and_angles_do() -> None:
    A, B, _ = generic()
    angles, left, right = subspan.principal_angles(A.requires_grad_(), B, return_vectors=True)
    assert angles.requires_grad and not left.requires_grad and not right.requires_grad
    (with_vectors,) = torch.autograd.grad(angles.sum(), A)
    (without,) = torch.autograd.grad(subspan.principal_angles(A, B).sum(), A)
    assert torch.equal(with_vectors, without)


# --- ranks, extremes and items that are not finite --------------------------------------------------------------------


@REAL
@pytest.mark.parametrize("pairwise", [False, True], ids=["", "pairwise"])
def test_rank_deficient(dtype: torch.dtype, pairwise: bool) -> None:
    """Shapes stay, the missing angles are right, and the ranks are told."""
    full, B = (side.to(dtype) for side in pair(8, 20, (0.1, 0.5, 1.0), 3, 3))
    repeated = torch.stack([full[:, 0], full[:, 1], full[:, 0] - 2 * full[:, 1]], -1)
    zero_column = torch.stack([full[:, 0], torch.zeros(20, dtype=dtype), full[:, 1]], -1)
    single = full[:, :1] * torch.tensor([1.0, -2.0, 1e-30], dtype=dtype)
    A = torch.stack([full, repeated, zero_column, single, 0 * full])
    for left, right in ((A, B.expand(5, 20, 3)), (B.expand(5, 20, 3), A)):
        got, info = subspan.principal_angles(left, right, return_info=True, pairwise=pairwise)
        if pairwise:
            got, info = (x[:, 0] if left is A else x[0] for x in (got, info))
        assert info.dtype == torch.int32 and info.tolist() == [3, 2, 2, 1, 0]
        for item, rank in enumerate(info.tolist()):
            assert largest(got[item, rank:] - HALF) <= 4 * unit(dtype)
            expected = subspan.principal_angles(full[:, : max(rank, 1)], B)[:rank]
            assert largest(got[item, :rank] - expected) <= 20 * unit(dtype)
    twice, info = subspan.principal_angles(repeated, repeated, return_info=True)
    assert info.item() == 2
    assert largest(twice - double([0, 0, HALF])) <= 20 * unit(dtype)


@REAL
def test_rank_tolerance(dtype: torch.dtype) -> None:
    A = torch.eye(5, 3, dtype=dtype)
    B = A.clone()
    B[:, 2] = B[:, 1]
    B[4, 2] = 1e-3  # 1e-3 of its norm is its own
    for tolerance, rank in ((0.0, 3), (5e-4, 3), (2e-3, 2), (None, 3), (1.0, 0)):
        angles, info = subspan.principal_angles(A, B, rank_tol=tolerance, return_info=True)
        assert info.item() == rank, tolerance
        assert largest(angles[rank:] - HALF) <= 4 * unit(dtype)
        assert largest(angles[: min(rank, 2)]) <= 4 * unit(dtype)
    assert subspan.principal_angles(B, B, rank_tol=2e-3, return_info=True)[1].item() == 2


@pytest.mark.parametrize("scales", [(1e200, 1e200), (1e-200, 1e-200), (1e200, 1e-200), (1e-300, 1e300)], ids=str)
@pytest.mark.parametrize("pairwise", [False, True], ids=["", "pairwise"])
def test_huge_and_tiny_bases(scales: tuple[float, float], pairwise: bool) -> None:
    angles = double([1e-9, 0.5, 1.4])
    A, B = pair(9, 40, angles.tolist(), condition=100)
    A, B = (scales[0] * A).requires_grad_(), (scales[1] * B).requires_grad_()
    got, info = subspan.principal_angles(*(X[None] for X in (A, B)), pairwise=pairwise, return_info=True)
    assert largest(got - angles) <= angle_bound(40, 100)
    assert (info == 3).all()
    unscaled = [X.detach() / scale for X, scale in zip((A, B), scales, strict=True)]
    if max(scales) < 1e250 and min(scales) > 1e-250:
        gradients = torch.autograd.grad(got.sum(), (A, B))
        leaves = [X.requires_grad_() for X in unscaled]
        expected = torch.autograd.grad(subspan.principal_angles(*leaves).sum(), leaves)
        for gradient, scale, wanted in zip(gradients, scales, expected, strict=True):
            assert largest(gradient * scale - wanted) <= 1e-5 * largest(wanted)  # the residual of 1e-9 has 7 digits


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("orthonormal", [False, True], ids=["", "assume_orthonormal"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.bfloat16], ids=str)
def test_not_finite(bad: float, orthonormal: bool, dtype: torch.dtype) -> None:
    """That pair is NaN, in value and gradient; the others are as without it, to the last bit."""
    A, B = torch.linalg.qr(normal(10, 11, 12, 3)).Q.to(dtype), torch.linalg.qr(normal(11, 11, 12, 4)).Q.to(dtype)
    for side, row, column in ((0, 0, 0), (1, 11, 3), (1, 5, 0), (0, 4, 2)):
        spoiled = [A.clone(), B.clone()]
        spoiled[side][6, row, column] = bad
        results = []
        for left, right in (spoiled, (A, B)):
            leaves = [X.detach().clone().requires_grad_() for X in (left, right)]
            outputs = subspan.principal_angles(
                *leaves, assume_orthonormal=orthonormal, return_vectors=True, return_info=True
            )
            metrics = [
                subspan.subspace_distance(*leaves, m, assume_orthonormal=orthonormal) for m in ("geodesic", "martin")
            ]
            total = outputs[0].sum() + sum(m.sum() for m in metrics)
            results.append([*outputs, *metrics, *torch.autograd.grad(total, leaves)])
        keep = [i for i in range(11) if i != 6]
        for changed, kept in zip(*results, strict=True):
            assert torch.equal(changed[keep], kept[keep])
            assert changed[6].isnan().all() if changed.is_floating_point() else changed[6] == -1


EMPTY = [
    ((0, 5, 2), (0, 5, 3)),
    ((2, 0, 5, 2), (1, 5, 2)),
    ((4, 5, 0), (4, 5, 3)),
    ((5, 2), (5, 0)),
    ((5, 0), (5, 0)),
    ((0, 0), (0, 0)),
    ((3, 0, 0), (3, 0, 0)),
]


@pytest.mark.parametrize("shapes", EMPTY, ids=str)
@pytest.mark.parametrize("orthonormal", [False, True], ids=["", "assume_orthonormal"])
def test_empty(shapes: tuple[tuple[int, ...], tuple[int, ...]], orthonormal: bool) -> None:
    A, B = (torch.ones(shape, dtype=DOUBLE, requires_grad=True) for shape in shapes)
    batch = np.broadcast_shapes(A.shape[:-2], B.shape[:-2])
    count = min(A.shape[-1], B.shape[-1])
    options = {"assume_orthonormal": orthonormal}
    angles, left, right, info = subspan.principal_angles(A, B, return_vectors=True, return_info=True, **options)
    assert angles.shape == (*batch, count) and info.shape == batch
    assert left.shape == right.shape == (*batch, A.shape[-2], count)
    for metric, value in (("geodesic", 0.0), ("martin", 0.0), ("fubini_study", 0.0), ("gap", 0.0)):
        distance = subspan.subspace_distance(A, B, metric, **options)
        assert distance.shape == batch and (distance == value).all(), metric
    padded = subspan.subspace_distance(A, B, "chordal", unequal="padded", squared=True, **options)
    assert padded.shape == batch and (padded == abs(A.shape[-1] - B.shape[-1])).all()
    similarity = subspan.subspace_similarity(A, B, **options)
    assert similarity.shape == batch and (similarity == 0).all()
    total = angles.sum() + padded.sum() + similarity.sum()
    for gradient, X in zip(torch.autograd.grad(total, (A, B)), (A, B), strict=True):
        assert gradient.shape == X.shape and (gradient == 0).all()


def test_mpmath_agrees_with_the_construction() -> None:
    """The two oracles of this file."""
    for name in ("45 degrees", "1e-10 to right", "tiny, repeated"):
        angles = ANGLES[name]
        exact = exact_angles(*pair(12, 12, angles))
        with mpmath.workdps(30):
            assert max(abs(float(t - x)) for t, x in zip(exact, angles, strict=True)) <= angle_bound(12), name
