"""Study `phm`: a transformer block of hypercomplex layers, against dense layers and against the published formula."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from subspan.demo import memory, report, training
from subspan.demo.copied_phm import CopiedPHMLinear
from subspan.demo.digits import CLASSES, Digits
from subspan.nn import PHMLinear

# Width and n are those of PHM transformers, which have these layers in the same six places.
SIDE = 8
WIDTH = 512
HIDDEN = 1024
HEADS = 8
N = 4
BATCH = 64
STEPS = 100
REPEATS = 30
DENSE_COLOUR = "#009e73"

NOTE = """\
A digit is a sequence of its 8 rows of 8 pixels. Query, key, value, output and both layers of the perceptron are dense
or hypercomplex with a learned rule; all else is the same for all. Both hypercomplex networks have the same initial
weights; all have the same batches and learning rate, and nothing was chosen by accuracy. The trainings alternate step
by step, and times are medians. The copied layer adds n Kronecker products of the size of its weight in every pass, as
the published code does; subspan forms neither these nor the weight. 'Latency' is the forward pass of one digit without
gradients, 'peak memory' what the process takes during a step beyond what it has before. Hypercomplex layers with a
learned rule save weights and what depends on them, not arithmetic: next to dense ones they gain where weights are read
for few rows, and take about as long in large batches. 'Ratio' is copied / subspan."""

Layer = Callable[[int, int], torch.nn.Module]


class Block(torch.nn.Module):
    """Attention and a perceptron, each on normalised tokens and added to them."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(WIDTH) for _ in range(2))
        self.query, self.key, self.value, self.output = (layer(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = layer(WIDTH, HIDDEN), layer(HIDDEN, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norms[0](tokens)
        heads = (part(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        tokens = tokens + self.output(scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        hidden = torch.nn.functional.gelu(self.up(self.norms[1](tokens)))
        result: Tensor = tokens + self.down(hidden)
        return result


class Classifier(torch.nn.Module):
    """Rows of pixels, through a block, to class scores of their mean."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(SIDE, WIDTH)
        self.positions = torch.nn.Parameter(0.1 * torch.randn(SIDE, WIDTH))
        self.head = torch.nn.Sequential(torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, CLASSES))
        self.block = Block(layer)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images.unflatten(-1, (SIDE, SIDE))) + self.positions
        scores: Tensor = self.head(self.block(tokens).mean(1))
        return scores


LAYERS: dict[str, Layer] = {
    "dense": torch.nn.Linear,
    "PHM, as copied": lambda inputs, outputs: CopiedPHMLinear(inputs, outputs, N),
    "subspan": lambda inputs, outputs: PHMLinear(inputs, outputs, N),
}


def prepare(steps: int, seed: int) -> tuple[training.Run, training.Run, training.Run]:
    networks = []
    for layer in LAYERS.values():
        torch.manual_seed(seed)
        networks.append(Classifier(layer))
    networks[1].load_state_dict(networks[2].state_dict())
    dense, copied, ours = (
        training.Run(name, cross_entropy, network, steps) for name, network in zip(LAYERS, networks, strict=True)
    )
    return dense, copied, ours


@torch.no_grad()
def latencies(runs: tuple[training.Run, ...], images: Tensor) -> list[float]:
    """Median seconds of a forward pass of one image, the networks in turn."""
    seconds: list[list[float]] = [[] for _ in runs]
    for image in images[:REPEATS]:
        for run, of_run in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run.network(image[None])
            of_run.append(time.perf_counter() - start)
    return [median(of_run) for of_run in seconds]


def step_bytes(run: training.Run, images: Tensor, labels: Tensor) -> int | None:
    """Memory of a forward and backward pass, gradients included."""

    def step() -> None:
        cross_entropy(run.network(images), labels).backward()

    step()  # buffers that stay
    run.network.zero_grad()
    taken = memory.extra_bytes(step)
    run.network.zero_grad()
    return taken


@torch.no_grad()
def accuracy(run: training.Run, data: Digits) -> float:
    predicted: Tensor = run.network(data.test_images).argmax(dim=1)
    return (predicted == data.test_labels).double().mean().item()


def study(data: Digits, steps: int, seed: int) -> report.Outcome:
    runs = prepare(steps, seed)
    _, copied, ours = runs
    with report.progress("phm", steps) as progress:
        training.train(runs, data.batches(BATCH, steps, seed), progress)
    waits = latencies(runs, data.test_images)
    taken = [step_bytes(run, data.train_images[:BATCH], data.train_labels[:BATCH]) for run in runs]

    table = report.Table(*(run.name for run in runs))
    table.row("parameters", (run.parameters for run in runs), ",d", ratio=True)
    table.times(*runs)
    table.row("latency, batch 1 [ms]", (1e3 * wait for wait in waits), ".3f", ratio=True)
    table.row("peak memory of a step [MB]", (None if m is None else m / 1e6 for m in taken), ".1f", ratio=True)
    table.row("final training loss", (run.losses[-1] for run in runs), ".5f")
    table.row("test accuracy", (accuracy(run, data) for run in runs), ".1%")
    return report.Outcome(
        title=f"phm: a transformer of hypercomplex layers on {len(data.train_labels)} handwritten digits, row by row",
        setting=f"batch {BATCH}, {SIDE} tokens, width {WIDTH}, {HIDDEN} hidden, {HEADS} heads, n = {N}, {steps} steps",
        text="\n".join([table.text(), "", report.agreement(copied, ours), "", NOTE]),
        panels=(
            lambda axes: draw_losses(axes, runs),
            lambda axes: draw_times(axes, runs, waits),
            lambda axes: draw_sizes(axes, runs, taken),
        ),
    )


def draw_losses(axes: Axes, runs: tuple[training.Run, ...]) -> None:
    dense, copied, ours = runs
    axes.plot(range(1, len(dense.losses) + 1), dense.losses, color=DENSE_COLOUR, label=dense.name)
    report.draw_losses(axes, copied, ours, "Training loss, same of both PHM networks", "cross entropy")


def draw_times(axes: Axes, runs: tuple[training.Run, ...], waits: list[float]) -> None:
    steps = [1e3 * median(run.step_seconds) for run in runs]
    groups = {"training step": steps, "latency, batch 1": [1e3 * wait for wait in waits]}
    draw_groups(axes, runs, groups, "{:.3g} ms")
    axes.set(title="Times", ylabel="of dense layers")


def draw_sizes(axes: Axes, runs: tuple[training.Run, ...], taken: list[int | None]) -> None:
    groups = {"weights": [4e-6 * run.parameters for run in runs]}
    known = [1e-6 * m for m in taken if m is not None]
    if len(known) == len(runs):
        groups["peak of a step"] = known
    draw_groups(axes, runs, groups, "{:.3g} MB")
    axes.set(title="Memory", ylabel="of dense layers")


def draw_groups(axes: Axes, runs: tuple[training.Run, ...], groups: dict[str, list[float]], label: str) -> None:
    """Bars for each network in every group, in parts of the first network's."""
    colours = (DENSE_COLOUR, report.BEFORE_COLOUR, report.SUBSPAN_COLOUR)
    highest = 1.0
    for index, (run, colour) in enumerate(zip(runs, colours, strict=True)):
        places = [group + 0.27 * (index - 1) for group in range(len(groups))]
        parts = [values[index] / max(values[0], 1e-9) for values in groups.values()]
        axes.bar(places, parts, color=colour, width=0.25, label=run.name)
        for place, part, values in zip(places, parts, groups.values(), strict=True):
            text = label.format(values[index])
            axes.annotate(
                text, (place, part), ha="center", va="bottom", xytext=(0, 2), textcoords="offset points", fontsize=7
            )
        highest = max(highest, *parts)
    axes.set(xticks=range(len(groups)), ylim=(0, 1.3 * highest))
    axes.set_xticklabels(list(groups))
    axes.legend(frameon=False, fontsize=8)
