"""Distances and similarities of subspaces: each against its formula in 50 digits, identities, and metric axioms."""

from __future__ import annotations

import itertools
import math

import mpmath
import pytest
import torch
from torch import Tensor

import subspan
from angle_cases import (
    ANGLES,
    DOUBLE,
    HALF,
    METRICS,
    SIMILARITIES,
    angle_bound,
    double,
    formula,
    invertible,
    largest,
    orthogonal,
    pair,
    unit,
)
from sample_arrays import normal

CASES = pytest.mark.parametrize("angles", ANGLES.values(), ids=ANGLES.keys())
EVERY_METRIC = pytest.mark.parametrize("metric", METRICS)

#: Largest derivative of a distance by an angle; of martin it is tan(theta) / distance.
LIPSCHITZ = dict.fromkeys(METRICS, 1.0) | {"projection": math.sqrt(2)}


def projection(A: Tensor) -> Tensor:
    Q = torch.linalg.qr(A).Q
    return Q @ Q.mT


# --- against the formulas ---------------------------------------------------------------------------------------------


@CASES
@EVERY_METRIC
@pytest.mark.parametrize("squared", [False, True], ids=["", "squared"])
def test_distance_of_known_angles(angles: tuple[float, ...], metric: str, squared: bool) -> None:
    n = 40
    infinite = metric == "martin" and max(angles) > HALF - 1e-12  # but for the rounding of a cosine
    expected = formula(METRICS[metric], angles)
    for orthonormal, extra in itertools.product((False, True), ((0, 0), (2, 0), (0, 2))):
        A, B = pair(1, n, angles, len(angles) + extra[0], len(angles) + extra[1])
        got = subspan.subspace_distance(A, B, metric, squared=squared, assume_orthonormal=orthonormal).item()
        if infinite:
            assert got >= math.sqrt(-2 * math.log(1e-15)) ** (2 if squared else 1)
            continue
        bound = angle_bound(n) * math.sqrt(len(angles)) * LIPSCHITZ[metric] + 8 * unit(DOUBLE) * expected
        if metric == "martin":
            bound += angle_bound(n) * sum(math.tan(t) for t in angles) / max(expected, 1e-30)
        if squared:
            bound = 2 * expected * bound + bound**2
        assert abs(got - expected ** (2 if squared else 1)) <= bound, (orthonormal, extra, got, expected)


@CASES
@pytest.mark.parametrize("kind", SIMILARITIES)
def test_similarity_of_known_angles(angles: tuple[float, ...], kind: str) -> None:
    n, expected = 40, formula(SIMILARITIES[kind], angles)
    for orthonormal, extra in itertools.product((False, True), ((0, 0), (2, 0), (0, 2))):
        A, B = pair(1, n, angles, len(angles) + extra[0], len(angles) + extra[1])
        got = subspan.subspace_similarity(A, B, kind, assume_orthonormal=orthonormal).item()
        assert abs(got - expected) <= (len(angles) if kind == "overlap" else 1) * angle_bound(n), (orthonormal, extra)


@EVERY_METRIC
@pytest.mark.parametrize("size", [1e-11, 1e-8, 1e-4, 0.5, 1.3])
def test_small_distances_keep_their_digits(metric: str, size: float) -> None:
    """A distance of 1e-11 has five digits, whatever clamps and cancellations its formula invites."""
    angles = (size / 3, size / 2, size)
    A, B = pair(2, 30, angles)
    expected = formula(METRICS[metric], angles)
    got = subspan.subspace_distance(A, B, metric).item()
    assert abs(got - expected) <= (4 if metric == "martin" else 2) * angle_bound(30)
    assert got >= 0


