"""The search index: sparse documents in, the best ones for a sparse query out."""

from __future__ import annotations

import mmap as mapping
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import _check, _native, _route
from ._atomic_file import replacing
from ._check import torch
from ._progress import Progress
from ._search_result import SearchResult
from ._sparse_input import Rows
from ._sparse_input import rows as as_rows

_NAME = "SparseIndex"
_VALUES = {"f32": 0, "f16": 1, "u8": 2}
_MODES = {"exact": 0, "approx": 1}
#: Documents that an approximate search looks at closely: so many, and so many times k.
_CANDIDATES, _CANDIDATES_PER_HIT = 80, 2
#: Queries of one call of the compiled search: what it keeps for each takes 16 k bytes.
_MOST_QUERIES, _MOST_HITS = 4096, 2**22
#: A certificate is sought among up to this many times k documents.
_MOST_CANDIDATES = 64


class SparseIndex:
    r"""Documents as sparse rows, searched for the k largest inner products with sparse queries.

    .. math:: s(q, d) = \sum_j q_j d_j, \text{ each step rounded to float32, in the order of the query's entries}

    Documents are numbered in the order in which they come. Made by :meth:`build` or :meth:`load`. Several Python
    threads may search an index at once, also while another adds to it: a search sees the documents there were when it
    began. Results do not depend on the number of threads, on how queries are batched, or on whether documents came at
    once or were added, bit for bit.

    Rows, here and for queries, are :class:`SparseRows`, scipy.sparse matrices, sparse or dense torch tensors in host
    memory, what ``SparseEncoder.encode`` of sentence-transformers returns, or dense NumPy arrays. Entries of a row with
    the same column add up in documents; values must be finite, of any sign.

    Args:
        core: the compiled index.

    Raises:
        TypeError, ValueError: by its methods, for wrong rows or options.

    Source:
        Replaces sparse_dot_topn, products with scipy or torch followed by a top-k, and the ``semantic_search`` of
        sentence-transformers for sparse embeddings; the layout by windows of documents follows the inverted indexes of
        SINDI and BMP, without their restriction to values that are not negative.

    >>> import numpy as np, subspan
    >>> index = subspan.SparseIndex.build(np.array([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0], [1.0, 1.0, 0.0]]))
    >>> scores, ids = index.search(np.array([[1.0, 1.0, 0.0]]), k=2)
    >>> print(scores.tolist(), ids.tolist(), index)
    [[3.0, 2.0]] [[1, 0]] SparseIndex(3 documents, 3 columns, 5 postings, f32)
    """

    def __init__(self, core: Any) -> None:
        self._core = core
        self._adding = threading.Lock()
        self._searched = {"queries": 0, "predicted": 0, "postings": 0, "windows": 0, "seconds": 0.0}

    # --- making ---

    @classmethod
    def build(
        cls,
        rows: Any,
        values: str = "f32",
        *,
        window: int = 8192,
        threads: int | None = None,
        progress: bool | Callable[[int, int], None] = False,
    ) -> SparseIndex:
        """An index of the given documents.

        Args:
            rows: (documents, columns), at most 2^24 columns.
            values: how values are stored: "f32" as they are; "f16"; "u8", 8 bits of magnitude by document, about 3.3
                bytes for a posting, where "f32" takes 6.3.
            window: documents whose scores are added up together, a multiple of 64 up to 65536. At 8192 they fill the
                first-level cache of most processors.
            threads: default: as many as torch uses.
            progress: True shows a bar where tqdm is installed; a function is called with the number of documents done
                and of all.
        """
        op = f"{_NAME}.build"
        code = _check.choice(op, "values", values, _VALUES)
        window = _check.count(op, "window", window)
        own = as_rows(op, "rows", rows)
        index = cls(_native.cpu.SearchIndex(own.columns, code, window, cls._bitmap_share))
        index._add(op, own, _threads(op, threads), progress)
        return index

    #: To add everything up for so many documents takes longer than to look at a candidate.
    _documents_per_candidate = 6000

    #: Lists of at least this share of a window are bitmaps: above it they are faster on every processor measured.
    _bitmap_share = 0.2

    def add(
        self, rows: Any, *, threads: int | None = None, progress: bool | Callable[[int, int], None] = False
    ) -> SparseIndex:
        """Appends documents; the index is then what building it from all documents gives. Returns the index.

        The last window is made anew, some milliseconds: many rows at once cost little more than one.

        Args:
            rows, threads, progress: as in :meth:`build`.
        """
        op = f"{_NAME}.add"
        own = as_rows(op, "rows", rows)
        if own.columns != self.columns:
            raise ValueError(f"{op}: rows: expected {self.columns} columns as the index has, got {own.columns}")
        self._add(op, own, _threads(op, threads), progress)
        return self

    def _add(self, op: str, rows: Rows, threads: int, progress: bool | Callable[[int, int], None]) -> None:
        window = self._core.facts()["window"]
        with self._adding, Progress(op, progress, rows.n, "documents") as report:
            # Whole windows at a time where somebody watches; what is made does not depend on it.
            core = self._core.copy()
            step = window * 4 * threads if report.watched else max(rows.n, 1)
            first = window - core.facts()["documents"] % window if report.watched else step
            begin = 0
            while True:
                end = min(rows.n, begin + (first if begin == 0 else step))
                part = rows if (begin, end) == (0, rows.n) else rows.part(begin, end)
                core.add(*part[:3], part.first, threads, op)
                report(end)
                begin = end
                if begin >= rows.n:
                    break
            self._core.become(core)

    # --- files ---

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the index to a file: under another name first, so that a file of this name is the old or the new one
        whatever happens. The format is that of ``csrc/ops/search/index_file.h``, the same on every machine. A process
        that is killed while it saves leaves a file ``path.<12 digits>.tmp``, which the next :meth:`save` removes.

        Args:
            path: the file, which is replaced if there is one.

        Raises:
            OSError: the file cannot be written.
        """
        core = self._core.copy()
        with replacing(path) as file:
            for part in core.parts():
                file.write(part)

    @classmethod
    def load(cls, path: str | os.PathLike[str], mmap: bool = False, *, threads: int | None = None) -> SparseIndex:
        """The index of a file; it gives the same results, and can be added to.

        Args:
            path: the file.
            mmap: False reads the file and verifies all of it. True maps it, verifies its header and tables, and every
                window when a search first comes to it; the file must then stay as it is.
            threads: as in :meth:`build`.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is damaged, truncated, of another version or no index. For a mapped one :meth:`search` and
                :meth:`add` may raise it too.
        """
        op = f"{_NAME}.load"
        _check.flag(op, "mmap", mmap)
        used = _threads(op, threads)
        with open(path, "rb") as file:
            if mmap and os.fstat(file.fileno()).st_size:
                content: Any = mapping.mmap(file.fileno(), 0, access=mapping.ACCESS_READ)
            else:
                content = np.fromfile(file, np.uint8)
        return cls(_native.cpu.SearchIndex.open(content, bool(mmap), used, op))

    # --- searching ---

    def search(
        self,
        queries: Any,
        k: int,
        mode: str = "exact",
        threads: int | None = None,
        *,
        rerank: Any = None,
    ) -> SearchResult:
        """The k documents of largest inner product with each query.

        Args:
            queries: rows (n, columns).
            k: how many documents to give; min(k, documents) of them come for every query, filled up with documents of
                score 0, or less, where there are not as many above.
            mode: "exact", or "approx": the 80 + 2 k documents that do best by a sketch of the index, the largest
                entries of every document with 8 bits, are scored as the exact search does, bit for bit. Below 6000
                documents for each of these that would gain nothing, and it is exact. The first such search makes the
                sketch, about as long as building takes; it adds about two bytes for a posting.
            threads: default: as many as torch uses.
            rerank: the rows that the index was built from, for an index of "f16" or "u8" values: as many candidates
                are scored by these as it takes until no other document can be better, or 64 k of them. The result is
                then what an "f32" index gives, bit for bit, wherever ``certified`` says so.

        Returns:
            :class:`SearchResult`, ``(scores, ids)``: float32 and int64, (n, min(k, documents)), scores descending,
            equal ones by lower id first, NumPy arrays, or torch tensors for torch queries. Its ``certified`` says for
            which queries these are certainly the best documents by the values that were given: always for exact
            searches of "f32" values, which are ordered by their float32 scores; for others where the scores are
            further apart than the bound of all errors.

        Cost:
            The sum over columns of queries with it times documents with it multiply-adds (:meth:`stats`), and reading
            as many scores as there are documents, for each query.
        """
        op = f"{_NAME}.search"
        k, code, used = _check.count(op, "k", k), _check.choice(op, "mode", mode, _MODES), _threads(op, threads)
        own = self._queries(op, queries)
        originals = None if rerank is None else self._originals(op, rerank, code)
        return self._search(op, own, k, code, used, originals)

    def search_batch(
        self,
        queries: Any,
        k: int,
        mode: str = "exact",
        threads: int | None = None,
        *,
        batch: int = 1024,
        rerank: Any = None,
        progress: bool | Callable[[int, int], None] = False,
    ) -> Iterator[SearchResult]:
        """The results of :meth:`search` for a block of queries after the other, so that they need not all be kept.

        Args:
            queries, k, mode, threads, rerank: as in :meth:`search`.
            batch: queries of a block.
            progress: as in :meth:`build`, in queries.
        """
        op = f"{_NAME}.search_batch"
        k, code, used = _check.count(op, "k", k), _check.choice(op, "mode", mode, _MODES), _threads(op, threads)
        batch = _check.count(op, "batch", batch)
        own = self._queries(op, queries)
        originals = None if rerank is None else self._originals(op, rerank, code)

        def results() -> Iterator[SearchResult]:
            with Progress(op, progress, own.n, "queries") as report:
                for begin in range(0, own.n, batch):
                    end = min(begin + batch, own.n)
                    yield self._search(op, own.part(begin, end), k, code, used, originals)
                    report(end)

        return results()

    def _queries(self, op: str, queries: Any) -> Rows:
        own = as_rows(op, "queries", queries)
        if own.columns != self.columns:
            raise ValueError(f"{op}: queries: expected {self.columns} columns as the index has, got {own.columns}")
        return own

    def _originals(self, op: str, rerank: Any, mode: int) -> Rows:
        own = as_rows(op, "rerank", rerank)
        if own.columns != self.columns or own.n != len(self):
            raise ValueError(f"{op}: rerank: expected ({len(self)}, {self.columns}), got ({own.n}, {own.columns})")
        if mode != _MODES["exact"]:
            raise ValueError(f"{op}: rerank: expected None with mode='approx'")
        return own

    def _search(self, op: str, queries: Rows, k: int, mode: int, threads: int, originals: Rows | None) -> SearchResult:
        core = self._core.copy()  # of one content, whatever is added meanwhile
        kept = _CANDIDATES + _CANDIDATES_PER_HIT * k if mode == _MODES["approx"] else k
        step = max(1, min(_MOST_QUERIES, _MOST_HITS // (2 * kept + 64)))
        parts = [queries.part(begin, min(begin + step, queries.n)) for begin in range(0, queries.n, step)]
        found = [self._search_part(op, core, part, k, mode, threads, originals) for part in parts or [queries]]
        scores, ids, certified = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        if queries.torch:
            return SearchResult(torch.from_numpy(scores), torch.from_numpy(ids), torch.from_numpy(certified))
        return SearchResult(scores, ids, certified)

    def _search_part(
        self, op: str, core: Any, queries: Rows, k: int, mode: int, threads: int, originals: Rows | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        facts = core.facts()
        k = min(k, facts["documents"])
        if mode == _MODES["approx"]:
            candidates = _CANDIDATES + _CANDIDATES_PER_HIT * k
            if facts["documents"] < self._documents_per_candidate * candidates:
                candidates = 0
            scores, ids, _ = self._find(op, core, queries, k, candidates, threads)
            return scores, ids, np.zeros(queries.n, bool)
        if facts["values"] == _VALUES["f32"]:
            scores, ids, _ = self._find(op, core, queries, k, 0, threads)
            return scores, ids, np.ones(queries.n, bool)
        if originals is not None:
            return self._reranked(op, core, queries, k, threads, originals)
        # One more than asked for tells by how much all others are behind.
        scores, ids, bound = self._find(op, core, queries, min(k + 1, facts["documents"]), 0, threads)
        certified = np.ones(queries.n, bool)
        if scores.shape[1] > k > 0:
            certified = scores[:, k - 1].astype(np.float64) - scores[:, k] > 2 * bound
        return np.ascontiguousarray(scores[:, :k]), np.ascontiguousarray(ids[:, :k]), certified

    def _reranked(
        self, op: str, core: Any, queries: Rows, k: int, threads: int, originals: Rows
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        documents = core.facts()["documents"]
        scores, ids = np.zeros((queries.n, k), np.float32), np.zeros((queries.n, k), np.int64)
        certified = np.zeros(queries.n, bool)
        left, candidates = np.arange(queries.n), 2 * k + 16
        while len(left):
            count = min(candidates, documents)
            part = queries.chosen(left)
            stored, found, bound = self._find(op, core, part, count, 0, threads)
            exact = np.empty(stored.shape, np.float32)
            _native.cpu.score_rows(*part[:3], *originals[:3], self.columns, found, exact, threads, op)
            order = np.lexsort((found, -exact), axis=-1)[:, :k]
            scores[left], ids[left] = np.take_along_axis(exact, order, 1), np.take_along_axis(found, order, 1)
            if count == documents:
                certified[left] = True
                break
            # Every other document has at most the last stored score, and the bound of its error more; the scores by
            # which documents are ordered are rounded as well, by less than the bound.
            last = stored[:, -1].astype(np.float64)
            sure = scores[left, k - 1] > last + 2 * bound
            certified[left[sure]] = True
            left, candidates = left[~sure], 2 * candidates
            if candidates > _MOST_CANDIDATES * k + 1024:
                break
        return scores, ids, certified

    def _find(
        self, op: str, core: Any, queries: Rows, k: int, candidates: int, threads: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scores, ids = np.empty((queries.n, k), np.float32), np.empty((queries.n, k), np.int64)
        bound = np.empty((queries.n, 1))
        start = time.perf_counter()
        predicted, postings, windows, _ = core.search(
            *queries[:3], scores, ids, bound, candidates, queries.first, threads, op
        )
        self._searched = {
            "queries": self._searched["queries"] + queries.n,
            "predicted": self._searched["predicted"] + predicted,
            "postings": self._searched["postings"] + postings,
            "windows": self._searched["windows"] + windows,
            "seconds": self._searched["seconds"] + time.perf_counter() - start,
        }
        return scores, ids, bound[:, 0]

    # --- what it is ---

    @property
    def columns(self) -> int:
        return int(self._core.facts()["columns"])

    @property
    def values(self) -> str:
        """How values are stored."""
        return str(list(_VALUES)[self._core.facts()["values"]])

    def __len__(self) -> int:
        return int(self._core.facts()["documents"])

    def __repr__(self) -> str:
        facts = self._core.facts()
        return (
            f"{_NAME}({facts['documents']} documents, {facts['columns']} columns, {facts['postings']} postings, "
            f"{self.values})"
        )

    def stats(self) -> dict[str, Any]:
        """Sizes, and what searches cost so far.

        Returns:
            documents, columns, postings (entries stored), values, window, windows, bytes (of the whole index),
            bytes_per_posting, and sketch_bytes (more, once there was an approximate search); and of all searches of
            this object together: queries, predicted (the sum over columns of queries with it times documents with it),
            searched_postings (multiplied and added; as predicted but for approximate searches), searched_windows, and
            seconds. Searches in several threads at once may lose counts.
        """
        facts = self._core.facts()
        searched = self._searched
        return {
            **{
                name: facts[name]
                for name in ("documents", "columns", "postings", "window", "windows", "bytes", "sketch_bytes")
            },
            "values": self.values,
            "bytes_per_posting": facts["bytes"] / max(facts["postings"], 1),
            "queries": searched["queries"],
            "predicted": searched["predicted"],
            "searched_postings": searched["postings"],
            "searched_windows": searched["windows"],
            "seconds": searched["seconds"],
        }

    def recall_report(
        self, queries: Any, k: int, relevant: Any = None, *, mode: str = "approx", threads: int | None = None
    ) -> dict[str, float]:
        """How much of what it should find a search finds.

        Args:
            queries, k, mode, threads: as in :meth:`search`.
            relevant: None: the documents that the exact search of this index gives; or for each query the documents
                that are right, ids (n, any number).

        Returns:
            recall (mean over queries of the share found), worst, queries_complete (share of queries with all found),
            seconds and, without ``relevant``, exact_seconds and speedup.
        """
        op = f"{_NAME}.recall_report"
        k = _check.count(op, "k", k)
        own = self._queries(op, queries)
        report: dict[str, float] = {}
        start = time.perf_counter()
        code, used = _check.choice(op, "mode", mode, _MODES), _threads(op, threads)
        found = np.asarray(self._search(op, own, k, code, used, None).ids)
        seconds = time.perf_counter() - start
        if relevant is None:
            start = time.perf_counter()
            right = np.asarray(self._search(op, own, k, _MODES["exact"], used, None).ids)
            report["exact_seconds"] = time.perf_counter() - start
            report["speedup"] = report["exact_seconds"] / seconds
        else:
            right = np.asarray(relevant)
            if right.ndim != 2 or len(right) != own.n or right.dtype.kind not in "iu":
                raise ValueError(
                    f"{op}: relevant: expected integers ({own.n}, any number), got {right.dtype} {right.shape}"
                )
        shares = np.array([np.isin(want, got).mean() for want, got in zip(right, found, strict=True) if len(want)])
        mean, worst, complete = (shares.mean(), shares.min(), (shares == 1).mean()) if len(shares) else (1.0, 1.0, 1.0)
        return {
            "recall": float(mean),
            "worst": float(worst),
            "queries_complete": float(complete),
            "seconds": seconds,
            **report,
        }


def _threads(op: str, threads: int | None) -> int:
    return _route.threads() if threads is None else _check.count(op, "threads", threads)
