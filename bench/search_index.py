"""The search index against sparse_dot_topn and scipy, over docstrings and a million rows drawn like them.

    python bench/search_index.py [--rows 1000000] [--threads 2] [--queries 1000]

Prints a Markdown table of the best of some rounds, in milliseconds. Without sparse_dot_topn its rows are missing.
Every peer's scores are compared with ours before a ratio is printed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
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


def best(function: Callable[[], Any], rounds: int = 3) -> tuple[float, Any]:
    """Seconds and the result."""
    times, result = [], None
    for _ in range(rounds):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return min(times), result


def scipy_topk(queries: sp.csr_matrix, transposed: sp.csr_matrix) -> list[np.ndarray]:
    """The product, then the k largest of each row by argpartition, as search scripts do it."""
    product = queries @ transposed
    found = []
    for i in range(product.shape[0]):
        row = product.data[product.indptr[i] : product.indptr[i + 1]]
        top = np.argpartition(-row, min(K - 1, len(row) - 1))[:K] if len(row) else np.empty(0, np.int64)
        found.append(np.sort(row[top])[::-1])
    return found


def same(ours: np.ndarray, theirs: list[np.ndarray]) -> bool:
    """Whether the positive scores agree: peers give no documents of score 0."""
    return all(np.allclose(a[: len(b)], b, rtol=1e-4, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


def compare(name: str, queries: sp.csr_array, documents: sp.csr_array, peer_queries: int, threads: int) -> None:
    index = subspan.SparseIndex.build(documents, threads=threads)
    seconds, result = best(lambda: index.search(queries, K, threads=threads), 5)
    ours = seconds / queries.shape[0]
    print(f"| {name}: exact | {1e3 * ours:.3f} | | |")
    part, transposed = sp.csr_matrix(queries[:peer_queries]), sp.csr_matrix(sp.csr_matrix(documents).T.tocsr())
    if sp_matmul_topn is not None:
        seconds, product = best(lambda: sp_matmul_topn(part, transposed, top_n=K, n_threads=threads, sort=True), 2)
        rows = [product.data[product.indptr[i] : product.indptr[i + 1]] for i in range(peer_queries)]
        assert same(result.scores[:peer_queries], rows)
        print(
            f"| {name}: sparse_dot_topn | {1e3 * seconds / peer_queries:.3f} | {seconds / peer_queries / ours:.1f}x | |"
        )
    seconds, rows = best(lambda: scipy_topk(part, transposed), 2)
    assert same(result.scores[:peer_queries], rows)
    print(f"| {name}: scipy, top-k | {1e3 * seconds / peer_queries:.3f} | {seconds / peer_queries / ours:.1f}x | |")

    seconds, found = best(lambda: index.search(queries, K, "approx", threads=threads), 3)
    recall = np.mean([np.isin(a, b).mean() for a, b in zip(result.ids, found.ids, strict=True)])
    print(f"| {name}: approx | {1e3 * seconds / queries.shape[0]:.3f} | | "
          f"{ours * queries.shape[0] / seconds:.2f}x exact, recall {recall:.4f} |")  # fmt: skip

    single, scipys = [], []
    for i in range(min(100, queries.shape[0])):
        query = queries[[i]]
        single.append(best(lambda query=query: index.search(query, K, threads=threads))[0])
        if i < 20:
            scipys.append(best(lambda query=query: scipy_topk(sp.csr_matrix(query), transposed), 2)[0])
    for quantile in (50, 99):
        own, scipys_own = np.percentile(single, quantile), np.percentile(scipys, quantile)
        print(f"| {name}: one query, {quantile} % | {1e3 * own:.3f} | {scipys_own / own:.1f}x scipy | |")


def build(documents: sp.csr_array) -> None:
    for values in ("f32", "f16", "u8"):
        seconds, index = best(lambda values=values: subspan.SparseIndex.build(documents, values, threads=1))
        print(f"| build, {values}, one thread, 1M postings | {1e3 * seconds / documents.nnz * 1e6:.1f} | | "
              f"{index.stats()['bytes_per_posting']:.2f} bytes per posting |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the larger corpus, 0: none")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    queries, documents = docstrings.corpus()
    chosen, _ = docstrings.sampled_queries(queries, options.queries)
    print("; ".join(f"{name}: {value}" for name, value in describe("cpu", options.threads).items()))
    print(f"{documents.shape[0]} docstrings, {documents.shape[1]} terms, "
          f"{documents.nnz} postings, {options.queries} queries\n")  # fmt: skip
    print("| | ms a query | of subspan's time | |\n| --- | --- | --- | --- |")
    build(documents)
    compare("docstrings", chosen, documents, options.queries, options.threads)
    if options.rows:
        larger = docstrings.bootstrapped(documents, options.rows)
        compare(f"{options.rows} rows", chosen, larger, min(20, options.queries), options.threads)


if __name__ == "__main__":
    main()
