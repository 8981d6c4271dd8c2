"""Hypercomplex convolutions, adapters and recurrent layers as people compute them today."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu, linear

from . import phm

# --- convolutions: A (n, n, n), S (n, l, k, rows, columns) ---


def kronecker_conv2d(x: Tensor, A: Tensor, S: Tensor) -> Tensor:
    """HyperNets: n tensors of the size of the weight by one broadcast product, their sum, a convolution."""
    terms, rows, columns, *kernel = S.shape
    products = A[:, :, None, :, None, None, None] * S[:, None, :, None, :]
    W = products.reshape(terms, A.shape[1] * rows, A.shape[2] * columns, *kernel).sum(0)
    return conv2d(x, W, padding=1)


def composed_conv2d(x: Tensor, A: Tensor, S: Tensor) -> Tensor:
    """One product with the rule makes the weight: the best plain PyTorch."""
    W = phm.weight(A, S.flatten(2))
    return conv2d(x, W.reshape(W.shape[0], A.shape[2] * S.shape[2], *S.shape[3:]), padding=1)


def einsum_conv2d(x: Tensor, A: Tensor, S: Tensor) -> Tensor:
    W = torch.einsum("ipq,ilkxy->plqkxy", A, S)
    return conv2d(x, W.reshape(A.shape[1] * S.shape[1], A.shape[2] * S.shape[2], *S.shape[3:]), padding=1)


# --- adapters: each side A (n, n, n), U (n, l, r), V (n, r, k), bias ---


def _sides(factors: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    return factors[: len(factors) // 2], factors[len(factors) // 2 :]


def _components(S: tuple[Tensor, ...]) -> Tensor:
    return S[0] if len(S) == 1 else S[0] @ S[1]


def kronecker_adapter(x: Tensor, *factors: Tensor) -> Tensor:
    """Compacter: both weights by Kronecker products in every call."""
    (A, *S, b), (up_A, *up_S, c) = _sides(factors)
    hidden = gelu(phm.kronecker_sum(x, A, _components(S)) + b)
    return phm.kronecker_sum(hidden, up_A, _components(up_S)) + c + x


def composed_adapter(x: Tensor, *factors: Tensor) -> Tensor:
    """Both weights by one product each."""
    (A, *S, b), (up_A, *up_S, c) = _sides(factors)
    hidden = gelu(linear(x, phm.weight(A, _components(S)), b))
    return linear(hidden, phm.weight(up_A, _components(up_S)), c) + x


def adapter_steps(x: Tensor, *factors: Tensor) -> Tensor:
    """Factor after factor."""
    (A, U, V, b), (up_A, up_U, up_V, c) = _sides(factors)
    return phm.lowrank_steps(gelu(phm.lowrank_steps(x, A, U, V) + b), up_A, up_U, up_V) + c + x


# --- recurrent layers: A (n, n, n), S of the input (4, n, l, k) and of the state (4, n, l, l), biases (4 h) ---


def _gates(W: Tensor) -> Tensor:
    return W.reshape(-1, W.shape[-1])


def kronecker_weights(A: Tensor, S: Tensor) -> Tensor:
    return torch.cat([phm.kronecker_products(A, of_gate).sum(0) for of_gate in S])


def composed_weights(A: Tensor, S: Tensor) -> Tensor:
    gates, terms, rows, columns = S.shape
    W = A.flatten(1).t() @ S.transpose(0, 1).reshape(terms, -1)
    W = W.reshape(*A.shape[1:], gates, rows, columns).permute(2, 0, 3, 1, 4)
    return W.reshape(gates * A.shape[1] * rows, A.shape[2] * columns)


def _cell(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = gates.chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def rebuilding_lstm(weights, x: Tensor, A: Tensor, S_x: Tensor, S_h: Tensor, b: Tensor) -> Tensor:
    """The first PHM code and its ports: both weights anew in every step. x (steps, batch, features)."""
    h = c = x.new_zeros(x.shape[1], b.numel() // 4)
    states = []
    for row in x:
        h, c = _cell(linear(row, weights(A, S_x), b) + linear(h, weights(A, S_h)), c)
        states.append(h)
    return torch.stack(states)


def composed_lstm(x: Tensor, A: Tensor, S_x: Tensor, S_h: Tensor, b: Tensor) -> Tensor:
    """Both weights once, all steps of the input in one product, and a loop: what rebuilding costs."""
    inputs, W = linear(x, composed_weights(A, S_x), b), composed_weights(A, S_h)
    h = c = x.new_zeros(x.shape[1], b.numel() // 4)
    states = []
    for row in inputs:
        h, c = _cell(row + linear(h, W), c)
        states.append(h)
    return torch.stack(states)
