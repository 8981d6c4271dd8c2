"""Coding rates as people compute them today. Rows are samples, eps2 is epsilon squared, logarithms are natural.

Three parts: the float64 reference, the best plain PyTorch (public ops and autograd), and the code people copy.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# --- reference: the formula, one matrix at a time, in float64 ---------------------------------------------------


def reference_logdet(matrices: Tensor) -> Tensor:
    return torch.stack([torch.linalg.slogdet(matrix).logabsdet for matrix in matrices])


def reference_rate(features: Tensor, eps2: float) -> Tensor:
    """1/2 logdet(I + d/(n eps2) Z^T Z) for each (n, d) matrix of the batch."""
    *batch, samples, dim = features.shape
    alpha = dim / (samples * eps2)
    rates = [_reference_half_logdet(matrix, alpha) for matrix in features.reshape(-1, samples, dim)]
    return torch.stack(rates).reshape(batch)


def reference_rate_reduction(features: Tensor, labels: Tensor, eps2: float, num_classes: int) -> Tensor:
    """R(Z) - sum_j (n_j / n) R(Z_j)."""
    samples, dim = features.shape
    reduction = _reference_half_logdet(features, dim / (samples * eps2))
    for label in range(num_classes):
        members = features[labels == label]
        if len(members):
            rate = _reference_half_logdet(members, dim / (len(members) * eps2))
            reduction = reduction - len(members) / samples * rate
    return reduction


def _reference_half_logdet(matrix: Tensor, alpha: float) -> Tensor:
    samples, dim = matrix.shape
    gram = matrix @ matrix.T if samples < dim else matrix.T @ matrix
    return torch.linalg.slogdet(torch.eye(len(gram), dtype=gram.dtype) + alpha * gram).logabsdet / 2


# --- best plain PyTorch: smaller side, batched, autograd --------------------------------------------------------


def logdet_by_cholesky(matrices: Tensor) -> Tensor:
    factor, _ = torch.linalg.cholesky_ex(matrices)
    return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def logdet_by_lu(matrices: Tensor) -> Tensor:
    """torch.logdet, one matrix at a time where its batched LU cannot be trusted.

    On the CPU with two or more threads, batched LU of more than about 150 rows calls MKL from several threads at once
    and returns wrong pivots and values (pytorch issues 142815 and 141358).
    """
    if matrices.dim() > 2 and matrices.shape[-1] > 128 and matrices.device.type == "cpu":
        return torch.stack([torch.logdet(matrix) for matrix in matrices])
    return torch.logdet(matrices)


LOGDETS = {"Cholesky": logdet_by_cholesky, "LU": logdet_by_lu}


def identity_plus_gram(features: Tensor, alpha: Tensor | float) -> Tensor:
    """I + alpha Z Z^T or I + alpha Z^T Z, whichever is smaller; the determinants are equal."""
    samples, dim = features.shape[-2:]
    gram = features @ features.mT if samples < dim else features.mT @ features
    gram = gram.mul_(alpha)
    gram.diagonal(dim1=-2, dim2=-1).add_(1)
    return gram


def rate(features: Tensor, eps2: float, logdet=logdet_by_cholesky) -> Tensor:
    samples, dim = features.shape[-2:]
    return logdet(identity_plus_gram(features, dim / (samples * eps2))) / 2


def rate_reduction(features: Tensor, labels: Tensor, eps2: float, num_classes: int, logdet=logdet_by_cholesky):
    """Classes gathered and padded with zero rows, which change no determinant, then one batch for all of them."""
    samples, dim = features.shape
    classes, mass = gather_classes(features, labels, num_classes)
    alpha = dim / (mass.clamp_min(1) * eps2)
    class_rates = logdet(identity_plus_gram(classes, alpha[:, None, None])) / 2
    return rate(features, eps2, logdet) - (mass / samples * class_rates).sum()


def gather_classes(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """(k, largest class, d) rows of each class followed by zero rows, and the size of each class."""
    rows, mass = padded_class_rows(labels, num_classes)
    padded = torch.cat([features, features.new_zeros(1, features.shape[1])])
    return padded.index_select(0, rows.flatten()).view(*rows.shape, -1), mass


@torch.compiler.disable  # sizes that depend on the labels: kept out of the compiled graph, which is then static
def padded_class_rows(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The sample numbers of each class, padded with n: (k, largest class)."""
    samples = len(labels)
    counts = torch.bincount(labels, minlength=num_classes)
    order = torch.argsort(labels, stable=True)
    sorted_labels = labels[order]
    starts = counts.cumsum(0) - counts
    position = torch.arange(samples, device=labels.device) - starts[sorted_labels]
    rows = torch.full((num_classes, int(counts.max())), samples, device=labels.device)
    rows[sorted_labels, position] = order
    return rows, counts.to(torch.float32)


# --- closed-form gradient written by hand in torch --------------------------------------------------------------


class HalfLogdetGram(torch.autograd.Function):
    """1/2 logdet(I + alpha Z^T Z), and its gradient alpha Z K^{-1} from the Cholesky factor of K = I + alpha Z^T Z."""

    @staticmethod
    def forward(ctx, features: Tensor, alpha: Tensor | float) -> Tensor:
        factor, _ = torch.linalg.cholesky_ex(identity_plus_gram(features, alpha))
        ctx.save_for_backward(features, factor)
        ctx.alpha = alpha
        return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        features, factor = ctx.saved_tensors
        inverse = torch.cholesky_inverse(factor)
        samples, dim = features.shape[-2:]
        gradient = inverse @ features if samples < dim else features @ inverse
        return gradient.mul_(ctx.alpha * grad[..., None, None]), None


