"""Activations that thresholds of their columns cut off."""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Any

import numpy as np

from .. import _check, _native, _route

composite: Any = None  # without torch there is nothing to compose
if _check.torch is not None:
    from ..composite import sparse_thresholds as composite


def _gradients(name: str, g: Any, tensors: Any, parameters: Any, needed: Any) -> Any:
    x, threshold = tensors
    wanted = 2 if needed[1] or _check.torch.is_grad_enabled() else 1
    d_x, *rest = _route.outputs_in_backward(name, wanted, g, x, threshold, *parameters)
    return d_x.to(x.dtype), rest[0] if rest else None


def _given(g: Any, tensors: Any) -> Any:
    """Upstreams of both gradients, zeros where none came."""
    upstream, _, threshold = tensors
    likes = (upstream, threshold)
    return [_check.torch.zeros_like(like) if one is None else one for one, like in zip(g, likes, strict=True)]


# The gradients are ops of their own, whose gradients are torch operations.
_jumprelu_gradient_op = _route.Op(
    name="jumprelu_gradient",
    inputs=(("upstream", 2), ("x", 2), ("threshold", 1)),
    schema="float bandwidth",
    outputs=("compute", "compute"),
    shapes=lambda upstream, x, threshold, *_: (tuple(x.shape), tuple(threshold.shape)),
    kernel=_native.cpu.jumprelu_gradient,
    composite=lambda *args: composite.jumprelu_gradient(*args),
    backward=lambda g, saved, tensors, parameters, scaled: composite.jumprelu_second(
        *tensors, *_given(g, tensors), *parameters
    ),
    graded=2,
    saves=(),
    keeps_results=False,
    public="jumprelu",
)
_jumprelu_op = _route.Op(
    name="jumprelu",
    inputs=(("x", 2), ("threshold", 1)),
    schema="float bandwidth",
    outputs=("compute",),
    shapes=lambda x, *_: (tuple(x.shape),),
    kernel=_native.cpu.jumprelu,
    composite=lambda *args: composite.jumprelu(*args),
    backward=lambda g, saved, tensors, parameters, scaled, needed: _gradients(
        "jumprelu_gradient", g, tensors, parameters, needed
    ),
    selective=True,
    saves=(),
    keeps_results=False,
)
_route.register(_jumprelu_gradient_op)
_jumprelu = _route.register(_jumprelu_op)
_route.register(
    dataclasses.replace(
        _jumprelu_gradient_op,
        name="soft_threshold_gradient",
        schema="",
        kernel=_native.cpu.soft_threshold_gradient,
        composite=lambda *args: composite.soft_threshold_gradient(*args),
        backward=lambda g, saved, tensors, parameters, scaled: composite.soft_threshold_second(
            *tensors, *_given(g, tensors)
        ),
        public="soft_threshold",
    )
)
_soft_threshold = _route.register(
    dataclasses.replace(
        _jumprelu_op,
        name="soft_threshold",
        schema="",
        kernel=_native.cpu.soft_threshold,
        composite=lambda *args: composite.soft_threshold(*args),
        backward=lambda g, saved, tensors, parameters, scaled, needed: _gradients(
            "soft_threshold_gradient", g, tensors, parameters, needed
        ),
    )
)


def jumprelu(x: Any, threshold: Any, bandwidth: float = 0.001) -> Any:
    r"""Activations above the threshold of their column, 0 for the others.

    .. math:: y_{ij} = x_{ij} \text{ where } x_{ij} > \theta_j, \text{ else } 0

    Args:
        x: (\*batch, n, columns); float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy.
        threshold: a number, an array of shape () or (1,), one threshold for all columns; or (\*batch, columns),
            broadcast with x. Any floating point type.
        bandwidth: number > 0, the width of the window around a threshold in which entries move it.

    Returns:
        The shape of x broadcast with that of threshold, float64 for float64 input and float32 otherwise. NaN in x or in
        a threshold gives NaN where it takes part.

    Raises:
        TypeError, ValueError: wrong arrays or shapes, a bandwidth that is not positive.

    Cost:
        x is read once and the result written once. Backward reads x and the upstream gradient once and writes the
        gradient to x once. Saves x.

    Gradient:
        To x the upstream gradient where x > threshold, 0 elsewhere. The derivative to the threshold is 0 almost
        everywhere; in its place stands an estimate of that of the expected value, -theta_j / bandwidth times the sum of
        the upstream gradient over the entries of column j with |x_ij - theta_j| < bandwidth / 2. Second derivatives
        hold the window constant, as it is almost everywhere. Sums down the columns have a fixed order.

    Source:
        Rajamanoharan et al. 2024, Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse Autoencoders,
        equations (3) and (11). Replaces ``JumpReLU`` of SAELens, whose autograd Function has no second derivative.

    >>> import numpy as np, subspan
    >>> x = np.array([[0.5, 2.0, -1.0], [1.5, 0.2, 3.0]])
    >>> print(subspan.jumprelu(x, np.array([1.0, 1.0, 3.0]), 0.1).tolist())
    [[0.0, 2.0, 0.0], [1.5, 0.0, 0.0]]
    """
    op = "jumprelu"
    _check.matrix(op, "x", x)
    bandwidth = _check.positive(op, "bandwidth", bandwidth)
    return _applied(op, _jumprelu, x, threshold, bandwidth)


