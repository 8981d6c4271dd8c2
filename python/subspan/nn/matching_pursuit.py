"""A sparse autoencoder whose codes are chosen one after the other, each for what the ones before left over."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from .. import _check
from ..ops.matching_pursuit import matching_pursuit
from ..ops.sparse_topk import RANKS
from .sparse_autoencoder import SparseAutoencoderOutput

_NAME = "MatchingPursuitAutoencoder"


class MatchingPursuitAutoencoder(torch.nn.Module):
    r"""Features rebuilt by matching pursuit over learned atoms, which are encoder and decoder at once.

    .. math:: \hat x = c + \sum_{t=1}^{\text{steps}} v_t W_{m_t}, \qquad m_t = \arg\max_m r_{t-1} \cdot W_m, \quad
        v_t = r_{t-1} \cdot W_{m_t}, \quad r_t = r_{t-1} - v_t W_{m_t}, \quad r_0 = x - c

    with ``weight`` W (columns, features), whose atoms have length 1, and ``bias`` c (features). The loss is the mean
    squared error. Call :meth:`step` after every step of the optimiser: it brings the atoms back to length 1.

    Args:
        features: of x.
        columns: atoms.
        steps: atoms of a code.
        by, relu: see :func:`subspan.matching_pursuit`.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: wrong parameters.

    Source:
        Costa et al. 2025, From Flat to Hierarchical: Extracting Sparse Representations with Matching Pursuit. Replaces
        ``MatchingPursuitSAE`` of mpsae/MP-SAE for a given number of steps.

    >>> import torch
    >>> from subspan.nn import MatchingPursuitAutoencoder
    >>> model = MatchingPursuitAutoencoder(16, 64, steps=4)
    >>> output = model(torch.ones(3, 16))
    >>> output.loss.backward()
    >>> model.step()
    >>> print(tuple(output.reconstruction.shape), tuple(output.codes.values.shape))
    (3, 16) (3, 4)
    """

    def __init__(
        self,
        features: int,
        columns: int,
        steps: int,
        *,
        by: str = "value",
        relu: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.features, self.columns = _check.count(_NAME, "features", features), _check.count(_NAME, "columns", columns)
        self.steps = _check.count(_NAME, "steps", steps)
        _check.choice(_NAME, "by", by, RANKS)
        _check.flag(_NAME, "relu", relu)
        self.by, self.relu = by, bool(relu)
        self.weight = torch.nn.Parameter(torch.empty(columns, features, device=device, dtype=dtype))
        self.bias = torch.nn.Parameter(torch.empty(features, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Atoms of random direction, no bias."""
        self.weight.normal_()
        self.step()
        self.bias.zero_()

    def forward(self, x: Tensor) -> SparseAutoencoderOutput:
        """Of rows (n, features)."""
        codes, residual = matching_pursuit(
            x.to(self.weight.dtype) - self.bias,
            self.weight,
            self.steps,
            by=self.by,
            relu=self.relu,
            return_residual=True,
        )
        reconstruction = x - residual
        loss = mse_loss(residual, torch.zeros_like(residual))
        return SparseAutoencoderOutput(loss, {"reconstruction": loss}, reconstruction, codes)

    @torch.no_grad()
    def step(self) -> None:
        """Brings the atoms to length 1; atoms of zeros stay."""
        length = torch.linalg.vector_norm(self.weight, dim=-1, keepdim=True)
        self.weight.div_(torch.where(length > 0, length, 1.0))

    def extra_repr(self) -> str:
        return f"{self.features}, {self.columns}, steps={self.steps}, by={self.by!r}, relu={self.relu}"
