"""Study `similarity`: which layers of two networks, trained apart from each other, learned the same."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median

import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

import subspan
from subspan.demo import copied_similarity, report, training
from subspan.demo.digits import CLASSES, Digits

WIDTH = 256
DEPTH = 6
BATCH = 128
RANK = 10  # of SVCCA, as in platonic-rep
REPEATS = 3  # of the copied code, which takes a second or more; the median counts
STEPS = 300
NAMES = ("PyTorch, as copied", "subspan")

Layers = list[Tensor]
Similarity = Callable[[Layers, Layers], Tensor]

NOTE = """\
Two networks, each with initial weights and batches of its own, compared on the {samples} test digits; features have
unit length, as in platonic-rep. 'As copied' takes each of the {pairs} pairs of layers by itself: for CKA three traces
of products with a {samples} x {samples} centring matrix, for SVCCA two randomised decompositions and scikit-learn's
iterative CCA. subspan factors each layer once. Times are medians of {repeats} calls, alternating. Errors are largest
differences from float64 values of the definitions; that of the copied SVCCA comes from its random decomposition.
Nothing was chosen by test accuracy."""


class Network(torch.nn.Module):
    """Layers of equal width and a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(inputs, outputs), torch.nn.GELU())
            for inputs, outputs in pairwise([64, *[WIDTH] * DEPTH])
        )
        self.classifier = torch.nn.Linear(WIDTH, CLASSES)

    def layers(self, images: Tensor) -> Layers:
        """The output of each layer, (n, width)."""
        outputs = []
        for layer in self.hidden:
            images = layer(images)
            outputs.append(images)
        return outputs

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.layers(images)[-1])
        return scores


def train(data: Digits, steps: int, seeds: tuple[int, int], progress: Callable[[], object]) -> list[Network]:
    networks = []
    for seed in seeds:
        torch.manual_seed(seed)
        network = Network()
        run = training.Run(f"seed {seed}", cross_entropy, network, steps)
        training.train((run,), data.batches(BATCH, steps, seed), progress)
        networks.append(network)
    return networks


@torch.no_grad()
def accuracy(network: Network, data: Digits) -> float:
    predicted: Tensor = network(data.test_images).argmax(dim=1)
    return (predicted == data.test_labels).double().mean().item()


def standardised(features: Tensor) -> Tensor:
    return (features - features.mean(dim=0)) / (features.std(dim=0) + 1e-8)


def leading(features: Tensor) -> Tensor:
    """Left singular vectors of the largest singular values, by a full decomposition."""
    left: Tensor = torch.linalg.svd(standardised(features), full_matrices=False)[0][:, :RANK]
    return left


def exact_cka(xs: Layers, ys: Layers) -> Tensor:
    """The definition in float64: |X^T Y|^2 / (|X^T X| |Y^T Y|) of centred features."""

    def product(x: Tensor, y: Tensor) -> Tensor:
        return (x.T @ y).square().sum()

    xs, ys = ([x.double() - x.double().mean(dim=0) for x in layers] for layers in (xs, ys))
    return torch.stack([torch.stack([product(x, y) / (product(x, x) * product(y, y)).sqrt() for y in ys]) for x in xs])


def exact_svcca(xs: Layers, ys: Layers) -> Tensor:
    """The definition in float64: mean cosine of the angles between the spans of the leading left singular vectors."""
    us, vs = ([leading(x.double()) for x in layers] for layers in (xs, ys))
    return torch.stack([torch.stack([torch.linalg.svdvals(u.T @ v).mean() for v in vs]) for u in us])


def standardised_svcca(xs: Layers, ys: Layers) -> Tensor:
    xs, ys = ([standardised(x) for x in layers] for layers in (xs, ys))
    table: Tensor = subspan.pairwise_svcca(xs, ys, rank=RANK)
    return table


@dataclass
class Comparison:
    """One similarity of all pairs of layers, by the copied code and by subspan: median times, and errors."""

    name: str
    copied: Tensor
    map: Tensor
    seconds: list[float]
    errors: list[float]
    spread: float  # of the copied code's values of one pair

    @property
    def matches(self) -> list[int]:
        """For each layer of the first network the most similar of the second, counted from 1."""
        return [int(place) + 1 for place in self.map.argmax(dim=1)]


def measure(name: str, copied: Similarity, ours: Similarity, exact: Similarity, xs: Layers, ys: Layers) -> Comparison:
    maps: tuple[list[Tensor], list[Tensor]] = ([], [])
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):
        for place, function in enumerate((copied, ours)):
            start = time.perf_counter()
            maps[place].append(function(xs, ys))
            seconds[place].append(time.perf_counter() - start)
    truth = exact(xs, ys)
    errors = [largest_difference(of_function[0], truth) for of_function in maps]
    spread = max(largest_difference(again, maps[0][0]) for again in maps[0])
    return Comparison(name, maps[0][0], maps[1][0], list(map(median, seconds)), errors, spread)


