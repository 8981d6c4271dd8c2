"""`python -m subspan.demo`: both trainings agree, the evaluations are right, and the command keeps its promises."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from subspan.demo import __main__ as command  # noqa: E402
from subspan.demo import crate, digits, mcr2, mlc, report, search, similarity, training  # noqa: E402
from subspan.demo.copied_losses import CopiedMembershipLoss, CopiedRateReduction, CopiedSinkhorn  # noqa: E402

EPS32 = float(np.finfo(np.float32).eps)
Pair = tuple[training.Run, training.Run]


def ignore() -> None:
    pass


@pytest.fixture(scope="module")
def data() -> digits.Digits:
    return digits.load(seed=3)


@pytest.fixture(scope="module")
def trained(data) -> Pair:
    runs = mcr2.prepare(steps=5, seed=3)
    training.train(runs, data.batches(mcr2.BATCH, 5, seed=3), ignore)
    return runs


def test_copied_loss_is_the_formula():
    generator = torch.Generator().manual_seed(0)
    Z = torch.nn.functional.normalize(torch.randn(60, 12, generator=generator), dim=1)
    labels = torch.randint(0, 3, (60,), generator=generator)
    exact = Z.double().numpy()

    def rate(rows: np.ndarray) -> float:
        return 0.5 * np.linalg.slogdet(np.eye(12) + 12 / (len(rows) * 0.5) * rows.T @ rows)[1]

    shares = [(labels == j).double().mean().item() for j in range(3)]
    expected = sum(share * rate(exact[labels == j]) for j, share in enumerate(shares)) - rate(exact)
    assert CopiedRateReduction(0.5)(Z, labels, 3).item() == pytest.approx(expected, rel=1e-5)
    # Hard memberships are labels.
    membership = torch.nn.functional.one_hot(labels, 3).float()
    assert CopiedMembershipLoss(0.5)(Z, membership).item() == pytest.approx(expected, rel=1e-5)


def test_copied_sinkhorn_is_the_scaling_it_describes():
    """Rows and columns of exp(scores / temperature) divided by their sums in turn, rows last."""
    scores = torch.rand(20, 20, generator=torch.Generator().manual_seed(0))
    scaled = (scores.double() / 0.3).exp()
    for dim in (1, 0, 1, 0, 1):
        scaled = scaled / scaled.sum(dim, keepdim=True)
    torch.testing.assert_close(CopiedSinkhorn(0.3, 5)(scores).double(), scaled, rtol=1e-5, atol=0)


def test_batches_are_of_the_seed(data):
    first, again, other = (next(iter(data.batches(30, 1, seed))) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert first[0].shape == (30, 64) and len(first[1]) == 30


def test_both_start_alike_and_learn_alike(trained):
    copied, ours = trained
    assert len(copied.losses) == len(ours.losses) == 5
    assert ours.losses[0] == pytest.approx(copied.losses[0], rel=64 * EPS32)  # the same weights, the same batch
    absolute, relative = training.largest_difference(copied, ours)
    assert relative < 1e-5
    assert absolute == pytest.approx(relative * max(map(abs, copied.losses)))
    assert copied.losses[-1] < copied.losses[0] - 1  # it trains


def test_both_classify_alike(trained, data):
    copied, ours = (mcr2.nearest_subspace_accuracy(run.network, data) for run in trained)
    assert copied == ours
    assert ours > 0.9


def test_times_are_split(trained):
    copied, ours = trained
    rest = report.rest_seconds(copied)
    assert all(0 < part < step for part, step in zip(rest, copied.step_seconds, strict=True))
    table = report.Table(copied.name, ours.name)
    table.times(copied, ours, part="loss, forward + backward")
    assert [line.split("  ")[0] for line in table.lines] == [
        "loss, forward + backward [ms]",
        "network and optimiser [ms]",
        "whole step [ms]",
        "whole training [s]",
    ]
    assert f"{sum(copied.step_seconds):.1f}" in table.lines[-1]


def test_ratio_of_a_row_is_before_over_after():
    table = report.Table("a", "b")
    table.row("speed", (3.0, 6.0), ".1f", ratio=True)
    table.row("loss", (3.0, 6.0), ".1f")
    assert [line.split() for line in table.lines] == [["speed", "3.0", "6.0", "0.5x"], ["loss", "3.0", "6.0"]]


def test_ratio_is_of_the_last_two_columns_and_a_place_can_be_empty():
    table = report.Table("other", "a name that is long", "b")
    table.row("speed", (9.0, 3.0, 6.0), ".1f", ratio=True)
    table.row("loss", (None, 3.0, 6.0), ".1f", ratio=True)
    table.row("size", (3.0, 6.0, None), ".1f", ratio=True)
    heading, speed, loss, size = table.text().splitlines()
    assert speed.split() == ["speed", "9.0", "3.0", "6.0", "0.5x"]
    assert loss.split() == ["loss", "3.0", "6.0", "0.5x"]
    assert size.split() == ["size", "3.0", "6.0"]
    ends = [heading.index(name) + len(name) for name in ("other", "long", "b ")]
    assert loss.index("3.0") + 3 == ends[1] and loss.index("6.0") + 3 == ends[2] - 1  # in their columns


def test_nearest_subspace_is_exact_on_orthogonal_subspaces():
    """Each class spans coordinates of its own, as many as the classifier keeps: its residual there is 0."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(digits.CLASSES).repeat(40)
    owner = torch.arange(digits.CLASSES).repeat_interleave(mcr2.SUBSPACE_RANK)
    features = torch.randn(len(labels), len(owner), generator=generator) * (owner == labels[:, None])
    exact = digits.Digits(features[:300], labels[:300], features[300:], labels[300:])
    assert mcr2.nearest_subspace_accuracy(torch.nn.Identity(), exact) == 1.0
    similarity = mcr2.sorted_similarity(torch.nn.Identity(), exact)
    blocks = torch.block_diag(*[torch.ones(10, 10)] * digits.CLASSES)
    assert torch.all(similarity[blocks == 0] == 0)


