"""Coding rates against closed forms, inequalities and exact arithmetic; bounds are those of rounding, see op_row.py.

What every op must do (types, layouts, bad input, threads, transforms) is tested over the op table.
"""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

import subspan
from coding_rate_growth import class_growth, coding_rate_growth, rate_growth, reduction_growth, spd_growth
from op_row import SAFETY, Bounds, within
from sample_arrays import normal, positive_definite, uniform
from subspan.reference import coding_rate as reference

REAL = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
SHAPES = [(1, 1), (5, 1), (1, 7), (12, 5), (5, 12), (40, 33), (33, 70), (120, 64)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
#: float64 itself rounds 1 + a tiny value.
ORACLE_ERROR = 100 * np.finfo(np.float64).eps


def rounding(growth: Bounds, dtype: torch.dtype, output: int = 0) -> Any:
    return SAFETY * growth.size * torch.finfo(dtype).eps * growth.outputs[output] + ORACLE_ERROR


def exact_gradient(Z: np.ndarray, alpha: float) -> np.ndarray:
    """dR/dZ = alpha Z M in float64, solved on the smaller side, where nothing cancels."""
    samples, features = Z.shape
    if samples < features:
        return alpha * np.linalg.solve(np.eye(samples) + alpha * Z @ Z.T, Z)
    return alpha * np.linalg.solve(np.eye(features) + alpha * Z.T @ Z, Z.T).T


def rate_and_gradient(Z: Tensor, *args: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
    Z = Z.detach().clone().requires_grad_()
    rate = subspan.coding_rate(Z, *args, **keywords)
    (gradient,) = torch.autograd.grad(rate.sum(), Z)
    return rate.detach(), gradient


def collapsed(samples: int, features: int) -> Tensor:
    """One unit vector repeated; its entries are powers of two, so its norm is exactly 1 in every type."""
    signs = normal(features, features).sign()
    return (signs / math.sqrt(features)).expand(samples, features).clone()


# --- values known in closed form ---


@REAL
@pytest.mark.parametrize(("samples", "features"), [(1, 1), (9, 4), (33, 33), (200, 64)])
def test_orthonormal_frame(samples: int, features: int, dtype: torch.dtype) -> None:
    """Z^T Z = (n/d) I gives d/2 log(1 + 1/eps2), the largest rate of unit rows."""
    frame = torch.linalg.qr(normal(1, samples, features)).Q * math.sqrt(samples / features)
    for eps2 in (2.0, 0.5, 0.01):
        expected = np.float64(features / 2 * math.log1p(1 / eps2))
        bound = rounding(coding_rate_growth(frame.numpy(), eps2), dtype)  # covers the rounding of the frame as well
        within(subspan.coding_rate(frame.to(dtype), eps2), expected, bound, f"eps2 {eps2}")


@REAL
@pytest.mark.parametrize(("samples", "features"), [(1, 4), (7, 16), (64, 256), (300, 64)])
def test_full_collapse(samples: int, features: int, dtype: torch.dtype) -> None:
    """All samples equal, of unit norm: 1/2 log(1 + d/eps2), whatever n; the gradient is Z / (n (1 + eps2/d))."""
    Z = collapsed(samples, features).to(dtype)
    for eps2 in (0.5, 0.05, 1e-3):
        expected = np.float64(math.log1p(features / eps2) / 2)
        rate, gradient = rate_and_gradient(Z, eps2)
        growth = coding_rate_growth(Z.double().numpy(), eps2)
        within(rate, expected, rounding(growth, dtype), f"eps2 {eps2}")
        bound = SAFETY * growth.size * torch.finfo(dtype).eps * growth.gradients["Z"]
        within(gradient, Z.double() / (samples * (1 + eps2 / features)), bound, f"gradient, eps2 {eps2}")


def test_simdino_values() -> None:
    """256 features at eps2 0.05, collapsed; and the expansion loss reported for 32 workers with 78 samples each."""
    Z = collapsed(64, 256).float()
    assert subspan.coding_rate(Z.double(), 0.05).item() == pytest.approx(4.2706, abs=5e-5)
    assert subspan.coding_rate(Z, 0.05).item() == pytest.approx(4.2706, abs=1e-4)
    features, workers, samples, eps2 = 256, 32, 78, 0.05
    alpha = features / (samples * workers * eps2)
    factor = (features + workers * samples) / (features * workers * samples)
    rate = subspan.coding_rate(collapsed(samples, features).float(), None, alpha=alpha)
    assert factor * rate.item() == pytest.approx(0.01094, abs=5e-6)


@REAL
def test_block_diagonal_matrix_adds(dtype: torch.dtype) -> None:
    """Rates of orthogonal subspaces add at equal alpha."""
    for first, second in [((3, 4), (5, 2)), ((20, 9), (7, 30)), ((50, 40), (40, 50))]:
        A, B = normal(1, *first, dtype=dtype), normal(2, *second, dtype=dtype)
        joint = torch.block_diag(A, B)
        expected = subspan.coding_rate(A, None, alpha=0.7) + subspan.coding_rate(B, None, alpha=0.7)
        bound = 2 * rounding(rate_growth(joint.double().numpy(), 0.7, 0.5), dtype)
        within(subspan.coding_rate(joint, None, alpha=0.7), expected, bound, f"{first} and {second}")


# --- identities and inequalities ---


@REAL
@each_shape
def test_invariance(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Order of the samples, rotation of the features and the side that is factored change nothing."""
    Z = normal(3, *shape, dtype=dtype)
    rotation = torch.linalg.qr(normal(4, shape[1], shape[1])).Q
    weights = uniform(5, shape[0], dtype=dtype)
    order = torch.randperm(shape[0])
    arrays = Z.double().numpy(), weights.double().numpy()
    bound = 2 * sum(
        rounding(coding_rate_growth(arrays[0], 0.3, weights=arrays[1], side=side), dtype)
        for side in ("samples", "features")
    )
    rate = subspan.coding_rate(Z, 0.3, weights=weights)
    rotated = (Z.double() @ rotation).to(dtype)
    within(subspan.coding_rate(rotated, 0.3, weights=weights), rate, bound, "rotated")
    within(subspan.coding_rate(Z[order], 0.3, weights=weights[order]), rate, bound, "permuted")
    for side in ("samples", "features"):
        within(subspan.coding_rate(Z, 0.3, weights=weights, side=side), rate, bound, side)
        within(subspan.coding_rate(Z, 0.3, side=side), subspan.coding_rate(Z, 0.3), bound, f"{side}, no weights")


@REAL
@each_shape
def test_inequalities(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Hadamard: 0 <= 2 R <= sum_j log(1 + alpha g_jj) on both sides; for unit rows R <= s/2 log(1 + d/(s eps2))."""
    samples, features = shape
    Z, eps2 = normalize(normal(6, *shape), dim=-1).to(dtype), 0.2
    alpha = features / (samples * eps2)
    rate = subspan.coding_rate(Z, eps2).item()
    slack = float(rounding(coding_rate_growth(Z.double().numpy(), eps2), dtype))
    assert rate >= 0
    for gram in (Z.double().mT @ Z.double(), Z.double() @ Z.double().mT):
        assert 2 * rate <= torch.log1p(alpha * gram.diagonal()).sum().item() + 2 * slack
    smaller = min(shape)
    unit_bound = smaller / 2 * math.log1p(features / (smaller * eps2))
    assert rate <= unit_bound * (1 + 4 * torch.finfo(dtype).eps) + slack


@REAL
@each_shape
def test_gradient_identities(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """dR/dZ = Z E with E = alpha M; <Z, dR/dZ> = d - tr M; its largest singular value is at most sqrt(alpha)/2."""
    samples, features = shape
    Z = normal(7, *shape, dtype=dtype)
    for eps2 in (1.0, 0.01):
        alpha = features / (samples * eps2)
        gradient = rate_and_gradient(Z, eps2)[1].double()
        operator = subspan.rate_operator(Z.double(), alpha)
        limit = torch.zeros(shape, dtype=torch.float64)
        for side, kind in (("auto", dtype), ("features", torch.float64)):  # of the gradient, and of Z E in float64
            growth = coding_rate_growth(Z.double().numpy(), eps2, side=side)
            limit += SAFETY * growth.size * torch.finfo(kind).eps * torch.from_numpy(growth.gradients["Z"])
        within(gradient, Z.double() @ operator, limit.numpy(), "Z E")
        inner = (Z.double() * gradient).sum().item()
        slack = (Z.double().abs() * limit).sum().item()
        assert abs(inner - (features - operator.trace().item() / alpha)) <= slack + 1e-12 * features
        assert torch.linalg.matrix_norm(gradient, 2).item() <= math.sqrt(alpha) / 2 + limit.norm().item()


@REAL
def test_one_hot_weights_are_labels(dtype: torch.dtype) -> None:
    Z, labels = normal(8, 2, 30, 9, dtype=dtype), torch.randint(0, 4, (2, 30))
    rates, mass = subspan.class_coding_rates(Z, labels, 0.2, num_classes=5)
    membership = one_hot(labels, 5).mT.to(dtype)  # (2, k, n)
    expected = subspan.coding_rate(Z[:, None], 0.2, weights=membership)
    for item in range(2):
        growth = class_growth(Z[item].double().numpy(), labels[item].numpy(), 0.2, num_classes=5)
        within(rates[item], expected[item], 2 * rounding(growth, dtype), "rates")
    assert torch.equal(mass, membership.sum(-1))
    delta, rate, compressed = subspan.rate_reduction(Z, labels, 0.2, num_classes=5, gamma=0.4, return_parts=True)
    torch.testing.assert_close(compressed, (mass / 30 * rates).sum(-1))
    torch.testing.assert_close(rate, subspan.coding_rate(Z, 0.2))
    torch.testing.assert_close(delta, rate - 0.4 * compressed)
    torch.testing.assert_close(delta, subspan.rate_reduction(Z, labels, 0.2, num_classes=5, gamma=0.4))


def test_rate_reduction_is_not_negative() -> None:
    """Concavity of log det: dR >= 0, and 0 where all classes have the same second moments."""
    labels = torch.arange(24) % 4
    Z = normal(9, 24, 6)
    assert subspan.rate_reduction(Z, labels, 0.1).item() > 1e-3
    same = normal(10, 6, 6).repeat_interleave(4, dim=0)  # each class holds the same six samples
    assert abs(subspan.rate_reduction(same, labels, 0.1).item()) <= rounding(
        reduction_growth(same.numpy(), labels.numpy(), 0.1), torch.float64
    )


# --- precision ---


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


def nearly_collapsed(samples: int, features: int, noise: float) -> Tensor:
    direction = normal(13, features)
    return normalize(direction + noise * normal(14, samples, features), dim=-1).float()


@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-4, 1e-2])
@pytest.mark.parametrize("ratio", [1.1e4, 1e5, 1e6])
@pytest.mark.parametrize("shape", [(20, 64), (200, 64), (30, 30), (3, 8), (40, 8), (16, 150), (150, 100)], ids=str)
def test_ill_conditioned_float32(shape: tuple[int, int], ratio: float, noise: float) -> None:
    """Up to d/eps2 = 1e6 a float32 rate is within 1e-5 of the float64 rate of the same input; so is its gradient."""
    Z = nearly_collapsed(*shape, noise)
    eps2 = shape[1] / ratio
    for keywords in ({}, {"weights": uniform(15, shape[0])}):
        single = {name: weights.float() for name, weights in keywords.items()}
        double = {name: weights.double() for name, weights in single.items()}
        rate, gradient = rate_and_gradient(Z, eps2, **single)
        expected, expected_gradient = rate_and_gradient(Z.double(), eps2, **double)
        assert rate.item() == pytest.approx(expected.item(), rel=1e-5)
        within(gradient, expected_gradient, 1e-5 * expected_gradient.abs().max().item(), "gradient")


@pytest.mark.parametrize("ratio", [1e2, 1e3, 9e3])
@pytest.mark.parametrize("shape", [(20, 64), (200, 64), (3, 8), (150, 100)], ids=str)
def test_float32_below_promotion(shape: tuple[int, int], ratio: float) -> None:
    """Up to a trace of 1e4 nothing is promoted, and the error is that of rounding the Gram matrix to float32."""
    for noise in (0.0, 1e-4, 1e-2):
        Z, eps2 = nearly_collapsed(*shape, noise), shape[1] / ratio
        rate, gradient = rate_and_gradient(Z, eps2)
        expected, expected_gradient = rate_and_gradient(Z.double(), eps2)
        growth = coding_rate_growth(Z.double().numpy(), eps2)
        within(rate, expected, rounding(growth, torch.float32), f"noise {noise}")
        bound = SAFETY * growth.size * torch.finfo(torch.float32).eps * growth.gradients["Z"]
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
        bound = rounding(coding_rate_growth(features.double().numpy(), 0.05), torch.float32)
        within(rate, subspan.coding_rate(features.double(), 0.05), bound, "float64")


def torch_rate(Z: Tensor, eps2: float) -> Tensor:
    """The same computation in PyTorch and in the type of Z."""
    samples, features = Z.shape[-2:]
    gram = Z @ Z.mT if samples < features else Z.mT @ Z
    matrix = torch.eye(gram.shape[-1], dtype=Z.dtype) + features / (samples * eps2) * gram
    return torch.linalg.cholesky(matrix).diagonal(dim1=-2, dim2=-1).log().sum(-1)


@pytest.mark.parametrize("eps2", [10.0, 0.5, 0.05])
@pytest.mark.parametrize("shape", [(8, 8), (40, 16), (16, 40), (100, 64), (64, 256)], ids=str)
def test_float32_error_is_at_most_twice_torch(shape: tuple[int, int], eps2: float) -> None:
    """The largest error of 40 items, of rate and of gradient; one rounding of the result is always allowed."""
    Z = normalize(normal(17, 40, *shape), dim=-1).float()
    results = []
    for function, features in ((subspan.coding_rate, Z), (torch_rate, Z), (torch_rate, Z.double())):
        features = features.clone().requires_grad_()
        rate = function(features, eps2)
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
        within(logdet, np.linalg.slogdet(exact)[1], rounding(growth, dtype), f"size {size}")
        bound = SAFETY * size * torch.finfo(dtype).eps * growth.gradients["A"] + ORACLE_ERROR
        within(gradient, np.linalg.inv(exact), bound, f"gradient, size {size}")


@REAL
def test_coding_rate_of_every_size(dtype: torch.dtype) -> None:
    for size in [*range(1, 101), 300, 513]:
        for shape in ((size, size + 3), (size + 5, size)):
            Z = normal(size, *shape, dtype=dtype)
            rate, gradient = rate_and_gradient(Z, 0.3)
            exact = Z.double().numpy()
            growth = coding_rate_growth(exact, 0.3)
            within(rate, reference.coding_rate(exact, 0.3), rounding(growth, dtype), f"{shape}")
            bound = SAFETY * growth.size * torch.finfo(dtype).eps * growth.gradients["Z"] + ORACLE_ERROR
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
    labels = labels[torch.randperm(len(labels))]
    Z = normal(features, len(labels), features, dtype=dtype).requires_grad_()
    rates, mass = subspan.class_coding_rates(Z, labels, 0.2)
    exact, members = Z.detach().double().numpy(), labels.numpy()
    growth = class_growth(exact, members, 0.2)
    assert mass.tolist() == list(range(1, 61))
    within(rates, reference.class_coding_rates(exact, members, 0.2)[0], rounding(growth, dtype), "rates")
    upstream = torch.linspace(-1, 1, 60, dtype=dtype)
    (gradient,) = torch.autograd.grad(rates, Z, upstream)
    expected = np.empty_like(exact)
    for j in range(60):
        own = members == j
        expected[own] = upstream[j].item() * exact_gradient(exact[own], features / ((j + 1) * 0.2))
    bound = SAFETY * growth.size * torch.finfo(dtype).eps * growth.gradients["Z"] + ORACLE_ERROR
    within(gradient, expected, bound, "gradient")
    reduction = reduction_growth(exact, members, 0.2)
    within(
        subspan.rate_reduction(Z, labels, 0.2),
        reference.rate_reduction(exact, members, 0.2),
        rounding(reduction, dtype),
        "reduction",
    )
