"""Singular values of small matrices, and principal angles at the sizes of GCR's classes and of mutual subspaces.

Floors: bases are read once, orthonormalised by 2 n k^2 flops each and multiplied by 2 n p q; singular values of a k x k
matrix take 8/3 k^3. Gradients take the product again and two of the same size for each side, and are written. All that
subspan does for pairs is in float64, the floor is that of the arrays' own type.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

import subspan
from baselines import angles as baseline
from harness.case import ACCURATE, PEER, PLAIN, SUBSPAN, Bar, Case, Variant

SIZES = {torch.float32: 4, torch.float64: 8}
NAMES = {torch.float32: "", torch.float64: ", float64"}


def singular_values(k: int, batch: int, dtype: torch.dtype, bar: float) -> Case:
    def make(seed: int, device: str) -> tuple[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return (torch.randn(batch, k, k, generator=generator, dtype=dtype).to(device),)

    return Case(
        name=f"small_svdvals {batch}×{k}²{NAMES[dtype]}",
        op="small_svdvals",
        make_inputs=make,
        variants=(
            Variant(PLAIN, "torch.linalg.svdvals", torch.linalg.svdvals),
            Variant(SUBSPAN, "subspan", subspan.small_svdvals),
        ),
        reference=torch.linalg.svdvals,
        flops=8 / 3 * k**3 * batch,
        bytes=SIZES[dtype] * batch * (k * k + k),
        bars=(Bar(PLAIN, bar),),
        backward=False,
        source="spec, k sweep",
    )


def _bases(count: int, n: int, k: int, dtype: torch.dtype, orthonormal: bool):
    def make(seed: int, device: str) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        A, B = (torch.randn(count, n, k, generator=generator, dtype=dtype) for _ in range(2))
        if orthonormal:
            A, B = torch.linalg.qr(A).Q.contiguous(), torch.linalg.qr(B).Q.contiguous()
        return A.to(device), B.to(device)

    return make


def pairs(orthonormal: bool, dtype: torch.dtype, bars: tuple[Bar, ...]) -> Case:
    count, n, k = 4096, 256, 8
    if orthonormal:
        plain = {"svdvals, acos": baseline.of_orthonormal}
    else:
        plain = {"QR, svdvals, acos": baseline.by_qr, "Cholesky, svdvals, acos": baseline.by_gram}
    ours = partial(subspan.principal_angles, assume_orthonormal=orthonormal)
    return Case(
        name=f"principal_angles {count}×({n}×{k}), {'orthonormal' if orthonormal else 'general'} bases{NAMES[dtype]}",
        op="principal_angles",
        make_inputs=_bases(count, n, k, dtype, orthonormal),
        variants=(
            Variant(PEER, "scipy, first 64 pairs", lambda A, B: baseline.by_scipy(A[:64], B[:64]), scale=count / 64),
            *(Variant(PLAIN, label, function) for label, function in plain.items()),
            Variant(ACCURATE, "QR, two SVDs, atan2 in float64", baseline.by_residuals),
            Variant(SUBSPAN, "subspan", ours),
        ),
        reference=baseline.by_residuals,
        flops=count * (2 * n * k * k + (0 if orthonormal else 4 * n * k * k) + 8 / 3 * k**3),
        bytes=SIZES[dtype] * count * (2 * n * k + k),
        bars=bars,
        backward=False,
        source="spec, case 4",
    )


def geodesic_gradient(dtype: torch.dtype) -> Case:
    count, n, k = 4096, 256, 8
    return Case(
        name=f"subspace_distance geodesic² {count}×({n}×{k}){NAMES[dtype]}",
        op="subspace_distance",
        make_inputs=_bases(count, n, k, dtype, orthonormal=False),
        variants=(
            Variant(PLAIN, "QR, svdvals, acos", baseline.geodesic_squared),
            Variant(PLAIN, "Cholesky, svdvals, acos", baseline.geodesic_squared_by_gram),
            Variant(SUBSPAN, "subspan", partial(subspan.subspace_distance, squared=True)),
        ),
        reference=baseline.geodesic_squared,
        flops=count * (6 * n * k * k + 8 * n * k * k + 12 * k**3),
        bytes=SIZES[dtype] * count * 4 * n * k,
        bars=(Bar(PLAIN, 4),),
        source="spec, case 4",
    )


def all_geodesics(count: int, n: int, k: int) -> Case:
    def make(seed: int, device: str) -> tuple[Tensor]:
        return (_bases(count, n, k, torch.float32, orthonormal=True)(seed, device)[0],)

    def ours(A: Tensor) -> Tensor:
        return subspan.subspace_distance(A, A, pairwise=True, assume_orthonormal=True)

    unordered = count * (count - 1) / 2
    return Case(
        name=f"subspace_distance geodesic, all pairs of {count} subspaces {n}×{k}",
        op="subspace_distance",
        make_inputs=make,
        variants=(
            Variant(PLAIN, "svdvals, acos", baseline.geodesic_pairs),
            Variant(SUBSPAN, "subspan", ours),
        ),
        reference=lambda A: torch.where(
            torch.eye(count, dtype=torch.bool, device=A.device), 0, baseline.geodesic_pairs(A)
        ),
        flops=unordered * (2 * n * k * k + 8 / 3 * k**3),
        bytes=4 * (count * n * k + count**2),
        bars=(Bar(PLAIN, 5),),
        backward=False,
        source="spec, case 3",
    )


def all_chordals() -> Case:
    def make(seed: int, device: str) -> tuple[Tensor, Tensor]:
        A = _bases(256, 1024, 10, torch.float32, orthonormal=True)(seed, device)[0]
        return A, _bases(100, 1024, 20, torch.float32, orthonormal=True)(seed + 1, device)[0]

    def ours(A: Tensor, B: Tensor) -> Tensor:
        return subspan.subspace_distance(A, B, "chordal", pairwise=True, assume_orthonormal=True)

    return Case(
        name="subspace_distance chordal, 256×(1024×10) with 100×(1024×20)",
        op="subspace_distance",
        make_inputs=make,
        variants=(
            Variant(PLAIN, "difference of squares", baseline.chordal_pairs),
            Variant(SUBSPAN, "subspan", ours),
        ),
        reference=baseline.chordal_pairs,
        flops=2 * 2560 * 2000 * 1024,
        bytes=4 * (256 * 1024 * 10 + 100 * 1024 * 20 + 25600),
        bars=(Bar(PLAIN, 1.9),),
        backward=False,
        source="spec, case 5",
    )


CASES = (
    singular_values(8, 32768, torch.float32, 25),
    singular_values(16, 4096, torch.float32, 10),
    singular_values(32, 1024, torch.float32, 3),
    singular_values(8, 32768, torch.float64, 12),
    singular_values(16, 4096, torch.float64, 5),
    singular_values(32, 1024, torch.float64, 1.5),
    *(pairs(True, dtype, (Bar(PLAIN, 2.5),)) for dtype in (torch.float32, torch.float64)),
    *(pairs(False, dtype, (Bar(PLAIN, 3), Bar(PLAIN, 10, "QR"))) for dtype in (torch.float32, torch.float64)),
    all_geodesics(200, 2048, 8),
    all_chordals(),
    *(geodesic_gradient(dtype) for dtype in (torch.float32, torch.float64)),
)
