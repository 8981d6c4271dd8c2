"""Sinkhorn's scaling as people compute it today: rows sum to 1 after an odd number of half-steps, the gradient is that
of the last one.

Three parts: the float64 reference, the best plain PyTorch (public ops and autograd), and the code people copy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def logsumexp_loop(scores: Tensor, temperature: float, iterations: int) -> Tensor:
    """Potentials by torch.logsumexp, without a graph; the last row step is a softmax, which autograd differentiates."""
    exponents = scores / temperature
    with torch.no_grad():
        columns = torch.zeros_like(exponents[..., :1, :])
        for _ in range(iterations // 2):
            rows = (exponents + columns).logsumexp(-1, keepdim=True)
            columns = -(exponents - rows).logsumexp(-2, keepdim=True)
    return (exponents + columns).softmax(-1)


reference = logsumexp_loop


# --- the code people copy ---------------------------------------------------------------------------------------


def cpp_plan(scores: Tensor, temperature: float, iterations: int) -> Tensor:
    """CPP's loop: the exponents of all pairs are formed anew for every half-step, three temporaries each, the columns'
    potential is detached, and the change of the rows' potential is read back after every half-step.
    """
    samples = scores.shape[-1]
    cost, log_mass = -scores[None], -math.log(samples)
    u, v = torch.zeros_like(cost[..., 0]), torch.zeros_like(cost[..., 0, :])
    change = torch.tensor(math.inf)

    def exponents() -> Tensor:
        return (-cost + u.unsqueeze(-1) + v.unsqueeze(-2)) / temperature

    for half_step in range(iterations):
        if half_step % 2 == 0:
            previous = u
            u = temperature * (log_mass - torch.logsumexp(exponents(), dim=-1)) + u
            change = (u - previous).abs().sum(-1).mean()
        else:
            v = temperature * (log_mass - torch.logsumexp(exponents().transpose(-2, -1), dim=-1)) + v
            v = v.detach()
            v[v > 9e8] = 0.0
            v.requires_grad_()
        if change.item() < 1e-12:
            break
    return samples * torch.exp(exponents())[0]
