"""Hypercomplex attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import _check
from ..composite.factor import without_autocast
from ..ops.phm import phm_weight
from .phm import PHMLinear
from .phm_parameters import check_sizes


class PHMMultiheadAttention(torch.nn.Module):
    r"""Multi-head attention whose four projections are sums of Kronecker products, with 1/n of the parameters.

    .. math:: y = \operatorname{concat}_h \Big(\operatorname{softmax}\big(Q_h K_h^\top / \sqrt{d}\big) V_h\Big) W_o^\top
        + b_o, \qquad Q = q\, W_q^\top + b_q, \ldots, \quad W = \sum_{i=1}^n A_i \otimes S_i

    The interface and results are those of ``torch.nn.MultiheadAttention``, whose function runs on the composed weights.
    The projections are the modules ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``, each a :class:`PHMLinear`.

    Args:
        embed_dim: features of the query and of y, a multiple of n and of num_heads.
        num_heads: number of heads.
        n: dimension of the algebra.
        dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first: as of ``torch.nn.MultiheadAttention``;
            kdim and vdim are multiples of n.
        rule: "learned", or the name of an :func:`subspan.algebra`.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: an unknown rule, sizes that n or num_heads do not divide.

    Cost:
        That of the attention, and 2 n flops for every entry of the four weights.

    Source:
        Zhang et al. 2021, Beyond Fully-Connected Layers with Quaternions, PHM-Transformer, section 4.

    >>> import torch, subspan
    >>> layer, x = subspan.nn.PHMMultiheadAttention(16, 2, n=4), torch.randn(5, 3, 16)
    >>> y, weights = layer(x, x, x)
    >>> print(tuple(y.shape), tuple(weights.shape), sum(p.numel() for p in layer.parameters()))
    (5, 3, 16) (3, 5, 5) 576
    """

    bias_k: Tensor | None
    bias_v: Tensor | None

    # torch's encoder layers ask for these, to learn that their own kernel, of packed projections, does not apply.
    _qkv_same_embed_dim = False
    in_proj_bias = None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        n: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        *,
        rule: str = "learned",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        self.kdim, self.vdim = embed_dim if kdim is None else kdim, embed_dim if vdim is None else vdim
        check_sizes(op, n, embed_dim=embed_dim, kdim=self.kdim, vdim=self.vdim)
        if embed_dim % _check.count(op, "num_heads", num_heads):
            raise ValueError(f"{op}: embed_dim: expected a multiple of num_heads = {num_heads}, got {embed_dim}")
        if not 0 <= _check.number(op, "dropout", dropout) <= 1:
            raise ValueError(f"{op}: dropout: expected a number in [0, 1], got {dropout}")
        self.embed_dim, self.num_heads, self.dropout = embed_dim, num_heads, dropout
        self.add_zero_attn, self.batch_first = add_zero_attn, batch_first
        like: dict[str, Any] = {"device": device, "dtype": dtype}
        self.q_proj = PHMLinear(embed_dim, embed_dim, n, bias, rule=rule, **like)
        self.k_proj = PHMLinear(self.kdim, embed_dim, n, bias, rule=rule, **like)
        self.v_proj = PHMLinear(self.vdim, embed_dim, n, bias, rule=rule, **like)
        self.out_proj = PHMLinear(embed_dim, embed_dim, n, bias, rule=rule, **like)
        for name in ("bias_k", "bias_v"):
            added = torch.nn.Parameter(torch.empty(1, 1, embed_dim, **like)) if add_bias_kv else None
            self.register_parameter(name, added)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Projections of the variance of Xavier's, the output's as a linear layer's, and no bias, as there."""
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            layer.reset_parameters()
            if layer.S.is_meta:
                return
            if layer is not self.out_proj:
                layer.S.mul_(math.sqrt(6 * layer.in_features / (layer.in_features + layer.out_features)))
            if layer.bias is not None:
                layer.bias.zero_()
        for added in (self.bias_k, self.bias_v):
            if added is not None:
                torch.nn.init.xavier_normal_(added)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As of torch.nn.MultiheadAttention: the attended values, and the weights or None."""
        for name, array, width in (
            ("query", query, self.embed_dim),
            ("key", key, self.kdim),
            ("value", value, self.vdim),
        ):
            _check.matrix(type(self).__name__, name, array, 2)
            if not _check.is_torch(array):
                raise TypeError(f"{type(self).__name__}: {name}: expected a tensor, got {type(array).__name__}")
            if array.ndim > 3 or array.shape[-1] != width:
                expected = f"2 or 3 dimensions, the last of {width}"
                raise ValueError(f"{type(self).__name__}: {name}: expected {expected}, got shape {tuple(array.shape)}")
        rest = (key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
        result: tuple[Tensor, Tensor | None] = _attend(query, self, key, value, *rest)
        return result

    @torch.no_grad()
    def to_dense(self) -> torch.nn.MultiheadAttention:
        """torch's layer of the same weights."""
        some = self.q_proj.S
        dense = torch.nn.MultiheadAttention(
            self.embed_dim,
            self.num_heads,
            self.dropout,
            self.q_proj.bias is not None,
            self.bias_k is not None,
            self.add_zero_attn,
            self.kdim,
            self.vdim,
            self.batch_first,
            device=some.device,
            dtype=some.dtype,
        ).train(self.training)
        inner = (self.q_proj, self.k_proj, self.v_proj)
        weights = [phm_weight(p.A, p.S) for p in inner]
        if dense.in_proj_weight is not None:
            dense.in_proj_weight.copy_(torch.cat(weights))
        else:
            for name, weight in zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), weights, strict=True):
                getattr(dense, name).copy_(weight)
        dense.out_proj.weight.copy_(phm_weight(self.out_proj.A, self.out_proj.S))
        biases = [p.bias for p in inner if p.bias is not None]
        pairs = ((dense.bias_k, self.bias_k), (dense.bias_v, self.bias_v), (dense.out_proj.bias, self.out_proj.bias))
        for to, value in ((dense.in_proj_bias, torch.cat(biases) if biases else None), *pairs):
            if to is not None and value is not None:
                to.copy_(value)
        return dense

    def extra_repr(self) -> str:
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, batch_first={self.batch_first}"


