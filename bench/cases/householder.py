"""Products of Householder reflectors at the sizes of GCR's frames, HouseholderGAN's layers and PEFT's adapters.

Floors count products that no form of the algorithm avoids. For k reflectors of length m on p columns: two products
of V with a matrix of p columns forward, 4 m k p; backward two more on the gradient and two for that of V, 8 m k p. The
Gram matrix of V, m k^2, and its gradient, 2 m k^2, are those of the compact WY form. Columns of the identity make the
first product, and the one of their gradient with it, free. V, X, the result, its gradient and both gradients pass
memory once.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

import subspan
from baselines import householder as baseline
from harness.case import PEER, PLAIN, SUBSPAN, Bar, Case, Variant

from .coding_rate import FLOAT


def _normal(*shapes: tuple[int, ...]):
    def make(seed: int, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(*shape, generator=generator).to(device) for shape in shapes)

    return make


def orthogonality(value: Tensor) -> str:
    Q = value.double()
    gram = Q.mT @ Q
    return f"max|QᵀQ-I| {(gram - torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)).abs().max():.1e}"


def product(batch: int, m: int, k: int, bars: tuple[Bar, ...], peer: bool) -> Case:
    one_by_one = Variant(
        PEER,
        "one reflector after the other",
        lambda V: baseline.one_by_one(V, torch.eye(m, k, dtype=V.dtype, device=V.device)),
    )
    return Case(
        name=f"householder_product {batch}×({m}×{k})",
        op="householder_product",
        make_inputs=_normal((batch, m, k)),
        variants=(
            *((one_by_one,) if peer else ()),
            Variant(PLAIN, "compact WY", partial(baseline.wy_product, columns=k)),
            Variant(SUBSPAN, "subspan", subspan.householder_product),
        ),
        reference=partial(baseline.wy_product, columns=k),
        flops=batch * (2 * m * k * k + m * k * k + 6 * m * k * k),
        bytes=5 * FLOAT * batch * m * k,
        quality=orthogonality,
        bars=bars,
        source="spec, cases 4 and 6",
    )


def lapack(batch: int, m: int, k: int, timed: int) -> Case:
    """torch's backward pass forms m x m matrices: only some frames are timed."""
    return Case(
        name=f"householder_product, LAPACK's vectors, {batch}×({m}×{k})",
        op="householder_product",
        make_inputs=_normal((batch, m, k)),
        variants=(
            Variant(
                PEER,
                f"torch.linalg.householder_product, first {timed}",
                lambda A: baseline.by_torch(A[:timed]),
                scale=batch / timed,
            ),
            Variant(PLAIN, "compact WY", lambda A: baseline.wy_product(baseline.unit_triangular(A), k)),
            Variant(SUBSPAN, "subspan", partial(subspan.householder_product, lapack=True)),
        ),
        reference=lambda A: baseline.wy_product(baseline.unit_triangular(A), k),
        flops=batch * (2 * m * k * k + m * k * k + 6 * m * k * k),
        bytes=5 * FLOAT * batch * m * k,
        quality=orthogonality,
        bars=(Bar(PEER, 100),),
        source="spec, case 4",
    )


def apply(batch: int, m: int, k: int, p: int, bar: float, source: str) -> Case:
    return Case(
        name=f"householder_apply {batch}×({m}×{k}) on {p} columns",
        op="householder_apply",
        make_inputs=_normal((batch, m, k), (batch, m, p)),
        variants=(
            Variant(PEER, "one reflector after the other", baseline.one_by_one),
            Variant(PLAIN, "compact WY", baseline.wy_apply),
            Variant(SUBSPAN, "subspan", subspan.householder_apply),
        ),
        reference=baseline.wy_apply,
        flops=batch * (12 * m * k * p + 3 * m * k * k),
        bytes=FLOAT * batch * (2 * m * k + 4 * m * p),
        bars=(Bar(PLAIN, bar),),
        source=source,
    )


def gan(m: int, rank: int) -> Case:
    """Two chains of m dense reflectors, of which `rank` columns and rows are used."""

    def ours(U: Tensor, V: Tensor, scales: Tensor) -> Tensor:
        E = torch.eye(rank, m, dtype=V.dtype, device=V.device)
        return subspan.householder_product(U, columns=rank) * scales @ subspan.householder_apply(V, E, side="right")

    return Case(
        name=f"HouseholderGAN's weight, {m}² of rank {rank}",
        op="householder_product",
        make_inputs=_normal((m, m), (m, m), (rank,)),
        variants=(
            Variant(PEER, "fasth, all columns", baseline.gan_weight),
            Variant(PLAIN, "compact WY", baseline.gan_weight_by_wy),
            Variant(SUBSPAN, "subspan", ours),
        ),
        reference=baseline.gan_weight_by_wy,
        flops=2 * 12 * m * m * rank + 6 * m * m * rank,
        bytes=FLOAT * (4 * m * m + 2 * m * m),
        source="spec, case 5",
    )


CASES = (
    product(100, 2048, 8, (Bar(PLAIN, 4),), peer=True),
    product(8, 512, 512, (Bar(PLAIN, 2.5),), peer=False),
    product(1, 512, 512, (), peer=True),
    lapack(100, 2048, 8, 2),
    lapack(1, 4096, 32, 1),
    apply(1, 512, 32, 256, 3, "spec"),
    apply(64, 256, 8, 32, 4, "spec"),
    apply(1, 4096, 32, 512, 2.5, "PEFT, HRA"),
    gan(512, 10),
)
