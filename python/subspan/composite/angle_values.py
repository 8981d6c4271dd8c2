"""Values of the functions of principal angles, and their derivatives, in torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._angle_functions import NAMES


class Parameters:
    """What an op is called with beside its arrays."""

    def __init__(self, function: int, squared: bool, padded: bool, orthonormal: bool, rank_tol: float) -> None:
        self.function, self.name, self.squared, self.padded = function, NAMES[function], squared, padded
        self.orthonormal, self.rank_tol, self.count = orthonormal, rank_tol, 0

    def unpaired(self, A: Tensor, B: Tensor) -> int:
        return abs(A.shape[-1] - B.shape[-1]) if self.padded else 0


def _log_square_cosine(c: Tensor, s: Tensor) -> Tensor:
    near = c > s
    return torch.where(near, torch.log1p(-(torch.where(near, s, 0) ** 2)), 2 * torch.where(near, 1, c).log())


def _square(name: str, theta: Tensor, c: Tensor, s: Tensor, unpaired: int) -> Tensor:
    """The square of a distance; theta ascends."""
    quarter = math.pi / 2
    if name in ("asimov", "spectral", "gap"):
        largest = theta[..., -1] if theta.shape[-1] and not unpaired else theta.new_full(theta.shape[:-1], quarter)
        largest = largest if unpaired or theta.shape[-1] else 0 * largest
        return {"asimov": largest, "spectral": 2 * (largest / 2).sin(), "gap": largest.sin()}[name] ** 2
    if name == "geodesic":
        return (theta**2).sum(-1) + unpaired * quarter**2
    if name == "chordal":
        return (s**2).sum(-1) + unpaired
    if name == "projection":
        return 2 * (s**2).sum(-1) + unpaired
    if name == "procrustes":
        return (4 * (theta / 2).sin() ** 2).sum(-1) + 2 * unpaired
    log = _log_square_cosine(c, s).sum(-1)
    log = torch.full_like(log, -math.inf) if unpaired else log
    if name == "martin":
        return -log
    if name == "binet_cauchy":
        return -torch.expm1(log)
    return torch.atan2((-torch.expm1(log)).sqrt(), (log / 2).exp()) ** 2


def angle_value(parameters: Parameters, theta: Tensor, c: Tensor, s: Tensor, unpaired: int) -> Tensor:
    name = parameters.name
    if name == "angles":
        return theta
    if name == "cosines":
        return c
    if name == "max_cos":
        return c[..., 0] if c.shape[-1] else c.sum(-1)
    if name in ("mean_cos2", "overlap"):
        return (c**2).sum(-1) / (max(c.shape[-1], 1) if name == "mean_cos2" else 1)
    square = _square(name, theta, c, s, unpaired)
    return square if parameters.squared else square.sqrt()


def outer(parameters: Parameters, value: Tensor, count: int) -> tuple[str, Tensor | float]:
    """A distance or similarity as a function of a sum in matrix_function.SUMS: which one, and its derivative."""
    name, squared = parameters.name, parameters.squared
    if name == "mean_cos2":
        return "chordal", -1.0 / max(count, 1)
    if name == "overlap":
        return "chordal", -1.0
    positive = value > 0
    root = 1.0 if squared else torch.where(positive, 0.5 / torch.where(positive, value, 1), 0)
    if name == "projection":
        return "chordal", 2 * root
    if name == "binet_cauchy":  # squared: 1 - exp(-sum)
        return "martin", (1 - (value if squared else value**2)) * root
    if name == "fubini_study":  # squared: arccos(exp(-sum / 2))^2
        square = value if squared else value**2
        small = square < 1e-4
        angle = torch.where(small, 1, square).sqrt()
        slope = torch.where(small, 1 - square / 3 - square**2 / 45, angle / angle.tan())
        return "martin", torch.where(slope > 0, slope, 0) * root
    return name, root


def angle_weights(parameters: Parameters, g: Tensor, c: Tensor, s: Tensor) -> Tensor:
    """(upstream . d value / d theta_i) / s_i for functions of single angles; 0 at angles of zero, a subgradient."""
    if parameters.name == "cosines":
        return -g
    over_sine = torch.where(s > 0, 1 / torch.where(s > 0, s, 1), 0)
    if parameters.name == "angles":
        return g * over_sine
    if parameters.name == "max_cos":
        return torch.cat([-g[..., None], torch.zeros_like(c[..., 1:])], -1)
    theta, s, c, over_sine = (x[..., -1] for x in (torch.atan2(s, c), s, c, over_sine))
    small = s <= 0
    if parameters.squared:
        weight = {
            "asimov": 2 * torch.where(small, 1, theta * over_sine),
            "spectral": torch.full_like(theta, 2),
            "gap": 2 * c,
        }
    else:
        half = torch.where(small, 1, theta / 2)
        weight = {"asimov": over_sine, "spectral": torch.where(small, 0, 0.5 / half.sin()), "gap": c * over_sine}
    last = (g * weight[parameters.name])[..., None]
    before = last.expand(*last.shape[:-1], parameters.count - 1)
    return torch.cat([torch.zeros_like(before), last], -1)
