"""Class logits of subspaces as the paper states them, in float64 NumPy.

GCR: Wang, Li, Zhang, Get the Best of Both Worlds: Improving Accuracy and Transferability by Grassmann Class
     Representation, ICCV 2023, arXiv:2308.01547
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def subspace_logits(x: ArrayLike, W: ArrayLike, *, scale: float = 1.0, layout: str = "columns") -> Array:
    """scale ||W_c^T x||_2."""
    x, W = np.asarray(x, dtype=np.float64), np.asarray(W, dtype=np.float64)
    bases = W if layout == "columns" else W.swapaxes(-1, -2)
    projections = np.einsum("...n,...cnk->...ck", x, bases)
    logits: Array = scale * np.sqrt((projections**2).sum(-1))
    return logits
