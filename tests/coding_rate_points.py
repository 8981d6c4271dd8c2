"""Features that strain a coding rate, exact gradients to compare with, and the bounds of rounding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

import subspan
from op_row import SAFETY, Bounds
from sample_arrays import normal

#: float64 itself rounds 1 + a tiny value.
ORACLE_ERROR = 100 * np.finfo(np.float64).eps


def value_bound(growth: Bounds, dtype: torch.dtype, output: int = 0) -> Any:
    return SAFETY * growth.size * torch.finfo(dtype).eps * growth.outputs[output] + ORACLE_ERROR


def gradient_bound(growth: Bounds, dtype: torch.dtype, argument: str = "Z") -> Any:
    return SAFETY * growth.size * torch.finfo(dtype).eps * growth.gradients[argument] + ORACLE_ERROR


def exact_gradient(Z: np.ndarray, alpha: float) -> np.ndarray:
    """dR/dZ = alpha Z M in float64, solved on the smaller side, where nothing cancels."""
    samples, features = Z.shape
    if samples < features:
        return alpha * np.linalg.solve(np.eye(samples) + alpha * Z @ Z.T, Z)
    return alpha * np.linalg.solve(np.eye(features) + alpha * Z.T @ Z, Z.T).T


def rate_and_gradient(Z: Tensor, *args: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
    Z = Z.detach().clone().requires_grad_()
    rate = subspan.coding_rate(Z, *args, **keywords)
    (gradient,) = torch.autograd.grad(rate.sum(), Z)
    return rate.detach(), gradient


def collapsed(samples: int, features: int) -> Tensor:
    """One unit vector repeated; its entries are powers of two, so its norm is exactly 1 in every type."""
    signs = normal(features, features).sign()
    return (signs / math.sqrt(features)).expand(samples, features).clone()


def nearly_collapsed(samples: int, features: int, noise: float) -> Tensor:
    direction = normal(13, features)
    return normalize(direction + noise * normal(14, samples, features), dim=-1).float()