@EVERY_METRIC
@pytest.mark.parametrize("sizes", [(5, 2), (2, 5), (3, 3), (4, 1)], ids=str)
def test_unequal_dimensions(metric: str, sizes: tuple[int, int]) -> None:
    """Nearest: of the angles as they are. Padded: with a right angle for each missing one."""
    p, q = sizes
    angles = (0.2, 0.7, 1.1)[: min(p, q)]
    A, B = pair(3, 20, angles, p, q)
    right = [mpmath.pi() / 2] * abs(p - q)
    for squared in (False, True):
        power = 2 if squared else 1
        nearest = subspan.subspace_distance(A, B, metric, squared=squared).item()
        assert nearest == pytest.approx(formula(METRICS[metric], angles) ** power, rel=1e-14, abs=0)
        padded = subspan.subspace_distance(A, B, metric, squared=squared, unequal="padded").item()
        if metric == "martin" and right:
            assert padded == math.inf
        else:
            expected = formula(METRICS[metric], [*angles, *right])
            if metric == "projection":  # a direction without a partner is in one projection only
                expected = math.sqrt(expected**2 - len(right))
            assert padded == pytest.approx(expected**power, rel=1e-14, abs=0)
        if p == q:
            assert subspan.subspace_distance(A, B, metric, squared=squared, unequal="raise").item() == nearest
        else:
            with pytest.raises(ValueError, match=r"subspace_distance: B: expected as many vectors as A \(\d\), got \d"):
                subspan.subspace_distance(A, B, metric, squared=squared, unequal="raise")


@EVERY_METRIC
def test_right_angles(metric: str) -> None:
    A, B = torch.eye(6, 2, dtype=DOUBLE), torch.eye(6, dtype=DOUBLE)[:, 2:4]
    got = subspan.subspace_distance(A, B, metric).item()
    values = {"geodesic": HALF * math.sqrt(2), "chordal": math.sqrt(2), "projection": 2.0, "procrustes": 2.0}
    values |= {"fubini_study": HALF, "binet_cauchy": 1.0, "asimov": HALF, "spectral": math.sqrt(2), "gap": 1.0}
    assert got == pytest.approx(values.get(metric, math.inf), rel=1e-15)


@EVERY_METRIC
def test_half_types_and_numpy(metric: str) -> None:
    A, B = normal(4, 3, 20, 4), normal(5, 3, 20, 4)
    exact = subspan.subspace_distance(A.bfloat16().double(), B.bfloat16().double(), metric)
    got = subspan.subspace_distance(A.bfloat16(), B.bfloat16(), metric)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, rtol=unit(torch.float32), atol=0)
    array = subspan.subspace_distance(A.numpy(), B.numpy(), metric)
    assert torch.equal(torch.from_numpy(array), subspan.subspace_distance(A, B, metric))


# --- identities -------------------------------------------------------------------------------------------------------


