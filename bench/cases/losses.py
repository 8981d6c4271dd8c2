"""Small losses of self-supervised learning, in the shapes of their repositories."""

from __future__ import annotations

from functools import partial

import torch

import subspan
from baselines import coding_rate as rates
from baselines import losses as baseline
from harness.case import PEER, PLAIN, SUBSPAN, Bar, Case, Variant

from .coding_rate import FLOAT, rate_flops, rate_variants, unit_rows, views_of


def total_coding_rate(batch: int, n: int, d: int, eps2: float) -> Case:
    module = subspan.nn.TotalCodingRate(eps=eps2)
    return Case(
        name=f"TotalCodingRate {batch}×({n}×{d})",
        op="nn.TotalCodingRate",
        make_inputs=lambda seed, device: (unit_rows(seed, device, batch, n, d),),
        variants=(
            views_of(batch, 1, "EMP-SSL", partial(rates.empssl_total_rate, eps2=eps2)),
            Variant(SUBSPAN, "subspan", lambda z: -module(z)),
        ),
        reference=partial(rates.reference_rate, eps2=eps2),
        flops=batch * rate_flops(n, d),
        bytes=2 * FLOAT * batch * n * d,
        bars=(Bar(PEER, 40),),
        source=f"EMP-SSL, ε² = {eps2}",
    )


def entropy_like(batch: int, n: int, d: int, eps2: float) -> Case:
    """The log determinant in the shape of VNE's entropy of normalised features."""
    return Case(
        name=f"coding_rate {batch}×({n}×{d})",
        op="coding_rate",
        make_inputs=lambda seed, device: (unit_rows(seed, device, batch, n, d),),
        variants=rate_variants(eps2),
        reference=partial(rates.reference_rate, eps2=eps2),
        flops=batch * rate_flops(n, d),
        bytes=2 * FLOAT * batch * n * d,
        bars=(Bar(PLAIN, 4),),
        source=f"I-VNE's shape, ε² = {eps2}",
    )


def covariance_contrast(batch: int, n: int, d: int, beta: float, bar: float | None, source: str) -> Case:
    """Half of B, and the product that is the gradient; C is read, C' written."""

    def inputs(seed: int, device: str):
        earlier = unit_rows(seed + 1, device, batch, 2 * d, d)
        return unit_rows(seed, device, batch, n, d), earlier.mT @ earlier / (2 * d)

    def ours(z: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
        return subspan.covariance_contrast(z, C.detach(), beta)[0]

    def without_gradient_to_C(function):
        return lambda z, C: function(z, C.detach(), beta)

    return Case(
        name=f"covariance_contrast {batch}×({n}×{d})",
        op="covariance_contrast",
        make_inputs=inputs,
        variants=(
            Variant(PEER, "TiCo", without_gradient_to_C(baseline.copied_contrast)),
            Variant(PLAIN, "inner product", without_gradient_to_C(baseline.contrast_by_inner_product)),
            Variant(PLAIN, "quadratic form", without_gradient_to_C(baseline.contrast_by_quadratic_form)),
            Variant(SUBSPAN, "subspan", ours),
        ),
        reference=without_gradient_to_C(baseline.reference_contrast),
        flops=3 * batch * n * d**2,
        bytes=2 * FLOAT * batch * (n * d + d**2),
        bars=() if bar is None else (Bar(PLAIN, bar),),
        source=f"{source}, β = {beta}",
    )


CASES = (
    total_coding_rate(20, 100, 1024, 0.2),
    entropy_like(6, 64, 256, 0.05),
    covariance_contrast(6, 64, 256, 0.9, bar=4, source="TiCo on I-VNE's shape"),
    covariance_contrast(1, 4096, 256, 0.9, bar=None, source="TiCo, CIFAR-10"),
)
