"""Products of hypercomplex vectors, and the vector-symbolic architectures that two of the algebras are."""

from __future__ import annotations

from typing import Any

from .. import _check
from .phm import nearest

#: "hrr" binds by circular convolution, the cyclic algebra; "map" entry by entry, the algebra of diagonal matrices.
ARCHITECTURES = {"hrr": 0, "map": 1}


def _pair(op: str, x_name: str, x: Any, y_name: str, y: Any) -> tuple[Any, Any]:
    """Both in the type that is computed in, of one length."""
    _check.matrix(op, x_name, x, 1)
    _check.same_kind(op, y_name, y, x_name, x)
    _check.matrix(op, y_name, y, 1)
    if x.shape[-1] != y.shape[-1]:
        expected = f"(*batch, {x.shape[-1]}) for {x_name} {tuple(x.shape)}"
        raise ValueError(f"{op}: {y_name}: expected {expected}, got shape {tuple(y.shape)}")
    _check.broadcast_batch(op, y_name, y, 1, x_name, x, 1)
    compute = _check.COMPUTE_DTYPE[_check.promoted(x.dtype, y.dtype)]
    return _check.cast(x, compute), _check.cast(y, compute)


def _module(array: Any) -> Any:
    if _check.is_torch(array):
        return _check.torch
    if _check.is_cupy(array):
        import cupy

        return cupy
    import numpy

    return numpy


def hamilton_product(x: Any, y: Any) -> Any:
    r"""Products x y of quaternions, entry by entry.

    .. math:: (x y)_p = \sum_{i, q} A_{i, p, q}\, x_i\, y_q

    Args:
        x: (\*batch, 4 k), k quaternions, component-major: the real parts, then those of i, of j and of k. float64,
            float32, float16 or bfloat16. torch, NumPy or CuPy.
        y: (\*batch, 4 k) likewise; broadcasts with x.

    Returns:
        (\*batch, 4 k), float64 where an argument is and float32 otherwise.

    Raises:
        TypeError, ValueError: wrong arrays, other lengths, a length that 4 does not divide.

    Cost:
        28 k flops, in array operations of the framework.

    Gradient:
        The framework's.

    Source:
        Hamilton 1843. Replaces ``hamilton_product`` of the first PHM code and of htorch, and that of QuatE.

    >>> import numpy as np, subspan
    >>> i, j = np.eye(4)[1:3]
    >>> print(subspan.hamilton_product(i, j))  # k
    [0. 0. 0. 1.]
    """
    op = "hamilton_product"
    x, y = _pair(op, "x", x, "y", y)
    size = x.shape[-1]
    if size % 4:
        raise ValueError(f"{op}: x: expected a length that 4 divides ({nearest(size, 4)}), got shape {tuple(x.shape)}")
    k = size // 4
    a, b, c, d = (x[..., i * k : (i + 1) * k] for i in range(4))
    e, f, g, h = (y[..., i * k : (i + 1) * k] for i in range(4))
    parts = [
        a * e - b * f - c * g - d * h,
        a * f + b * e + c * h - d * g,
        a * g - b * h + c * e + d * f,
        a * h + b * g - c * f + d * e,
    ]
    return _check.torch.cat(parts, -1) if _check.is_torch(x) else _module(x).concatenate(parts, -1)


def bind(a: Any, b: Any, *, architecture: str = "hrr") -> Any:
    r"""Binds a key to a value, as a vector like neither: the product of two vectors of a vector-symbolic architecture.

    .. math:: (a \circledast b)_p = \sum_q a_{(p - q) \bmod n}\, b_q \quad \text{(hrr)}, \qquad
        (a \odot b)_p = a_p b_p \quad \text{(map)}

    Args:
        a: (\*batch, n); float64, float32, float16 or bfloat16. torch, NumPy or CuPy.
        b: (\*batch, n), broadcasts with a.
        architecture: "hrr", holographic reduced representations: the product of ``algebra("cyclic", n)``, for vectors
            of independent entries of variance 1 / n. "map", multiply-add-permute: for vectors of 1 and -1.

    Returns:
        (\*batch, n), float64 where an argument is and float32 otherwise.

    Raises:
        TypeError, ValueError: wrong arrays, other lengths, an unknown architecture.

    Cost:
        Three Fourier transforms of real vectors, about 7.5 n log2 n flops; n flops for "map".

    Gradient:
        The framework's.

    Source:
        Plate 1995, Holographic Reduced Representations; Gayler 1998, Multiplicative Binding, Representation Operators
        and Analogy. Replaces ``bind`` of torchhd's HRRTensor and MAPTensor.

    >>> import numpy as np, subspan
    >>> print(subspan.bind(np.array([0.0, 1.0, 0.0]), np.array([1.0, 2.0, 3.0])).round(9))  # turned by one
    [3. 1. 2.]
    """
    op = "bind"
    path = _check.choice(op, "architecture", architecture, ARCHITECTURES)
    a, b = _pair(op, "a", a, "b", b)
    return a * b if path else _convolve(a, b, False)


