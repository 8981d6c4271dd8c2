"""Parametrisations and layers of orthogonal matrices: torch's orthogonal, HouseholderGAN's layer, PEFT's OFT.

Floors. Of order n, by Cayley's transform and with a base: one inverse and the product with the base forward, two
products backward, 2 n^3 each; parameter, base, weight and both gradients pass by. By reflectors, m x n: those of
householder_product and, for the base, a product forward and one backward. The layer of rank r: its factors, as above,
and two products with x forward and four backward, for which x, the result and both gradients pass by. The blocks: one
inverse and two products.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from baselines import householder as reflectors
from baselines import orthogonal_modules as baseline
from harness.case import PEER, PLAIN, SUBSPAN, Bar, Case, Variant
from harness.upstream import upstream_of
from subspan import householder_apply
from subspan.nn.householder import projected
from subspan.nn.orthogonal import Orthogonal
from subspan.ops.skew import cayley_of_packed

from .coding_rate import FLOAT
from .householder import _normal, orthogonality


def _base(size: int) -> Tensor:
    normal = torch.randn(size, size, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return torch.linalg.qr(normal).Q


def _by_torch(kind: str, shape: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    maps: dict[torch.dtype, torch.nn.Module] = {}

    def weight(X: Tensor) -> Tensor:
        if X.dtype not in maps:
            maps[X.dtype] = baseline.torch_map(kind, shape, _base(max(shape)).to(X))
        return maps[X.dtype](_signed(X) if kind == "householder" else X)

    return weight


def _signed(X: Tensor) -> Tensor:
    """With -1 on the diagonal, where torch's map by reflectors has its signs."""
    diagonal = torch.eye(*X.shape, dtype=torch.bool, device=X.device)
    return torch.where(diagonal, -1.0, X)


def _by_subspan(kind: str, shape: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    parametrization = Orthogonal(torch.empty(shape), kind, True)
    bases: dict[torch.dtype, Tensor] = {}

    def weight(X: Tensor) -> Tensor:
        if X.dtype not in bases:
            bases[X.dtype] = _base(max(shape)).to(X)
        parametrization.base = bases[X.dtype]
        return parametrization(X)

    return weight


def _timed(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], float]:
    """Seconds of the function forward and backward: its value is not that of the case."""

    def seconds(X: Tensor) -> float:
        X = X.detach().clone().requires_grad_()
        start = time.perf_counter()
        value = function(X)
        value.backward(upstream_of(value))
        return time.perf_counter() - start

    return seconds


def parametrization(
    kind: str, m: int, n: int, flops: float, others: tuple[str, ...], bars: tuple[Bar, ...] = ()
) -> Case:
    """With our default map; torch's other maps give another weight of the same parameter."""

    def inputs(seed: int, device: str) -> tuple[Tensor, ...]:
        X = torch.randn(m, n, generator=torch.Generator().manual_seed(seed))
        return ((0.3 * max(m, n) ** -0.5 * X).to(device),)

    theirs = [
        Variant(PEER, f"torch, {other}", _timed(_by_torch(other, (m, n))), self_timed=True, note="another map")
        for other in others
    ]
    return Case(
        name=f"orthogonal {m}×{n}",
        op="nn.orthogonal",
        make_inputs=inputs,
        variants=(
            Variant(PEER, f"torch, {kind}", _by_torch(kind, (m, n))),
            *theirs,
            Variant(SUBSPAN, "subspan", _by_subspan(kind, (m, n))),
        ),
        reference=_by_torch(kind, (m, n)),
        flops=flops,
        bytes=FLOAT * (4 * m * n + max(m, n) ** 2),
        bars=bars,
        source="torch.nn.utils.parametrizations",
    )


