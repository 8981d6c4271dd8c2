"""GCR's class head and the step of its optimiser in the form people copy, written afresh from their description."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize


class CopiedGrassmannHead(torch.nn.Module):
    r"""Logits 25 ||W_c x / ||x|| || of classes that are subspaces: all projections, then the norm of each group of k.

    Args:
        features: length n of a feature.
        classes: number of classes.
        k: dimension of every subspace. Its basis is k rows of the weight, one class after another.
    """

    def __init__(self, features: int, classes: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.fc = torch.nn.Linear(features, classes * k, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        projections = 25.0 * self.fc(normalize(features, dim=-1))
        logits: Tensor = projections.reshape(len(features), -1, self.k).norm(dim=-1)
        return logits


class CopiedGrassmannSGD(torch.optim.Optimizer):
    r"""A step along the geodesic of every class, P V cos(eta s) V^T - U sin(eta s) V^T of the thin SVD of the gradient.

        U s V^T = D - P P^T D,   P of the next step = Q of a QR factorisation of the above

    Kept because it is what runs today: thin singular value decompositions of tall matrices, and a QR factorisation in
    every step, as beside AdamW. Left out: the momentum, which the original carries from one tangent space to the next
    as it is, while its QR may turn a basis vector around.

    Args:
        params: weights of heads.
        lr: the learning rate eta.
        k: dimension of every subspace.
    """

    def __init__(self, params: Any, lr: float, k: int) -> None:
        super().__init__(params, {"lr": lr, "k": k})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for weight in group["params"]:
                bases, gradients = (rows.unflatten(0, (-1, group["k"])).mT for rows in (weight, weight.grad))
                tangents = gradients - bases @ (bases.mT @ gradients)
                U, s, Vt = torch.linalg.svd(tangents, full_matrices=False)
                angles = -group["lr"] * s[:, None]
                moved = (bases @ Vt.mT * angles.cos() + U * angles.sin()) @ Vt
                weight.copy_(torch.linalg.qr(moved).Q.mT.flatten(0, 1))
