"""Coding rates against closed forms, identities and inequalities; bounds are those of rounding, coding_rate_growth.py.

What every op must do (types, layouts, bad input, threads, transforms) is tested over the op table.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize, one_hot

import subspan
from coding_rate_growth import class_growth, coding_rate_growth, rate_growth, reduction_growth
from coding_rate_points import collapsed, gradient_bound, rate_and_gradient, value_bound
from op_row import within
from sample_arrays import normal, uniform

REAL = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
SHAPES = [(1, 1), (5, 1), (1, 7), (12, 5), (5, 12), (40, 33), (33, 70), (120, 64)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
# --- values known in closed form ---


@REAL
@pytest.mark.parametrize(("samples", "features"), [(1, 1), (9, 4), (33, 33), (200, 64)])
def test_orthonormal_frame(samples: int, features: int, dtype: torch.dtype) -> None:
    """Z^T Z = (n/d) I gives d/2 log(1 + 1/eps2), the largest rate of unit rows."""
    frame = torch.linalg.qr(normal(1, samples, features)).Q * math.sqrt(samples / features)
    for eps2 in (2.0, 0.5, 0.01):
        expected = np.float64(features / 2 * math.log1p(1 / eps2))
        bound = value_bound(coding_rate_growth(frame.numpy(), eps2), dtype)  # covers the rounding of the frame as well
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
        within(rate, expected, value_bound(growth, dtype), f"eps2 {eps2}")
        bound = gradient_bound(growth, dtype)
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
        bound = 2 * value_bound(rate_growth(joint.double().numpy(), 0.7, 0.5), dtype)
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
        value_bound(coding_rate_growth(arrays[0], 0.3, weights=arrays[1], side=side), dtype)
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
    slack = float(value_bound(coding_rate_growth(Z.double().numpy(), eps2), dtype))
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
            limit += torch.from_numpy(gradient_bound(growth, kind))
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
        within(rates[item], expected[item], 2 * value_bound(growth, dtype), "rates")
    assert torch.equal(mass, membership.sum(-1))
    delta, rate, compressed = subspan.rate_reduction(Z, labels, 0.2, num_classes=5, gamma=0.4, return_parts=True)
    torch.testing.assert_close(compressed, (mass / 30 * rates).sum(-1))
    torch.testing.assert_close(rate, subspan.coding_rate(Z, 0.2))
    torch.testing.assert_close(delta, rate - 0.4 * compressed)
    torch.testing.assert_close(delta, subspan.rate_reduction(Z, labels, 0.2, num_classes=5, gamma=0.4))


@pytest.mark.parametrize("features", [2, 3, 15, 16, 17, 31, 32, 33, 48, 49, 64, 65, 130])
def test_many_soft_classes_are_those_of_each_alone(features: int) -> None:
    """From 24 classes on their matrices are products with pairs of features; alone each is a weighted Gram matrix."""
    Z = normal(7, features + 3, features).requires_grad_()
    membership = uniform(8, 30, features + 3).softmax(0).requires_grad_()
    upstream = normal(9, 30)
    rates, _ = subspan.class_coding_rates(Z, membership, 0.2)
    alone = torch.stack([subspan.coding_rate(Z, 0.2, weights=row) for row in membership])
    torch.testing.assert_close(rates, alone, rtol=1e-12, atol=0)
    gradients = torch.autograd.grad(rates @ upstream, (Z, membership))
    expected = torch.autograd.grad(alone @ upstream, (Z, membership))
    for got, want in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-11 * want.abs().max().item())


def test_rate_reduction_is_not_negative() -> None:
    """Concavity of log det: dR >= 0, and 0 where all classes have the same second moments."""
    labels = torch.arange(24) % 4
    Z = normal(9, 24, 6)
    assert subspan.rate_reduction(Z, labels, 0.1).item() > 1e-3
    same = normal(10, 6, 6).repeat_interleave(4, dim=0)  # each class holds the same six samples
    assert abs(subspan.rate_reduction(same, labels, 0.1).item()) <= value_bound(
        reduction_growth(same.numpy(), labels.numpy(), 0.1), torch.float64
    )


# --- degenerate input ---


@REAL
def test_empty_classes(dtype: torch.dtype) -> None:
    """A class without samples has rate 0 and mass 0, and changes nothing else, wherever it is numbered."""
    Z = normal(18, 20, 6, dtype=dtype).requires_grad_()
    labels = torch.randint(0, 3, (20,))
    rates, mass = subspan.class_coding_rates(Z, labels, 0.3, num_classes=3)
    spread, spread_mass = subspan.class_coding_rates(Z, 2 * labels + 1, 0.3, num_classes=9)
    assert torch.equal(spread_mass[[1, 3, 5]], mass)
    growth = class_growth(Z.detach().double().numpy(), labels.numpy(), 0.3, num_classes=3)
    within(spread[[1, 3, 5]], rates, value_bound(growth, dtype), "rates")
    empty = [0, 2, 4, 6, 7, 8]
    assert not spread[empty].any() and not spread_mass[empty].any()
    (gradient,) = torch.autograd.grad(spread[empty].sum(), Z)
    assert not gradient.any()
    expected = subspan.rate_reduction(Z, labels, 0.3, num_classes=3)
    growth = reduction_growth(Z.detach().double().numpy(), labels.numpy(), 0.3)
    within(
        subspan.rate_reduction(Z, 2 * labels + 1, 0.3, num_classes=9), expected, value_bound(growth, dtype), "reduction"
    )


@REAL
def test_one_sample(dtype: torch.dtype) -> None:
    """1/2 log(1 + d/eps2 |z|^2); a class per sample gives that of every row."""
    Z = normal(19, 5, 7, dtype=dtype)
    expected = torch.log1p(7 / 0.3 * Z.double().square().sum(-1)) / 2
    bounds = [value_bound(coding_rate_growth(z[None].double().numpy(), 0.3), dtype) for z in Z]
    for i in range(5):
        within(subspan.coding_rate(Z[i : i + 1], 0.3), expected[i], bounds[i], "one sample")
    within(subspan.class_coding_rates(Z, torch.arange(5), 0.3)[0], expected, max(bounds), "a class per sample")
    reduction = subspan.rate_reduction(Z[:1], torch.zeros(1, dtype=torch.int64), 0.3)
    assert abs(reduction.item()) <= 2 * bounds[0]


@REAL
def test_nothing_has_rate_zero(dtype: torch.dtype) -> None:
    """No samples, no features, no weight, only zeros: the rate is 0 and so is its gradient."""
    nothing = {"no samples": (0, 4), "no features": (4, 0), "neither": (0, 0)}
    for name, shape in nothing.items():
        for side in ("auto", "samples", "features"):
            rate, info = subspan.coding_rate(torch.zeros(2, *shape, dtype=dtype), 0.3, side=side, return_info=True)
            assert not rate.any() and not info.any(), name
        labels = torch.zeros(shape[0], dtype=torch.int64)
        rates, _ = subspan.class_coding_rates(torch.zeros(shape, dtype=dtype), labels, 0.3, num_classes=3)
        assert not rates.any(), name
        assert subspan.rate_reduction(torch.zeros(shape, dtype=dtype), labels, 0.3, num_classes=3) == 0, name
    rate, gradient = rate_and_gradient(torch.zeros(5, 4, dtype=dtype), 0.3)
    assert rate == 0 and not gradient.any()
    Z = normal(20, 5, 4, dtype=dtype).requires_grad_()
    weights = torch.zeros(5, dtype=dtype, requires_grad=True)
    rate = subspan.coding_rate(Z, 0.3, weights=weights)
    assert rate == 0
    for gradient in torch.autograd.grad(rate, (Z, weights)):
        assert not gradient.any()


@REAL
@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (40, 35), (35, 40)], ids=str)
@pytest.mark.parametrize("alpha", [None, 0.6])
def test_sample_without_weight(shape: tuple[int, int], alpha: float | None, dtype: torch.dtype) -> None:
    """Weight 0 is absence from the value, yet the weight's gradient is alpha/2 z M z^T as for any other sample."""
    Z = normal(21, *shape, dtype=dtype)
    weights = uniform(22, shape[0], dtype=dtype)
    weights[::3] = 0
    present = weights > 0
    within(
        subspan.coding_rate(Z, 0.3, weights=weights, alpha=alpha),
        subspan.coding_rate(Z[present], 0.3, weights=weights[present], alpha=alpha),
        2 * value_bound(coding_rate_growth(Z.double().numpy(), 0.3, weights=weights.double().numpy()), dtype),
        "value",
    )
    used = shape[1] / (weights.double().sum().item() * 0.3) if alpha is None else alpha
    rows, w = Z.double(), weights.double()
    inverse = torch.linalg.inv(torch.eye(shape[1], dtype=torch.float64) + used * rows.mT @ (w[:, None] * rows))
    share = used / 2 * ((rows @ inverse) * rows).sum(-1)
    expected = share - (w @ share / w.sum() if alpha is None else 0)
    for side in ("samples", "features"):
        leaf = weights.clone().requires_grad_()
        rate = subspan.coding_rate(Z, 0.3, weights=leaf, alpha=alpha, side=side)
        (gradient,) = torch.autograd.grad(rate, leaf)
        # z M z^T is at most |z|^2, and M has an error of at most cond(I + alpha Z^T W Z) roundings
        condition = 1 + used * torch.linalg.matrix_norm(w.sqrt()[:, None] * rows, 2).square().item()
        bound = 10 * sum(shape) * torch.finfo(dtype).eps * condition * share.abs().max().item()
        within(gradient, expected, bound, f"{side} side")


