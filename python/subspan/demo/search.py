"""Study `search`: the documentation of installed packages, searched by the summaries of its texts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from scipy.sparse import csr_array

import subspan
from subspan.demo import docstrings, report
from subspan.demo.digits import Digits

NEAREST = 10
ROUNDS = 3
STEPS = 200
BLOCK = 1000  # queries of a product of scipy's: its result is as large as they have documents in common

NOTE = """\
Texts and queries are TF-IDF rows over all terms: a docstring without its summary, and the summary, which should find
it. 'scipy and top-k' multiplies {block} queries at a time with the transposed texts and takes the largest entries of
every row of the product, as search scripts do. Exact scores agree, and the same documents are found but where scores
are equal: subspan gives the lower number first. Times of all queries are the best of {rounds} rounds, alternating;
'one query' has them one after the other. 'u8' stores 8 bits of every value and scores candidates by the texts
themselves; 'certified' is the share of queries for which the result is then provably that of the exact search. Text:
docstrings of {versions} (sha256 {hash}, {pinned})."""


def scipy_search(queries: csr_array, transposed: csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Scores and numbers of the documents that share a term with a query, best first; -1 where there are too few."""
    scores = np.zeros((queries.shape[0], NEAREST), np.float32)
    found = np.full((queries.shape[0], NEAREST), -1)
    for begin in range(0, queries.shape[0], BLOCK):
        product = queries[begin : begin + BLOCK] @ transposed
        for i in range(product.shape[0]):
            row = slice(product.indptr[i], product.indptr[i + 1])
            values, documents = product.data[row], product.indices[row]
            best = np.argpartition(-values, NEAREST - 1)[:NEAREST] if len(values) > NEAREST else np.arange(len(values))
            best = best[np.argsort(-values[best])]
            scores[begin + i, : len(best)], found[begin + i, : len(best)] = values[best], documents[best]
    return scores, found


@dataclass
class Way:
    """One way to search: what it found, the seconds of all queries, and of some one after the other."""

    name: str
    run: Callable[[csr_array], tuple[Any, Any]]
    scores: np.ndarray
    ids: np.ndarray
    seconds: list[float]
    single: list[float]

    @property
    def best(self) -> float:
        return min(self.seconds)


def compare(ways: list[Way], queries: csr_array, steps: int, progress: Callable[[], object]) -> None:
    for turn in range(ROUNDS):
        for way in ways if turn % 2 == 0 else ways[::-1]:
            start = time.perf_counter()
            way.scores, way.ids = way.run(queries)
            way.seconds.append(time.perf_counter() - start)
    for step in range(steps):
        query = queries[[step % queries.shape[0]]]
        for way in ways:
            start = time.perf_counter()
            way.run(query)
            way.single.append(time.perf_counter() - start)
        progress()


def known_item_recall(ids: np.ndarray) -> float:
    """Share of the queries, of which number i belongs to text i, that find it."""
    return float((ids == np.arange(len(ids))[:, None]).any(1).mean())


def overlap(ids: np.ndarray, exact: np.ndarray) -> float:
    return float(np.mean([np.isin(want, got).mean() for want, got in zip(exact, ids, strict=True)]))


