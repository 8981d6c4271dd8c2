"""cayley and skew_expm: other ways to the same matrices, and orthogonality for skew matrices of every size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch

import subspan
from op_row import same, within
from sample_arrays import normal
from subspan.reference import skew as reference

DOUBLE = torch.float64
BOTH = pytest.mark.parametrize("function", [subspan.cayley, subspan.skew_expm], ids=lambda f: f.__name__)
#: In SIMD lanes entry by entry, with blocks of pivots, and one matrix at a time.
SIZES = [2, 3, 8, 9, 17, 31, 65, 130]
NORMS = [1e-8, 1e-2, 1.0, 30.0, 1e3]


def skew_of_norm(seed: int, items: int, n: int, norm: float) -> torch.Tensor:
    A = normal(seed, items, n, n)
    A = (A - A.mT) / 2
    return A * (norm / torch.linalg.matrix_norm(A, 2)[:, None, None])


def defect(Q: torch.Tensor) -> float:
    """||Q^T Q - I|| in the spectral norm."""
    q = Q.double()
    return float(torch.linalg.matrix_norm(q.mT @ q - torch.eye(q.shape[-1], dtype=DOUBLE), 2).max())


@BOTH
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_orthogonal_at_any_norm(function: Callable[..., Any], n: int, dtype: torch.dtype) -> None:
    """Rounding errors of a solution with I - K/2 are those of K itself, which turn eigenvectors by a rounding times the
    norm, at most where an angle is 0; of the exponential none are left by the last step of Newton's method."""
    for norm in NORMS:
        A = skew_of_norm(n, 20, n, norm).to(dtype)
        grown = 1 + norm / 16 if function is subspan.cayley else 1
        assert defect(function(A)) <= 10 * n**0.5 * torch.finfo(dtype).eps * grown, norm


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("norm", [1e-2, 1.0, 30.0, 1e3])
def test_cayley_is_no_worse_than_twice_a_solution_with_row_exchanges(n: int, norm: float) -> None:
    A = skew_of_norm(n + 1, 20, n, norm).float()
    K, one = (A - A.mT) / 2, torch.eye(n)
    expected = torch.from_numpy(reference.cayley(A.double().numpy()))
    error = (subspan.cayley(A).double() - expected).abs().max()
    solved = (torch.linalg.solve(one - K / 2, one + K / 2).double() - expected).abs().max()
    assert error <= 2 * solved + 4 * n**0.5 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("n", [5, 40, 70])
def test_cayley_of_enormous_float32_matrices(n: int) -> None:
    A = skew_of_norm(n, 3, n, 1e6).float()
    expected = reference.cayley(A.double().numpy())
    within(subspan.cayley(A), expected, 10 * torch.finfo(torch.float32).eps, "value")


def test_neighbours_in_lanes_do_not_matter() -> None:
    """Small, large, enormous and bad matrices side by side, against each alone in the same form."""
    norms = [1e-3, 1.0, 50.0, 300.0, 1e4]
    for n in (6, 20):
        A = torch.cat([skew_of_norm(i, 4, n, norm) for i, norm in enumerate(norms)]).float()
        A[7, 1, 0] = float("nan")
        for function in (subspan.cayley, subspan.skew_expm):
            together = function(A)
            for i in range(len(A)):
                same(together[i], function(A[i : i + 1].expand(len(A), n, n))[0], f"item {i}")


def test_expm_of_mpmath() -> None:
    with mpmath.workdps(40):
        for n, norm in ((2, 1.0), (3, 30.0), (5, 0.1), (9, 3.0)):
            A = skew_of_norm(n, 1, n, norm)[0]
            expected = np.array(mpmath.expm(mpmath.matrix(A.tolist())).tolist(), dtype=float)
            within(subspan.skew_expm(A), expected, 20 * (1 + norm) * torch.finfo(DOUBLE).eps, f"{n}, {norm}")


def test_expm_of_scipy() -> None:
    scipy = pytest.importorskip("scipy.linalg")
    for n, norm in ((1, 0.0), (4, 1e-8), (16, 10.0), (33, 100.0), (70, 1.0)):
        A = skew_of_norm(n, 1, n, norm)[0] if n > 1 else torch.zeros(1, 1, dtype=DOUBLE)
        within(subspan.skew_expm(A), scipy.expm(A.numpy()), 40 * (1 + norm) * torch.finfo(DOUBLE).eps, f"{n}, {norm}")


def test_expm_turns_planes() -> None:
    """A rotation by the angle t in every plane of two axes, also by many turns."""
    for angle in (0.0, 1e-9, 0.3, np.pi, 100.0):
        A = torch.zeros(4, 4, dtype=DOUBLE)
        A[1, 0], A[0, 1], A[3, 2], A[2, 3] = angle, -angle, angle, -angle
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        expected = np.kron(np.eye(2), turn)
        within(subspan.skew_expm(A), expected, 4 * (1 + angle) * torch.finfo(DOUBLE).eps, f"{angle}")


def test_cayley_and_exponential_are_the_same_curve_of_angles() -> None:
    """An angle t of K becomes 2 arctan(t / 2) by Cayley's transform."""
    A = skew_of_norm(4, 5, 6, 2.0)
    angles = torch.linalg.eigvalsh(-1j * A)
    eigenvalues = torch.linalg.eigvals(subspan.cayley(A))
    expected = (2 * torch.atan(angles / 2)).sort(-1).values
    within(eigenvalues.angle().sort(-1).values, expected, 1e-13, "angles")


@BOTH
def test_only_the_skew_part_counts(function: Callable[..., Any]) -> None:
    A, S = normal(1, 4, 7, 7), normal(2, 4, 7, 7)
    within(function(A + S + S.mT), function(A), 1e-13, "value")
    leaf = A.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((function(leaf) * S).sum(), leaf)
    same(gradient, -gradient.mT.contiguous(), "gradient is skew")


@BOTH
@pytest.mark.parametrize("n", [3, 12, 40, 70, 300])
def test_gradient_of_autograd(function: Callable[..., Any], n: int) -> None:
    """By torch's own derivatives of a solution and of an exponential, in float64."""
    A, G = normal(n, 5, n, n, scale=n**-0.5), normal(n + 1, 5, n, n)
    mine, theirs = A.clone().requires_grad_(), A.clone().requires_grad_()
    K, one = (theirs - theirs.mT) / 2, torch.eye(n, dtype=DOUBLE)
    solved = [torch.linalg.solve(one - k / 2, one + k / 2) for k in K] if function is subspan.cayley else []
    expected = torch.stack(solved) if solved else torch.matrix_exp(K)
    (function(mine) * G).sum().backward()
    (expected * G).sum().backward()
    assert mine.grad is not None and theirs.grad is not None
    within(mine.grad, theirs.grad, 1e-12 * n, "gradient")


@BOTH
def test_no_memory_of_a_larger_matrix_is_kept(function: Callable[..., Any]) -> None:
    """What is saved for the gradient is of the size of A."""
    A = normal(1, 3, 20, 20).requires_grad_()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        function(A)
    assert sum(kept) <= 2 * A.numel()
