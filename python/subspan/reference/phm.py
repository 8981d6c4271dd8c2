"""Hypercomplex products as the papers write them, in float64 NumPy: sums of Kronecker products.

PHM:       Zhang, Tay, Zhang, Chan, Luu, Hui, Fu, Beyond Fully-Connected Layers with Quaternions: Parameterization of
           Hypercomplex Multiplications with 1/n Parameters, ICLR 2021, arXiv:2102.08597
Compacter: Karimi Mahabadi, Henderson, Ruder, Compacter: Efficient Low-Rank Hypercomplex Adapter Layers, NeurIPS 2021,
           arXiv:2106.04647
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def _double(*arrays: ArrayLike) -> list[Array]:
    return [np.asarray(array, dtype=np.float64) for array in arrays]


def phm_weight(A: ArrayLike, S: ArrayLike) -> Array:
    """PHM, equation 3: the sum of the Kronecker products of A_i with S_i."""
    A, S = _double(A, S)
    batch = np.broadcast_shapes(A.shape[:-3], S.shape[:-3])
    A, S = np.broadcast_to(A, batch + A.shape[-3:]), np.broadcast_to(S, batch + S.shape[-3:])
    W = np.zeros((*batch, A.shape[-2] * S.shape[-2], A.shape[-1] * S.shape[-1]))
    for index in np.ndindex(batch):
        for A_i, S_i in zip(A[index], S[index], strict=True):
            W[index] += np.kron(A_i, S_i)
    return W


def phm_linear(
    x: ArrayLike, A: ArrayLike, S: ArrayLike, bias: ArrayLike | None = None, *, method: str = "auto"
) -> Array:
    """PHM, equations 2 and 3."""
    (x,) = _double(x)
    W = phm_weight(A, S)
    y: Array = (W @ x[..., None])[..., 0] if x.ndim == 1 else x @ W.swapaxes(-1, -2)
    if bias is None:
        return y
    (bias,) = _double(bias)
    return y + (bias if y.ndim == 1 or W.ndim == 2 else bias[..., None, :])


def phm_linear_rank1(
    x: ArrayLike, left: ArrayLike, right: ArrayLike, S: ArrayLike, bias: ArrayLike | None = None
) -> Array:
    """Compacter, section 3.2: A_i is a column times a row."""
    left, right = _double(left, right)
    return phm_linear(x, left @ right, S, bias)


def phm_linear_lowrank(x: ArrayLike, A: ArrayLike, U: ArrayLike, V: ArrayLike, bias: ArrayLike | None = None) -> Array:
    """Compacter, section 3.2: S_i = U_i V_i."""
    U, V = _double(U, V)
    return phm_linear(x, A, U @ V, bias)


def activation(name: str, z: ArrayLike) -> Array:
    """The activations of adapters: relu, z Phi(z), its approximation by tanh, and z times the logistic function."""
    (z,) = _double(z)
    if name == "relu":
        return z * (z > 0)
    if name == "gelu":
        erf: Array = np.vectorize(math.erf, otypes=[float])(z / math.sqrt(2))
        return 0.5 * z * (1 + erf)
    if name == "gelu_tanh":
        tanh: Array = np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))
        return 0.5 * z * (1 + tanh)
    exponential: Array = np.exp(-z)
    return z / (1 + exponential)


def phm_adapter(
    x: ArrayLike, down: Sequence[ArrayLike | None], up: Sequence[ArrayLike | None], name: str, residual: bool
) -> Array:
    """Compacter, section 3: a bottleneck between two layers, each (A, U, V, bias) or (A, S, bias), added to x."""

    def layer(rows: ArrayLike, factors: Sequence[ArrayLike | None]) -> Array:
        A, *S, bias = factors
        (S_double,) = [np.matmul(*_double(*S))] if len(S) == 2 else _double(*S)  # type: ignore[arg-type]
        return phm_linear(rows, A, S_double, bias)  # type: ignore[arg-type]

    y = layer(activation(name, layer(x, down)), up)
    return y + _double(x)[0] if residual else y
