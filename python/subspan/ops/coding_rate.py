"""Coding rates: the nats a set of features needs at a given precision."""

from __future__ import annotations

import dataclasses
from typing import Any

from .. import _check, _native, _route

composite: Any = None  # without torch there is nothing to compose
distributed: Any = None
if _check.torch is not None:
    from ..composite import coding_rate as composite
    from ..composite import distributed

_SIDES = {"auto": 0, "samples": 1, "features": 2}
_SIDE_NAMES = tuple(_SIDES)


def per_item(matrices: Any) -> tuple[tuple[int, ...]]:
    """The shape of one number per matrix."""
    return ((),) if matrices.ndim == 2 else (tuple(matrices.shape[:-2]),)


def over(upstream: Any, dims: int) -> Any:
    """One number per item, shaped to multiply the item's array."""
    return upstream if upstream.ndim == 0 else upstream.reshape(*upstream.shape, *(1,) * dims)


def _spd_logdet_cuda(
    A: Any, logdet: Any, info: Any, inverse: Any, implicit_identity: bool, stream: int
) -> None:  # fmt: skip
    _native.cuda().spd_logdet(A, logdet, inverse, info, implicit_identity, stream)


def _spd_logdet_cuda_serves(A: Any, implicit_identity: bool) -> bool:
    if A.dtype not in (_check.torch.float32, _check.torch.float64):
        return False
    return bool(A.shape[-1] <= _native.cuda().spd_logdet_max_size(A.element_size(), A.device.index))


_spd_logdet = _route.register(
    _route.Op(
        name="spd_logdet",
        inputs=(("A", 2),),
        schema="bool implicit_identity",
        outputs=("compute", "int32"),
        shapes=lambda A, _: per_item(A) * 2,
        kernel=_native.cpu.spd_logdet,
        composite=lambda A, implicit_identity: composite.spd_logdet(A, implicit_identity),
        gradient=lambda A, implicit_identity: (composite.spd_logdet_gradient(A, implicit_identity),),
        backward=lambda g, saved, tensors, parameters, scaled: (scaled(over(g, 2), saved[0], tensors[0]),),
        cuda_kernel=_spd_logdet_cuda,
        cuda_serves=_spd_logdet_cuda_serves,
    )
)

_coding_rate_op = _route.Op(
    name="coding_rate",
    inputs=(("Z", 2), ("weights", 1)),
    schema="float alpha, float eps2, float scale, int side",
    outputs=("compute", "int32"),
    shapes=lambda Z, *_: per_item(Z) * 2,
    kernel=_native.cpu.coding_rate,
    composite=lambda Z, weights, alpha, eps2, scale, side: composite.coding_rate(
        Z, weights, alpha or None, eps2, scale, _SIDE_NAMES[side]
    ),
    gradient=lambda Z, weights, alpha, eps2, scale, side: composite.coding_rate_gradient(
        Z, weights, alpha or None, eps2, scale, _SIDE_NAMES[side]
    ),
    backward=lambda g, saved, tensors, parameters, scaled: (
        scaled(over(g, 2), saved[0], tensors[0]),
        None if tensors[1] is None else scaled(over(g, 1), saved[1], tensors[1]),
    ),
    saves=(0, 1),
    factors=True,
)
registered_coding_rate = _route.register(_coding_rate_op)
# Errors name what was called.
_logdet_gram = _route.register(dataclasses.replace(_coding_rate_op, name="logdet_gram", kernel=_native.cpu.logdet_gram))

_rate_operator = _route.register(
    _route.Op(
        name="rate_operator",
        inputs=(("Z", 2),),
        schema="float alpha",
        outputs=("compute",),
        shapes=lambda Z, alpha: ((*Z.shape[:-2], Z.shape[-1], Z.shape[-1]),),
        kernel=_native.cpu.rate_operator,
        composite=lambda Z, alpha: (composite.rate_operator(Z, alpha),),
        gradient=lambda Z, alpha: (composite.rate_operator(Z, alpha),),
        backward=lambda g, saved, tensors, parameters, scaled: (
            composite.rate_operator_gradient(g, tensors[0], saved[0], *parameters),
        ),
        saves=(),
        factors=True,
    )
)


