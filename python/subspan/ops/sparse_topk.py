"""The largest entries of every row, of a linear layer's output, and of a whole batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _check, _native, _route
from ..sparse_rows import SparseRows, unchecked

composite: Any = None  # without torch there is nothing to compose
if _check.torch is not None:
    from ..composite import sparse_topk as composite

_RANKS = {"value": 0, "abs": 1}


def _shapes(x: Any, k: int, by: int, relu: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    shape = (*x.shape[:-1], k)
    return shape, shape


_topk_rows = _route.register(
    _route.Op(
        name="topk_rows",
        inputs=(("x", 2),),
        schema="int k, int by, bool relu",
        outputs=("compute", "int32"),
        shapes=_shapes,
        kernel=_native.cpu.topk_rows,
        composite=lambda *args: composite.topk_rows(*args),
        saves=(),
    )
)


def _linear_shapes(x: Any, W: Any, b: Any, k: int, by: int, relu: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return _shapes(x, k, by, relu)


_linear_topk = _route.register(
    _route.Op(
        name="linear_topk",
        inputs=(("x", 2), ("W", 2), ("b", 1)),
        schema="int k, int by, bool relu",
        outputs=("compute", "int32"),
        shapes=_linear_shapes,
        kernel=_native.cpu.linear_topk,
        composite=lambda *args: composite.linear_topk(*args),
        saves=(),
    )
)
_batch_topk = _route.register(
    _route.Op(
        name="batch_topk",
        inputs=(("x", 2),),
        schema="int k, bool relu",
        outputs=("compute", "int32", "int32"),
        shapes=lambda x, k, _: (*((*x.shape[:-2], k * x.shape[-2]),) * 2, tuple(x.shape[:-1])),
        kernel=_native.cpu.batch_topk,
        composite=lambda *args: composite.batch_topk(*args),
        saves=(),
    )
)


def topk_rows(x: Any, k: int, by: str = "value", relu: bool = True) -> SparseRows:
    r"""The k largest entries of every row, as sparse rows.

    .. math:: S_{ij} = \max(x_{ij}, 0) \text{ where } x_{ij} \text{ is among the } k \text{ largest of row } i,
        \text{ else } 0

    Args:
        x: (\*batch, n, columns); float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy.
        k: number in 1 ... columns.
        by: "value", or "abs" for the entries of largest magnitude.
        relu: give entries that are not positive as 0, as the encoders of sparse autoencoders do; False gives them as
            they are.

    Returns:
        :class:`SparseRows` with ``.indices``, int32 (\*batch, n, k), and ``.values``, float64 for float64 input and
        float32 otherwise; largest first, equal ones by lower column first, on the CPU (the composite takes equal ones
        by lower column too). NaN is larger than every number and stays NaN: it shows, and only in its row.

    Raises:
        TypeError, ValueError: wrong array, k or by.

    Cost:
        Each row is read twice, the second time from cache: the maxima of some 2 k groups of columns bound the k-th
        largest entry from below, and what reaches the bound is compared.

    Gradient:
        To the chosen entries, 0 to all others; with ``relu`` also 0 to chosen ones that are not positive. Holds the
        choice constant, as a derivative does wherever no two entries are equal. Saves the indices and the values.

    Source:
        Replaces ``torch.topk`` and ``relu`` in the TopK encoders of OpenAI's, EleutherAI's (sparsify) and SAELens'
        sparse autoencoders and CSR, and ``select_max_active_dims`` of sentence-transformers (by="abs", relu=False).

    >>> import numpy as np, subspan
    >>> rows = subspan.topk_rows(np.array([[0.5, -2.0, 3.0, 0.5], [-1.0, -4.0, -2.0, 1.0]]), 2)
    >>> print(rows.indices.tolist(), rows.values.tolist())
    [[2, 0], [3, 0]] [[3.0, 0.5], [1.0, 0.0]]
    """
    op = "topk_rows"
    _check.matrix(op, "x", x)
    k = _check_k(op, k, x)
    by_code = _check.choice(op, "by", by, _RANKS)
    _check.flag(op, "relu", relu)
    relu = bool(relu)
    if not _check.is_torch(x) or _route.kernel_serves([x]):
        values, indices = _topk_rows(2, x, k, by_code, relu)
    else:  # the choice is a constant; what is chosen is gathered, which torch differentiates and maps
        known = x.detach() if _check.torch.compiler.is_compiling() else x
        indices = _topk_rows(2, known, k, by_code, relu)[1]
        values = composite.chosen(x, indices, relu)
    return unchecked(indices, values, x.shape[-1])


def batch_topk(x: Any, k: int, relu: bool = True) -> SparseRows:
    r"""The k n largest entries of a whole batch of n rows, as sparse rows of k entries on average.

    .. math:: S_{ij} = \max(x_{ij}, 0) \text{ where } x_{ij} \text{ is among the } k n \text{ largest of } x,
        \text{ else } 0

    Args:
        x: (n, columns); float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy.
        k: number in 1 ... columns.
        relu: give entries that are not positive as 0; False gives them as they are.

    Returns:
        :class:`SparseRows` in CSR of k n entries, those of a row by rising column; ``.values`` float64 for float64 input
        and float32 otherwise, ``.indices`` int32 and ``.offsets`` int64 (n + 1,). Of equal entries at the boundary those
        of lower rows, then of lower columns, are taken. NaN is larger than every number. At inference a row is encoded
        apart from others by ``jumprelu`` with the threshold that batches had in training: a running mean of the least
        activation, ``rows.values[rows.values > 0].min()``.

    Raises:
        TypeError, ValueError: wrong array or k.

    Cost:
        x is read twice: the maxima of some 2 k n groups of columns bound the last of the wanted entries from below, and
        what reaches the bound is collected and compared, never sorted. Extra memory of some 3 k n entries, at most 5 k n
        for each thread.

    Gradient:
        To the chosen entries, 0 to all others; with ``relu`` also 0 to chosen ones that are not positive. Holds the
        choice constant. Saves the places and the values.

    Source:
        Bussmann, Leask and Nanda 2024, BatchTopK Sparse Autoencoders. Replaces ``torch.topk`` of the flattened
        activations in SAELens and dictionary_learning.

    >>> import numpy as np, subspan
    >>> rows = subspan.batch_topk(np.array([[0.5, 2.0, 3.0, 1.0], [-1.0, 0.2, 0.1, 0.7]]), 2)
    >>> print(rows.offsets.tolist(), rows.indices.tolist(), rows.values.tolist())
    [0, 3, 4] [1, 2, 3, 3] [2.0, 3.0, 1.0, 0.7]
    """
    op = "batch_topk"
    _check.matrix(op, "x", x)
    if x.ndim != 2:
        raise ValueError(f"{op}: x: expected (n, columns), got shape {tuple(x.shape)}")
    k = _check_k(op, k, x)
    _check.flag(op, "relu", relu)
    relu = bool(relu)
    if not _check.is_torch(x):
        values, indices, counts = _batch_topk(3, x, k, relu)
        ends = counts.astype(np.int64).cumsum()
        return unchecked(indices, values, x.shape[-1], np.concatenate([ends[:0], 0 * ends.sum(keepdims=True), ends]))
    if _route.kernel_serves([x]):
        values, indices, counts = _batch_topk(3, x, k, relu)
    else:  # as above
        known = x.detach() if _check.torch.compiler.is_compiling() else x
        indices, counts = _batch_topk(3, known, k, relu)[1:]
        values = composite.chosen_of_all(x, indices, counts, relu)
    offsets = _check.torch.nn.functional.pad(counts.long().cumsum(0), (1, 0))
    return unchecked(indices, values, x.shape[-1], offsets)


def _check_k(op: str, k: Any, x: Any) -> int:
    k = _check.count(op, "k", k)
    if k > x.shape[-1]:
        raise ValueError(f"{op}: k: expected at most the columns of x {tuple(x.shape)}, got {k}")
    if x.shape[-1] >= 2**31:
        raise ValueError(f"{op}: x: expected fewer than 2**31 columns, got {x.shape[-1]}")
    return k
