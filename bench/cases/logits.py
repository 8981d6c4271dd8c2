"""Logits of class subspaces at the sizes of GCR's heads, from its weight (classes k, n).

Floors: one product of 2 m n classes k forward, two more backward; the bases are read once forward and once backward,
and their gradient is written.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call

import subspan
from baselines import logits as baseline
from harness.case import PEER, PLAIN, SUBSPAN, Bar, Case, Variant

from .coding_rate import FLOAT


def _inputs(m: int, n: int, classes: int, k: int):
    def make(seed: int, device: str) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(m, n, generator=generator)
        weight = torch.randn(classes * k, n, generator=generator) * n**-0.5
        return x.to(device), weight.to(device)

    return make


def _floor(m: int, n: int, classes: int, k: int, backward: bool) -> dict[str, float]:
    flops, bases, rows = 2 * m * n * classes * k, n * classes * k, m * (n + classes)
    return {
        "flops": 3 * flops if backward else flops,
        "bytes": FLOAT * (3 * bases + 3 * rows if backward else bases + rows),
    }


def logits(m: int, n: int, classes: int, k: int, backward: bool, bars: tuple[Bar, ...] = ()) -> Case:
    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return subspan.subspace_logits(x, weight.view(classes, k, n), scale=baseline.SCALE, layout="rows")

    plain = {
        "norm of groups": baseline.norm_of_groups,
        "squares of groups": baseline.squares_of_groups,
        "squares of rows": baseline.squares_of_rows,
    }
    return Case(
        name=f"subspace_logits {m}×{n}, {classes} classes of dimension {k}",
        op="subspace_logits",
        make_inputs=_inputs(m, n, classes, k),
        variants=(
            Variant(PEER, "GCR, without the normalisation", partial(baseline.norm_of_groups, k=k)),
            *(Variant(PLAIN, label, partial(function, k=k)) for label, function in plain.items()),
            Variant(SUBSPAN, "subspan", ours),
        ),
        reference=partial(baseline.norm_of_groups, k=k),
        **_floor(m, n, classes, k, backward),
        bars=bars,
        backward=backward,
        source="GCR, k = 8",
    )


def head(m: int, n: int, classes: int, k: int) -> Case:
    module = subspan.nn.GrassmannLinear(n, classes, k, baseline.SCALE)

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return functional_call(module, {"weight": weight}, (x,))

    return Case(
        name=f"GrassmannLinear {m}×{n}, {classes} classes of dimension {k}",
        op="nn.GrassmannLinear",
        make_inputs=_inputs(m, n, classes, k),
        variants=(
            Variant(PEER, "GCR", partial(baseline.published_head, k=k)),
            Variant(PLAIN, "norm of groups", partial(baseline.published_head, k=k)),
            Variant(PLAIN, "squares of rows", partial(baseline.normalised_squares, k=k)),
            Variant(SUBSPAN, "subspan", ours),
        ),
        reference=partial(baseline.published_head, k=k),
        **_floor(m, n, classes, k, backward=True),
        source="GCR, k = 8",
    )


CASES = (
    logits(64, 768, 200, 8, backward=True, bars=(Bar(PLAIN, 1.8),)),
    logits(64, 768, 200, 8, backward=False),
    logits(256, 2048, 1000, 8, backward=False),
    head(64, 768, 200, 8),
)
