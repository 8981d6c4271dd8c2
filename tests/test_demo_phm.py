"""The demo's study of hypercomplex layers: the copied layer is the formula, and both networks learn the same."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from resident_memory import needs_counter  # noqa: E402
from subspan.demo import digits, memory, phm, training  # noqa: E402
from subspan.demo.copied_phm import CopiedPHMLinear  # noqa: E402


def test_copied_layer_is_the_sum_of_kronecker_products():
    torch.manual_seed(0)
    layer = CopiedPHMLinear(6, 9, 3).double()
    W = sum(torch.kron(a, s) for a, s in zip(layer.A.detach(), layer.S.detach(), strict=True))
    x = torch.randn(4, 6, dtype=torch.float64)
    with torch.no_grad():
        layer.bias.copy_(torch.randn(9))
    torch.testing.assert_close(layer(x).detach(), x @ W.T + layer.bias.detach(), rtol=0, atol=1e-14)


def test_both_learn_the_same(monkeypatch):
    monkeypatch.setattr(phm, "WIDTH", 256)
    monkeypatch.setattr(phm, "HIDDEN", 256)
    data = digits.load(seed=3)
    dense, copied, ours = runs = phm.prepare(steps=40, seed=1)
    assert copied.losses == [] and copied.parameters == ours.parameters < dense.parameters / 2
    before = {name: tensor.clone() for name, tensor in ours.network.state_dict().items()}
    for name, tensor in copied.network.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    training.train(runs, data.batches(phm.BATCH, 40, seed=1), lambda: None)
    assert training.largest_difference(copied, ours)[1] < 1e-4
    assert training.largest_difference(copied, dense)[1] > 1e-2
    assert all(run.losses[-1] < run.losses[0] - 0.5 for run in runs)
    assert phm.accuracy(ours, data) == pytest.approx(phm.accuracy(copied, data), abs=2 / 500)
    for name, tensor in ours.network.state_dict().items():
        if name != "block.key.bias":  # to which attention is indifferent
            assert (tensor - before[name]).abs().max() > 1e-4, name  # rules, components and all else moved


def test_network_sees_rows_in_their_order():
    """Rows are tokens: another order is another input, and exchanging pixels changes the rows they are in."""
    network = phm.prepare(steps=1, seed=0)[2].network
    image = torch.rand(1, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        flipped = image.unflatten(-1, (8, 8)).flip(1).flatten(1)
        assert (network(image) - network(flipped)).abs().max() > 1e-3
        rows = network.embed(image.unflatten(-1, (8, 8)))
        torch.testing.assert_close(rows[0, 3], network.embed(image[0, 24:32]))


@needs_counter
def test_peak_memory_is_that_of_a_call():
    assert memory.extra_bytes(lambda: torch.ones(2**23)) > 2**24
    assert memory.extra_bytes(lambda: torch.ones(2**3)) < 2**22


def test_peak_memory_where_it_cannot_be_asked_for(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "none")
    assert memory.extra_bytes(lambda: calls.append(1)) is None
    assert calls == [1]


@needs_counter
def test_a_step_without_kronecker_products_takes_less_memory():
    data = digits.load(seed=3)
    _, copied, ours = phm.prepare(steps=1, seed=1)
    taken = [phm.step_bytes(run, data.train_images[:16], data.train_labels[:16]) for run in (copied, ours)]
    largest = 4 * phm.N * phm.WIDTH * phm.HIDDEN  # what the broadcast product of one layer takes
    assert taken[0] - taken[1] > largest
    assert all(parameter.grad is None for parameter in ours.network.parameters())
