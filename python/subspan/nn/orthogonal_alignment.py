"""Backward-compatible representations: an orthogonal map from the extended space of old embeddings to a new one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, normalize

from .. import _check
from ..ops.orthonormalize import orthonormalize
from .orthogonal import Orthogonal, completed


class OrthogonalAlignment(torch.nn.Module):
    r"""An orthogonal layer between embeddings that old ones can be compared with, and free ones: OCA.

    .. math:: x \in \mathbb{R}^{d + e}, \qquad \text{compatible: } (x_1, \ldots, x_d), \qquad
        \text{features: } z = B x, \qquad B^\top B = I

    The new network's embedding x has e dimensions more than old ones. Its first d are trained, by :meth:`loss`, to
    agree with them, so that the gallery need not be embedded anew; z, which loses nothing of x, is trained for the new
    task.

    Args:
        old_features: d.
        extra: e, 0 or more.
        normalize: divide x by its length first, as published.
        device, dtype: of ``original``, the parameter of B (d + e, d + e) by Cayley's transform, and its base.

    Raises:
        TypeError, ValueError: a size is no integer, or negative; when called, features of another number.

    Source:
        Ricci, Biondi, Pernici, Del Bimbo 2024, Backward-Compatible Aligned Representations via an Orthogonal
        Transformation Layer, ``models/resnet.py`` and ``trainers/OCA_trainer.py`` of z3n0e/OCA, whose orthogonal layer
        also has a bias; Zhou et al. 2023, BT²: Backward-compatible Training with Basis Transformation.

    >>> import torch
    >>> from subspan.nn import OrthogonalAlignment
    >>> align = OrthogonalAlignment(old_features=128, extra=32)
    >>> compatible, features = align(torch.randn(3, 160))
    >>> print(tuple(compatible.shape), tuple(features.shape), bool((features.norm(dim=1) - 1).abs().max() < 1e-5))
    (3, 128) (3, 160) True
    """

    def __init__(
        self,
        old_features: int,
        extra: int = 32,
        *,
        normalize: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op = "OrthogonalAlignment"
        self.old_features = _check.count(op, "old_features", old_features)
        self.extra = 0 if type(extra) is int and extra == 0 else _check.count(op, "extra", extra)
        _check.flag(op, "normalize", normalize)
        self.normalize = bool(normalize)
        size = self.old_features + self.extra
        self.original = torch.nn.Parameter(torch.empty(size, size, device=device, dtype=dtype))
        self.map = Orthogonal(self.original, "cayley", True)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A random rotation or reflection, uniformly distributed."""
        size = self.old_features + self.extra
        self._assign(torch.randn(size, size, dtype=torch.float64, device="cpu"))

    @torch.no_grad()
    def _assign(self, weight: Tensor) -> None:
        self.original.copy_(self.map.right_inverse(weight.to(self.original.device)))
        assert self.map.base is not None
        if self.original.dtype != torch.float64:
            self.map.base = self.map.base.float()

    @property
    def weight(self) -> Tensor:
        """B."""
        weight: Tensor = self.map(self.original)
        return weight

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The compatible part (\*batch, d) of x (\*batch, d + e), divided by its length, and z (\*batch, d + e)."""
        self._check_features("x", x)
        unit = normalize(x, dim=-1) if self.normalize else x
        return unit[..., : self.old_features], linear(unit, self.weight)

    def inverse(self, features: Tensor) -> Tensor:
        """x = B^T z: the compatible embedding, in its first d entries, of features that a network was trained for
        independently, after :meth:`fit`."""
        self._check_features("features", features)
        return linear(features, self.weight.mT)

    def loss(
        self, compatible: Tensor, prototypes: Tensor, labels: Tensor, *, influence: float = 10.0, alignment: float = 5.0
    ) -> Tensor:
        """What OCA adds to the classification loss of z: `influence` times the cross entropy of the directions of the
        compatible parts (k, d), classified by the prototypes (classes, d), the old embeddings' means; and `alignment`
        times the mean of 1 minus their cosine with the prototype of their label (k)."""
        op = "OrthogonalAlignment.loss"
        for name, array in (("compatible", compatible), ("prototypes", prototypes)):
            _check.matrix(op, name, array)
            if array.ndim != 2 or array.shape[1] != self.old_features:
                raise ValueError(f"{op}: {name}: expected (k, {self.old_features}), got shape {tuple(array.shape)}")
        if tuple(labels.shape) != (len(compatible),):
            expected = f"({len(compatible)},) for compatible {tuple(compatible.shape)}"
            raise ValueError(f"{op}: labels: expected {expected}, got shape {tuple(labels.shape)}")
        influence, alignment = _check.number(op, "influence", influence), _check.number(op, "alignment", alignment)
        directions = normalize(compatible, dim=-1)
        cosines = torch.nn.functional.cosine_similarity(directions, prototypes[labels], dim=-1)
        classified = cross_entropy(linear(directions, prototypes), labels)
        return influence * classified + alignment * (1 - cosines).mean()

    @torch.no_grad()
    def fit(self, new: Tensor, old: Tensor) -> None:
        """Sets B to the orthogonal matrix that takes old embeddings (k, d), extended by zeros, nearest to new ones (k,
        d + e) of the same samples: the polar factor of new^T old (Procrustes), in float64. ``inverse(new)`` is then
        compatible."""
        op = "OrthogonalAlignment.fit"
        size = self.old_features + self.extra
        for name, array, width in (("new", new, size), ("old", old, self.old_features)):
            _check.matrix(op, name, array)
            if array.ndim != 2 or array.shape[1] != width:
                raise ValueError(f"{op}: {name}: expected (k, {width}), got shape {tuple(array.shape)}")
        if len(new) != len(old):
            raise ValueError(f"{op}: old: expected as many samples as new {tuple(new.shape)}, got {tuple(old.shape)}")
        columns = orthonormalize(new.double().mT @ old.double(), "polar")
        self._assign(completed(columns))

    def _check_features(self, name: str, array: Tensor) -> None:
        size = self.old_features + self.extra
        _check.matrix("OrthogonalAlignment", name, array, least=1)
        if array.shape[-1] != size:
            expected = f"(*batch, {size})"
            raise ValueError(f"OrthogonalAlignment: {name}: expected {expected}, got shape {tuple(array.shape)}")

    def extra_repr(self) -> str:
        return f"old_features={self.old_features}, extra={self.extra}, normalize={self.normalize}"
