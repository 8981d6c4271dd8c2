"""Products of sparse rows and dense matrices: three that are the gradients of one another."""

from __future__ import annotations

from typing import Any

from .. import _check, _native, _route
from ..sparse_rows import SparseRows, unchecked

composite: Any = None  # without torch there is nothing to compose
if _check.torch is not None:
    from ..composite import sparse_products as composite

WEIGHT_GRADS = {"dense": 0, "rows": 1, "accumulate": 2}


def _both_at_once(needed: Any, first: int, second: int) -> bool:
    """Whether two gradients may come from one pass, which is not differentiated further."""
    return needed[first] and needed[second] and not _check.torch.is_grad_enabled()


def _decode_backward(g: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any, needed: Any) -> Any:
    values, indices, offsets, W, bias = tensors
    d_values = d_W = d_bias = None
    if needed[3] and W.dtype is not g.dtype and _plain(g, values, W):
        d_values, d_W = _rounded_gradient(g, values, indices, offsets, W, needed[0])
    elif _both_at_once(needed, 0, 3):
        d_values, d_W = _route.outputs_in_backward("sparse_decode_gradient", 2, g, values, indices, offsets, W)
    elif needed[0]:
        d_values = _route.call_in_backward("sddmm", g, W, indices, offsets)
    if needed[3] and d_W is None:
        d_W = _route.call_in_backward("sparse_t_dense", values, indices, offsets, g, W.shape[-2])
    if bias is not None and needed[4]:
        d_bias = composite.column_sums(g).to(bias.dtype)
    return _as(d_values, values), None, None, _as(d_W, W), d_bias


def _plain(*tensors: Any) -> bool:
    """Whether a gradient that is not differentiated further may come from a kernel itself."""
    return not _check.torch.is_grad_enabled() and _route.kernel_serves(tensors)


def _rounded_gradient(g: Any, values: Any, indices: Any, offsets: Any, W: Any, wants_values: bool) -> Any:
    """Written in the type of W, half precision, where a registered op would give float32 to be rounded afterwards."""
    threads, d_W = _route.threads(), W.new_empty(W.shape)
    if not wants_values:
        _native.cpu.sparse_t_dense(values, indices, offsets, g, d_W, W.shape[-2], threads)
        return None, d_W
    d_values = g.new_empty(values.shape)
    _native.cpu.sparse_decode_gradient(g, values, indices, offsets, W, d_values, d_W, threads)
    return d_values, d_W


def _sddmm_backward(h: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any, needed: Any) -> Any:
    G, W, indices, offsets = tensors
    d_G = d_W = None
    if needed[0]:
        d_G = _route.call_in_backward("sparse_decode", h, indices, offsets, W, None)
    if needed[1]:
        d_W = _route.call_in_backward("sparse_t_dense", h, indices, offsets, G, W.shape[-2])
    return _as(d_G, G), _as(d_W, W), None, None


def _t_dense_backward(u: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any, needed: Any) -> Any:
    values, indices, offsets, G = tensors
    d_values = d_G = None
    if _both_at_once(needed, 0, 3):
        d_values, d_G = _route.outputs_in_backward("sparse_t_dense_gradient", 2, u, values, indices, offsets, G)
    elif needed[0]:
        d_values = _route.call_in_backward("sddmm", G, u, indices, offsets)
    if needed[3] and d_G is None:
        d_G = _route.call_in_backward("sparse_decode", values, indices, offsets, u, None)
    return _as(d_values, values), None, None, _as(d_G, G)


def _as(gradient: Any, array: Any) -> Any:
    return None if gradient is None else gradient.to(array.dtype)


def _decoded(values: Any, indices: Any, offsets: Any, W: Any) -> tuple[int, ...]:
    rows = values.shape[:-1] if offsets is None else (*offsets.shape[:-1], offsets.shape[-1] - 1)
    return (*rows, W.shape[-1])


