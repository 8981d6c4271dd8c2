"""Losses and measures of sparse activations: how many multiply-adds their inner products take."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from .. import _check, _native, _route
from .coding_rate import per_item

composite: Any = None  # without torch there is nothing to compose
if _check.torch is not None:
    from ..composite import sparse as composite

_MEANS, _PAIRS, _L1 = range(3)


def _per_column(x: Any) -> tuple[int, ...]:
    return (*x.shape[:-2], x.shape[-1])


def _flops_backward(g: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any, needed: Any) -> Any:
    x, y, row_mask, _ = tensors
    rows = x.shape[-2]
    slope = -2.0 / (rows * (rows - 1)) if parameters[0] == _PAIRS and rows > 1 else 0.0
    d_x = d_y = None
    if needed[0]:
        d_x = _route.call_in_backward("signed_rows", x, saved[0], row_mask, g, slope).to(x.dtype)
    if y is not None and needed[1]:
        d_y = _route.call_in_backward("signed_rows", y, saved[1], None, g, 0.0).to(y.dtype)
    return d_x, d_y, None, None


_route.register(
    _route.Op(
        name="signed_rows",
        inputs=(("x", 2), ("factor", 1), ("row_mask", 1), ("upstream", 0)),
        schema="float slope",
        outputs=("compute",),
        shapes=lambda x, *_: (tuple(x.shape),),
        kernel=_native.cpu.signed_rows,
        composite=lambda *args: composite.signed_rows(*args),
        backward=lambda g, saved, tensors, parameters, scaled: composite.signed_rows_gradient(g, *tensors, *parameters),
        saves=(),
    )
)
_flops_loss_op = _route.Op(
    name="flops_loss",
    inputs=(("x", 2), ("y", 2), ("row_mask", 1), ("running", 1)),
    schema="int form, float decay, bool counts",
    outputs=("compute", "compute"),
    shapes=lambda x, *_: (*per_item(x), _per_column(x)),
    kernel=_native.cpu.flops_loss,
    composite=lambda *args: composite.flops_loss(*args),
    gradient=lambda *args: composite.flops_factors(*args),
    backward=_flops_backward,
    selective=True,
    saves=(0, 1),
    saved_shapes=lambda x, y, *_: (_per_column(x), None if y is None else _per_column(x)),
)
_flops_loss = _route.register(_flops_loss_op)
# Errors name what was called.
_l1_loss = _route.register(dataclasses.replace(_flops_loss_op, name="l1_loss", kernel=_native.cpu.l1_loss))
_flops_metric = _route.register(
    dataclasses.replace(
        _flops_loss_op,
        name="flops_metric",
        kernel=_native.cpu.flops_metric,
        gradient=_route.not_differentiable,
        backward=_route.not_differentiable,
        selective=False,
    )
)


def flops_loss(
    x: Any,
    *,
    y: Any = None,
    unbiased: bool = False,
    row_mask: Any = None,
    ema: tuple[Any, float] | None = None,
    group: Any = None,
) -> Any:
    r"""FLOPs regulariser: a smooth stand-in for the number of multiply-adds that inner products of activations take.

    .. math:: L = \sum_j m_j^2, \qquad m_j = \frac1n \sum_i |x_{ij}|

    Args:
        x: (\*batch, n, d), a row of activations for each sample; float64, float32, float16 or bfloat16, any strides.
            torch, NumPy or CuPy.
        y: (\*batch, m, d), activations of the other side (documents, where x are queries), of x's type and broadcast
            with x: L = sum_j m_j u_j with u the column means of y, the cost of searching the one in the other.
        unbiased: mean of |x_i| . |x_k| over the pairs of different rows, which a batch of any size estimates without
            bias; the square above overstates it, by the more the smaller the batch. 0 for fewer than two rows.
        row_mask: (\*batch, n) of booleans, broadcast with x: a row of x where it is False counts as a row of zeros,
            whatever it holds, and gets no gradient; n counts it.
        ema: (running, decay) with running means (\*batch, d), a statistic without gradient, and a number in [0, 1):
            m'_j = decay * running_j + (1 - decay) * m_j takes the place of m_j.
        group: a torch.distributed process group: x, y and row_mask are the rows that this process has, any number or
            none, and every process of the group gets the loss of all of them, the same bits. torch only; see
            :func:`coding_rate`.

    Returns:
        (\*batch), float64 for float64 input and float32 otherwise; with ``ema`` a pair with m', (\*batch, d), which
        carries no gradient and is the next ``running``. An item that is not finite is NaN.

    Raises:
        TypeError, ValueError: wrong arrays or shapes, a decay outside [0, 1), running means that require a gradient;
            ``unbiased`` together with ``y`` (whose pairs are all different) or ``ema``, ``y`` with ``ema``; ``group``
            with arrays that are not torch's.

    Cost:
        x is read once forward, and once more backward, when its gradient is written. Saves x itself and d numbers. With
        ``group`` torch operations and one all-reduce of d + 1 numbers, 2 d + 1 with ``unbiased``, 2 d + 2 with ``y``.

    Gradient:
        2/n m_j sign(x_ij), 0 at x_ij = 0; u_j / n sign(x_ij) for ``y``; 2 sign(x_ij) (sum_k |x_kj| - |x_ij|) / (n (n -
        1)) for ``unbiased``; 2/n m'_j sign(x_ij) for ``ema``: the factor 1 - decay of the new means is divided out, so
        that the strength of the regulariser does not depend on the decay. Second derivatives hold the signs constant.
        With ``group`` the gradient of the sum of the processes' losses, which the averaging of DistributedDataParallel
        turns into that of one process with all rows.

    Source:
        Paria et al. 2020, Minimizing FLOPs to Learn Efficient Sparse Representations, equation (4). Replaces
        ``FLOPS`` of naver/splade, ``FlopsLoss`` of sentence-transformers (which leaves the magnitude out: equal for
        activations >= 0) and ``flops_sur`` of biswajitsc/sparse-embed.

    >>> import numpy as np, subspan
    >>> x = np.array([[1.0, 0.0, 2.0], [1.0, 0.0, 0.0]])
    >>> print(subspan.flops_loss(x), subspan.flops_loss(x, unbiased=True))
    2.0 1.0
    """
    op = "flops_loss"
    _check.matrix(op, "x", x)
    _check.flag(op, "unbiased", unbiased)
    if unbiased and (y is not None or ema is not None):
        other = "y" if y is not None else "ema"
        raise ValueError(f"{op}: unbiased: expected False together with {other}, got True")
    running, decay = (None, 0.0) if ema is None else _running(op, ema, x)
    if y is not None:
        _check.same_kind(op, "y", y, "x", x)
        _check.matrix(op, "y", y)
        if y.dtype != x.dtype:
            raise TypeError(f"{op}: y: expected the type of x ({x.dtype}), got {y.dtype}")
        if ema is not None:
            raise ValueError(f"{op}: ema: expected None together with y, got {type(ema).__name__}")
        _same_columns(op, "y", y, "x", x)
    row_mask = _integers(op, row_mask, x)
    x, y, row_mask, running = _broadcast(op, x, y, row_mask, running)
    form = _PAIRS if unbiased else _MEANS
    if group is not None:
        _check.process_group(op, group, "x", x)
        outputs = composite.flops_loss_of_group(x, y, row_mask, running, form, decay, group)
    else:
        outputs = _flops_loss(1 + (ema is not None), x, y, row_mask, running, form, decay, False)
    return outputs[0] if ema is None else (outputs[0], outputs[1])


def l1_loss(x: Any, *, row_mask: Any = None) -> Any:
    r"""L1 regulariser of activations: the mean over the rows of the sum of their magnitudes.

    .. math:: L = \frac1n \sum_{ij} |x_{ij}|

    Args:
        x: (\*batch, n, d), rows are samples; float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy.
        row_mask: (\*batch, n) of booleans, see :func:`flops_loss`.

    Returns:
        (\*batch), float64 for float64 input and float32 otherwise. An item that is not finite is NaN; no rows give 0.

    Raises:
        TypeError, ValueError: wrong arrays or shapes.

    Cost:
        As :func:`flops_loss`.

    Gradient:
        sign(x_ij) / n, 0 at x_ij = 0.

    Source:
        ``l1_norm`` of biswajitsc/sparse-embed, ``L1`` of naver/splade; ``x.abs().sum(-1).mean()``.

    >>> import numpy as np, subspan
    >>> print(subspan.l1_loss(np.array([[1.0, -2.0], [0.0, 4.0]])))
    3.5
    """
    op = "l1_loss"
    _check.matrix(op, "x", x)
    x, _, row_mask, _ = _broadcast(op, x, None, _integers(op, row_mask, x), None)
    return _l1_loss(1, x, None, row_mask, None, _L1, 0.0, False)[0]


def flops_metric(q: Any, d: Any = None) -> Any:
    r"""Multiply-adds of an average inner product of sparse rows: the expected number of columns that both activate.

    .. math:: F = \sum_j p^q_j p^d_j, \qquad p_j = \frac1n \left|\{i : x_{ij} \ne 0\}\right|

    Args:
        q: (\*batch, n, columns), rows of queries; float64, float32, float16 or bfloat16, any strides. torch, NumPy or
            CuPy.
        d: (\*batch, m, columns), rows of documents, of q's type and broadcast with it. None: the mean over the pairs of
            different rows of q.

    Returns:
        (\*batch), float64 for float64 input and float32 otherwise. What is not zero counts, NaN too. No rows give 0.

    Raises:
        TypeError, ValueError: wrong arrays or shapes.

    Cost:
        Each array is read once.

    Gradient:
        None: the value is constant between jumps, and carries no gradient.

    Source:
        Paria et al. 2020, section 5; ``mean_flops_ub`` of biswajitsc/sparse-embed is flops_metric(q), ``flops.py`` of
        naver/splade and ``SparseInformationRetrievalEvaluator`` of sentence-transformers compute flops_metric(q, d).
        n m F is exactly the number of products of nonzeros in q d^T.

    >>> import numpy as np, subspan
    >>> q, d = np.array([[1.0, 0.0, 2.0]]), np.array([[0.0, 0.0, 3.0], [1.0, 0.0, 1.0]])
    >>> print(subspan.flops_metric(q, d))
    1.5
    """
    op = "flops_metric"
    q, d = _two_sides(op, q, d)
    return _flops_metric(1, q, d, None, None, _PAIRS if d is None else _MEANS, 0.0, True)[0]


def r_sub(q: Any, d: Any = None) -> Any:
    r"""How far activations are from spreading evenly over the columns, which would make inner products cheapest.

    .. math:: R = \frac{F \cdot \text{columns}}{\bar k_q \bar k_d}, \qquad \bar k \text{ the mean number of nonzeros of
        a row}

    Args:
        q: (\*batch, n, columns), as in :func:`flops_metric`.
        d: (\*batch, m, columns), or None for the pairs of different rows of q.

    Returns:
        (\*batch), 1 where the columns activate equally often and independently, up to the number of columns where one
        takes everything; NaN where nothing is activated. float64 for float64 input and float32 otherwise.

    Raises:
        TypeError, ValueError: wrong arrays or shapes.

    Cost:
        Each array is read twice.

    Gradient:
        None: the value is constant between jumps, and carries no gradient.

    Source:
        Paria et al. 2020, section 5; ``evaluate_mfacenet_reranking.py`` of biswajitsc/sparse-embed.

    >>> import numpy as np, subspan
    >>> print(subspan.r_sub(np.eye(4), np.eye(4)), subspan.r_sub(np.eye(4)[:1], np.eye(4)[:1]))
    1.0 4.0
    """
    op = "r_sub"
    q, d = _two_sides(op, q, d)
    flops = _flops_metric(1, q, d, None, None, _PAIRS if d is None else _MEANS, 0.0, True)[0]
    sides = [_flops_metric(1, rows, None, None, None, _L1, 0.0, True)[0] for rows in ((q,) if d is None else (q, d))]
    nonzeros = sides[0] * sides[-1]
    if _check.is_torch(q):
        return flops * q.shape[-1] / nonzeros
    with np.errstate(divide="ignore", invalid="ignore"):
        return flops * q.shape[-1] / nonzeros


def _two_sides(op: str, q: Any, d: Any) -> tuple[Any, Any]:
    """Queries and documents checked, broadcast, and apart from any graph."""
    _check.matrix(op, "q", q)
    if d is not None:
        _check.same_kind(op, "d", d, "q", q)
        _check.matrix(op, "d", d)
        if d.dtype != q.dtype:
            raise TypeError(f"{op}: d: expected the type of q ({q.dtype}), got {d.dtype}")
        _same_columns(op, "d", d, "q", q)
        batch = _check.broadcast_batch(op, "d", d, 2, "q", q, 2)
        q, d = _check.expand(q, (*batch, *q.shape[-2:])), _check.expand(d, (*batch, *d.shape[-2:]))
    if _check.is_torch(q):
        q, d = q.detach(), None if d is None else d.detach()
    return q, d


def _same_columns(op: str, name: str, array: Any, other_name: str, other: Any) -> None:
    if array.shape[-1] != other.shape[-1]:
        raise ValueError(
            f"{op}: {name}: expected the columns of {other_name} {tuple(other.shape)}, got shape {tuple(array.shape)}"
        )


def _integers(op: str, row_mask: Any, x: Any) -> Any:
    """A mask as kernels take it."""
    if row_mask is None:
        return None
    _check.same_kind(op, "row_mask", row_mask, "x", x)
    boolean = _check.torch.bool if _check.is_torch(row_mask) else np.dtype(bool)
    if row_mask.dtype != boolean:
        raise TypeError(f"{op}: row_mask: expected booleans, got {row_mask.dtype}")
    if row_mask.ndim < 1 or row_mask.shape[-1] != x.shape[-2]:
        raise ValueError(
            f"{op}: row_mask: expected a boolean per row of x {tuple(x.shape)}, got shape {tuple(row_mask.shape)}"
        )
    return _check.cast(row_mask, _check.torch.int32 if _check.is_torch(row_mask) else np.dtype(np.int32))


def _running(op: str, ema: Any, x: Any) -> tuple[Any, float]:
    if not isinstance(ema, tuple) or len(ema) != 2:
        raise TypeError(f"{op}: ema: expected None or a pair (running means, decay), got {type(ema).__name__}")
    running, decay = ema
    _check.same_kind(op, "ema", running, "x", x)
    _check.floating(op, "ema", running)
    decay = _check.number(op, "ema", decay)
    if not 0 <= decay < 1:
        raise ValueError(f"{op}: ema: expected a decay in [0, 1), got {decay}")
    if running.ndim < 1 or running.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"{op}: ema: expected a running mean per column of x {tuple(x.shape)}, got shape {tuple(running.shape)}"
        )
    if _check.is_torch(running) and running.requires_grad:
        raise ValueError(f"{op}: ema: expected running means without gradient, got some that require it; detach them")
    return _check.cast(running, _check.COMPUTE_DTYPE[x.dtype]), decay


def _broadcast(op: str, x: Any, y: Any, row_mask: Any, running: Any) -> tuple[Any, Any, Any, Any]:
    """All arrays with the batch dimensions of all."""
    if y is None and row_mask is None and running is None:
        return x, None, None, None
    others = (("y", y, 2), ("row_mask", row_mask, 1), ("ema", running, 1))
    batch = tuple(x.shape[:-2])
    for name, array, core in others:
        if array is not None:
            widest = _check.expand(x, (*batch, *x.shape[-2:]))
            batch = _check.broadcast_batch(op, name, array, core, "x", widest, 2)
    y, row_mask, running = (
        None if array is None else _check.expand(array, (*batch, *array.shape[array.ndim - core :]))
        for _, array, core in others
    )
    return _check.expand(x, (*batch, *x.shape[-2:])), y, row_mask, running
