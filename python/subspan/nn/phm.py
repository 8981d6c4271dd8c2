"""Hypercomplex layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _check
from ..ops.phm import nearest, phm_linear, phm_weight
from ..ops.phm_algebra import NAMES, algebra
from .phm_parameters import SharesRules

_RULES = {"learned": -1, **NAMES}
#: From as many rows on, fewer products take less time than the components of x mixed beforehand.
_ROWS_BY_RANK = 32


class PHMLinear(SharesRules):
    r"""A linear layer whose weight is a sum of Kronecker products, with 1/n of the parameters.

    .. math:: y = x W^\top + b, \qquad W = \sum_{i=1}^n A_i \otimes S_i

    The weight is formed neither in training nor in evaluation: see :func:`subspan.phm_linear`.

    Args:
        in_features: length of the rows of x, a multiple of n.
        out_features: length of the rows of y, a multiple of n.
        n: dimension of the algebra.
        bias: whether there is a b.
        rule: "learned" for a parameter ``A``, or the name of an :func:`subspan.algebra`, whose rule is a buffer ``A``.
            Either way W starts with the variance that ``torch.nn.Linear`` has.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: an unknown rule, sizes that n does not divide, a dimension that the algebra lacks.

    Source:
        Zhang et al. 2021, Beyond Fully-Connected Layers with Quaternions. HyperNets' ``PHMLinear`` has the same A
        and S, named ``a`` and ``s``; those of ``phc-gnn``, ``Compacter`` and ``adapters`` (``phm_rule`` and ``W``) are
        A and S with every matrix transposed.

    >>> import torch, subspan
    >>> layer = subspan.nn.PHMLinear(8, 12, 4)
    >>> print(layer(torch.ones(2, 8)).shape, sum(p.numel() for p in layer.parameters()))
    torch.Size([2, 12]) 100
    """

    A: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        n: int,
        bias: bool = True,
        *,
        rule: str = "learned",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        _check.choice(op, "rule", rule, _RULES)
        self.n, self.rule = _check.count(op, "n", n), rule
        self.in_features = _check.count(op, "in_features", in_features)
        self.out_features = _check.count(op, "out_features", out_features)
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            if size % n:
                raise ValueError(f"{op}: {name}: expected a multiple of n = {n}, got {size} ({nearest(size, n)})")

        def parameter(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        if rule == "learned":
            self.A = parameter(n, n, n)
        else:
            algebra(rule, n)  # that it exists
            self.register_buffer("A", torch.empty(n, n, n, device=device, dtype=dtype))
        self.S = parameter(n, out_features // n, in_features // n)
        self.register_parameter("bias", parameter(out_features) if bias else None)
        self.frozen = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Entries of W with variance 1 / (3 in_features), as torch.nn.Linear has them, and its bias."""
        if self.S.is_meta:
            return
        with torch.no_grad():
            if self.rule == "learned":
                self.A.uniform_(-1, 1).mul_(math.sqrt(3 / self.n))  # sums over i of A_i[p, q]^2 are 1 on average
            else:
                self.A.copy_(torch.from_numpy(algebra(self.rule, self.n)))
            strength = self.A.square().sum().item() / self.n**2
            limit = 1 / math.sqrt(self.in_features * max(strength, torch.finfo(self.A.dtype).tiny))
            self.S.uniform_(-limit, limit)
            if self.bias is not None:
                self.bias.uniform_(-(self.in_features**-0.5), self.in_features**-0.5)

    def freeze(self) -> PHMLinear:
        """Makes A a constant, so that calls of 32 rows or more take the products of its decomposition (method "rank" of
        :func:`subspan.phm_linear`), of which quaternions need half. Raises where A has no decomposition.

        For fewer rows, and where values cannot be read, as on a GPU without waiting for it and in a compiled graph,
        calls stay as they were; and as long as A is made to require a gradient again, as by ``requires_grad_(True)``.
        """
        from ..ops.phm_decomposition import rank_decomposition

        rank_decomposition(self.A.detach())
        self.A.requires_grad_(False)
        self.frozen = True
        return self

    def unfreeze(self) -> PHMLinear:
        """The inverse of :meth:`freeze`."""
        self.A.requires_grad_(self.rule == "learned")
        self.frozen = False
        return self

    def to_dense(self) -> torch.nn.Linear:
        """An ordinary layer of the same weights."""
        like = {"device": self.S.device, "dtype": self.S.dtype}
        dense = torch.nn.Linear(self.in_features, self.out_features, self.bias is not None, **like)
        with torch.no_grad():
            dense.weight.copy_(phm_weight(self.A, self.S))
            if self.bias is not None:
                dense.bias.copy_(self.bias)
        return dense

    def forward(self, x: Tensor) -> Tensor:
        r"""(\*rows, out_features) of (\*rows, in_features)."""
        constant = self.frozen and not self.A.requires_grad  # requires_grad_(True) of a frozen layer trains its rule
        by_rank = constant and x.numel() >= _ROWS_BY_RANK * self.in_features and _check.readable(self.A)
        method = "rank" if by_rank else "auto"
        result: Tensor = phm_linear(x, self.A, self.S, self.bias, method=method)
        return result

    def extra_repr(self) -> str:
        text = f"in_features={self.in_features}, out_features={self.out_features}, n={self.n}"
        return f"{text}, bias={self.bias is not None}, rule={self.rule!r}" + (", frozen" if self.frozen else "")


class QuaternionLinear(PHMLinear):
    r"""A linear layer of quaternions, w x: :class:`PHMLinear` with their rule.

    Args:
        in_features: length of the rows of x, a multiple of 4.
        out_features: length of the rows of y, a multiple of 4.
        bias: whether there is a b.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: sizes that 4 does not divide.

    Source:
        Parcollet et al. 2019, Quaternion Recurrent Neural Networks. ``QuaternionLinear`` of Orkis and SpeechBrain keeps
        the components S_r, S_i, S_j, S_k of ``S`` as four transposed weights.

    >>> import torch, subspan
    >>> layer = subspan.nn.QuaternionLinear(8, 4).freeze()  # 8 products in place of 16
    >>> print(torch.allclose(layer(torch.ones(8)), layer.to_dense()(torch.ones(8)), atol=1e-5))
    True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, 4, bias, rule="quaternion", device=device, dtype=dtype)
