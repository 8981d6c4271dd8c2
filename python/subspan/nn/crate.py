"""The blocks of CRATE, a transformer whose layers are steps of an optimisation of the sparse rate reduction."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import dropout, linear, normalize, scaled_dot_product_attention

from .. import _check
from ..ops.coding_rate import coding_rate
from ..ops.dense import affine_product, ista


def _in_framework(x: Tensor) -> bool:
    """Where products are the framework's: in half precision, under autocast, and off the CPU."""
    return x.dtype not in (torch.float32, torch.float64) or not x.is_cpu or torch.is_autocast_enabled("cpu")


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if _in_framework(x) or x.dtype != weight.dtype:
        return linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    constant = None if bias is None else bias.expand(rows.shape[0], weight.shape[0])
    result: Tensor = affine_product(rows, weight, constant)
    return result.reshape(*x.shape[:-1], weight.shape[0])


class SubspaceAttention(torch.nn.Module):
    r"""Multi-head subspace self-attention (MSSA): attention in which query, key and value are one projection.

    .. math:: \operatorname{softmax}\left(\tfrac{1}{\sqrt{d_h}} W_h W_h^\top\right) W_h, \qquad W_h = X U_h

    for each head h, the heads side by side, then a linear map back to ``dim`` features.

    What differs from the published class: dense products run on the library's own kernel where that is faster (single
    and double precision on the CPU); attention is ``scaled_dot_product_attention``, so that the n x n weights of a head
    need not be stored. Parameters have the published names: its checkpoints load.

    Args:
        dim: features of a token.
        heads: number of subspaces.
        dim_head: dimension of each.
        dropout: probability of dropping an attention weight, and an output, in training.

    Raises:
        TypeError, ValueError: a size is not a positive integer, dropout is not in [0, 1].

    Source:
        Yu et al. 2023, White-Box Transformers via Sparse Rate Reduction, the MSSA block; ``Attention`` in
        ``model/crate.py`` of Ma-Lab-Berkeley/CRATE.

    >>> import torch
    >>> from subspan.nn import SubspaceAttention
    >>> print(tuple(SubspaceAttention(dim=32, heads=4, dim_head=8)(torch.ones(2, 5, 32)).shape))
    (2, 5, 32)
    """

    def __init__(self, dim: int, heads: int = 8, dim_head: int = 64, dropout: float = 0.0) -> None:
        super().__init__()
        op = "SubspaceAttention"
        dim, self.heads, dim_head = (
            _check.count(op, name, size) for name, size in (("dim", dim), ("heads", heads), ("dim_head", dim_head))
        )
        self.dropout = _probability(op, dropout)
        self.qkv = torch.nn.Linear(dim, self.heads * dim_head, bias=False)
        # One head as wide as a token needs no map back; the published class has none then.
        self.to_out = (
            torch.nn.Identity()
            if self.heads == 1 and dim_head == dim
            else torch.nn.Sequential(torch.nn.Linear(self.heads * dim_head, dim), torch.nn.Dropout(self.dropout))
        )

    def forward(self, x: Tensor) -> Tensor:
        r"""(\*batch, n, dim) to the same shape."""
        projected = self.projections(x)
        drop = self.dropout if self.training else 0.0
        mixed = scaled_dot_product_attention(projected, projected, projected, dropout_p=drop)
        mixed = mixed.transpose(-2, -3).flatten(-2)
        if isinstance(self.to_out, torch.nn.Identity):
            return mixed
        out = cast(torch.nn.Linear, self.to_out[0])
        return dropout(_linear(mixed, out.weight, out.bias), self.dropout, self.training)

    def projections(self, x: Tensor) -> Tensor:
        r"""The tokens in each subspace, (\*batch, heads, n, dim_head)."""
        projected = _linear(x, self.qkv.weight, None)
        return projected.reshape(*projected.shape[:-1], self.heads, -1).transpose(-2, -3)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, dropout={self.dropout:g}"


class ISTA(torch.nn.Module):
    r"""Sparse coding of tokens in a learned dictionary: one proximal gradient step, :func:`subspan.ista`.

    .. math:: \operatorname{relu}\left(x + \eta\,(x - x D^\top) D - \eta\lambda\right)

    What differs from the published class, ``FeedForward``: two dense products instead of three, by the identity
    x D - (x D^T) D = (x - x D^T) D. The parameter ``weight`` has the published name and orientation.

    Args:
        dim: features of a token.
        step_size: eta.
        lambd: lambda; 0.1 in the classifier, 0.5 in the encoder of CRATE's autoencoder.

    Raises:
        TypeError, ValueError: dim is not a positive integer, a parameter is not a finite number.

    Source:
        Yu et al. 2023, White-Box Transformers via Sparse Rate Reduction, the ISTA block; ``FeedForward`` in
        ``model/crate.py`` of Ma-Lab-Berkeley/CRATE.

    >>> import torch
    >>> from subspan.nn import ISTA
    >>> print(ISTA(dim=16)(torch.ones(2, 5, 16)).min() >= 0)
    tensor(True)
    """

    def __init__(self, dim: int, step_size: float = 0.1, lambd: float = 0.1) -> None:
        super().__init__()
        dim = _check.count("ISTA", "dim", dim)
        self.weight = torch.nn.Parameter(torch.empty(dim, dim))
        torch.nn.init.kaiming_uniform_(self.weight)
        self.step_size = _check.number("ISTA", "step_size", step_size)
        self.lambd = _check.number("ISTA", "lambd", lambd)

    def forward(self, x: Tensor) -> Tensor:
        r"""(\*batch, n, dim) to the same shape, nonnegative."""
        if _in_framework(x) or x.dtype != self.weight.dtype:
            residual = x - linear(x, self.weight)
            return torch.relu(x + self.step_size * linear(residual, self.weight.t()) - self.step_size * self.lambd)
        code: Tensor = ista(x, self.weight, self.step_size, self.lambd)
        return code

    def extra_repr(self) -> str:
        return f"dim={len(self.weight)}, step_size={self.step_size:g}, lambd={self.lambd:g}"


