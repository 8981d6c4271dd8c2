"""The demo's study of Householder products: both projectors are the same map, and learn the same."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from subspan.demo import digits, householder, training  # noqa: E402
from subspan.demo.copied_householder import CopiedProjector, product_of_blocks  # noqa: E402
from subspan.reference import householder as exact  # noqa: E402


def test_copied_product_is_that_of_the_reflectors():
    vectors = torch.randn(24, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = exact.householder_product(vectors.numpy())
    np.testing.assert_allclose(product_of_blocks(vectors).numpy(), expected, atol=1e-14)


def test_both_projectors_are_one_map():
    torch.manual_seed(0)
    copied, ours = CopiedProjector(32, 3).double(), householder.Projector(32, 3).double()
    ours.load_state_dict(copied.state_dict())
    x = torch.randn(5, 32, dtype=torch.float64)
    with torch.no_grad():
        copied.scales.copy_(torch.tensor([3.0, 2.0, 1.0]))
        ours.scales.copy_(copied.scales)
    torch.testing.assert_close(ours(x), copied(x), rtol=0, atol=1e-13)
    U, V = (exact.householder_product(p.detach().numpy()) for p in (copied.U, copied.V))
    weight = U[:, :3] * [3.0, 2.0, 1.0] @ V[:3]
    np.testing.assert_allclose(ours(x).detach().numpy(), x.numpy() @ weight.T, atol=1e-13)
    for one, two in zip(
        torch.autograd.grad(ours(x).cos().sum(), list(ours.parameters())),
        torch.autograd.grad(copied(x).cos().sum(), list(copied.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_both_learn_the_same(monkeypatch):
    monkeypatch.setattr(householder, "FEATURES", 64)
    data = digits.load(seed=3)
    runs = householder.prepare(steps=30, seed=1)
    before = [householder.factors(run)[0].clone() for run in runs]
    training.train(runs, data.batches(householder.BATCH, 30, seed=1), lambda: None)
    copied, ours = runs
    assert training.largest_difference(copied, ours)[1] < 1e-5
    assert ours.losses[-1] < ours.losses[0] - 0.05
    assert householder.accuracy(ours, data) == pytest.approx(householder.accuracy(copied, data), abs=2 / 500)
    for run, start in zip(runs, before, strict=True):
        assert householder.deviation(run) < 1e-5
        assert (householder.factors(run)[0] - start).abs().max() > 1e-3  # the directions moved
