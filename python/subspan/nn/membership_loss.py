"""The rate reduction of soft memberships, as a module that replaces that of its repository."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _check
from ..ops.class_coding_rates import rate_reduction
from ..ops.coding_rate import coding_rate


class MLCLoss(torch.nn.Module):
    r"""Minus the rate reduction of samples that belong to every class to a degree. CPP's class of this name.

    .. math::
        \text{loss} = -R + \text{gamma}\, R_c, \qquad
        R = \tfrac12\log\det\left(I + \frac{d}{n\,\text{eps}} X^\top X\right), \qquad
        R_c = \sum_j \frac{t_j}{2n}\log\det\left(I + \frac{d}{t_j\,\text{eps}} X^\top \operatorname{diag}(Y_{\cdot j})
        X\right), \qquad t_j = \sum_i Y_{ij}

    To change over, change the import::

        - from loss.loss_fn import MLCLoss
        + from subspan.nn import MLCLoss

    With it goes ``subspan.sinkhorn(scores, 0.175)`` for the membership: CPP's plan of a square matrix times its number
    of columns.

    What differs: the k matrices of n x d weighted features are not built; the membership may have any number k of
    columns, and a class has mass t_j, not t_j + 1e-8; the list holds 0-d tensors, so that logging them does not wait
    for the device (``.item()`` gives the repository's floats); a stack (\*batch, n, d) gives a loss per item.

    Args:
        eps: epsilon **squared**, the name is that of the repository; number > 0. Its ``main.py`` trains with 0.1
            whatever its option ``--eps`` says.
        gamma: weight of the compression term.

    Raises:
        TypeError, ValueError: a parameter is not a finite number, or eps is not > 0.

    Source:
        Chu et al. 2024, Image Clustering via the Principle of Rate Reduction in the Age of Pretrained Models; class
        ``MLCLoss`` in ``loss/loss_fn.py`` of LeslieTrue/CPP.

    >>> import torch
    >>> from subspan.nn import MLCLoss
    >>> features = torch.eye(4)[[0, 0, 1, 1]]
    >>> membership = torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.25, 0.75], [0.25, 0.75]])
    >>> loss, (rate, compressed) = MLCLoss(eps=0.5)(features, membership)
    >>> print(f"{loss.item():.4f} = {compressed.item():.4f} - {rate.item():.4f}")
    -0.0872 = 1.5223 - 1.6094
    """

    def __init__(self, eps: float = 0.01, gamma: float = 1.0) -> None:
        super().__init__()
        self.eps = _check.positive("MLCLoss", "eps", eps)
        self.gamma = _check.number("MLCLoss", "gamma", gamma)

    def forward(self, X: Tensor, Y: Tensor, detach: bool = True) -> tuple[Tensor, list[Tensor]]:
        r"""The loss, and its two rates.

        Args:
            X: (n, d) or (\*batch, n, d), samples as rows, usually of unit norm.
            Y: (n, k) or (\*batch, n, k), >= 0: row i says how much of sample i is of each class, and sums to 1.
            detach: detach the two rates, which are then only to be logged.

        Returns:
            loss (\*batch), and [R, R_c].

        Raises:
            TypeError, ValueError: wrong arrays or shapes, on the CPU a negative membership.
        """
        op = "MLCLoss"
        _check.matrix(op, "X", X)
        _check.same_kind(op, "Y", Y, "X", X)
        _check.matrix(op, "Y", Y)
        _check.flag(op, "detach", detach)
        if Y.shape[-2] != X.shape[-2]:
            raise ValueError(
                f"{op}: Y: expected a row of memberships per row of X {tuple(X.shape)}, got {tuple(Y.shape)}"
            )
        membership = Y.mT
        if not detach or self.gamma == 0:
            delta, rate, compressed = rate_reduction(X, membership, self.eps, gamma=self.gamma, return_parts=True)
            return -delta, [rate.detach(), compressed.detach()] if detach else [rate, compressed]
        # Loss and gradient together take half the time of the parts with theirs; of those only the values are wanted.
        delta = rate_reduction(X, membership, self.eps, gamma=self.gamma)
        rate = coding_rate(X.detach(), self.eps)
        return -delta, [rate, (rate - delta.detach()) / self.gamma]

    def extra_repr(self) -> str:
        return f"eps={self.eps:g}, gamma={self.gamma:g}"
