"""Search of sparse vectors in files: ``python -m subspan.search build`` makes an index, ``query`` searches it.

    python -m subspan.search build ROWS -o INDEX [--values f32|f16|u8] [--columns N] [--tokens]
                                   [--threads N] [--progress]
    python -m subspan.search query INDEX QUERIES [-k 10] [--mode exact|approx] [--mmap] [--batch [N]] [-o RESULTS.jsonl]

ROWS and QUERIES are files of one of two kinds, by their names; QUERIES may be ``-``, standard input, as JSONL.

``.npz``
    What ``scipy.sparse.save_npz`` writes, CSR, CSC or COO. Nothing but NumPy is needed to read it.
JSONL, every other name
    A vector a line, ``{"id": ..., "indices": [3, 7], "values": [0.5, 2]}`` or ``{"id": ..., "vector": {"tea": 0.5}}``.
    The id is a string or an integer, and may be missing: the vector's number, from 0, then takes its place. Keys of
    "vector" are tokens, which get columns in the order in which they come, unless those of the file's first vector
    are all numbers without leading zeros and ``--tokens`` is not given: they are columns then. Lines are read one
    after the other; until the number of columns is known at the end of the file, 12 bytes are kept for every entry,
    with ``--columns`` not even these.

Beside INDEX are ``INDEX.ids.json`` where vectors have ids and ``INDEX.vocabulary.json`` where they have tokens. Each of
the files is replaced at once, and those of another index are refused. Tokens of queries that no document has add
nothing to any score; a warning at the end counts them.

Results are one line for each query, in their order: ``{"query": id or number, "ids": [...], "scores": [...]}``, with
``min(k, documents)`` documents, best first. Without ``--batch`` a line comes before the next query is read.

Exit status: 0; 1 where a file cannot be read or written; 2 where arguments or input are wrong: the message then names
the file, the line, the field, what was expected and what was found.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from . import _search_files as files
from ._search_files import Block, InputError, JsonLines, Vocabulary
from .sparse_index import SparseIndex
from .sparse_rows import SparseRows

PROGRAM = "subspan.search"
#: Of each block that is read: whole windows, and about as many entries.
BLOCK_ROWS, BLOCK_ENTRIES = 8192, 2**22
BATCH = 1024


def whole_number(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"expected an integer in 1 ... 2**31 - 1, got {text!r}")
    return value


def parser() -> argparse.ArgumentParser:
    own = argparse.ArgumentParser(
        prog=f"python -m {PROGRAM}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = own.add_subparsers(dest="command", required=True, metavar="build|query")
    build = commands.add_parser("build", help="make an index of the vectors of a file")
    build.add_argument("rows", metavar="ROWS", help=".jsonl or .npz")
    build.add_argument("-o", "--output", required=True, metavar="INDEX", help="file to write")
    build.add_argument("--values", choices=("f32", "f16", "u8"), default="f32", help="how values are stored")
    build.add_argument("--columns", type=whole_number, metavar="N", help="default: as many as there are")
    build.add_argument("--tokens", action="store_true", help='keys of "vector" are tokens, also if they are numbers')
    build.add_argument("--threads", type=whole_number, metavar="N", help="default: all processors")
    build.add_argument("--progress", action="store_true", help="count documents on standard error")
    query = commands.add_parser("query", help="search an index for the vectors of a file")
    query.add_argument("index", metavar="INDEX")
    query.add_argument("queries", metavar="QUERIES", help=".jsonl, .npz, or - for standard input")
    query.add_argument("-k", type=whole_number, default=10, help="documents for each query (default: 10)")
    query.add_argument("--mode", choices=("exact", "approx"), default="exact")
    query.add_argument("--mmap", action="store_true", help="map the index: read what searches need, when they do")
    query.add_argument(
        "--batch", type=whole_number, nargs="?", const=BATCH, default=1, metavar="N",
        help=f"search for N queries at once ({BATCH} without N): faster in all, results come later",
    )  # fmt: skip
    query.add_argument("-o", "--output", metavar="RESULTS.jsonl", help="default: standard output")
    query.add_argument("--threads", type=whole_number, metavar="N", help="default: all processors")
    return own


# --- build ---


class Builder:
    """Collects blocks, adds them to an index as soon as the columns are known, and writes it with what is beside it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._index: SparseIndex | None = None
        self._waiting: list[Block] = []
        self._ids: list[Any] = []
        self._has_ids = False

    def take(self, block: Block) -> None:
        self._has_ids = self._has_ids or any(own is not None for own in block.ids)
        self._ids += block.ids
        self._waiting.append(block)
        if self._options.columns is not None:
            self.finish(self._options.columns)
        if self._options.progress:
            print(f"\r{len(self._ids)} documents", end="", file=sys.stderr, flush=True)

    def finish(self, columns: int) -> SparseIndex:
        options, done = self._options, 0 if self._index is None else len(self._index)
        waiting, self._waiting = self._waiting, []
        if self._index is None:
            none = SparseRows(np.zeros(0, np.int32), np.zeros(0, np.float32), columns, np.zeros(1, np.int64))
            self._index = SparseIndex.build(none, options.values, threads=options.threads)
        while waiting:
            block = waiting.pop(0)  # its memory is free once it is added
            try:
                self._index.add(block.rows(columns), threads=options.threads)
            except ValueError as error:
                where = f"documents {done} ... {done + len(block.ids) - 1}"
                raise InputError(f"{options.rows}: {where}: {error}") from None
            done += len(block.ids)
        return self._index

    def write(self, index: SparseIndex, vocabulary: Vocabulary | None) -> None:
        path = self._options.output
        index.save(path)
        own_stamp = files.stamp(path)
        tokens = None if vocabulary is None else list(vocabulary.column)
        for kind, entries in (("vocabulary", tokens), ("ids", self._ids if self._has_ids else None)):
            if entries is not None:
                files.write_beside(files.beside(path, kind), kind, own_stamp, entries)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(files.beside(path, kind))


