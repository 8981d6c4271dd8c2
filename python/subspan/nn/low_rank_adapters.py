"""Adapters of frozen linear layers that are cousins of the hypercomplex ones: LoKr and MoSLoRA."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import _check
from ..ops.phm import phm_linear, phm_weight
from ..ops.phm_rank import phm_linear_lowrank


def _check_layer(op: str, layer: Any, x: Any = None) -> None:
    if not isinstance(layer, torch.nn.Linear):
        raise TypeError(f"{op}: layer: expected a torch.nn.Linear, got {type(layer).__name__}")
    if 0 in layer.weight.shape:
        raise ValueError(f"{op}: layer: expected inputs and outputs, got weight of shape {tuple(layer.weight.shape)}")
    if x is not None and (x.ndim < 1 or x.shape[-1] != layer.in_features):
        raise ValueError(f"{op}: x: expected (*batch, {layer.in_features}), got shape {tuple(x.shape)}")


class _Adapter(torch.nn.Module):
    """A frozen layer beside a trainable update of its weight. A state dict says whether that is merged into it."""

    base_layer: torch.nn.Linear
    merged: bool

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.merged:
            destination[f"{prefix}merged"] = torch.tensor(True)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Whether the update is in the weight comes with the weight. Factors alone are those of a weight without."""
        name, op = f"{prefix}merged", type(self).__name__
        merged = bool(state_dict.get(name, False))
        if f"{prefix}base_layer.weight" in state_dict:
            self.merged = merged
        elif merged:
            error_msgs.append(f"{op}: merged: expected the base_layer.weight that the update was merged into")
        elif self.merged and any(key.startswith(prefix) for key in state_dict):
            error_msgs.append(f"{op}: merged: expected an adapter that is not merged, to load factors without a weight")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if name in unexpected_keys:
            unexpected_keys.remove(name)

    def delta(self) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def merge(self) -> None:
        """Adds the update to the layer's weight; calls then cost no more than the layer."""
        if self.merged:
            raise ValueError(f"{type(self).__name__}: merge: expected an adapter that is not merged yet")
        self.base_layer.weight.add_(self.delta().to(self.base_layer.weight.dtype))
        self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Takes the update out of the layer's weight again, to rounding in the weight's type."""
        if not self.merged:
            raise ValueError(f"{type(self).__name__}: unmerge: expected an adapter that is merged")
        self.base_layer.weight.sub_(self.delta().to(self.base_layer.weight.dtype))
        self.merged = False


class MoSLoRALinear(_Adapter):
    r"""A frozen linear layer and a low-rank update whose subspaces are mixed: MoSLoRA.

    .. math:: y = W x + b + \frac{\alpha}{r}\, B M A x

    The mixer M, r x r, is trained with A and B; LoRA has the identity in its place. B is zero at first, so that y is
    the layer's own.

    Args:
        layer: the ``torch.nn.Linear`` to adapt; kept as ``base_layer``, its parameters no longer ask for gradients.
        r: rank. ``lora_A`` is (r, in_features), ``lora_AB`` (r, r), ``lora_B`` (out_features, r).
        alpha: strength of the update, finite number.
        device, dtype: of the three; those of the layer's weight unless given.

    Raises:
        TypeError, ValueError: no ``torch.nn.Linear``, r no positive integer; when called, features of another number;
            :meth:`merge` of a merged adapter, or :meth:`unmerge` of one that is not.

    Cost:
        2 r (in_features + out_features + r) flops a row beside the layer itself.

    Source:
        Wu, Wang, Xu et al. 2024, Mixture-of-Subspaces in Low-Rank Adaptation.

    >>> import torch, subspan
    >>> layer = torch.nn.Linear(16, 4)
    >>> adapter, x = subspan.nn.MoSLoRALinear(layer, r=2), torch.ones(3, 16)
    >>> print(bool((adapter(x) == layer(x)).all()), sum(p.numel() for p in adapter.parameters() if p.requires_grad))
    True 44
    """

    def __init__(
        self,
        layer: torch.nn.Linear,
        r: int = 8,
        alpha: float = 16.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        _check_layer(op, layer)
        self.r, self.alpha = _check.count(op, "r", r), _check.number(op, "alpha", alpha)
        self.base_layer, self.merged = layer, False
        layer.requires_grad_(False)

        def parameter(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(layer.weight.new_empty(shape, device=device, dtype=dtype))

        self.lora_A = parameter(self.r, layer.in_features)
        self.lora_AB = parameter(self.r, self.r)
        self.lora_B = parameter(layer.out_features, self.r)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """A and the mixer uniform, as Kaiming He et al. have them, B zero."""
        torch.nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        torch.nn.init.kaiming_uniform_(self.lora_AB, a=math.sqrt(5))
        self.lora_B.zero_()

    def delta(self) -> Tensor:
        """The update of the weight, (out_features, in_features)."""
        return (self.lora_B @ self.lora_AB @ self.lora_A) * (self.alpha / self.r)

    def forward(self, x: Tensor) -> Tensor:
        r"""(\*batch, in_features) to (\*batch, out_features)."""
        _check_layer("MoSLoRALinear", self.base_layer, x)
        y: Tensor = self.base_layer(x)
        if self.merged:
            return y
        reduced = x.to(self.lora_A.dtype) @ self.lora_A.mT @ self.lora_AB.mT
        return y + (reduced @ (self.lora_B * (self.alpha / self.r)).mT).to(y.dtype)

    def extra_repr(self) -> str:
        return f"r={self.r}, alpha={self.alpha}, merged={self.merged}"


def _split(op: str, name: str, size: int, factor: int) -> int:
    """The largest divisor up to `factor`, or up to the root of `size`."""
    limit = math.isqrt(size) if factor == -1 else min(factor, size)
    return next(d for d in range(limit, 0, -1) if size % d == 0)


class KroneckerAdapter(_Adapter):
    r"""A frozen linear layer and a Kronecker product as the update of its weight: LoKr.

    .. math:: y = W x + b + \frac{\alpha}{r}\, (W_1 \otimes W_2)\, x, \qquad W_2 \text{ or } W_{2a} W_{2b}

    One term of a hypercomplex layer with a rule that need not be square: the product is not formed. W_1 is zero at
    first, so that y is the layer's own.

    Args:
        layer: the ``torch.nn.Linear`` to adapt; kept as ``base_layer``, its parameters no longer ask for gradients.
        r: rank of W_2: ``lokr_w2_a`` (out / p, r) and ``lokr_w2_b`` (r, in / q); where r is not below half of the
            longer side of W_2, or None, ``lokr_w2`` is whole, and alpha / r is 1. ``lokr_w1`` is (p, q).
        alpha: strength of the update, finite number.
        factor: p and q are the largest divisors of out_features and in_features up to it; -1: up to their roots.
        device, dtype: of the factors; those of the layer's weight unless given.

    Raises:
        TypeError, ValueError: no ``torch.nn.Linear``, r or factor no positive integer; when called, features of another
            number; :meth:`merge` of a merged adapter, or :meth:`unmerge` of one that is not.

    Cost:
        As :func:`subspan.phm_linear` or :func:`subspan.phm_linear_lowrank` with one term. PEFT forms the Kronecker
        product, as large as W, in every call.

    Source:
        Yeh et al. 2024, Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation; PEFT's
        ``tuners/lokr/layer.py``, whose names the parameters have.

    >>> import torch, subspan
    >>> layer = torch.nn.Linear(16, 4)
    >>> adapter, x = subspan.nn.KroneckerAdapter(layer, r=None), torch.ones(3, 16)
    >>> print(bool((adapter(x) == layer(x)).all()), tuple(adapter.lokr_w1.shape), tuple(adapter.lokr_w2.shape))
    True (2, 4) (2, 4)
    """

    lokr_w2: Tensor | None

    def __init__(
        self,
        layer: torch.nn.Linear,
        r: int | None = 8,
        alpha: float = 8.0,
        factor: int = -1,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        _check_layer(op, layer)
        self.r = None if r is None else _check.count(op, "r", r)
        self.alpha, self.factor = _check.number(op, "alpha", alpha), factor
        if factor != -1:
            _check.count(op, "factor", factor)
        p, q = (_split(op, "factor", size, factor) for size in (layer.out_features, layer.in_features))
        l, k = layer.out_features // p, layer.in_features // q  # noqa: E741
        self.base_layer, self.merged = layer, False
        layer.requires_grad_(False)

        def parameter(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(layer.weight.new_empty(shape, device=device, dtype=dtype))

        self.lokr_w1 = parameter(p, q)
        if self.r is None or 2 * self.r >= max(l, k):
            self.lokr_w2, self.strength = parameter(l, k), 1.0
        else:
            self.register_parameter("lokr_w2", None)
            self.lokr_w2_a, self.lokr_w2_b = parameter(l, self.r), parameter(self.r, k)
            self.strength = self.alpha / self.r
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """W_1 zero, the others uniform, as Kaiming He et al. have them."""
        self.lokr_w1.zero_()
        for matrix in (self.lokr_w2_a, self.lokr_w2_b) if self.lokr_w2 is None else (self.lokr_w2,):
            torch.nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))

    def delta(self) -> Tensor:
        """The update of the weight, (out_features, in_features)."""
        W = self.lokr_w2_a @ self.lokr_w2_b if self.lokr_w2 is None else self.lokr_w2
        delta: Tensor = phm_weight(self.lokr_w1[None] * self.strength, W[None])
        return delta

    def forward(self, x: Tensor) -> Tensor:
        r"""(\*batch, in_features) to (\*batch, out_features)."""
        _check_layer("KroneckerAdapter", self.base_layer, x)
        y: Tensor = self.base_layer(x)
        if self.merged:
            return y
        rule = self.lokr_w1[None] * self.strength
        if self.lokr_w2 is None:
            update = phm_linear_lowrank(x, rule, self.lokr_w2_a[None], self.lokr_w2_b[None])
        else:
            update = phm_linear(x, rule, self.lokr_w2[None])
        result: Tensor = y + update.to(y.dtype)
        return result

    def extra_repr(self) -> str:
        return f"r={self.r}, alpha={self.alpha}, factor={self.factor}, merged={self.merged}"
