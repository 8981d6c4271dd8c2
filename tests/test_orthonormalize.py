"""What orthonormalize promises beyond the op table: residuals as LAPACK states them at any condition number,
orthonormal results at any rank, factors that are unique, gradients where others fail, memory."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

import subspan
from sample_arrays import normal
from subspan.reference import orthonormalize as reference

DOUBLE = torch.float64
METHODS = ("qr", "polar")
#: (n, k) for each way through the kernels: tiny, in lanes, blocked; tall and square.
SIZES = [(3, 3), (16, 4), (64, 8), (600, 8), (24, 24), (40, 40), (515, 64), (1, 1), (50, 1)]
#: LAPACK's own tests pass below this.
RATIO = 30


def conditioned(seed: int, n: int, k: int, condition: float, dtype: torch.dtype = DOUBLE) -> Tensor:
    """Singular values from 1 to 1 / condition, in no order."""
    left, right = torch.linalg.qr(normal(seed, n, k)).Q, torch.linalg.qr(normal(seed + 1, k, k)).Q
    values = torch.logspace(0, -math.log10(condition), k, dtype=DOUBLE)
    return (left * values @ right).to(dtype)


def ratios(A: Tensor, Q: Tensor, R: Tensor) -> tuple[float, float]:
    """|| A - Q R || / (n eps || A ||) and || I - Q^T Q || / (n eps)."""
    n, k = A.shape
    eps = torch.finfo(A.dtype).eps
    a, q, r = A.double(), Q.double(), R.double()
    residual = torch.linalg.matrix_norm(a - q @ r) / (n * eps * torch.linalg.matrix_norm(a))
    orthogonality = torch.linalg.matrix_norm(torch.eye(k, dtype=DOUBLE) - q.mT @ q) / (n * eps)
    return float(residual), float(orthogonality)


def check_form(R: Tensor, method: str) -> None:
    if method == "qr":
        assert torch.equal(R, R.triu())
        assert (R.diagonal() >= 0).all()
    else:
        assert torch.allclose(R, R.mT, rtol=0, atol=4 * torch.finfo(R.dtype).eps * float(R.abs().max()))
        least = torch.linalg.eigvalsh(R.double()).min()
        assert least >= -R.shape[-1] * torch.finfo(R.dtype).eps * float(torch.linalg.matrix_norm(R, 2))


CONDITIONS = [(torch.float32, 10.0**e) for e in range(8)] + [(DOUBLE, 10.0**e) for e in range(16)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "condition"), CONDITIONS, ids=str)
def test_residual_and_orthogonality_at_any_condition(dtype: torch.dtype, condition: float, method: str) -> None:
    for n, k in SIZES:
        if k == 1 and condition > 1:
            continue
        A = conditioned(n, n, k, condition, dtype)
        Q, R = subspan.orthonormalize(A, method, return_r=True)
        residual, orthogonality = ratios(A, Q, R)
        assert residual < RATIO and orthogonality < RATIO, f"{n} x {k}: {residual:.3g} and {orthogonality:.3g}"
        check_form(R, method)


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4, 1e6])
def test_float32_is_closer_to_the_exact_q_than_lapack(condition: float) -> None:
    """The factors of A as it is given in float32, computed in float64; one rounding of the result is for free."""
    for n, k in [(64, 8), (512, 64), (3, 3)]:
        A = conditioned(5, n, k, condition, torch.float32)
        exact = torch.from_numpy(reference.qr(A.double().numpy())[0])
        Q = subspan.orthonormalize(A)
        lapack, R = torch.linalg.qr(A)
        lapack = lapack * R.diagonal().sign()
        ours, theirs = ((q.double() - exact).abs().max().item() for q in (Q, lapack))
        assert ours <= 2 * theirs + 2**-23, f"{n} x {k}: {ours:.2e}, LAPACK {theirs:.2e}"


def exact_qr(A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gram and Schmidt's process with 80 digits."""
    with mpmath.workdps(80):
        columns = [[mpmath.mpf(float(x)) for x in column] for column in A.T]
        k = len(columns)
        R = np.zeros((k, k))
        basis: list[list[mpmath.mpf]] = []
        for j, column in enumerate(columns):
            for i, q in enumerate(basis):
                along = mpmath.fdot(q, column)
                R[i, j] = float(along)
                column = [x - along * y for x, y in zip(column, q, strict=True)]
            norm = mpmath.sqrt(mpmath.fdot(column, column))
            R[j, j] = float(norm)
            basis.append([x / norm for x in column])
        return np.array([[float(x) for x in q] for q in basis]).T, R


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6, 1e9])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_qr_against_eighty_digits(dtype: torch.dtype, condition: float) -> None:
    for n, k in [(4, 4), (9, 5), (40, 6)]:
        A = conditioned(7, n, k, condition, dtype)
        Q, R = subspan.orthonormalize(A, return_r=True)
        exact_q, exact_r = exact_qr(A.double().numpy())
        eps = torch.finfo(dtype).eps
        actual = np.linalg.cond(A.double().numpy())
        # float32 is computed in float64, hence wrong by its own rounding alone
        limit = 4 * eps + 4 * n * torch.finfo(DOUBLE).eps * actual
        assert np.abs(Q.double().numpy() - exact_q).max() <= limit
        assert np.abs(R.double().numpy() - exact_r).max() <= limit * np.linalg.norm(exact_r)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize(("n", "k"), [(16, 3), (90, 6), (200, 30)])