@REAL
def test_info(dtype: torch.dtype) -> None:
    """Nothing is clamped for well-conditioned features; an item that is not finite is -1."""
    Z = normal(23, 3, 8, 5, dtype=dtype)
    Z[1, 2, 3] = float("inf")
    for rate, info in (
        subspan.coding_rate(Z, 0.3, return_info=True),
        subspan.logdet_gram(Z, 0.3, return_info=True),
    ):
        assert info.dtype == torch.int32 and info.tolist() == [0, -1, 0]
        assert rate.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: subspan.spd_logdet(torch.ones(2, 3)), ValueError, "spd_logdet: A: .*(2, 3)"),
        (lambda: subspan.logdet_gram(torch.ones(3), 1.0), ValueError, "logdet_gram: Z: "),
        (lambda: subspan.logdet_gram(torch.ones(3, 2), 0.0), ValueError, "logdet_gram: alpha: .*> 0.*0.0"),
        (lambda: subspan.coding_rate(torch.ones(3, 2).long(), 0.5), TypeError, "coding_rate: Z: .*int64"),
        (lambda: subspan.coding_rate(torch.ones(3, 2), -0.5), ValueError, "coding_rate: eps2: .*-0.5"),
        (lambda: subspan.coding_rate(torch.ones(3, 2), 0.5, side="both"), ValueError, "coding_rate: side: .*'both'"),
        (lambda: subspan.rate_reduction(torch.ones(3, 2), torch.ones(3), 1.0), TypeError, "rate_reduction: labels: "),
        (
            lambda: subspan.class_coding_rates(torch.ones(3, 2), torch.tensor([0, 1, 5]), 1.0, num_classes=3),
            ValueError,
            "class_coding_rates: labels: .*5",
        ),
        (lambda: subspan.rate_operator(torch.ones(3, 2), float("inf")), ValueError, "rate_operator: alpha: .*inf"),
    ],
)
def test_messages_name_op_and_argument(call, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        call()
