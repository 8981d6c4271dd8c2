"""Inner products of sparse rows."""

from __future__ import annotations

from typing import Any

from .. import _check, _native, _route
from ..sparse_rows import SparseRows

composite: Any = None  # without torch there is nothing to compose
if _check.torch is not None:
    from ..composite import sparse_scores as composite

_INPUTS = (("d_values", 2), ("q_indices", 2), ("d_indices", 2), ("q_offsets", 1), ("d_offsets", 1))


def _shape(indices: Any, offsets: Any) -> tuple[tuple[int, ...], int]:
    """The batch dimensions, and the number of rows."""
    if offsets is None:
        return tuple(indices.shape[:-2]), indices.shape[-2]
    return tuple(indices.shape[:-1]), offsets.shape[-1] - 1


def _scores_shapes(
    q_values: Any, d_values: Any, q_indices: Any, d_indices: Any, q_offsets: Any, d_offsets: Any, columns: int
) -> tuple[tuple[int, ...]]:
    batch, rows = _shape(q_indices, q_offsets)
    return ((*batch, rows, _shape(d_indices, d_offsets)[1]),)


def _scores_backward(g: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any, needed: Any) -> Any:
    q_values, d_values, q_indices, d_indices, q_offsets, d_offsets = tensors
    d_q = d_d = None
    if needed[0]:
        d_q = _route.call_in_backward("scores_on_support", g, d_values, *tensors[2:], *parameters).to(q_values.dtype)
    if needed[1]:
        sides = (d_indices, q_indices, d_offsets, q_offsets)
        d_d = _route.call_in_backward("scores_on_support", g.mT, q_values, *sides, *parameters).to(d_values.dtype)
    return d_q, d_d, None, None, None, None


def _support_backward(a: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any, needed: Any) -> Any:
    G, d_values, q_indices, d_indices, q_offsets, d_offsets = tensors
    d_G = d_d = None
    if needed[0]:
        d_G = _route.call_in_backward("sparse_scores", a, d_values, *tensors[2:], *parameters).to(G.dtype)
    if needed[1]:
        sides = (d_indices, q_indices, d_offsets, q_offsets)
        d_d = _route.call_in_backward("scores_on_support", G.mT, a, *sides, *parameters).to(d_values.dtype)
    return d_G, d_d, None, None, None, None


def _without_saved(kernel: Any) -> Any:
    """Backward needs the inputs alone: an empty saved array keeps autograd from holding, and guarding, the output."""
    return lambda *args: kernel(*args[:7], *args[8:])


_route.register(
    _route.Op(
        name="scores_on_support",
        inputs=(("G", 2), *_INPUTS),
        schema="int columns",
        outputs=("compute",),
        shapes=lambda G, d_values, q_indices, *_: (tuple(q_indices.shape),),
        kernel=_without_saved(_native.cpu.scores_on_support),
        composite=lambda *args: composite.scores_on_support(*args),
        backward=_support_backward,
        selective=True,
        saved_shapes=lambda *_: (None,),
        public="sparse_scores",
    )
)
_sparse_scores = _route.register(
    _route.Op(
        name="sparse_scores",
        inputs=(("q_values", 2), *_INPUTS),
        schema="int columns",
        outputs=("compute",),
        shapes=_scores_shapes,
        kernel=_without_saved(_native.cpu.sparse_scores),
        composite=lambda *args: composite.sparse_scores(*args),
        backward=_scores_backward,
        selective=True,
        saved_shapes=lambda *_: (None,),
    )
)


def sparse_scores(Q: SparseRows, D: SparseRows) -> Any:
    r"""Inner products of all rows of Q with all rows of D: the scores of queries with documents.

    .. math:: S_{qd} = \sum_j Q_{qj} D_{dj}

    Args:
        Q: :class:`SparseRows`, (\*batch, n_Q, columns), of either layout; CSR is one matrix. Entries of one column add
            up. float64, float32, float16 or bfloat16 values, int32 or int64 indices, any strides. torch, NumPy or CuPy.
        D: (\*batch, n_D, columns), of Q's type, broadcast with Q, of either layout whatever Q's is.

    Returns:
        (\*batch, n_Q, n_D), dense, float64 for float64 values and float32 otherwise. The same bits for any number of
        threads, and for a query alone as among others.

    Raises:
        TypeError, ValueError: no sparse rows, other types, columns or batches.

    Cost:
        sum_j n_j^Q n_j^D multiply-adds with n_j the entries of column j: n_Q n_D :func:`flops_metric`, a number per
        pair of rows. D's entries are sorted by column first, six bytes for each in float32; neither side is made
        dense. Where more than about one in 80 of the n_Q n_D columns products is of two entries, a product of dense
        rows is faster: rows filled to 11 %, measured in float32 at 1024 x 1024 x 8192 on two cores with AVX-512.
        The composite multiplies the dense rows.

    Gradient:
        On the entries of Q and D alone: sum_d G_qd D_dj for the value of Q in row q and column j, and likewise for D.
        It takes as many multiply-adds again for each side; saved are Q and D. Derivatives of any order are such sums.

    Source:
        Replaces ``torch.mm`` of COO or CSR tensors followed by ``to_dense``, as ``dot_score`` of sentence-transformers
        does, and the dense product in CSR's contrastive loss; the algorithm by columns is Gustavson's, 1978, Two Fast
        Algorithms for Sparse Matrices, and that of inverted indices.

    >>> import numpy as np, subspan
    >>> Q = subspan.SparseRows(np.array([[2, 0]]), np.array([[5.0, 1.0]]), 3)
    >>> D = subspan.SparseRows.from_dense(np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]]))
    >>> print(subspan.sparse_scores(Q, D).tolist())
    [[11.0, 0.0]]
    """
    op = "sparse_scores"
    sides: list[list[Any]] = []
    for name, rows in (("Q", Q), ("D", D)):
        if not isinstance(rows, SparseRows):
            raise TypeError(f"{op}: {name}: expected SparseRows, got {type(rows).__name__}")
        _check_parts(op, name, rows)
    _check.same_kind(op, "D", D.values, "Q", Q.values)
    if D.values.dtype != Q.values.dtype:
        raise TypeError(f"{op}: D: expected the type of Q ({Q.values.dtype}), got {D.values.dtype}")
    if D.columns != Q.columns:
        raise ValueError(f"{op}: D: expected rows of as many columns as those of Q {Q.shape}, got shape {D.shape}")
    batch = _check.broadcast_batch(op, "D", D.values, _core(D), "Q", Q.values, _core(Q))
    for rows in (Q, D):
        arrays = (rows.values, rows.indices, rows.offsets)
        cores = (_core(rows), _core(rows), 1)
        sides.append(
            [
                None if a is None else _check.expand(a, (*batch, *a.shape[a.ndim - core :]))
                for a, core in zip(arrays, cores, strict=True)
            ]
        )
    q, d = sides
    # torch.compile does not trace a function that is given one tensor twice.
    d = [b.view_as(b) if b is a and _check.is_torch(b) else b for a, b in zip(q, d, strict=True)]
    return _sparse_scores(1, q[0], d[0], q[1], d[1], q[2], d[2], Q.columns)[0]


def _core(rows: SparseRows) -> int:
    return 2 if rows.offsets is None else 1


def _check_parts(op: str, name: str, rows: SparseRows) -> None:
    """The container checks its parts, but not what a transform puts in their place."""
    _check.matrix(op, name, rows.values, _core(rows))
    _check.same_kind(op, name, rows.indices, name, rows.values)
    if rows.offsets is not None:
        _check.same_kind(op, name, rows.offsets, name, rows.values)
