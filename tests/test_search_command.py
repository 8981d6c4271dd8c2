"""`python -m subspan.search`: files in, results out, and what it says where something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from subspan import SparseIndex
from subspan import search as command
from test_sparse_index import documents

ROWS, QUERIES = documents(500, 40), documents(20, 40, seed=1)


def lines(path: Path, vectors: list[Any]) -> Path:
    path.write_text("".join(json.dumps(vector) + "\n" for vector in vectors))
    return path


def with_indices(matrix: sp.csr_array, **ids: Any) -> list[dict[str, Any]]:
    rows = zip(matrix.indptr, matrix.indptr[1:], strict=False)
    vectors = [{"indices": matrix.indices[a:b].tolist(), "values": matrix.data[a:b].tolist()} for a, b in rows]
    return [vector | {name: give(i) for name, give in ids.items()} for i, vector in enumerate(vectors)]


def with_keys(matrix: sp.csr_array, key: Any) -> list[dict[str, Any]]:
    return [
        {"vector": {key(j): value for j, value in zip(own["indices"], own["values"], strict=True)}}
        for own in with_indices(matrix)
    ]


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def same(found: list[dict[str, Any]], k: int = 10, rows: Any = ROWS, values: str = "f32", **options: Any) -> bool:
    scores, ids = SparseIndex.build(rows, values).search(QUERIES, k, **options)
    return [own["ids"] for own in found] == ids.tolist() and np.array_equal(
        np.array([own["scores"] for own in found], np.float32), scores
    )


def run(capsys: Any, *arguments: Any) -> tuple[int, str]:
    """Exit status, and what it says on standard error."""
    try:
        status = command.main([str(argument) for argument in arguments])
    except SystemExit as left:
        status = int(left.code or 0)
    return status, capsys.readouterr().err


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "matrix", "indices", "columns"])
@pytest.mark.parametrize("values", ["f32", "u8"])
def test_files_give_what_the_index_gives(tmp_path: Path, kind: str, values: str, capsys: Any) -> None:
    rows, queries = tmp_path / "rows.jsonl", tmp_path / "queries.jsonl"
    if kind in ("indices", "columns"):
        lines(rows, with_indices(ROWS) if kind == "indices" else with_keys(ROWS, str))
        lines(queries, with_indices(QUERIES) if kind == "indices" else with_keys(QUERIES, str))
    else:
        rows, queries = tmp_path / "rows.npz", tmp_path / "queries.NPZ"
        form = {"csr": sp.csr_array, "csc": sp.csc_array, "coo": sp.coo_array, "matrix": sp.csr_matrix}[kind]
        sp.save_npz(rows, form(ROWS), compressed=kind == "coo")
        with queries.open("wb") as file:
            sp.save_npz(file, form(QUERIES))
    index, out = tmp_path / "index", tmp_path / "results.jsonl"
    assert run(capsys, "build", rows, "-o", index, "--values", values, "--threads", 2) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([rows.name, queries.name, "index"])
    assert SparseIndex.load(index).values == values
    for options in ([], ["--mmap", "--batch"], ["--batch", 7, "-k", 10, "--mode", "exact", "--threads", 1]):
        assert run(capsys, "query", index, queries, "-o", out, *options) == (0, "")
        found = results(out)
        assert [own["query"] for own in found] == list(range(20)) and same(found, values=values)
    assert run(capsys, "query", index, queries, "-o", out, "-k", 3, "--mode", "approx") == (0, "")
    assert all(len(own["ids"]) == 3 for own in results(out))


def test_columns_that_are_known_stream(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are added as they are read; the index is the same."""
    monkeypatch.setattr(command, "BLOCK_ROWS", 64)
    monkeypatch.setattr(command, "BLOCK_ENTRIES", 100)
    rows = lines(tmp_path / "rows", with_indices(ROWS))
    assert run(capsys, "build", rows, "-o", tmp_path / "all")[0] == 0
    status, said = run(capsys, "build", rows, "-o", tmp_path / "parts", "--columns", 40, "--progress")
    assert status == 0 and "\r64 documents" in said and "SparseIndex(500 documents" in said
    assert (tmp_path / "all").read_bytes() == (tmp_path / "parts").read_bytes()
    assert run(capsys, "build", rows, "-o", tmp_path / "wide", "--columns", 100)[0] == 0
    assert SparseIndex.load(tmp_path / "wide").columns == 100


