"""The largest entries of every row, of a linear layer's output, and of a whole batch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import _check, _native, _route
from ..sparse_rows import SparseRows, unchecked
from .sparse_products import WEIGHT_GRADS

composite: Any = None  # without torch there is nothing to compose
if _check.torch is not None:
    from ..composite import sparse_topk as composite

RANKS = {"value": 0, "abs": 1}


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


def _linear_backward(g: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any, needed: Any) -> Any:
    """That of the values at the places that were chosen."""
    x, W, b = tensors
    values, indices = saved
    slopes = composite.kept(g[0], values, parameters[2])
    d_x = d_W = d_b = None
    if needed[0]:
        d_x = _route.call_in_backward("sparse_decode", slopes, indices, None, W, None).to(x.dtype)
    if needed[1]:
        d_W = _weight_gradient(slopes, indices, x, W)
    if b is not None and needed[2]:
        d_b = composite.column_sums(slopes, indices, W.shape[-2]).to(b.dtype)
    return d_x, d_W, d_b


def _weight_gradient(slopes: Any, indices: Any, x: Any, W: Any) -> Any:
    if W.dtype is slopes.dtype or _check.torch.is_grad_enabled() or not _route.kernel_serves((slopes, x, W)):
        return _route.call_in_backward("sparse_t_dense", slopes, indices, None, x, W.shape[-2]).to(W.dtype)
    d_W = W.new_empty(W.shape)  # half precision, where the op would give float32 to be rounded afterwards
    _native.cpu.sparse_t_dense(slopes, indices, None, x, d_W, W.shape[-2], _route.threads())
    return d_W


_linear_topk = _route.register(
    _route.Op(
        name="linear_topk",
        inputs=(("x", 2), ("W", 2), ("b", 1)),
        schema="int k, int by, bool relu",
        outputs=("compute", "int32"),
        shapes=_linear_shapes,
        kernel=_native.cpu.linear_topk,
        composite=lambda *args: composite.linear_topk(*args),
        backward=_linear_backward,
        selective=True,
        saves=(),
        graded=2,  # the places too, which have no gradient but which backward needs
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
    k = _check_k(op, k, "columns of x", x)
    by_code = _check.choice(op, "by", by, RANKS)
    _check.flag(op, "relu", relu)
    relu = bool(relu)
    if not _check.is_torch(x) or _route.kernel_serves([x]):
        values, indices = _topk_rows(2, x, k, by_code, relu)
    else:  # the choice is a constant; what is chosen is gathered, which torch differentiates and maps
        known = x.detach() if _check.torch.compiler.is_compiling() else x
        indices = _topk_rows(2, known, k, by_code, relu)[1]
        values = composite.chosen(x, indices, relu)
    return unchecked(indices, values, x.shape[-1])


def linear_topk(
    x: Any, W: Any, b: Any, k: int, *, by: str = "value", relu: bool = True, weight_grad: str = "dense"
) -> SparseRows:
    r"""The k largest outputs of a linear layer in every row, as sparse rows: the encoder of a TopK sparse autoencoder.

    .. math:: S_{im} = \max(v_{im}, 0) \text{ where } v_{im} = x_i \cdot W_m + b_m \text{ is among the } k
        \text{ largest of row } i, \text{ else } 0

    Args:
        x: (\*batch, n, D); float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy.
        W: (M, D), a row for each feature; or (\*batch, M, D), broadcast with x. float64 exactly where x is; half
            precision and float32 may meet.
        b: (M,) or (\*batch, M), or None.
        k: number in 1 ... M.
        by: "value", or "abs" for the outputs of largest magnitude.
        relu: give outputs that are not positive as 0; False gives them as they are.
        weight_grad: how the gradient in W comes, for torch: "dense", "rows" or "accumulate", as in
            :func:`sparse_decode`.

    Returns:
        :class:`SparseRows` as from :func:`topk_rows`: ``.indices`` int32 and ``.values`` (\*batch, n, k), float64 for
        float64 input and float32 otherwise, largest first, equal ones by lower column. A row's numbers have the same
        bits in any batch. NaN is larger than every number. A feature whose value ``relu`` cut off is an entry of value
        0: it has not fired.

    Raises:
        TypeError, ValueError: wrong arrays, shapes, types, k or by.

    Cost:
        2 n M D flops; the (n, M) outputs are never stored: tiles of them are compared with the k-th largest of their
        rows so far while they are in registers. Extra memory of some hundred rows of x and a few times as many
        candidates as results for each thread. Composites have the outputs of 16384 columns at a time.

    Gradient:
        That of the values at the chosen places, which are held constant: with the upstream gradient g, 0 where ``relu``
        cut a value off, sparse rows G of g at these places: G W to x, G^T x to W, the sums of the columns of G to b.
        Each result gives gradient, so that a second call with 4 k, or one for dead features, moves the encoder too.
        Saves the inputs and the result. Differentiable any number of times.

    Source:
        Gao et al. 2024, Scaling and Evaluating Sparse Autoencoders, section 2.3. Replaces ``F.linear``, ``topk`` and
        ``relu`` in the encoders of OpenAI's, SAELens' and CSR's sparse autoencoders, and ``FusedEncoder`` of
        EleutherAI's sparsify, whose backward passes gradient to what relu cut off and none from outputs used twice.

    >>> import numpy as np, subspan
    >>> W = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    >>> rows = subspan.linear_topk(np.array([[2.0, 3.0], [-2.0, 1.0]]), W, np.array([0.5, 0.0, 0.0]), 2)
    >>> print(rows.indices.tolist(), rows.values.tolist())
    [[1, 0], [1, 2]] [[3.0, 2.5], [1.0, 1.0]]
    """
    op = "linear_topk"
    _check.matrix(op, "x", x)
    _operand(op, "W", W, x, 2)
    if W.shape[-1] != x.shape[-1]:
        raise ValueError(f"{op}: W: expected the columns of x {tuple(x.shape)}, got shape {tuple(W.shape)}")
    if b is not None:
        _operand(op, "b", b, x, 1)
        if b.shape[-1] != W.shape[-2]:
            raise ValueError(f"{op}: b: expected a number per row of W {tuple(W.shape)}, got shape {tuple(b.shape)}")
    k = _check_k(op, k, "rows of W", W, -2)
    by_code = _check.choice(op, "by", by, RANKS)
    _check.flag(op, "relu", relu)
    way = _check.choice(op, "weight_grad", weight_grad, WEIGHT_GRADS)
    if W is x and _check.is_torch(x):
        W = x.view_as(x)  # torch.compile does not trace a function that is given one tensor twice
    shape = tuple(x.shape[:-1])
    if W.ndim == 2 and (b is None or b.ndim == 1):
        x = x.reshape(math.prod(shape), x.shape[-1])  # rows of one matrix: W is read, and its gradient made, once
    elif way:
        expected = f"expected 'dense' where W {tuple(W.shape)} or b has batch dimensions"
        raise ValueError(f"{op}: weight_grad: {expected}, got {weight_grad!r}")
    else:
        x, W, b = _of_one_batch(op, x, W, b)
        shape = tuple(x.shape[:-1])
    if way and _check.is_torch(W) and W.requires_grad and _check.torch.is_grad_enabled():
        from ..composite.sparse_weight_grad import linear_topk as encode

        values, indices = encode(x, W, b, k, by_code, bool(relu), way)
    else:
        values, indices = _linear_topk(2, x, W, b, k, by_code, bool(relu))
    return unchecked(indices.reshape((*shape, k)), values.reshape((*shape, k)), W.shape[-2])


def _operand(op: str, name: str, array: Any, x: Any, least: int) -> None:
    """An array that is computed with together with x."""
    _check.same_kind(op, name, array, "x", x)
    _check.matrix(op, name, array, least)
    if _check.COMPUTE_DTYPE[array.dtype] != _check.COMPUTE_DTYPE[x.dtype]:
        raise TypeError(f"{op}: {name}: expected float64 exactly where x ({x.dtype}) is, got {array.dtype}")


def _of_one_batch(op: str, x: Any, W: Any, b: Any) -> tuple[Any, Any, Any]:
    batch = _check.broadcast_batch(op, "W", W, 2, "x", x, 2)
    if b is not None:
        widest = _check.expand(x, (*batch, *x.shape[-2:]))
        batch = _check.broadcast_batch(op, "b", b, 1, "x", widest, 2)
        b = _check.expand(b, (*batch, b.shape[-1]))
    return _check.expand(x, (*batch, *x.shape[-2:])), _check.expand(W, (*batch, *W.shape[-2:])), b


def batch_topk(x: Any, k: int, relu: bool = True) -> SparseRows:
    r"""The k n largest entries of a whole batch of n rows, as sparse rows of k entries on average.

    .. math:: S_{ij} = \max(x_{ij}, 0) \text{ where } x_{ij} \text{ is among the } k n \text{ largest of } x,
        \text{ else } 0

    Args:
        x: (n, columns); float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy.
        k: number in 1 ... columns.
        relu: give entries that are not positive as 0; False gives them as they are.

    Returns:
        :class:`SparseRows` in CSR of k n entries, those of a row by rising column; ``.values`` float64 for float64
        input and float32 otherwise, ``.indices`` int32 and ``.offsets`` int64 (n + 1,). Of equal entries at the
        boundary those of lower rows, then of lower columns, are taken. NaN is larger than every number. At inference a
        row is encoded apart from others by ``jumprelu`` with the threshold that batches had in training: a running mean
        of the least activation, ``rows.values[rows.values > 0].min()``.

    Raises:
        TypeError, ValueError: wrong array or k.

    Cost:
        x is read twice: the maxima of some 2 k n groups of columns bound the last of the wanted entries from below, and
        what reaches the bound is collected and compared, never sorted. Extra memory of some 3 k n entries, at most 5 k
        n for each thread.

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
    k = _check_k(op, k, "columns of x", x)
    _check.flag(op, "relu", relu)
    values, indices, counts = of_all_rows(x, k, bool(relu))
    return unchecked(indices, values, x.shape[-1], _offsets(counts))


