"""Coding rates of classes, and the rate reduction: what is saved by coding each class alone."""

from __future__ import annotations

from typing import Any

from .. import _check, _native, _route
from .coding_rate import over, per_item, registered_coding_rate

composite: Any = None  # without torch there is nothing to compose
soft_composite: Any = None
distributed: Any = None
if _check.torch is not None:
    from ..composite import coding_rate as composite
    from ..composite import distributed
    from ..composite import membership as soft_composite

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
        factors=True,
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
        factors=True,
    )
)

_class_mass = _route.register(
    _route.Op(
        name="class_mass",
        inputs=(("membership", 2),),
        schema="",
        outputs=("compute",),
        shapes=lambda membership: (tuple(membership.shape[:-1]),),
        kernel=_native.cpu.class_mass,
        composite=lambda membership: soft_composite.class_mass(membership),
        gradient=lambda membership: (),
        backward=lambda g, saved, tensors, parameters, scaled: (
            g[..., None].expand(tensors[0].shape).to(tensors[0].dtype),
        ),
        saves=(),
        public="class_coding_rates",
    )
)

# With soft membership the gradient of a vector of rates is no product of the upstream gradient with anything saved: it
# is another pass over the data, an op of its own. Only its caller is differentiated further.
_soft_class_gradient = _route.register(
    _route.Op(
        name="soft_class_gradient",
        inputs=(("Z", 2), ("membership", 2), ("upstream", 1)),
        schema="float eps2",
        outputs=("compute", "compute"),
        shapes=lambda Z, membership, *_: (tuple(Z.shape), tuple(membership.shape)),
        kernel=_native.cpu.soft_class_gradient,
        composite=lambda *args: soft_composite.soft_class_gradient(*args),
        saves=(),
        factors=True,
        public="class_coding_rates",
    )
)


def _soft_class_backward(g: Any, saved: Any, tensors: Any, parameters: Any, scaled: Any) -> Any:
    Z, membership = tensors
    if _route.in_torch(g):
        d_Z, d_membership = soft_composite.soft_class_gradient(Z, membership, g, *parameters)
    else:
        d_Z, d_membership = _soft_class_gradient(2, Z, membership, g, *parameters)
    return d_Z.to(Z.dtype), d_membership.to(membership.dtype)


_soft_class_coding_rates = _route.register(
    _route.Op(
        name="soft_class_coding_rates",
        inputs=(("Z", 2), ("membership", 2)),
        schema="float eps2",
        outputs=("compute",),
        shapes=lambda Z, membership, _: (tuple(membership.shape[:-1]),),
        kernel=_native.cpu.soft_class_coding_rates,
        composite=lambda *args: soft_composite.soft_class_coding_rates(*args),
        gradient=lambda *args: (),  # backward needs nothing but the arguments
        backward=_soft_class_backward,
        saves=(),
        factors=True,
        public="class_coding_rates",
    )
)

_soft_rate_reduction = _route.register(
    _route.Op(
        name="soft_rate_reduction",
        inputs=(("Z", 2), ("membership", 2)),
        schema="float eps2, float gamma",
        outputs=("compute",),
        shapes=lambda Z, *_: per_item(Z),
        kernel=_native.cpu.soft_rate_reduction,
        composite=lambda *args: soft_composite.soft_rate_reduction(*args),
        gradient=lambda *args: soft_composite.soft_rate_reduction_gradient(*args),
        backward=lambda g, saved, tensors, parameters, scaled: (
            scaled(over(g, 2), saved[0], tensors[0]),
            scaled(over(g, 2), saved[1], tensors[1]),
        ),
        saves=(0, 1),
        factors=True,
        public="rate_reduction",
    )
)


