"""Dense products of layers in torch operations."""

from __future__ import annotations

from torch import Tensor

from .factor import result_dtype, without_autocast


@without_autocast
def affine_product(A: Tensor, B: Tensor, E: Tensor | None, scale: float, shift: float, relu: bool) -> tuple[Tensor]:
    """scale A B^T + E + shift, and the positive part of that with relu."""
    product = A.to(result_dtype(A)) @ B.mT
    if scale != 1:
        product = product * scale
    if E is not None:
        product = product + E
    if shift != 0:
        product = product + shift
    return (product.relu() if relu else product,)
