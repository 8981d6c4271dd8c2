"""The maximal-coding-rate-reduction loss in the form people copy, written afresh from its description."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class CopiedRateReduction(torch.nn.Module):
    r"""R_c - R of unit-norm features, the way the reference PyTorch code of the MCR2 paper computes it.

        R   = 1/2 logdet(I + d/(n eps) Z^T Z)
        R_c = sum_j tr(Pi_j)/(2n) logdet(I + d/(tr(Pi_j) eps) Z^T Pi_j Z)

    What costs time, and is kept because it is what runs today: the membership of each class is a dense diagonal
    n x n matrix Pi_j, filled by a Python loop over the samples; a Python loop over the classes multiplies with it;
    every determinant is taken on the d x d side. What is left out, to be fair: the original evaluates every term a
    second time for its log file.

    Args:
        eps: the distortion epsilon^2 (the paper's epsilon squared, named as in the original).
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
        samples, dim = features.shape
        columns = features.T
        identity = torch.eye(dim)
        membership = dense_membership(labels, num_classes)

        alpha = dim / (samples * self.eps)
        rate = torch.logdet(identity + alpha * columns.matmul(columns.T)) / 2
        class_rates = torch.zeros(())
        for pi in membership:
            mass = torch.trace(pi) + 1e-8
            class_alpha = dim / (mass * self.eps)
            logdet = torch.logdet(identity + class_alpha * columns.matmul(pi).matmul(columns.T))
            class_rates = class_rates + mass / (2 * samples) * logdet
        return class_rates - rate


def dense_membership(labels: Tensor, num_classes: int) -> Tensor:
    """One n x n diagonal 0/1 matrix per class: (k, n, n)."""
    samples = len(labels)
    membership = np.zeros((num_classes, samples, samples))
    for i, label in enumerate(labels.tolist()):
        membership[label, i, i] = 1.0
    return torch.tensor(membership, dtype=torch.float32)