def _offsets(counts: Any) -> Any:
    """Where each row begins, and where the last one ends: numbers of entries may need 64 bits."""
    if _check.is_torch(counts):
        return _check.torch.nn.functional.pad(counts.long().cumsum(0), (1, 0))
    before = np.zeros_like(counts, dtype=np.int64, shape=(1,))
    return np.concatenate([before, counts.astype(np.int64).cumsum()])


def of_all_rows(x: Any, k: int, relu: bool) -> tuple[Any, Any, Any]:
    """Values, columns and number in every row of the k n largest entries of each item of a batch."""
    if not _check.is_torch(x) or _route.kernel_serves([x]):
        values, indices, counts = _batch_topk(3, x, k, relu)
        return values, indices, counts
    known = x.detach() if _check.torch.compiler.is_compiling() else x  # as in topk_rows
    indices, counts = _batch_topk(3, known, k, relu)[1:]
    return composite.chosen_of_all(x, indices, counts, relu), indices, counts


def _check_k(op: str, k: Any, what: str, array: Any, dim: int = -1) -> int:
    """Of at most the size of a dimension, which is `what` it counts."""
    number, size, name = _check.count(op, "k", k), int(array.shape[dim]), what.split()[-1]
    if number > size:
        raise ValueError(f"{op}: k: expected at most the {what} {tuple(array.shape)}, got {number}")
    if size >= 2**31:
        raise ValueError(f"{op}: {name}: expected fewer than 2**31 {what.split()[0]}, got {size}")
    return number
