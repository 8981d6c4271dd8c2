"""Similarities of layers as platonic-rep computes them, in the form people copy, written afresh from their description.

Two layers at a time; samples are rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from sklearn.cross_decomposition import CCA
from torch import Tensor


def all_pairs(similarity: Callable[[Tensor, Tensor], float], xs: list[Tensor], ys: list[Tensor]) -> Tensor:
    """The loop over both networks' layers."""
    return torch.tensor([[similarity(x, y) for y in ys] for x in xs])


def cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA: two kernels, and three traces, each of a product of four n x n matrices with the centring matrix."""

    def hsic(K: Tensor, L: Tensor) -> Tensor:
        H = torch.eye(len(K)) - 1 / len(K)
        return torch.trace(K @ H @ L @ H)

    K, L = x @ x.T, y @ y.T
    return (hsic(K, L) / (torch.sqrt(hsic(K, K) * hsic(L, L)) + 1e-6)).item()


def svcca(x: Tensor, y: Tensor, rank: int) -> float:
    """Standardised features, a randomised SVD of each, then CCA of the leading left singular vectors."""
    left = []
    for features in (x, y):
        standard = (features - features.mean(dim=0)) / (features.std(dim=0) + 1e-8)
        left.append(torch.svd_lowrank(standard, q=rank)[0])
    return iterative_cca(*left)


def iterative_cca(u: Tensor, v: Tensor) -> float:
    """Mean correlation of the scores of scikit-learn's CCA, to which noise is added against NaN."""
    rank = u.shape[1]
    arrays = u.numpy(), v.numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of iterations that do not converge
        scores = CCA(n_components=rank).fit(*arrays).transform(*arrays)
    first, second = (part + 1e-10 * np.random.randn(*part.shape) for part in scores)
    return float(np.mean([np.corrcoef(first[:, i], second[:, i])[0, 1] for i in range(rank)]))