def build(options: argparse.Namespace) -> None:
    builder, largest, vocabulary = Builder(options), files.LARGEST[options.values], None
    if files.is_npz(options.rows):
        block, columns = files.read_npz(options.rows, options.columns, largest)
        builder.take(block)
    else:
        new = Vocabulary() if options.tokens else None
        reader = JsonLines(options.rows, options.columns, new, guess=not options.tokens, largest=largest)
        for block in reader.blocks(BLOCK_ROWS, BLOCK_ENTRIES):
            builder.take(block)
        vocabulary = reader.vocabulary
        columns = options.columns or (reader.width if vocabulary is None else len(vocabulary.column))
        if columns == 0:
            raise InputError(f"{reader.name}: expected documents with entries, or --columns, got none")
    index = builder.finish(columns)
    if options.progress:
        print(f"\r{index}", file=sys.stderr)
    builder.write(index, vocabulary)


# --- query ---


def query_blocks(options: argparse.Namespace, columns: int, vocabulary: Vocabulary | None) -> Iterator[Block]:
    largest = files.LARGEST["f32"]
    if files.is_npz(options.queries):
        whole, _ = files.read_npz(options.queries, columns, largest)
        for begin in range(0, len(whole.ids), options.batch):
            offsets = whole.offsets[begin : begin + options.batch + 1]
            own = slice(int(offsets[0]), int(offsets[-1]))
            ids = whole.ids[begin : begin + options.batch]
            yield Block(offsets - offsets[0], whole.indices[own], whole.values[own], ids)
    else:
        reader = JsonLines(options.queries, columns, vocabulary, guess=False, largest=largest)
        yield from reader.blocks(options.batch, 0)


def query(options: argparse.Namespace) -> None:
    try:
        index = SparseIndex.load(options.index, mmap=options.mmap, threads=options.threads)
    except ValueError as error:
        raise InputError(f"{options.index}: {error}") from None
    tokens = files.read_beside(options.index, "vocabulary", None)
    names = files.read_beside(options.index, "ids", len(index))
    if tokens is not None and len(tokens) > index.columns:
        raise InputError(f"{files.beside(options.index, 'vocabulary')}: expected {index.columns} tokens at most, "
                         f"got {len(tokens)}")  # fmt: skip
    vocabulary = None if tokens is None else Vocabulary(tokens)
    with contextlib.ExitStack() as stack:
        write: Any = sys.stdout
        if options.output is not None:
            write = stack.enter_context(open(options.output, "w", encoding="ascii"))
        number = 0
        for block in query_blocks(options, index.columns, vocabulary):
            try:
                found = index.search(block.rows(index.columns), options.k, options.mode, options.threads)
            except ValueError as error:
                raise InputError(f"{options.queries}: queries {number} ... in {options.index}: {error}") from None
            for own, scores, ids in zip(block.ids, found.scores, found.ids.tolist(), strict=True):
                write.write(line(number if own is None else own, scores, ids, names))
                number += 1
            write.flush()
    if vocabulary is not None and vocabulary.unknown:
        print(f"{PROGRAM}: warning: {vocabulary.unknown} tokens of queries are in no document", file=sys.stderr)


def line(own: Any, scores: np.ndarray, ids: list[int], names: list[Any] | None) -> str:
    if names is not None:
        ids = [number if names[number] is None else names[number] for number in ids]
    digits = ", ".join(str(score) for score in scores)  # the fewest that give the same float32
    return f'{{"query": {json.dumps(own)}, "ids": {json.dumps(ids)}, "scores": [{digits}]}}\n'


# --- what goes wrong ---


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        {"build": build, "query": query}[options.command](options)
    except (InputError, ValueError) as error:
        return failed(2, str(error))
    except BrokenPipeError:  # whoever reads the results has seen enough
        with contextlib.suppress(OSError, io.UnsupportedOperation):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        name = "" if error.filename is None else f"{error.filename}: "
        return failed(1, f"{name}{error.strerror or error}")
    except MemoryError:
        return failed(1, "not enough memory")
    except KeyboardInterrupt:
        return failed(130, "interrupted")
    return 0


def failed(status: int, message: str) -> int:
    print(f"{PROGRAM}: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
