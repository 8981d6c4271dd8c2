"""Sparse vectors in files, JSONL and .npz, and the files beside an index: what ``python -m subspan.search`` reads."""

from __future__ import annotations

import json
import math
import os
import sys
import zipfile
import zlib
from array import array
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import numpy as np

from ._atomic_file import replacing
from .sparse_rows import SparseRows

#: As many as an index can have.
MOST_COLUMNS = 2**24
#: Magnitudes that the types of values hold after rounding.
LARGEST = {"f32": 3.4028235677973366e38, "f16": 65520.0, "u8": 3.4028235677973366e38}

Id = str | int


class InputError(Exception):
    """Wrong input: the message says where, what was expected, and what was found."""


class Block(NamedTuple):
    """Some consecutive vectors of a file."""

    offsets: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    ids: list[Id | None]

    def rows(self, columns: int) -> SparseRows:
        return SparseRows(self.indices, self.values, columns, self.offsets)


class Vocabulary:
    """Columns of tokens: of what is built, which grows, or of an index that is there."""

    def __init__(self, tokens: list[str] | None = None) -> None:
        self.column = {token: number for number, token in enumerate(tokens or [])}
        self.fixed = tokens is not None
        self.unknown = 0  # tokens of queries that the index does not have

    def columns(self, vector: dict[str, Any]) -> list[int]:
        column = self.column
        if not self.fixed:
            return [column.setdefault(token, len(column)) for token in vector]
        return [column.get(token, -1) for token in vector]


def is_npz(path: str) -> bool:
    return path.lower().endswith(".npz")


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- JSONL ---