@without_autocast
def _attend(
    query: Tensor, layer: PHMMultiheadAttention, key: Tensor, value: Tensor, mask: Any, *rest: Any
) -> tuple[Tensor, Tensor | None]:
    need_weights, attn_mask, average, is_causal = rest
    q, k, v, out = (phm_weight(p.A, p.S) for p in (layer.q_proj, layer.k_proj, layer.v_proj, layer.out_proj))
    query, key, value = (t.to(q.dtype) for t in (query, key, value))
    mask, attn_mask = (m.to(q.dtype) if m is not None and m.is_floating_point() else m for m in (mask, attn_mask))
    batched = query.ndim == 3
    if layer.batch_first and batched:
        query, key, value = (t.transpose(0, 1) for t in (query, key, value))
    biases = [p.bias for p in (layer.q_proj, layer.k_proj, layer.v_proj)]
    y, weights = torch.nn.functional.multi_head_attention_forward(
        query,
        key,
        value,
        layer.embed_dim,
        layer.num_heads,
        None,
        None if biases[0] is None else torch.cat([b.to(q.dtype) for b in biases if b is not None]),
        None if layer.bias_k is None else layer.bias_k.to(q.dtype),
        None if layer.bias_v is None else layer.bias_v.to(q.dtype),
        layer.add_zero_attn,
        layer.dropout,
        out,
        None if layer.out_proj.bias is None else layer.out_proj.bias.to(q.dtype),
        training=layer.training,
        key_padding_mask=mask,
        need_weights=need_weights,
        attn_mask=attn_mask,
        use_separate_proj_weight=True,
        q_proj_weight=q,
        k_proj_weight=k,
        v_proj_weight=v,
        average_attn_weights=average,
        is_causal=is_causal,
    )
    return (y.transpose(0, 1) if layer.batch_first and batched else y), weights
