"""The demo's study of orthogonal layers: both networks are the same map, and learn the same."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from subspan.demo import digits, orthogonal, training  # noqa: E402


def test_both_learn_the_same(monkeypatch):
    monkeypatch.setattr(orthogonal, "WIDTHS", (64, 96, 96))
    data = digits.load(seed=3)
    theirs, ours = runs = orthogonal.prepare(steps=30, seed=1)
    before = [weight.clone() for weight in orthogonal.hidden_weights(ours.network)]
    for one, two in zip(orthogonal.hidden_weights(theirs.network), before, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)
    training.train(runs, data.batches(orthogonal.BATCH, 30, seed=1), lambda: None)
    assert training.largest_difference(theirs, ours)[1] < 1e-4
    assert ours.losses[-1] < ours.losses[0] - 0.3
    assert orthogonal.accuracy(ours, data) == pytest.approx(orthogonal.accuracy(theirs, data), abs=2 / 500)
    for run in runs:
        assert orthogonal.deviation(run) < 1e-5
    for weight, start in zip(orthogonal.hidden_weights(ours.network), before, strict=True):
        assert (weight - start).abs().max() > 1e-3  # they moved
    alive = orthogonal.decayed_norms(ours, data)
    assert alive == pytest.approx([8.0] * len(alive), rel=1e-5)
    assert orthogonal.decayed_norms(theirs, data)[1:] == [0.0] * (len(alive) - 1)
