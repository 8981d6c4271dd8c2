"""Study `mcr2`: a supervised representation by maximal coding rate reduction."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from subspan.demo import report, training
from subspan.demo.copied_losses import CopiedRateReduction
from subspan.demo.digits import CLASSES, Digits
from subspan.nn import MaximalCodingRateReduction

# Batch, features, classes and eps are the supervised configuration of the MCR2 repository; the network is scaled to the
# data. GELU and a decaying rate, because a kink or a large last step would amplify the rounding in which the two runs
# differ, and the two curves could not be compared to six digits.
BATCH = 1000
FEATURES = 128
EPS2 = 0.5
SUBSPACE_RANK = 10
STEPS = 300

NOTE = """\
Times of a step are medians; the trainings alternate step by step, same batches, same initial weights.
'As copied' keeps the published code's dense n x n memberships and loop over classes, but not the second
evaluation it makes for its log. In a clone, bench/run.py compares with the best plain PyTorch as well."""


class UnitNorm(torch.nn.Module):
    """Projects each row onto the unit sphere."""

    def forward(self, rows: Tensor) -> Tensor:
        return torch.nn.functional.normalize(rows, dim=-1)


def small_network() -> torch.nn.Module:
    """Small enough for 8x8 pixels, so that the loss is much of a step; the rest of it is reported as well."""
    return torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, FEATURES), UnitNorm())


def prepare(steps: int, seed: int) -> tuple[training.Run, training.Run]:
    """Two runs that start from the same weights and differ in the implementation of the loss only."""
    torch.manual_seed(seed)
    network = small_network()
    copied = CopiedRateReduction(EPS2)
    ours = MaximalCodingRateReduction(eps=EPS2)
    return (
        training.Run("PyTorch, as copied", lambda z, y: copied(z, y, CLASSES), copy.deepcopy(network), steps),
        training.Run("subspan", lambda z, y: ours(z, y, CLASSES)[0], copy.deepcopy(network), steps),
    )


def study(data: Digits, steps: int, seed: int) -> report.Outcome:
    copied, ours = runs = prepare(steps, seed)
    with report.progress("mcr2", steps) as progress:
        training.train(runs, data.batches(BATCH, steps, seed), progress)
    similarity = sorted_similarity(ours.network, data)
    table = report.Table(copied.name, ours.name)
    table.times(copied, ours, part="loss, forward + backward")
    table.row("final loss", (copied.losses[-1], ours.losses[-1]), ".5f")
    accuracies = (nearest_subspace_accuracy(run.network, data) for run in runs)
    table.row("test accuracy, nearest subspace", accuracies, ".1%")
    return report.Outcome(
        title=f"mcr2: maximal coding rate reduction on {len(data.train_labels)} handwritten digits with labels",
        setting=f"batch {BATCH}, {FEATURES} features, {CLASSES} classes, eps {EPS2}, {steps} steps",
        text="\n".join([table.text(), "", report.agreement(copied, ours), "", NOTE]),
        panels=(
            lambda axes: report.draw_losses(axes, copied, ours, "Same loss", r"$R_c - R$"),
            lambda axes: report.draw_step_times(axes, copied, ours),
            lambda axes: report.draw_blocks(axes, similarity, 1.0, r"$|ZZ^\top|$ of the test digits, by class"),
        ),
    )


@torch.no_grad()
def nearest_subspace_accuracy(network: Callable[[Tensor], Tensor], data: Digits) -> float:
    """Share of test digits whose nearest class subspace is the right one, the classifier of the MCR2 paper.

    Class j is the affine subspace through the mean of its training features, spanned by their leading principal
    directions; a digit goes to the class of least residual.
    """
    train_features, test_features = network(data.train_images), network(data.test_images)
    residuals = []
    for label in range(CLASSES):
        members = train_features[data.train_labels == label]
        mean = members.mean(dim=0)
        _, _, directions = torch.linalg.svd(members - mean, full_matrices=False)
        centred = test_features - mean
        basis = directions[:SUBSPACE_RANK]
        residuals.append(torch.linalg.vector_norm(centred - centred @ basis.T @ basis, dim=1))
    predicted = torch.stack(residuals).argmin(dim=0)
    return (predicted == data.test_labels).double().mean().item()


@torch.no_grad()
def sorted_similarity(network: Callable[[Tensor], Tensor], data: Digits) -> Tensor:
    """|Z Z^T| of the test features, sorted by class: block diagonal when classes span orthogonal subspaces."""
    order = data.test_labels.argsort(stable=True)
    features = network(data.test_images[order])
    return (features @ features.T).abs()
