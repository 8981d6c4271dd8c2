"""Rotations of blocks of features, the adapter of orthogonal finetuning."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _check
from ..composite.factor import without_autocast
from ..ops.skew import cayley_of_packed


class OrthogonalBlocks(torch.nn.Module):
    r"""Rotates blocks of neighbouring features, each by the Cayley transform of a skew matrix: OFT.

    .. math:: y = x R, \qquad R = \operatorname{diag}(R_1, \ldots, R_b), \qquad R_i = (I - A_i)^{-1} (I + A_i)

    Rows of x are vectors. A_i holds the parameters above its diagonal, row after row, and their opposites below; at the
    initial value 0 nothing is rotated. :meth:`merge` puts the rotation into the weight of a linear layer that follows.

    What differs from PEFT's ``OFTRotationModule``, whose ``weight`` has this shape and order and can be loaded: R is
    orthogonal to rounding, where a Neumann series of five terms is off by 0.1 at ‖A‖ = 0.5. (PEFT's own exact variant,
    ``use_cayley_neumann=False``, rotates the other way: negate its weight.)

    Args:
        features: of x, a multiple of block_size.
        block_size: n, order of the blocks, at least 2.
        device, dtype: of ``weight`` (features / n, n (n - 1) / 2).

    Raises:
        TypeError, ValueError: a size is not a positive integer; block_size below 2 or no divisor of features; when
            called, features of another number.

    Cost:
        2 features n^2 flops for the rotations and 2 features n for every row of x.

    Source:
        Qiu et al. 2023, Controlling Text-to-Image Diffusion by Orthogonal Finetuning; PEFT's ``tuners/oft/layer.py``.

    >>> import torch
    >>> from subspan.nn import OrthogonalBlocks
    >>> blocks = OrthogonalBlocks(64, block_size=32)
    >>> x = torch.ones(3, 64)
    >>> print(bool((blocks(x) == x).all()), tuple(blocks.weight.shape), tuple(blocks.rotations().shape))
    True (2, 496) (2, 32, 32)
    """

    def __init__(
        self,
        features: int,
        block_size: int = 32,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op = "OrthogonalBlocks"
        self.features, self.block_size = (
            _check.count(op, "features", features),
            _check.count(op, "block_size", block_size),
        )
        if self.block_size < 2 or self.features % self.block_size:
            expected = f"a divisor of the {self.features} features that is at least 2"
            raise ValueError(f"{op}: block_size: expected {expected}, got {self.block_size}")
        n = self.block_size
        shape = (self.features // n, n * (n - 1) // 2)
        self.weight = torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The identity."""
        torch.nn.init.zeros_(self.weight)

    def rotations(self) -> Tensor:
        """R_i, (blocks, n, n), float64 for a float64 weight and float32 otherwise."""
        rotations: Tensor = cayley_of_packed(self.weight)
        return rotations

    def forward(self, x: Tensor) -> Tensor:
        r"""(\*batch, features), rotated, of the type of x."""
        self._check_features("x", x)
        return _rotated(x, self.rotations().to(x.dtype)).to(x.dtype)

    def merge(self, weight: Tensor) -> Tensor:
        """W R^T for the weight W (out, features) of a linear layer that follows: what it makes of x is then what W
        makes of the rotated x. Computed in float64 for either in float64 and in float32 otherwise."""
        self._check_features("weight", weight, 2)
        return _turned(weight, self.rotations().mT)

    def unmerge(self, weight: Tensor) -> Tensor:
        """W of W R^T."""
        self._check_features("weight", weight, 2)
        return _turned(weight, self.rotations())

    def _check_features(self, name: str, array: Tensor, least: int = 1) -> None:
        op = "OrthogonalBlocks"
        _check.matrix(op, name, array, least=least)
        if array.shape[-1] != self.features:
            rows = "(*batch, " if least == 1 else "(*batch, out, "
            raise ValueError(f"{op}: {name}: expected {rows}{self.features}), got shape {tuple(array.shape)}")

    def extra_repr(self) -> str:
        return f"features={self.features}, block_size={self.block_size}"


def _rotated(rows: Tensor, rotations: Tensor) -> Tensor:
    blocks = rows.unflatten(-1, (-1, rotations.shape[-1]))
    return torch.einsum("...bi,bij->...bj", blocks, rotations).flatten(-2)


@without_autocast
def _turned(weight: Tensor, rotations: Tensor) -> Tensor:
    wide = torch.promote_types(weight.dtype, rotations.dtype)
    return _rotated(weight.to(wide), rotations.to(wide)).to(weight.dtype)
