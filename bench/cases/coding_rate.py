"""Coding rates in the configurations of the papers and repositories that use them.

Floors: with s the smaller and b the larger of rows and columns, half the Gram costs s^2 b, the factor s^3 / 3, the
gradient two triangular solves 2 s^2 b. Traffic: inputs read once, gradients written once.
"""

from __future__ import annotations

from functools import partial

import torch
from torch.nn.functional import normalize

import subspan
from baselines import coding_rate as baseline
from harness.case import CLOSED_FORM, PEER, PLAIN, SUBSPAN, YARDSTICK, Bar, Case, Variant

FLOAT, LABEL = 4, 8  # bytes


def unit_rows(seed: int, device: str, *shape: int) -> torch.Tensor:
    """Features as the papers feed them: rows of norm 1. Drawn on the CPU, so that every device sees the same."""
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1).to(device)


def rate_flops(rows: int, columns: int, backward: bool = True) -> float:
    small, large = sorted((rows, columns))
    return (3 if backward else 1) * small**2 * large + small**3 / 3


# --- spd_logdet -------------------------------------------------------------------------------------------------


def spd_logdet(batch: int, n: int, bar: float) -> Case:
    def inputs(seed: int, device: str):
        features = unit_rows(seed, device, batch, 2 * n, n)
        return (torch.eye(n, device=device) + features.mT @ features,)

    return Case(
        name=f"spd_logdet {batch}×{n}²",
        op="spd_logdet",
        make_inputs=inputs,
        variants=(
            Variant(PLAIN, "Cholesky", baseline.logdet_by_cholesky),
            Variant(PLAIN, "torch.logdet" if n <= 128 else "torch.logdet, one by one", baseline.logdet_by_lu),
            Variant(SUBSPAN, "subspan", subspan.spd_logdet),
        ),
        reference=baseline.reference_logdet,
        flops=batch * n**3 / 3,
        bytes=FLOAT * batch * (n * (n + 1) / 2 + 1),  # the lower triangle
        bars=(Bar(PLAIN, bar),),
        backward=False,
    )


# --- coding_rate ------------------------------------------------------------------------------------------------


def coding_rate(batch: int, n: int, d: int, eps2: float, peer: Variant, bar: float, source: str) -> Case:
    return Case(
        name=f"coding_rate {batch}×({n}×{d})",
        op="coding_rate",
        make_inputs=lambda seed, device: (unit_rows(seed, device, batch, n, d),),
        variants=(peer, *rate_variants(eps2)),
        reference=partial(baseline.reference_rate, eps2=eps2),
        flops=batch * rate_flops(n, d),
        bytes=2 * FLOAT * batch * n * d,
        bars=(Bar(PLAIN, bar),),
        source=f"{source}, ε² = {eps2}",
    )


def single_small_rate(n: int, d: int, eps2: float) -> Case:
    """What a call costs: one matrix so small that nothing else counts."""
    return Case(
        name=f"coding_rate of one {n}×{d}",
        op="coding_rate",
        make_inputs=lambda seed, device: (unit_rows(seed, device, n, d),),
        variants=(Variant(YARDSTICK, "torch.add", lambda z: torch.add(z, z)), *rate_variants(eps2)),
        reference=partial(baseline.reference_rate, eps2=eps2),
        flops=rate_flops(n, d, backward=False),
        bytes=FLOAT * n * d,
        bars=(Bar(YARDSTICK, 1 / 4),),
        backward=False,
        source=f"ε² = {eps2}",
    )


def rate_variants(eps2: float) -> tuple[Variant, ...]:
    return (
        *(Variant(PLAIN, f"{name}, min side", partial(baseline.rate, eps2=eps2, logdet=logdet))
          for name, logdet in baseline.LOGDETS.items()),
        Variant(CLOSED_FORM, "Cholesky inverse", partial(baseline.rate_closed_form, eps2=eps2)),
        Variant(SUBSPAN, "subspan", partial(subspan.coding_rate, eps2=eps2)),
    )  # fmt: skip


def views_of(batch: int, timed: int, label: str, function) -> Variant:
    """A peer that loops over the views, timed on some of them."""
    note = f"{timed} of {batch} views timed, × {batch // timed}"

    def some_views(features: torch.Tensor) -> torch.Tensor:
        return function(features.detach()[:timed].requires_grad_())  # no gradient of the views that are left out

    return Variant(PEER, label, some_views, scale=batch / timed, note=note)


# --- rate_reduction ---------------------------------------------------------------------------------------------


