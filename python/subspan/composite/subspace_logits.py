"""Lengths of projections on class subspaces in differentiable torch operations."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _route
from .factor import factor_dtype, result_dtype, without_autocast


@without_autocast
def subspace_logits(x: Tensor, W: Tensor, scale: float, normalize: bool) -> tuple[Tensor]:
    """scale ||W_c x|| for rows x (*batch, m, n) and W (*batch, classes, k, n), with normalize over ||x||."""
    compute = result_dtype(x)
    rows = (x * _inverse_lengths(x)).to(compute) if normalize else x.to(compute)
    z = _together(W.to(compute)) @ rows.mT
    lengths, _ = _lengths_and_directions(_by_class(z, W))
    return ((scale * lengths).mT,)


@without_autocast
def projections(x: Tensor, W: Tensor, scale: float, normalize: bool) -> tuple[Tensor]:
    """W_c x of all classes, (*batch, classes * k, m)."""
    compute = result_dtype(x)
    return (_product(_together(W.to(compute)), x.to(compute)),)


@without_autocast
def subspace_logits_gradient(
    x: Tensor, W: Tensor, z: Tensor, upstream: Tensor, scale: float, normalize: bool
) -> tuple[Tensor, Tensor]:
    """d_x = y = sum_c W_c^T u_c and d_W_c = u_c x^T with u_c = scale g_c z_c / ||z_c||, which is 0 where z_c = 0; with
    normalize u_c is divided by ||x|| and d_x = y - x <x, y> / ||x||^2."""
    _, directions = _lengths_and_directions(_by_class(z, W))
    compute = result_dtype(x)
    weights = scale * upstream
    inverse = _inverse_lengths(x) if normalize else None
    if inverse is not None:
        weights = (weights * inverse).to(compute)
    coefficients = _together(weights.mT[..., None, :] * directions)
    d_x = _product(coefficients.mT, _together(W.to(compute)).mT)
    d_W = _by_class(_product(coefficients, x.to(compute).mT), W)
    if inverse is not None:
        unit = x * inverse
        d_x = (d_x - unit * (unit * d_x).sum(-1, keepdim=True)).to(compute)
    return d_x, d_W


def _inverse_lengths(x: Tensor) -> Tensor:
    """1 / ||x|| of every row, and 0, with derivatives of 0, for a row of zeros."""
    squares = x.to(factor_dtype(x)).square().sum(-1, keepdim=True)
    none = squares == 0
    return torch.where(none, 0, torch.where(none, 1, squares).rsqrt())


def _product(A: Tensor, B: Tensor) -> Tensor:
    """A B^T by an op whose derivatives are calls of it: autocast would lower torch's product in the backward pass."""
    product: Tensor = _route.call_in_backward("affine_product", A, B, None, 1.0, 0.0, False)
    return product


# Written with reshape, for which torch has a rule in batched gradients.


def _together(array: Tensor) -> Tensor:
    """(*batch, classes, k, m) to (*batch, classes * k, m)."""
    *batch, classes, k, m = array.shape
    return array.reshape((*batch, classes * k, m))


def _by_class(array: Tensor, W: Tensor) -> Tensor:
    """And back."""
    return array.reshape((*array.shape[:-2], *W.shape[-3:-1], array.shape[-1]))


def _lengths_and_directions(z: Tensor) -> tuple[Tensor, Tensor]:
    """||z|| over the last but one dimension, and z / ||z||. Both are 0 where z is, and constant there: torch's norm has
    second derivatives of NaN. The largest entry is divided out, which no derivative depends on, so that squares neither
    overflow nor vanish."""
    if z.shape[-2] == 0:
        return z.sum(-2), z
    largest = z.detach().abs().amax(-2, keepdim=True)
    largest = torch.where((largest > 0) & largest.isfinite(), largest, 1)
    ratios = z / largest
    squares = ratios.square().sum(-2, keepdim=True)
    none = squares == 0
    roots = torch.where(none, 1, squares).sqrt()
    lengths = torch.where(none, 0, roots) * largest
    return lengths.squeeze(-2), torch.where(none, 0, ratios) / roots