def test_tokens_and_ids(tmp_path: Path, capsys: Any) -> None:
    vectors = [own | {"id": f"d{i}" if i % 3 else i} for i, own in enumerate(with_keys(ROWS, lambda j: f"wörd {j}"))]
    del vectors[4]["id"]
    rows, queries = lines(tmp_path / "rows", vectors), with_keys(QUERIES, lambda j: f"wörd {j}")
    queries[3]["vector"]["unheard"] = queries[3]["vector"]["of"] = 2.0
    queries[5]["id"] = "five"
    index, out = tmp_path / "index", tmp_path / "out"
    assert run(capsys, "build", rows, "-o", index) == (0, "")
    status, said = run(capsys, "query", index, lines(tmp_path / "queries", queries), "-o", out)
    assert status == 0 and said == "subspan.search: warning: 2 tokens of queries are in no document\n"
    found = results(out)
    assert [own["query"] for own in found] == [*range(5), "five", *range(6, 20)]
    names = {4: 4} | {i: f"d{i}" if i % 3 else i for i in range(500) if i != 4}
    _, ids = SparseIndex.build(ROWS).search(QUERIES, 10)
    assert [own["ids"] for own in found] == [[names[i] for i in row] for row in ids.tolist()]
    # Columns of an index with a vocabulary may be used as well.
    tokens = json.loads((tmp_path / "index.vocabulary.json").read_text())["entries"]
    assert run(capsys, "query", index, lines(tmp_path / "q", [{"indices": [0], "values": [1.0]}]), "-o", out)[0] == 0
    by_column = results(out)[0]
    assert run(capsys, "query", index, lines(tmp_path / "q", [{"vector": {tokens[0]: 1.0}}]), "-o", out)[0] == 0
    assert results(out)[0] == by_column


def test_tokens_that_are_numbers(tmp_path: Path, capsys: Any) -> None:
    rows = lines(tmp_path / "rows", [{"vector": {"1984": 1.0, "7": 0.5}}, {"vector": {"7": 2.0, "x": 1.0}}])
    status, said = run(capsys, "build", rows, "-o", tmp_path / "index")
    assert status == 2 and 'line 2: vector: expected columns for keys, as others in this file or index, got "x"' in said
    assert run(capsys, "build", rows, "-o", tmp_path / "index", "--tokens") == (0, "")
    assert SparseIndex.load(tmp_path / "index").columns == 3


def test_files_beside_an_index_are_its_own(tmp_path: Path, capsys: Any) -> None:
    rows = lines(tmp_path / "rows", [{"id": "a", "vector": {"x": 1.0}}])
    index, query = tmp_path / "index", lines(tmp_path / "query", [{"vector": {"x": 1.0}}])
    assert run(capsys, "build", rows, "-o", index)[0] == 0
    kept = (tmp_path / "index.vocabulary.json").read_text()
    SparseIndex.build(documents(5, 1)).save(index)
    status, said = run(capsys, "query", index, query)
    assert status == 2 and "index.vocabulary.json: expected the vocabulary of" in said and "build it again" in said
    assert run(capsys, "build", rows, "-o", index)[0] == 0
    for wrong in ("{", "[1]", kept.replace('"x"', "3"), kept.replace('"x"', '"x", "y"')):
        (tmp_path / "index.vocabulary.json").write_text(wrong)
        status, said = run(capsys, "query", index, query)
        assert status == 2 and "index.vocabulary.json: " in said and "expected" in said, said
    # An index without ids and tokens leaves none of an older one.
    assert run(capsys, "build", lines(rows, [{"indices": [0], "values": [1]}]), "-o", index)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "query", "rows"]