class JsonLines:
    """The vectors of a file with one JSON object a line, in blocks: only a block is in memory.

    Args:
        path: the file, "-" for standard input.
        columns: of the index; None while it is being built and they are not known.
        vocabulary: None where the keys of vectors are columns.
        guess: whether to have a new vocabulary if the keys of the first vector are not all numbers.
        largest: magnitude of values.
    """

    def __init__(
        self, path: str, columns: int | None, vocabulary: Vocabulary | None, guess: bool, largest: float
    ) -> None:
        self.path = path
        self.name = "standard input" if path == "-" else path
        self.columns = columns
        self.vocabulary = vocabulary
        self._guess = guess
        self._largest = largest
        self._line = 0
        self._arrays = False  # a vector was given by indices
        self.width = 0  # one more than the largest column so far

    def blocks(self, rows: int, entries: int) -> Iterator[Block]:
        """Blocks of a multiple of ``rows`` vectors, more than one only until there are so many entries."""
        with self._open() as file:
            offsets, indices, values, ids = array("q", [0]), array("i"), array("d"), list[Id | None]()
            for line in file:
                self._line += 1
                if line.isspace():
                    continue
                ids.append(self._take(line, indices, values))
                offsets.append(len(indices))
                if len(ids) % rows == 0 and (rows == 1 or len(indices) >= entries):
                    yield _block(offsets, indices, values, ids)
                    offsets, indices, values, ids = array("q", [0]), array("i"), array("d"), list[Id | None]()
            if ids:
                yield _block(offsets, indices, values, ids)

    def _open(self) -> IO[bytes]:
        return os.fdopen(os.dup(sys.stdin.fileno()), "rb") if self.path == "-" else open(self.path, "rb")

    def error(self, field: str, expected: str, got: Any) -> InputError:
        where = f"{field}: " if field else ""
        return InputError(f"{self.name}: line {self._line}: {where}expected {expected}, got {got}")

    def _take(self, line: bytes, indices: array[int], values: array[float]) -> Id | None:
        try:
            vector = json.loads(line.decode("utf-8-sig" if self._line == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise self.error("", "UTF-8", f"byte {line[error.start]:#04x} at {error.start}") from None
        except json.JSONDecodeError as error:
            raise self.error("", "a JSON object", f"{error.msg} at column {error.colno}") from None
        except (ValueError, RecursionError) as error:
            raise self.error("", "a JSON object", str(error)) from None
        if not isinstance(vector, dict):
            raise self.error("", "a JSON object", shown(vector))
        own_id = vector.get("id")
        if own_id is not None and type(own_id) not in (str, int):
            raise self.error("id", "a string or an integer", shown(own_id))
        if "vector" in vector and not ("indices" in vector or "values" in vector):
            self._take_vector(vector["vector"], indices, values)
        elif "vector" not in vector and "indices" in vector and "values" in vector:
            self._take_arrays(vector["indices"], vector["values"], indices, values)
        else:
            raise self.error("", '"indices" and "values", or "vector"', _fields(vector))
        return own_id

    def _take_arrays(self, own: Any, weights: Any, indices: array[int], values: array[float]) -> None:
        for field, entries in (("indices", own), ("values", weights)):
            if not isinstance(entries, list):
                raise self.error(field, "a list", shown(entries))
        if len(own) != len(weights):
            raise self.error("values", f"{len(own)} numbers, as many as indices", len(weights))
        if self.vocabulary is not None and not self.vocabulary.fixed:
            raise self.error("indices", '"vector" with tokens as before', '"indices"')
        self._arrays = True
        if not set(map(type, own)) <= {int}:
            wrong = next(i for i, column in enumerate(own) if type(column) is not int)
            raise self.error(f"indices[{wrong}]", "an integer", shown(own[wrong]))
        self._check_columns(own, lambda i: f"indices[{i}]")
        self._check_values(weights, lambda i: f"values[{i}]")
        indices.extend(own)
        values.extend(weights)

    def _take_vector(self, vector: Any, indices: array[int], values: array[float]) -> None:
        if not isinstance(vector, dict):
            raise self.error("vector", "an object of a value for each token or column", shown(vector))
        weights = list(vector.values())
        keys = list(vector)
        self._check_values(weights, lambda i: f"vector[{json.dumps(keys[i])}]")
        if self._guess and vector:
            self._guess = False
            if not self._arrays and not all(map(_is_column, vector)):
                self.vocabulary = Vocabulary()
        if self.vocabulary is None:
            if not all(map(_is_column, vector)):
                wrong = next(key for key in vector if not _is_column(key))
                raise self.error("vector", "columns for keys, as others in this file or index", json.dumps(wrong))
            columns = list(map(int, vector))
            self._check_columns(columns, lambda i: f"vector[{json.dumps(keys[i])}]")
        else:
            columns = self.vocabulary.columns(vector)
            if self.vocabulary.fixed and -1 in columns:
                self.vocabulary.unknown += columns.count(-1)
                weights = [weight for weight, column in zip(weights, columns, strict=True) if column >= 0]
                columns = [column for column in columns if column >= 0]
            most = MOST_COLUMNS if self.columns is None else self.columns
            if len(self.vocabulary.column) > most:
                raise self.error("vector", f"at most {most} different tokens in all", "one more")
        indices.extend(columns)
        values.extend(weights)

    def _check_columns(self, columns: list[int], field: Any) -> None:
        if not columns:
            return
        most = MOST_COLUMNS if self.columns is None else self.columns
        if min(columns) < 0 or max(columns) >= most:
            wrong = next(i for i, column in enumerate(columns) if not 0 <= column < most)
            raise self.error(field(wrong), f"a column in 0 ... {most - 1}", shown(columns[wrong]))
        self.width = max(self.width, max(columns) + 1)

    def _check_values(self, weights: list[Any], field: Any) -> None:
        largest = self._largest
        if not weights or (
            set(map(type, weights)) <= {int, float}
            and -largest < min(weights)
            and max(weights) < largest
            and not math.isnan(sum(weights))
        ):
            return
        for i, weight in enumerate(weights):
            if type(weight) not in (int, float) or not -largest < weight < largest:
                limit = "" if largest > 1e38 else f" of magnitude below {largest:.0f}"
                raise self.error(field(i), f"a finite number{limit}", shown(weight))


def _is_column(key: str) -> bool:
    return key.isascii() and key.isdigit() and (key == "0" or key[0] != "0") and len(key) < 10


def _fields(vector: dict[str, Any]) -> str:
    return ", ".join(map(json.dumps, list(vector)[:5])) or "no field"


def _block(offsets: array[int], indices: array[int], values: array[float], ids: list[Id | None]) -> Block:
    return Block(np.array(offsets, np.int64), np.array(indices, np.int32), np.array(values, np.float64), ids)


# --- .npz ---


def read_npz(path: str, columns: int | None, largest: float) -> tuple[Block, int]:
    """The rows of a matrix that scipy.sparse.save_npz wrote, and how many columns it has."""
    arrays: dict[str, np.ndarray] = {}
    try:
        with open(path, "rb") as opened:
            file: Any = np.load(opened, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise InputError(f"{path}: expected a file of scipy.sparse.save_npz, got one array")
            for name in {"format", "shape", "data", "indices", "indptr", "row", "col"} & set(file.files):
                arrays[name] = file[name]
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise InputError(f"{path}: expected a file of scipy.sparse.save_npz, got {str(error)[:200]}") from None
    return _csr(path, arrays, columns, largest)


def _csr(path: str, arrays: dict[str, np.ndarray], columns: int | None, largest: float) -> tuple[Block, int]:
    def error(field: str, expected: str, got: Any) -> InputError:
        return InputError(f"{path}: {field}: expected {expected}, got {got}")

    def integers(name: str) -> np.ndarray:
        own = arrays.get(name)
        if own is None or own.ndim != 1 or own.dtype.kind not in "iu":
            raise error(name, "integers of one dimension", "none" if own is None else f"{own.dtype} {own.shape}")
        return own.astype(np.int64)

    form = arrays.get("format")
    kind = b"" if form is None or form.ndim else form.item()
    kind = kind.decode("ascii", "replace") if isinstance(kind, bytes) else str(kind)
    if kind not in ("csr", "csc", "coo"):
        raise error("format", "csr, csc or coo, as scipy.sparse.save_npz writes them", kind or "none")
    shape = integers("shape").tolist()
    if len(shape) != 2 or not 0 <= shape[0] < 2**32 or not 1 <= shape[1] <= MOST_COLUMNS:
        raise error("shape", f"(vectors, columns), 1 ... {MOST_COLUMNS} columns", tuple(shape))
    if columns is not None and shape[1] != columns:
        raise error("shape", f"{columns} columns", shape[1])
    values = arrays.get("data")
    if values is None or values.ndim != 1 or values.dtype.kind not in "biuf":
        raise error("data", "numbers of one dimension", "none" if values is None else f"{values.dtype} {values.shape}")
    values = values.astype(np.float32 if values.dtype == np.float32 else np.float64)
    if kind == "coo":
        places = {"row": integers("row"), "col": integers("col")}
    else:
        major, minor = ("row", "col") if kind == "csr" else ("col", "row")
        starts = integers("indptr")
        length = shape[0] if kind == "csr" else shape[1]
        if len(starts) != length + 1 or starts[0] != 0 or starts[-1] != len(values) or (np.diff(starts) < 0).any():
            raise error("indptr", f"{length + 1} numbers that rise from 0 to {len(values)}", f"{len(starts)} others")
        places = {minor: integers("indices")}
        if kind == "csc":
            places[major] = np.repeat(np.arange(length), np.diff(starts))
    for name, own in places.items():
        field = name if kind == "coo" else "indices"
        if len(own) != len(values):
            raise error(field, f"{len(values)} numbers, as many as data", len(own))
        limit = shape[0] if name == "row" else shape[1]
        if len(own) and (own.min() < 0 or own.max() >= limit):
            wrong = int(np.flatnonzero((own < 0) | (own >= limit))[0])
            raise error(f"{field}[{wrong}]", f"a {name} in 0 ... {limit - 1}", own[wrong])
    limit = np.inf if values.dtype == np.float32 and largest > 1e38 else largest  # which float32 cannot hold
    bad = np.flatnonzero(~(np.abs(values) < limit))
    if len(bad):
        raise error(f"data[{bad[0]}]", f"finite numbers of magnitude below {largest:.6g}", values[bad[0]])
    if "row" in places:
        order = np.argsort(places["row"], kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(places["row"], minlength=shape[0]), dtype=np.int64)])
        places["col"], values = places["col"][order], values[order]
    return Block(starts, places["col"].astype(np.int32), values, [None] * shape[0]), shape[1]


# --- beside an index ---


def beside(index: str, kind: str) -> str:
    return f"{index}.{kind}.json"


def stamp(index: str) -> str:
    """What tells the file of an index from others: its header, which has checksums over all of it."""
    with open(index, "rb") as file:
        return f"{zlib.crc32(file.read(128)):08x}"


def write_beside(path: str, kind: str, own_stamp: str, entries: list[Any]) -> None:
    with replacing(path) as file:
        file.write(f'{{"kind": "{kind}", "index": "{own_stamp}", "entries": [\n'.encode())
        for begin in range(0, len(entries), 4096):
            end = begin + 4096
            text = json.dumps(entries[begin:end])[1:-1]
            file.write(text.encode() + (b",\n" if end < len(entries) else b""))
        file.write(b"]}\n")


def read_beside(index: str, kind: str, count: int | None) -> list[Any] | None:
    """The entries, or None where there is no such file."""
    path = beside(index, kind)
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected the {kind} of an index, got {error}") from None
    if not isinstance(content, dict) or content.get("kind") != kind or not isinstance(content.get("entries"), list):
        raise InputError(f"{path}: expected the {kind} of an index, got other JSON")
    if content.get("index") != stamp(index):
        raise InputError(f"{path}: expected the {kind} of {index}, got those of another index: build it again")
    entries: list[Any] = content["entries"]
    if count is not None and len(entries) != count:
        raise InputError(f"{path}: expected {count} entries, got {len(entries)}")
    wanted = (str,) if kind == "vocabulary" else (str, int, type(None))
    for number, entry in enumerate(entries):
        if type(entry) not in wanted:
            raise InputError(f"{path}: entries[{number}]: expected a string, got {shown(entry)}")
    return entries
