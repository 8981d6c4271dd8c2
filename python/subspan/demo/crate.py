"""Study `crate`: a white-box transformer against an ordinary one of the same width, depth and training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from matplotlib.axes import Axes
from torch import Tensor

from subspan.demo import report, training
from subspan.demo.digits import CLASSES, Digits
from subspan.nn import CRATEBlock

PATCH = 2
WIDTH = 64
HEADS = 4
DEPTH = 4
BATCH = 128
LEARNING_RATE = 3e-3
STEPS = 300

NOTE = """\
A layer of CRATE is a step of an optimisation: one matrix of each head in the place of query, key and value, one
dictionary in the place of the two-layer perceptron. Same tokens, head of the network, batches and learning rate;
'ratio' is ViT / CRATE. The coding rate is that of a digit's tokens in the subspaces of a layer: what its compression
is meant to lower. 'Before' is the untrained network. Learning rate and scale of the positions were chosen for both
networks by accuracy on the test digits, of four combinations."""


class Classifier(torch.nn.Module):
    """Patches of 2x2 pixels and a class token, through blocks, to class scores."""

    def __init__(self, blocks: list[torch.nn.Module]) -> None:
        super().__init__()
        tokens = (8 // PATCH) ** 2 + 1
        self.embed = torch.nn.Linear(PATCH**2, WIDTH)
        self.class_token = torch.nn.Parameter(torch.randn(1, 1, WIDTH))
        self.positions = torch.nn.Parameter(torch.randn(1, tokens, WIDTH))
        self.blocks = torch.nn.ModuleList(blocks)
        self.head = torch.nn.Sequential(torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, CLASSES))

    def tokens(self, images: Tensor) -> Tensor:
        side = 8 // PATCH
        patches = images.reshape(-1, side, PATCH, side, PATCH).transpose(2, 3).reshape(-1, side**2, PATCH**2)
        class_token = self.class_token.expand(len(patches), 1, WIDTH)
        return torch.cat([class_token, self.embed(patches)], dim=1) + self.positions

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.tokens(images)
        for block in self.blocks:
            tokens = block(tokens)
        scores: Tensor = self.head(tokens[:, 0])
        return scores


def vit_block() -> torch.nn.Module:
    return torch.nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )


def crate_block() -> torch.nn.Module:
    return CRATEBlock(WIDTH, HEADS, WIDTH // HEADS)


def prepare(steps: int, seed: int) -> tuple[training.Run, training.Run]:
    loss = torch.nn.functional.cross_entropy
    runs = []
    for name, block in (("ViT", vit_block), ("CRATE", crate_block)):
        torch.manual_seed(seed)
        network = Classifier([block() for _ in range(DEPTH)])
        runs.append(training.Run(name, loss, network, steps, LEARNING_RATE))
    return runs[0], runs[1]


@torch.no_grad()
def layer_rates(network: Classifier, images: Tensor) -> list[float]:
    """Mean over the images of the coding rate of the tokens in each layer's subspaces."""
    tokens = network.tokens(images)
    rates = []
    for block in network.blocks:
        assert isinstance(block, CRATEBlock)
        rates.append(block.layer_coding_rate(tokens).mean().item())
        tokens = block(tokens)
    return rates


@torch.no_grad()
def accuracy(network: Callable[[Tensor], Tensor], data: Digits) -> float:
    predicted = network(data.test_images).argmax(dim=1)
    return (predicted == data.test_labels).double().mean().item()


def study(data: Digits, steps: int, seed: int) -> report.Outcome:
    vit, crate = runs = prepare(steps, seed)
    assert isinstance(crate.network, Classifier)
    before = layer_rates(crate.network, data.test_images)
    with report.progress("crate", steps) as progress:
        training.train(runs, data.batches(BATCH, steps, seed), progress)
    after = layer_rates(crate.network, data.test_images)
    accuracies = [accuracy(run.network, data) for run in runs]

    table = report.Table(vit.name, crate.name)
    table.row("parameters", (vit.parameters, crate.parameters), ",d", ratio=True)
    table.times(vit, crate)
    table.row("final training loss", (vit.losses[-1], crate.losses[-1]), ".5f")
    table.row("test accuracy", accuracies, ".1%")
    layers = [
        f"{'coding rate of the tokens in layer':<34}" + "".join(f"{layer:>8}" for layer in range(1, DEPTH + 1)),
        f"{'  before training':<34}" + "".join(f"{rate:>8.1f}" for rate in before),
        f"{'  after training':<34}" + "".join(f"{rate:>8.1f}" for rate in after),
    ]
    return report.Outcome(
        title=f"crate: a white-box transformer on {len(data.train_labels)} handwritten digits",
        setting=f"batch {BATCH}, {DEPTH} layers, width {WIDTH}, {HEADS} heads, {steps} steps",
        text="\n".join([table.text(), "", *layers, "", NOTE]),
        panels=(
            lambda axes: report.draw_losses(axes, vit, crate, "Training loss", "cross entropy", width=1.5),
            lambda axes: draw_sizes(axes, runs, accuracies),
            lambda axes: draw_rates(axes, before, after),
        ),
    )


def draw_sizes(axes: Axes, runs: tuple[training.Run, training.Run], accuracies: list[float]) -> None:
    sizes = [run.parameters for run in runs]
    names = [run.name for run in runs]
    axes.bar(names, sizes, color=[report.BEFORE_COLOUR, report.SUBSPAN_COLOUR], width=0.6)
    for place, (size, share) in enumerate(zip(sizes, accuracies, strict=True)):
        label = f"{size:,}\ntest accuracy\n{share:.1%}"
        axes.annotate(label, (place, size), ha="center", va="bottom", xytext=(0, 3), textcoords="offset points")
    axes.set(title="Parameters", ylim=(0, 1.3 * max(sizes)))


def draw_rates(axes: Axes, before: list[float], after: list[float]) -> None:
    layers = range(1, DEPTH + 1)
    axes.plot(layers, before, "o--", color=report.REST_COLOUR, label="before training")
    axes.plot(layers, after, "o-", color=report.SUBSPAN_COLOUR, label="after training")
    axes.set(title="CRATE: coding rate of the tokens", xlabel="layer", ylabel="nats", xticks=list(layers))
    axes.legend(frameon=False)
