"""Rate reduction with soft membership in the configurations of NMCE and CPP (MLC).

Floors: a class costs n d^2 for half its Gram matrix, twice that for its share of both gradients, and d^3 / 3 for its
factor. Traffic: inputs read once, gradients written once.
"""

from __future__ import annotations

from functools import partial

import torch

import subspan
from baselines import soft_classes as baseline
from baselines.coding_rate import LOGDETS
from harness.case import PEER, PLAIN, SUBSPAN, Bar, Case, Variant

from .coding_rate import FLOAT, rate_flops, unit_rows


def soft_rate_reduction(n: int, d: int, k: int, eps2: float, bar: float, source: str) -> Case:
    def inputs(seed: int, device: str):
        scores = torch.randn(k, n, generator=torch.Generator().manual_seed(seed + 1))
        return unit_rows(seed, device, n, d), scores.softmax(0).to(device)

    return Case(
        name=f"soft rate_reduction n={n} d={d} k={k}",
        op="rate_reduction",
        make_inputs=inputs,
        variants=(
            Variant(PEER, "NMCE, EMP-SSL, CPP", partial(baseline.copied_rate_reduction, eps2=eps2)),
            *(
                Variant(PLAIN, f"{name}, {way.__name__.replace('_', ' ')}", partial(way, eps2=eps2, logdet=logdet))
                for name, logdet in LOGDETS.items()
                for way in (baseline.by_class, baseline.by_products)
            ),
            Variant(SUBSPAN, "subspan", partial(subspan.rate_reduction, eps2=eps2)),
        ),
        reference=partial(baseline.reference_rate_reduction, eps2=eps2),
        flops=rate_flops(n, d) + k * (3 * n * d**2 + d**3 / 3),
        bytes=2 * FLOAT * (n * d + k * n),
        bars=(Bar(PLAIN, bar),),
        source=f"{source}, ε² = {eps2}",
    )


CASES = (
    soft_rate_reduction(1024, 128, 10, 0.2, bar=4, source="NMCE, CIFAR-10"),
    soft_rate_reduction(512, 128, 512, 0.1, bar=8, source="CPP (MLC), a class per sample, half its batch"),
)
