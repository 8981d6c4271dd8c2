"""The container of sparse embeddings: columns and values of the nonzeros of every row."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from . import _check
from ._check import torch

_NAME = "SparseRows"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SparseRows:
    """Rows of which most entries are zero: what `topk_rows` gives, and what sparse products take.

    Two layouts: as many entries in every row, ``indices`` and ``values`` of shape (*batch, n, k); or rows of any number
    of entries one after the other (CSR), ``indices`` and ``values`` of shape (nnz,) and ``offsets`` of shape (n + 1,).
    Entries of one column add up, and an entry may hold the value 0. The arrays are taken as they are, never copied;
    what is differentiable in ``values`` stays so.

    Args:
        indices: int32 or int64, columns in 0 ... columns - 1. torch, NumPy or CuPy.
        values: floating point, the shape, library and device of ``indices``.
        columns: length of a row.
        offsets: None, or int32 or int64: row i has the entries offsets[i] ... offsets[i + 1] - 1.

    Raises:
        TypeError, ValueError: arrays of other types or shapes; on the CPU also a column out of range, or offsets
            that do not rise from 0 to nnz.

    Source:
        Replaces pairs of top-k arrays (OpenAI's and EleutherAI's sparse autoencoders), torch's COO and CSR tensors,
        which have no half precision in many operations, and scipy's CSR matrices.

    >>> import numpy as np, subspan
    >>> rows = subspan.SparseRows(np.array([[2, 0], [1, 1]]), np.array([[5.0, 1.0], [2.0, 3.0]]), 3)
    >>> print(rows.to_dense().tolist(), rows)
    [[1.0, 0.0, 5.0], [0.0, 5.0, 0.0]] SparseRows(shape=(2, 3), entries=4, float64)
    """

    indices: Any
    values: Any
    columns: int
    offsets: Any = None

    def __post_init__(self) -> None:
        indices, values, offsets = self.indices, self.values, self.offsets
        _check.matrix(_NAME, "values", values, 2 if offsets is None else 1)
        _check.same_kind(_NAME, "indices", indices, "values", values)
        _index_type("indices", indices)
        if tuple(indices.shape) != tuple(values.shape):
            raise ValueError(
                f"{_NAME}: indices: expected the shape of values {tuple(values.shape)}, got {tuple(indices.shape)}"
            )
        object.__setattr__(self, "columns", _check.count(_NAME, "columns", self.columns))
        if offsets is not None:
            _check.same_kind(_NAME, "offsets", offsets, "values", values)
            _index_type("offsets", offsets)
            if values.ndim != 1 or offsets.ndim != 1 or len(offsets) < 1:
                raise ValueError(
                    f"{_NAME}: offsets: expected (n + 1,) with values of shape (nnz,), got {tuple(offsets.shape)} with "
                    f"{tuple(values.shape)}"
                )
        self._check_values()

    def _check_values(self) -> None:
        indices, offsets = self.indices, self.offsets
        if not _check.readable(indices):
            return
        if 0 not in indices.shape:
            low, high = int(indices.min()), int(indices.max())
            if low < 0 or high >= self.columns:
                raise ValueError(
                    f"{_NAME}: indices: expected columns in 0 ... {self.columns - 1}, got {low if low < 0 else high}"
                )
        if offsets is not None:
            rising = bool((offsets[1:] >= offsets[:-1]).all())
            if int(offsets[0]) != 0 or int(offsets[-1]) != len(indices) or not rising:
                raise ValueError(
                    f"{_NAME}: offsets: expected numbers that rise from 0 to {len(indices)}, got {int(offsets[0])} ... "
                    f"{int(offsets[-1])}{'' if rising else ', not rising'}"
                )

    # --- from other forms ---

    @classmethod
    def from_dense(cls, dense: Any) -> SparseRows:
        """CSR of the entries of a matrix (n, columns) that are not zero, differentiable in them."""
        op = f"{_NAME}.from_dense"
        _check.matrix(op, "dense", dense)
        if dense.ndim != 2 or dense.shape[1] < 1:
            raise ValueError(f"{op}: dense: expected (n, columns), columns >= 1, got shape {tuple(dense.shape)}")
        filled = dense != 0
        counts = filled.sum(-1)
        if _check.is_torch(dense):
            row, column = filled.nonzero(as_tuple=True)
            offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
            return cls(column.int(), dense[row, column], dense.shape[-1], offsets)
        row, column = filled.nonzero()
        offsets = _library(dense).concatenate([counts[:0], counts[:0].sum(keepdims=True), counts.cumsum()])
        return cls(column.astype(np.int32), dense[row, column], dense.shape[-1], offsets.astype(np.int64))

    @classmethod
    def from_scipy(cls, matrix: Any) -> SparseRows:
        """CSR of any scipy.sparse matrix or array; NumPy arrays."""
        if not hasattr(matrix, "tocsr"):
            raise TypeError(
                f"{_NAME}.from_scipy: matrix: expected a scipy.sparse matrix or array, got {type(matrix).__name__}"
            )
        if matrix.ndim != 2:
            raise ValueError(f"{_NAME}.from_scipy: matrix: expected (n, columns), got shape {matrix.shape}")
        csr = matrix.tocsr()
        return cls(csr.indices, csr.data, csr.shape[1], csr.indptr)

    @classmethod
    def from_torch(cls, tensor: Any) -> SparseRows:
        """CSR of a sparse torch tensor (n, columns) of layout COO (whose entries are sorted and coalesced) or CSR."""
        op = f"{_NAME}.from_torch"
        layout = tensor.layout if _check.is_torch(tensor) else None
        if layout is None or layout not in (torch.sparse_coo, torch.sparse_csr):
            raise TypeError(
                f"{op}: tensor: expected layout torch.sparse_coo or sparse_csr, got {layout or type(tensor)}"
            )
        if tensor.ndim != 2 or tensor.dense_dim() != 0:
            raise ValueError(f"{op}: tensor: expected (n, columns), got shape {tuple(tensor.shape)}")
        if layout is torch.sparse_csr:
            return cls(tensor.col_indices(), tensor.values(), tensor.shape[1], tensor.crow_indices())
        tensor = tensor.coalesce()
        row, column = tensor.indices()
        counts = torch.bincount(row, minlength=tensor.shape[0])
        return cls(column, tensor.values(), tensor.shape[1], torch.nn.functional.pad(counts.cumsum(0), (1, 0)))

    # --- what it is ---

    @property
    def shape(self) -> tuple[int, ...]:
        if self.offsets is not None:
            return (self.offsets.shape[0] - 1, self.columns)
        return (*self.values.shape[:-1], self.columns)

    @property
    def dtype(self) -> Any:
        return self.values.dtype

    @property
    def entries(self) -> int:
        """How many entries are stored, zeros too."""
        return int(np.prod(self.values.shape))

    def row_of_entries(self) -> Any:
        """The row of every entry of CSR, int64 (nnz,); of one matrix with as many entries in each row too."""
        if self.offsets is None:
            if self.values.ndim != 2:
                raise ValueError(f"{_NAME}: values: expected (n, k), got shape {tuple(self.values.shape)}")
            n, k = self.values.shape
            if _check.is_torch(self.values):
                return torch.arange(n, device=self.values.device).repeat_interleave(k)
            return _library(self.values).arange(n).repeat(k)
        counts = self.offsets[1:] - self.offsets[:-1]
        if _check.is_torch(counts):
            return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        library = _library(counts)
        return library.repeat(library.arange(len(counts)), counts)

    def __repr__(self) -> str:
        dtype = str(self.values.dtype).removeprefix("torch.")
        return f"{_NAME}(shape={self.shape}, entries={self.entries}, {dtype})"

    # --- to other forms ---

    def to_csr(self) -> SparseRows:
        """The same entries as CSR; those of one matrix (n, k), zeros too, in their order."""
        if self.offsets is not None:
            return self
        if self.values.ndim != 2:
            raise ValueError(f"{_NAME}: values: expected (n, k), got shape {tuple(self.values.shape)}")
        n, k = self.values.shape
        if _check.is_torch(self.values):
            offsets = k * torch.arange(n + 1, device=self.values.device)
        else:
            offsets = k * _library(self.values).arange(n + 1)
        return SparseRows(self.indices.reshape(-1), self.values.reshape(-1), self.columns, offsets)

    def to_dense(self) -> Any:
        """(*batch, n, columns), differentiable in the values."""
        indices, values = self.indices, self.values
        if self.offsets is not None:
            n = self.shape[0]
            flat = self.row_of_entries() * self.columns + indices
            if _check.is_torch(values):
                return values.new_zeros(n * self.columns).index_add(0, flat, values).reshape(n, self.columns)
            dense = _library(values).zeros(n * self.columns, values.dtype)
            _library(values).add.at(dense, flat, values)
            return dense.reshape(n, self.columns)
        if _check.is_torch(values):
            return values.new_zeros(self.shape).scatter_add(-1, indices.long(), values)
        library = _library(values)
        dense = library.zeros(self.shape, values.dtype)
        flat = library.arange(self.entries // max(values.shape[-1], 1)).repeat(values.shape[-1]) * self.columns
        library.add.at(dense.reshape(-1), flat + indices.reshape(-1), values.reshape(-1))
        return dense

    def to_scipy(self) -> Any:
        """scipy.sparse.csr_array of copies in host memory, in float32 for half precision, which scipy has none of."""
        from scipy.sparse import csr_array

        own = self.to_csr()
        values, indices, offsets = (_copied(array) for array in (own.values, own.indices, own.offsets))
        return csr_array((values, indices, offsets), shape=own.shape)

    def to_torch(self, layout: str = "csr") -> Any:
        """A sparse torch tensor of layout "csr" or "coo", differentiable in the values where torch allows. The columns
        of a row of CSR rise, as torch takes for granted: its entries are sorted, and those of one column added up."""
        code = _check.choice(f"{_NAME}.to_torch", "layout", layout, {"csr": 0, "coo": 1})
        own = self.to_csr()
        indices, values = own.indices, own.values
        offsets = own.offsets
        if not _check.is_torch(values):
            indices, values, offsets = (torch.as_tensor(array) for array in (indices, values, offsets))
        rows = unchecked(indices, values, self.columns, offsets).row_of_entries()
        if code == 1:
            return torch.sparse_coo_tensor(
                torch.stack([rows, indices.long()]), values, own.shape, check_invariants=False
            )
        places, order = (rows * self.columns + indices).sort(stable=True)
        places, entry = places.unique_consecutive(return_inverse=True)
        sums = values.new_zeros(len(places)).index_add(0, entry, values[order])
        counts = torch.bincount(places // self.columns, minlength=own.shape[0])
        offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        return torch.sparse_csr_tensor(offsets, places % self.columns, sums, own.shape, check_invariants=False)

    def to(self, *args: Any, **kwargs: Any) -> SparseRows:
        """As Tensor.to: a type applies to the values alone, a device to all arrays."""
        if not _check.is_torch(self.values):
            raise TypeError(f"{_NAME}.to: values: expected torch tensors, got {type(self.values).__name__}")
        values = self.values.to(*args, **kwargs)
        indices, offsets = (None if a is None else a.to(values.device) for a in (self.indices, self.offsets))
        return SparseRows(indices, values, self.columns, offsets)

    def detach(self) -> SparseRows:
        """Apart from any graph; for arrays that are not torch's the same."""
        return dataclasses.replace(self, values=self.values.detach()) if _check.is_torch(self.values) else self


