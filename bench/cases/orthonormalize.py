"""Orthonormal bases by QR and by the polar factorisation: tall frames, layers, small and tiny matrices.

Floors, with n rows and k columns. QR: the Gram matrix, which is symmetric, and a product with a triangle, n k^2 flops
each; its gradient a product of two frames and the products of each with a k x k matrix, one of them triangular, 5 n
k^2. Polar: n k^2 and 2 n k^2, its gradient 6 n k^2. What is done to k x k matrices is left out. A is read and Q
written; the gradient reads Q and its upstream gradient.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import subspan
from baselines import orthonormalize as baseline
from harness.case import PLAIN, SUBSPAN, YARDSTICK, Bar, Case, Variant

from .coding_rate import FLOAT

POLAR = partial(subspan.orthonormalize, method="polar")


def _frames(kept: list[Tensor], shape: tuple[int, ...], seed: int, device: str) -> tuple[Tensor]:
    kept[:] = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)]
    return (kept[0],)


def _quality(kept: list[Tensor], Q: Tensor) -> str:
    """Orthogonality, and what A loses by projection on the span of Q: the residual of A = Q R for the best R."""
    A, Q = kept[0].detach().double(), Q.double()
    product = Q.mT @ Q
    orthogonality = (product - torch.eye(Q.shape[-1], dtype=product.dtype, device=product.device)).abs().max()
    residual = (A - Q @ (Q.mT @ A)).abs().max() / A.abs().max()
    return f"max|QᵀQ-I| {orthogonality:.1e}, max|A-QQᵀA|/max|A| {residual:.1e}"


def case(
    method: str,
    shape: tuple[int, ...],
    ratio: float | None = None,
    backward: bool = False,
    source: str = "",
) -> Case:
    kept: list[Tensor] = []
    n, k = shape[-2:]
    items = torch.Size(shape[:-2]).numel()
    if method == "qr":
        work, variants = 2 + 5 * backward, (("QR, signs fixed", baseline.qr), ("CholeskyQR2", baseline.cholesky_qr2))
        extra: tuple[Variant, ...] = (Variant(YARDSTICK, "torch.linalg.qr", lambda A: torch.linalg.qr(A).Q),)
        function: Callable[..., Tensor] = subspan.orthonormalize
    else:
        work, variants = 3 + 6 * backward, (("SVD", baseline.polar_by_svd), ("Gram + eigh", baseline.polar_by_gram))
        extra, function = (), POLAR
    return Case(
        name=f"orthonormalize {method} {'×'.join(map(str, shape[:-2]))}{'×' if shape[:-2] else ''}({n}×{k})",
        op="orthonormalize",
        make_inputs=partial(_frames, kept, shape),
        variants=(
            *(Variant(PLAIN, label, of) for label, of in variants),
            *extra,
            Variant(SUBSPAN, "subspan", function),
        ),
        reference=baseline.qr if method == "qr" else baseline.polar_by_svd,
        flops=work * items * n * k**2,
        bytes=(5 if backward else 2) * FLOAT * items * n * k,
        bars=(Bar(PLAIN, ratio),) if ratio else (),
        backward=backward,
        quality=partial(_quality, kept),
        source=source,
    )


def _backward_seconds(function: Callable[[Tensor], Tensor], A: Tensor) -> float:
    with torch.enable_grad():
        Q = function(A.detach().requires_grad_())
    upstream = torch.ones_like(Q)
    start = time.perf_counter()
    Q.backward(upstream)
    return time.perf_counter() - start


def polar_backward(shape: tuple[int, int, int], ratio: float) -> Case:
    items, n, k = shape
    variants = (
        (PLAIN, "SVD", baseline.polar_by_svd),
        (YARDSTICK, "Gram + eigh", baseline.polar_by_gram),
        (SUBSPAN, "subspan", POLAR),
    )
    return Case(
        name=f"orthonormalize polar {items}×({n}×{k}), backward alone",
        op="orthonormalize",
        make_inputs=partial(_frames, [], shape),
        variants=tuple(
            Variant(kind, label, partial(_backward_seconds, function), self_timed=True)
            for kind, label, function in variants
        ),
        reference=None,
        flops=6 * items * n * k**2,
        bytes=3 * FLOAT * items * n * k,
        bars=(Bar(PLAIN, ratio),),
        backward=False,
    )


CASES = (
    case("qr", (100, 2048, 8), 5, source="GCR"),
    case("qr", (64, 512, 64), 5),
    case("qr", (2000, 64, 8), 8),
    case("qr", (27000, 3, 3), 40, source="pytorch #143281, a tenth"),
    case("qr", (4096, 128), source="GaLore, Dion"),
    case("qr", (64, 8), source="one small matrix"),
    case("qr", (100, 2048, 8), backward=True, source="GCR"),
    case("qr", (64, 512, 64), backward=True),
    case("polar", (64, 512, 64), 3),
    case("polar", (1000, 48, 8), 6),
    case("polar", (64, 512, 64), backward=True),
    polar_backward((64, 512, 64), 8),
    polar_backward((1000, 48, 8), 8),
)
