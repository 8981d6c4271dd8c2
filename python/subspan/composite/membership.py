"""Coding rates of classes with soft membership, in differentiable torch operations.

Z is (*batch, n, d) with samples as rows; membership is (*batch, k, n), row j holding the part of every sample that
belongs to class j. Everything goes through some classes at a time, so that k copies of Z never exist at once, and no
root of a membership is differentiated: a membership of zero is an ordinary point.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .classes import CHUNK_ELEMENTS
from .coding_rate import (
    on_samples,
    plain_alpha,
    rows_times_inverse,
    unweighted_gram,
    weighted_log_det,
    weighted_resolvent,
)
from .factor import (
    factor_dtype,
    factor_identity_plus,
    log_det_identity_plus,
    log_pivots,
    one_where,
    result_dtype,
    solve_right,
    without_autocast,
)
from .grams import membership_grams
from .khatri_rao import soft_class_log_dets

#: From as many classes on, all Gram matrices are formed as one product, see khatri_rao.py.
PRODUCT_CLASSES = 24


def _chunks(rows: Tensor, per_class: Tensor) -> list[Tensor]:
    """Rows of `per_class` (*batch, k, n), as many at a time as temporaries of (n, d) or (n, n) each allow."""
    *batch, samples, features = rows.shape
    one = math.prod(batch) * samples * max(samples if samples < features else features, features)
    step = max(1, CHUNK_ELEMENTS // max(one, 1))
    count = max(per_class.shape[-2], 1)
    return [per_class[..., first : first + step, :] for first in range(0, count, step)]


class SoftClasses:
    """Masses, strengths u_ji = alpha_j pi_ji, and what the rates and their gradients are made of."""

    def __init__(self, Z: Tensor, membership: Tensor, eps2: float) -> None:
        self.given = Z, membership, eps2
        self.rows = Z.to(factor_dtype(Z))
        membership = membership.to(self.rows.dtype)
        self.membership = membership * one_where(membership.detach() >= 0, membership)
        self.mass = self.membership.sum(-1)
        some = self.mass != 0
        self.per_mass = torch.where(some, torch.where(some, self.mass, 1).reciprocal(), 0)
        self.alpha = Z.shape[-1] / eps2 * self.per_mass
        self.strength = self.alpha[..., None] * self.membership
        self.samples_side = on_samples(Z, "auto")

    def log_dets(self) -> Tensor:
        if not self.samples_side and self.mass.shape[-1] >= PRODUCT_CLASSES:
            log_dets: Tensor = soft_class_log_dets(*self.given)[0]
            return log_dets.to(self.rows.dtype)
        if not self.samples_side:
            return log_det_identity_plus(membership_grams(self.rows, self.strength))
        gram = unweighted_gram(self.rows, True)[..., None, :, :]
        parts = [weighted_log_det(gram.expand(*u.shape, u.shape[-1]), u) for u in _chunks(self.rows, self.strength)]
        return torch.cat(parts, -1)

    def gradients(self, factor: Tensor, slope: Tensor | float) -> tuple[Tensor, Tensor]:
        """Of sum_j a_j L_j with a_j = factor_j and da_j/dt_j = slope."""
        d_rows, energies, log_dets, first = torch.zeros_like(self.rows), [], [], 0
        for u in _chunks(self.rows, self.strength):
            a = factor.narrow(-1, first, u.shape[-2])
            products, energy, log_det = self._by_samples(u) if self.samples_side else self._by_features(u)
            d_rows = d_rows + (2 * a[..., None, None] * products).sum(-3)
            energies.append(energy)
            log_dets.append(log_det)
            first += u.shape[-2]
        energy, log_det = torch.cat(energies, -2), torch.cat(log_dets, -1)
        through_mass = (self.strength * energy).sum(-1) * self.per_mass
        d_membership = factor[..., None] * (self.alpha[..., None] * energy - through_mass[..., None])
        # A class without mass has no gradient, whatever the slope.
        slopes = torch.where(self.mass != 0, slope * log_det, 0)
        return d_rows, d_membership + slopes[..., None]

    def _by_features(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """diag(u_j) Z M_j, the energies z_i M_j z_i, and L_j."""
        rows = self.rows[..., None, :, :]
        gram = (u[..., None] * rows).mT @ rows
        factor, valid = factor_identity_plus(gram)
        inner = solve_right(rows.expand(*u.shape, rows.shape[-1]), factor) * valid[..., None, None]
        return u[..., None] * inner, (inner * rows).sum(-1), log_pivots(gram, factor).sum(-1) * valid

    def _by_samples(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gram = unweighted_gram(self.rows, True)[..., None, :, :].expand(*u.shape, u.shape[-1])
        resolvent = weighted_resolvent(gram, u)
        energy = gram.diagonal(dim1=-2, dim2=-1) - ((gram @ resolvent) * gram).sum(-1)
        return resolvent @ self.rows[..., None, :, :], energy, weighted_log_det(gram, u)


def class_mass(membership: Tensor) -> tuple[Tensor]:
    return (membership.to(factor_dtype(membership)).sum(-1).to(result_dtype(membership)),)


@without_autocast
def soft_class_coding_rates(Z: Tensor, membership: Tensor, eps2: float) -> tuple[Tensor]:
    """1/2 logdet(I + d / (t_j eps2) Z^T diag(pi_j) Z) of every class."""
    return ((0.5 * SoftClasses(Z, membership, eps2).log_dets()).to(result_dtype(Z)),)


@without_autocast
def soft_class_gradient(Z: Tensor, membership: Tensor, upstream: Tensor, eps2: float) -> tuple[Tensor, Tensor]:
    """Of sum_j upstream_j rate_j."""
    classes = SoftClasses(Z, membership, eps2)
    d_Z, d_membership = classes.gradients(0.5 * upstream.to(classes.rows.dtype), 0.0)
    return d_Z.to(result_dtype(Z)), d_membership.to(result_dtype(Z))


@without_autocast
def soft_rate_reduction(Z: Tensor, membership: Tensor, eps2: float, gamma: float) -> tuple[Tensor]:
    """R - gamma * sum_j t_j / (2n) L_j."""
    classes = SoftClasses(Z, membership, eps2)
    gram = unweighted_gram(classes.rows, classes.samples_side) * plain_alpha(Z, None, eps2)
    compression = (classes.mass * classes.log_dets()).sum(-1) / (2 * max(Z.shape[-2], 1))
    return ((0.5 * log_det_identity_plus(gram) - gamma * compression).to(result_dtype(Z)),)


@without_autocast
def soft_rate_reduction_gradient(Z: Tensor, membership: Tensor, eps2: float, gamma: float) -> tuple[Tensor, Tensor]:
    classes = SoftClasses(Z, membership, eps2)
    alpha = plain_alpha(Z, None, eps2)
    expansion = alpha * rows_times_inverse(classes.rows, alpha, classes.samples_side)
    share = -gamma / (2 * max(Z.shape[-2], 1))
    d_Z, d_membership = classes.gradients(share * classes.mass, share)
    return (expansion + d_Z).to(result_dtype(Z)), d_membership.to(result_dtype(Z))
