"""Householder reflection adaptation: a frozen linear layer behind a trainable chain of reflections."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _check
from ..composite.factor import result_dtype, without_autocast
from ..ops.householder import householder_apply


class HouseholderAdapter(torch.nn.Module):
    r"""A frozen linear layer whose weight is multiplied by a chain of reflections: HRA.

    .. math:: y = W H_1 H_2 \cdots H_r\, x + b, \qquad H_j = I - 2\, \frac{u_j u_j^\top}{\lVert u_j \rVert^2}

    The chain is applied to x, in the compact WY form; no matrix of the size of W is formed. Equal vectors follow each
    other at first, so that the chain is the identity. What differs from PEFT's layer, whose ``hra_u`` is ``vectors``: a
    vector of zeros reflects nothing instead of making everything NaN, and r is even.

    Args:
        layer: the ``torch.nn.Linear`` to adapt; kept as ``base_layer``, its parameters no longer ask for gradients.
        r: number of reflections, even. ``vectors`` is (in_features, r).
        device, dtype: of the vectors; those of the layer's weight unless given.

    Raises:
        TypeError, ValueError: no ``torch.nn.Linear``, r no positive even integer; when called, features of another
            number; :meth:`merge` of a merged adapter, or :meth:`unmerge` of one that is not.

    Cost:
        4 in_features r flops for every row of x beside the layer itself. PEFT forms the chain as a matrix, by r updates
        of rank 1, and multiplies W by it, 2 in_features^2 out_features.

    Source:
        Yuan, Liu, Xu 2024, Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder Reflection
        Adaptation; PEFT's ``tuners/hra/layer.py``.

    >>> import torch
    >>> from subspan.nn import HouseholderAdapter
    >>> layer = torch.nn.Linear(16, 4)
    >>> adapter, x = HouseholderAdapter(layer, r=8), torch.ones(3, 16)
    >>> print(bool((adapter(x) - layer(x)).abs().max() < 1e-5), tuple(adapter.vectors.shape))
    True (16, 8)
    """

    def __init__(
        self,
        layer: torch.nn.Linear,
        r: int = 8,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op = "HouseholderAdapter"
        if not isinstance(layer, torch.nn.Linear):
            raise TypeError(f"{op}: layer: expected a torch.nn.Linear, got {type(layer).__name__}")
        self.r = _check.count(op, "r", r)
        if self.r % 2:
            raise ValueError(f"{op}: r: expected an even number, of which pairs cancel at first, got {self.r}")
        self.base_layer, self.in_features, self.merged = layer, layer.in_features, False
        layer.requires_grad_(False)
        vectors = layer.weight.new_empty((self.in_features, self.r), device=device, dtype=dtype)
        self.vectors = torch.nn.Parameter(vectors)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Pairs of equal vectors, uniform as PEFT has them."""
        half = torch.empty_like(self.vectors[:, ::2])
        torch.nn.init.kaiming_uniform_(half, a=math.sqrt(5))
        self.vectors.copy_(half.repeat_interleave(2, dim=1))

    def forward(self, x: Tensor) -> Tensor:
        r"""(\*batch, in_features) to (\*batch, out_features)."""
        _check.matrix("HouseholderAdapter", "x", x, least=1)
        if x.shape[-1] != self.in_features:
            expected = f"(*batch, {self.in_features})"
            raise ValueError(f"HouseholderAdapter: x: expected {expected}, got shape {tuple(x.shape)}")
        if not self.merged:
            x = self._turned(x, True)
        adapted: Tensor = self.base_layer(x)
        return adapted

    def _turned(self, rows: Tensor, transpose: bool) -> Tensor:
        """Rows times Q^T, or Q."""
        flat = rows.reshape(-1, self.in_features)
        turned: Tensor = householder_apply(self.vectors, flat, side="right", transpose=transpose)
        return turned.reshape(rows.shape).to(rows.dtype)

    def regularizer(self) -> Tensor:
        """The squared distance of the normalised vectors from orthonormal ones, ‖I - U^T U‖², which HRA adds to the
        loss with a weight of its own. Every pair of equal vectors adds 2 to it."""
        return _distance_from_orthonormal(self.vectors)

    @torch.no_grad()
    def merge(self) -> None:
        """Multiplies the layer's weight by the chain, which is then applied no more."""
        if self.merged:
            raise ValueError("HouseholderAdapter: merge: expected an adapter that is not merged yet")
        self._multiply_weight(False)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Takes the chain out of the layer's weight again, to rounding in the weight's type."""
        if not self.merged:
            raise ValueError("HouseholderAdapter: unmerge: expected an adapter that is merged")
        self._multiply_weight(True)

    def _multiply_weight(self, transpose: bool) -> None:
        weight = self.base_layer.weight
        wide = torch.promote_types(result_dtype(weight), result_dtype(self.vectors))
        turned = householder_apply(self.vectors.to(wide), weight.to(wide), side="right", transpose=transpose)
        weight.copy_(turned)
        self.merged = not transpose

    def extra_repr(self) -> str:
        return f"r={self.r}, merged={self.merged}"


@without_autocast
def _distance_from_orthonormal(vectors: Tensor) -> Tensor:
    wide = torch.nn.functional.normalize(vectors.to(result_dtype(vectors)), dim=0)
    return (torch.eye(wide.shape[1], dtype=wide.dtype, device=wide.device) - wide.mT @ wide).square().sum()