def spd_logdet(A: Any, *, return_info: bool = False) -> Any:
    r"""Log determinant of symmetric positive definite matrices.

    .. math:: \log\det A = \sum_j \log p_j, \qquad p_j \text{ the pivots of } A = L L^\top

    Args:
        A: (\*batch, n, n), symmetric; only the lower triangle is read. float32 and float64 are computed in their own
            type, float16 and bfloat16 in float32. Any strides. torch, NumPy or CuPy.
        return_info: also return the status of each item.

    Returns:
        (\*batch), in nats, float64 for float64 input and float32 otherwise; with ``return_info`` a pair with an int32
        array (\*batch): 0, or the 1-based index of the first pivot that is not positive. Such an item, and an item with
        NaN, is NaN. The log determinant of a 0 x 0 matrix is 0.

    Raises:
        TypeError: A is no array of a floating point type.
        ValueError: A is not (\*batch, n, n).

    Cost:
        n^3 / 3 flops per matrix, n^3 with a gradient. No memory beyond thread-local buffers.

    Gradient:
        A^{-1}, from the same factor; it is computed with the forward and saved (as large as A). NaN where the value is.

    Source:
        Replaces ``torch.logdet`` and ``2 * torch.linalg.cholesky(A).diagonal(dim1=-2, dim2=-1).log().sum(-1)``.

    >>> import numpy as np, subspan
    >>> print(round(float(subspan.spd_logdet(np.diag([1.0, 2.0, 8.0]))), 6))
    2.772589
    """
    op = "spd_logdet"
    _check.matrix(op, "A", A)
    if A.shape[-1] != A.shape[-2]:
        raise ValueError(f"{op}: A: expected square matrices (*batch, n, n), got shape {tuple(A.shape)}")
    if return_info is not False:
        _check.flag(op, "return_info", return_info)
    outputs = _spd_logdet(1 + return_info, A, False)
    return tuple(outputs) if return_info else outputs[0]


def logdet_gram(Z: Any, alpha: float, *, return_info: bool = False) -> Any:
    r"""Log determinant of the identity plus a scaled Gram matrix.

    .. math:: \log\det\left(I + \alpha Z^\top Z\right) = \log\det\left(I + \alpha Z Z^\top\right)

    Args:
        Z: (\*batch, n, d), rows are samples; float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy.
        alpha: number > 0.
        return_info: also return the status of each item.

    Returns:
        (\*batch), in nats; with ``return_info`` a pair with an int32 array (\*batch): how many pivots rounding pushed
        below the identity and were clamped (the value is then exact to rounding of the Gram matrix), or -1 for an item
        that is not finite and therefore NaN.

    Raises:
        TypeError, ValueError: wrong array, or alpha not a finite number > 0.

    Cost:
        s^2 b + s^3 / 3 flops with s = min(n, d), b = max(n, d): half the Gram matrix of the smaller side. With
        a gradient 3 s^2 b + s^3. A float32 item is computed again in float64 where alpha trace(Z^T Z) exceeds 1e4 or
        rounding is estimated to cost more than 2e-6 of the log determinant: nearly collapsed features.

    Gradient:
        2 alpha Z (I + alpha Z^T Z)^{-1}, computed with the forward and saved (as large as Z, float32 for half input).
        Smooth everywhere; second derivatives go through the composite.

    Source:
        The identity is Sylvester's. Replaces ``torch.logdet(torch.eye(d) + alpha * Z.T @ Z)``.

    >>> import numpy as np, subspan
    >>> print(round(float(subspan.logdet_gram(np.eye(2), 1.0)), 6))
    1.386294
    """
    op = "logdet_gram"
    _check.matrix(op, "Z", Z)
    alpha = _check.positive(op, "alpha", alpha)
    if return_info is not False:
        _check.flag(op, "return_info", return_info)
    outputs = _logdet_gram(1 + return_info, Z, None, alpha, 1.0, 1.0, 0)
    return tuple(outputs) if return_info else outputs[0]


