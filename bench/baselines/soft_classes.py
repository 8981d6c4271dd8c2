"""Rate reduction with soft membership (k, n) as people compute it today. Rows are samples, eps2 is epsilon squared."""

from __future__ import annotations

import torch
from torch import Tensor

from .coding_rate import identity_plus_gram, logdet_by_cholesky

# --- reference --------------------------------------------------------------------------------------------------


def reference_rate_reduction(features: Tensor, membership: Tensor, eps2: float) -> Tensor:
    """R(Z) - sum_j (t_j / n) R_j, class by class."""
    samples, dim = features.shape
    identity = torch.eye(dim, dtype=features.dtype)
    gram = features.T @ features
    reduction = torch.linalg.slogdet(identity + dim / (samples * eps2) * gram).logabsdet / 2
    for weights in membership:
        mass = weights.sum()
        gram = features.T @ (weights[:, None] * features)
        rate = torch.linalg.slogdet(identity + dim / (mass * eps2) * gram).logabsdet / 2
        reduction = reduction - mass / samples * rate
    return reduction


# --- best plain PyTorch -----------------------------------------------------------------------------------------


def by_class(features: Tensor, membership: Tensor, eps2: float, logdet=logdet_by_cholesky) -> Tensor:
    """One batched product for the Gram matrices; k copies of the features."""
    return _reduction(features, membership, eps2, (membership[..., None] * features).mT @ features, logdet)


def by_products(features: Tensor, membership: Tensor, eps2: float, logdet=logdet_by_cholesky) -> Tensor:
    """One product of the membership and the n x d^2 products of features for all Gram matrices."""
    samples, dim = features.shape
    products = (features[:, :, None] * features[:, None, :]).reshape(samples, dim * dim)
    return _reduction(features, membership, eps2, (membership @ products).reshape(-1, dim, dim), logdet)


def _reduction(features: Tensor, membership: Tensor, eps2: float, grams: Tensor, logdet) -> Tensor:
    samples, dim = features.shape
    mass = membership.sum(-1)
    matrices = grams * (dim / (mass * eps2))[:, None, None]
    matrices.diagonal(dim1=-2, dim2=-1).add_(1)
    rate = logdet(identity_plus_gram(features, dim / (samples * eps2))) / 2
    return rate - (mass / (2 * samples) * logdet(matrices)).sum()


# --- what people copy -------------------------------------------------------------------------------------------


def copied_rate_reduction(features: Tensor, membership: Tensor, eps2: float) -> Tensor:
    """As in NMCE, EMP-SSL and CPP: features transposed, the membership repeated over them, LU, masses plus 1e-8."""
    w, pi = features.T, membership[:, None, :]
    dim, samples = w.shape
    identity = torch.eye(dim, device=w.device)
    expansion = torch.logdet(identity + dim / (samples * eps2) * w @ w.T) / 2
    mass = pi.sum(2) + 1e-8
    scale = (dim / (mass * eps2)).view(-1, 1, 1)
    log_det = torch.logdet(identity + scale * w.mul(pi).matmul(w.T))
    compression = (mass.squeeze() * log_det / (2 * samples)).sum()
    return expansion - compression
