"""Maps of the Grassmann manifold and its descent, at the sizes of GCR's class heads.

A step of descent is timed as five, the last of which re-orthonormalises, on copies of parameters and momentum that are
made within the time. Floors: Gram matrix and new basis of the exponential map; products of P and the update with
themselves and each other and two new arrays for a step, which reads P, gradient and momentum and writes P and momentum.
"""

from __future__ import annotations

from functools import partial

import torch

import subspan
from baselines import grassmann as baseline
from harness.case import CLOSED_FORM, PEER, PLAIN, SUBSPAN, Bar, Case, Variant

from .coding_rate import FLOAT

LR, MOMENTUM = 0.1, 0.9


def _bases(seed: int, device: str, classes: int, n: int, k: int) -> torch.Tensor:
    matrices = torch.randn(classes, n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(matrices).Q.float().contiguous().to(device)


def _direction(seed: int, device: str, classes: int, n: int, k: int) -> torch.Tensor:
    """Of angles around 0.1, which training makes."""
    return torch.randn(classes, n, k, generator=torch.Generator().manual_seed(seed)).to(device) * (0.1 * n**-0.5)


def exp(classes: int, n: int, k: int) -> Case:
    def inputs(seed: int, device: str) -> tuple[torch.Tensor, ...]:
        X, D = _bases(seed, device, classes, n, k), _direction(seed + 1, device, classes, n, k)
        return X, D - X @ (X.mT @ D)

    return Case(
        name=f"grassmann_exp {classes}×({n}×{k})",
        op="grassmann_exp",
        make_inputs=inputs,
        variants=(
            Variant(PEER, "pymanopt", baseline.pymanopt_exp),
            Variant(PLAIN, "SVD", baseline.exp_by_svd),
            Variant(CLOSED_FORM, "eigenvectors of Gram", baseline.exp_by_gram),
            Variant(SUBSPAN, "subspan", subspan.grassmann_exp),
        ),
        reference=baseline.exp_by_svd,
        flops=5 * classes * n * k**2,
        bytes=3 * FLOAT * classes * n * k,
        bars=(Bar(PLAIN, 4),),
        backward=False,
        source="GCR",
    )


def _subspan_steps(P: torch.Tensor, g: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    classes, k, n = P.shape
    weight = torch.nn.Parameter(P.detach().clone().reshape(classes * k, n))
    weight.grad = g.detach().reshape(classes * k, n)
    optimiser = subspan.optim.GrassmannSGD(
        [weight], lr=LR, momentum=MOMENTUM, k=k, reorthonormalize_every=baseline.STEPS
    )
    optimiser.state[weight]["momentum_buffer"] = b.detach().clone().reshape(classes * k, n)
    for _ in range(baseline.STEPS):
        optimiser.step()
    return weight.detach().unflatten(0, (classes, k))


def steps(classes: int, n: int, k: int) -> Case:
    def inputs(seed: int, device: str) -> tuple[torch.Tensor, ...]:
        arrays = (_bases(seed, device, classes, n, k), *(_direction(seed + i, device, classes, n, k) for i in (1, 2)))
        return tuple(array.mT.contiguous() for array in arrays)

    of = partial(partial, lr=LR, momentum=MOMENTUM)
    return Case(
        name=f"GrassmannSGD 5 steps {classes}×({n}×{k})",
        op="optim.GrassmannSGD",
        make_inputs=inputs,
        variants=(
            Variant(PEER, "GCR", of(baseline.gcr_steps), note="momentum is not carried along"),
            Variant(PLAIN, "SVD", of(baseline.steps_by_svd)),
            Variant(CLOSED_FORM, "eigenvectors of Gram", of(baseline.steps_by_gram)),
            Variant(SUBSPAN, "subspan", _subspan_steps),
        ),
        reference=of(baseline.steps_by_svd),
        flops=12 * baseline.STEPS * classes * n * k**2,
        bytes=5 * baseline.STEPS * FLOAT * classes * n * k,
        bars=(Bar(PLAIN, 4),),
        backward=False,
        source="GCR",
    )


CASES = (exp(100, 2048, 8), exp(50, 768, 16), steps(100, 2048, 8), steps(50, 768, 16))