_SPARSE = (("values", 2), ("indices", 2), ("offsets", 1))
_decode = _route.register(
    _route.Op(
        name="sparse_decode",
        inputs=(*_SPARSE, ("W", 2), ("bias", 1)),
        schema="",
        outputs=("compute",),
        shapes=lambda values, indices, offsets, W, _: (_decoded(values, indices, offsets, W),),
        kernel=_native.cpu.sparse_decode,
        composite=lambda *args: composite.sparse_decode(*args),
        backward=_decode_backward,
        selective=True,
        saves=(),
        keeps_results=False,
    )
)
_sddmm = _route.register(
    _route.Op(
        name="sddmm",
        inputs=(("G", 2), ("W", 2), ("indices", 2), ("offsets", 1)),
        schema="",
        outputs=("compute",),
        shapes=lambda G, W, indices, offsets: (tuple(indices.shape),),
        kernel=_native.cpu.sddmm,
        composite=lambda *args: composite.sddmm(*args),
        backward=_sddmm_backward,
        selective=True,
        saves=(),
        keeps_results=False,
    )
)
_t_dense = _route.register(
    _route.Op(
        name="sparse_t_dense",
        inputs=(*_SPARSE, ("G", 2)),
        schema="SymInt columns",
        outputs=("compute",),
        shapes=lambda values, indices, offsets, G, columns: ((*G.shape[:-2], columns, G.shape[-1]),),
        kernel=_native.cpu.sparse_t_dense,
        composite=lambda *args: composite.sparse_t_dense(*args),
        backward=_t_dense_backward,
        selective=True,
        saves=(),
        keeps_results=False,
    )
)
# Both gradients of a product in one pass over the rows that they share.
_route.register(
    _route.Op(
        name="sparse_decode_gradient",
        inputs=(("G", 2), *_SPARSE, ("W", 2)),
        schema="",
        outputs=("compute", "compute"),
        shapes=lambda G, values, indices, offsets, W: (tuple(values.shape), tuple(W.shape)),
        kernel=_native.cpu.sparse_decode_gradient,
        composite=lambda *args: composite.sparse_decode_gradient(*args),
        saves=(),
        public="sparse_decode",
    )
)
_route.register(
    _route.Op(
        name="sparse_t_dense_gradient",
        inputs=(("U", 2), *_SPARSE, ("G", 2)),
        schema="",
        outputs=("compute", "compute"),
        shapes=lambda U, values, indices, offsets, G: (tuple(values.shape), tuple(G.shape)),
        kernel=_native.cpu.sparse_t_dense_gradient,
        composite=lambda *args: composite.sparse_t_dense_gradient(*args),
        saves=(),
        public="sparse_t_dense",
    )
)


def sparse_decode(S: SparseRows, W: Any, bias: Any = None, *, weight_grad: str = "dense") -> Any:
    r"""Sparse rows times a dense matrix: the decoder of a sparse autoencoder, an embedding bag with weights.

    .. math:: Y_i = b + \sum_m S_{im} W_m

    Args:
        S: :class:`SparseRows` of n rows and M columns, either layout, any batch dimensions; entries of one column add
            up. Its values may be float64, float32, float16 or bfloat16, of any strides. torch, NumPy or CuPy.
        W: (M, D), or (\*batch, M, D) broadcast with rows that are not CSR; floating point, float64 exactly where the
            values are. Half precision and float32 may meet (codes of :func:`topk_rows` are float32, a decoder under
            bfloat16 training is not): all is computed in float32. Where the entries of a row of W are not side by
            side, as in the transpose of ``nn.Linear.weight``, W is copied.
        bias: (D,) or (\*batch, D), or None, of such a type too.
        weight_grad: how the gradient in W comes, for torch. "dense": as (M, D). "rows": as a ``torch.sparse_coo``
            tensor of the rows that were used, each once and rising, for optimizers that take such, as from
            ``nn.functional.embedding(sparse=True)``. "accumulate": it is added to ``W.grad``, which is made where it is
            None, and autograd gets no gradient for W: a second (M, D) is never made. W must then be a leaf (a
            parameter); no hook of W runs, so not with DistributedDataParallel and its like, and ``torch.autograd.grad``
            finds no gradient in W. "rows" and "accumulate" need a W (M, D), have no second derivatives, and do not go
            through torch.compile or torch.func.

    Returns:
        (\*batch, n, D), float64 for float64 input and float32 otherwise, under autocast too. A row without entries is
        the bias, or 0. NaN and infinity stay in the rows whose entries, or rows of W, have them.

    Raises:
        TypeError, ValueError: wrong arrays, types or shapes; a column out of range, which SparseRows has checked unless
            its arrays were changed since.

    Cost:
        2 nnz D flops; reads a row of W for every entry, from as near as W fits into caches. A dense product is faster
        once about a twelfth of the entries are stored (float32, n, M, D = 1024, 8192, 768, a core of a Xeon of 2023).

    Gradient:
        To the values G_i . W_m of each entry (:func:`sddmm`); to W S^T G (:func:`sparse_t_dense`), both in one pass
        over the rows of G; to the bias the sum of the rows of G. Saves the inputs. Bitwise the same for any number of
        threads.

    Source:
        Replaces ``nn.functional.embedding_bag(per_sample_weights=..., mode="sum")``, which has no second derivatives,
        ``TritonDecoder`` of OpenAI's and EleutherAI's sparse autoencoders, and ``torch.sparse.mm`` in SAELens.

    >>> import numpy as np, subspan
    >>> S = subspan.SparseRows(np.array([[0, 2], [1, 1]]), np.array([[1.0, 2.0], [3.0, 4.0]]), 3)
    >>> print(subspan.sparse_decode(S, np.array([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])).tolist())
    [[11.0, 10.0], [0.0, 7.0]]
    """
    op = "sparse_decode"
    _rows_of(op, S)
    _operand(op, "W", W, "S", S.values)
    if W.shape[-2] != S.columns:
        raise ValueError(f"{op}: W: expected a row per column of S {S.shape}, got shape {tuple(W.shape)}")
    if bias is not None:
        _operand(op, "bias", bias, "S", S.values, 1)
        if bias.shape[-1] != W.shape[-1]:
            expected = f"expected a number per column of W {tuple(W.shape)}"
            raise ValueError(f"{op}: bias: {expected}, got shape {tuple(bias.shape)}")
        bias = _check.cast(bias, _check.COMPUTE_DTYPE[bias.dtype])
    way = _check.choice(op, "weight_grad", weight_grad, WEIGHT_GRADS)
    if W.ndim == 2 and (bias is None or bias.ndim == 1):
        rows = _one_matrix(S)
        if way and _check.is_torch(W) and W.requires_grad and _check.torch.is_grad_enabled():
            from ..composite.sparse_weight_grad import sparse_decode as decode

            result = decode(rows, W, bias, way)
        else:
            result = _decode(1, rows.values, rows.indices, rows.offsets, W, bias)[0]
        return result.reshape((*S.shape[:-1], W.shape[-1]))
    if way:
        expected = f"expected 'dense' where W {tuple(W.shape)} or the bias has batch dimensions"
        raise ValueError(f"{op}: weight_grad: {expected}, got {weight_grad!r}")
    name, other, core = ("W", W, 2) if W.ndim > 2 else ("bias", bias, 1)
    _no_offsets(op, name, other, S)
    batch = _check.broadcast_batch(op, name, other, core, "S", S.values, 2)
    if W.ndim > 2 and bias is not None:
        widest = _check.expand(W, (*batch, *W.shape[-2:]))
        batch = _check.broadcast_batch(op, "bias", bias, 1, "W", widest, 2)
    S = _expanded(S, batch)
    W = _check.expand(W, (*batch, *W.shape[-2:]))
    bias = None if bias is None else _check.expand(bias, (*batch, bias.shape[-1]))
    return _decode(1, S.values, S.indices, None, W, bias)[0]


