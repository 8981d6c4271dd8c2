"""Coding rates of classes, and the rate reduction: what is saved by coding each class alone."""

from __future__ import annotations

from typing import Any

from .. import _check, _native, _route
from .coding_rate import over, per_item, registered_coding_rate

composite: Any = None  # without torch there is nothing to compose
distributed: Any = None
if _check.torch is not None:
    from ..composite import coding_rate as composite
    from ..composite import distributed

_class_coding_rates = _route.register(
    _route.Op(
        name="class_coding_rates",
        inputs=(("Z", 2), ("labels", 1)),
        schema="float eps2, int num_classes",
        outputs=("compute", "compute"),
        shapes=lambda Z, labels, eps2, num_classes: ((*Z.shape[:-2], num_classes),) * 2,
        kernel=_native.cpu.class_coding_rates,
        composite=lambda *args: composite.class_coding_rates(*args),
        gradient=lambda *args: (composite.class_coding_rates_gradient(*args),),
        backward=lambda g, saved, tensors, parameters, scaled: (
            scaled(g.gather(-1, tensors[1].long())[..., None], saved[0], tensors[0]),
            None,
        ),
    )
)

_rate_reduction = _route.register(
    _route.Op(
        name="rate_reduction",
        inputs=(("Z", 2), ("labels", 1)),
        schema="float eps2, int num_classes, float gamma",
        outputs=("compute",),
        shapes=lambda Z, *_: per_item(Z),
        kernel=_native.cpu.rate_reduction,
        composite=lambda *args: composite.rate_reduction(*args),
        gradient=lambda *args: (composite.rate_reduction_gradient(*args),),
        backward=lambda g, saved, tensors, parameters, scaled: (scaled(over(g, 2), saved[0], tensors[0]), None),
    )
)


def class_coding_rates(Z: Any, labels: Any, eps2: float, *, num_classes: int | None = None) -> tuple[Any, Any]:
    r"""Coding rate of the samples of each class.

    .. math:: R_j = \tfrac12 \log\det\left(I + \frac{d}{t_j \varepsilon^2} Z_j^\top Z_j\right), \qquad
        t_j = \text{number of samples with label } j

    Args:
        Z: (\*batch, n, d), rows are samples; float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy.
        labels: (\*batch, n), integers in 0 ... num_classes - 1, broadcast with Z.
        eps2: epsilon squared; number > 0.
        num_classes: k. None takes the largest label plus one, which reads the labels: CPU outside torch.compile only.

    Returns:
        (rates, mass), each (\*batch, k): rates in nats, and t_j. An empty class has rate 0 and mass 0.

    Raises:
        TypeError, ValueError: wrong arrays or shapes, eps2 not > 0, on the CPU a label out of range. On CUDA a label
            out of range makes its item NaN.

    Cost:
        Each class is factored on its smaller side: sum_j (s_j^2 b_j + s_j^3 / 3) flops with s_j = min(t_j, d),
        b_j = max(t_j, d), about three times that with a gradient. Samples are gathered while packing, never copied.

    Gradient:
        d/(t_j eps2) Z_j M_j for the rows of class j, computed with the forward and saved (as large as Z). The mass has
        none.

    Source:
        Yu et al. 2020 (MCR2), the terms of R_c; ``compute_compress_loss`` of the mcr2 repository.

    >>> import numpy as np, subspan
    >>> rates, mass = subspan.class_coding_rates(np.eye(4), np.array([0, 0, 1, 1]), 0.5)
    >>> print(mass, rates.round(4))
    [2. 2.] [1.6094 1.6094]
    """
    op = "class_coding_rates"
    Z, labels, eps2, num_classes = _labelled(op, Z, labels, eps2, num_classes)
    rates, mass = _class_coding_rates(2, Z, labels, eps2, num_classes)
    return rates, mass


