"""MLCLoss against CPP's formula, written out here in float64: samples as columns, one dense Pi_j for each class."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

import subspan
from sample_arrays import classes, normal
from subspan.nn import MaximalCodingRateReduction, MLCLoss

PRECISION = {torch.float32: 2e-5, torch.float64: 1e-12}
REAL = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def takes_membership() -> bool:
    try:
        subspan.rate_reduction(torch.eye(2), torch.full((2, 2), 0.5), 0.5)
    except TypeError:
        return False
    return True


needs_membership = pytest.mark.skipif(not takes_membership(), reason="rate_reduction takes integer labels only")


def cpp_loss(X: Tensor, Y: Tensor, eps: float, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, R and R_c; column j of Y is the diagonal of Pi_j, and tr(Pi_j) + 1e-8 as there."""
    W, (m, p) = X.double().T, X.shape
    identity = torch.eye(p, dtype=torch.float64)
    rate = torch.logdet(identity + p / (m * eps) * W @ W.T) / 2
    compressed = torch.zeros((), dtype=torch.float64)
    for weights in Y.double().T:
        trace = weights.sum() + 1e-8
        compressed = compressed + trace / (2 * m) * torch.logdet(
            identity + p / (trace * eps) * W @ weights.diag() @ W.T
        )
    return -rate + gamma * compressed, rate, compressed


def unit_rows(*shape: int, dtype: torch.dtype) -> Tensor:
    return normalize(normal(1, *shape), dim=-1).to(dtype)


def membership(*shape: int, dtype: torch.dtype) -> Tensor:
    return subspan.sinkhorn(normal(2, *shape), 0.5).to(dtype)


def test_formula_of_hard_memberships_is_that_of_labels() -> None:
    """What the module is held against below, against what exists beside it."""
    X, labels = unit_rows(30, 8, dtype=torch.float64), classes(3, 30, k=4)
    loss, rate, compressed = cpp_loss(X, one_hot(labels, 4), 0.1, 0.7)
    delta, *parts = subspan.rate_reduction(X, labels, 0.1, num_classes=4, gamma=0.7, return_parts=True)
    for value, expected in ((-delta, loss), (parts[0], rate), (parts[1], compressed)):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)  # 1e-8 in the trace


@needs_membership
@REAL
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize(("n", "k", "d"), [(40, 40, 8), (12, 12, 30), (40, 5, 8)])
def test_loss_is_the_formula(n: int, k: int, d: int, detach: bool, dtype: torch.dtype) -> None:
    X = unit_rows(n, d, dtype=dtype).requires_grad_()
    Y = membership(n, k, dtype=dtype).requires_grad_()
    module = MLCLoss(eps=0.1, gamma=0.7)
    loss, parts = module(X, Y, detach=detach)
    wanted = cpp_loss(X, Y, 0.1, 0.7)
    scale = float((wanted[1] + wanted[2]).detach())
    for value, expected in zip((loss, *parts), wanted, strict=True):
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=(PRECISION[dtype] + 1e-6) * scale)
    assert loss.dtype == dtype and loss.requires_grad
    assert all(value.shape == () and value.requires_grad != detach for value in parts)
    for gradient, expected in zip(
        torch.autograd.grad(loss, [X, Y]), torch.autograd.grad(wanted[0], [X, Y]), strict=True
    ):
        atol = (PRECISION[dtype] + 1e-6) * float(expected.abs().max())
        torch.testing.assert_close(gradient, expected, rtol=0, atol=atol)


@needs_membership
def test_batch_is_a_loss_per_item() -> None:
    X, Y = unit_rows(2, 20, 6, dtype=torch.float64), membership(2, 20, 20, dtype=torch.float64)
    module = MLCLoss(eps=0.5)
    loss, parts = module(X, Y)
    for item in range(2):
        expected, one = module(X[item], Y[item])
        torch.testing.assert_close(loss[item], expected)
        torch.testing.assert_close(torch.stack([part[item] for part in parts]), torch.stack(one))


@needs_membership
def test_hard_memberships_give_the_loss_of_labels() -> None:
    X, labels = unit_rows(30, 8, dtype=torch.float64), classes(3, 30, k=4)
    loss, _ = MLCLoss(eps=0.5)(X, one_hot(labels, 4).double())
    torch.testing.assert_close(loss, MaximalCodingRateReduction(eps=0.5)(X, labels, 4)[0])


@needs_membership
def test_training_step_of_the_repository() -> None:
    """Features, scores of their cosines, Sinkhorn, loss and regularisation: gradients reach both heads."""
    features, logits = (normal(seed, 32, 16).requires_grad_() for seed in (4, 5))
    Z, C = normalize(features, dim=-1), normalize(logits, dim=-1)
    Pi = subspan.sinkhorn(C @ C.mT, 0.175)
    loss = MLCLoss(eps=0.1)(Z, Pi)[0] + 0.05 * 0.5 * Pi.norm() ** 2
    for gradient in torch.autograd.grad(loss, [features, logits]):
        assert gradient.isfinite().all() and gradient.norm() > 0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MLCLoss(eps=0.0), ValueError, "MLCLoss: eps: "),
        (lambda: MLCLoss(eps="0.1"), TypeError, "MLCLoss: eps: "),  # type: ignore[arg-type]
        (lambda: MLCLoss(gamma=float("nan")), ValueError, "MLCLoss: gamma: "),
        (lambda: MLCLoss()(torch.eye(4), torch.arange(4)), TypeError, "MLCLoss: Y: "),
        (lambda: MLCLoss()(torch.eye(4), torch.ones(3, 4)), ValueError, "MLCLoss: Y: "),
        (lambda: MLCLoss()(torch.eye(4), torch.ones(4)), ValueError, "MLCLoss: Y: "),
        (lambda: MLCLoss()(torch.ones(4), torch.ones(4, 4)), ValueError, "MLCLoss: X: "),
        (lambda: MLCLoss()(torch.eye(4), torch.eye(4), "yes"), TypeError, "MLCLoss: detach: "),
    ],
)
def test_bad_parameters(make, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        make()
