"""Gradients of principal angles and of functions of them, at the points where those of an SVD are not finite."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import subspan
from angle_cases import DOUBLE, METRICS, SMOOTH, angle_bound, double, invertible, largest, pair, unit
from sample_arrays import normal

Function = Callable[[Tensor, Tensor], Tensor]

#: Functions that are smooth wherever no angle is pi/2.
SMOOTH_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    **{f"{m} squared": functools.partial(subspan.subspace_distance, metric=m, squared=True) for m in SMOOTH},
    "mean_cos2": functools.partial(subspan.subspace_similarity, kind="mean_cos2"),
    "overlap": functools.partial(subspan.subspace_similarity, kind="overlap"),
}
smooth_functions = pytest.mark.parametrize("function", SMOOTH_FUNCTIONS.values(), ids=SMOOTH_FUNCTIONS.keys())

#: Angles, then p and q: where singular values repeat, vanish or are one.
DELICATE: dict[str, tuple[tuple[float, ...], int, int]] = {
    "equal spaces": ((0.0, 0.0, 0.0), 3, 3),
    "all angles equal": ((0.3, 0.3, 0.3), 3, 3),
    "some angles zero": ((0.0, 0.0, 0.5), 3, 3),
    "some equal": ((0.2, 0.7, 0.7), 3, 3),
    "p > q": ((0.0, 0.4), 4, 2),
    "p < q": ((0.6, 0.6), 2, 3),
    "contained": ((0.0, 0.0), 2, 4),
    "lines": ((0.8,), 1, 1),
    "a line in a plane": ((0.0,), 2, 1),
    "generic": ((0.1, 0.5, 1.2), 3, 3),
}
delicate = pytest.mark.parametrize("point", DELICATE.values(), ids=DELICATE.keys())


def bases_at(point: tuple[tuple[float, ...], int, int], condition: float | None = 3.0) -> tuple[Tensor, Tensor]:
    angles, p, q = point
    A, B = pair(1, 6, angles, p, q, condition)
    return A.requires_grad_(), B.requires_grad_()


def through_retraction(function: Callable[..., Tensor]) -> Function:
    """Of orthonormal bases of the spans, given as such: only their tangent gradient passes."""
    return lambda A, B: function(torch.linalg.qr(A).Q, torch.linalg.qr(B).Q, assume_orthonormal=True)


def among_pairs(function: Callable[..., Tensor]) -> Function:
    """The space of A with that of B and another."""
    return lambda A, B: function(A[None], torch.stack([B, 2 * B.roll(1, 0)]), pairwise=True)


# --- smooth functions -------------------------------------------------------------------------------------------------


@delicate
@smooth_functions
def test_smooth_functions(function: Callable[..., Tensor], point: Any) -> None:
    bases = bases_at(point)
    assert gradcheck(function, bases)
    assert gradgradcheck(function, bases)


@delicate
@smooth_functions
def test_smooth_functions_of_orthonormal_bases(function: Callable[..., Tensor], point: Any) -> None:
    bases = bases_at(point, None)
    assert gradcheck(through_retraction(function), bases)
    assert gradgradcheck(through_retraction(function), bases)


@pytest.mark.parametrize("name", ["equal spaces", "all angles equal", "p > q", "p < q"])
@smooth_functions
def test_smooth_functions_of_all_pairs(function: Callable[..., Tensor], name: str) -> None:
    bases = bases_at(DELICATE[name])
    assert gradcheck(among_pairs(function), bases)
    assert gradgradcheck(among_pairs(function), bases)


@pytest.mark.parametrize("metric", SMOOTH)
@pytest.mark.parametrize("unequal", ["nearest", "padded"])
def test_distances_off_zero(metric: str, unequal: str) -> None:
    if metric == "martin" and unequal == "padded":
        return  # infinite

    def function(A: Tensor, B: Tensor) -> Tensor:
        return subspan.subspace_distance(A, B, metric, unequal=unequal)

    for point in (((0.2, 0.7, 0.7), 3, 3), ((0.0, 0.4), 4, 2), ((0.3, 0.3), 2, 3)):
        bases = bases_at(point)
        assert gradcheck(function, bases)
        assert gradgradcheck(function, bases)


@smooth_functions
def test_gradient_of_the_formula(function: Callable[..., Tensor]) -> None:
    """The kernel's gradient is that of the torch operations that second derivatives use."""
    for point in DELICATE.values():
        bases = bases_at(point)
        value = function(*bases)
        kernel = torch.autograd.grad(value, bases, retain_graph=True)
        formula = torch.autograd.grad(value, bases, create_graph=True)
        for first, second in zip(kernel, formula, strict=True):
            torch.testing.assert_close(first, second.detach(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("metric", ["geodesic", "chordal", "procrustes"])
def test_gradient_points_along_the_geodesic(metric: str) -> None:
    """Of half the squared arc length it is minus the initial velocity; of the others that times s c / theta, ..."""
    theta, n = double([1e-9, 1e-4, 0.3, 0.3, 1.2]), 24
    A, B = pair(2, n, theta.tolist())
    A.requires_grad_()
    distance = subspan.subspace_distance(A, B, metric, squared=True)
    (gradient,) = torch.autograd.grad(distance / 2, A)
    speed = {"geodesic": theta, "chordal": theta.sin() * theta.cos(), "procrustes": theta.sin()}[metric]
    # Its singular values are the derivatives of the squares, to full relative accuracy at the large ones.
    found = torch.linalg.svdvals(gradient).flip(-1)
    assert largest(found - speed.sort().values) <= 20 * unit(DOUBLE)


# --- single angles ----------------------------------------------------------------------------------------------------

SINGLE: dict[str, Function] = {
    "angles": subspan.principal_angles,
    "cosines": subspan.principal_cosines,
    "max_cos": functools.partial(subspan.subspace_similarity, kind="max_cos"),
    **{m: functools.partial(subspan.subspace_distance, metric=m) for m in ("asimov", "spectral", "gap")},
    **{
        f"{m} squared": functools.partial(subspan.subspace_distance, metric=m, squared=True)
        for m in ("asimov", "spectral", "gap")
    },
}


@pytest.mark.parametrize("function", SINGLE.values(), ids=SINGLE.keys())
@pytest.mark.parametrize(
    "point", [((0.3, 0.7, 1.1), 3, 3), ((0.5, 1.2), 4, 2), ((0.4, 0.9), 2, 3), ((0.8,), 1, 1)], ids=str
)
def test_simple_angles(function: Callable[..., Tensor], point: Any) -> None:
    bases = bases_at(point)
    for f in (function, through_retraction(function), among_pairs(function)):
        assert gradcheck(f, bases)
        assert gradgradcheck(f, bases)


def test_angles_have_gradients_of_length_one() -> None:
    """However small the angle: the 1 / sin of the textbook formula is not there."""
    for smallest in (1e-10, 1e-7, 1e-3):
        angles = (smallest, 3 * smallest, 0.5, math.pi / 2 - 1e-6)
        A, B = pair(3, 20, angles)
        A.requires_grad_()
        found = subspan.principal_angles(A, B, assume_orthonormal=True)
        for i in range(4):
            (gradient,) = torch.autograd.grad(found[i], A, retain_graph=True)
            # The residual of a tiny angle is known to rounding errors of the bases.
            assert abs(gradient.norm().item() - 1) <= angle_bound(20) / smallest


def test_zero_distance_and_zero_angles() -> None:
    A = normal(4, 9, 3).requires_grad_()
    B = (A.detach() @ invertible(1, 3, 3)).requires_grad_()
    for same in (B, A.detach().clone().requires_grad_()):
        for metric in METRICS:
            distance = subspan.subspace_distance(A, same, metric)
            gradients = torch.autograd.grad(distance, (A, same))
            # The distance is a rounding error: its gradient is that of some direction, or none.
            assert all(g.isfinite().all() and g.norm() <= 10 for g in gradients), metric
            square = subspan.subspace_distance(A, same, metric, squared=True)
            assert all(largest(g) <= 1e-13 for g in torch.autograd.grad(square, (A, same))), metric
    X = torch.eye(6, 2, dtype=DOUBLE, requires_grad=True)
    Y = torch.eye(6, 2, dtype=DOUBLE, requires_grad=True)
    for metric in METRICS:  # exactly 0
        distance = subspan.subspace_distance(X, Y, metric)
        assert distance.item() == 0
        assert all((g == 0).all() for g in torch.autograd.grad(distance, (X, Y))), metric
    assert all((g == 0).all() for g in torch.autograd.grad(subspan.principal_angles(X, Y).sum(), (X, Y)))


# --- everywhere -------------------------------------------------------------------------------------------------------


def awkward() -> dict[str, tuple[Tensor, Tensor]]:
    eye = torch.eye(8, dtype=DOUBLE)
    A, B = pair(5, 8, (0.0, 0.5, math.pi / 2))
    return {
        "equal": (A, A.clone()),
        "equal spaces": (A, A @ invertible(1, 3)),
        "orthogonal": (eye[:, :3], eye[:, 3:6]),
        "orthogonal, p > q": (eye[:, :4], eye[:, 5:7]),
        "orthogonal, p < q": (eye[:, :2], eye[:, 3:8]),
        "some orthogonal": (eye[:, :3], eye[:, 1:4]),
        "orthogonal to rounding": (A, B),
        "same basis vectors": (eye[:, :3], eye[:, :3]),
        "everything": (eye, eye @ invertible(1, 8)),
        "a zero column": (A * double([1, 0, 1]), B),
        "zero": (0 * A, B),
        "both zero": (0 * A, 0 * B),
    }


def rank_deficient() -> dict[str, tuple[Tensor, Tensor]]:
    A, B = pair(5, 8, (0.0, 0.5, 1.0))
    deficient = torch.stack([A[:, 0], A[:, 1], A[:, 0] + A[:, 1]], -1)
    return {"rank deficient": (deficient, B), "both rank deficient": (deficient, deficient * 2)}


AWKWARD = [(name, orthonormal) for name in awkward() for orthonormal in (False, True)]
AWKWARD += [(name, False) for name in rank_deficient()]


@pytest.mark.parametrize(("name", "orthonormal"), AWKWARD)
@pytest.mark.parametrize("form", ["pairs", "pairwise", "formula", "pairwise formula"])
def test_gradients_are_finite_and_orthogonal_to_the_basis(name: str, form: str, orthonormal: bool) -> None:
    bases = tuple(X.clone().requires_grad_() for X in (awkward() | rank_deficient())[name])
    functions: dict[str, Callable[..., Tensor]] = {"angles": subspan.principal_angles}
    functions["cosines"] = subspan.principal_cosines
    for metric in METRICS:
        functions[metric] = functools.partial(subspan.subspace_distance, metric=metric)
        functions[f"{metric} squared"] = functools.partial(subspan.subspace_distance, metric=metric, squared=True)
    for kind in ("mean_cos2", "max_cos", "overlap"):
        functions[kind] = functools.partial(subspan.subspace_similarity, kind=kind)
    # What is wrongly taken for orthonormal has finite gradients; no more is promised.
    holds = all(torch.allclose(X.mT @ X, torch.eye(X.shape[1], dtype=X.dtype), atol=1e-12) for X in bases)
    failures = []
    for title, function in functions.items():
        if "pairwise" in form:
            stacked = [torch.stack([X, X.roll(1, 0)]) for X in bases]
            value = function(*stacked, pairwise=True, assume_orthonormal=orthonormal)
        else:
            value = function(*bases, assume_orthonormal=orthonormal)
        # An infinite distance weighs nothing: its gradient is finite, times an upstream gradient of 0 too.
        total = torch.where(value.isfinite(), value, 0).sum()
        gradients = torch.autograd.grad(total, bases, create_graph="formula" in form)
        for X, gradient in zip(bases, gradients, strict=True):
            if not gradient.isfinite().all():
                failures.append(f"{title} not finite")
            elif "pairwise" not in form and (holds or not orthonormal):  # else X is not the only basis made of X
                along = largest(X.detach().mT @ gradient.detach())
                if along > 1e-14 * max(gradient.norm().item(), 1.0) * max(X.norm().item(), 1.0):
                    failures.append(f"{title} {along:.1e} of {gradient.norm():.1e} along the basis")
    assert not failures


def test_gradients_of_other_bases_of_the_span() -> None:
    """A basis A R has the gradient G R^-T: the function is one of the span."""
    A, B = pair(6, 12, (0.2, 0.2, 0.9))
    R = invertible(2, 3, 20)
    for function in (*SMOOTH_FUNCTIONS.values(), lambda A, B: subspan.principal_angles(A, B)[..., 2]):
        X = A.clone().requires_grad_()
        Y = (A @ R).requires_grad_()
        (of_X,) = torch.autograd.grad(function(X, B), X)
        (of_Y,) = torch.autograd.grad(function(Y, B), Y)
        torch.testing.assert_close(of_Y, torch.linalg.solve(R, of_X.mT).mT, rtol=1e-11, atol=1e-12)


def test_broadcast_bases_get_the_sum() -> None:
    A, B = normal(7, 5, 9, 3), normal(8, 9, 2)
    upstream = normal(9, 5)
    for orthonormal in (False, True):
        if orthonormal:
            A, B = torch.linalg.qr(A).Q, torch.linalg.qr(B).Q
        left, right = A.clone().requires_grad_(), B.clone().requires_grad_()
        value = subspan.subspace_distance(left, right, squared=True, assume_orthonormal=orthonormal)
        once = torch.autograd.grad(value, (left, right), upstream, retain_graph=True)
        graph = torch.autograd.grad(value, (left, right), upstream, create_graph=True)
        each = [B.clone().requires_grad_() for _ in range(5)]
        parts = [
            subspan.subspace_distance(left[i], each[i], squared=True, assume_orthonormal=orthonormal) for i in range(5)
        ]
        looped = torch.autograd.grad(sum(u * v for u, v in zip(upstream, parts, strict=True)), (left, *each))
        for got in (once, graph):
            torch.testing.assert_close(got[0].detach(), looped[0], rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(got[1].detach(), sum(looped[1:]), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_gradients_of_narrow_types(dtype: torch.dtype) -> None:
    """Those of the same bases in float64, rounded to the type of the input."""
    A, B = (X.to(dtype) for X in pair(10, 30, (1e-3, 0.2, 0.2, 1.1), condition=5))
    for function in (*SMOOTH_FUNCTIONS.values(), subspan.principal_angles):
        narrow = [X.clone().requires_grad_() for X in (A, B)]
        wide = [X.double().requires_grad_() for X in (A, B)]
        gradients = torch.autograd.grad(function(*narrow).sum(), narrow)
        expected = torch.autograd.grad(function(*wide).sum(), wide)
        for got, exact in zip(gradients, expected, strict=True):
            assert got.dtype == dtype
            # Once to float32, once to the type; distances are divided by a rounded value.
            assert largest(got.double() - exact) <= (unit(dtype) + 2 * unit(torch.float32)) * largest(exact)
