"""One loss on embeddings of several sizes, each a prefix of the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit_rows

from .. import _check
from ..sparse_rows import SparseRows, unchecked

_NAME = "MatryoshkaLoss"


class MatryoshkaLoss(torch.nn.Module):
    r"""The weighted sum of a loss at prefixes of its embeddings, which makes every prefix an embedding of its own.

    .. math:: L = \sum_s w_s\, \text{loss}(x_{:s}, \dots)

    Of a dense embedding (\*batch, d) the prefix of size s is its first s features; of :class:`subspan.SparseRows` with
    as many entries in every row its first s entries, which are the s largest where :func:`subspan.topk_rows` or
    :func:`subspan.linear_topk` gave them: the codes of k = s from one selection.

    Args:
        loss: called with the prefixes of all embeddings and with whatever keywords :meth:`forward` was given.
        sizes: positive integers, each at most the features or entries of the embeddings.
        weights: a number >= 0 per size; 1 each by default.
        normalize: bring every prefix to unit length.

    Raises:
        TypeError, ValueError: wrong parameters; embeddings shorter than a size, or rows of different lengths (CSR).

    Source:
        Kusupati et al. 2022, Matryoshka Representation Learning. Replaces ``MatryoshkaLoss`` of sentence-transformers
        around a loss of embeddings, and the passes with k and 4k of CSR.

    >>> import torch
    >>> from subspan.nn import MatryoshkaLoss
    >>> loss = MatryoshkaLoss(lambda x, y: (x - y).square().mean(), sizes=(1, 2), weights=(1.0, 0.5))
    >>> print(loss(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 0.0]])).item())
    3.5
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        sizes: Sequence[int],
        weights: Sequence[float] | None = None,
        *,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        if not callable(loss):
            raise TypeError(f"{_NAME}: loss: expected a function or module, got {type(loss).__name__}")
        self.loss = loss
        self.sizes = tuple(_check.count(_NAME, "sizes", size) for size in sizes)
        if not self.sizes:
            raise ValueError(f"{_NAME}: sizes: expected at least one, got none")
        self.weights = tuple(
            _check.number(_NAME, "weights", weight)
            for weight in ([1.0] * len(self.sizes) if weights is None else weights)
        )
        if len(self.weights) != len(self.sizes) or min(self.weights) < 0:
            raise ValueError(f"{_NAME}: weights: expected {len(self.sizes)} numbers >= 0, got {list(self.weights)}")
        _check.flag(_NAME, "normalize", normalize)
        self.normalize = bool(normalize)

    def forward(self, *embeddings: Tensor | SparseRows, **keywords: Any) -> Tensor:
        """The sum, of what the loss gives, of dense or sparse embeddings."""
        if not embeddings:
            raise TypeError(f"{_NAME}: embeddings: expected at least one, got none")
        terms = [
            weight * self.loss(*(self._prefix(embedding, size) for embedding in embeddings), **keywords)
            for size, weight in zip(self.sizes, self.weights, strict=True)
        ]
        total: Tensor = sum(terms[1:], start=terms[0])
        return total

    def _prefix(self, embedding: Tensor | SparseRows, size: int) -> Tensor | SparseRows:
        if not isinstance(embedding, SparseRows):
            return self._shortened(embedding, size)
        if embedding.offsets is not None:
            raise ValueError(
                f"{_NAME}: embeddings: expected as many entries in every row, got rows of any length (CSR)"
            )
        return unchecked(embedding.indices[..., :size], self._shortened(embedding.values, size), embedding.columns)

    def _shortened(self, values: Tensor, size: int) -> Tensor:
        _check.array_like(_NAME, "embeddings", values)
        if values.ndim < 1 or values.shape[-1] < size:
            raise ValueError(f"{_NAME}: embeddings: expected at least {size} features, got shape {tuple(values.shape)}")
        return unit_rows(values[..., :size], dim=-1) if self.normalize else values[..., :size]

    def extra_repr(self) -> str:
        return f"sizes={self.sizes}, weights={self.weights}, normalize={self.normalize}"
