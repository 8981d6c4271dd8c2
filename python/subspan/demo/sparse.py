"""Study `sparse`: a sparse text encoder with a regulariser of the multiply-adds that a search of its codes takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.nn.functional import cross_entropy

import subspan
from subspan.demo import docstrings, report, training
from subspan.demo.copied_sparse import CopiedFlops, copied_decode
from subspan.demo.digits import Digits
from subspan.demo.docstrings import VOCABULARY, Docstrings
from subspan.nn import FlopsRegularizer
from subspan.sparse_rows import SparseRows

BATCH = 256
WEIGHTS = (0.3, 3.0, 30.0)
COMPARED = 1  # the weight that 'as copied' has
TEMPERATURE = 0.2
LEARNING_RATE = 3e-3
STEPS = 120
NEAREST = 10
REPEATS = 5

NOTE = """\
A text is found by its summary: an encoder learns terms and their weights such that the summary of a docstring has a
larger product with its own body than with the others of the batch. It starts near the TF-IDF features it is given; its
{columns} outputs are the vocabulary, as in SPLADE, whose regulariser and quadratic rise it has. Recall is that of
{tested} summaries not trained on, among all {texts} bodies. 'Multiply-adds of a pair' is flops_metric, what an exact
search is predicted to take; the last line is what it took (sparse_scores). Temperature, learning rate and initial bias
were chosen by recall. 'As copied' has regulariser {weight:g}, the same weights and batches, embedding_bag with weights
and SPLADE's loss in torch operations. Text: docstrings of {versions}
(sha256 {hash}, {pinned})."""

Decode = Callable[[SparseRows, Tensor, Tensor], Tensor]
Regularizer = CopiedFlops | FlopsRegularizer


class Encoder(torch.nn.Module):
    """log(1 + relu(x W + b)) of sparse rows; W starts near a multiple of the identity."""

    product: Decode

    def __init__(self, decode: Decode) -> None:
        super().__init__()
        self.product = decode
        self.weight = torch.nn.Parameter(2 * torch.eye(VOCABULARY) + 0.01 * torch.randn(VOCABULARY, VOCABULARY))
        self.bias = torch.nn.Parameter(torch.full((VOCABULARY,), -0.1))

    def forward(self, rows: SparseRows) -> Tensor:
        return torch.log1p(self.product(rows, self.weight, self.bias).relu())


def batches(data: Docstrings, steps: int, seed: int) -> Iterator[tuple[SparseRows, Tensor]]:
    """Summaries, then their bodies; row i belongs to row i + half."""
    generator = np.random.default_rng(seed)
    for _ in range(steps):
        chosen = generator.choice(data.train, min(BATCH, len(data.train)), replace=False)
        yield docstrings.rows([data.summaries[chosen], data.bodies[chosen]]), torch.arange(len(chosen))


def objective(regularizers: tuple[Regularizer, Regularizer]) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross entropy of the own body among those of the batch, and a regulariser for either side."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        summaries, bodies = output.chunk(2)
        task = cross_entropy(summaries @ bodies.T / TEMPERATURE, target)
        total: Tensor = task + regularizers[0](summaries) + regularizers[1](bodies)
        for regularizer in regularizers:
            regularizer.step()
        return total

    return loss


def prepare(steps: int, seed: int) -> tuple[training.Run, ...]:
    """The copied encoder and one of ours for each weight of the regulariser, from the same initial weights."""

    def run(name: str, decode: Decode, regularizer: Callable[[], Regularizer]) -> training.Run:
        torch.manual_seed(seed)
        loss = objective((regularizer(), regularizer()))
        return training.Run(name, loss, Encoder(decode), steps, LEARNING_RATE, fused=True)

    rise = max(1, steps // 2)
    copied = run("PyTorch, as copied", copied_decode, lambda: CopiedFlops(WEIGHTS[COMPARED], rise))
    ours = [
        run(f"{w:g}", subspan.sparse_decode, partial(FlopsRegularizer, w, "quadratic", steps=rise)) for w in WEIGHTS
    ]
    return copied, *ours


@dataclass
class Found:
    """What searching the test summaries among all bodies gave and cost."""

    recall: float
    nonzeros: tuple[float, float]
    flops: float
    imbalance: float
    seconds: float


@torch.no_grad()
def search(summaries: SparseRows, bodies: SparseRows, own: Tensor) -> Found:
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        scores = subspan.sparse_scores(summaries, bodies)
        seconds.append(time.perf_counter() - start)
    better = (scores > scores.gather(1, own[:, None])).sum(1)
    dense = summaries.to_dense(), bodies.to_dense()
    return Found(
        recall=float((better < NEAREST).double().mean()),
        nonzeros=(summaries.entries / summaries.shape[0], bodies.entries / bodies.shape[0]),
        flops=float(subspan.flops_metric(*dense)),
        imbalance=float(subspan.r_sub(*dense)),
        seconds=median(seconds),
    )


@torch.no_grad()
def evaluate(network: torch.nn.Module, data: Docstrings) -> Found:
    texts = docstrings.rows([data.summaries[data.test]]), docstrings.rows([data.bodies])
    summaries, bodies = (SparseRows.from_dense(network(rows)) for rows in texts)
    return search(summaries, bodies, torch.from_numpy(data.test))


def study(_: Digits, steps: int, seed: int) -> report.Outcome:
    data = docstrings.load(seed)
    runs = prepare(steps, seed)
    copied, ours = runs[0], runs[1 + COMPARED]
    with report.progress("sparse", steps) as progress:
        training.train(runs, batches(data, steps, seed), progress)
    texts = docstrings.rows([data.summaries[data.test]]), docstrings.rows([data.bodies])
    given = search(*texts, torch.from_numpy(data.test))
    found = [evaluate(run.network, data) for run in runs]

    table = report.Table(copied.name, "subspan")
    table.times(copied, ours, part="loss, forward + backward")
    table.row("final loss", (copied.losses[-1], ours.losses[-1]), ".5f")
    table.row(f"recall at {NEAREST}", (found[0].recall, found[1 + COMPARED].recall), ".1%")
    results = report.Table("TF-IDF", *(f"weight {weight:g}" for weight in WEIGHTS))
    everything = [given, *found[1:]]
    results.row(f"recall at {NEAREST}", (each.recall for each in everything), ".1%")
    results.row("nonzeros of a summary", (each.nonzeros[0] for each in everything), ".1f")
    results.row("nonzeros of a body", (each.nonzeros[1] for each in everything), ".1f")
    results.row("multiply-adds of a pair", (each.flops for each in everything), ".2f")
    results.row("of evenly spread ones (r_sub)", (each.imbalance for each in everything), ".1f")
    results.row("exact scores of all pairs [ms]", (1e3 * each.seconds for each in everything), ".1f")
    note = NOTE.format(
        columns=VOCABULARY,
        tested=len(data.test),
        texts=data.bodies.shape[0],
        weight=WEIGHTS[COMPARED],
        versions=data.versions,
        hash=data.hash[:12],
        pinned="as pinned" if data.pinned else f"others than those pinned, {docstrings.PINNED}",
    )
    heading = "by weight of the regulariser:"
    return report.Outcome(
        title=f"sparse: a text encoder whose embeddings are cheap to search, on {data.bodies.shape[0]} docstrings",
        setting=f"batch {BATCH}, {VOCABULARY} terms, {steps} steps",
        text="\n".join([table.text(), "", heading, results.text(), "", report.agreement(copied, ours), "", note]),
        panels=(
            lambda axes: report.draw_losses(axes, copied, ours, "Same loss, regulariser included", "loss"),
            lambda axes: report.draw_step_times(axes, copied, ours),
            lambda axes: draw_costs(axes, everything),
        ),
    )


def draw_costs(axes: Axes, found: list[Found]) -> None:
    """Recall against predicted cost, TF-IDF apart."""
    names = ["TF-IDF", *(f"{weight:g}" for weight in WEIGHTS)]
    axes.plot(
        [each.flops for each in found[1:]], [each.recall for each in found[1:]], "o-", color=report.SUBSPAN_COLOUR
    )
    axes.plot(found[0].flops, found[0].recall, "s", color=report.REST_COLOUR)
    for name, each in zip(names, found, strict=True):
        axes.annotate(name, (each.flops, each.recall), xytext=(5, 5), textcoords="offset points")
    axes.set(
        title="Recall and cost, by weight of the regulariser",
        xlabel="multiply-adds of a pair",
        ylabel=f"recall at {NEAREST}",
        xscale="log",
    )
    axes.margins(0.2)
