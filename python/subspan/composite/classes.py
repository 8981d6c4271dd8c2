"""Hard labels in differentiable torch operations with static shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .factor import factor_identity_plus, log_det_identity_plus, log_pivots, one_where, solve, solve_right

#: Elements of the largest temporary of the features' side, 128 MiB in float64.
CHUNK_ELEMENTS = 1 << 24


class Classes:
    """The samples of each class, without a shape that depends on the labels.

    Samples' side: keep alpha_j z_i z_l^T where i and l are both of class j and zero elsewhere. Up to a permutation that
    is block diagonal, its Cholesky factor has no fill between the classes, so one n x n factorisation gives the pivots
    of every class, in the order of the samples: n^2 d + n^3 / 3 multiplications whatever the number of classes.

    Features' side: for some classes at a time, Z with the rows of other classes zeroed: k (n d^2 + d^3 / 3).
    """

    def __init__(self, rows: Tensor, labels: Tensor, eps2: float, num_classes: int) -> None:
        samples, features = rows.shape[-2:]
        numbers = torch.arange(num_classes, device=labels.device, dtype=torch.int64)
        self.rows, self.labels = rows, labels
        # Sums over classes are products with this matrix: the same order every time, and no index to go out of bounds.
        self.membership = (labels[..., None] == numbers).to(rows.dtype)
        self.mass = self.membership.sum(-2)
        self.valid = one_where(self.mass.sum(-1) == samples, rows)  # every label is in range
        self.alpha = features / (self.mass.clamp(min=1) * eps2)
        joint = samples * samples * (samples / 3 + features)
        self.on_samples = joint <= num_classes * features * features * (features / 3 + samples)

    def own(self, per_class: Tensor) -> Tensor:
        """The value of each sample's class."""
        return (self.membership @ per_class[..., None]).squeeze(-1)

    def rates(self) -> Tensor:
        if self.on_samples:
            gram = self.joint_gram()
            factor, valid = factor_identity_plus(gram)
            logs = log_pivots(gram, factor) * (valid * self.valid)[..., None]
            return 0.5 * (logs[..., None, :] @ self.membership).squeeze(-2)
        rates = []
        for members, alpha in self.chunks():
            rates.append(0.5 * log_det_identity_plus(members.mT @ members * alpha[..., None, None]))
        return torch.cat(rates, -1) * self.valid[..., None]

    def gradient(self) -> Tensor:
        if self.on_samples:
            factor, valid = factor_identity_plus(self.joint_gram())
            scale = self.own(self.alpha) * (valid * self.valid)[..., None]
            return solve(factor, self.rows) * scale[..., None]
        total = torch.zeros_like(self.rows)
        for members, alpha in self.chunks():
            factor, valid = factor_identity_plus(members.mT @ members * alpha[..., None, None])
            total = total + (solve_right(members, factor) * (alpha * valid)[..., None, None]).sum(-3)
        return total * self.valid[..., None, None]

    def joint_gram(self) -> Tensor:
        same = self.labels[..., :, None] == self.labels[..., None, :]
        return torch.where(same, self.rows @ self.rows.mT, 0) * self.own(self.alpha)[..., None]

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """c classes at a time: Z with the rows of other classes zeroed, (*batch, c, n, d), and alpha, (*batch, c)."""
        *batch, samples, features = self.rows.shape
        one = math.prod(batch) * features * (samples + features)
        step = max(1, CHUNK_ELEMENTS // max(one, 1))
        for first in range(0, self.alpha.shape[-1], step):
            chosen = self.membership[..., first : first + step].mT
            yield self.rows[..., None, :, :] * chosen[..., None], self.alpha[..., first : first + step]