def test_polar_factor_is_the_nearest(n: int, k: int, dtype: torch.dtype) -> None:
    """Against singular values in float64, and A^T Q is symmetric positive definite: the normal equations."""
    A = conditioned(2, n, k, 50.0, dtype)
    Q, H = subspan.orthonormalize(A, "polar", return_r=True)
    exact_q, exact_h = reference.polar(A.double().numpy())
    eps = torch.finfo(dtype).eps
    assert np.abs(Q.double().numpy() - exact_q).max() < 4 * eps + 50 * k * torch.finfo(DOUBLE).eps * 8
    assert np.abs(H.double().numpy() - exact_h).max() < 8 * k * eps
    cross = A.double().mT @ Q.double()
    assert torch.allclose(cross, cross.mT, rtol=0, atol=8 * n * eps)
    assert torch.linalg.eigvalsh((cross + cross.mT) / 2).min() > 0


@pytest.mark.parametrize("method", METHODS)
def test_span_is_kept(method: str) -> None:
    for n, k in [(16, 4), (64, 8), (512, 64)]:
        A = conditioned(4, n, k, 1e3)
        Q = subspan.orthonormalize(A, method)
        assert subspan.principal_angles(A, Q).max() < 1e3 * n * 2**-52


def test_first_columns_span_what_they_spanned() -> None:
    A = normal(1, 60, 7)
    Q, first = subspan.orthonormalize(A), subspan.orthonormalize(A[:, :3].contiguous())
    assert torch.allclose(Q[:, :3], first, rtol=0, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_orthonormal_input_stays(method: str, dtype: torch.dtype) -> None:
    for n, k in SIZES:
        frame = torch.from_numpy(reference.qr(normal(n, n, k).numpy())[0]).to(dtype)
        Q, factor = subspan.orthonormalize(frame, method, return_r=True)
        eps = torch.finfo(dtype).eps
        assert (Q - frame).abs().max() <= 4 * k * eps
        assert (factor - torch.eye(k, dtype=dtype)).abs().max() <= 8 * k * eps


# --- dependent columns ---


def dependent(n: int, k: int) -> dict[str, tuple[Tensor, int]]:
    """Frames and the 1-based index of the first column in the span of those before it."""
    zero, twin, outer = normal(1, n, k), normal(2, n, k), normal(3, n, 1) @ normal(4, 1, k)
    zero[:, 1] = 0
    twin[:, k - 1] = twin[:, 0]
    first = normal(5, n, k)
    first[:, 0] = 0
    return {
        "zero column": (zero, 2),
        "first column zero": (first, 1),
        "equal columns": (twin, k),
        "all zero": (torch.zeros(n, k, dtype=DOUBLE), 1),
        "rank one": (outer.sign() * 3, 2),
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize("size", [(4, 3), (5, 5), (64, 8), (90, 30)], ids=str)
def test_dependent_columns(size: tuple[int, int], dtype: torch.dtype, method: str) -> None:
    """Q is orthonormal, A = Q R, what is dependent shows in R and in the status, and gradients are finite."""
    for name, (frame, first) in dependent(*size).items():
        A = frame.to(dtype).requires_grad_()
        Q, R, info = subspan.orthonormalize(A, method, return_r=True, return_info=True)
        a, q, r = A.detach(), Q.detach(), R.detach()
        assert ratios(a + 1e-30, q, r)[1] < RATIO, name
        n, eps = size[0], torch.finfo(dtype).eps
        assert torch.linalg.matrix_norm((a - q @ r).double()) <= RATIO * n * eps * torch.linalg.matrix_norm(a), name
        check_form(r, method)
        if method == "qr":
            assert int(info) == first and r[first - 1, first - 1] == 0, name
        else:
            rank = int(torch.linalg.matrix_rank(frame))
            assert int(info) == size[1] - rank, name
        (gradient,) = torch.autograd.grad((Q * normal(9, *size).to(dtype)).sum() + R.sum(), A)
        assert gradient.isfinite().all(), name


def test_dependent_item_does_not_touch_the_others() -> None:
    for n, k in [(4, 3), (64, 8), (90, 30)]:
        for method in METHODS:
            A = normal(1, 5, n, k, dtype=torch.float32)
            expected = subspan.orthonormalize(A, method)
            A[2, :, 1] = A[2, :, 0]
            Q, info = subspan.orthonormalize(A, method, return_info=True)
            assert torch.equal(Q[[0, 1, 3, 4]], expected[[0, 1, 3, 4]])
            assert info.tolist() == [0, 0, 2 if method == "qr" else 1, 0, 0]


def test_kernel_and_composite_agree_on_dependent_columns() -> None:
    """The gradient with a graph is a formula in torch operations."""
    for method in METHODS:
        for name, (A, _) in dependent(6, 4).items():
            A = A.requires_grad_()
            Q, R = subspan.orthonormalize(A, method, return_r=True)
            total = (Q * normal(9, 6, 4)).sum() + (R * normal(8, 4, 4)).sum()
            (kernel,) = torch.autograd.grad(total, A, retain_graph=True)
            (formula,) = torch.autograd.grad(total, A, create_graph=True)
            assert torch.allclose(kernel, formula, rtol=1e-9, atol=1e-9), name


# --- range ---


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize("size", [(4, 4), (64, 8), (90, 30)], ids=str)
def test_large_and_small_entries(size: tuple[int, int], dtype: torch.dtype, method: str) -> None:
    """Whose squares overflow or underflow in the type itself, and in float64."""
    A = normal(1, *size, dtype=dtype)
    Q = subspan.orthonormalize(A, method)
    for exponent in (100, -100) if dtype == torch.float32 else (1000, -1000):
        scaled = torch.ldexp(A, torch.tensor(exponent))
        same, R, info = subspan.orthonormalize(scaled, method, return_r=True, return_info=True)
        assert torch.allclose(same, Q, rtol=0, atol=16 * torch.finfo(dtype).eps)
        assert int(info) == 0 and R.isfinite().all()


def test_columns_of_very_different_sizes() -> None:
    """The triangle does not depend on how columns are scaled, and neither does Q."""
    A = normal(1, 50, 8)
    powers = torch.tensor([0, 40, -60, 200, -300, 7, 100, -5])
    Q, R = subspan.orthonormalize(A, return_r=True)
    scaled, S = subspan.orthonormalize(torch.ldexp(A, powers), return_r=True)
    assert torch.allclose(Q, scaled, rtol=0, atol=1e-14)
    assert torch.allclose(torch.ldexp(S, -powers), R, rtol=0, atol=1e-12)


# --- gradients ---


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "k"), [(30, 26), (70, 30), (33, 33), (33, 32)])
def test_blocked_gradient_is_the_formula(n: int, k: int, method: str) -> None:
    A = (normal(1, 2, n, k)).requires_grad_()
    Q, R = subspan.orthonormalize(A, method, return_r=True)
    total = (Q * normal(2, n, k)).sum() + (R * normal(3, k, k)).sum()
    (kernel,) = torch.autograd.grad(total, A, retain_graph=True)
    (formula,) = torch.autograd.grad(total, A, create_graph=True)
    assert (kernel - formula).abs().max() <= 1e-10 * formula.abs().max()
    assert not torch.equal(kernel, formula), "both came from the same code"