GOOD = {"indices": [0, 2], "values": [1.0, 2.0]}
BAD_LINES: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{'a': 1}", "expected a JSON object, got Expecting property name"),
    "number": (b"3", "expected a JSON object, got 3"),
    "no UTF-8": (b'{"id": "\xff"}', "expected UTF-8, got byte 0xff at 8"),
    "deep": (b"[" * 100000, "expected a JSON object, got "),
    "no fields": ({"id": 3}, 'expected "indices" and "values", or "vector", got "id"'),
    "both": (GOOD | {"vector": {}}, 'expected "indices" and "values", or "vector", got "indices"'),
    "half": ({"indices": []}, 'expected "indices" and "values", or "vector", got "indices"'),
    "id": (GOOD | {"id": 1.5}, "id: expected a string or an integer, got 1.5"),
    "id flag": (GOOD | {"id": True}, "id: expected a string or an integer, got True"),
    "indices": ({"indices": 3, "values": []}, "indices: expected a list, got 3"),
    "values": ({"indices": [], "values": {}}, "values: expected a list, got {}"),
    "lengths": ({"indices": [1], "values": []}, "values: expected 1 numbers, as many as indices, got 0"),
    "float": ({"indices": [0, 1.0], "values": [1, 1]}, "indices[1]: expected an integer, got 1.0"),
    "negative": ({"indices": [-1], "values": [1]}, "indices[0]: expected a column in 0 ... 9, got -1"),
    "large": ({"indices": [4, 10], "values": [1, 1]}, "indices[1]: expected a column in 0 ... 9, got 10"),
    "string": ({"indices": [0], "values": ["1"]}, "values[0]: expected a finite number, got '1'"),
    "flag": ({"indices": [0], "values": [True]}, "values[0]: expected a finite number, got True"),
    "null": ({"indices": [0, 1], "values": [1, None]}, "values[1]: expected a finite number, got None"),
    "nan": ({"indices": [0, 1], "values": [1, float("nan")]}, "values[1]: expected a finite number, got nan"),
    "inf": ({"indices": [0], "values": [-float("inf")]}, "values[0]: expected a finite number, got -inf"),
    "float32": ({"indices": [0], "values": [1e39]}, "values[0]: expected a finite number, got 1e+39"),
    "digits": ({"indices": [0], "values": [10**400]}, "values[0]: expected a finite number, got 1000"),
    "vector": ({"vector": [1]}, "vector: expected an object of a value for each token or column, got [1]"),
    "vector value": ({"vector": {"3": "x"}}, "vector[\"3\"]: expected a finite number, got 'x'"),
    "vector key": (
        {"vector": {"tea": 1}},
        'vector: expected columns for keys, as others in this file or index, got "t',
    ),
    "vector column": ({"vector": {"12": 1}}, 'vector["12"]: expected a column in 0 ... 9, got 12'),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_wrong_lines(tmp_path: Path, name: str, capsys: Any) -> None:
    wrong, message = BAD_LINES[name]
    text = wrong if isinstance(wrong, bytes) else json.dumps(wrong).encode()
    index, path = tmp_path / "index", tmp_path / "rows"
    SparseIndex.build(documents(5, 10)).save(index)
    path.write_bytes(json.dumps(GOOD).encode() + b"\n\n" + text + b"\n")
    before = index.read_bytes()
    for arguments in (("build", path, "-o", index, "--columns", 10), ("query", index, path)):
        status, said = run(capsys, *arguments)
        assert status == 2 and said.startswith(f"subspan.search: {path}: line 3: {message}"), said
        assert said.count("\n") == 1
    assert index.read_bytes() == before


def test_wrong_values_of_a_type(tmp_path: Path, capsys: Any) -> None:
    rows = lines(tmp_path / "rows", [GOOD, {"indices": [1], "values": [1e5]}])
    status, said = run(capsys, "build", rows, "-o", tmp_path / "index", "--values", "f16")
    assert status == 2 and "line 2: values[0]: expected a finite number of magnitude below 65520, got 100000" in said
    rows = lines(tmp_path / "rows", [GOOD, {"indices": [1, 1], "values": [4e4, 4e4]}])  # which add up
    status, said = run(capsys, "build", rows, "-o", tmp_path / "index", "--values", "f16")
    assert status == 2 and f"{rows}: documents 0 ... 1: SparseIndex.add: rows: expected magnitudes below" in said
    assert run(capsys, "build", lines(tmp_path / "rows", []), "-o", tmp_path / "index")[0] == 2
    status, said = run(capsys, "build", lines(tmp_path / "rows", with_keys(ROWS, "t{}".format)), "-o",
                       tmp_path / "index", "--columns", 5)  # fmt: skip
    assert status == 2 and "vector: expected at most 5 different tokens in all, got one more" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows"]


def npz(path: Path, **changes: Any) -> Path:
    matrix = sp.csr_array(documents(6, 10))
    arrays = {"format": b"csr", "shape": [6, 10], "data": matrix.data, "indices": matrix.indices,
              "indptr": matrix.indptr} | changes  # fmt: skip
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def changed(length: int, place: int, value: float, dtype: Any = np.int32) -> np.ndarray:
    own = np.zeros(length, dtype)
    own[place] = value
    return own


