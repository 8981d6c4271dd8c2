"""Classes as subspaces: a head whose logits are lengths of projections, and a loss that pushes subspaces apart."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _check
from ..composite.factor import result_dtype
from ..ops.dense import affine_product
from ..ops.subspace_logits import subspace_logits

_LAYOUTS = {"columns": 0, "rows": 1}


class GrassmannLinear(torch.nn.Module):
    r"""Classifier whose classes are subspaces: :func:`subspan.subspace_logits` with ``normalize``.

    .. math:: \ell_c = \text{scale} \cdot \left\lVert W_c^\top \frac{x}{\lVert x \rVert} \right\rVert

    What differs from the published head: projections are not stored at inference, a feature of zeros has logits 0 and a
    gradient of 0 instead of NaN, and what the optimiser must know of the manifold, ``k`` and ``layout``, belongs to the
    module and not to an attribute of its weight, so that copies and loaded states keep it. ``weight`` has the published
    name, shape and order: its checkpoints load.

    Args:
        in_features: n, length of a feature.
        classes: number of classes.
        k: dimension of every subspace, at most n. (The published head also takes one that differs between classes.)
        scale: finite number.
        layout: "rows", weight (classes k, n), row c k + i being vector i of class c, as published; or "columns",
            weight (classes, n, k).
        normalize: divide features by their length. False takes them as they are.
        device, dtype: of the weight.

    Raises:
        TypeError, ValueError: a size is not a positive integer, k > n, scale not a finite number, an unknown layout.

    Source:
        Wang, Li, Zhang 2023, Get the Best of Both Worlds: Improving Accuracy and Transferability by Grassmann Class
        Representation; the head in ``gcr/grassmann_head.py`` of innerlee/GCR, where scale is 25.

    >>> import torch
    >>> from subspan.nn import GrassmannLinear
    >>> head = GrassmannLinear(in_features=64, classes=10, k=4)
    >>> logits = head(torch.ones(3, 64))
    >>> print(tuple(logits.shape), bool((logits <= 25).all()), tuple(head.subspaces().shape))
    (3, 10) True (10, 64, 4)
    """

    def __init__(
        self,
        in_features: int,
        classes: int,
        k: int,
        scale: float = 25.0,
        *,
        layout: str = "rows",
        normalize: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op = "GrassmannLinear"
        self.in_features, self.classes, self.k = (
            _check.count(op, name, size)
            for name, size in (("in_features", in_features), ("classes", classes), ("k", k))
        )
        if self.k > self.in_features:
            raise ValueError(f"{op}: k: expected at most in_features {self.in_features}, got {self.k}")
        self.scale = _check.number(op, "scale", scale)
        _check.choice(op, "layout", layout, _LAYOUTS)
        _check.flag(op, "normalize", normalize)
        self.layout, self.normalize = layout, normalize
        shape = (classes * k, in_features) if layout == "rows" else (classes, in_features, k)
        self.weight = torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Random orthonormal bases, their subspaces uniformly distributed: the Q of matrices of normal numbers."""
        bases = self.subspaces()
        normal = torch.randn(bases.shape, dtype=result_dtype(bases), device=bases.device)
        bases.copy_(torch.linalg.qr(normal).Q)

    def subspaces(self) -> Tensor:
        """The bases as columns, (classes, n, k): a view of the weight."""
        if self.layout == "columns":
            return self.weight
        return self.weight.view(self.classes, self.k, self.in_features).mT

    def forward(self, x: Tensor) -> Tensor:
        r"""(\*batch, n) to (\*batch, classes)."""
        _check.matrix("GrassmannLinear", "x", x, least=1)
        if x.shape[-1] != self.in_features:
            raise ValueError(f"GrassmannLinear: x: expected (*batch, {self.in_features}), got shape {tuple(x.shape)}")
        logits: Tensor = subspace_logits(x, self.subspaces(), scale=self.scale, normalize=self.normalize)
        return logits

    def extra_repr(self) -> str:
        text = f"in_features={self.in_features}, classes={self.classes}, k={self.k}, scale={self.scale:g}"
        return f"{text}, layout={self.layout!r}, normalize={self.normalize}"


class SubspaceOrthogonalityLoss(torch.nn.Module):
    r"""How much subspaces overlap: the mean squared cosine of the principal angles between two of them.

    .. math:: \frac{1}{C (C - 1)\, k} \sum_{c \ne d} \lVert W_c^\top W_d \rVert_F^2

    for orthonormal bases: 0 where all subspaces are orthogonal to each other, 1 where they are one. The sum over all
    pairs is ‖G‖² of the Gram matrix G of all C k vectors, without its diagonal blocks; or, where C k > n, ‖S‖² of the
    n x n matrix S = sum_c W_c W_c^T less the sum of ‖W_c^T W_c‖². One class has no pairs, and a loss of 0.

    Args:
        layout: "columns", bases (\*batch, C, n, k) as :meth:`GrassmannLinear.subspaces` gives them, or "rows",
            (\*batch, C, k, n).

    Raises:
        TypeError, ValueError: an unknown layout; when called, an array that is not floating point or has fewer than 3
            dimensions.

    Source:
        The chordal similarity of subspaces, Ye and Lim 2016, Schubert varieties and distances between subspaces of
        different dimensions; as a penalty on class subspaces, Lezama et al. 2018, OLE.

    >>> import torch
    >>> from subspan.nn import SubspaceOrthogonalityLoss
    >>> axes = torch.eye(4)
    >>> loss = SubspaceOrthogonalityLoss()
    >>> print(loss(torch.stack([axes[:, :2], axes[:, 2:]])), loss(torch.stack([axes[:, :2], axes[:, 1:3]])))
    tensor(0.) tensor(0.5000)
    """

    def __init__(self, *, layout: str = "columns") -> None:
        super().__init__()
        _check.choice("SubspaceOrthogonalityLoss", "layout", layout, _LAYOUTS)
        self.layout = layout

    def forward(self, bases: Tensor) -> Tensor:
        r"""Of every item, (\*batch)."""
        _check.matrix("SubspaceOrthogonalityLoss", "bases", bases, least=3)
        rows = (bases if self.layout == "rows" else bases.mT).to(result_dtype(bases))
        *batch, classes, k, n = rows.shape
        pairs = max(classes * (classes - 1) * k, 1)
        together = rows.reshape((*batch, classes * k, n))
        if classes * k <= n:
            gram = _gram(together).reshape((*batch, classes, k, classes, k))
            others = 1 - torch.eye(classes, dtype=rows.dtype, device=rows.device)
            return (gram * others[:, None, :, None]).square().sum((-1, -2, -3, -4)) / pairs
        total = _gram(together.mT).square().sum((-1, -2))
        return (total - _gram(rows).square().sum((-1, -2, -3))) / pairs

    def extra_repr(self) -> str:
        return f"layout={self.layout!r}"


def _gram(rows: Tensor) -> Tensor:
    """Inner products of rows, which autocast does not lower."""
    gram: Tensor = affine_product(rows, rows.view_as(rows))  # a compiler wants two arguments to be two tensors
    return gram
