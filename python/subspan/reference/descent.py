"""Steps of the optimisers as the papers state them, in float64 NumPy. Everything that changes is returned anew."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .newton_schulz import Polynomial, compose

Array = NDArray[np.float64]


def muon_step(
    W: Array,
    G: Array,
    B: Array,
    lr: float,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    polynomials: Sequence[Polynomial],
    eps: float,
    adjustment: str,
) -> tuple[Array, Array]:
    """Algorithm 2 of Jordan et al. 2024 with an average for a momentum, as torch.optim.Muon has it; 2-D."""
    B = momentum * B + (1 - momentum) * G
    U = momentum * B + (1 - momentum) * G if nesterov else B
    left, s, right = np.linalg.svd(U, full_matrices=False)
    orthogonal = (left * compose(s / max(np.linalg.norm(s), eps), polynomials)) @ right
    rows, columns = W.shape
    factor = 0.2 * max(rows, columns) ** 0.5 if adjustment == "match_rms_adamw" else max(1.0, rows / columns) ** 0.5
    return (1 - lr * weight_decay) * W - lr * factor * orthogonal, B
