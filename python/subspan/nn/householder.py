"""Layers from products of Householder reflectors: a linear layer of low rank with orthonormal factors."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import linear

from .. import _check
from ..ops.householder import householder_product, householder_vectors


def projected(x: Tensor, U_vectors: Tensor, scales: Tensor, V_vectors: Tensor, bias: Tensor | None) -> Tensor:
    """x V diag(s) U^T + b, of rows x."""
    U, V = householder_product(U_vectors), householder_product(V_vectors)
    return linear(linear(x, V.mT.to(scales.dtype)), (U * scales).to(scales.dtype), bias)


class HouseholderLinear(torch.nn.Module):
    r"""Linear layer of a given rank with orthonormal factors: Householder Projector.

    .. math:: y = U \operatorname{diag}(s)\, V^\top x + b

    U and V are the first columns of products of `rank` Householder reflectors each, of any vectors: orthonormal to
    rounding whatever an optimiser does to them. Neither a square matrix nor the weight is formed.

    Args:
        in_features, out_features: of the layer, in any order of size.
        rank: r, at most both.
        bias: with a bias.
        device, dtype: of the parameters ``U_vectors`` (out_features, r), ``V_vectors`` (in_features, r), ``scales``
            (r) and ``bias`` (out_features).

    Raises:
        TypeError, ValueError: a size is not a positive integer, or rank exceeds one of the others.

    Cost:
        4 (in + out) r^2 flops for the factors and 2 (in + out) r for every row of x.

    Source:
        Song, Zhang, Sebe, Wang 2023, Householder Projector for Unsupervised Latent Semantics Discovery; the
        ``EqualLinear`` of HouseholderGAN's ``model_ortho.py``, whose chains have as many reflectors as features and
        whose initial weight is not the decomposition of the one it is given. Any r orthonormal vectors are the columns
        of a product of r reflectors, so that nothing is lost by having no more.

    >>> import torch
    >>> from subspan.nn import HouseholderLinear
    >>> layer = HouseholderLinear(64, 16, rank=4)
    >>> y = layer(torch.ones(3, 64))
    >>> print(tuple(y.shape), int(torch.linalg.matrix_rank(layer.weight)))
    (3, 16) 4
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op = "HouseholderLinear"
        self.in_features, self.out_features, self.rank = (
            _check.count(op, name, size)
            for name, size in (("in_features", in_features), ("out_features", out_features), ("rank", rank))
        )
        if self.rank > min(self.in_features, self.out_features):
            least = min(self.in_features, self.out_features)
            raise ValueError(f"{op}: rank: expected at most {least}, the fewer of both features, got {self.rank}")
        _check.flag(op, "bias", bias)
        self.U_vectors = torch.nn.Parameter(torch.empty(self.out_features, self.rank, device=device, dtype=dtype))
        self.V_vectors = torch.nn.Parameter(torch.empty(self.in_features, self.rank, device=device, dtype=dtype))
        self.scales = torch.nn.Parameter(torch.empty(self.rank, device=device, dtype=dtype))
        own = torch.nn.Parameter(torch.empty(self.out_features, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", own)
        self.reset_parameters()

    bias: Tensor | None

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Reflectors of normal numbers, scales of 1, and the bias of ``torch.nn.Linear``."""
        torch.nn.init.normal_(self.U_vectors)
        torch.nn.init.normal_(self.V_vectors)
        torch.nn.init.ones_(self.scales)
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            torch.nn.init.uniform_(self.bias, -bound, bound)

    @classmethod
    def from_weight(cls, weight: Tensor, rank: int, bias: Tensor | None = None) -> HouseholderLinear:
        """The layer whose weight is the best approximation of a weight (out, in) by this rank: its truncated singular
        value decomposition, scales in descending order. With the type and device of the weight."""
        op = "HouseholderLinear.from_weight"
        _check.matrix(op, "weight", weight)
        if not _check.is_torch(weight) or weight.ndim != 2:
            raise ValueError(f"{op}: weight: expected a tensor (out, in), got shape {tuple(weight.shape)}")
        layer = cls(weight.shape[1], weight.shape[0], rank, bias is not None, device=weight.device, dtype=weight.dtype)
        if bias is not None:
            _check.same_kind(op, "bias", bias, "weight", weight)
            if tuple(bias.shape) != (layer.out_features,):
                raise ValueError(f"{op}: bias: expected shape ({layer.out_features},), got shape {tuple(bias.shape)}")
        with torch.no_grad():
            U, scales, Vh = torch.linalg.svd(weight.double(), full_matrices=False)
            layer.U_vectors.copy_(householder_vectors(U[:, : layer.rank]))
            layer.V_vectors.copy_(householder_vectors(Vh[: layer.rank].mT))
            layer.scales.copy_(scales[: layer.rank])
            if bias is not None and layer.bias is not None:
                layer.bias.copy_(bias)
        return layer

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """U (out_features, rank), s (rank) and V (in_features, rank)."""
        return householder_product(self.U_vectors), self.scales, householder_product(self.V_vectors)

    @property
    def weight(self) -> Tensor:
        """U diag(s) V^T (out_features, in_features), of the parameters' type."""
        U, scales, V = self.factors()
        weight: Tensor = (U * scales) @ V.mT
        return weight.to(self.scales.dtype)

    @torch.no_grad()
    def to_linear(self) -> torch.nn.Linear:
        """The same map as a ``torch.nn.Linear``."""
        options = {"device": self.scales.device, "dtype": self.scales.dtype}
        layer = torch.nn.Linear(self.in_features, self.out_features, self.bias is not None, **options)
        layer.weight.copy_(self.weight)
        if self.bias is not None:
            layer.bias.copy_(self.bias)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        r"""(\*batch, in_features) to (\*batch, out_features)."""
        _check.matrix("HouseholderLinear", "x", x, least=1)
        if x.shape[-1] != self.in_features:
            expected = f"(*batch, {self.in_features})"
            raise ValueError(f"HouseholderLinear: x: expected {expected}, got shape {tuple(x.shape)}")
        return projected(x, self.U_vectors, self.scales, self.V_vectors, self.bias)

    def extra_repr(self) -> str:
        text = f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"
        return f"{text}, bias={self.bias is not None}"
