"""Greedy sparse codes over a dictionary of atoms."""

from __future__ import annotations

import math
from typing import Any

from .. import _check, _native, _route
from ..sparse_rows import unchecked
from .sparse_topk import RANKS

composite: Any = None  # without torch there is nothing to compose
if _check.torch is not None:
    from ..composite import matching_pursuit as composite


def _shapes(x: Any, W: Any, steps: int, by: int, relu: bool) -> tuple[tuple[int, ...], ...]:
    codes = (*x.shape[:-1], steps)
    return codes, tuple(x.shape), codes


def _wanted(array: Any, wanted: bool) -> tuple[int, ...]:
    return tuple(array.shape) if wanted else (*array.shape[:-2], 0)


def _backward(g: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any, needed: Any) -> Any:
    x, W, indices = tensors
    g_values, g_residual = g
    if _route.in_torch(*g):
        d_x, d_W = composite.pursuit_gradient(x, W, indices, g_values, g_residual, *parameters)
    else:
        d_x, d_W = _gradient(2, x, W, indices, g_values, g_residual, *parameters, *needed[:2])
    return d_x.to(x.dtype) if needed[0] else None, d_W.to(W.dtype) if needed[1] else None, None


def _gradient_kernel(*args: Any) -> None:
    *arrays, d_x, d_W, relu, wants_x, wants_W, threads = args
    _native.cpu.pursuit_gradient(*arrays, d_x if wants_x else None, d_W if wants_W else None, relu, threads)


_gradient = _route.register(
    _route.Op(
        name="pursuit_gradient",
        inputs=(("x", 2), ("W", 2), ("indices", 2), ("g_values", 2), ("g_residual", 2)),
        schema="bool relu, bool wants_x, bool wants_W",
        outputs=("compute", "compute"),
        shapes=lambda x, W, i, v, r, relu, *wanted: tuple(
            _wanted(array, one) for array, one in zip((x, W), wanted, strict=True)
        ),
        kernel=_gradient_kernel,
        composite=lambda *args: composite.pursuit_gradient(*args[:-2]),
        saves=(),
        public="matching_pursuit",
    )
)
_values = _route.register(
    _route.Op(
        name="pursuit_values",
        inputs=(("x", 2), ("W", 2), ("indices", 2)),
        schema="bool relu",
        outputs=("compute", "compute"),
        shapes=lambda x, W, indices, relu: (tuple(indices.shape), tuple(x.shape)),
        kernel=lambda x, W, indices, values, residual, _, relu, threads: _native.cpu.pursuit_values(
            x, W, indices, values, residual, relu, threads
        ),
        composite=lambda *args: composite.pursuit_values(*args),
        gradient=lambda *_: (),
        backward=_backward,
        selective=True,
        graded=2,
        saved_shapes=lambda *_: (None,),  # backward needs the inputs alone, and the outputs need not be kept for it
        public="matching_pursuit",
    )
)
_pursuit = _route.register(
    _route.Op(
        name="matching_pursuit",
        inputs=(("x", 2), ("W", 2)),
        schema="int steps, int by, bool relu",
        outputs=("compute", "compute", "int32"),
        shapes=_shapes,
        kernel=_native.cpu.matching_pursuit,
        composite=lambda *args: composite.matching_pursuit(*args),
        saves=(),
    )
)