def test_clusterings_start_alike_and_learn_alike(data, monkeypatch):
    monkeypatch.setattr(mlc, "BATCH", 60)
    warm = mlc.warm_up(data, steps=4, seed=0)
    assert warm.losses[-1] < warm.losses[0] - 1
    copied, ours = runs = mlc.prepare(warm.network, steps=4)
    training.train(runs, mlc.view_batches(data, 4, seed=1), ignore)
    assert ours.losses[0] == pytest.approx(copied.losses[0], rel=64 * EPS32)
    assert training.largest_difference(copied, ours)[1] < 1e-5
    assert copied.losses[-1] < copied.losses[0] - 1
    assert not torch.equal(ours.network.codes.weight, ours.network.features.weight)  # the membership learns as well
    assert torch.equal(warm.network.features.weight, mlc.warm_up(data, steps=4, seed=0).network.features.weight)


def test_views_are_of_the_same_digit(data):
    """A view is nearer to its own image than to others, and no two views are equal."""
    images = data.train_images[:50]
    generator = torch.Generator().manual_seed(0)
    first, second = mlc.distorted(images, generator), mlc.distorted(images, generator)
    assert first.shape == images.shape
    assert not torch.equal(first, second)
    own = torch.linalg.vector_norm(first - images, dim=1).mean()
    others = torch.linalg.vector_norm(first - images.roll(1, 0), dim=1).mean()
    assert own < 0.8 * others


def test_accuracy_is_that_of_the_best_matching():
    labels = np.arange(10).repeat(5)
    renamed = (labels + 3) % 10
    assert mlc.accuracy(renamed, labels) == 1.0
    renamed[0] = renamed[-1]
    assert mlc.accuracy(renamed, labels) == 49 / 50


def test_spectral_clusters_are_the_blocks():
    labels = torch.arange(10).repeat(8)
    noise = torch.rand(80, 80, generator=torch.Generator().manual_seed(0))
    affinity = (labels[:, None] == labels).float() + 0.01 * (noise + noise.T)
    assert mlc.accuracy(mlc.spectral_clusters(affinity, seed=0), labels.numpy()) == 1.0


def test_transformers_see_the_patches(data):
    """Token j + 1 holds the four pixels of its patch, whatever the other pixels are."""
    network = crate.prepare(steps=1, seed=0)[1].network
    image = torch.zeros(1, 8, 8)
    image[0, 2:4, 6:8] = 1  # second row of patches, last column
    changed = (network.tokens(image.flatten(1)) != network.tokens(torch.zeros(1, 64))).any(dim=2)[0]
    assert changed.nonzero().flatten().tolist() == [1 + 4 + 3]


