"""Arrays that end, or begin, where memory may not be touched: a kernel that reads or writes beyond them ends the
process. As a program, runs the low-rank hypercomplex kernels on such arrays."""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any

import numpy as np

from subspan import _native

PAGE = mmap.PAGESIZE
_KEPT: list[mmap.mmap] = []


def guarded(array: np.ndarray, at_end: bool) -> np.ndarray:
    """A copy of a packed array directly before an inaccessible page, or directly after one."""
    pages = -(-array.nbytes // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for page in (0, pages + 1):
        if protect(ctypes.c_void_p(start + page * PAGE), ctypes.c_size_t(PAGE), 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = PAGE + (pages * PAGE - array.nbytes if at_end else 0)
    result = np.frombuffer(memory, array.dtype, array.size, offset).reshape(array.shape)
    result[...] = array
    _KEPT.append(memory)
    return result


#: rows, and terms, p, q, l, k and rank of the map down; the map up is its mirror image.
SHAPES = (
    (1, 1, 1, 1, 1, 1, 1),
    (17, 4, 4, 4, 6, 192, 1),  # Compacter
    (35, 4, 4, 4, 6, 192, 1),
    (16, 3, 2, 5, 9, 7, 3),
    (33, 2, 3, 2, 33, 70, 5),
    (5, 1, 2, 3, 40, 129, 9),
)


def run(at_end: bool, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    for rows, terms, p, q, l, k, rank in SHAPES:  # noqa: E741

        def array(*shape: int) -> np.ndarray:
            return guarded(rng.standard_normal(shape).astype(dtype), at_end)

        down = [array(terms, p, q), array(terms, l, rank), array(terms, rank, k), array(p * l)]
        up = [array(terms, q, p), array(terms, k, rank), array(terms, rank, l), array(q * k)]
        x, hidden = array(rows, q * k), array(rows, p * l)

        def like(arrays: list[np.ndarray]) -> list[np.ndarray]:
            return [array(*a.shape) for a in arrays]

        for given, factors, upstream in ((x, down, hidden), (hidden, up, x)):
            y = like([upstream])[0]
            _native.cpu.phm_linear_lowrank(given, *factors, y, 2)
            gradients = like([given, *factors])
            _native.cpu.phm_linear_lowrank_gradient(given, *factors[:3], upstream, *gradients, *[True] * 5, 2)
        for activation in range(4):
            _native.cpu.phm_adapter(x, *down, *up, array(rows, q * k), activation, True, 2)
            gradients = like([x, *down, *up])
            dy = array(rows, q * k)
            _native.cpu.phm_adapter_gradient(x, *down, *up, dy, *gradients, activation, True, True, True, 2)
        _KEPT.clear()


if __name__ == "__main__":
    side, kind = sys.argv[1], sys.argv[2]
    if kind == "beyond":  # what a kernel must not do
        memory = guarded(np.zeros(3), side == "end")
        ctypes.string_at(memory.ctypes.data + (memory.nbytes if side == "end" else -1), 1)
    else:
        run(side == "end", np.dtype(kind))
    print("done")