def class_coding_rates(Z: Any, labels: Any, eps2: float, *, num_classes: int | None = None) -> tuple[Any, Any]:
    r"""Coding rate of the samples of each class.

    .. math:: R_j = \tfrac12 \log\det\left(I + \frac{d}{t_j \varepsilon^2} Z_j^\top Z_j\right), \qquad
        t_j = \text{number of samples with label } j

    Args:
        Z: (\*batch, n, d), rows are samples; float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy.
        labels: (\*batch, n) integers in 0 ... num_classes - 1; or a soft membership (\*batch, k, n) of a floating point
            type, entry (j, i) >= 0 being the part of sample i that belongs to class j: then Z^T diag(pi_j) Z takes the
            place of Z_j^T Z_j and t_j = sum_i pi_ji. Broadcast with Z.
        eps2: epsilon squared; number > 0.
        num_classes: k. None takes that of the membership, or the largest label plus one, which reads the labels: CPU
            outside torch.compile only.

    Returns:
        (rates, mass), each (\*batch, k): rates in nats, and t_j. An empty class has rate 0 and mass 0.

    Raises:
        TypeError, ValueError: wrong arrays or shapes, eps2 not > 0, on the CPU a label out of range or a negative
            membership. On CUDA a label out of range makes its item NaN, a negative membership its class.

    Cost:
        Each class is factored on its smaller side: sum_j (s_j^2 b_j + s_j^3 / 3) flops with s_j = min(t_j, d),
        b_j = max(t_j, d), about three times that with a gradient. Samples are gathered while packing, never copied.
        With soft membership k (n d^2 + d^3 / 3) flops for n >= d, three times that with a gradient, and no copy of Z:
        from 24 classes on all Gram matrices are one product with the pairs of features z_a z_b, which are formed while
        packing, some classes at a time: buffers of 16 MB, or of 48 d^2 numbers where that is more. For n < d the
        classes share one n x n Gram matrix: k n^3.

    Gradient:
        Labels: d/(t_j eps2) Z_j M_j for the rows of class j, computed with the forward and saved (as large as Z). The
        mass has none. Membership: to Z, sum_j g_j alpha_j pi_ji z_i M_j with alpha_j = d/(t_j eps2); to the membership,
        g_j/2 (q_ji - sum_l pi_jl q_jl / t_j) with q_ji = alpha_j z_i M_j z_i, the second term being the derivative
        through t_j; backward is a pass of its own and saves nothing. Zero for a class without mass.

    Source:
        Yu et al. 2020 (MCR2), the terms of R_c; ``compute_compress_loss`` of the mcr2 repository, for a membership that
        of NMCE, EMP-SSL and CPP. ``gumb_compress_loss`` of EMP-SSL scales both factors of the Gram matrix by the
        membership, which squares it.

    >>> import numpy as np, subspan
    >>> rates, mass = subspan.class_coding_rates(np.eye(4), np.array([0, 0, 1, 1]), 0.5)
    >>> print(mass, rates.round(4))
    [2. 2.] [1.6094 1.6094]
    """
    op = "class_coding_rates"
    if _is_membership(labels):
        Z, membership, eps2 = _soft(op, Z, labels, eps2, num_classes)
        return _soft_class_coding_rates(1, Z, membership, eps2)[0], _class_mass(1, membership)[0]
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
        labels: (\*batch, n) integers, or a soft membership (\*batch, k, n); see :func:`class_coding_rates`.
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
        Membership: d/(n eps2) (z_i M - gamma sum_j pi_ji z_i M_j), and to the membership
        -gamma/(2n) (L_j + t_j q_ji - sum_l pi_jl q_jl) with L_j = 2 R_j; both computed with the forward and saved.
        With ``group`` that of the sum of the processes' losses, see :func:`coding_rate`.

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
    gamma = _check.number(op, "gamma", gamma)
    _check.flag(op, "return_parts", return_parts)
    if _is_membership(labels):
        Z, membership, eps2 = _soft(op, Z, labels, eps2, num_classes)
        if not return_parts:
            return _soft_rate_reduction(1, Z, membership, eps2, gamma)[0]
        rates, mass = _soft_class_coding_rates(1, Z, membership, eps2)[0], _class_mass(1, membership)[0]
    else:
        Z, labels, eps2, num_classes = _labelled(op, Z, labels, eps2, num_classes)
        if not return_parts:
            return _rate_reduction(1, Z, labels, eps2, num_classes, gamma)[0]
        rates, mass = _class_coding_rates(2, Z, labels, eps2, num_classes)
    rate = registered_coding_rate(1, Z, None, 0.0, eps2, 0.5, 0)[0]
    compressed = (rates * mass).sum(-1) / max(Z.shape[-2], 1)
    return rate - gamma * compressed, rate, compressed