@pytest.mark.parametrize("k", [3, 30])
def test_polar_gradient_at_equal_singular_values_of_float32(k: int) -> None:
    """Where that of torch.linalg.svd is not a number."""
    frame = torch.linalg.qr(normal(1, 80, k)).Q
    A = frame.float().requires_grad_()
    G = normal(2, 80, k).float()
    (gradient,) = torch.autograd.grad(subspan.orthonormalize(A, "polar"), A, G)
    g = G.double()
    expected = g - frame @ (frame.mT @ g + g.mT @ frame) / 2  # H = I: the projection on the tangent space
    assert (gradient.double() - expected).abs().max() < 1e-5


@pytest.mark.parametrize("k", [1, 5, 8, 24])
def test_polar_items_of_every_condition_side_by_side(k: int) -> None:
    """Well-conditioned matrices are iterated on together; others, in the same group, are decomposed."""
    conditions = [10.0**exponent for exponent in (0, 6, 1, 2.4, 0, 3.5, 1.5, 5, 0.5, 2)]
    A = torch.stack([conditioned(i, 40, k, condition) for i, condition in enumerate(conditions)]).requires_grad_()
    weights = normal(2, *A.shape), normal(3, len(A), k, k)

    def results(A: Tensor, *weights: Tensor) -> list[Tensor]:
        Q, H = subspan.orthonormalize(A, "polar", return_r=True)
        return [Q, H, *torch.autograd.grad((Q * weights[0]).sum() + (H * weights[1]).sum(), A)]

    together = results(A, *weights)
    for item, condition in enumerate(conditions):
        part = slice(item, item + 1)
        for one, alone in zip(together, results(A[part], *(weight[part] for weight in weights)), strict=True):
            assert torch.equal(one[part], alone)
        U, values, V = torch.linalg.svd(A[item].detach(), full_matrices=False)
        assert (together[0][item] - U @ V).abs().max() <= 1e-14 * condition * k
        assert (together[1][item] - V.mT @ (values[:, None] * V)).abs().max() <= 1e-14 * k
        # The gradient by finite singular values: S = Q^T dQ and dH in the basis of the singular vectors.
        S, E = V @ (together[0][item].mT @ weights[0][item]) @ V.mT, V @ weights[1][item] @ V.mT
        inner = (S - S.mT + (E + E.mT) * values[:, None]) / (values[:, None] + values)
        across = weights[0][item] @ V.mT - U @ S
        expected = (U @ inner + across / values) @ V
        assert (together[2][item] - expected).abs().max() <= 1e-13 * condition * k * expected.abs().max()