ENTRIES = documents(6, 10).nnz
BAD_NPZ: dict[str, tuple[dict[str, Any], str]] = {
    "format": ({"format": b"bsr"}, "format: expected csr, csc or coo, as scipy.sparse.save_npz writes them, got bsr"),
    "no format": ({"format": None}, "format: expected csr, csc or coo, as scipy.sparse.save_npz writes them, got none"),
    "shape": ({"shape": [6, 10, 1]}, "shape: expected (vectors, columns), 1 ... 16777216 columns, got (6, 10, 1)"),
    "columns": ({"shape": [6, 11]}, "shape: expected 10 columns, got 11"),
    "objects": ({"data": np.array([{}])}, "expected a file of scipy.sparse.save_npz, got Object arrays"),
    "complex": ({"data": np.ones(ENTRIES, complex)}, "data: expected numbers of one dimension, got complex128"),
    "no data": ({"data": None}, "data: expected numbers of one dimension, got none"),
    "indices": ({"indices": np.ones(ENTRIES)}, "indices: expected integers of one dimension, got float64"),
    "few": ({"indices": np.ones(3, int)}, f"indices: expected {ENTRIES} numbers, as many as data, got 3"),
    "column": ({"indices": changed(ENTRIES, 4, 10)}, "indices[4]: expected a col in 0 ... 9, got 10"),
    "negative": ({"indices": changed(ENTRIES, 2, -1)}, "indices[2]: expected a col in 0 ... 9, got -1"),
    "indptr": ({"indptr": [0, 9, 3, 4, 5, 6, ENTRIES]}, f"indptr: expected 7 numbers that rise from 0 to {ENTRIES}"),
    "nan": ({"data": changed(ENTRIES, 3, np.nan, float)}, "data[3]: expected finite numbers of magnitude below 3.4"),
    "row": ({"format": b"coo", "row": changed(ENTRIES, 1, 6), "col": changed(ENTRIES, 0, 0)}, "row[1]: expected a row"),
    "starts": ({"format": b"csc"}, f"indptr: expected 11 numbers that rise from 0 to {ENTRIES}, got 7 others"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_NPZ)
def test_wrong_npz(tmp_path: Path, name: str, capsys: Any) -> None:
    changes, message = BAD_NPZ[name]
    path = npz(tmp_path / "rows.npz", **changes)
    status, said = run(capsys, "build", path, "-o", tmp_path / "index", "--columns", 10)
    assert status == 2 and said.startswith(f"subspan.search: {path}: {message}"), said


def test_damaged_npz_and_index(tmp_path: Path, capsys: Any) -> None:
    path = npz(tmp_path / "rows.npz")
    data = path.read_bytes()
    for content in (b"", b"PK\3\4", data[: len(data) // 2], data[:-30], b"\x93NUMPY\1\0", b"text"):
        path.write_bytes(content)
        status, said = run(capsys, "build", path, "-o", tmp_path / "index")
        assert status == 2 and f"{path}: expected a file of scipy.sparse.save_npz, got " in said, said
    np.save(tmp_path / "one", np.ones(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    status, said = run(capsys, "build", tmp_path / "one.npz", "-o", tmp_path / "index")
    assert status == 2 and "got one array" in said
    status, said = run(capsys, "query", path, path)
    assert status == 2 and f"{path}: SparseIndex.load: path: expected a file of a SparseIndex" in said


def test_files_that_cannot_be_read_or_written(tmp_path: Path, capsys: Any) -> None:
    rows = lines(tmp_path / "rows", [GOOD])
    none = tmp_path / "none"
    assert run(capsys, "build", none, "-o", none) == (1, f"subspan.search: {none}: No such file or directory\n")
    status, said = run(capsys, "build", f"{none}.npz", "-o", none)
    assert status == 1 and "No such file" in said
    status, said = run(capsys, "build", rows, "-o", none / "index")
    assert status == 1 and f"{none / 'index'}" in said and "No such file" in said
    assert run(capsys, "query", none, rows)[0] == 1
    assert run(capsys, "build", rows, "-o", tmp_path / "index")[0] == 0
    assert run(capsys, "query", tmp_path / "index", none)[0] == 1
    assert run(capsys, "query", tmp_path / "index", rows, "-o", none / "out")[0] == 1
    for arguments in ((), ("build", rows), ("query", rows), ("build", rows, "-o", none, "--values", "f8"),
                      ("query", none, rows, "-k", "0"), ("query", none, rows, "--mode", "fast")):  # fmt: skip
        status, said = run(capsys, *arguments)
        assert status == 2 and "usage: python -m subspan.search" in said


@pytest.mark.no_sanitizer
def test_the_example_of_the_readme(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    example = next(part for part in readme.split("```sh\n")[1:] if "subspan.search" in part).partition("```")[0]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ran = subprocess.run(
        ["sh", "-e"], input=example, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert f"# {ran.stdout}" == example.splitlines(keepends=True)[-1]


def process(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "subspan.search", *map(str, arguments)],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


@pytest.mark.no_sanitizer
def test_the_command_answers_each_query_before_the_next(tmp_path: Path) -> None:
    rows = lines(tmp_path / "rows", [{"id": "tea", "vector": {"green": 1.0}}, {"vector": {"black": 2.0, "green": 0.1}}])
    built = process("build", rows, "-o", tmp_path / "index")
    assert built.communicate(timeout=60) == ("", "") and built.returncode == 0
    with process("query", tmp_path / "index", "-", "-k", 1) as answering:
        assert answering.stdin is not None and answering.stdout is not None
        for token, expected in (("green", "tea"), ("black", 1)):
            answering.stdin.write(json.dumps({"vector": {token: 1.0}}) + "\n")
            answering.stdin.flush()
            assert json.loads(answering.stdout.readline())["ids"] == [expected]
        answering.stdin.close()
        assert answering.wait(60) == 0
    with process("query", tmp_path / "none", rows) as failing:
        assert failing.stderr is not None and failing.stdout is not None
        assert "Traceback" not in failing.stderr.read() and failing.wait(60) == 1
    # A reader that leaves early.
    many = lines(tmp_path / "many", [{"vector": {"green": 1.0}}] * 20000)
    with process("query", tmp_path / "index", many, "--batch") as left:
        assert left.stderr is not None and left.stdout is not None
        left.stdout.readline()
        left.stdout.close()
        assert left.stderr.read() == "" and left.wait(60) == 1


@pytest.mark.no_sanitizer
def test_the_command_loads_no_torch() -> None:
    """Nor scipy; whoever imports the package has it as ever."""
    for start in (["-m", "subspan.search"], ["-msubspan.search"]):
        shown = subprocess.run(
            [sys.executable, "-X", "importtime", *start, "--help"], capture_output=True, text=True, timeout=60
        )
        loaded = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
        assert shown.returncode == 0 and "JSONL" in shown.stdout
        assert "numpy" in loaded and not {"torch", "scipy"} & loaded
    code = "import sys, subspan.search; assert 'torch' in sys.modules"
    assert subprocess.run([sys.executable, "-c", code, "-m", "subspan.search"], timeout=60).returncode == 0


# --- saving, and being killed while at it ---

SAVER = """
import sys, numpy as np
from subspan import SparseIndex
values = np.arange(1.0, 41.0)[None] * np.ones((3000, 1))
indexes = [SparseIndex.build(values), SparseIndex.build(2 * values)]
print("ready", flush=True)
for i in range(10**9):
    indexes[i % 2].save(sys.argv[1])
"""


@pytest.mark.no_sanitizer
def test_being_killed_while_saving_leaves_a_whole_file(tmp_path: Path) -> None:
    values = np.arange(1.0, 41.0)[None] * np.ones((3000, 1))
    file = tmp_path / "index"
    contents = []
    for factor in (2, 1):
        SparseIndex.build(factor * values).save(file)
        contents.append(file.read_bytes())
    generator = np.random.default_rng(0)
    left = 0
    for _ in range(12):
        with subprocess.Popen([sys.executable, "-c", SAVER, str(file)], stdout=subprocess.PIPE, text=True) as saver:
            assert saver.stdout is not None and saver.stdout.readline() == "ready\n"
            time.sleep(float(generator.uniform(0.0, 0.03)))
            saver.kill()
        assert file.read_bytes() in contents
        assert SparseIndex.load(file).search(np.ones((1, 40)), 1).scores.item() in (820.0, 1640.0)
        others = [path.name for path in tmp_path.iterdir() if path != file]
        assert len(others) <= 1, "what a killed process leaves is removed by the next one that saves"
        left += len(others)
    assert left, "a test of being killed while saving needs a process that was"
    # A file that somebody is writing, or that is no index's, is not touched.
    foreign = [tmp_path / "index.0123456789abcde.tmp", tmp_path / "index2.0123456789ab.tmp"]
    for path in foreign:
        path.touch()
    written = tmp_path / "index.0123456789ab.tmp"
    with written.open("wb") as writing:
        import fcntl

        fcntl.flock(writing, fcntl.LOCK_EX)
        SparseIndex.build(values).save(file)
        assert sorted(tmp_path.iterdir()) == sorted([file, written, *foreign])
    SparseIndex.build(values).save(file)
    assert sorted(tmp_path.iterdir()) == sorted([file, *foreign]) and os.path.getsize(file) == len(contents[0])