def _is_membership(labels: Any) -> bool:
    return getattr(labels, "dtype", None) in _check.COMPUTE_DTYPE and getattr(labels, "ndim", 0) >= 2


def _soft(op: str, Z: Any, membership: Any, eps2: float, num_classes: int | None) -> tuple[Any, Any, float]:
    """Arguments of an op on soft membership, checked, in the type computed in, and broadcast to one batch shape."""
    _check.matrix(op, "Z", Z)
    _check.same_kind(op, "labels", membership, "Z", Z)
    shapes = f"got membership {tuple(membership.shape)} and Z {tuple(Z.shape)}"
    if Z.ndim > 2 and tuple(membership.shape) == tuple(Z.shape[:-1]):
        raise TypeError(f"{op}: labels: expected integer labels, or a membership expanded to (*batch, k, n), {shapes}")
    if membership.shape[-1] != Z.shape[-2]:
        raise ValueError(f"{op}: labels: expected a membership (*batch, k, n), a column per row of Z, {shapes}")
    if num_classes is not None and _check.count(op, "num_classes", num_classes) != membership.shape[-2]:
        raise ValueError(f"{op}: num_classes: expected the rows of the membership or None, got {num_classes}, {shapes}")
    if membership.shape[-2] == 0:
        raise ValueError(f"{op}: labels: expected a membership of at least one class, {shapes}")
    eps2 = _check.positive(op, "eps2", eps2)
    batch = _check.broadcast_batch(op, "labels", membership, 2, "Z", Z, 2)
    membership = _check.cast(membership, _check.COMPUTE_DTYPE[Z.dtype])
    Z, membership = (
        _check.expand(Z, (*batch, *Z.shape[-2:])),
        _check.expand(membership, (*batch, *membership.shape[-2:])),
    )
    return Z, membership, eps2


def _over_group(
    op: str, Z: Any, labels: Any, eps2: float, num_classes: int | None, gamma: float, return_parts: bool, group: Any
) -> tuple[Any, ...]:
    """Arguments of a rate reduction over a process group, checked and broadcast."""
    _check.matrix(op, "Z", Z)
    _check.process_group(op, group, "Z", Z)
    _check.same_kind(op, "labels", labels, "Z", Z)
    if _is_membership(labels):
        Z, labels, eps2 = _soft(op, Z, labels, eps2, num_classes)
        _check.nonnegative(op, "labels", labels)
        classes = labels.shape[-2]
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


def _labelled(op: str, Z: Any, labels: Any, eps2: float, num_classes: int | None) -> tuple[Any, Any, float, int]:
    """Arguments of an op on labelled samples, checked and broadcast to one batch shape."""
    _check.matrix(op, "Z", Z)
    _check.same_kind(op, "labels", labels, "Z", Z)
    if labels.dtype not in _check.INTEGER_DTYPES:
        raise TypeError(
            f"{op}: labels: expected integers (*batch, n) or a membership (*batch, k, n), got {labels.dtype}"
        )
    if labels.ndim < 1 or labels.shape[-1] != Z.shape[-2]:
        raise ValueError(
            f"{op}: labels: expected one label per row of Z {tuple(Z.shape)}, got shape {tuple(labels.shape)}"
        )
    if labels.ndim >= Z.ndim:  # k rows of integers would pass as k ways to label the same samples
        raise ValueError(
            f"{op}: labels: expected (*batch, n) with no more batch dimensions than Z {tuple(Z.shape)}, or a floating "
            f"point membership (*batch, k, n), got {labels.dtype} of shape {tuple(labels.shape)}"
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
