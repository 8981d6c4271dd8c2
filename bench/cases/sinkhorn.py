"""Sinkhorn's scaling where CPP uses it: cosines of a batch with itself, temperature 0.175, five half-steps.

Floor: one exponential, about ten multiply-adds, of each entry per row step, since a column step can share it, and the
gradient's five flops; scores and upstream gradient read once, matrix and gradient written once.
"""

from __future__ import annotations

from functools import partial

import torch

import subspan
from baselines import sinkhorn as baseline
from harness.case import PEER, PLAIN, SUBSPAN, Case, Variant

from .coding_rate import FLOAT, unit_rows

EXPONENTIAL = 20  # flops


def mean_position(function, scores: torch.Tensor) -> torch.Tensor:
    """Of each row's distribution: a row's plain sum is constant and would have no gradient."""
    return function(scores) @ torch.linspace(-1, 1, scores.shape[-1], dtype=scores.dtype, device=scores.device)


def sinkhorn(n: int, temperature: float, iterations: int) -> Case:
    def of(function, **options):
        return partial(mean_position, partial(function, temperature=temperature, iterations=iterations, **options))

    def inputs(seed: int, device: str) -> tuple[torch.Tensor, ...]:
        features = unit_rows(seed, device, n, 128)
        return (features @ features.mT,)

    return Case(
        name=f"sinkhorn {n}×{n}",
        op="sinkhorn",
        make_inputs=inputs,
        variants=(
            Variant(PEER, "CPP", of(baseline.cpp_plan)),
            Variant(PLAIN, "torch.logsumexp", of(baseline.logsumexp_loop)),
            Variant(SUBSPAN, "subspan", of(subspan.sinkhorn, grad="last")),
        ),
        reference=of(baseline.reference),
        flops=n**2 * (EXPONENTIAL * (iterations + 1) / 2 + 5),
        bytes=4 * FLOAT * n**2,
        source=f"CPP, temperature {temperature}, {iterations} half-steps",
    )


CASES = (sinkhorn(512, 0.175, 5), sinkhorn(1024, 0.175, 5))
