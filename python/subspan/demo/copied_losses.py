"""The losses of the MCR2 and CPP repositories in the form people copy, written afresh from their description."""

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


class CopiedSinkhorn(torch.nn.Module):
    r"""Sinkhorn's scaling of square scores the way the CPP repository computes it, times the number of columns.

        u = t (log 1/n - logsumexp_j((s_ij + u_i + v_j) / t)) + u,   v likewise over i, in turn

    Kept because it is what runs today: three temporaries of n x n in each half-step, which all stay in the graph of
    the rows' steps; the columns' potential leaves the graph; the change is read by the CPU after each half-step.

    Args:
        temperature: t.
        iterations: number of half-steps, odd: the last is one of the rows.
    """

    def __init__(self, temperature: float, iterations: int) -> None:
        super().__init__()
        self.temperature = temperature
        self.iterations = iterations

    def forward(self, scores: Tensor) -> Tensor:
        samples = len(scores)
        log_mass = torch.full((samples,), 1.0 / samples).log()
        of_rows, of_columns = torch.zeros(samples), torch.zeros(samples)
        for half_step in range(self.iterations):
            scaled = (scores + of_rows[:, None] + of_columns) / self.temperature
            if half_step % 2 == 0:
                before = of_rows
                of_rows = of_rows + self.temperature * (log_mass - torch.logsumexp(scaled, dim=1))
                change = (of_rows - before).abs().sum()
            else:
                of_columns = of_columns + self.temperature * (log_mass - torch.logsumexp(scaled.T, dim=1))
                of_columns = of_columns.detach().requires_grad_()
            if change.item() < 1e-12:
                break
        return torch.exp((scores + of_rows[:, None] + of_columns) / self.temperature) * samples


class CopiedMembershipLoss(torch.nn.Module):
    r"""R_c - R of soft memberships, the way the CPP repository computes it.

        R   = 1/2 logdet(I + d/(n eps) Z^T Z)
        R_c = sum_j t_j/(2n) logdet(I + d/(t_j eps) Z^T diag(Y_j) Z),   t_j = sum_i Y_ij + 1e-8

    Kept because it is what runs today: a copy of the features for each of the k columns of the membership, k products
    and k general determinants of d x d. Left out: reading both terms back for the log.

    Args:
        eps: the distortion epsilon^2.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, features: Tensor, membership: Tensor) -> Tensor:
        samples, dim = features.shape
        columns = features.T
        identity = torch.eye(dim)
        rate = torch.logdet(identity + dim / (samples * self.eps) * columns.matmul(columns.T)) / 2
        mass = membership.sum(dim=0) + 1e-8
        weighted = columns * membership.T[:, None, :]
        scale = (dim / (mass * self.eps))[:, None, None]
        logdets = torch.logdet(identity + scale * weighted.matmul(features))
        return (mass * logdets / (2 * samples)).sum() - rate
