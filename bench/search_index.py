"""The search index against sparse_dot_topn and scipy, over docstrings and a million rows drawn like them.

    python bench/search_index.py [--rows 1000000] [--threads 2] [--queries 1000] [--output FILE.md]

Prints a Markdown table, and writes it with --output. What stands in one group of rows was measured over the same
queries, in turn, as many rounds each, of which the best counts. Without sparse_dot_topn its rows are missing. Every
peer's scores are compared with ours before a ratio is printed. The constants of the approximate search were chosen on
queries of their own, the other half of those that are drawn: recall is reported on both.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

import docstrings
import subspan
from harness.machine import describe

try:
    from sparse_dot_topn import sp_matmul_topn
except ImportError:
    sp_matmul_topn = None

K = 10


Ways = dict[str, Callable[[], Any]]


def in_turn(ways: Ways, rounds: int = 3) -> tuple[dict[str, float], dict[str, Any]]:
    """The least seconds of each way, and its result."""
    seconds, results = dict.fromkeys(ways, float("inf")), {}
    for _ in range(rounds):
        for name, run in ways.items():
            start = time.perf_counter()
            results[name] = run()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds, results


class Table:
    """Lines, printed as they come."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)
        print(text, flush=True)

    def row(self, *cells: str) -> None:
        self.line(f"| {' | '.join(cells)} |")


def scipy_topk(queries: sp.csr_matrix, transposed: sp.csr_matrix) -> list[np.ndarray]:
    """The product, a block of queries after the other, then the k largest of each row, as search scripts do it."""
    found = []
    for begin in range(0, queries.shape[0], 20):
        product = queries[begin : begin + 20] @ transposed
        for i in range(product.shape[0]):
            row = product.data[product.indptr[i] : product.indptr[i + 1]]
            top = np.argpartition(-row, min(K - 1, len(row) - 1))[:K] if len(row) else np.empty(0, np.int64)
            found.append(np.sort(row[top])[::-1])
    return found


def topn(queries: sp.csr_matrix, transposed: sp.csr_matrix, threads: int) -> list[np.ndarray]:
    product = sp_matmul_topn(queries, transposed, top_n=K, n_threads=threads, sort=True)
    return [product.data[product.indptr[i] : product.indptr[i + 1]] for i in range(product.shape[0])]


def same(ours: np.ndarray, theirs: list[np.ndarray]) -> bool:
    """Whether the positive scores agree: peers give no documents of score 0."""
    return all(np.allclose(a[: len(b)], b, rtol=1e-4, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


def peers(queries: sp.csr_matrix, transposed: sp.csr_matrix, threads: int) -> Ways:
    ways: Ways = {"scipy, top-k": lambda: scipy_topk(queries, transposed)}
    if sp_matmul_topn is not None:
        ways["sparse_dot_topn"] = lambda: topn(queries, transposed, threads)
    return ways


def compare(table: Table, name: str, drawn: sp.csr_array, documents: sp.csr_array, few: int, threads: int) -> None:
    """`drawn`: as many queries to report on, then those that constants were chosen on."""
    index = subspan.SparseIndex.build(documents, threads=threads)
    transposed = sp.csr_matrix(sp.csr_matrix(documents).T.tocsr())
    count = drawn.shape[0] // 2
    for label, queries in (("", drawn[:count]), (", queries of the choice of constants", drawn[count:])):
        modes = ("exact", "approx")
        ways: Ways = {
            mode: lambda mode=mode, queries=queries: index.search(queries, K, mode, threads=threads) for mode in modes
        }
        seconds, found = in_turn(ways, 5)
        recall = np.mean([np.isin(a, b).mean() for a, b in zip(*(found[mode].ids for mode in modes), strict=True)])
        for mode in modes:
            note = f"recall@{K} {recall:.4f}" if mode == "approx" else ""
            if note and not index.stats()["sketch_bytes"]:
                note = "exact: too few documents to gain anything"
            table.row(f"{name}: {mode}{label}", str(count), f"{1e3 * seconds[mode] / count:.3f}",
                      f"{seconds['exact'] / seconds[mode]:.2f}x as fast as exact", note)  # fmt: skip

    part = drawn[:few]
    exact = {"exact": lambda: index.search(part, K, threads=threads)}
    seconds, found = in_turn(exact | peers(sp.csr_matrix(part), transposed, threads))
    for way, own in seconds.items():
        assert way == "exact" or same(found["exact"].scores, found[way])
        ratio = "" if way == "exact" else f"{own / seconds['exact']:.1f}x subspan's time"
        table.row(f"{name}: {way}, together", str(few), f"{1e3 * own / few:.3f}", ratio, "")

    each: dict[str, list[float]] = {}
    alone = min(100, count)
    for i in range(alone):
        query = drawn[[i]]
        one: Ways = {"exact": lambda query=query: index.search(query, K, threads=threads)}
        for way, own in in_turn(one | peers(sp.csr_matrix(query), transposed, threads))[0].items():
            each.setdefault(way, []).append(own)
    for quantile in (50, 99):
        at = {way: float(np.percentile(own, quantile)) for way, own in each.items()}
        for way, own in at.items():
            ratio = "" if way == "exact" else f"{own / at['exact']:.1f}x subspan's time"
            table.row(f"{name}: {way}, one by one, {quantile} %", str(alone), f"{1e3 * own:.3f}", ratio, "")
    stats = index.stats()
    more = stats["sketch_bytes"] / stats["postings"]
    table.row(f"{name}: bytes for a posting", "", "", "",
              f"{stats['bytes_per_posting']:.2f}, and {more:.2f} for approximate searches")  # fmt: skip


def build(table: Table, documents: sp.csr_array) -> None:
    for values in ("f32", "f16", "u8"):
        run = {"build": lambda values=values: subspan.SparseIndex.build(documents, values, threads=1)}
        seconds, made = in_turn(run)
        took, stats = f"{1e9 * seconds['build'] / documents.nnz:.1f}", made["build"].stats()
        note = f"{stats['bytes_per_posting']:.2f} bytes for a posting"
        table.row(f"build, {values}, one thread, ms for 1M postings", "", took, "", note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the larger corpus, 0: none")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--peer-queries", type=int, default=200, help="that peers run too, over the larger corpus")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, metavar="FILE.md", help="file to write the table to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    queries, documents = docstrings.corpus()
    drawn, _ = docstrings.sampled_queries(queries, 2 * options.queries)
    table = Table()
    table.line("# Search of sparse documents\n")
    table.line("; ".join(f"{name}: {value}" for name, value in describe("cpu", options.threads).items()) + "\n")
    table.line(f"{documents.shape[0]} docstrings, {documents.shape[1]} terms, {documents.nnz} postings. Rows of a "
               "group were measured over the same queries, in turn, the best of as many rounds.\n")  # fmt: skip
    table.row("", "queries", "ms a query", "", "")
    table.row(*["---"] * 5)
    build(table, documents)
    compare(table, "docstrings", drawn, documents, options.queries, options.threads)
    if options.rows:
        larger = docstrings.bootstrapped(documents, options.rows)
        few = min(options.peer_queries, options.queries)
        compare(table, f"{options.rows} rows", drawn, larger, few, options.threads)
    if options.output is not None:
        options.output.write_text("\n".join(table.lines) + "\n")


if __name__ == "__main__":
    main()