class _PreNorm(torch.nn.Module):
    """A function of normalised tokens, with the names of the published class."""

    def __init__(self, dim: int, fn: torch.nn.Module) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fn(self.norm(x))
        return result


class CRATEBlock(torch.nn.ModuleList):
    r"""One layer of CRATE: compression of the tokens against learned subspaces, then sparsification.

    .. math:: X' = X + \operatorname{MSSA}(\operatorname{LN}(X)), \qquad \operatorname{ISTA}(\operatorname{LN}(X'))

    Its state is that of one entry of ``transformer.layers`` in the published model: strip that prefix and load.

    Args:
        dim, heads, dim_head, dropout: see :class:`SubspaceAttention`.
        step_size, lambd: see :class:`ISTA`.

    Raises:
        TypeError, ValueError: as those.

    Source:
        Yu et al. 2023, White-Box Transformers via Sparse Rate Reduction; ``Transformer`` in ``model/crate.py`` of
        Ma-Lab-Berkeley/CRATE.

    >>> import torch
    >>> from subspan.nn import CRATEBlock
    >>> block = CRATEBlock(dim=32, heads=4, dim_head=8)
    >>> print(tuple(block(torch.ones(2, 5, 32)).shape), *list(block.state_dict())[:3])
    (2, 5, 32) 0.norm.weight 0.norm.bias 0.fn.qkv.weight
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        dim_head: int = 64,
        dropout: float = 0.0,
        step_size: float = 0.1,
        lambd: float = 0.1,
    ) -> None:
        attention = SubspaceAttention(dim, heads, dim_head, dropout)
        super().__init__([_PreNorm(dim, attention), _PreNorm(dim, ISTA(dim, step_size, lambd))])

    @property
    def compress(self) -> _PreNorm:
        return cast(_PreNorm, self[0])

    @property
    def attention(self) -> SubspaceAttention:
        return cast(SubspaceAttention, self.compress.fn)

    def forward(self, x: Tensor) -> Tensor:
        r"""(\*batch, n, dim) to the same shape."""
        result: Tensor = self[1](x + self[0](x))
        return result

    @torch.no_grad()
    def layer_coding_rate(self, x: Tensor, eps2: float = 0.01) -> Tensor:
        """:func:`layer_coding_rate` of the tokens' projections in this block, for monitoring; carries no gradient."""
        return layer_coding_rate(self.attention.projections(self.compress.norm(x)), eps2)


def layer_coding_rate(projections: Tensor, eps2: float = 0.01) -> Tensor:
    r"""How spread out tokens are within the subspaces of a layer: what CRATE's layers are meant to lower.

    .. math:: \sum_h \tfrac12 \log\det\left(I + \frac{d_h}{n\,\varepsilon^2} \hat W_h^\top \hat W_h\right)

    with the rows of W_h, the tokens projected on subspace h, normalised to length 1.

    Args:
        projections: (\*batch, heads, n, dim_head), as :meth:`SubspaceAttention.projections` gives them.
        eps2: epsilon **squared**; number > 0.

    Returns:
        (\*batch), in nats. The published monitor prints mean and standard deviation over the batch. A token of length
        0 counts as 0, where that one gives NaN.

    Raises:
        TypeError, ValueError: wrong array, eps2 not a finite number > 0.

    Cost:
        heads * min(n, dim_head)^2 (max(n, dim_head) + min / 3) flops per item; the published monitor factors the n x n
        side.

    Source:
        ``CodingRate`` in ``vis_utils/coding_rate.py`` of Ma-Lab-Berkeley/CRATE.

    >>> import torch
    >>> from subspan.nn import layer_coding_rate
    >>> print(f"{layer_coding_rate(torch.eye(4).expand(3, 4, 4), eps2=1.0):.4f}")  # 3 heads, 4 orthogonal tokens
    4.1589
    """
    _check.matrix("layer_coding_rate", "projections", projections)
    if projections.ndim < 3:
        raise ValueError(
            f"layer_coding_rate: projections: expected (*batch, heads, n, dim_head), got {tuple(projections.shape)}"
        )
    rates: Tensor = coding_rate(normalize(projections, dim=-1), eps2).sum(-1)
    return rates


def _probability(op: str, value: float) -> float:
    probability = _check.number(op, "dropout", value)
    if not 0 <= probability <= 1:
        raise ValueError(f"{op}: dropout: expected a number in [0, 1], got {value}")
    return probability
