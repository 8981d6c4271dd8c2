"""Sparse autoencoders that keep the k largest units, with the losses of CSR."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss
from torch.nn.functional import normalize as unit_rows

from .. import _check
from ..ops.sparse_products import sparse_decode
from ..ops.sparse_scores import sparse_scores
from ..ops.sparse_topk import linear_topk
from ..sparse_rows import SparseRows, unchecked
from .sparse_layers import SparseDecoder, TopKEncoder, check_k

_NAME = "SparseAutoencoder"


class SparseAutoencoderOutput(NamedTuple):
    """What a sparse autoencoder gives: the loss, its parts by name without their weights, the features it rebuilt, and
    the codes."""

    loss: Tensor
    parts: dict[str, Tensor]
    reconstruction: Tensor
    codes: SparseRows


class SparseAutoencoder(torch.nn.Module):
    r"""Features rebuilt from the k largest of many units, which are never all stored.

    .. math:: S = \text{top-}k\big((x - c) W^\top + b\big), \quad \hat x = S D + c, \quad
        L = \ell_k + \omega_m \ell_{mk} + \omega_a \ell_a + \omega_c \ell_c

    :math:`\ell_k` is the mean squared error; :math:`\ell_{mk}` that with m k units, of which the first k are those
    above (one selection serves both); :math:`\ell_a` the error, relative to the variance, with which the ``aux_k``
    largest *dead* units rebuild what is missing; :math:`\ell_c` the contrastive loss of the codes in the batch. All of
    them reach encoder and decoder. In evaluation the loss is :math:`\ell_k`.

    A unit is dead after ``dead_after`` calls of :meth:`step` in which it was never > 0. Call :meth:`step` once after
    every step of the optimiser; the forward pass itself, in training, only notes which units fired, so that activation
    checkpointing, accumulated gradients and evaluation count nothing twice.

    Parameters are ``encoder.weight`` W and ``encoder.bias`` b, ``encoder.pre_bias`` c, and ``decoder.weight`` D,
    which is W where ``tied``.

    Args:
        features: of x.
        columns: units.
        k: units that stay.
        multi: m, an integer; 1 leaves the second reconstruction out.
        multi_weight: :math:`\omega_m`.
        aux_k: dead units that rebuild the rest, or None for no such loss.
        aux_weight: :math:`\omega_a`.
        dead_after: steps, with ``aux_k`` only.
        contrastive_weight: :math:`\omega_c`.
        temperature: of the contrastive loss.
        tied: one weight for both layers.
        standardize: bring each row of x to mean 0 and standard deviation 1, and back at the end.
        weight_grad: of encoder and decoder, see :func:`subspan.sparse_decode`.
        group: process group whose processes tell each other in :meth:`step` which units fired.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: wrong parameters.

    Source:
        Wen et al. 2025, Beyond Matryoshka: Revisiting Sparse Coding for Adaptive Representation (CSR), whose weights
        are the defaults, and Gao et al. 2024. Replaces ``CSR`` in ``model_zoo.py`` with the losses of its training
        scripts, ``SparseAutoEncoder`` of sentence-transformers and ``SparseCoder`` of sparsify, of whose losses the
        second does not reach the encoder in the pass with 4 k, and the third in that of the dead units.

    >>> import torch
    >>> from subspan.nn import SparseAutoencoder
    >>> model = SparseAutoencoder(16, 512, k=4, aux_k=8, dead_after=10)
    >>> output = model(torch.ones(3, 16))
    >>> output.loss.backward()
    >>> model.step()
    >>> print(tuple(output.reconstruction.shape), output.codes.shape, sorted(output.parts))
    (3, 16) (3, 512) ['aux', 'multi', 'reconstruction']
    """

    since_fired: Tensor
    fired: Tensor

    def __init__(
        self,
        features: int,
        columns: int,
        k: int,
        *,
        multi: int = 4,
        multi_weight: float = 1 / 8,
        aux_k: int | None = None,
        aux_weight: float = 1 / 32,
        dead_after: int | None = None,
        contrastive_weight: float = 0.0,
        temperature: float = 0.2,
        tied: bool = False,
        standardize: bool = False,
        weight_grad: str = "dense",
        group: Any = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, flag in (("tied", tied), ("standardize", standardize)):
            _check.flag(_NAME, name, flag)
        self.encoder = TopKEncoder(features, columns, k, weight_grad=weight_grad, device=device, dtype=dtype)
        self.decoder = SparseDecoder(columns, features, bias=False, weight_grad=weight_grad, device=device, dtype=dtype)
        self.k, self.multi = self.encoder.k, _check.count(_NAME, "multi", multi)
        check_k(_NAME, "multi", self.k * self.multi, columns)
        if (aux_k is None) != (dead_after is None):
            raise ValueError(f"{_NAME}: dead_after: expected a number with aux_k and None without, got {dead_after}")
        self.aux_k = None if aux_k is None else check_k(_NAME, "aux_k", aux_k, columns)
        self.dead_after = None if dead_after is None else _check.count(_NAME, "dead_after", dead_after)
        self.multi_weight = _check.number(_NAME, "multi_weight", multi_weight)
        self.aux_weight = _check.number(_NAME, "aux_weight", aux_weight)
        self.contrastive_weight = _check.number(_NAME, "contrastive_weight", contrastive_weight)
        self.temperature = _check.positive(_NAME, "temperature", temperature)
        self.tied, self.standardize, self.group = bool(tied), bool(standardize), group
        if self.tied:
            self.decoder.weight = self.encoder.weight
        self.register_buffer("since_fired", torch.zeros(columns, dtype=torch.int64, device=device))
        self.register_buffer("fired", torch.zeros(columns, dtype=torch.bool, device=device), persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Encoder as ``torch.nn.Linear``, decoder its rows at length 1, no biases."""
        self.encoder.reset_parameters()
        if not self.tied:
            self.decoder.weight.copy_(self.encoder.weight)
            self.decoder.normalize_()

    def forward(self, x: Tensor, positive: Tensor | None = None) -> SparseAutoencoderOutput:
        """Of rows (n, features); with ``positive``, rows that belong to those of x (documents, where x are queries),
        both are rebuilt and contrasted, and come one after the other in the output."""
        both = x if positive is None else torch.cat([x, positive])
        rows, scale, shift = self._standardized(both)
        training = self.training
        selected = self.encoder(rows, self.k * self.multi if training and self.multi > 1 else self.k)
        codes = _first(selected, self.k)
        rebuilt = self._decode(codes)
        parts = {"reconstruction": mse_loss(rebuilt * scale + shift, both)}
        loss = parts["reconstruction"]
        if training:
            with torch.no_grad():
                hits = torch.zeros_like(self.fired, dtype=torch.int32)
                hits.index_add_(0, codes.indices.flatten(), (codes.values > 0).int().flatten())
                self.fired.logical_or_(hits > 0)
            if self.multi > 1:
                parts["multi"] = mse_loss(self._decode(selected) * scale + shift, both)
                loss = loss + self.multi_weight * parts["multi"]
            if self.aux_k is not None:
                sides = 1 if positive is None else 2
                parts["aux"] = self._dead_units(rows, rows - rebuilt.detach(), sides)
                loss = loss + self.aux_weight * parts["aux"]
            if self.contrastive_weight != 0:
                parts["contrastive"] = self._contrast(codes, positive is not None)
                loss = loss + self.contrastive_weight * parts["contrastive"]
        return SparseAutoencoderOutput(loss, parts, rebuilt * scale + shift, codes)

    def _standardized(self, x: Tensor) -> tuple[Tensor, Tensor | float, Tensor | float]:
        if not self.standardize:
            return x, 1.0, 0.0
        mean, deviation = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return (x - mean) / (deviation + 1e-5), deviation, mean

    def _decode(self, codes: SparseRows) -> Tensor:
        assert self.encoder.pre_bias is not None
        y: Tensor = self.decoder(codes)
        return y + self.encoder.pre_bias

    def _dead_units(self, rows: Tensor, missing: Tensor, sides: int) -> Tensor:
        """How well dead units rebuild what is missing; its own bias would be counted twice, so it has none."""
        assert self.aux_k is not None and self.dead_after is not None
        encoder, dead = self.encoder, self.since_fired >= self.dead_after
        assert encoder.bias is not None
        if _check.readable(dead):
            (units,) = dead.nonzero(as_tuple=True)
            if len(units) == 0:
                return missing.new_zeros(())
            k = min(self.aux_k, len(units))
            codes = linear_topk(encoder.centred(rows), encoder.weight[units], encoder.bias[units], k)
            codes = unchecked(units[codes.indices], codes.values, encoder.columns)
        else:
            bias = torch.where(dead, encoder.bias, -math.inf)
            codes = linear_topk(encoder.centred(rows), encoder.weight, bias, self.aux_k)
        rebuilt = sparse_decode(codes, self.decoder.weight, weight_grad=self.decoder.weight_grad)
        terms = []
        for part, wanted in zip(rebuilt.chunk(sides), missing.chunk(sides), strict=True):
            variance = mse_loss(wanted.mean(0).expand_as(wanted), wanted)
            error = mse_loss(part, wanted)
            terms.append(torch.where(variance > 0, error / torch.where(variance > 0, variance, 1.0), 0.0))
        loss = torch.stack(terms).mean()
        return torch.where(dead.any(), loss, 0.0)

    def _contrast(self, codes: SparseRows, paired: bool) -> Tensor:
        """Cross entropy of each row's own partner among those of the batch, by the cosine of their codes."""
        unit = unchecked(codes.indices, unit_rows(codes.values, dim=-1), codes.columns)
        n = len(unit.values) // (2 if paired else 1)
        first = unchecked(unit.indices[:n], unit.values[:n], codes.columns)
        second = unchecked(unit.indices[n:], unit.values[n:], codes.columns) if paired else first
        logits = sparse_scores(first, second) / self.temperature
        target = torch.arange(n, device=logits.device)
        if not paired:  # each row is its own partner, and meets the others twice, as in CSR's second, equal pass
            logits = logits + math.log(2) * (target[:, None] != target).to(logits.dtype)
        return cross_entropy(logits, target)

    @torch.no_grad()
    def step(self) -> None:
        """After a step of the optimiser: counts the steps in which a unit did not fire."""
        if self.group is not None:
            seen = self.fired.int()
            torch.distributed.all_reduce(seen, torch.distributed.ReduceOp.MAX, group=self.group)
            self.fired.copy_(seen > 0)
        self.since_fired = torch.where(self.fired, 0, self.since_fired + 1)
        self.fired.zero_()

    def dead(self) -> Tensor:
        """Which units are dead, (columns,) of booleans; none are without ``aux_k``."""
        return self.since_fired >= (math.inf if self.dead_after is None else self.dead_after)

    def extra_repr(self) -> str:
        options = [f"multi={self.multi}", f"tied={self.tied}", f"standardize={self.standardize}"]
        if self.aux_k is not None:
            options.append(f"aux_k={self.aux_k}, dead_after={self.dead_after}")
        if self.contrastive_weight != 0:
            options.append(f"contrastive_weight={self.contrastive_weight:g}, temperature={self.temperature:g}")
        return ", ".join(options)


def _first(codes: SparseRows, k: int) -> SparseRows:
    return unchecked(codes.indices[..., :k], codes.values[..., :k], codes.columns)
