"""The demo's study of sparse text embeddings: real text, one loss in two ways, and costs that are counted."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from subspan.demo import docstrings, sparse, training  # noqa: E402


@pytest.fixture(scope="module")
def data():
    return docstrings.load(seed=3)


@pytest.fixture(scope="module")
def trained():
    """Encoders of the 512 commonest terms."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (docstrings, sparse):
            patch.setattr(module, "VOCABULARY", 512)
        data = docstrings.load(seed=3)
        runs = sparse.prepare(steps=40, seed=1)
        start = [parameter.detach().clone() for parameter in runs[0].network.parameters()]
        for run in runs[1:]:
            for parameter, other in zip(run.network.parameters(), start, strict=True):
                assert torch.equal(parameter, other)
        training.train(runs, sparse.batches(data, 40, seed=1), lambda: None)
    return data, runs


def test_corpus(data):
    """Thousands of texts, nearly all with terms, split without overlap; the pinned versions give the pinned text."""
    texts = data.bodies.shape[0]
    assert data.summaries.shape == data.bodies.shape == (texts, docstrings.VOCABULARY)
    assert texts > 3000
    assert sorted([*data.train, *data.test]) == list(range(texts))
    assert len(data.test) == round(docstrings.TEST_SHARE * texts)
    lengths = np.sqrt(data.bodies.multiply(data.bodies).sum(1))
    assert ((np.abs(lengths - 1) < 1e-5) | (lengths == 0)).all()
    assert (lengths > 0).mean() > 0.99
    if data.versions == docstrings.PINNED:
        assert data.pinned
    assert any(summary == "Compute the inverse of a matrix." for summary, _ in docstrings._texts("numpy"))


def test_rows_are_those_of_the_matrices(data):
    rows = docstrings.rows([data.summaries[:3], data.bodies[:2]])
    expected = np.concatenate([data.summaries[:3].toarray(), data.bodies[:2].toarray()])
    assert np.array_equal(rows.to_dense().numpy(), expected)


def test_both_learn_the_same(trained):
    _, runs = trained
    copied, ours = runs[0], runs[1 + sparse.COMPARED]
    assert training.largest_difference(copied, ours)[1] < 1e-4
    assert training.largest_difference(copied, runs[-1])[1] > 1e-2  # of another weight
    assert ours.losses[-1] < ours.losses[0]


def test_stronger_regularisers_make_cheaper_embeddings(trained):
    data, runs = trained
    found = [sparse.evaluate(run.network, data) for run in runs]
    costs = [each.flops for each in found[1:]]
    assert costs == sorted(costs, reverse=True) and costs[0] > 1.5 * costs[-1]
    assert found[0].flops == pytest.approx(found[1 + sparse.COMPARED].flops, rel=0.02)


def test_predicted_cost_is_that_of_dense_products():
    """flops_metric, recall and nonzeros of a search against dense products and counts."""
    generator = torch.Generator().manual_seed(0)
    q, d = (torch.randn(n, 12, generator=generator).sub(0.5).relu() for n in (5, 40))
    own = torch.arange(5)
    found = sparse.search(sparse.SparseRows.from_dense(q), sparse.SparseRows.from_dense(d), own)
    scores = q @ d.T
    rank = (scores > scores[own, own][:, None]).sum(1)
    assert found.recall == pytest.approx((rank < sparse.NEAREST).double().mean().item())
    both = ((q > 0).double() @ (d > 0).double().T).mean().item()
    assert found.flops == pytest.approx(both, rel=1e-6)
    assert found.nonzeros == pytest.approx(((q > 0).sum().item() / 5, (d > 0).sum().item() / 40))
