"""Compacter's adapter as a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _check
from ..ops.phm_adapter import ACTIVATIONS, phm_adapter
from .phm_parameters import SharesRules, check_sizes


class CompacterAdapter(SharesRules):
    r"""Compacter's adapter: a bottleneck of two hypercomplex layers, added to its input, in one pass over it.

    .. math:: y = x + f(x D^\top + b)\, E^\top + c, \qquad D = \sum_{i=1}^n A_i \otimes U_i V_i, \quad
        E = \sum_{i=1}^n A'_i \otimes U'_i V'_i

    Parameters are ``down_A`` and ``up_A`` (n, n, n), which are one and the same unless ``shared_rule`` is off,
    ``down_U`` (n, hidden / n, rank), ``down_V`` (n, rank, features / n), ``down_bias``, and likewise ``up_``. Adapters
    of other layers share a rule where it is assigned: ``other.down_A = other.up_A = adapter.down_A``.

    Args:
        features: of x and y, a multiple of n.
        hidden: units of the bottleneck, a multiple of n.
        n: dimension of the algebra.
        rank: of the components; None for whole components ``down_S`` and ``up_S``, the PHM adapter.
        activation: "relu", "gelu", "gelu_tanh" (T5's ``gelu_new``) or "silu" (``swish``).
        residual: whether x is added.
        shared_rule: whether both layers have one rule.
        bias: whether there are a b and a c.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: sizes that n does not divide, an unknown activation.

    Source:
        Karimi Mahabadi et al. 2021, Compacter: Efficient Low-Rank Hypercomplex Adapter Layers. Replaces
        ``HyperComplexAdapter`` of ``Compacter``, which does not add x, and ``Adapter`` with ``phm_layer`` of
        ``adapters``: see :func:`subspan.nn.from_compacter` and :func:`subspan.nn.from_adapters`.

    >>> import torch, subspan
    >>> adapter = subspan.nn.CompacterAdapter(768, 24)
    >>> print(tuple(adapter(torch.ones(2, 768)).shape), sum(p.numel() for p in adapter.parameters()))
    (2, 768) 2440
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        n: int = 4,
        rank: int | None = 1,
        activation: str = "gelu",
        *,
        residual: bool = True,
        shared_rule: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        check_sizes(op, n, features=features, hidden=hidden)
        _check.choice(op, "activation", activation, ACTIVATIONS)
        self.features, self.hidden, self.n = features, hidden, n
        self.rank = None if rank is None else _check.count(op, "rank", rank)
        self.activation, self.residual, self.shared_rule = activation, residual, shared_rule

        def add(name: str, *shape: int) -> None:
            parameter = torch.nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))
            self.register_parameter(name, parameter)

        add("down_A", n, n, n)
        if shared_rule:
            self.up_A = self.down_A
        else:
            add("up_A", n, n, n)
        for side, l, k in (("down", hidden // n, features // n), ("up", features // n, hidden // n)):  # noqa: E741
            if self.rank is None:
                add(f"{side}_S", n, l, k)
            else:
                add(f"{side}_U", n, l, self.rank)
                add(f"{side}_V", n, self.rank, k)
            if bias:
                add(f"{side}_bias", n * l)
            else:
                self.register_parameter(f"{side}_bias", None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Rules with entries of 0.01 and components as Compacter has them, so that y is nearly x; no bias."""
        for name, parameter in self.named_parameters():
            if parameter.is_meta:
                return
            if name.endswith("_A"):
                parameter.normal_(std=0.01)
            elif name.endswith("_bias"):
                parameter.zero_()
            else:
                for matrix in parameter:
                    torch.nn.init.xavier_uniform_(matrix)

    def factors(self, side: str) -> tuple[Tensor | None, ...]:
        """Of one layer, "down" or "up", as :func:`subspan.phm_adapter` takes them."""
        names = ("A", "S", "bias") if self.rank is None else ("A", "U", "V", "bias")
        return tuple(getattr(self, f"{side}_{name}") for name in names)

    def forward(self, x: Tensor) -> Tensor:
        r"""(\*rows, features) of (\*rows, features)."""
        sides: tuple[Any, Any] = self.factors("down"), self.factors("up")
        result: Tensor = phm_adapter(x, *sides, self.activation, self.residual)
        return result

    def extra_repr(self) -> str:
        text = f"{self.features}, {self.hidden}, n={self.n}, rank={self.rank}, activation={self.activation!r}"
        return f"{text}, residual={self.residual}, shared_rule={self.shared_rule}, bias={self.down_bias is not None}"