def rate_closed_form(features: Tensor, eps2: float) -> Tensor:
    samples, dim = features.shape[-2:]
    return HalfLogdetGram.apply(features, dim / (samples * eps2))


def rate_reduction_closed_form(features: Tensor, labels: Tensor, eps2: float, num_classes: int) -> Tensor:
    samples, dim = features.shape
    classes, mass = gather_classes(features, labels, num_classes)
    alpha = dim / (mass.clamp_min(1) * eps2)
    class_rates = HalfLogdetGram.apply(classes, alpha[:, None, None])
    return rate_closed_form(features, eps2) - (mass / samples * class_rates).sum()


# --- the code people copy ---------------------------------------------------------------------------------------
# Batched determinants go through logdet_by_lu above: as copied they would be wrong on two threads.


def mcr2_rate_reduction(features: Tensor, labels: Tensor, eps2: float, num_classes: int) -> Tensor:
    """MCR2's loss: a dense diagonal n x n membership per class, a loop over classes, determinants on the d x d side,
    and every term evaluated a second time ("theoretical") for the log file.
    """
    columns = features.T
    dim, samples = columns.shape
    membership = np.zeros((num_classes, samples, samples))
    for i, label in enumerate(labels.tolist()):
        membership[label, i, i] = 1
    membership = torch.tensor(membership, dtype=torch.float32, device=features.device)
    identity = torch.eye(dim, device=features.device)

    def expansion() -> Tensor:
        return torch.logdet(identity + dim / (samples * eps2) * columns.matmul(columns.T)) / 2

    def compression() -> Tensor:
        total = 0.0
        for pi in membership:
            mass = torch.trace(pi) + 1e-8
            logdet = torch.logdet(identity + dim / (mass * eps2) * columns.matmul(pi).matmul(columns.T))
            total = total + mass / samples * logdet / 2
        return total

    value = expansion() - compression()
    _logged = expansion().item(), compression().item()
    return value


def empssl_rate_reduction(features: Tensor, labels: Tensor, eps2: float, num_classes: int) -> Tensor:
    """EMP-SSL's rate reduction: R minus the compression below over all classes at once."""
    columns = features.T
    dim, samples = columns.shape
    identity = torch.eye(dim, device=features.device)
    expansion = torch.logdet(identity + dim / (samples * eps2) * columns.matmul(columns.T)) / 2
    return expansion - empssl_compression(features, labels, eps2, range(num_classes))


def empssl_compression(features: Tensor, labels: Tensor, eps2: float, classes: range) -> Tensor:
    """EMP-SSL's R_c of some of the classes: W * Pi materialised (k, d, n), determinants on the d x d side."""
    columns = features.T
    dim, samples = columns.shape
    members = torch.arange(classes.start, classes.stop, device=labels.device)
    membership = (labels == members[:, None]).to(features.dtype).view(-1, 1, samples)
    mass = membership.sum(2) + 1e-8
    scale = (dim / (mass * eps2)).view(-1, 1, 1)
    identity = torch.eye(dim, device=features.device).expand(len(classes), dim, dim)
    columns = columns.view(1, dim, samples)
    logdet = logdet_by_lu(identity + scale * columns.mul(membership).matmul(columns.transpose(1, 2)))
    return (mass.squeeze(1) * logdet / (2 * samples)).sum()


def empssl_total_rate(features: Tensor, eps2: float) -> Tensor:
    """EMP-SSL's total coding rate: a loop over the views, determinants on the d x d side."""
    rates = []
    for view in features:
        columns = view.T
        dim, samples = columns.shape
        identity = torch.eye(dim, device=view.device)
        rates.append(torch.logdet(identity + dim / (samples * eps2) * columns.matmul(columns.T)) / 2)
    return torch.stack(rates)


def simdino_expansion(features: Tensor, eps2: float) -> Tensor:
    """SimDINO's expansion before its constant factor: a loop over the views, d x d covariance, log diag of Cholesky."""
    rates = []
    for view in features:
        samples, dim = view.shape
        covariance = view.T @ view
        identity = torch.eye(dim, device=view.device)
        factor = torch.linalg.cholesky_ex(identity + dim / (samples * eps2) * covariance)[0]
        rates.append(factor.diagonal().log().sum())
    return torch.stack(rates)


def crate_rate(features: Tensor, eps2: float) -> Tensor:
    """CRATE's per-head coding rate of tokens: determinants on the token side, although heads are narrower."""
    tokens, dim = features.shape[-2:]
    identity = torch.eye(tokens, device=features.device)
    gram = features @ features.transpose(-1, -2)
    return logdet_by_lu(identity + dim / (tokens * eps2) * gram) / 2


def redunet_operator(features: Tensor, alpha: float) -> Tensor:
    """ReduNet's `compute_E`: one line with torch.inverse, on features as columns."""
    Z = features.T
    return alpha * torch.inverse(torch.eye(Z.shape[0], dtype=Z.dtype, device=Z.device) + alpha * Z @ Z.T)


def operator_by_cholesky(features: Tensor, alpha: float) -> Tensor:
    factor = torch.linalg.cholesky_ex(identity_plus_gram(features.mT, alpha))[0]
    return alpha * torch.cholesky_inverse(factor)


def reference_operator(features: Tensor, alpha: float) -> Tensor:
    gram = features.mT @ features
    return alpha * torch.linalg.inv(torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device) + alpha * gram)
