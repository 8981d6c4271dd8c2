"""Von Neumann entropy as a regulariser."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _check
from ..ops.similarity import von_neumann_entropy


class VNELoss(torch.nn.Module):
    r"""VNE regularisation: features that spread evenly over directions, or for a negative weight concentrate on few.

    .. math:: -\alpha\; S\left(\tfrac1n \hat H^\top \hat H\right), \qquad S(C) = -\operatorname{tr}(C \log C)

    with rows of :math:`\hat H` of unit norm. To change over from the VNE repository: ``loss += VNELoss(alpha)(H)`` is
    its ``loss += -alpha * get_vne(H)``. I-VNE+ adds half of it for each of two views, which is the mean of a stack.

    What differs: the gradient is finite where singular values coincide or vanish, where that of ``torch.svd`` is NaN
    and ``nansum`` hides it in the value only; and nothing is rounded to half precision under autocast.

    Args:
        alpha: weight; positive raises the entropy, negative lowers it.

    Raises:
        TypeError, ValueError: alpha is not a finite number.

    Source:
        Kim et al. 2023, VNE, the regulariser of section 4; ``get_vne`` of jaeill/CVPR23-VNE.

    >>> import torch
    >>> from subspan.nn import VNELoss
    >>> print(f"{VNELoss(alpha=0.5)(torch.eye(4)).item():.4f}")  # -log(4) / 2
    -0.6931
    """

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = _check.number("VNELoss", "alpha", alpha)

    def forward(self, H: Tensor) -> Tensor:
        r"""The loss, a 0-d tensor, of features (n, d), or the mean over (\*batch, n, d)."""
        _check.matrix("VNELoss", "H", H)
        entropy: Tensor = von_neumann_entropy(H)
        return -self.alpha * entropy.mean()

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}"