def largest_difference(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


@torch.no_grad()
def features_of(networks: list[Network], images: Tensor) -> list[Layers]:
    """Each network's layers, samples of unit length."""
    return [[normalize(layer, dim=1) for layer in network.layers(images)] for network in networks]


def compare(xs: Layers, ys: Layers) -> list[Comparison]:
    copied_cka = partial(copied_similarity.all_pairs, copied_similarity.cka)
    copied_svcca = partial(copied_similarity.all_pairs, partial(copied_similarity.svcca, rank=RANK))
    return [
        measure("CKA", copied_cka, subspan.pairwise_linear_cka, exact_cka, xs, ys),
        measure("SVCCA", copied_svcca, standardised_svcca, exact_svcca, xs, ys),
    ]


def svcca_without_chance(xs: Layers, ys: Layers) -> Tensor:
    """The copied code with a full decomposition in the place of its random one."""
    us, vs = ([leading(x) for x in layers] for layers in (xs, ys))
    return copied_similarity.all_pairs(copied_similarity.iterative_cca, us, vs)


def study(data: Digits, steps: int, seed: int) -> report.Outcome:
    seeds = (seed, seed + 1)
    with report.progress("similarity", 2 * steps) as progress:
        networks = train(data, steps, seeds, progress)
    xs, ys = features_of(networks, data.test_images)
    comparisons = cka, svcca = compare(xs, ys)

    table = report.Table(*NAMES)
    for each in comparisons:
        table.row(f"{each.name} of all pairs of layers [ms]", (1e3 * s for s in each.seconds), ".1f", ratio=True)
        table.row(f"{each.name}, largest error", each.errors, ".1e")
    lines = [
        f"CKA: largest difference {largest_difference(cka.copied, cka.map):.1e}",
        f"SVCCA: largest difference {largest_difference(svcca.copied, svcca.map):.1e}, with a full SVD in the copied "
        f"code {largest_difference(svcca_without_chance(xs, ys), svcca.map):.1e}",
        f"calls of the copied SVCCA differ by up to {svcca.spread:.1e} from each other",
        *(
            f"{each.name}, most similar layer of the other network, for layers 1 to {DEPTH}: "
            + " ".join(map(str, each.matches))
            for each in comparisons
        ),
        "test accuracy of the networks: " + ", ".join(f"{accuracy(network, data):.1%}" for network in networks),
    ]
    samples = len(data.test_labels)
    note = NOTE.format(samples=samples, pairs=DEPTH**2, repeats=REPEATS)
    return report.Outcome(
        title=f"similarity: the layers of two networks on {samples} handwritten digits that neither has seen",
        setting=f"{DEPTH} layers of width {WIDTH} each, batch {BATCH}, SVCCA of {RANK} directions, {steps} steps",
        text="\n".join([table.text(), "", *lines, "", note]),
        panels=(
            lambda axes: draw_map(axes, cka, seeds),
            lambda axes: draw_times(axes, comparisons),
            lambda axes: draw_map(axes, svcca, seeds),
        ),
    )


def draw_map(axes: Axes, comparison: Comparison, seeds: tuple[int, int]) -> None:
    """A cell for each pair of layers, with its value."""
    title, smallest = f"{comparison.name} of the layers of two networks", comparison.map.min().item()
    report.draw_blocks(axes, comparison.map, 1.0, title, smallest)
    for row, values in enumerate(comparison.map.tolist()):
        for column, value in enumerate(values):
            colour = "black" if value > (smallest + 1) / 2 else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
    names = list(map(str, range(1, DEPTH + 1)))
    axes.set_xticks(range(DEPTH), labels=names)
    axes.set_yticks(range(DEPTH), labels=names)
    axes.set(xlabel=f"layer, seed {seeds[1]}", ylabel=f"layer, seed {seeds[0]}")


def draw_times(axes: Axes, comparisons: list[Comparison]) -> None:
    """A pair of bars for each similarity."""
    everything = [1e3 * seconds for each in comparisons for seconds in each.seconds]
    for place, colour in enumerate((report.BEFORE_COLOUR, report.SUBSPAN_COLOUR)):
        times = [1e3 * each.seconds[place] for each in comparisons]
        centres = [group + 0.4 * place - 0.2 for group in range(len(times))]
        bars = axes.bar(centres, times, 0.36, color=colour, label=NAMES[place])
        axes.bar_label(bars, [f"{milliseconds:.0f} ms" for milliseconds in times], padding=2)
    axes.set_xticks(range(len(comparisons)), labels=[each.name for each in comparisons])
    axes.set(title="Time of all pairs of layers (median)", ylabel="ms", yscale="log")
    axes.set_ylim(min(everything) / 3, 12 * max(everything))
    axes.legend(frameon=False, loc="upper right")
