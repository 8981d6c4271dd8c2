"""Cholesky factors of I + B, and of symmetric positive definite matrices, in differentiable torch operations.

Everything is float64 for every input type (float32 on devices without float64), so nothing has to be promoted by
looking at values. An item without a factor gets NaN through `valid`, which is 1 for every other item, so that its
gradient is NaN too and the other items are untouched.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.linalg import cholesky_ex, solve_triangular

from .. import _route

F = TypeVar("F", bound=Callable[..., Any])


def without_autocast(function: F) -> F:
    """Autocast would round a Gram matrix to half precision, which makes I + alpha * Gram indefinite."""

    @functools.wraps(function)
    def wrapped(first: Tensor, *rest: Any) -> Any:
        if not torch.amp.is_autocast_available(first.device.type):
            return function(first, *rest)
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *rest)

    return cast(F, wrapped)


def factor_dtype(array: Tensor) -> torch.dtype:
    return torch.float32 if array.device.type == "mps" else torch.float64


def result_dtype(array: Tensor) -> torch.dtype:
    return torch.float64 if array.dtype == torch.float64 else torch.float32


def identity(size: int, like: Tensor) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)


def one_where(good: Tensor, like: Tensor) -> Tensor:
    """1 where an item is good and NaN where not. As a factor it makes the gradient NaN as well."""
    return torch.where(good, 1.0, math.nan).to(like.dtype)


def factor_identity_plus(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factor of I + gram, and 1 for each item that has one, else NaN."""
    factor, info = cholesky_ex(gram + identity(gram.shape[-1], gram))
    pivots = factor.detach().diagonal(dim1=-2, dim2=-1)
    return factor, one_where((info == 0) & pivots.sum(-1).isfinite(), factor)


def log_pivots(gram: Tensor, factor: Tensor) -> Tensor:
    """Logarithm of each pivot of I + gram, that is 2 log L_ii; they sum to the log determinant.

    Rounding 1 + B_ii loses the digits of a tiny B. The factor's entries left of the diagonal do not suffer and give the
    Schur complement without the identity, delta_i = B_ii - sum_{l<i} L_il^2, hence log1p(delta_i) to full accuracy. Its
    derivative would cancel badly for a large B while that of log L_ii is backward stable, so the difference of the
    two, zero in exact arithmetic, enters as a constant.
    """
    logs = 2 * factor.diagonal(dim1=-2, dim2=-1).log()
    without_identity = gram.detach().diagonal(dim1=-2, dim2=-1) - factor.detach().tril(-1).square().sum(-1)
    return logs + (without_identity.clamp(min=0).log1p() - logs.detach())


def log_det_identity_plus(gram: Tensor) -> Tensor:
    if _route.cuda_kernel_serves("spd_logdet", gram, True):
        log_det: Tensor = _route.call("spd_logdet", 1, gram, True)[0]
        return log_det
    factor, valid = factor_identity_plus(gram)
    return log_pivots(gram, factor).sum(-1) * valid


def solve(factor: Tensor, rhs: Tensor) -> Tensor:
    """(L L^T)^{-1} rhs."""
    half = solve_triangular(factor, rhs, upper=False)
    solution: Tensor = solve_triangular(factor.mT, half, upper=True)
    return solution


def solve_right(rows: Tensor, factor: Tensor) -> Tensor:
    """rows (L L^T)^{-1}."""
    half = solve_triangular(factor.mT, rows, upper=True, left=False)
    solution: Tensor = solve_triangular(factor, half, upper=False, left=False)
    return solution
