"""CRATE's layers as the paper writes them, in float64 NumPy.

CRATE: Yu, Buchanan, Pai, Chu, Wu, Tong, Haeffele, Ma, White-Box Transformers via Sparse Rate Reduction, 2023,
       arXiv:2306.01129

Tokens are rows here, columns there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def ista(x: ArrayLike, D: ArrayLike, step: float = 0.1, threshold: float = 0.1) -> Array:
    """ReLU(Z + eta D^T (Z - D Z) - eta lambda): a proximal step towards sparse codes, with three products."""
    x, D = np.asarray(x, dtype=np.float64), np.asarray(D, dtype=np.float64)
    gradient = x @ D - (x @ D.swapaxes(-1, -2)) @ D
    code: Array = np.maximum(x + step * gradient - step * threshold, 0)
    return code