def rate_reduction(
    Z: Any,
    labels: Any,
    eps2: float,
    *,
    num_classes: int | None = None,
    gamma: float = 1.0,
    return_parts: bool = False,
    group: Any = None,
) -> Any:
    r"""Rate reduction: what coding each class alone saves. Maximised, it makes classes low-dimensional and orthogonal.

    .. math:: \Delta R = R(Z) - \gamma R_c, \qquad R_c = \sum_j \frac{t_j}{n} R_j

    Args:
        Z: (\*batch, n, d), rows are samples; float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy.
        labels: (\*batch, n), integers in 0 ... num_classes - 1, broadcast with Z.
        eps2: epsilon squared; number > 0.
        num_classes: k; see :func:`class_coding_rates`.
        gamma: weight of the compression term.
        return_parts: also return R and R_c, differentiable; costs a second saved array of the size of Z.
        group: a torch.distributed process group: Z and labels are the samples that this process has, any number or
            none, and every process gets the result of all of them, the same bits; see :func:`coding_rate`. torch only.
            num_classes is to be given. Here labels may also be a membership (\*batch, k, n), floating point numbers
            >= 0: class j then has the weights pi_j, the mass t_j = sum_i pi_ji and the Gram matrix Z^T diag(pi_j) Z,
            while R and n count every sample once.

    Returns:
        (\*batch), in nats, or (delta, R, R_c) with ``return_parts``.

    Raises:
        As :func:`class_coding_rates`.

    Cost:
        That of :func:`coding_rate` plus that of :func:`class_coding_rates`; forward and backward are one kernel call.

        With ``group`` torch operations in float64 (float32 on devices without it) on the features' side: per item
        (k + 1) d^3 / 3 flops, three times that with a gradient, and for the Gram matrices 2 n d^2, twice that with a
        gradient, on the CPU, where samples are sorted by label. Elsewhere, under torch.compile and for a membership
        they take k times as many, for some classes at a time, so that the copies of the samples stay below 128 MiB.
        One all-reduce of 4 k d (d + 1) + 8 (k + 1) bytes per item, packed triangles, masses and the count (one triangle
        more for a membership); one of 16 bytes in the backward pass. A gradient saves Z and 2 k d^2 numbers in float64,
        3 k d^2 for a membership: 420 MB for k = 100 and d = 512, and about twice that while it is computed. Classes of
        fewer than d / 2 samples are cheaper to gather on every process than their Gram matrices are to exchange.

    Gradient:
        d/(n eps2) (Z M - gamma Z_j M_j) for the rows of class j, computed with the forward and saved (as large as Z).
        With ``group`` that of the sum of the processes' losses, see :func:`coding_rate`; a membership has a gradient
        too, 0 for a class without mass.

    Source:
        Yu et al. 2020 (MCR2), the rate reduction; ``MaximalCodingRateReduction`` of the mcr2 repository.

    >>> import numpy as np, subspan
    >>> Z = np.repeat(np.eye(4)[:2], 3, axis=0)  # two orthogonal directions, three samples each
    >>> print(round(float(subspan.rate_reduction(Z, np.array([0, 0, 0, 1, 1, 1]), 0.5)), 4))
    0.5108
    """
    op = "rate_reduction"
    if group is not None:
        return distributed.rate_reduction(*_over_group(op, Z, labels, eps2, num_classes, gamma, return_parts, group))
    Z, labels, eps2, num_classes = _labelled(op, Z, labels, eps2, num_classes)
    gamma = _check.number(op, "gamma", gamma)
    _check.flag(op, "return_parts", return_parts)
    if not return_parts:
        return _rate_reduction(1, Z, labels, eps2, num_classes, gamma)[0]
    rate = registered_coding_rate(1, Z, None, 0.0, eps2, 0.5, 0)[0]
    rates, mass = _class_coding_rates(2, Z, labels, eps2, num_classes)
    compressed = (rates * mass).sum(-1) / max(Z.shape[-2], 1)
    return rate - gamma * compressed, rate, compressed


