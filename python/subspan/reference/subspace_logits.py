"""Class logits of subspaces as the paper states them, in float64 NumPy.

GCR: Wang, Li, Zhang, Get the Best of Both Worlds: Improving Accuracy and Transferability by Grassmann Class
     Representation, ICCV 2023, arXiv:2308.01547
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def subspace_logits(
    x: ArrayLike, W: ArrayLike, *, scale: float = 1.0, layout: str = "columns", normalize: bool = False
) -> Array:
    """scale ||W_c^T x||_2; normalized scale ||W_c^T x / ||x|| ||_2, and 0 for x = 0."""
    x, W = np.asarray(x, dtype=np.float64), np.asarray(W, dtype=np.float64)
    bases = W if layout == "columns" else W.swapaxes(-1, -2)
    projections = np.einsum("...n,...cnk->...ck", x, bases)
    lengths = np.sqrt((x**2).sum(-1, keepdims=True)) if normalize else np.ones((*x.shape[:-1], 1))
    logits: Array = scale * np.sqrt((projections**2).sum(-1)) / np.where(lengths == 0, 1, lengths)
    return logits