def rate_reduction(n: int, d: int, k: int, eps2: float, peers: tuple[Variant, ...], bar: float, source: str) -> Case:
    """Hard labels in equal numbers, shuffled: classes of one size are padded for free, which favours plain PyTorch."""
    shape = {"eps2": eps2, "num_classes": k}

    def inputs(seed: int, device: str):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed + 1))
        return unit_rows(seed, device, n, d), (torch.arange(n) % k)[order].to(device)

    return Case(
        name=f"rate_reduction n={n} d={d} k={k}",
        op="rate_reduction",
        make_inputs=inputs,
        variants=(
            *peers,
            *(Variant(PLAIN, f"{name}, padded", partial(baseline.rate_reduction, **shape, logdet=logdet))
              for name, logdet in baseline.LOGDETS.items()),
            Variant(CLOSED_FORM, "Cholesky inverse, padded", partial(baseline.rate_reduction_closed_form, **shape)),
            Variant(SUBSPAN, "subspan", partial(subspan.rate_reduction, **shape)),
        ),
        reference=partial(baseline.reference_rate_reduction, **shape),
        flops=rate_flops(n, d) + k * rate_flops(n // k, d),
        bytes=n * (2 * FLOAT * d + LABEL),
        bars=(Bar(PLAIN, bar), Bar(PEER, 15)),
        source=f"{source}, ε² = {eps2}",
    )  # fmt: skip


def whole_peers(n: int, d: int, k: int, eps2: float) -> tuple[Variant, ...]:
    return (
        Variant(PEER, "MCR2", partial(baseline.mcr2_rate_reduction, eps2=eps2, num_classes=k)),
        Variant(PEER, "EMP-SSL", partial(baseline.empssl_rate_reduction, eps2=eps2, num_classes=k)),
    )


def sliced_peers(n: int, d: int, k: int, eps2: float, timed: int) -> tuple[Variant, ...]:
    """The copied code needs gigabytes and minutes here: EMP-SSL's R_c of some classes, its R left out."""
    some = partial(baseline.empssl_compression, eps2=eps2, classes=range(timed))
    membership, masked = FLOAT * k * n**2 / 1e9, FLOAT * k * d * n / 1e9
    note = f"R_c of {timed} of {k} classes timed, × {k // timed}; R left out; as a whole W∘Π alone is {masked:.3g} GB"
    return (
        Variant(PEER, "MCR2", skip=f"too large: its dense memberships alone are {membership:.3g} GB"),
        Variant(PEER, "EMP-SSL", some, scale=k / timed, note=note),
    )


def rate_operator(n: int, d: int, eps2: float) -> Case:
    alpha = d / (n * eps2)
    return Case(
        name=f"rate_operator n={n} d={d}",
        op="rate_operator",
        make_inputs=lambda seed, device: (unit_rows(seed, device, n, d),),
        variants=(
            Variant(PEER, "ReduNet", partial(baseline.redunet_operator, alpha=alpha)),
            Variant(PLAIN, "Cholesky", partial(baseline.operator_by_cholesky, alpha=alpha)),
            Variant(SUBSPAN, "subspan", partial(subspan.rate_operator, alpha=alpha)),
        ),
        reference=partial(baseline.reference_operator, alpha=alpha),
        flops=n * d**2 + d**3,  # half the Gram matrix, factor and half the inverse
        bytes=FLOAT * (n * d + d**2),
        backward=False,
        source=f"ReduNet's E on MNIST's size, ε² = {eps2}",
    )


CASES = (
    spd_logdet(1000, 16, bar=12),
    spd_logdet(256, 32, bar=12),
    spd_logdet(64, 128, bar=6),
    spd_logdet(16, 256, bar=6),
    spd_logdet(4, 512, bar=4),
    rate_reduction(1000, 128, 10, 0.5, whole_peers(1000, 128, 10, 0.5), bar=6, source="MCR2, supervised"),
    rate_reduction(2000, 500, 100, 0.5, sliced_peers(2000, 500, 100, 0.5, timed=5), bar=5, source="V-MCR2, CIFAR-100"),
    rate_reduction(10000, 512, 1000, 0.5, sliced_peers(10000, 512, 1000, 0.5, timed=1), bar=6, source="many classes"),
    coding_rate(
        20, 100, 1024, 0.2, views_of(20, 2, "EMP-SSL", partial(baseline.empssl_total_rate, eps2=0.2)), 5, "EMP-SSL"
    ),
    coding_rate(
        2, 64, 256, 0.05, Variant(PEER, "SimDINO", partial(baseline.simdino_expansion, eps2=0.05)), 5, "SimDINO"
    ),
    coding_rate(96, 197, 64, 0.01, Variant(PEER, "CRATE", partial(baseline.crate_rate, eps2=0.01)), 5, "CRATE-B, b=8"),
    rate_operator(10000, 784, 0.1),
    single_small_rate(16, 8, 0.5),
)  # fmt: skip