def sddmm(G: Any, W: Any, S: SparseRows) -> SparseRows:
    r"""Sampled dense-dense product: the entries of G W^T at the places of sparse rows.

    .. math:: P_{im} = G_i \cdot W_m \text{ for every entry } (i, m) \text{ of } S

    Args:
        G: (\*batch, n, D), floating point, any strides. torch, NumPy or CuPy.
        W: (M, D), or (\*batch, M, D) broadcast with rows that are not CSR; float64 exactly where G is, see
            :func:`sparse_decode`.
        S: :class:`SparseRows` of n rows and M columns, either layout; says where, its values are not read.

    Returns:
        :class:`SparseRows` of the places of S (with batch dimensions of G and W), float64 for float64 input and float32
        otherwise. Of several entries of one column each has the value.

    Raises:
        TypeError, ValueError: wrong arrays, types or shapes.

    Cost:
        2 nnz D flops; reads a row of W for every entry.

    Gradient:
        With H the sparse rows of upstream gradients: to G H W, to W H^T G. Saves G, W and the places.

    Source:
        Replaces ``torch.sparse.sampled_addmm`` (CUDA and CSR only, no half precision) and gathers that make an array of
        n k D entries.

    >>> import numpy as np, subspan
    >>> S = subspan.SparseRows(np.array([[0, 2], [1, 1]]), np.ones((2, 2)), 3)
    >>> G, W = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    >>> print(subspan.sddmm(G, W, S).values.tolist())
    [[1.0, 15.0], [4.0, 4.0]]
    """
    op = "sddmm"
    _check.matrix(op, "G", G)
    _operand(op, "W", W, "G", G)
    if W.shape[-1] != G.shape[-1]:
        raise ValueError(f"{op}: W: expected the columns of G {tuple(G.shape)}, got shape {tuple(W.shape)}")
    _rows_of(op, S)
    _check.same_kind(op, "S", S.indices, "G", G)
    if W.shape[-2] != S.columns or G.shape[-2] != S.shape[-2]:
        expected = f"expected a row per row of G {tuple(G.shape)} and a column per row of W {tuple(W.shape)}"
        raise ValueError(f"{op}: S: {expected}, got shape {S.shape}")
    if W is G and _check.is_torch(G):
        W = G.view_as(G)  # torch.compile does not trace a function that is given one tensor twice
    if S.offsets is not None:
        _no_offsets(op, "G", G, S)
        _no_offsets(op, "W", W, S)
        return _of_places(S, _sddmm(1, G, W, S.indices, S.offsets)[0])
    batch = _check.broadcast_batch(op, "S", S.indices, 2, "G", G, 2)
    if W.ndim > 2:
        batch = _check.broadcast_batch(op, "W", W, 2, "G", _check.expand(G, (*batch, *G.shape[-2:])), 2)
    S, G = _expanded(S, batch), _check.expand(G, (*batch, *G.shape[-2:]))
    if W.ndim > 2:
        return _of_places(S, _sddmm(1, G, _check.expand(W, (*batch, *W.shape[-2:])), S.indices, None)[0])
    rows = _one_matrix(S)
    values = _sddmm(1, G.reshape((_count(batch) * G.shape[-2], G.shape[-1])), W, rows.indices, None)[0]
    return _of_places(S, values.reshape(tuple(S.indices.shape)))