def study(_: Digits, steps: int, seed: int) -> report.Outcome:
    data = docstrings.load(seed, all_terms=True)
    texts, queries = data.bodies, data.summaries
    start = time.perf_counter()
    index = subspan.SparseIndex.build(texts)
    built = time.perf_counter() - start
    small = subspan.SparseIndex.build(texts, "u8")
    start = time.perf_counter()
    transposed = csr_array(texts.T.tocsr())
    transposing = time.perf_counter() - start
    certified: list[float] = []

    def reranked(rows: csr_array) -> tuple[Any, Any]:
        result = small.search(rows, NEAREST, rerank=texts)
        if rows.shape[0] == queries.shape[0]:
            certified.append(float(np.mean(result.certified)))
        return result.scores, result.ids

    def way(name: str, run: Callable[[csr_array], tuple[Any, Any]]) -> Way:
        nothing = np.empty((0, NEAREST))
        return Way(name, run, nothing, nothing, [], [])

    ways = [
        way("scipy and top-k", lambda rows: scipy_search(rows, transposed)),
        way("subspan", lambda rows: tuple(index.search(rows, NEAREST))),
        way("approx", lambda rows: tuple(index.search(rows, NEAREST, "approx"))),
        way("u8, reranked", reranked),
    ]
    with report.progress("search", steps) as progress:
        compare(ways, queries, steps, progress)
    plain, exact = ways[:2]

    table = report.Table(plain.name, exact.name)
    table.row("transposing, building [ms]", (1e3 * transposing, 1e3 * built), ".1f", ratio=True)
    table.row(f"all {queries.shape[0]} queries [ms]", (1e3 * each.best for each in ways[:2]), ".1f", ratio=True)
    table.row("one query, median [ms]", (1e3 * median(each.single) for each in ways[:2]), ".3f", ratio=True)
    slow = [1e3 * float(np.percentile(each.single, 99)) for each in ways[:2]]
    table.row("one query, 99th percentile [ms]", slow, ".3f", ratio=True)
    table.row(f"finds its text among {NEAREST}", (known_item_recall(each.ids) for each in ways[:2]), ".1%")
    error = float(np.abs(plain.scores - np.where(exact.scores > 0, exact.scores, 0)).max())
    stats, sizes = index.stats(), (index.stats()["bytes_per_posting"], small.stats()["bytes_per_posting"])
    modes = report.Table(*("exact", *(each.name for each in ways[2:])))
    modes.row("all queries [ms]", (1e3 * each.best for each in ways[1:]), ".1f")
    modes.row(f"share of the exact {NEAREST}", (overlap(each.ids, exact.ids) for each in ways[1:]), ".2%")
    modes.row("certified", (1.0, None, certified[-1]), ".1%")
    modes.row("bytes of a posting", (sizes[0], sizes[0], sizes[1]), ".2f")
    cost = (
        f"largest difference of exact scores: {error:.1e}\n"
        f"multiply-adds of a query: {stats['predicted'] / stats['queries']:.0f} by the counts of columns\n"
        f"time saved: {plain.best - exact.best:.2f} s of {plain.best:.2f} s ({1 - exact.best / plain.best:.0%})"
    )
    note = NOTE.format(
        block=BLOCK,
        rounds=ROUNDS,
        versions=data.versions,
        hash=data.hash[:12],
        pinned="as pinned" if data.pinned else f"others than those pinned, {docstrings.PINNED}",
    )
    return report.Outcome(
        title=f"search: {texts.shape[0]} docstrings by their summaries",
        setting=f"{texts.shape[1]} terms, {texts.nnz} postings, {queries.nnz / queries.shape[0]:.1f} terms a query, "
        f"one query at a time for {steps} steps",
        text="\n".join([table.text(), "", "ways to search with subspan:", modes.text(), "", cost, "", note]),
        panels=(
            lambda axes: draw_times(axes, ways),
            lambda axes: draw_latencies(axes, ways[:2]),
            lambda axes: draw_recall(axes, ways, exact),
        ),
    )


def draw_times(axes: Axes, ways: list[Way]) -> None:
    colours = [report.BEFORE_COLOUR, *[report.SUBSPAN_COLOUR] * (len(ways) - 1)]
    seconds = [1e3 * way.best for way in ways]
    axes.bar([way.name for way in ways], seconds, color=colours, width=0.6)
    for place, value in enumerate(seconds):
        axes.annotate(f"{value:.0f} ms", (place, value), ha="center", va="bottom")
    axes.set(title="All queries", ylabel="ms", yscale="log", ylim=(min(seconds) / 3, 3 * max(seconds)))


def draw_latencies(axes: Axes, ways: list[Way]) -> None:
    for way, colour in zip(ways, (report.BEFORE_COLOUR, report.SUBSPAN_COLOUR), strict=True):
        shares = np.arange(1, len(way.single) + 1) / len(way.single)
        axes.plot(np.sort(1e3 * np.array(way.single)), shares, color=colour, label=way.name)
    axes.set(title="One query at a time", xlabel="ms", ylabel="share of the queries that took less", xscale="log")
    axes.legend(frameon=False)


def draw_recall(axes: Axes, ways: list[Way], exact: Way) -> None:
    for way in ways[1:]:
        axes.plot(1e3 * way.best, overlap(way.ids, exact.ids), "o", color=report.SUBSPAN_COLOUR)
        label = "exact" if way is exact else way.name
        axes.annotate(label, (1e3 * way.best, overlap(way.ids, exact.ids)), xytext=(5, -12), textcoords="offset points")
    axes.set(title="What is found", xlabel="ms for all queries", ylabel=f"share of the exact {NEAREST}")
    axes.margins(0.25)
