"""Study `orthogonal`: a network whose hidden layers are all orthogonal, against torch's parametrisation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise

import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrizations

from subspan.demo import report, training
from subspan.demo.digits import CLASSES, Digits
from subspan.nn import orthogonal

WIDTHS = (64, 256, 256, 256, 256)
BATCH = 128
STEPS = 150
LEARNING_RATE = 5e-3
DECAYED_STEPS = 20
WEIGHT_DECAY = 1e-2

NOTE = """\
Same network with the same initial weights for both, loaded from torch's checkpoint, and same batches; the trainings
alternate step by step, and times are medians. Every hidden layer is orthogonal, with the same map for both: reflectors
for the rectangular layer, Cayley's transform for the square ones, which is the fastest of torch's maps. The bases are
buffers of both. 'Not orthogonal' is the largest entry of |W^T W - I| of any hidden layer after the training. 'Norm with
weight decay' is that of the rectangular weight, 8 at first, when a copy is trained on for a step by SGD with weight
decay: torch keeps signs in the parameter, and converts them to integers."""

Parametrize = Callable[..., torch.nn.Module]


def network(parametrize: Parametrize) -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    for inputs, outputs in pairwise(WIDTHS):
        kind = "cayley" if inputs == outputs else "householder"
        layers += [parametrize(torch.nn.Linear(inputs, outputs), "weight", kind), torch.nn.GELU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(WIDTHS[-1], CLASSES))


def prepare(steps: int, seed: int) -> tuple[training.Run, training.Run]:
    torch.manual_seed(seed)
    before, after = network(parametrizations.orthogonal), network(orthogonal)
    after.load_state_dict(before.state_dict())
    return (
        training.Run("torch's orthogonal", cross_entropy, before, steps, LEARNING_RATE),
        training.Run("subspan", cross_entropy, after, steps, LEARNING_RATE),
    )


def hidden_weights(network: torch.nn.Module) -> list[Tensor]:
    """In float64."""
    layers = [layer for layer in network.children() if isinstance(layer, torch.nn.Linear)]
    return [layer.weight.detach().double() for layer in layers[:-1]]


def deviation(run: training.Run) -> float:
    grams = [weight.mT @ weight for weight in hidden_weights(run.network)]
    return max((gram - torch.eye(len(gram), dtype=gram.dtype)).abs().max().item() for gram in grams)


def decayed_norms(run: training.Run, data: Digits) -> list[float]:
    """Of the first hidden weight, when a copy of the network is trained on by SGD with weight decay."""
    network = copy.deepcopy(run.network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, weight_decay=WEIGHT_DECAY)
    norms = []
    for images, labels in data.batches(BATCH, DECAYED_STEPS, seed=0):
        norms.append(hidden_weights(network)[0].norm().item())
        optimizer.zero_grad()
        cross_entropy(network(images), labels).backward()
        optimizer.step()
    return [*norms, hidden_weights(network)[0].norm().item()]


@torch.no_grad()
def accuracy(run: training.Run, data: Digits) -> float:
    predicted: Tensor = run.network(data.test_images).argmax(dim=1)
    return (predicted == data.test_labels).double().mean().item()


def study(data: Digits, steps: int, seed: int) -> report.Outcome:
    theirs, ours = runs = prepare(steps, seed)
    with report.progress("orthogonal", steps) as progress:
        training.train(runs, data.batches(BATCH, steps, seed), progress)
    norms = [decayed_norms(run, data) for run in runs]

    table = report.Table(*(run.name for run in runs))
    table.times(*runs)
    table.row("final training loss", (run.losses[-1] for run in runs), ".5f")
    table.row("test accuracy", (accuracy(run, data) for run in runs), ".1%")
    table.row("not orthogonal", map(deviation, runs), ".1e")
    table.row("norm with weight decay", (of_run[1] for of_run in norms), ".3f")
    return report.Outcome(
        title=f"orthogonal: a network of orthogonal layers, on {len(data.train_labels)} handwritten digits",
        setting=f"batch {BATCH}, widths {' '.join(map(str, WIDTHS))}, {steps} steps",
        text="\n".join([table.text(), "", report.agreement(theirs, ours), "", NOTE]),
        panels=(
            lambda axes: report.draw_losses(axes, theirs, ours, "Training loss, same of both", "cross entropy"),
            lambda axes: report.draw_step_times(axes, theirs, ours),
            lambda axes: draw_norms(axes, runs, norms),
        ),
    )


def draw_norms(axes: Axes, runs: tuple[training.Run, ...], norms: list[list[float]]) -> None:
    colours = (report.BEFORE_COLOUR, report.SUBSPAN_COLOUR)
    for run, colour, of_run in zip(runs, colours, norms, strict=True):
        axes.plot(of_run, color=colour, label=run.name, linewidth=2)
    axes.set(title="Norm of the rectangular weight", xlabel="step of SGD with weight decay", ylabel=r"$\|W\|_F$")
    axes.set(ylim=(-0.5, 1.2 * max(map(max, norms))))
    axes.legend(frameon=False, loc="center right")
