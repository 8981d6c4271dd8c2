"""The losses of nn/self_supervised.py against the formulas of the repositories they replace, written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sample_arrays import normal
from subspan.nn import BarlowLoss, EMPSSLLoss, SimDINOExpansion, TiCoLoss

REAL = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
PRECISION = {torch.float32: 2e-5, torch.float64: 1e-12}


def views(count: int, n: int, d: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return normalize(normal(1, count, n, d), dim=-1).to(dtype).requires_grad_()


def check(loss: Tensor, expected: Tensor, z: Tensor) -> None:
    """Value and gradient, to rounding of the type of z."""
    precision = PRECISION[z.dtype]
    assert loss.dtype == z.dtype
    torch.testing.assert_close(loss.double(), expected, rtol=precision, atol=precision)
    (gradient,) = torch.autograd.grad(loss, z, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected, z, retain_graph=True)
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=10 * precision * wanted.abs().max().item())


def rate(z: Tensor, alpha: float) -> Tensor:
    return torch.logdet(torch.eye(z.shape[1], dtype=torch.float64) + alpha * z.T @ z) / 2


@REAL
@pytest.mark.parametrize("shape", [(5, 12, 30), (3, 40, 8)], ids=str)
def test_empssl(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    z = views(*shape, dtype=dtype)
    wide = z.double()
    mean = wide.mean(0)
    cosines = [(v * mean).sum(1) / (v.norm(dim=1) * mean.norm(dim=1)) for v in wide]
    agreement = torch.stack(cosines).mean()
    total = torch.stack([rate(v, shape[2] / (shape[1] * 0.2)) for v in wide]).mean()
    check(EMPSSLLoss(0.2, 200.0, 1.5)(z), -200 * agreement - 1.5 * total, z)
    # lightly adds the coding rate.
    check(EMPSSLLoss(0.2, 3.0, tcr_coef=-1.0)(z), -3 * agreement + total, z)


def test_empssl_takes_a_list_of_views() -> None:
    z = views(4, 10, 6)
    assert torch.equal(EMPSSLLoss()(list(z)), EMPSSLLoss()(z))


def test_empssl_descent_spreads_features_out() -> None:
    """The sign: minimising must raise the coding rate of nearly collapsed features."""
    z = (1 + 0.01 * normal(2, 2, 8, 6)).requires_grad_()
    loss = EMPSSLLoss(tcr_eps=0.5, inv_coef=0.0)
    before = loss(normalize(z, dim=-1)).item()
    optimiser = torch.optim.Adam([z], lr=0.05)
    for _ in range(100):
        optimiser.zero_grad()
        loss(normalize(z, dim=-1)).backward()
        optimiser.step()
    assert loss(normalize(z, dim=-1)).item() < before
    cosines = (normalize(z, dim=-1) @ normalize(z, dim=-1).mT).detach()
    assert cosines.mean().item() < 0.5  # from nearly 1


@REAL
@pytest.mark.parametrize("shape", [(2, 16, 40), (2, 40, 8)], ids=str)
def test_simdino(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    z, (_, m, p) = views(*shape, dtype=dtype), shape
    expected = torch.stack([rate(v, p / (m * 0.05)) for v in z.double()]).mean() * (p + m) / (p * m)
    for settings in ({}, {"world_scaling": "local"}, {"reduce_cov": True}):
        check(SimDINOExpansion(eps=0.05, **settings)(z), expected, z)  # type: ignore[arg-type]


def test_simdino_in_a_world_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The repository divides alpha by the number of processes even where Gram matrices are not summed."""
    monkeypatch.setattr("subspan.nn.self_supervised._world_size", lambda group: 4)
    z, m, p = views(2, 16, 10), 16, 10
    expected = torch.stack([rate(v, p / (m * 4 * 0.05)) for v in z]).mean() * (p + 4 * m) / (p * 4 * m)
    check(SimDINOExpansion(eps=0.05)(z), expected, z)
    local = torch.stack([rate(v, p / (m * 0.05)) for v in z]).mean() * (p + m) / (p * m)
    check(SimDINOExpansion(eps=0.05, world_scaling="local")(z), local, z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_simdino_of_collapsed_features(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """p = 256, N = 32, m = 78: the last value that a run of the repository logged before NaN was 0.0109."""
    monkeypatch.setattr("subspan.nn.self_supervised._world_size", lambda group: 32)
    collapsed = torch.full((2, 78, 256), 1 / 16).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = SimDINOExpansion(eps=0.05)(collapsed)
    formula = (256 + 32 * 78) / (256 * 32 * 78) * math.log1p(256 / (32 * 0.05)) / 2
    assert value.item() == pytest.approx(formula, rel=1e-5)
    assert f"{value.item():.4f}" == "0.0109"
    value.backward()
    assert collapsed.grad is not None and collapsed.grad.isfinite().all()


@REAL
@pytest.mark.parametrize("center", [False, True])
def test_tico(dtype: torch.dtype, center: bool) -> None:
    x = normal(3, 2, 20, 7).to(dtype).requires_grad_()
    C = normal(4, 7, 7).to(dtype) / 10
    z = x.double() - (x.double().mean(1, keepdim=True) if center else 0)
    z_1, z_2 = z / z.norm(dim=-1, keepdim=True)
    updated = 0.9 * C.double() + 0.1 * z_1.T @ z_1 / 20
    expected = -(z_1 * z_2).sum(1).mean() + 20 * ((z_1 @ updated) * z_1).sum(1).mean()
    loss, covariance = TiCoLoss(center=center)(C, *x)
    check(loss, expected, x)
    torch.testing.assert_close(covariance.double(), updated, rtol=PRECISION[dtype], atol=PRECISION[dtype])
    assert not covariance.requires_grad


@REAL
@pytest.mark.parametrize("unbiased", [True, False])
def test_barlow(dtype: torch.dtype, unbiased: bool) -> None:
    z = normal(5, 2, 30, 6).to(dtype).requires_grad_()
    z_1, z_2 = ((v - v.mean(0)) / v.std(0, unbiased=unbiased) for v in z.double())
    c = z_1.T @ z_2 / 30
    off = c[~torch.eye(6, dtype=torch.bool)]
    expected = (c.diagonal() - 1).pow(2).sum() + 0.005 * off.pow(2).sum()
    check(BarlowLoss(unbiased=unbiased)(*z), expected, z)


def test_barlow_with_the_batch_normalisation_of_barlow_twins() -> None:
    z_1, z_2 = normal(6, 2, 25, 5)
    layer = torch.nn.BatchNorm1d(5, affine=False).double()
    c = layer(z_1).T @ layer(z_2) / 25
    off = c[~torch.eye(5, dtype=torch.bool)]
    expected = (c.diagonal() - 1).pow(2).sum() + 0.0051 * off.pow(2).sum()
    torch.testing.assert_close(BarlowLoss(0.0051, unbiased=False, eps=1e-5)(z_1, z_2), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: EMPSSLLoss(tcr_eps=0.0), ValueError, "EMPSSLLoss: tcr_eps: "),
        (lambda: EMPSSLLoss(inv_coef="1"), TypeError, "EMPSSLLoss: inv_coef: "),  # type: ignore[arg-type]
        (lambda: EMPSSLLoss()(torch.ones(3, 4)), ValueError, r"EMPSSLLoss: z: .*\(3, 4\)"),
        (lambda: SimDINOExpansion(world_scaling="global"), ValueError, "SimDINOExpansion: world_scaling: "),
        (lambda: SimDINOExpansion(eps=-1.0), ValueError, "SimDINOExpansion: eps: "),
        (lambda: TiCoLoss(beta=1.5), ValueError, "TiCoLoss: beta: "),
        (lambda: TiCoLoss()(torch.eye(3), torch.ones(4, 3), torch.ones(5, 3)), ValueError, "TiCoLoss: x_2: "),
        (lambda: BarlowLoss(eps=-1.0), ValueError, "BarlowLoss: eps: "),
        (lambda: BarlowLoss()(torch.ones(4, 3), torch.ones(5, 3)), ValueError, "BarlowLoss: z_2: "),
    ],
)
def test_bad_input(make, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        make()