def unbind(bound: Any, key: Any, *, architecture: str = "hrr") -> Any:
    r"""What was bound to a key, with the noise of all that is in the sum beside it.

    .. math:: \hat b_q = \sum_p a_{(p - q) \bmod n}\, s_p \quad \text{(hrr)}, \qquad
        \hat b_p = a_p s_p \quad \text{(map)}

    For "hrr" the key is inverted by its involution, a_0, a_{n-1}, ..., a_1, which for vectors of independent entries of
    variance 1 / n is the inverse but for noise, and does not amplify the noise of others as the exact inverse does. For
    "map" with entries of 1 and -1 keys are their own inverses.

    Args:
        bound: s (\*batch, n), a pair from :func:`bind` or a :func:`bundle` of them. torch, NumPy or CuPy.
        key: a (\*batch, n), broadcasts with it.
        architecture: as in :func:`bind`.

    Returns:
        (\*batch, n), float64 where an argument is and float32 otherwise. The value is the item of memory with the
        largest inner product.

    Raises:
        TypeError, ValueError: wrong arrays, other lengths, an unknown architecture.

    Cost:
        As :func:`bind`.

    Gradient:
        The framework's.

    Source:
        Plate 1995, section II; Gayler 1998. Replaces ``unbind`` of torchhd's HRRTensor and MAPTensor.

    >>> import numpy as np, subspan
    >>> key, value = np.array([1.0, -1.0, -1.0]), np.array([1.0, 1.0, -1.0])
    >>> pair = subspan.bind(key, value, architecture="map")
    >>> print(subspan.unbind(pair, key, architecture="map"))
    [ 1.  1. -1.]
    """
    op = "unbind"
    path = _check.choice(op, "architecture", architecture, ARCHITECTURES)
    bound, key = _pair(op, "bound", bound, "key", key)
    return bound * key if path else _convolve(bound, key, True)


def _convolve(a: Any, b: Any, correlate: bool) -> Any:
    fft, n = _module(a).fft, a.shape[-1]
    if n == 0:
        return a * b
    spectrum = fft.rfft(b)
    product = fft.irfft(fft.rfft(a) * (spectrum.conj() if correlate else spectrum), n)
    return _check.cast(product, a.dtype)  # NumPy before version 2 gives float64


def bundle(items: Any, *, axis: int = -2) -> Any:
    r"""The sum of vectors, like each of them: a set, or, of bound pairs, a memory that :func:`unbind` reads.

    .. math:: s = \sum_i x_i

    How many it can hold: of m items drawn from D independent ones of length n, an item is told from the D - 1 others,
    for "map", with probability :math:`\int \varphi(h)\, \Phi(h + \sqrt{n / m})^{D - 1}\, dh`.

    Args:
        items: (\*batch, items, n); float64, float32, float16 or bfloat16. torch, NumPy or CuPy.
        axis: of the items.

    Returns:
        (\*batch, n), float64 for float64 items and float32 otherwise.

    Raises:
        TypeError, ValueError: a wrong array, an axis that it does not have.

    Cost:
        A sum.

    Gradient:
        The framework's.

    Source:
        Plate 1995; Frady, Kleyko, Sommer 2018, A Theory of Sequence Indexing and Working Memory in Recurrent Neural
        Networks, equation 2.13, for the capacity. Replaces ``multiset`` of torchhd.

    >>> import numpy as np, subspan
    >>> print(subspan.bundle(np.array([[1.0, -1.0], [1.0, 1.0]])))
    [2. 0.]
    """
    op = "bundle"
    _check.matrix(op, "items", items)
    if isinstance(axis, bool) or not isinstance(axis, int):
        raise TypeError(f"{op}: axis: expected an integer, got {type(axis).__name__}")
    if not -items.ndim <= axis < items.ndim:
        raise ValueError(f"{op}: axis: expected one of the {items.ndim} dimensions of items, got {axis}")
    return _check.cast(items, _check.COMPUTE_DTYPE[items.dtype]).sum(axis)