@pytest.mark.parametrize("method", METHODS)
def test_an_item_that_is_not_finite_leaves_nothing_in_shared_memory(method: str) -> None:
    """Many groups of items are worked on one after the other in the same memory."""
    A, weights = normal(1, 900, 12, 5), normal(2, 900, 12, 5)
    spoilt = A.clone()
    spoilt[::7, 3, 2] = torch.nan
    finite = spoilt.isfinite().all(-1).all(-1)

    def results(A: Tensor) -> list[Tensor]:
        A = A.requires_grad_()
        Q, R = subspan.orthonormalize(A, method, return_r=True)
        return [Q, R, *torch.autograd.grad((Q * weights).sum() + R.square().sum(), A)]

    for one, other in zip(results(A), results(spoilt), strict=True):
        assert torch.equal(one[finite], other[finite])
        assert other[~finite].isnan().any(-1).any(-1).all()


def test_qr_gradient_of_one_output_alone() -> None:
    A = normal(1, 12, 4).requires_grad_()
    for method in METHODS:
        Q, R = subspan.orthonormalize(A, method, return_r=True)
        weights = normal(2, 12, 4), normal(3, 4, 4)
        together = torch.autograd.grad((Q * weights[0]).sum() + (R * weights[1]).sum(), A, retain_graph=True)[0]
        alone = [
            torch.autograd.grad((output * weight).sum(), A, retain_graph=True)[0]
            for output, weight in ((Q, weights[0]), (R, weights[1]))
        ]
        assert torch.allclose(alone[0] + alone[1], together, rtol=1e-12, atol=1e-12)


# --- memory and threads ---


@pytest.mark.parametrize("method", METHODS)
def test_backward_allocates_the_gradient_and_no_more(method: str) -> None:
    """Forward keeps A, Q and R; backward adds the gradient. Torch's own QR keeps several times that."""
    A = normal(1, 40, 600, 8, dtype=torch.float32).requires_grad_()
    upstream = normal(2, 40, 600, 8, dtype=torch.float32)
    Q = subspan.orthonormalize(A, method)
    with torch.profiler.profile(profile_memory=True) as profile:
        torch.autograd.grad(Q, A, upstream)
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.key_averages())
    assert 4 * A.numel() <= allocated <= 4 * A.numel() + 4096


@pytest.mark.parametrize("method", METHODS)
def test_threads_change_no_bit(method: str) -> None:
    """A team on one large frame, groups of frames in lanes, tiny frames."""
    for shape in [(3000, 40), (2005, 64), (2, 1500, 30), (19, 400, 8), (4001, 3, 3)]:
        A = normal(1, *shape, dtype=torch.float32).requires_grad_()
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            Q, R = subspan.orthonormalize(A, method, return_r=True)
            results.append((Q, R, *torch.autograd.grad((Q.sum() + R.sum()), A)))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True)), shape


def test_rows_are_read_and_written_in_place() -> None:
    """The same numbers from either layout, and no copy of the frame."""
    for shape in [(3, 3), (64, 8), (300, 30), (203, 32)]:
        A = normal(1, 4, *shape, dtype=torch.float32)
        for method in METHODS:
            Q, R = subspan.orthonormalize(A, method, return_r=True)
            rows, S = subspan.orthonormalize(A.mT.contiguous(), method, return_r=True, layout="rows")
            assert torch.equal(rows.mT, Q) and torch.equal(R, S)
    A = normal(1, 20, 8, 600, dtype=torch.float32)
    with torch.profiler.profile(profile_memory=True) as profile:
        subspan.orthonormalize(A, layout="rows")
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.key_averages())
    assert allocated <= 4 * A.numel() + 4096
