"""Study `grassmann`: classes as subspaces of the features, against a linear head and against GCR's code."""

from __future__ import annotations

import copy
from statistics import median

import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.nn.functional import cross_entropy

import subspan
from subspan.demo import report, training
from subspan.demo.copied_grassmann import CopiedGrassmannHead, CopiedGrassmannSGD
from subspan.demo.digits import CLASSES, Digits
from subspan.nn import GrassmannLinear
from subspan.optim import GrassmannSGD

# Features, dimension of a class, batch, both learning rates and a QR factorisation in every step are those of GCR's
# configuration of Swin-T; its momentum of 0.9 is not, see NOTE. Adam for the network, AdamW with warm-up there.
FEATURES = 768
DIMENSION = 8
BATCH = 128
LEARNING_RATE = 1e-3
HEAD_LEARNING_RATE = 0.1
HIDDEN = 256
STEPS = 300
LINEAR_COLOUR = "#009e73"

NOTE = """\
Same network with the same initial weights for all three heads, same initial subspaces for the two Grassmann heads, same
batches; the trainings alternate step by step, and times are medians. 'Head and its optimiser' is logits, cross entropy,
their gradients and the update of the head, by Adam for the linear one; 'ratio' is GCR / subspan. The Grassmann heads
step without momentum: GCR keeps momentum as it is while its QR factorisation may turn a basis vector around, so that
with momentum the two would not take the same steps. (GrassmannSGD transports it, or with momentum_transport=False keeps
it.) 'Not orthonormal' is the largest entry of |W_c^T W_c - I| after the training. Learning rates, batch and sizes of
the head are those of GCR's Swin-T; nothing was chosen by accuracy."""


def network() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(64, HIDDEN),
        torch.nn.GELU(),
        torch.nn.Linear(HIDDEN, FEATURES),
        torch.nn.LayerNorm(FEATURES),
    )


class Classifier(training.Run):
    """A run whose loss contains the head, with an optimiser of its own."""

    def __init__(
        self, name: str, features: torch.nn.Module, head: torch.nn.Module, optimiser: torch.optim.Optimizer, steps: int
    ) -> None:
        def loss(output: Tensor, labels: Tensor) -> Tensor:
            return cross_entropy(head(output), labels)

        super().__init__(name, loss, copy.deepcopy(features), steps, LEARNING_RATE, optimiser)
        self.classifier = head

    @torch.no_grad()
    def accuracy(self, data: Digits) -> float:
        predicted: Tensor = self.classifier(self.network(data.test_images)).argmax(dim=1)
        return (predicted == data.test_labels).double().mean().item()


def prepare(steps: int, seed: int) -> tuple[tuple[Classifier, ...], tuple[Tensor, Tensor]]:
    """Three runs, and the weights of the two Grassmann heads."""
    torch.manual_seed(seed)
    features = network()
    linear = torch.nn.Linear(FEATURES, CLASSES)
    ours = GrassmannLinear(FEATURES, CLASSES, DIMENSION)
    copied = CopiedGrassmannHead(FEATURES, CLASSES, DIMENSION)
    copied.fc.load_state_dict(ours.state_dict())
    steps_of = {
        "linear": (linear, torch.optim.Adam(linear.parameters(), lr=LEARNING_RATE)),
        "GCR, as copied": (copied, CopiedGrassmannSGD(copied.parameters(), HEAD_LEARNING_RATE, DIMENSION)),
        "subspan": (ours, GrassmannSGD(ours.parameters(), lr=HEAD_LEARNING_RATE, k=DIMENSION)),
    }
    runs = (Classifier(name, features, *head, steps) for name, head in steps_of.items())
    return tuple(runs), (copied.fc.weight, ours.weight)


def bases(weight: Tensor) -> Tensor:
    """One basis for each class, as columns: (classes, n, k)."""
    columns: Tensor = weight.detach().unflatten(0, (CLASSES, DIMENSION)).mT
    return columns


def deviation(weight: Tensor) -> float:
    """Largest entry of |W_c^T W_c - I|, in float64."""
    W = bases(weight).double()
    return (W.mT @ W - torch.eye(DIMENSION, dtype=W.dtype)).abs().max().item()


def study(data: Digits, steps: int, seed: int) -> report.Outcome:
    runs, weights = prepare(steps, seed)
    _, copied, ours = runs
    with report.progress("grassmann", steps) as progress:
        training.train(runs, data.batches(BATCH, steps, seed), progress)
    accuracies = [run.accuracy(data) for run in runs]
    subspaces = bases(weights[1])
    overlaps = subspan.subspace_similarity(subspaces, subspaces, pairwise=True)

    table = report.Table(*(run.name for run in runs))
    table.times(*runs, part="head and its optimiser")
    table.row("final training loss", (run.losses[-1] for run in runs), ".5f")
    table.row("test accuracy", accuracies, ".1%")
    table.row("not orthonormal", (None, *map(deviation, weights)), ".1e")
    return report.Outcome(
        title=f"grassmann: classes as subspaces, on {len(data.train_labels)} handwritten digits with labels",
        setting=f"batch {BATCH}, {FEATURES} features, {CLASSES} classes of {DIMENSION} dimensions, {steps} steps",
        text="\n".join([table.text(), "", report.agreement(copied, ours), "", NOTE]),
        panels=(
            lambda axes: draw_losses(axes, runs),
            lambda axes: draw_heads(axes, runs, accuracies),
            lambda axes: draw_overlaps(axes, overlaps),
        ),
    )


def draw_losses(axes: Axes, runs: tuple[Classifier, ...]) -> None:
    linear, copied, ours = runs
    axes.plot(range(1, len(linear.losses) + 1), linear.losses, color=LINEAR_COLOUR, label=linear.name)
    report.draw_losses(axes, copied, ours, "Training loss, same of both Grassmann heads", "cross entropy")
    axes.set(yscale="log")


def draw_heads(axes: Axes, runs: tuple[Classifier, ...], accuracies: list[float]) -> None:
    times = [1e3 * median(run.loss_seconds) for run in runs]
    colours = [LINEAR_COLOUR, report.BEFORE_COLOUR, report.SUBSPAN_COLOUR]
    axes.bar([run.name for run in runs], times, color=colours, width=0.6)
    for place, (milliseconds, share) in enumerate(zip(times, accuracies, strict=True)):
        label = f"{milliseconds:.2f} ms\n{share:.1%}"
        axes.annotate(label, (place, milliseconds), ha="center", va="bottom", xytext=(0, 3), textcoords="offset points")
    axes.set(title="Head: time in a step, and test accuracy", ylabel="ms", ylim=(0, 1.25 * max(times)))


def draw_overlaps(axes: Axes, overlaps: Tensor) -> None:
    """How much of each class subspace lies in each other one, without the diagonal of ones."""
    others = overlaps.clone().fill_diagonal_(torch.nan)
    largest = others.nan_to_num().max().item()
    chance = DIMENSION / FEATURES
    report.draw_blocks(axes, others, largest, rf"Class overlap, mean $\cos^2$ (chance {chance:.3f})")
    axes.set(xticks=range(CLASSES), yticks=range(CLASSES), xlabel="digit", ylabel="digit")
