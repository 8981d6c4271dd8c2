"""Hypercomplex convolutions: those of the framework, with a weight composed in one pass."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _check
from .phm import check_length, phm_linear, phm_weight

Size = int | Sequence[int]

#: W has so many times as many rows as there are positions where a convolution is a product of patches.
FEW = 4
#: And so many taps at most, each of which is a slice of x.
TAPS = 27


def sizes(op: str, name: str, value: Any, dims: int, least: int) -> tuple[int, ...]:
    """One integer for every dimension, or one for all."""
    given = tuple(value) if isinstance(value, (tuple, list)) else (value,) * dims
    integers = all(isinstance(v, (int, np.integer)) and not isinstance(v, (bool, np.bool_)) for v in given)
    if not integers:
        raise TypeError(f"{op}: {name}: expected an integer or {dims} of them, got {value!r}")
    if len(given) != dims or min(given) < least:
        raise ValueError(f"{op}: {name}: expected an integer or {dims} of them, each at least {least}, got {value!r}")
    return tuple(int(v) for v in given)


def _check_shapes(op: str, x: Any, A: Any, S: Any, bias: Any, dims: int) -> None:
    _check.matrix(op, "x", x, dims + 1)
    if x.ndim > dims + 2:
        raise ValueError(f"{op}: x: expected ([items,] channels, {dims} sizes), got shape {tuple(x.shape)}")
    for name, array, core in (("A", A, 3), ("S", S, 3 + dims), ("bias", bias, 1)):
        if array is None:
            continue
        _check.same_kind(op, name, array, "x", x)
        _check.matrix(op, name, array, core)
        if array.ndim != core or 0 in array.shape:
            wanted = {"A": "(terms, p, q)", "S": f"(terms, l, k, {dims} sizes)", "bias": "(p l,)"}[name]
            raise ValueError(f"{op}: {name}: expected {wanted} without a zero, got shape {tuple(array.shape)}")
    if S.shape[0] != A.shape[0]:
        expected = f"as many terms as the {A.shape[0]} of A {tuple(A.shape)}"
        raise ValueError(f"{op}: S: expected {expected}, got shape {tuple(S.shape)}")
    channels, given = A.shape[-1] * S.shape[2], x.shape[-dims - 1]
    if given != channels:
        expected = f"{channels} channels, {A.shape[-1]} * {S.shape[2]} of A {tuple(A.shape)} and S {tuple(S.shape)}"
        raise ValueError(f"{op}: x: expected {expected}, got {given} in shape {tuple(x.shape)}")
    if bias is not None:
        check_length(op, "bias", bias, A.shape[-2], S.shape[1], {"A": A, "S": S})


def compose(A: Any, S: Any, transposed: bool) -> Any:
    """The weight as torch has it: (out, in, *kernel), or (in, out, *kernel) of a transposed convolution."""
    if transposed:  # the factors of every tap's transpose: a copy of S, which is 1/n of the weight
        terms, l, k, *kernel = S.shape  # noqa: E741
        A = A.transpose(-1, -2)
        S = S.reshape(terms, k, l, *kernel) if 1 in (l, k) else S.transpose(1, 2)  # whose gradient is packed as S is
    terms, rows, columns, *kernel = S.shape
    W = phm_weight(A, S.reshape(terms, rows, -1))
    return W.reshape(A.shape[-2] * rows, A.shape[-1] * columns, *kernel)


def _without_autocast(function: Any) -> Any:
    if _check.torch is None:
        return function
    from ..composite.factor import without_autocast

    return without_autocast(function)


def _patches(x: Any, parts: int, kernel: tuple[int, ...], out: list[int], options: dict[str, Any]) -> Any:
    """What the kernel sees of all items, as rows (positions of all items, parts taps k) for x (items, parts k, *sizes).
    With channels last, so that k neighbours at a time are copied."""
    torch = _check.torch
    sides = [side for padding in reversed(options["padding"]) for side in (padding, padding)]
    padded = torch.nn.functional.pad(x.movedim(1, -1), (0, 0, *sides)).unflatten(-1, (parts, -1))
    seen = []
    for tap in itertools.product(*map(range, kernel)):
        starts = [t * d for t, d in zip(tap, options["dilation"], strict=True)]
        steps = zip(starts, out, options["stride"], strict=True)
        window = (slice(None), *(slice(a, a + (n - 1) * s + 1, s) for a, n, s in steps))
        seen.append(padded[window])
    return torch.stack(seen, -2).reshape(x.shape[0] * math.prod(out), -1)


@_without_autocast
def _run(x: Any, A: Any, S: Any, bias: Any, out: list[int], transposed: bool, options: dict[str, Any]) -> Any:
    dims, items = len(out), x.shape[0] if x.ndim > len(out) + 1 else 1
    kernel, weights = tuple(S.shape[3:]), A.shape[-2] * S.shape[1]
    if not transposed and math.prod(kernel) <= TAPS and 0 < FEW * items * math.prod(out) <= weights:
        # Fewer rows than W has: composing it in the cache, as it is multiplied, spares its way through memory.
        batched = x if x.ndim > dims + 1 else x.unsqueeze(0)
        rows = _patches(batched, A.shape[-1], kernel, out, options)
        y = phm_linear(rows, A, S.flatten(3).transpose(2, 3).flatten(2), bias)
        y = y.reshape(items, *out, y.shape[-1]).movedim(-1, 1).contiguous()
        return y if x.ndim > dims + 1 else y.squeeze(0)
    name = f"conv_transpose{dims}d" if transposed else f"conv{dims}d"
    return getattr(_check.torch.nn.functional, name)(x, compose(A, S, transposed), bias, **options)


def _convolution(
    op: str,
    dims: int,
    arrays: tuple[Any, Any, Any, Any],
    options: dict[str, Any],
    transposed: bool = False,
) -> Any:
    x, A, S, bias = arrays
    _check_shapes(op, x, A, S, bias, dims)
    options = {name: sizes(op, name, value, dims, 0 if "padding" in name else 1) for name, value in options.items()}
    reach = [d * (k - 1) + 1 for d, k in zip(options["dilation"], S.shape[3:], strict=True)]
    space = tuple(x.shape[-dims:])
    if transposed:
        for extra, stride, dilation in zip(
            options["output_padding"], options["stride"], options["dilation"], strict=True
        ):
            if extra >= max(stride, dilation):
                expected = f"less than the stride {options['stride']} or the dilation {options['dilation']}"
                raise ValueError(f"{op}: output_padding: expected {expected}, got {options['output_padding']}")
        out = [
            (n - 1) * s - 2 * p + r + e
            for n, s, p, r, e in zip(
                space, options["stride"], options["padding"], reach, options["output_padding"], strict=True
            )
        ]
    else:
        out = [
            (n + 2 * p - r) // s + 1
            for n, s, p, r in zip(space, options["stride"], options["padding"], reach, strict=True)
        ]
    if 0 in space or min(out) < 1:
        expected = f"sizes of which the kernel {tuple(S.shape[3:])} leaves something"
        raise ValueError(f"{op}: x: expected {expected}, got shape {tuple(x.shape)}")
    if not _check.is_torch(x):
        return _through_torch(op, arrays, out, transposed, options)
    compute = _check.COMPUTE_DTYPE[x.dtype]
    x, A, S = (_check.cast(array, compute) for array in (x, A, S))
    bias = None if bias is None else _check.cast(bias, compute)
    return _run(x, A, S, bias, out, transposed, options)


def _through_torch(op: str, arrays: tuple[Any, ...], out: list[int], transposed: bool, options: dict[str, Any]) -> Any:
    torch = _check.torch
    if torch is None:
        raise TypeError(f"{op}: x: expected a torch tensor, or another array where torch is installed")
    compute = _check.COMPUTE_DTYPE[arrays[0].dtype]
    given = [None if a is None else _check.cast(a, compute) for a in arrays]
    if _check.is_cupy(arrays[0]):
        import cupy

        tensors = [None if a is None else torch.utils.dlpack.from_dlpack(a) for a in given]
        return cupy.from_dlpack(_run(*tensors, out, transposed, options).contiguous())
    # A copy where the array is read-only or its strides are negative, which torch does not take.
    tensors = [None if a is None else torch.from_numpy(np.require(a, requirements=["C", "A", "W"])) for a in given]
    return _run(*tensors, out, transposed, options).numpy()


def phm_conv1d(
    x: Any, A: Any, S: Any, bias: Any = None, *, stride: Size = 1, padding: Size = 0, dilation: Size = 1
) -> Any:
    r"""A hypercomplex convolution of sequences: every tap's weight is a sum of Kronecker products.

    .. math:: y = x * W + b, \qquad W_t = \sum_i A_i \otimes S_{i, \cdot, \cdot, t}

    Channels are component-major: channel q k + b of x is entry b of component q.

    Args:
        x: ([items,] q k, length); float64, float32, float16 or bfloat16, any strides. torch, NumPy or CuPy; the latter
            two need torch installed.
        A: (terms, p, q), the rule of multiplication, learned or of :func:`algebra`. Any floating type; read as the type
            computed in.
        S: (terms, l, k, taps), the components of the weight. Likewise.
        bias: (p l,) or None.
        ``stride``, ``padding``, ``dilation``: integers, as of ``torch.nn.functional.conv1d``.

    Returns:
        ([items,] p l, length), float64 for float64 x and float32 otherwise.

    Raises:
        TypeError, ValueError: wrong arrays, shapes or options.

    Cost:
        That of the framework's convolution, and 2 terms flops for every entry of W, which is written once; no Kronecker
        product is formed. Where all items have few positions, a quarter of p l, and the kernel no more than 27 taps, W
        is not formed either: the patches are the rows of :func:`phm_linear`.

    Gradient:
        The framework's, whose gradient of W is reduced in one pass to those of S and A. x and W, or the patches, are
        saved.

    Source:
        Grassucci, Zhang, Comminiello 2022, PHNNs: Lightweight Neural Networks via Parameterized Hypercomplex
        Convolutions; replaces ``PHConv1D`` of ``HyperNets``, whose A and F are A and S.

    >>> import torch, subspan
    >>> A, S = torch.randn(4, 4, 4), torch.randn(4, 2, 3, 5)
    >>> print(tuple(subspan.phm_conv1d(torch.randn(1, 12, 20), A, S, padding=2).shape))
    (1, 8, 20)
    """
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    return _convolution("phm_conv1d", 1, (x, A, S, bias), options)


def phm_conv2d(
    x: Any, A: Any, S: Any, bias: Any = None, *, stride: Size = 1, padding: Size = 0, dilation: Size = 1
) -> Any:
    r"""A hypercomplex convolution of images: every tap's weight is a sum of Kronecker products.

    .. math:: y = x * W + b, \qquad W_t = \sum_i A_i \otimes S_{i, \cdot, \cdot, t}

    Args:
        x: ([items,] q k, height, width), as in :func:`phm_conv1d`.
        A: (terms, p, q).
        S: (terms, l, k, rows, columns).
        bias: (p l,) or None.
        ``stride``, ``padding``, ``dilation``: integers or pairs, as of ``torch.nn.functional.conv2d``.

    Returns:
        ([items,] p l, height, width), float64 for float64 x and float32 otherwise.

    Raises:
        TypeError, ValueError: wrong arrays, shapes or options.

    Cost:
        As :func:`phm_conv1d`.

    Gradient:
        As :func:`phm_conv1d`.

    Source:
        Grassucci et al. 2022, PHNNs; replaces ``PHConv2d`` of ``HyperNets`` (A and F), and, with the rule of
        quaternions, ``QConv2d`` of SpeechBrain.

    >>> import torch, subspan
    >>> A, S = torch.randn(4, 4, 4), torch.randn(4, 2, 3, 3, 3)
    >>> print(tuple(subspan.phm_conv2d(torch.randn(1, 12, 9, 8), A, S, stride=2).shape))
    (1, 8, 4, 3)
    """
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    return _convolution("phm_conv2d", 2, (x, A, S, bias), options)


def phm_conv3d(
    x: Any, A: Any, S: Any, bias: Any = None, *, stride: Size = 1, padding: Size = 0, dilation: Size = 1
) -> Any:
    r"""A hypercomplex convolution of volumes: every tap's weight is a sum of Kronecker products.

    .. math:: y = x * W + b, \qquad W_t = \sum_i A_i \otimes S_{i, \cdot, \cdot, t}

    Args:
        x: ([items,] q k, depth, height, width), as in :func:`phm_conv1d`.
        A: (terms, p, q).
        S: (terms, l, k, 3 sizes).
        bias: (p l,) or None.
        ``stride``, ``padding``, ``dilation``: integers or triples, as of ``torch.nn.functional.conv3d``.

    Returns:
        ([items,] p l, depth, height, width), float64 for float64 x and float32 otherwise.

    Raises:
        TypeError, ValueError: wrong arrays, shapes or options.

    Cost:
        As :func:`phm_conv1d`.

    Gradient:
        As :func:`phm_conv1d`.

    Source:
        Grassucci et al. 2022, PHNNs; replaces ``PHConv3D`` of ``HyperNets``.

    >>> import torch, subspan
    >>> A, S = torch.randn(2, 2, 2), torch.randn(2, 2, 1, 3, 3, 3)
    >>> print(tuple(subspan.phm_conv3d(torch.randn(1, 2, 5, 6, 7), A, S).shape))
    (1, 4, 3, 4, 5)
    """
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    return _convolution("phm_conv3d", 3, (x, A, S, bias), options)


def phm_conv_transpose1d(
    x: Any,
    A: Any,
    S: Any,
    bias: Any = None,
    *,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    dilation: Size = 1,
) -> Any:
    r"""A transposed hypercomplex convolution of sequences: the adjoint of one with A_i and S_i transposed.

    .. math:: y = x *^\top W + b, \qquad W_t = \sum_i (A_i \otimes S_{i, \cdot, \cdot, t})^\top

    A multiplies from the left as in :func:`phm_conv1d`, from q components to p: with the rule of quaternions y is w x.
    Code that gives torch's transposed convolution, whose weight is (in, out, taps), the weight of a convolution
    computes the conjugate product; it has A and S transposed.

    Args:
        x: ([items,] q k, length), as in :func:`phm_conv1d`.
        A: (terms, p, q).
        S: (terms, l, k, taps).
        bias: (p l,) or None.
        ``stride``, ``padding``, ``output_padding``, ``dilation``: integers, as of
            ``torch.nn.functional.conv_transpose1d``.

    Returns:
        ([items,] p l, length), float64 for float64 x and float32 otherwise.

    Raises:
        TypeError, ValueError: wrong arrays, shapes or options.

    Cost:
        As :func:`phm_conv1d`, and a copy of S.

    Gradient:
        As :func:`phm_conv1d`.

    Source:
        Grassucci et al. 2022, PHNNs.

    >>> import torch, subspan
    >>> A, S = torch.randn(4, 4, 4), torch.randn(4, 2, 3, 4)
    >>> print(tuple(subspan.phm_conv_transpose1d(torch.randn(1, 12, 5), A, S, stride=2, padding=1).shape))
    (1, 8, 10)
    """
    options = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
    return _convolution("phm_conv_transpose1d", 1, (x, A, S, bias), options, True)


def phm_conv_transpose2d(
    x: Any,
    A: Any,
    S: Any,
    bias: Any = None,
    *,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    dilation: Size = 1,
) -> Any:
    r"""A transposed hypercomplex convolution of images: the adjoint of one with A_i and S_i transposed.

    .. math:: y = x *^\top W + b, \qquad W_t = \sum_i (A_i \otimes S_{i, \cdot, \cdot, t})^\top

    Args:
        x: ([items,] q k, height, width), as in :func:`phm_conv1d`.
        A: (terms, p, q); it multiplies from the left, see :func:`phm_conv_transpose1d`.
        S: (terms, l, k, rows, columns).
        bias: (p l,) or None.
        ``stride``, ``padding``, ``output_padding``, ``dilation``: as of ``torch.nn.functional.conv_transpose2d``.

    Returns:
        ([items,] p l, height, width), float64 for float64 x and float32 otherwise.

    Raises:
        TypeError, ValueError: wrong arrays, shapes or options.

    Cost:
        As :func:`phm_conv1d`, and a copy of S.

    Gradient:
        As :func:`phm_conv1d`.

    Source:
        Grassucci et al. 2022, PHNNs; with A and S transposed ``QuaternionTransposeConv`` of Orkis.

    >>> import torch, subspan
    >>> A, S = torch.randn(4, 4, 4), torch.randn(4, 2, 3, 2, 2)
    >>> print(tuple(subspan.phm_conv_transpose2d(torch.randn(1, 12, 3, 4), A, S, stride=2).shape))
    (1, 8, 6, 8)
    """
    options = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
    return _convolution("phm_conv_transpose2d", 2, (x, A, S, bias), options, True)


def phm_conv_transpose3d(
    x: Any,
    A: Any,
    S: Any,
    bias: Any = None,
    *,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    dilation: Size = 1,
) -> Any:
    r"""A transposed hypercomplex convolution of volumes: the adjoint of one with A_i and S_i transposed.

    .. math:: y = x *^\top W + b, \qquad W_t = \sum_i (A_i \otimes S_{i, \cdot, \cdot, t})^\top

    Args:
        x: ([items,] q k, depth, height, width), as in :func:`phm_conv1d`.
        A: (terms, p, q); it multiplies from the left, see :func:`phm_conv_transpose1d`.
        S: (terms, l, k, 3 sizes).
        bias: (p l,) or None.
        ``stride``, ``padding``, ``output_padding``, ``dilation``: as of ``torch.nn.functional.conv_transpose3d``.

    Returns:
        ([items,] p l, depth, height, width), float64 for float64 x and float32 otherwise.

    Raises:
        TypeError, ValueError: wrong arrays, shapes or options.

    Cost:
        As :func:`phm_conv1d`, and a copy of S.

    Gradient:
        As :func:`phm_conv1d`.

    Source:
        Grassucci et al. 2022, PHNNs.

    >>> import torch, subspan
    >>> A, S = torch.randn(2, 2, 2), torch.randn(2, 2, 1, 2, 2, 2)
    >>> print(tuple(subspan.phm_conv_transpose3d(torch.randn(1, 2, 3, 3, 3), A, S, stride=2).shape))
    (1, 4, 6, 6, 6)
    """
    options = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
    return _convolution("phm_conv_transpose3d", 3, (x, A, S, bias), options, True)
