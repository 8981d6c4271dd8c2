"""Files of the search index: the same index comes back, and nothing else gets in."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import numpy as np
import pytest

from subspan import SparseIndex
from test_sparse_index import VALUES, documents, equal

HEADER = 128
DAMAGE = "SparseIndex.load: path: expected"


def saved(path: Path, values: str = "f32", n: int = 300, signed: bool = True) -> tuple[SparseIndex, Path]:
    index = SparseIndex.build(documents(n, 70, signed=signed), values, window=128)
    file = path / "index"
    index.save(file)
    return index, file


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("n", [0, 1, 128, 300])
def test_the_same_index_comes_back(tmp_path: Path, values: str, n: int, mmap: bool) -> None:
    index, file = saved(tmp_path, values, n)
    queries = documents(20, 70, seed=1)
    loaded = SparseIndex.load(file, mmap=mmap)
    assert equal(loaded.search(queries, 10), index.search(queries, 10))
    sizes = ("documents", "columns", "postings", "values", "window", "windows", "bytes")
    assert [loaded.stats()[name] for name in sizes] == [index.stats()[name] for name in sizes]
    more = documents(200, 70, seed=2)
    assert equal(loaded.add(more).search(queries, 10), index.add(more).search(queries, 10))
    loaded.save(tmp_path / "again")
    index.save(file)  # over the file that may still be mapped
    assert (tmp_path / "again").read_bytes() == file.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "index"]


def test_format_is_what_is_documented(tmp_path: Path) -> None:
    index, file = saved(tmp_path)
    data = file.read_bytes()
    fields = struct.unpack("<8sIIQQQQQdIIfIII5Q", data[:HEADER])
    stats = index.stats()
    assert fields[:3] == (b"SUBSPIDX", 1, 0x01020304)
    assert fields[3:9] == (len(data), 70, 300, stats["postings"], 128, 0.2) and fields[9:11] == (0, 3)
    # CRC-32C by its definition, bit by bit: the reflected polynomial 0x82f63b78.
    blanked = bytearray(data[:HEADER])
    blanked[HEADER - 44 : HEADER - 40] = bytes(4)
    crc = 0xFFFFFFFF
    for byte in blanked:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    assert crc ^ 0xFFFFFFFF == fields[14]


@pytest.mark.parametrize("mmap", [False, True])
def test_truncated_and_foreign_files(tmp_path: Path, mmap: bool) -> None:
    _, file = saved(tmp_path)
    data = file.read_bytes()
    other = tmp_path / "other"
    for length in (0, 1, 7, 8, HEADER - 1, HEADER, HEADER + 1, 200, len(data) // 2, len(data) - 64, len(data) - 1):
        other.write_bytes(data[:length])
        with pytest.raises(ValueError, match=DAMAGE):
            SparseIndex.load(other, mmap=mmap)
    for foreign in (data + b"\0", b"PK\3\4" + data, bytes(1000), bytes(reversed(data)), data[1:]):
        other.write_bytes(foreign)
        with pytest.raises(ValueError, match=DAMAGE):
            SparseIndex.load(other, mmap=mmap)
    other.write_bytes(data[:8] + struct.pack("<I", 2) + data[12:])
    with pytest.raises(ValueError, match="expected version 1 of the format, got 2"):
        SparseIndex.load(other, mmap=mmap)
    with pytest.raises(FileNotFoundError):
        SparseIndex.load(tmp_path / "none", mmap=mmap)


@pytest.mark.parametrize("values", VALUES)
def test_every_damaged_byte_is_noticed(tmp_path: Path, values: str) -> None:
    _, file = saved(tmp_path, values, 150)
    data = file.read_bytes()
    generator = np.random.default_rng(0)
    other = tmp_path / "other"
    for place in itertools.chain(range(HEADER), generator.integers(len(data), size=1000)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(generator.integers(8))
        other.unlink(missing_ok=True)
        other.write_bytes(damaged)
        with pytest.raises(ValueError, match=DAMAGE):
            SparseIndex.load(other, threads=1)


def test_damage_of_a_mapped_window_is_noticed_when_it_is_reached(tmp_path: Path) -> None:
    _, file = saved(tmp_path)
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="got a damaged window"):
        SparseIndex.load(file)
    index = SparseIndex.load(file, mmap=True)
    with pytest.raises(ValueError, match="got a damaged window"):
        index.search(documents(3, 70), 5)
    with pytest.raises(ValueError, match="got a damaged window"):
        index.add(documents(3, 70))


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def crc_of_byte(byte: int) -> int:
    for _ in range(8):
        byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
    return byte


CRC_TABLE = [crc_of_byte(byte) for byte in range(256)]


def forged(data: bytearray) -> bytearray:
    """With all checksums made right again."""
    windows, columns = struct.unpack_from("<I", data, 68)[0], struct.unpack_from("<Q", data, 24)[0]
    windows = min(windows, (len(data) - HEADER) // 24)
    for w in range(windows):
        offset, size = struct.unpack_from("<QQ", data, HEADER + 24 * w)
        if offset + size <= len(data):
            struct.pack_into("<I", data, HEADER + 24 * w + 16, crc32c(bytes(data[offset : offset + size])))
    terms = -(-(HEADER + 24 * windows) // 64) * 64
    end = -(-(terms + 16 * columns) // 64) * 64
    struct.pack_into("<I", data, 76, crc32c(bytes(data[HEADER:terms])))
    struct.pack_into("<I", data, 80, crc32c(bytes(data[terms:end])))
    struct.pack_into("<I", data, 84, 0)
    struct.pack_into("<I", data, 84, crc32c(bytes(data[:HEADER])))
    return data


def places(data: bytes) -> dict[str, tuple[int, int]]:
    """Where the parts of a file start and end: the header, the tables, and those of its first window."""
    count, columns = struct.unpack_from("<I", data, 68)[0], struct.unpack_from("<Q", data, 24)[0]
    terms, start = -(-(HEADER + 24 * count) // 64) * 64, struct.unpack_from("<Q", data, HEADER)[0]
    size, postings, ids, held, lists, directory, _, kind = struct.unpack_from("<QQQIIIII", data, start)
    ends = {"header": (0, HEADER), "windows": (HEADER, HEADER + 24 * count), "columns": (terms, terms + 16 * columns)}
    at = start
    for name, length in (("window", 64), ("directory", 16 * directory), ("lists", 8 * (lists + 1)), ("ids", 2 * ids),
                         ("values", (4, 2, 1)[kind] * postings + 64), ("scales", 4 * held * (kind == 2))):  # fmt: skip
        if length:
            ends[name] = (at, at + length)
        at = -(-(at + length) // 64) * 64
    assert at == start + size
    return ends


#: Of each type of values so many files are damaged: together more than 10,000.
FORGED = 3500


@pytest.mark.parametrize("values", VALUES)
def test_forged_files_are_never_read_out_of_bounds(
    tmp_path: Path, values: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage with right checksums, of every part alike: fields of 1 to 8 bytes set to what is small, large or near what
    they were, bits turned, parts cut out; refused, or an index that can be searched. Under AddressSanitizer too."""
    monkeypatch.setattr(SparseIndex, "_documents_per_candidate", 1)
    monkeypatch.setattr("subspan.sparse_index._CANDIDATES", 2)
    monkeypatch.setattr("subspan.sparse_index._CANDIDATES_PER_HIT", 1)
    file, queries = tmp_path / "index", documents(3, 20, seed=3)
    SparseIndex.build(documents(70, 20), values, window=64).save(file)
    data = file.read_bytes()
    assert forged(bytearray(data)) == data
    parts = list(places(data).values())
    generator = np.random.default_rng(1)
    refused = searched = 0
    for trial in range(FORGED):
        damaged = bytearray(data)
        for _ in range(int(generator.integers(1, 3))):
            begin, end = parts[(trial + int(generator.integers(2))) % len(parts)]
            width = int(generator.choice([1, 2, 4, 8]))
            place = min(begin + width * int(generator.integers(-(-(end - begin) // width))), len(damaged) - width)
            own = int.from_bytes(damaged[place : place + width], "little")
            most = 256**width - 1
            changed = [own ^ (1 << int(generator.integers(8 * width))), own + 1, own - 1, 0, most, most // 2,
                       int(generator.integers(100)), 2 * own]  # fmt: skip
            damaged[place : place + width] = (changed[int(generator.integers(8))] & most).to_bytes(width, "little")
        if trial % 50 == 0:
            del damaged[int(generator.integers(len(damaged))) :]
            if len(damaged) >= HEADER:
                struct.pack_into("<Q", damaged, 16, len(damaged))
        file.unlink()  # to overwrite a file takes longer
        file.write_bytes(forged(damaged) if len(damaged) > 2 * HEADER else damaged)
        for mmap in (False, True):
            try:
                loaded = SparseIndex.load(file, mmap=mmap, threads=1)
                own_queries = queries if loaded.columns == 20 else documents(1, loaded.columns, seed=3)
                for mode in ("exact", "approx"):
                    found = loaded.search(own_queries, 7, mode, threads=1)
                    assert len(found.ids) == own_queries.shape[0] and (found.ids < len(loaded)).all()
                loaded.add(own_queries, threads=1).search(own_queries, 200, threads=1)
                searched += 1
            except ValueError as error:
                refused += 1
                assert any(part in str(error) for part in (DAMAGE, "scores in the range", "finite values")), error
    assert refused > FORGED and searched > FORGED / 20, (refused, searched)


def test_saving_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, file = saved(tmp_path)
    before = file.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        index.add(documents(10, 70)).save(file)
    assert file.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["index"]