def sparse_t_dense(S: SparseRows, G: Any) -> Any:
    r"""The transpose of sparse rows times a dense matrix: the gradient of a sparse decoder's weights.

    .. math:: Y_m = \sum_i S_{im} G_i

    Args:
        S: :class:`SparseRows` of n rows and M columns, either layout; as in :func:`sparse_decode`.
        G: (\*batch, n, D), floating point, float64 exactly where the values are; any strides.

    Returns:
        (\*batch, M, D), float64 for float64 input and float32 otherwise; 0 in rows of columns without entries.

    Raises:
        TypeError, ValueError: wrong arrays, types or shapes.

    Cost:
        2 nnz D flops. The entries are sorted by their column, by counting; each column then gathers its rows of G, and
        each row of the result is written once. Columns of many entries are shared by threads by the entries of their
        sum, so that the order of summation stays the same: bitwise equal for any number of threads.

    Gradient:
        With U the upstream gradient: to the values U_m . G_i of each entry, to G S U, in one pass over the rows of U.
        Saves the inputs.

    Source:
        Replaces ``index_add_`` and the backward pass of ``embedding_bag`` (whose order of summation on CUDA is not
        fixed), and ``torch.sparse.mm`` of a transpose.

    >>> import numpy as np, subspan
    >>> S = subspan.SparseRows(np.array([[0, 2], [2, 2]]), np.array([[1.0, 2.0], [3.0, 4.0]]), 3)
    >>> print(subspan.sparse_t_dense(S, np.array([[1.0], [10.0]])).tolist())
    [[1.0], [0.0], [72.0]]
    """
    op = "sparse_t_dense"
    _rows_of(op, S)
    _operand(op, "G", G, "S", S.values)
    if G.shape[-2] != S.shape[-2]:
        raise ValueError(f"{op}: G: expected a row per row of S {S.shape}, got shape {tuple(G.shape)}")
    if S.offsets is not None:
        _no_offsets(op, "G", G, S)
        return _t_dense(1, S.values, S.indices, S.offsets, G, S.columns)[0]
    batch = _check.broadcast_batch(op, "G", G, 2, "S", S.values, 2)
    S = _expanded(S, batch)
    return _t_dense(1, S.values, S.indices, None, _check.expand(G, (*batch, *G.shape[-2:])), S.columns)[0]


# --- arguments ---


def _rows_of(op: str, S: Any) -> None:
    if not isinstance(S, SparseRows):
        raise TypeError(f"{op}: S: expected SparseRows, got {type(S).__name__}")


def _operand(op: str, name: str, array: Any, other_name: str, other: Any, least: int = 2) -> None:
    """An array that is computed with together with another."""
    _check.same_kind(op, name, array, other_name, other)
    _check.matrix(op, name, array, least)
    if _check.COMPUTE_DTYPE[array.dtype] != _check.COMPUTE_DTYPE[other.dtype]:
        raise TypeError(
            f"{op}: {name}: expected float64 exactly where {other_name} ({other.dtype}) is, got {array.dtype}"
        )


def _no_offsets(op: str, name: str, array: Any, S: SparseRows) -> None:
    """CSR has no batch dimensions."""
    core = 1 if name == "bias" else 2
    if S.offsets is not None and array.ndim > core:
        raise ValueError(f"{op}: {name}: expected {core} dimensions with rows in CSR, got shape {tuple(array.shape)}")


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _one_matrix(S: SparseRows) -> SparseRows:
    """The rows of all items as those of one matrix."""
    if S.offsets is not None or S.values.ndim == 2:
        return S
    shape = (_count(tuple(S.values.shape[:-1])), S.values.shape[-1])
    return unchecked(S.indices.reshape(shape), S.values.reshape(shape), S.columns)


def _expanded(S: SparseRows, batch: tuple[int, ...]) -> SparseRows:
    shape = (*batch, *S.values.shape[-2:])
    return unchecked(_check.expand(S.indices, shape), _check.expand(S.values, shape), S.columns)


def _of_places(S: SparseRows, values: Any) -> SparseRows:
    return unchecked(S.indices, values, S.columns, S.offsets)