def _index_type(name: str, array: Any) -> None:
    integers = (torch.int32, torch.int64) if _check.is_torch(array) else (np.dtype(np.int32), np.dtype(np.int64))
    if array.dtype not in integers:
        raise TypeError(f"{_NAME}: {name}: expected int32 or int64, got {array.dtype}")


def _library(array: Any) -> Any:
    if _check.is_cupy(array):
        import cupy

        return cupy
    return np


def _copied(array: Any) -> np.ndarray:
    """In NumPy, at least in single precision."""
    if _check.is_torch(array):
        array = array.detach().resolve_neg().cpu()
        array = (array.float() if array.dtype in (torch.float16, torch.bfloat16) else array).numpy()
    elif _check.is_cupy(array):
        array = array.get()
    return np.array(array, np.float32 if array.dtype == np.float16 else array.dtype)


def _flatten(rows: SparseRows) -> tuple[list[Any], tuple[int, bool]]:
    leaves = [rows.indices, rows.values]
    return (leaves, (rows.columns, False)) if rows.offsets is None else ([*leaves, rows.offsets], (rows.columns, True))


def _unflatten(leaves: Any, context: tuple[int, bool]) -> SparseRows:
    parts = tuple(leaves)
    return unchecked(parts[0], parts[1], context[0], parts[2] if context[1] else None)


def unchecked(indices: Any, values: Any, columns: int, offsets: Any = None) -> SparseRows:
    """Of parts that are known to be right, or, where a transform puts anything in their place, cannot be looked at."""
    rows = object.__new__(SparseRows)
    for name, part in (("indices", indices), ("values", values), ("columns", columns), ("offsets", offsets)):
        object.__setattr__(rows, name, part)
    return rows


if torch is not None:
    from ._route_torch import register_pytree

    register_pytree(SparseRows, _flatten, _unflatten)