def _over_group(
    op: str, Z: Any, labels: Any, eps2: float, num_classes: int | None, gamma: float, return_parts: bool, group: Any
) -> tuple[Any, ...]:
    """Arguments of a rate reduction over a process group, checked and broadcast."""
    _check.matrix(op, "Z", Z)
    _check.process_group(op, group, "Z", Z)
    _check.same_kind(op, "labels", labels, "Z", Z)
    if labels.dtype in _check.COMPUTE_DTYPE:
        Z, labels, eps2, classes = _membership(op, Z, labels, eps2, num_classes)
    elif num_classes is None:
        raise ValueError(f"{op}: num_classes: expected a number with group (processes have different labels), got None")
    else:
        Z, labels, eps2, classes = _labelled(op, Z, labels, eps2, num_classes)
        if _check.readable(labels):
            wrong = labels[(labels < 0) | (labels >= classes)]
            if wrong.numel():
                raise ValueError(f"{op}: labels: expected values in 0 ... {classes - 1}, got {int(wrong[0])}")
    _check.flag(op, "return_parts", return_parts)
    return Z, labels, eps2, classes, _check.number(op, "gamma", gamma), return_parts, group


def _membership(op: str, Z: Any, labels: Any, eps2: float, num_classes: int | None) -> tuple[Any, Any, float, int]:
    """As `_labelled`, for the weight of every sample in every class."""
    if labels.ndim < 2 or labels.shape[-1] != Z.shape[-2] or labels.shape[-2] == 0:
        raise ValueError(
            f"{op}: labels: expected a membership (*batch, k, n) with a column per row of Z {tuple(Z.shape)}, "
            f"got shape {tuple(labels.shape)}"
        )
    classes = labels.shape[-2] if num_classes is None else _check.count(op, "num_classes", num_classes)
    if classes != labels.shape[-2]:
        raise ValueError(
            f"{op}: num_classes: expected the number of rows of the membership {tuple(labels.shape)}, got {classes}"
        )
    _check.nonnegative(op, "labels", labels)
    eps2 = _check.positive(op, "eps2", eps2)
    batch = _check.broadcast_batch(op, "labels", labels, 2, "Z", Z, 2)
    Z, labels = _check.expand(Z, (*batch, *Z.shape[-2:])), _check.expand(labels, (*batch, *labels.shape[-2:]))
    return Z, labels, eps2, classes


def _labelled(op: str, Z: Any, labels: Any, eps2: float, num_classes: int | None) -> tuple[Any, Any, float, int]:
    """Arguments of an op on labelled samples, checked and broadcast to one batch shape."""
    _check.matrix(op, "Z", Z)
    _check.same_kind(op, "labels", labels, "Z", Z)
    if labels.dtype not in _check.INTEGER_DTYPES:
        raise TypeError(f"{op}: labels: expected integers, got {labels.dtype}")
    if labels.ndim < 1 or labels.shape[-1] != Z.shape[-2]:
        raise ValueError(
            f"{op}: labels: expected one label per row of Z {tuple(Z.shape)}, got shape {tuple(labels.shape)}"
        )
    eps2 = _check.positive(op, "eps2", eps2)
    classes = _count_classes(op, labels) if num_classes is None else _check.count(op, "num_classes", num_classes)
    batch = _check.broadcast_batch(op, "labels", labels, 1, "Z", Z, 2)
    Z, labels = _check.expand(Z, (*batch, *Z.shape[-2:])), _check.expand(labels, (*batch, Z.shape[-2]))
    return Z, _check.as_index(labels), eps2, classes


def _count_classes(op: str, labels: Any) -> int:
    if not _check.readable(labels):
        raise ValueError(f"{op}: num_classes: expected a number where reading labels would synchronise, got None")
    largest = int(labels.max()) if 0 not in labels.shape else 0
    if largest < 0:
        raise ValueError(f"{op}: labels: expected values >= 0, got {largest}")
    return largest + 1
