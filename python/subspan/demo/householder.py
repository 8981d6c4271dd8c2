"""Study `householder`: a projector of low rank with orthonormal factors, against HouseholderGAN's code."""

from __future__ import annotations

import copy

import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

import subspan
from subspan.demo import report, training
from subspan.demo.copied_householder import CopiedProjector
from subspan.demo.digits import CLASSES, Digits

# Features and rank are those of HouseholderGAN's projectors.
FEATURES = 512
RANK = 10
BATCH = 128
STEPS = 60

NOTE = """\
Same network with the same initial weights for both, same batches; the trainings alternate step by step, and times are
medians. Each projector is W = U[:, :10] diag(s) V[:10], where U and V are products of 512 dense reflectors of length
512. The copied code forms both products whole, in blocks of four reflectors one after the other, as HouseholderGAN
does; subspan applies the chains to the ten columns and rows that are used, in the compact WY form, and its gradient
stores no product in between. Both train all reflectors. 'Not orthonormal' is the largest entry of |U^T U - I| and
|V V^T - I| after the training."""


class Projector(torch.nn.Module):
    """The same map from the same parameters."""

    def __init__(self, features: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.U = torch.nn.Parameter(torch.randn(features, features))
        self.V = torch.nn.Parameter(torch.randn(features, features))
        self.scales = torch.nn.Parameter(torch.ones(rank))

    def factors(self) -> tuple[Tensor, Tensor]:
        """U[:, :r], and V[:r], which is the first rows of the identity times V."""
        rows = torch.eye(self.rank, len(self.V), dtype=self.V.dtype)
        left: Tensor = subspan.householder_product(self.U, columns=self.rank)
        right: Tensor = subspan.householder_apply(self.V, rows, side="right")
        return left, right

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.factors()
        return linear(x, left * self.scales @ right)


def network(projector: torch.nn.Module) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(64, FEATURES), torch.nn.GELU(), projector, torch.nn.Linear(FEATURES, CLASSES)
    )


def prepare(steps: int, seed: int) -> tuple[training.Run, training.Run]:
    torch.manual_seed(seed)
    before = network(CopiedProjector(FEATURES, RANK))
    after = network(Projector(FEATURES, RANK))
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    return (
        training.Run("HouseholderGAN, copied", cross_entropy, before, steps),
        training.Run("subspan", cross_entropy, after, steps),
    )


def factors(run: training.Run) -> tuple[Tensor, Tensor]:
    """U[:, :r] and the transpose of V[:r], in float64."""
    projector: CopiedProjector | Projector = run.network[2]  # type: ignore[index]
    with torch.no_grad():
        left, right = projector.factors()
    return left.double(), right.mT.double()


def deviation(run: training.Run) -> float:
    identity = torch.eye(RANK, dtype=torch.float64)
    return max((basis.mT @ basis - identity).abs().max().item() for basis in factors(run))


@torch.no_grad()
def accuracy(run: training.Run, data: Digits) -> float:
    predicted: Tensor = run.network(data.test_images).argmax(dim=1)
    return (predicted == data.test_labels).double().mean().item()


def study(data: Digits, steps: int, seed: int) -> report.Outcome:
    copied, ours = runs = prepare(steps, seed)
    start = factors(ours)[0]
    with report.progress("householder", steps) as progress:
        training.train(runs, data.batches(BATCH, steps, seed), progress)
    accuracies = [accuracy(run, data) for run in runs]
    overlap = (start.mT @ factors(ours)[0]).square()

    table = report.Table(*(run.name for run in runs))
    table.times(*runs)
    table.row("final training loss", (run.losses[-1] for run in runs), ".5f")
    table.row("test accuracy", accuracies, ".1%")
    table.row("not orthonormal", map(deviation, runs), ".1e")
    return report.Outcome(
        title=f"householder: a projector with orthonormal factors, on {len(data.train_labels)} handwritten digits",
        setting=f"batch {BATCH}, {FEATURES} features, rank {RANK}, 2 chains of {FEATURES} reflectors, {steps} steps",
        text="\n".join([table.text(), "", report.agreement(copied, ours), "", NOTE]),
        panels=(
            lambda axes: report.draw_losses(axes, copied, ours, "Training loss, same of both", "cross entropy"),
            lambda axes: report.draw_step_times(axes, copied, ours),
            lambda axes: draw_overlap(axes, overlap),
        ),
    )


def draw_overlap(axes: Axes, overlap: Tensor) -> None:
    report.draw_blocks(axes, overlap, 1.0, r"Directions before (rows) and after, $\cos^2$")
    axes.set(xlabel="after", ylabel="before")