def coding_rate(
    Z: Any,
    eps2: float | None,
    *,
    weights: Any = None,
    alpha: float | None = None,
    scale: float = 0.5,
    side: str = "auto",
    return_info: bool = False,
    group: Any = None,
) -> Any:
    r"""Coding rate of samples up to precision epsilon, optionally weighted.

    .. math:: R(Z) = \text{scale} \cdot \log\det\left(I + \alpha Z^\top \operatorname{diag}(w) Z\right), \qquad
        \alpha = \frac{d}{\varepsilon^2 \sum_i w_i}

    Args:
        Z: (\*batch, n, d), rows are samples; float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy.
        eps2: epsilon squared, the precision; number > 0. May be None where ``alpha`` is given.
        weights: (\*batch, n), >= 0, broadcast with Z; None means 1 for every sample.
        alpha: number > 0 to use instead of the formula above.
        scale: factor of the log determinant; 1/2 gives nats per feature dimension set as in the paper.
        side: "samples" factors the n x n Gram matrix, "features" the d x d one, "auto" the smaller; same value.
        return_info: also return the status of each item, see :func:`logdet_gram`.
        group: a torch.distributed process group: Z and weights are the samples that this process has, any number or
            none, and every process of the group gets the rate of all of them, the same bits. alpha follows the number
            of all samples, or the sum of all weights. torch only, on the features' side. All processes make the same
            calls with the same batch, d and parameters, which is not checked; where an argument is refused on one
            process only, the others wait for it until the group's own timeout. None means this process alone, and
            torch.distributed.group.WORLD is None before init_process_group.

    Returns:
        (\*batch), in nats, float64 for float64 input and float32 otherwise; with ``return_info`` a pair. No samples, or
        no weight at all, gives 0.

    Raises:
        TypeError, ValueError: wrong arrays or shapes; eps2 or alpha not a finite number > 0; on the CPU also a negative
            weight. On CUDA a negative weight makes its item NaN. ``group`` with arrays that are not torch's, or with
            side="samples", for which every process would need all samples.

    Cost:
        As :func:`logdet_gram`. With ``group`` torch operations in float64 for every type of input (float32 on devices
        without float64): 2 n d^2 + d^3 / 3 flops per item, 4 n d^2 + d^3 with a gradient, which saves Z in float64 and
        two d x d matrices, three with weights. One all-reduce of 4 d (d + 1) + 8 bytes per item, the packed triangle
        and the mass; one of 8 bytes per item in the backward pass.

    Gradient:
        To Z: 2 scale alpha diag(w) Z M with M = (I + alpha Z^T diag(w) Z)^{-1}. To the weights:
        scale (alpha z_i^T M z_i - (d - tr M) / sum w), the last term only where alpha follows the weights; at w_i = 0
        it is the one-sided derivative. Both are computed with the forward and saved. Zero where no sample has weight.
        With ``group`` the gradient of the sum of the processes' losses: for W equal losses it is W times that of one,
        which the averaging of DistributedDataParallel divides by W again, so that the parameters' gradients are those
        of one process with all samples. Every process must run the backward pass.

    Source:
        Yu et al. 2020, Learning Diverse and Discriminative Representations via the Principle of Maximal Coding Rate
        Reduction, the coding rate R; ``compute_discrimn_loss`` of the mcr2 repository, ``TotalCodingRate`` of EMP-SSL.

    >>> import numpy as np, subspan
    >>> Z = np.eye(4) * 2  # four orthogonal samples of length 2
    >>> print(round(float(subspan.coding_rate(Z, 0.5)), 6))
    4.394449
    """
    op = "coding_rate"
    _check.matrix(op, "Z", Z)
    if alpha is None:
        eps2 = _check.positive(op, "eps2", eps2)
        alpha = 0.0
    else:
        alpha = _check.positive(op, "alpha", alpha)
        eps2 = 1.0 if eps2 is None else _check.positive(op, "eps2", eps2)
    scale = _check.number(op, "scale", scale)
    if return_info is not False:
        _check.flag(op, "return_info", return_info)
    if weights is not None:
        Z, weights = _weighted(op, Z, weights)
    side_code = 0 if type(side) is str and side == "auto" else _check.choice(op, "side", side, _SIDES)
    if group is not None:
        _check.process_group(op, group, "Z", Z)
        if side == "samples":
            raise ValueError(
                f"{op}: side: expected 'features' or 'auto' with group (the samples' Gram matrix needs every sample on "
                f"every process), got {side!r}"
            )
        if weights is not None:
            _check.nonnegative(op, "weights", weights)
        grouped = distributed.coding_rate(Z, weights, alpha or None, eps2, scale, group)
        return grouped if return_info else grouped[0]
    outputs = registered_coding_rate(1 + return_info, Z, weights, alpha, eps2, scale, side_code)
    return tuple(outputs) if return_info else outputs[0]


def rate_operator(Z: Any, alpha: float) -> Any:
    r"""The operator that expands (or, per class, compresses) features along the gradient of the coding rate.

    .. math:: E = \alpha \left(I + \alpha Z^\top Z\right)^{-1}

    Args:
        Z: (\*batch, n, d), rows are samples; float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy.
        alpha: number > 0; d / (n eps2) gives ReduNet's E, d / (t_j eps2) on the samples of class j its C_j.

    Returns:
        (\*batch, d, d), symmetric; float64 for float64 input and float32 otherwise. ``Z @ rate_operator(Z, alpha)`` is
        the gradient of ``coding_rate(Z, None, alpha=alpha)``.

    Raises:
        TypeError, ValueError: wrong array, or alpha not a finite number > 0.

    Cost:
        n d^2 + 4/3 d^3 flops per item; two d x d buffers.

    Gradient:
        -Z E (G + G^T) E for upstream G; the result itself is saved.

    Source:
        Chan et al. 2022, ReduNet, the operators E and C_j; ``torch.inverse`` in ``redunet/layers/vector.py``.

    >>> import numpy as np, subspan
    >>> print(subspan.rate_operator(np.eye(2), 1.0))
    [[0.5 0. ]
     [0.  0.5]]
    """
    op = "rate_operator"
    _check.matrix(op, "Z", Z)
    return _rate_operator(1, Z, _check.positive(op, "alpha", alpha))[0]


def _weighted(op: str, Z: Any, weights: Any) -> tuple[Any, Any]:
    """Z and weights checked, in the type computed in, and broadcast to one batch shape."""
    _check.same_kind(op, "weights", weights, "Z", Z)
    _check.floating(op, "weights", weights)
    if weights.ndim < 1 or weights.shape[-1] != Z.shape[-2]:
        raise ValueError(
            f"{op}: weights: expected one weight per row of Z {tuple(Z.shape)}, got shape {tuple(weights.shape)}"
        )
    batch = _check.broadcast_batch(op, "weights", weights, 1, "Z", Z, 2)
    weights = _check.cast(weights, _check.COMPUTE_DTYPE[Z.dtype])
    return _check.expand(Z, (*batch, *Z.shape[-2:])), _check.expand(weights, (*batch, Z.shape[-2]))
