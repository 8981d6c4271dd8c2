"""The two layers of a sparse autoencoder: features to the k largest of many units, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _check
from ..ops.sparse_products import WEIGHT_GRADS, sparse_decode
from ..ops.sparse_topk import RANKS, linear_topk
from ..sparse_rows import SparseRows


class TopKEncoder(torch.nn.Module):
    r"""The k largest of many units, which are never all stored: :func:`subspan.linear_topk`.

    .. math:: S = \text{top-}k\big((x - c)\, W^\top + b\big)

    with ``weight`` W (columns, features), ``bias`` b (columns) and ``pre_bias`` c (features).

    Args:
        features: of x.
        columns: units, of which k stay.
        k: at most columns.
        bias, pre_bias: whether there is a b and a c; both start at 0.
        by, relu: see :func:`subspan.topk_rows`.
        weight_grad: "dense", "rows" or "accumulate", see :func:`subspan.sparse_decode`.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: wrong parameters.

    Source:
        Gao et al. 2024, Scaling and evaluating sparse autoencoders. Replaces ``torch.nn.Linear``, ``torch.topk`` and
        ``scatter_`` of OpenAI's, EleutherAI's and SAELens' encoders and of CSR.

    >>> import torch
    >>> from subspan.nn import TopKEncoder
    >>> codes = TopKEncoder(16, 512, k=4)(torch.ones(3, 16))
    >>> print(codes.shape, tuple(codes.values.shape))
    (3, 512) (3, 4)
    """

    bias: Tensor | None
    pre_bias: Tensor | None

    def __init__(
        self,
        features: int,
        columns: int,
        k: int,
        *,
        bias: bool = True,
        pre_bias: bool = True,
        by: str = "value",
        relu: bool = True,
        weight_grad: str = "dense",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        self.features, self.columns = _check.count(op, "features", features), _check.count(op, "columns", columns)
        self.k = check_k(op, "k", k, columns)
        _check.choice(op, "by", by, RANKS)
        for name, flag in (("bias", bias), ("pre_bias", pre_bias), ("relu", relu)):
            _check.flag(op, name, flag)
        _check.choice(op, "weight_grad", weight_grad, WEIGHT_GRADS)
        self.by, self.relu, self.weight_grad = by, bool(relu), weight_grad

        def parameter(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.weight = parameter(columns, features)
        self.register_parameter("bias", parameter(columns) if bias else None)
        self.register_parameter("pre_bias", parameter(features) if pre_bias else None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The weight as ``torch.nn.Linear`` has it, no biases."""
        torch.nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        for bias in (self.bias, self.pre_bias):
            if bias is not None:
                bias.zero_()

    def forward(self, x: Tensor, k: int | None = None) -> SparseRows:
        """Codes, largest first, of rows (n, features); of another k if one is given."""
        k = self.k if k is None else check_k(type(self).__name__, "k", k, self.columns)
        return linear_topk(
            self.centred(x), self.weight, self.bias, k, by=self.by, relu=self.relu, weight_grad=self.weight_grad
        )

    def centred(self, x: Tensor) -> Tensor:
        return x if self.pre_bias is None else x - self.pre_bias.to(x.dtype)

    def extra_repr(self) -> str:
        biases = f"bias={self.bias is not None}, pre_bias={self.pre_bias is not None}"
        return f"{self.features}, {self.columns}, k={self.k}, {biases}, by={self.by!r}, relu={self.relu}"


class SparseDecoder(torch.nn.Module):
    r"""Features from sparse codes: :func:`subspan.sparse_decode`.

    .. math:: y = S W + b

    with ``weight`` W (columns, features), whose rows are the atoms, and ``bias`` b (features).

    Args:
        columns: atoms.
        features: of y.
        bias: whether there is a b; it starts at 0.
        weight_grad: "dense", "rows" or "accumulate", see :func:`subspan.sparse_decode`.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: wrong parameters.

    Source:
        Replaces ``torch.nn.EmbeddingBag`` with weights, ``codes.to_dense() @ W`` and the Triton decoders of sparse
        autoencoders.

    >>> import torch, subspan
    >>> decoder = subspan.nn.SparseDecoder(512, 16)
    >>> codes = subspan.topk_rows(torch.ones(3, 512), 4)
    >>> print(tuple(decoder(codes).shape))
    (3, 16)
    """

    bias: Tensor | None

    def __init__(
        self,
        columns: int,
        features: int,
        bias: bool = True,
        *,
        weight_grad: str = "dense",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        self.columns, self.features = _check.count(op, "columns", columns), _check.count(op, "features", features)
        _check.flag(op, "bias", bias)
        _check.choice(op, "weight_grad", weight_grad, WEIGHT_GRADS)
        self.weight_grad = weight_grad
        self.weight = torch.nn.Parameter(torch.empty(columns, features, device=device, dtype=dtype))
        offset = torch.nn.Parameter(torch.empty(features, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", offset)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Atoms of random direction and length 1, no bias."""
        self.weight.normal_()
        self.normalize_()
        if self.bias is not None:
            self.bias.zero_()

    @torch.no_grad()
    def normalize_(self) -> None:
        """Brings the atoms to length 1, as after steps of the optimiser; atoms of zeros stay."""
        length = torch.linalg.vector_norm(self.weight, dim=-1, keepdim=True)
        self.weight.div_(torch.where(length > 0, length, 1.0))

    def forward(self, codes: SparseRows) -> Tensor:
        """(n, features) of n sparse rows."""
        y: Tensor = sparse_decode(codes, self.weight, self.bias, weight_grad=self.weight_grad)
        return y

    def extra_repr(self) -> str:
        return f"{self.columns}, {self.features}, bias={self.bias is not None}, weight_grad={self.weight_grad!r}"


def check_k(op: str, name: str, k: int, columns: int) -> int:
    k = _check.count(op, name, k)
    if k > columns:
        raise ValueError(f"{op}: {name}: expected at most the columns, {columns}, got {k}")
    return k
