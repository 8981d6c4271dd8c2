"""The demo's studies of subspaces: both Grassmann heads take the same steps, and similarities are what they say."""

from __future__ import annotations

import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from subspan.demo import digits, grassmann, similarity, training  # noqa: E402
from subspan.demo.copied_grassmann import CopiedGrassmannHead, CopiedGrassmannSGD  # noqa: E402
from subspan.reference import grassmann as exact_grassmann  # noqa: E402
from subspan.reference import similarity as exact_similarity  # noqa: E402

EPS32 = float(np.finfo(np.float32).eps)


def ignore() -> None:
    pass


@pytest.fixture(scope="module")
def data() -> digits.Digits:
    return digits.load(seed=3)


@pytest.fixture(scope="module")
def heads(data) -> tuple[tuple[grassmann.Classifier, ...], list[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Trained runs, weights of the Grassmann heads before and after."""
    runs, weights = grassmann.prepare(steps=12, seed=1)
    before = [weight.detach().clone() for weight in weights]
    training.train(runs, data.batches(grassmann.BATCH, 12, seed=1), ignore)
    return runs, before, weights


def test_copied_head_is_the_length_of_projections():
    torch.manual_seed(0)
    head = CopiedGrassmannHead(30, 4, 3)
    x = torch.randn(7, 30, generator=torch.Generator().manual_seed(0))
    directions = x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1, keepdims=True)
    W = head.fc.weight.detach().double().numpy().reshape(4, 3, 30)
    expected = 25 * np.stack([np.linalg.norm(directions @ basis.T, axis=1) for basis in W], axis=1)
    np.testing.assert_allclose(head(x).detach().numpy(), expected, rtol=1e-5)


def test_copied_step_follows_the_geodesics():
    generator = torch.Generator().manual_seed(0)
    P = torch.linalg.qr(torch.randn(4, 30, 3, generator=generator, dtype=torch.float64)).Q
    weight = torch.nn.Parameter(P.mT.flatten(0, 1).clone())
    weight.grad = torch.randn(12, 30, generator=generator, dtype=torch.float64)
    D = -0.2 * weight.grad.unflatten(0, (4, 3)).mT
    expected = exact_grassmann.grassmann_exp(P, D, project=True)
    CopiedGrassmannSGD([weight], lr=0.2, k=3).step()
    Q = weight.detach().unflatten(0, (4, 3)).mT.numpy()
    # QR changes the basis but not its span.
    np.testing.assert_allclose(Q @ Q.swapaxes(1, 2), expected @ expected.swapaxes(1, 2), atol=1e-13)


def test_grassmann_heads_start_alike_and_learn_alike(heads, data):
    (linear, copied, ours), before, weights = heads
    assert torch.equal(*before)
    assert ours.losses[0] == pytest.approx(copied.losses[0], rel=64 * EPS32)
    assert training.largest_difference(copied, ours)[1] < 1e-5
    assert copied.losses[-1] < copied.losses[0] - 1
    assert linear.losses[-1] < linear.losses[0] - 1
    assert copied.accuracy(data) == pytest.approx(ours.accuracy(data), abs=2 / digits.TEST_SAMPLES)
    assert ours.accuracy(data) > 0.7
    projectors = []
    for old, new in zip(before, weights, strict=True):
        P, Q = (grassmann.bases(weight).double() for weight in (old, new))
        assert (P @ P.mT - Q @ Q.mT).abs().max() > 1e-3  # the subspaces moved
        projectors.append(Q @ Q.mT)
    torch.testing.assert_close(*projectors, rtol=0, atol=1e-4)  # to the same places


def test_bases_of_the_classes_stay_orthonormal(heads):
    _, _, weights = heads
    assert all(grassmann.deviation(weight) < 1e-5 for weight in weights)
    assert grassmann.deviation(2 * weights[0]) == pytest.approx(3, rel=1e-5)


def test_step_of_the_head_is_timed_with_the_loss_and_follows_the_schedule(data):
    """A head that sleeps in its step: the time is that of the loss. Its learning rate decays as the network's does."""

    class Slow(torch.optim.SGD):
        def step(self, closure=None):
            time.sleep(0.05)
            super().step(closure)

    head = torch.nn.Linear(64, digits.CLASSES)
    optimiser = Slow(head.parameters(), lr=1.0)
    run = grassmann.Classifier("slow", torch.nn.Linear(64, 64), head, optimiser, steps=2)
    start = head.weight.detach().clone()
    training.train((run,), data.batches(16, 1, seed=0), ignore)
    assert not torch.equal(head.weight, start)
    assert run.loss_seconds[0] > 0.05
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0.5)
    assert head.weight.grad is None


def layers_of(seed: int, widths: tuple[int, ...]) -> list[torch.Tensor]:
    """Features of ten latent variables, which a randomised decomposition of rank 10 finds exactly; all share some."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(90, 10, generator=torch.Generator().manual_seed(0))
    return [
        (shared + torch.randn(90, 10, generator=generator)) @ torch.randn(10, width, generator=generator)
        for width in widths
    ]


def exact_maps(xs: list[torch.Tensor], ys: list[torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """CKA and SVCCA from their papers, in float64."""
    networks = [[layer.double() for layer in layers] for layers in (xs, ys)]
    plain = [[layer.numpy() for layer in layers] for layers in networks]
    standard = [[similarity.standardised(layer).numpy() for layer in layers] for layers in networks]
    return (
        exact_similarity.pairwise(exact_similarity.linear_cka, *plain),
        exact_similarity.pairwise(exact_similarity.svcca, *standard, rank=similarity.RANK),
    )


def test_similarities_agree_pair_by_pair():
    """Copied code, subspan and the demo's own float64 values, whose distances the table shows, against the papers."""
    xs, ys = layers_of(1, (20, 30, 25)), layers_of(2, (15, 40))
    definitions = exact_maps(xs, ys)
    assert all(values.min() > 0.05 and values.max() < 0.95 for values in definitions)
    for comparison, expected in zip(similarity.compare(xs, ys), definitions, strict=True):
        assert comparison.map.shape == (3, 2)
        np.testing.assert_allclose(comparison.map.numpy(), expected, atol=1e-5)
        np.testing.assert_allclose(comparison.copied.numpy(), expected, atol=1e-3)
        assert comparison.errors[0] == pytest.approx(np.abs(comparison.copied.numpy() - expected).max(), abs=1e-6)
        assert comparison.errors[1] == pytest.approx(np.abs(comparison.map.numpy() - expected).max(), abs=1e-6)
    np.testing.assert_allclose(similarity.svcca_without_chance(xs, ys).numpy(), definitions[1], atol=1e-4)


def test_layers_match_their_copies():
    """A network with its layers in another order: CKA and SVCCA of a layer with itself are 1."""
    xs = layers_of(1, (20, 30, 25))
    turned = [xs[2], xs[0], 2 * xs[1] + 1]
    for comparison in similarity.compare(xs, turned):
        assert comparison.matches == [2, 3, 1]
        assert comparison.map.max() == pytest.approx(1, abs=1e-5)


def test_a_measurement_times_both_and_sees_chance():
    calls = []

    def copied(xs, ys):
        calls.append("copied")
        time.sleep(0.02)
        return torch.tensor([[0.5 + 0.1 * calls.count("copied")]])

    def ours(xs, ys):
        calls.append("ours")
        return torch.tensor([[0.9]])

    found = similarity.measure("name", copied, ours, lambda xs, ys: torch.tensor([[1.0]]), [], [])
    assert calls == ["copied", "ours"] * similarity.REPEATS
    assert found.seconds[0] > 0.02 > found.seconds[1] >= 0
    assert found.errors == pytest.approx([0.4, 0.1])
    assert found.spread == pytest.approx(0.1 * (similarity.REPEATS - 1))


def test_networks_are_trained_apart(data):
    """Other weights and other batches, the same again for the same seeds."""
    first, second = similarity.train(data, 8, (0, 1), ignore)
    assert not torch.equal(first.classifier.weight, second.classifier.weight)
    again = similarity.train(data, 8, (0, 1), ignore)[1]
    assert torch.equal(second.classifier.weight, again.classifier.weight)
    layers = similarity.features_of([first, second], data.test_images[:20])
    assert [len(each) for each in layers] == [similarity.DEPTH] * 2
    torch.testing.assert_close(layers[0][-1].norm(dim=1), torch.ones(20))
    last = first.layers(data.test_images[:20])[-1]
    torch.testing.assert_close(first.classifier(last), first(data.test_images[:20]))