def spans(seed: int, count: int, n: int, k: int) -> Tensor:
    """Orthonormal, some of them close to each other."""
    A = torch.linalg.qr(normal(seed, count, n, k)).Q
    near = torch.linalg.qr(A[: count // 2] + 1e-3 * normal(seed + 1, count // 2, n, k)).Q
    return torch.cat([near, A[count // 2 :]])


@pytest.mark.parametrize("sizes", [(4, 4), (5, 2), (2, 5)], ids=str)
def test_identities(sizes: tuple[int, int]) -> None:
    p, q = sizes
    r = min(p, q)
    A, B = spans(1, 30, 16, p), spans(1, 30, 16, max(p, q))[..., :q]
    M, P_A, P_B = A.mT @ B, A @ A.mT, B @ B.mT
    overlap = M.square().sum((-2, -1))
    bound = 100 * unit(DOUBLE)
    for left, right in ((A, B), (A @ invertible(2, p, 10), B @ invertible(3, q, 10))):

        def distance(metric: str, left: Tensor = left, right: Tensor = right, **options: object) -> Tensor:
            return subspan.subspace_distance(left, right, metric, squared=True, **options)

        assert largest(distance("chordal") - (r - overlap)) <= bound
        assert largest(distance("chordal", unequal="padded") - (max(p, q) - overlap)) <= bound
        norm = (P_A - P_B).square().sum((-2, -1))
        assert largest(distance("projection", unequal="padded") - norm) <= bound
        assert largest(distance("projection") - 2 * distance("chordal")) <= bound
        assert largest(subspan.subspace_similarity(left, right, "overlap") - overlap) <= bound
        assert largest(subspan.subspace_similarity(left, right) - overlap / r) <= bound
        assert largest(subspan.subspace_similarity(left, right, "max_cos") - torch.linalg.svdvals(M)[:, 0]) <= bound
        # The product of the cosines is the volume of one space's unit cube seen in the other.
        gram = M.mT @ M if p >= q else M @ M.mT
        square = gram.double().numpy()
        volume = double([math.sqrt(abs(float(mpmath.det(mpmath.matrix(g.tolist()))))) for g in square])
        assert largest(distance("fubini_study").sqrt().cos() - volume) <= bound
        assert largest(distance("binet_cauchy") - (1 - volume**2)) <= bound
        assert largest((-distance("martin") / 2).exp() - volume) <= bound
        if p == q:
            # Procrustes: the distance of the closest orthonormal bases.
            U, _, Vh = torch.linalg.svd(M)
            closest = (A @ U @ Vh - B).square().sum((-2, -1))
            assert largest(distance("procrustes") - closest) <= bound
            assert largest(distance("gap") - torch.linalg.matrix_norm(P_A - P_B, 2).square()) <= bound
            spectral = torch.linalg.matrix_norm(A @ U @ Vh - B, 2).square()
            assert largest(distance("spectral") - spectral) <= bound


@EVERY_METRIC
def test_metric_axioms(metric: str) -> None:
    """Martin's is no metric: it knows no triangle."""
    X = spans(4, 14, 9, 3)
    D = subspan.subspace_distance(X, X, metric, pairwise=True)
    assert torch.equal(D, D.mT) and (D.diagonal() == 0).all() and (D >= 0).all()
    assert (D + torch.eye(14) > 0).all()
    if metric == "martin":
        return
    detour = D[:, :, None] + D[None, :, :]
    assert (D[:, None, :] <= detour + 20 * unit(DOUBLE)).all()


def test_order_of_the_metrics() -> None:
    """As in Ye and Lim: chord below arc, the largest below the sum."""
    A, B = spans(5, 40, 12, 3), spans(6, 40, 12, 3)
    d = {metric: subspan.subspace_distance(A, B, metric) for metric in METRICS}
    slack = 20 * unit(DOUBLE)
    for less, more in itertools.pairwise(["gap", "spectral", "asimov", "geodesic"]):
        assert (d[less] <= d[more] + slack).all(), (less, more)
    for less, more in itertools.pairwise(["chordal", "procrustes", "geodesic", "martin"]):
        assert (d[less] <= d[more] + slack).all(), (less, more)
    for less, more in [("binet_cauchy", "fubini_study"), ("fubini_study", "geodesic"), ("binet_cauchy", "chordal")]:
        assert (d[less] <= d[more] + slack).all(), (less, more)


@EVERY_METRIC
def test_invariance(metric: str) -> None:
    A, B = spans(7, 20, 10, 3), spans(8, 20, 10, 3)
    expected = subspan.subspace_distance(A, B, metric)
    turn = orthogonal(9, 10)
    for left, right in ((turn @ A, turn @ B), (A @ invertible(1, 3, 10), B), (B, A), (A, -B.flip(-1))):
        torch.testing.assert_close(subspan.subspace_distance(left, right, metric), expected, rtol=1e-13, atol=1e-13)
    doubled = torch.cat([A, A], -2)
    torch.testing.assert_close(
        subspan.subspace_distance(doubled, torch.cat([B, B], -2), metric), expected, rtol=1e-13, atol=1e-13
    )
