"""The modules against the formulas of the repositories they replace, written out here: samples as columns, dense Pi."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sample_arrays import classes, normal
from subspan.nn import MaximalCodingRateReduction, TotalCodingRate

PRECISION = {torch.float32: 2e-5, torch.float64: 1e-12}
REAL = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def half_logdet(columns: Tensor, scale: float, pi: Tensor | None = None) -> Tensor:
    """1/2 log det (I + scale W Pi W^T) on the features' side, in float64."""
    W = columns.double()
    weighted = W if pi is None else W @ pi
    return torch.logdet(torch.eye(len(W), dtype=torch.float64) + scale * weighted @ W.T) / 2


def mcr2_loss(X: Tensor, Y: Tensor, num_classes: int, gam1: float, gam2: float, eps: float) -> tuple[Tensor, ...]:
    """Loss, R with gam1, R, and R_c; tr(Pi_j) + 1e-8 as there."""
    p, m = X.shape[1], X.shape[0]
    compressed = torch.zeros((), dtype=torch.float64)
    for j in range(num_classes):
        pi = torch.diag((j == Y).double())
        trace = torch.trace(pi) + 1e-8
        compressed = compressed + trace / m * half_logdet(X.T, p / (trace * eps), pi)
    empirical, theoretical = half_logdet(X.T, gam1 * p / (m * eps)), half_logdet(X.T, p / (m * eps))
    return -gam2 * empirical + compressed, empirical, theoretical, compressed


def unit_rows(*shape: int, dtype: torch.dtype) -> Tensor:
    return normalize(normal(1, *shape), dim=-1).to(dtype)


@REAL
@pytest.mark.parametrize("shape", [(50, 8), (10, 40)], ids=str)
def test_total_coding_rate(shape: tuple[int, int], dtype: torch.dtype) -> None:
    X = unit_rows(3, *shape, dtype=dtype).requires_grad_()
    loss = TotalCodingRate(eps=0.2)
    expected = torch.stack([-half_logdet(view.T, shape[1] / (shape[0] * 0.2)) for view in X])
    assert loss(X).dtype == dtype and loss(X).shape == (3,)
    torch.testing.assert_close(loss(X).double(), expected, rtol=PRECISION[dtype], atol=0)
    assert torch.equal(loss(X[1]), loss(X)[1])
    (gradient,) = torch.autograd.grad(loss(X).sum(), X)
    (wanted,) = torch.autograd.grad(expected.sum(), X)
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=PRECISION[dtype] * wanted.abs().max().item())


@REAL
@pytest.mark.parametrize(("gam1", "gam2", "eps"), [(1.0, 1.0, 0.5), (20.0, 0.05, 0.5), (0.3, 0.0, 0.2)])
@pytest.mark.parametrize("shape", [(60, 8), (12, 40)], ids=str)
def test_maximal_coding_rate_reduction(
    shape: tuple[int, int], gam1: float, gam2: float, eps: float, dtype: torch.dtype
) -> None:
    X, Y = unit_rows(*shape, dtype=dtype).requires_grad_(), classes(2, shape[0], k=4)
    module = MaximalCodingRateReduction(gam1=gam1, gam2=gam2, eps=eps)
    loss, empirical, theoretical = module(X, Y, num_classes=5)
    wanted_loss, rate, plain_rate, compressed = mcr2_loss(X, Y, 5, gam1, gam2, eps)
    for value, expected in [
        (loss, wanted_loss),
        (empirical[0], rate),
        (empirical[1], compressed),
        (theoretical[0], plain_rate),
        (theoretical[1], compressed),
    ]:
        scale = rate.item() + compressed.item()
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=(PRECISION[dtype] + 1e-7) * scale)
    assert loss.dtype == dtype and loss.requires_grad
    assert all(value.shape == () and not value.requires_grad for value in (*empirical, *theoretical))
    (gradient,) = torch.autograd.grad(loss, X)
    (wanted,) = torch.autograd.grad(wanted_loss, X)
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=(PRECISION[dtype] + 1e-7) * wanted.abs().max().item())


def test_class_count_from_the_labels() -> None:
    X, Y = unit_rows(20, 6, dtype=torch.float64), classes(3, 20, k=3)
    module = MaximalCodingRateReduction(eps=0.5)
    assert torch.equal(module(X, Y)[0], module(X, Y, 3)[0])
    assert torch.equal(module(X, Y.int())[0], module(X, Y)[0])


def test_batch_is_a_loss_per_item() -> None:
    X, Y = unit_rows(2, 20, 6, dtype=torch.float64), classes(4, 2, 20, k=3)
    module = MaximalCodingRateReduction(gam1=2.0, gam2=0.7, eps=0.5)
    loss, empirical, theoretical = module(X, Y, 3)
    for item in range(2):
        expected, one_empirical, one_theoretical = module(X[item], Y[item], 3)
        torch.testing.assert_close(loss[item], expected)
        torch.testing.assert_close(empirical[0][item], one_empirical[0])
        torch.testing.assert_close(theoretical[1][item], one_theoretical[1])


def test_ascent_separates_the_classes() -> None:
    """From a random start a few steps make every class orthogonal to the others, the optimum of the rate reduction."""
    Y = torch.arange(12) % 3
    X = normal(5, 12, 9).requires_grad_()
    module, optimiser = MaximalCodingRateReduction(eps=0.5), torch.optim.Adam([X], lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        module(normalize(X, dim=-1), Y, 3)[0].backward()
        optimiser.step()
    cosines = (normalize(X, dim=-1) @ normalize(X, dim=-1).T).abs().detach()
    assert cosines[Y[:, None] != Y].max().item() < 0.05


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: TotalCodingRate(eps=0.0), ValueError, "TotalCodingRate: eps: "),
        (lambda: TotalCodingRate(eps="0.1"), TypeError, "TotalCodingRate: eps: "),  # type: ignore[arg-type]
        (lambda: MaximalCodingRateReduction(gam1=-1.0), ValueError, "MaximalCodingRateReduction: gam1: "),
        (lambda: MaximalCodingRateReduction(gam2=float("nan")), ValueError, "MaximalCodingRateReduction: gam2: "),
    ],
)
def test_bad_parameters(make, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        make()


def test_only_integer_labels() -> None:
    X, Y = unit_rows(6, 4, dtype=torch.float32), torch.arange(6) % 2
    module = MaximalCodingRateReduction()
    membership = torch.stack([torch.diag((j == Y).float()) for j in range(2)])
    for wrong, error in [
        (torch.nn.functional.one_hot(Y).float(), TypeError),
        (membership, TypeError),
        (torch.nn.functional.one_hot(Y), ValueError),
        (Y[:5], ValueError),
    ]:
        with pytest.raises(error, match=r"MaximalCodingRateReduction: Y: expected integer class numbers.*not one-hot"):
            module(X, wrong)
