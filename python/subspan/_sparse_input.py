"""What counts as sparse rows for the search index, as CSR of NumPy arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import _check
from ._check import torch
from .sparse_rows import SparseRows


class Rows(NamedTuple):
    """CSR in host memory as the compiled index reads it: int64 offsets, int32 or int64 indices, float32 or float64."""

    offsets: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    columns: int
    torch: bool  # whether they were torch's
    first: int = 0  # the number of the first row

    @property
    def n(self) -> int:
        return len(self.offsets) - 1

    def part(self, begin: int, end: int) -> Rows:
        """Rows begin ... end - 1; shares the memory."""
        offsets = self.offsets[begin : end + 1]
        first, last = int(offsets[0]), int(offsets[-1])
        return self._replace(
            first=self.first + begin,
            offsets=offsets - first,
            indices=self.indices[first:last],
            values=self.values[first:last],
        )

    def chosen(self, numbers: np.ndarray) -> Rows:
        """Some of the rows."""
        if len(numbers) == self.n:
            return self
        lengths = (self.offsets[1:] - self.offsets[:-1])[numbers]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        entries = np.repeat(self.offsets[numbers] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return self._replace(offsets=offsets, indices=self.indices[entries], values=self.values[entries])


def rows(op: str, name: str, given: Any) -> Rows:
    """Of SparseRows, a scipy.sparse matrix, a sparse or dense torch tensor, a list of those of one row, as
    sentence-transformers gives them, or a dense NumPy array."""
    if isinstance(given, (list, tuple)) and given and all(_check.is_torch(row) for row in given):
        if any(row.ndim != 1 or row.shape != given[0].shape for row in given):
            raise ValueError(f"{op}: {name}: expected tensors (columns,) of one length in a list")
        given = torch.stack(list(given))
    if isinstance(given, SparseRows):
        own = given
    elif hasattr(given, "tocsr"):
        own = SparseRows.from_scipy(given)
    elif _check.is_torch(given) and given.layout in (torch.sparse_coo, torch.sparse_csr):
        _host(op, name, given)
        own = SparseRows.from_torch(given.detach())
    elif _check.is_torch(given) or isinstance(given, np.ndarray):
        _host(op, name, given)
        own = SparseRows.from_dense(given.detach() if _check.is_torch(given) else given)
    else:
        raise TypeError(
            f"{op}: {name}: expected SparseRows, a scipy.sparse matrix, a torch tensor or a NumPy array, "
            f"got {type(given).__name__}"
        )
    _host(op, name, own.values)
    own = own.to_csr()
    arrays = [_numpy(array) for array in (own.offsets, own.indices, own.values)]
    values = arrays[2] if arrays[2].dtype in (np.float32, np.float64) else arrays[2].astype(np.float32)
    return Rows(
        np.ascontiguousarray(arrays[0], np.int64),
        np.ascontiguousarray(arrays[1]),
        np.ascontiguousarray(values),
        own.columns,
        _check.is_torch(own.values),
    )


def _host(op: str, name: str, array: Any) -> None:
    if _check.is_cupy(array) or (_check.is_torch(array) and array.device.type != "cpu"):
        where = array.device if _check.is_torch(array) else "a GPU"
        raise ValueError(f"{op}: {name}: expected arrays in host memory, got {where}: the index is searched on the CPU")


def _numpy(array: Any) -> np.ndarray:
    if not _check.is_torch(array):
        own = np.asarray(array)
        return own if own.dtype.isnative else own.astype(own.dtype.newbyteorder("="))
    array = array.detach().resolve_neg()
    return np.asarray(array.float().numpy() if array.dtype == torch.bfloat16 else array.numpy())