def matching_pursuit(
    x: Any, W: Any, steps: int, by: str = "value", relu: bool = True, return_residual: bool = False
) -> Any:
    r"""Greedy sparse code of every row of x over the rows of W, the atoms: matching pursuit.

    .. math:: i_t = \arg\max_m r_{t-1} \cdot w_m, \qquad v_t = r_{t-1} \cdot w_{i_t}, \qquad
        r_t = r_{t-1} - v_t w_{i_t}, \qquad r_0 = x

    Args:
        x: (\*batch, n, d), rows to encode; float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy.
        W: (atoms, d) or (\*batch, atoms, d), of x's type; x = sum_t v_t w_{i_t} + r. Atoms are taken as they are; the
            residual shrinks at every step where they have length 1.
        steps: number of atoms for each row; one may be chosen again.
        by: "value", or "abs" for the product of largest magnitude.
        relu: coefficients that are not positive are 0, as those of MP-SAE; False takes them as they are.
        return_residual: return r_steps too.

    Returns:
        :class:`SparseRows` (\*batch, n, atoms) with ``.indices``, int32 (\*batch, n, steps), in the order of choice, of
        equal products that of the lower atom (the composite may take another), and ``.values``, float64 for float64
        input and float32 otherwise; entries of an atom that was chosen twice add up. With ``return_residual`` a pair
        with r, (\*batch, n, d) of the values' type. Where a product or coefficient is not finite, the rest of its row
        is NaN. The same bits for any number of threads, and for a row alone as among others.

    Raises:
        TypeError, ValueError: wrong arrays, shapes, steps or by; no atoms.

    Cost:
        2 n atoms d flops for each step; or, where this saves more than twice as much and the matrix takes at most 1
        GiB, about atoms^2 d multiply-adds once for W W^T, and then a row of W W^T, atoms numbers, is read for each row
        and step. What is chosen does not depend on which way: products that lie closer than the updates' rounding
        errors are formed again. Memory: a copy of W, that matrix, and some MB for each thread. The composite does as
        MP-SAE.

    Gradient:
        Of the values and the residual in x and W, the choice held constant, as a derivative does wherever no two
        products are equal: with y = L^-T g for L = I + strict_lower(A A^T) over the chosen atoms A, d_x = A^T y. It
        takes about 12 n steps d flops, and 8 MB and steps d numbers for each thread. Saved are x, W and the indices;
        second derivatives go through torch operations, which keep n steps d numbers.

    Source:
        Mallat and Zhang 1993, Matching Pursuits with Time-Frequency Dictionaries; Costa et al. 2025, From Flat to
        Hierarchical: Extracting Sparse Representations with Matching Pursuit, arXiv:2506.03093, whose
        ``MatchingPursuitSAE`` (mpsae/MP-SAE) it replaces for a given number of steps.

    >>> import numpy as np, subspan
    >>> W = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    >>> rows, residual = subspan.matching_pursuit(np.array([[1.0, 2.0]]), W, 2, return_residual=True)
    >>> print(rows.indices.tolist(), rows.values.round(2).tolist(), residual.round(2).tolist())
    [[2, 1]] [[2.2, 0.24]] [[-0.32, 0.0]]
    """
    op = "matching_pursuit"
    _check.matrix(op, "x", x)
    _check.same_kind(op, "W", W, "x", x)
    _check.matrix(op, "W", W)
    if W.dtype != x.dtype:
        raise TypeError(f"{op}: W: expected the type of x ({x.dtype}), got {W.dtype}")
    if W.shape[-1] != x.shape[-1] or W.shape[-2] == 0:
        raise ValueError(
            f"{op}: W: expected one or more atoms as long as the rows of x {tuple(x.shape)}, got {tuple(W.shape)}"
        )
    if W.shape[-2] >= 2**31:
        raise ValueError(f"{op}: W: expected fewer than 2**31 atoms, got {W.shape[-2]}")
    steps = _check.count(op, "steps", steps)
    by_code = _check.choice(op, "by", by, RANKS)
    _check.flag(op, "relu", relu)
    _check.flag(op, "return_residual", return_residual)
    relu = bool(relu)
    atoms, shape = W.shape[-2], None
    if W.ndim == 2 and x.ndim > 2:  # one dictionary: a batch is more rows
        shape = tuple(x.shape[:-1])
        x = x.reshape((math.prod(shape), x.shape[-1]))
    else:
        batch = _check.broadcast_batch(op, "W", W, 2, "x", x, 2)
        x, W = _check.expand(x, (*batch, *x.shape[-2:])), _check.expand(W, (*batch, *W.shape[-2:]))
    if W is x and _check.is_torch(x):
        W = x.view_as(x)  # torch.compile does not trace a function that is given one tensor twice
    if not _check.is_torch(x) or _route.kernel_serves([x, W]):
        values, residual, indices = _pursuit(3, x, W, steps, by_code, relu)
    else:  # the choice is a constant
        known = (x.detach(), W.detach()) if _check.torch.compiler.is_compiling() else (x, W)
        indices = _pursuit(3, *known, steps, by_code, relu)[2]
        values, residual = _values(2, x, W, indices, relu)
    if shape is not None:
        values, indices = (a.reshape((*shape, steps)) for a in (values, indices))
        residual = residual.reshape((*shape, residual.shape[-1]))
    rows = unchecked(indices, values, atoms)
    return (rows, residual) if return_residual else rows
