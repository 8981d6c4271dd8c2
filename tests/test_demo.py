"""`python -m subspan.demo`: both trainings agree, the classifier is right, and the command keeps its promises."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from subspan.demo import __main__ as command  # noqa: E402
from subspan.demo import digits, report  # noqa: E402
from subspan.demo.copied_loss import CopiedRateReduction  # noqa: E402

EPS32 = float(np.finfo(np.float32).eps)


@pytest.fixture(scope="module")
def trained() -> tuple[digits.Digits, tuple[digits.Run, digits.Run]]:
    data = digits.load(seed=3)
    runs = digits.prepare(steps=5, seed=3)
    digits.train(data, runs, seed=3, progress=lambda _: None)
    return data, runs


def test_copied_loss_is_the_formula():
    generator = torch.Generator().manual_seed(0)
    Z = torch.nn.functional.normalize(torch.randn(60, 12, generator=generator), dim=1)
    labels = torch.randint(0, 3, (60,), generator=generator)
    exact = Z.double().numpy()

    def rate(rows: np.ndarray) -> float:
        return 0.5 * np.linalg.slogdet(np.eye(12) + 12 / (len(rows) * 0.5) * rows.T @ rows)[1]

    expected = sum((labels == j).double().mean().item() * rate(exact[labels == j]) for j in range(3)) - rate(exact)
    assert CopiedRateReduction(0.5)(Z, labels, 3).item() == pytest.approx(expected, rel=1e-5)


def test_both_start_alike_and_learn_alike(trained):
    _, (copied, ours) = trained
    assert len(copied.losses) == len(ours.losses) == 5
    assert ours.losses[0] == pytest.approx(copied.losses[0], rel=64 * EPS32)  # the same weights, the same batch
    absolute, relative = report.largest_difference(copied, ours)
    assert relative < 1e-5
    assert absolute == pytest.approx(relative * max(map(abs, copied.losses)))
    assert copied.losses[-1] < copied.losses[0] - 1  # it trains


def test_both_classify_alike(trained):
    data, runs = trained
    copied, ours = (digits.nearest_subspace_accuracy(run.network, data) for run in runs)
    assert copied == ours
    assert ours > 0.9


def test_times_are_split(trained):
    _, (copied, _) = trained
    summary = report.summarise(copied, accuracy=0.5)
    assert 0 < summary.loss_ms < summary.step_ms
    assert 0 < summary.rest_ms < summary.step_ms
    assert summary.total_s == pytest.approx(sum(copied.step_seconds))


def test_nearest_subspace_is_exact_on_orthogonal_subspaces():
    """Each class spans coordinates of its own, as many as the classifier keeps: its residual there is 0."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(digits.CLASSES).repeat(40)
    owner = torch.arange(digits.CLASSES).repeat_interleave(digits.SUBSPACE_RANK)
    features = torch.randn(len(labels), len(owner), generator=generator) * (owner == labels[:, None])
    data = digits.Digits(features[:300], labels[:300], features[300:], labels[300:])
    assert digits.nearest_subspace_accuracy(torch.nn.Identity(), data) == 1.0
    similarity = digits.sorted_similarity(torch.nn.Identity(), data)
    blocks = torch.block_diag(*[torch.ones(10, 10)] * digits.CLASSES)
    assert torch.all(similarity[blocks == 0] == 0)


@pytest.mark.no_sanitizer
def test_command_prints_table_and_writes_picture(tmp_path):
    picture = tmp_path / "demo.png"
    arguments = ["-m", "subspan.demo", "--steps", "3", "--threads", "1", "--out", str(picture)]
    answer = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    for fact in ("whole step", "final loss", "test accuracy", "largest difference", "time saved", "1 threads"):
        assert fact in answer.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("module", "distribution"), command.EXTRAS.items())
def test_missing_extra_is_named(module, distribution, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    assert command.main(["--steps", "1"]) == 1
    message = capsys.readouterr().err
    assert f"needs {distribution}" in message
    assert "pip install" in message


@pytest.mark.parametrize(
    "arguments", [["--steps", "0"], ["--threads", "0"], ["--out", "picture.txt"], ["--out", "/nowhere/at/all.png"]]
)
def test_wrong_arguments_are_refused_before_any_work(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    assert stop.value.code == 2
    assert arguments[0] in capsys.readouterr().err
