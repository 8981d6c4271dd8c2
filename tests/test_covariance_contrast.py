"""What only the covariance contrast promises."""

from __future__ import annotations

import pytest
import torch

import subspan
from op_row import same
from sample_arrays import normal


def published(z: torch.Tensor, C: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The second term of TiCo's loss and the new C, as the repository forms them."""
    B = z.T @ z / len(z)
    C = beta * C + (1 - beta) * B
    return ((z @ C) * z).sum(1).mean(), C


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (70, 40)], ids=str)
def test_is_the_published_term(shape: tuple[int, int]) -> None:
    z = normal(1, *shape).requires_grad_()
    C = normal(2, shape[1], shape[1])
    ours, theirs = subspan.covariance_contrast(z, C, 0.9), published(z, C, 0.9)
    for output, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(output, expected, rtol=1e-13, atol=1e-13)
    gradients = [torch.autograd.grad(result[0], z)[0] for result in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-13)


def test_a_detached_covariance_is_constant() -> None:
    z, C = normal(3, 9, 4).requires_grad_(), normal(4, 4, 4)
    contrast, covariance = subspan.covariance_contrast(z, C, 0.6, detach_covariance=True)
    (gradient,) = torch.autograd.grad(contrast, z, create_graph=True)
    symmetric = 0.6 * (C + C.T) / 2 + 0.4 * z.detach().T @ z.detach() / 9
    torch.testing.assert_close(gradient, 2 / 9 * z @ symmetric, rtol=1e-13, atol=1e-14)
    # Its Hessian is that of a quadratic form.
    direction = normal(5, 9, 4)
    (product,) = torch.autograd.grad(gradient, z, direction)
    torch.testing.assert_close(product, 2 / 9 * direction @ symmetric, rtol=1e-13, atol=1e-14)
    same(contrast.detach(), subspan.covariance_contrast(z.detach(), C, 0.6)[0], "value")
    assert not covariance.requires_grad


def test_orthonormal_features_have_the_contrast_of_their_rank() -> None:
    """n orthonormal rows of length sqrt(n): B is a projector, so <B, B> = n."""
    z = torch.linalg.qr(normal(6, 40, 7)).Q.T * 7**0.5
    assert subspan.covariance_contrast(z, torch.zeros(40, 40).double(), 0.0)[0].item() == pytest.approx(7, rel=1e-13)


def test_a_running_covariance_is_the_weighted_sum_of_its_batches() -> None:
    batches = normal(7, 5, 30, 6)
    C = torch.zeros(6, 6, dtype=torch.float64)
    for batch in batches:
        C = subspan.covariance_contrast(batch, C, 0.8)[1]
    expected = sum(0.2 * 0.8 ** (4 - i) * batch.T @ batch / 30 for i, batch in enumerate(batches))
    torch.testing.assert_close(C, expected, rtol=1e-13, atol=1e-14)
    assert torch.equal(C, C.T)


def test_a_statistic_that_requires_a_gradient_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^covariance_contrast: C: expected a running statistic without gradient, got"
    ):
        subspan.covariance_contrast(normal(8, 4, 3), normal(9, 3, 3).requires_grad_(), 0.5)
