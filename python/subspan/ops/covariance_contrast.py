"""Covariance contrast: how much a batch of features adds to the directions that earlier batches already used."""

from __future__ import annotations

from typing import Any

from .. import _check, _native, _route
from .coding_rate import over, per_item

composite: Any = None  # without torch there is nothing to compose
if _check.torch is not None:
    from ..composite import covariance_contrast as composite

_covariance_contrast = _route.register(
    _route.Op(
        name="covariance_contrast",
        inputs=(("z", 2), ("C", 2)),
        schema="float beta, bool detach_covariance",
        outputs=("compute", "compute"),
        shapes=lambda z, C, *_: (*per_item(z), tuple(C.shape)),
        kernel=_native.cpu.covariance_contrast,
        composite=lambda *args: composite.covariance_contrast(*args),
        gradient=lambda *args: composite.covariance_contrast_gradient(*args),
        backward=lambda g, saved, tensors, parameters, scaled: (scaled(over(g, 2), saved[0], tensors[0]), None),
    )
)


def covariance_contrast(z: Any, C: Any, beta: float, *, detach_covariance: bool = False) -> tuple[Any, Any]:
    r"""TiCo's covariance contrast: the mean energy of features in a running covariance that includes their own.

    .. math:: \frac1n \sum_i z_i^\top C' z_i = \langle C', B\rangle, \qquad C' = \beta C + (1 - \beta) B, \qquad
        B = \tfrac1n z^\top z

    Args:
        z: (\*batch, n, d), rows are samples, usually of unit norm; float64, float32, float16 or bfloat16, any strides.
            torch, NumPy or CuPy.
        C: (\*batch, d, d), the covariance of earlier batches, broadcast with z; zeros to begin with. A running
            statistic: it carries no gradient.
        beta: number in [0, 1], how much of C is kept.
        detach_covariance: hold C' constant, so that the gradient is 2/n z C'. False differentiates the part of C' that
            is B too, as the published code does.

    Returns:
        (contrast, C'), (\*batch) and (\*batch, d, d); float64 for float64 input and float32 otherwise. C' carries no
        gradient; it is the C of the next batch. No samples give 0 and beta C.

    Raises:
        TypeError, ValueError: wrong arrays or shapes, beta outside [0, 1], a C that requires a gradient.

    Cost:
        n d^2 flops, 3 n d^2 with a gradient: B is formed once, half of it, and serves C' and the contrast.

    Gradient:
        2/n z (beta (C + C^T)/2 + 2 (1 - beta) B), with detach_covariance 2/n z (beta (C + C^T)/2 + (1 - beta) B);
        computed with the forward and saved (as large as z).

    Source:
        Zhu et al. 2022, TiCo, the second term of the loss; ``TiCo_Loss`` of sayannag/TiCo-pytorch, where it is
        ``(torch.mm(z, C) * z).sum(1).mean()``.

    >>> import numpy as np, subspan
    >>> contrast, C = subspan.covariance_contrast(np.eye(2), np.zeros((2, 2)), 0.5)
    >>> print(contrast, C.tolist())
    0.25 [[0.25, 0.0], [0.0, 0.25]]
    """
    op = "covariance_contrast"
    _check.matrix(op, "z", z)
    _check.same_kind(op, "C", C, "z", z)
    _check.matrix(op, "C", C)
    if C.shape[-1] != z.shape[-1] or C.shape[-2] != z.shape[-1]:
        raise ValueError(f"{op}: C: expected (*batch, d, d) for z {tuple(z.shape)}, got shape {tuple(C.shape)}")
    beta = _check.number(op, "beta", beta)
    if not 0 <= beta <= 1:
        raise ValueError(f"{op}: beta: expected a number in [0, 1], got {beta}")
    _check.flag(op, "detach_covariance", detach_covariance)
    batch = _check.broadcast_batch(op, "C", C, 2, "z", z, 2)
    if _check.is_torch(C) and C.requires_grad:
        raise ValueError(f"{op}: C: expected a running statistic without gradient, got one that requires it; detach it")
    C = _check.expand(_check.cast(C, _check.COMPUTE_DTYPE[z.dtype]), (*batch, *C.shape[-2:]))
    contrast, covariance = _covariance_contrast(
        2, _check.expand(z, (*batch, *z.shape[-2:])), C, beta, detach_covariance
    )
    return contrast, covariance
