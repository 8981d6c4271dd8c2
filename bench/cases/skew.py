"""Orthogonal matrices of skew ones at the sizes of OFT's blocks, of layers and of small rotations, and retractions of
the Stiefel manifold at the sizes of GCR's class heads.

Floors. Cayley: one inverse and, for the gradient, two products; A, Q, the upstream gradient and that of A pass by. The
exponential: three products and one for its inverse, and as much for every one of two factors of its derivative.
Retractions: three Gram matrices and the combination; X and V are read and the result written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import subspan
from baselines import skew as baseline
from harness.case import PEER, PLAIN, SUBSPAN, Bar, Case, Variant

from .coding_rate import FLOAT
from .grassmann import _bases, _direction


def orthogonality(Q: Any) -> str:
    """||Q^T Q - I||, the largest of all items."""
    q = Q.detach().double()
    gram = q.mT @ q
    difference = torch.linalg.matrix_norm(gram - torch.eye(gram.shape[-1], dtype=q.dtype, device=q.device))
    return f"orthogonal to {difference.max().item():.1e}"


def _matrices(seed: int, device: str, items: int, n: int) -> tuple[Tensor, ...]:
    """Whose skew parts have a spectral norm around 0.3, as those of trained adapters."""
    A = torch.randn(items, n, n, generator=torch.Generator().manual_seed(seed))
    return ((0.2 * n**-0.5 * A).to(device),)


def _of_skew(op: str, items: int, n: int, variants: tuple[Variant, ...], flops: float, bars: tuple[Bar, ...]) -> Case:
    return Case(
        name=f"{op} {items}×({n}×{n})",
        op=op,
        make_inputs=lambda seed, device: _matrices(seed, device, items, n),
        variants=variants,
        reference=baseline.cayley_by_solve if op == "cayley" else baseline.matrix_exp,
        flops=flops * items * n**3,
        bytes=4 * FLOAT * items * n**2,
        bars=bars,
        quality=orthogonality,
        source="OFT",
    )


def cayley(items: int, n: int, bars: tuple[Bar, ...] = ()) -> Case:
    variants = (
        Variant(PEER, "PEFT, 5 terms", baseline.neumann, note="inexact"),
        Variant(PLAIN, "solve", baseline.cayley_by_solve),
        Variant(PLAIN, "inverse", baseline.cayley_by_inverse),
        Variant(SUBSPAN, "subspan", subspan.cayley),
    )
    return _of_skew("cayley", items, n, variants, 6, bars)


def skew_expm(items: int, n: int, bars: tuple[Bar, ...] = ()) -> Case:
    variants = (
        Variant(PLAIN, "matrix_exp", baseline.matrix_exp),
        Variant(PLAIN, "eigenvectors", baseline.exp_by_eigenvectors),
        Variant(SUBSPAN, "subspan", subspan.skew_expm),
    )
    return _of_skew("skew_expm", items, n, variants, 3 * 8, bars)


def retract(method: str, backward: bool, frames: int, n: int, k: int, bars: tuple[Bar, ...] = ()) -> Case:
    def inputs(seed: int, device: str) -> tuple[Tensor, ...]:
        X, D = _bases(seed, device, frames, n, k), _direction(seed + 1, device, frames, n, k)
        product = X.mT @ D
        return X, D - X @ (product + product.mT) / 2

    # Forms of the geodesic that hold for orthonormal X alone have other gradients normal to the manifold.
    of_any_X: dict[str, Callable[..., Tensor]] = {
        "cayley": baseline.retract_cayley,
        "exp": baseline.retract_exp_by_generator,
    }
    plain = {"2k × 2k": of_any_X[method]}
    peers: tuple[Variant, ...] = ()
    if method == "cayley":  # of one frame: the others take as long
        peers = (Variant(PEER, "geoopt, n × n", lambda X, V: baseline.retract_whole(X[:1], V[:1]), scale=frames),)
    elif not backward:
        peers = (Variant(PEER, "QR", baseline.exp_by_qr),)
        plain["2k × 2k of orthonormal X"] = baseline.retract_exp
    return Case(
        name=f"retract {method} {frames}×({n}×{k})",
        op="retract",
        make_inputs=inputs,
        variants=(
            *peers,
            *(Variant(PLAIN, label, function) for label, function in plain.items()),
            Variant(SUBSPAN, "subspan", partial(subspan.retract, method=method)),
        ),
        reference=of_any_X[method],
        flops=(24 if backward else 8) * frames * n * k**2,
        bytes=(6 if backward else 3) * FLOAT * frames * n * k,
        bars=bars,
        backward=backward,
        quality=orthogonality,
        source="GCR",
    )


CASES = (
    cayley(2867, 32, (Bar(PLAIN, 10),)),
    cayley(50000, 3),
    cayley(20000, 8),
    cayley(100, 128),
    cayley(1, 512),
    skew_expm(2867, 32),
    skew_expm(20000, 8),
    skew_expm(1, 512),
    retract("cayley", False, 100, 2048, 8),
    retract("cayley", True, 100, 2048, 8),
    retract("exp", False, 100, 2048, 8),
    retract("exp", True, 100, 2048, 8),
)