def linear(features: int, rank: int, rows: int) -> Case:
    """The chains of HouseholderGAN have as many reflectors as features; what they parametrise is the same."""

    def inputs(seed: int, device: str) -> tuple[Tensor, ...]:
        frames = ((features, rank), (features, rank), (rank,), (rows, features))
        return _normal(*frames)(seed, device)

    fill = torch.randn(features, features - rank, generator=torch.Generator().manual_seed(1))
    fill[:rank] = 0  # so that they leave the columns that are used as they are

    def whole(U: Tensor, V: Tensor, scales: Tensor, x: Tensor) -> Tensor:
        chains = [torch.cat([vectors, fill.to(x)], 1) for vectors in (U, V)]
        return baseline.gan_layer(chains[0], chains[1].flip(1), scales, x)

    def by_wy(U: Tensor, V: Tensor, scales: Tensor, x: Tensor) -> Tensor:
        return x @ reflectors.wy_product(V, rank) * scales @ reflectors.wy_product(U, rank).mT

    def ours(U: Tensor, V: Tensor, scales: Tensor, x: Tensor) -> Tensor:
        return projected(x, U, scales, V, None)

    return Case(
        name=f"HouseholderLinear {features}→{features} of rank {rank} on {rows} rows",
        op="nn.HouseholderLinear",
        make_inputs=inputs,
        variants=(
            Variant(PEER, "HouseholderGAN, fasth", whole),
            Variant(PLAIN, "compact WY", by_wy),
            Variant(SUBSPAN, "subspan", ours),
        ),
        reference=by_wy,
        flops=2 * 10 * features * rank**2 + 12 * features * rank * rows,
        bytes=FLOAT * (4 * rows * features + 4 * features * rank),
        bars=(Bar(PEER, 20),),
        source="HouseholderGAN",
    )


def adapter(features: int, r: int, rows: int) -> Case:
    """A frozen square layer behind a chain of reflections, with gradients to the vectors and to x."""

    def inputs(seed: int, device: str) -> tuple[Tensor, ...]:
        return _normal((features, r), (rows, features))(seed, device)

    def frozen(like: Tensor) -> Tensor:
        if like.dtype not in weights:
            normal = torch.randn(features, features, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
            weights[like.dtype] = (normal / features**0.5).to(like)
        return weights[like.dtype]

    weights: dict[torch.dtype, Tensor] = {}

    def ours(vectors: Tensor, x: Tensor) -> Tensor:
        turned = householder_apply(vectors, x, side="right", transpose=True)
        return torch.nn.functional.linear(turned, frozen(x))

    def by_wy(vectors: Tensor, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(reflectors.wy_apply(vectors, x.mT).mT, frozen(x))

    return Case(
        name=f"HouseholderAdapter {features}→{features}, r {r}, on {rows} rows",
        op="nn.HouseholderAdapter",
        make_inputs=inputs,
        variants=(
            Variant(PEER, "PEFT, HRA", lambda vectors, x: baseline.hra_layer(vectors, frozen(x), x)),
            Variant(PLAIN, "compact WY", by_wy),
            Variant(SUBSPAN, "subspan", ours),
        ),
        reference=lambda vectors, x: baseline.hra_layer(vectors, frozen(x), x),
        flops=12 * features * r * rows + 3 * features * r**2 + 4 * features**2 * rows,
        bytes=FLOAT * (features**2 + 6 * rows * features + 2 * features * r),
        source="PEFT, HRA",
    )


def blocks(count: int, size: int, bars: tuple[Bar, ...]) -> Case:
    def inputs(seed: int, device: str) -> tuple[Tensor, ...]:
        a = torch.randn(count, size * (size - 1) // 2, generator=torch.Generator().manual_seed(seed))
        return ((0.1 * size**-0.5 * a).to(device),)

    return Case(
        name=f"OrthogonalBlocks {count}×({size}×{size})",
        op="nn.OrthogonalBlocks",
        make_inputs=inputs,
        variants=(
            Variant(PEER, "PEFT, 5 terms", lambda a: baseline.oft_by_series(a, size), note="inexact"),
            Variant(PLAIN, "solve", lambda a: baseline.oft_by_solve(a, size)),
            Variant(PLAIN, "inverse", lambda a: baseline.oft_by_inverse(a, size)),
            Variant(SUBSPAN, "subspan", cayley_of_packed),
        ),
        reference=lambda a: baseline.oft_by_inverse(a, size),
        flops=6 * count * size**3,
        bytes=FLOAT * count * 3 * size**2,
        bars=bars,
        quality=orthogonality,
        source="PEFT, OFT",
    )


CASES = (
    parametrization("cayley", 512, 512, 8 * 512**3, ("householder", "matrix_exp"), (Bar(PEER, 3),)),
    parametrization(
        "householder", 64, 512, 9 * 512 * 64**2 + 4 * 512**2 * 64, ("cayley", "matrix_exp"), (Bar(PEER, 3),)
    ),
    parametrization("cayley", 64, 64, 8 * 64**3, ("householder", "matrix_exp")),
    linear(512, 10, 64),
    adapter(1024, 8, 128),
    blocks(2867, 32, (Bar(PLAIN, 8, "solve"),)),
)
