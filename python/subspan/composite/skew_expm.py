"""The exponential of skew matrices in differentiable torch operations, in float64 for every input type (float32 on
devices without float64).

With G = K^T K = -K^2 it is cos G^1/2 + K G^-1/2 sin G^1/2, both entire functions of G that rotation.py has with their
derivatives. There are no eigenvectors: derivatives of any order exist everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .factor import factor_dtype, result_dtype, without_autocast
from .rotation import rotation_functions


def _skew_part(A: Tensor) -> tuple[Tensor, Tensor]:
    """K, 0 for an item that is not finite, and NaN for that item, to be added."""
    a = A.to(factor_dtype(A))
    poison = (a * 0).sum((-2, -1), keepdim=True)
    a = torch.where(poison.isfinite(), a, 0)
    return (a - a.mT) / 2, poison


@without_autocast
def skew_expm(A: Tensor) -> tuple[Tensor]:
    K, poison = _skew_part(A)
    (cosine,), (sine,), _ = rotation_functions(K.mT @ K)
    return ((cosine + K @ sine + poison).to(result_dtype(A)),)


@without_autocast
def skew_expm_gradient(A: Tensor, upstream: Tensor) -> Tensor:
    """The derivative of a function of the symmetric G is its own adjoint. With dG = -(K dK + dK K) the gradient of G is
    H = cosine'[g] + sine'[K^T g], and that of K is g sine + K H + H K."""
    K, poison = _skew_part(A)
    g = upstream.to(K.dtype)
    gram = K.mT @ K
    cosine = rotation_functions(gram, g)[0]
    _, sine, _ = rotation_functions(gram, K.mT @ g)
    H = cosine[1] + sine[1]
    gradient = g @ sine[0] + K @ H + H @ K
    return (gradient - gradient.mT) / 2 + poison
