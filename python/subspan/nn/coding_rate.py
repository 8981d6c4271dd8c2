"""Losses of coding rate, as modules that replace those of the papers' repositories."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _check
from ..ops.class_coding_rates import class_coding_rates
from ..ops.coding_rate import coding_rate


class TotalCodingRate(torch.nn.Module):
    r"""Minus the coding rate: minimising it spreads the features out. EMP-SSL's class of this name.

    .. math:: -\tfrac12 \log\det\left(I + \frac{d}{n\,\text{eps}} X^\top X\right)

    To change over, change the import::

        - from loss import TotalCodingRate
        + from subspan.nn import TotalCodingRate

    What differs: a stack of views (\*batch, n, d) is one call instead of a loop; the smaller of the n x n and d x d
    Gram matrices is factored; half-precision features and autocast are safe, since the Gram matrix stays in single
    precision or better.

    Args:
        eps: epsilon **squared**, the name is that of the repository; number > 0.

    Raises:
        TypeError, ValueError: eps is not a finite number > 0.

    Source:
        Tong et al. 2023, EMP-SSL, the term R of the loss; class ``TotalCodingRate`` in ``loss.py`` of tsb0601/EMP-SSL.

    >>> import torch
    >>> from subspan.nn import TotalCodingRate
    >>> print(f"{TotalCodingRate(eps=0.5)(torch.eye(4)).item():.4f}")
    -2.1972
    """

    def __init__(self, eps: float = 0.01) -> None:
        super().__init__()
        self.eps = _check.positive("TotalCodingRate", "eps", eps)

    def forward(self, X: Tensor) -> Tensor:
        r"""Minus the coding rate of the rows of X.

        Args:
            X: (n, d) or (\*batch, n, d), samples as rows, usually of unit norm.

        Returns:
            (\*batch): one value per item, a 0-d tensor for (n, d). float64 for float64 features, else float32.
        """
        rate: Tensor = coding_rate(X, self.eps)
        return -rate

    def extra_repr(self) -> str:
        return f"eps={self.eps:g}"


class MaximalCodingRateReduction(torch.nn.Module):
    r"""The MCR2 loss with integer labels: minus gam2 times the rate of all features, plus that of the classes.

    .. math::
        \text{loss} = -\text{gam2}\, R(\text{gam1}) + R_c, \qquad
        R(\gamma) = \tfrac12\log\det\left(I + \gamma\frac{d}{n\,\text{eps}} X^\top X\right), \qquad
        R_c = \sum_j \frac{t_j}{2n}\log\det\left(I + \frac{d}{t_j\,\text{eps}} X_j^\top X_j\right)

    To change over, change the import::

        - from loss import MaximalCodingRateReduction
        + from subspan.nn import MaximalCodingRateReduction

    What differs: the two lists hold detached 0-d tensors, so that logging them does not wait for the device
    (``.item()`` gives the repository's floats); labels are on the device of the features, and no n x n membership
    matrix per class is built; a class has mass t_j, not t_j + 1e-8; a stack (\*batch, n, d) gives a loss per item.

    Args:
        gam1: multiplies alpha = d / (n eps) inside R of the loss (not in R_c, nor in the second list); number > 0.
        gam2: multiplies R in the loss.
        eps: epsilon **squared**, the name is that of the repository; number > 0.

    Raises:
        TypeError, ValueError: a parameter is not a finite number, or gam1 or eps is not > 0.

    Source:
        Yu et al. 2020, Learning Diverse and Discriminative Representations via the Principle of Maximal Coding Rate
        Reduction; class ``MaximalCodingRateReduction`` in ``loss.py`` of ryanchankh/mcr2.

    >>> import torch
    >>> from subspan.nn import MaximalCodingRateReduction
    >>> features = torch.eye(4)[[0, 0, 1, 1]]  # two orthogonal classes of one direction each
    >>> loss, (rate, compressed), _ = MaximalCodingRateReduction(eps=0.5)(features, torch.tensor([0, 0, 1, 1]))
    >>> print(f"{loss.item():.4f} = {compressed.item():.4f} - {rate.item():.4f}")
    -0.5108 = 1.0986 - 1.6094
    """

    def __init__(self, gam1: float = 1.0, gam2: float = 1.0, eps: float = 0.01) -> None:
        super().__init__()
        op = "MaximalCodingRateReduction"
        self.gam1 = _check.positive(op, "gam1", gam1)
        self.gam2 = _check.number(op, "gam2", gam2)
        self.eps = _check.positive(op, "eps", eps)

    def forward(
        self, X: Tensor, Y: Tensor, num_classes: int | None = None
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        r"""The loss, and the rates to log.

        Args:
            X: (n, d) or (\*batch, n, d), samples as rows, usually of unit norm.
            Y: (n,) or (\*batch, n) integers 0 ... num_classes - 1. One-hot and probability matrices are not accepted.
            num_classes: k; None takes the largest label plus one, which reads the labels: on the CPU only.

        Returns:
            loss (\*batch), [R(gam1), R_c] and [R(1), R_c], the lists detached.

        Raises:
            TypeError, ValueError: wrong arrays or shapes, a label out of range.
        """
        self._check_labels(X, Y)
        rate: Tensor = coding_rate(X, self.eps / self.gam1)  # alpha is inversely proportional to eps
        rates, mass = class_coding_rates(X, Y, self.eps, num_classes=num_classes)
        compressed: Tensor = (rates * mass).sum(-1) / max(X.shape[-2], 1)
        plain = rate.detach() if self.gam1 == 1 else coding_rate(X.detach(), self.eps)
        logged = compressed.detach()
        return compressed - self.gam2 * rate, [rate.detach(), logged], [plain, logged]

    @staticmethod
    def _check_labels(X: Tensor, Y: Tensor) -> None:
        op = "MaximalCodingRateReduction"
        _check.matrix(op, "X", X)
        _check.same_kind(op, "Y", Y, "X", X)
        expected = "integer class numbers, one per row of X (not one-hot, not a membership matrix)"
        if Y.dtype not in _check.INTEGER_DTYPES:
            raise TypeError(f"{op}: Y: expected {expected}, got {Y.dtype}")
        if Y.shape[-1:] != X.shape[-2:-1]:
            raise ValueError(f"{op}: Y: expected {expected} {tuple(X.shape)}, got shape {tuple(Y.shape)}")

    def extra_repr(self) -> str:
        return f"gam1={self.gam1:g}, gam2={self.gam2:g}, eps={self.eps:g}"
