"""Precision of coding rates: exact arithmetic, ill-conditioned and tiny rates, half precision, every matrix size."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import subspan
from coding_rate_growth import class_growth, coding_rate_growth, rate_growth, reduction_growth, spd_growth
from coding_rate_points import exact_gradient, gradient_bound, nearly_collapsed, rate_and_gradient, value_bound
from op_row import SAFETY, within
from sample_arrays import normal, positive_definite, uniform
from subspan.reference import coding_rate as reference

REAL = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def exact_logdet(Z: Tensor, alpha: float) -> mpmath.mpf:
    """log det (I + alpha Z^T Z) of these binary numbers to 50 digits."""
    with mpmath.workdps(50):
        rows = mpmath.matrix(Z.double().tolist())
        return mpmath.log(mpmath.det(mpmath.eye(rows.cols) + mpmath.mpf(alpha) * rows.T * rows))


@REAL
@pytest.mark.parametrize("alpha", [1e-9, 1e-3, 1.0, 1e3])
def test_exact_arithmetic(alpha: float, dtype: torch.dtype) -> None:
    for samples, features in [(1, 1), (3, 2), (2, 5), (6, 6), (12, 12), (20, 9), (9, 20)]:
        Z = normal(11, samples, features, dtype=dtype)
        growth = rate_growth(Z.double().numpy(), alpha)
        expected = exact_logdet(Z if features <= samples else Z.mT, alpha)
        error = abs(mpmath.mpf(subspan.logdet_gram(Z, alpha).item()) - expected)
        assert error <= SAFETY * growth.size * torch.finfo(dtype).eps * growth.outputs[0], (samples, features)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (40, 64), (64, 40)], ids=str)
def test_tiny_rates_keep_their_digits(shape: tuple[int, int]) -> None:
    """Where alpha * trace is 8e-6, a float32 matrix I + alpha Z^T Z holds only a digit or two of the rate."""
    Z = normal(12, *shape, dtype=torch.float32)
    alpha = 8e-6 / Z.double().square().sum().item()
    eigenvalues = torch.linalg.svdvals(Z.double()).square()
    expected = torch.log1p(alpha * eigenvalues).sum().item()
    assert subspan.logdet_gram(Z, alpha).item() == pytest.approx(expected, rel=5e-7)
    labels = torch.arange(shape[0]) % 2
    rates, mass = subspan.class_coding_rates(Z, labels, 1e6)
    for j, rate in enumerate(rates.tolist()):
        squares = torch.linalg.svdvals(Z[labels == j].double()).square()
        expected = torch.log1p(shape[1] / (mass[j].item() * 1e6) * squares).sum().item() / 2
        assert rate == pytest.approx(expected, rel=5e-7)


@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-4, 1e-2])
@pytest.mark.parametrize("ratio", [10.0, 1e2, 1e3, 9e3, 1.1e4, 1e5, 1e6])
@pytest.mark.parametrize("shape", [(20, 64), (200, 64), (30, 30), (3, 8), (40, 8), (16, 150), (150, 100)], ids=str)
def test_ill_conditioned_float32(shape: tuple[int, int], ratio: float, noise: float) -> None:
    """Up to d/eps2 = 1e6 a float32 rate is within 1e-5 of the float64 rate of the same input. So is the gradient where
    the trace asks for float64; below it has the bound of test_float32_below_promotion."""
    Z = nearly_collapsed(*shape, noise)
    eps2 = shape[1] / ratio
    for keywords in ({}, {"weights": uniform(15, shape[0])}):
        single = {name: weights.float() for name, weights in keywords.items()}
        double = {name: weights.double() for name, weights in single.items()}
        rate, gradient = rate_and_gradient(Z, eps2, **single)
        expected, expected_gradient = rate_and_gradient(Z.double(), eps2, **double)
        assert rate.item() == pytest.approx(expected.item(), rel=1e-5)
        if ratio > 1e4:
            within(gradient, expected_gradient, 1e-5 * expected_gradient.abs().max().item(), "gradient")


@pytest.mark.parametrize("ratio", [1e2, 1e3, 9e3])
@pytest.mark.parametrize("shape", [(20, 64), (200, 64), (3, 8), (150, 100)], ids=str)
def test_float32_below_promotion(shape: tuple[int, int], ratio: float) -> None:
    """Up to a trace of 1e4 the error is at most that of rounding the Gram matrix to float32."""
    for noise in (0.0, 1e-4, 1e-2):
        Z, eps2 = nearly_collapsed(*shape, noise), shape[1] / ratio
        rate, gradient = rate_and_gradient(Z, eps2)
        expected, expected_gradient = rate_and_gradient(Z.double(), eps2)
        growth = coding_rate_growth(Z.double().numpy(), eps2)
        within(rate, expected, value_bound(growth, torch.float32), f"noise {noise}")
        bound = gradient_bound(growth, torch.float32)
        within(gradient, expected_gradient, bound, f"gradient, noise {noise}")


def test_ill_conditioned_items_and_classes() -> None:
    """Items and classes are promoted one by one: well and ill conditioned ones in one call."""
    Z = torch.stack([nearly_collapsed(60, 64, 1e-6), normal(16, 60, 64, dtype=torch.float32)])
    labels = torch.arange(60) % 3
    eps2 = 64 / 1e6
    for function in (
        lambda Z: subspan.coding_rate(Z, eps2),
        lambda Z: subspan.class_coding_rates(Z, labels, eps2)[0],
        lambda Z: subspan.rate_reduction(Z, labels, eps2, return_parts=True)[1:],
    ):
        for rate, expected in zip(function(Z), function(Z.double()), strict=True):
            torch.testing.assert_close(rate.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_never_lowers_the_gram_matrix(half: torch.dtype) -> None:
    """Collapsed features whose half-precision Gram matrix would be indefinite: the value of the rounded input."""
    Z = nearly_collapsed(64, 256, 1e-3)
    labels = torch.arange(64) % 4
    for features in (Z, Z.to(half)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rate, gradient = rate_and_gradient(features, 0.05)
            reduction = subspan.rate_reduction(features, labels, 0.05)
        assert rate.dtype == reduction.dtype == torch.float32
        expected, expected_gradient = rate_and_gradient(features.float(), 0.05)
        assert torch.equal(rate, expected)
        assert torch.equal(gradient, expected_gradient.to(features.dtype))
        assert torch.equal(reduction, subspan.rate_reduction(features.float(), labels, 0.05))
        bound = value_bound(coding_rate_growth(features.double().numpy(), 0.05), torch.float32)
        within(rate, subspan.coding_rate(features.double(), 0.05), bound, "float64")


def torch_rate(Z: Tensor, eps2: float) -> Tensor:
    """The same computation in PyTorch and in the type of Z."""
    samples, features = Z.shape[-2:]
    gram = Z @ Z.mT if samples < features else Z.mT @ Z
    matrix = torch.eye(gram.shape[-1], dtype=Z.dtype) + features / (samples * eps2) * gram
    return torch.linalg.cholesky(matrix).diagonal(dim1=-2, dim2=-1).log().sum(-1)


@pytest.mark.parametrize("ratio", [10, 256, 1000, 9000])
@pytest.mark.parametrize("noise", [None, 0.0, 1e-4, 1e-2], ids=lambda noise: f"noise {noise}")
@pytest.mark.parametrize("shape", [(8, 8), (40, 16), (16, 40), (64, 256)], ids=str)
def test_float32_error_is_at_most_twice_torch(shape: tuple[int, int], noise: float | None, ratio: float) -> None:
    """The largest error of 40 items, of rate and of gradient; one rounding of the result is always allowed.

    Features are random, or one direction for each item with noise; d/eps2 = ratio stays below promotion to float64.
    """
    spread = normal(17, 40, *shape)
    Z = normalize(spread if noise is None else normal(18, 40, 1, shape[1]) + noise * spread, dim=-1).float()
    results = []
    for function, features in ((subspan.coding_rate, Z), (torch_rate, Z), (torch_rate, Z.double())):
        features = features.clone().requires_grad_()
        rate = function(features, shape[1] / ratio)
        results.append((rate.detach().double(), torch.autograd.grad(rate.sum(), features)[0].double()))
    for ours, theirs, exact in zip(*results, strict=True):
        allowed = torch.finfo(torch.float32).eps * exact.abs().max()
        assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max() + allowed


# --- every size across the block edges ---


@REAL
def test_spd_logdet_of_every_size(dtype: torch.dtype) -> None:
    for size in [*range(1, 101), 300, 513]:
        A = positive_definite(size, size, size, dtype=dtype).requires_grad_()
        logdet, info = subspan.spd_logdet(A, return_info=True)
        (gradient,) = torch.autograd.grad(logdet, A)
        exact = A.detach().double().tril().numpy()
        exact = exact + np.tril(exact, -1).T
        growth = spd_growth(exact)
        assert info.item() == 0
        within(logdet, np.linalg.slogdet(exact)[1], value_bound(growth, dtype), f"size {size}")
        bound = gradient_bound(growth, dtype, "A")
        within(gradient, np.linalg.inv(exact), bound, f"gradient, size {size}")


@REAL
def test_coding_rate_of_every_size(dtype: torch.dtype) -> None:
    for size in [*range(1, 101), 300, 513]:
        for shape in ((size, size + 3), (size + 5, size)):
            Z = normal(size, *shape, dtype=dtype)
            rate, gradient = rate_and_gradient(Z, 0.3)
            exact = Z.double().numpy()
            growth = coding_rate_growth(exact, 0.3)
            within(rate, reference.coding_rate(exact, 0.3), value_bound(growth, dtype), f"{shape}")
            bound = gradient_bound(growth, dtype)
            within(gradient, exact_gradient(exact, shape[1] / (shape[0] * 0.3)), bound, f"gradient, {shape}")


@REAL
def test_not_positive_definite_in_every_position(dtype: torch.dtype) -> None:
    """info names the first pivot that is not positive, in the lane-interleaved and the blocked form."""
    for size in (1, 7, 32, 33, 80):
        A = positive_definite(size, 1, size, size, dtype=dtype).repeat(size + 1, 1, 1)
        for position in range(size):
            A[position, position, position] = -1
        logdet, info = subspan.spd_logdet(A, return_info=True)
        assert info.tolist() == [*range(1, size + 1), 0]
        assert logdet[:size].isnan().all() and logdet[size].isfinite()


@REAL
@pytest.mark.parametrize("features", [1, 7, 8, 16, 17, 33, 64, 130])
def test_ragged_classes(features: int, dtype: torch.dtype) -> None:
    """Classes of 1, 2, ... 60 samples, shuffled: sizes on both sides of every vector width and of d."""
    labels = torch.repeat_interleave(torch.arange(60), torch.arange(1, 61))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(features))]
    Z = normal(features, len(labels), features, dtype=dtype).requires_grad_()
    rates, mass = subspan.class_coding_rates(Z, labels, 0.2)
    exact, members = Z.detach().double().numpy(), labels.numpy()
    growth = class_growth(exact, members, 0.2)
    assert mass.tolist() == list(range(1, 61))
    # By singular values: a d x d determinant in float64 would cost more digits than the kernel's smaller side.
    squares = [np.linalg.svd(exact[members == j], compute_uv=False) ** 2 for j in range(60)]
    expected_rates = np.array([0.5 * np.log1p(features / ((j + 1) * 0.2) * squares[j]).sum() for j in range(60)])
    within(rates, expected_rates, value_bound(growth, dtype), "rates")
    expected_reduction = reference.coding_rate(exact, 0.2) - expected_rates @ np.arange(1, 61) / len(labels)
    reduction_bound = value_bound(reduction_growth(exact, members, 0.2), dtype)
    within(subspan.rate_reduction(Z, labels, 0.2), expected_reduction, reduction_bound, "reduction")
    upstream = torch.linspace(-1, 1, 60, dtype=dtype)
    (gradient,) = torch.autograd.grad(rates, Z, upstream)
    expected = np.empty_like(exact)
    for j in range(60):
        own = members == j
        expected[own] = upstream[j].item() * exact_gradient(exact[own], features / ((j + 1) * 0.2))
    bound = gradient_bound(growth, dtype)
    within(gradient, expected, bound, "gradient")