def test_transformers_train_and_rates_are_those_of_the_blocks(data):
    vit, ours = runs = crate.prepare(steps=6, seed=0)
    training.train(runs, data.batches(32, 6, seed=0), ignore)
    assert all(run.losses[-1] < run.losses[0] for run in runs)
    assert ours.parameters < vit.parameters / 3
    rates = crate.layer_rates(ours.network, data.test_images[:20])
    tokens = ours.network.tokens(data.test_images[:20])
    assert len(rates) == crate.DEPTH
    assert rates[0] == pytest.approx(ours.network.blocks[0].layer_coding_rate(tokens).mean().item(), rel=1e-6)


TRAINING = ("whole step [ms]", "whole training [s]")
LINES = {
    "mcr2": (
        *TRAINING,
        "loss, forward + backward",
        "test accuracy, nearest subspace",
        "largest difference",
        "time saved",
    ),
    "mlc": (
        *TRAINING,
        "clustering accuracy",
        "normalised mutual information",
        "k-means on pixels",
        "largest difference",
    ),
    "crate": (*TRAINING, "parameters", "final training loss", "test accuracy", "coding rate of the tokens in layer"),
    "grassmann": (*TRAINING, "head and its optimiser [ms]", "test accuracy", "not orthonormal", "largest difference"),
    "similarity": (
        "CKA of all pairs of layers [ms]",
        "SVCCA of all pairs of layers [ms]",
        "largest error",
        "differ by",
    ),
    "householder": (*TRAINING, "final training loss", "test accuracy", "not orthonormal", "largest difference"),
    "orthogonal": (*TRAINING, "test accuracy", "not orthogonal", "norm with weight decay", "largest difference"),
    "phm": (*TRAINING, "parameters", "latency, batch 1 [ms]", "peak memory", "test accuracy", "largest difference"),
    "sparse": (
        *TRAINING,
        "recall at 10",
        "nonzeros of a body",
        "multiply-adds of a pair",
        "sha256",
        "largest difference",
    ),
    "search": ("all 6", "one query, median [ms]", "finds its text", "certified", "bytes of a posting", "time saved"),
}


@pytest.mark.no_sanitizer
@pytest.mark.parametrize("study", command.STUDIES)
def test_study_prints_its_table_and_draws_its_panels(study, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(mlc, "BATCH", 60)
    monkeypatch.setattr(similarity, "REPEATS", 1)
    monkeypatch.setattr(search, "ROUNDS", 1)
    picture = tmp_path / "demo.png"
    assert command.main(["--study", study, "--steps", "2", "--out", str(picture)]) == 0
    printed = capsys.readouterr().out
    for line in ("2 steps", *LINES[study]):
        assert line in printed
    assert not any(line.startswith(f"{other}:") for other in set(LINES) - {study} for line in printed.splitlines())
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_picture_has_a_row_for_each_study(monkeypatch, tmp_path):
    drawn = []
    panels = tuple(lambda axes, place=place: drawn.append(place) for place in range(report.PANELS))
    outcomes = [report.Outcome("title", "setting", "text", panels)] * 2
    report.picture(tmp_path / "demo.svg", outcomes)
    assert drawn == [0, 1, 2, 0, 1, 2]


@pytest.mark.no_sanitizer
def test_command_runs_all_studies(tmp_path):
    """From a shell, as a user would; one step each, and batches of the real size."""
    picture = tmp_path / "demo.png"
    arguments = ["-m", "subspan.demo", "--steps", "1", "--threads", "1", "--out", str(picture)]
    answer = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=240)
    assert answer.returncode == 0, answer.stderr
    titles = [line.split(":")[0] for line in answer.stdout.splitlines() if line.split(":")[0] in command.STUDIES]
    assert titles == list(command.STUDIES)
    assert "1 threads" in answer.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("module", "distribution"), command.EXTRAS.items())
def test_missing_extra_is_named(module, distribution, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    assert command.main(["--steps", "1"]) == 1
    message = capsys.readouterr().err
    assert f"needs {distribution}" in message
    assert "pip install" in message


@pytest.mark.parametrize(
    "arguments",
    [
        ["--study", "linear"],
        ["--steps", "0"],
        ["--threads", "0"],
        ["--out", "picture.txt"],
        ["--out", "/nowhere/at/all.png"],
    ],
)
def test_wrong_arguments_are_refused_before_any_work(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    assert stop.value.code == 2
    assert arguments[0] in capsys.readouterr().err