def soft_threshold(x: Any, threshold: Any) -> Any:
    r"""Shrinks activations towards 0 by the threshold of their column, and sets what is smaller to 0.

    .. math:: y_{ij} = \operatorname{sign}(x_{ij}) \max(|x_{ij}| - \lambda_j, 0)

    Args:
        x: (\*batch, n, columns); float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy.
        threshold: >= 0. A number, an array of shape () or (1,), one threshold for all columns; or (\*batch, columns),
            broadcast with x. Any floating point type.

    Returns:
        The shape of x broadcast with that of threshold, float64 for float64 input and float32 otherwise. NaN in x or in
        a threshold gives NaN where it takes part.

    Raises:
        TypeError, ValueError: wrong arrays or shapes; on the CPU also a negative threshold.

    Cost:
        x is read once and the result written once. Backward reads x and the upstream gradient once and writes the
        gradient to x once. Saves x.

    Gradient:
        To x the upstream gradient where |x| > threshold, 0 elsewhere, also at |x| = threshold; to the threshold
        -sign(x) times that, summed down its column in a fixed order. Second derivatives are 0 but for the upstream
        gradient.

    Source:
        The proximal map of the L1 norm, as in Paria et al. 2020, section 5. Replaces ``soft_thresh`` of
        biswajitsc/sparse-embed, relu(x - l) - relu(-x - l), and ``torch.nn.functional.softshrink``, which takes a fixed
        number alone.

    >>> import numpy as np, subspan
    >>> print(subspan.soft_threshold(np.array([[0.5, 2.0, -1.5]]), 1.0).tolist())
    [[0.0, 1.0, -0.5]]
    """
    op = "soft_threshold"
    _check.matrix(op, "x", x)
    if isinstance(threshold, numbers.Real) and threshold < 0:
        raise ValueError(f"{op}: threshold: expected a number >= 0, got {threshold}")
    return _applied(op, _soft_threshold, x, threshold)


def _applied(op: str, entry: Any, x: Any, threshold: Any, *parameters: Any) -> Any:
    threshold = _as_array(op, threshold, x)
    shape = None
    if threshold.ndim == 1 and x.ndim > 2:  # all rows have the same thresholds: one matrix, and one sum
        shape, x = tuple(x.shape), x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    batch = _check.broadcast_batch(op, "threshold", threshold, 1, "x", x, 2)
    x = _check.expand(x, (*batch, *x.shape[-2:]))
    (result,) = entry(1, x, _check.expand(threshold, (*batch, threshold.shape[-1])), *parameters)
    return result if shape is None else result.reshape(shape)


def _as_array(op: str, threshold: Any, x: Any) -> Any:
    """A threshold per column, or one, in the type that is computed in."""
    compute = _check.COMPUTE_DTYPE[x.dtype]
    if isinstance(threshold, numbers.Real):
        number = _check.number(op, "threshold", threshold)
        if _check.is_torch(x):
            return x.new_full((1,), number, dtype=_check.torch.float64).to(compute)  # infinite where it is too large
        with np.errstate(over="ignore"):
            return np.full_like(x, number, dtype=np.float64, shape=(1,)).astype(compute)
    _check.same_kind(op, "threshold", threshold, "x", x)
    _check.matrix(op, "threshold", threshold, 0)
    if threshold.ndim == 0:
        threshold = threshold.reshape(1)
    if threshold.shape[-1] not in (1, x.shape[-1]):
        raise ValueError(
            f"{op}: threshold: expected one for all or for each of the columns of x {tuple(x.shape)}, got shape "
            f"{tuple(threshold.shape)}"
        )
    if op == "soft_threshold":
        _check.nonnegative(op, "threshold", threshold.detach() if _check.is_torch(threshold) else threshold)
    return _check.cast(threshold, compute)
