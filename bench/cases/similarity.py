"""Similarity of all layers of two networks, in the size of platonic-rep (1024 samples), and of networks in netrep's.

Floors: half a Gram matrix of each layer for CKA, one product with the kept directions from either side for SVCCA; of
the pairs of netrep a product and 8/3 d^3 for singular values. Traffic: inputs read once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import subspan
from baselines import similarity as baseline
from harness.case import PEER, PLAIN, SUBSPAN, Bar, Case, Variant

from .coding_rate import FLOAT, unit_rows

SAMPLES, WIDTHS = 1024, ((768,) * 4, (1024,) * 3)
DOUBLE = 8  # bytes


def layers(seed: int, device: str) -> tuple[torch.Tensor, ...]:
    """Standardised features of four and of three layers, of ten latent variables that the networks share, each layer
    with some of its own in each of them and in every feature."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(seed))
    shared, result = draw(SAMPLES, 10), []
    for width in (*WIDTHS[0], *WIDTHS[1]):
        latent = shared + torch.linspace(0.2, 2, 10) * draw(SAMPLES, 10)
        features = latent @ draw(10, width) + 0.1 * draw(SAMPLES, width)
        features = features - features.mean(0)
        result.append((features / features.std(0)).to(device))
    return tuple(result)


def of_two_networks(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    return lambda *inputs: function(list(inputs[:4]), list(inputs[4:]), **settings)


def all_layers(name: str, op: str, peer: Any, plain: dict[str, Any], ours: Any, reference: Any, flops: float) -> Case:
    return Case(
        name=f"{name} of all layers, 4 × 3 of {SAMPLES}×768 and {SAMPLES}×1024",
        op=op,
        make_inputs=layers,
        variants=(
            Variant(PEER, "platonic-rep", of_two_networks(baseline.pair_by_pair(peer))),
            *(Variant(PLAIN, label, of_two_networks(function)) for label, function in plain.items()),
            Variant(SUBSPAN, "subspan", of_two_networks(ours)),
        ),
        reference=of_two_networks(reference),
        flops=flops,
        bytes=FLOAT * SAMPLES * sum(map(sum, WIDTHS)),
        bars=(Bar(PEER, 20),),
        backward=False,
        source="platonic-rep, wit_1024",
    )


def six_networks(seed: int, device: str) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(1000, 50, generator=generator, dtype=torch.float64)
    maps, noise = (
        torch.randn(6, *shape, generator=generator, dtype=torch.float64) for shape in ((50, 500), (1000, 500))
    )
    return tuple((latent @ maps + noise).to(device))


def upper(function: Callable[..., Any]) -> Callable[..., Any]:
    """The entries above the diagonal."""

    def of(*networks: torch.Tensor) -> torch.Tensor:
        distances = function(list(networks))
        rows, columns = torch.triu_indices(len(networks), len(networks), 1)
        return distances[rows, columns]

    return of


def networks(name: str, op: str, alpha: float, plain: Any, ours: Any, factorisation: float) -> Case:
    pairs, n, d = 15, 1000, 500
    return Case(
        name=f"{name} of all pairs of 6×({n}×{d}), float64",
        op=op,
        make_inputs=six_networks,
        variants=(
            Variant(PEER, "netrep", partial(baseline.netrep_angles, alpha=alpha)),
            Variant(PLAIN, plain.__name__.replace("_", " "), plain),
            Variant(SUBSPAN, "subspan", upper(ours)),
        ),
        reference=plain,
        flops=pairs * (2 * n * d**2 + 8 / 3 * d**3) + 6 * factorisation * n * d**2,
        bytes=DOUBLE * 6 * n * d,
        backward=False,
        source="netrep, the shape of its README",
    )


def von_neumann_entropy(views: int, n: int, d: int, source: str) -> Case:
    """Floor: half a Gram matrix of the smaller side, 9 s^3 for its eigenvectors, the product with H in the gradient."""
    small, large = sorted((n, d))
    return Case(
        name=f"von_neumann_entropy {views}×({n}×{d})",
        op="von_neumann_entropy",
        make_inputs=lambda seed, device: (unit_rows(seed, device, views, n, d),),
        variants=(
            Variant(PEER, "VNE", baseline.copied_entropy),
            Variant(PLAIN, "eigvalsh", baseline.entropy_by_gram),
            Variant(SUBSPAN, "subspan", subspan.von_neumann_entropy),
        ),
        reference=baseline.entropy_by_gram,
        flops=views * (3 * small**2 * large + 9 * small**3),
        bytes=2 * FLOAT * views * n * d,
        source=source,
    )


CASES = (
    all_layers(
        "CKA",
        "pairwise_linear_cka",
        baseline.platonic_cka,
        {"Gram matrices": baseline.cka_by_grams, "cross products": baseline.cka_by_features},
        subspan.pairwise_linear_cka,
        baseline.cka_by_grams,
        SAMPLES**2 * sum(map(sum, WIDTHS)),
    ),
    all_layers(
        "SVCCA",
        "pairwise_svcca",
        partial(baseline.platonic_svcca, rank=10),
        {
            "SVD of each": partial(baseline.svcca_by_svd, rank=10),
            "Gram of each": partial(baseline.svcca_by_gram, rank=10),
        },
        partial(subspan.pairwise_svcca, rank=10),
        partial(baseline.svcca_by_svd, rank=10),
        40 * SAMPLES * sum(map(sum, WIDTHS)),
    ),
    networks(
        "Procrustes angle",
        "pairwise_procrustes",
        1.0,
        baseline.procrustes_by_svdvals,
        partial(subspan.pairwise_procrustes, metric="angular"),
        0.0,
    ),
    networks(
        "angle of mean CCA",
        "pairwise_cca",
        0.0,
        baseline.mean_cca_by_qr,
        lambda networks: subspan.pairwise_cca(networks).clamp(max=1).acos(),
        4.0,
    ),
    von_neumann_entropy(6, 64, 256, "I-VNE"),
    von_neumann_entropy(1, 4096, 256, "VNE, a batch of ImageNet features"),
)
