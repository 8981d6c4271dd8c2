"""Random orthogonal projections of tokens, which take the place of masks in image modelling."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _check
from ..ops.orthonormalize import orthonormalize

_KINDS = {"sketch": 0, "dense": 1}


class RandomOrthogonalProjection(torch.nn.Module):
    r"""Projects tokens on a random subspace of their positions, and on its complement: ROPIM.

    .. math:: P x = R R^\top x, \qquad \bar P x = x - R R^\top x, \qquad R^\top R = I_r, \quad R \text{ is } n \times r

    x holds tokens as rows. A network sees P x and is asked for what is missing, :meth:`loss`. A "sketch" puts every
    token with a random sign into one of r buckets of nearly equal size, and R is divided by the square roots of these
    sizes, so that R R^T is a projection for any r; where r divides n it is the published count sketch times its ratio.
    "dense" takes a uniformly distributed subspace.

    Args:
        tokens: n.
        rank: r, at most n; ROPIM takes a seventh or a quarter of n.
        items: of a batch, each with a projection of its own as published; None for one that all share.
        kind: "sketch" or "dense".
        seed: of the first projection; None for torch's generator. :meth:`resample` draws the next.
        device, dtype: of the buffer ``frame``, R (n, r), or (items, n, r).

    Raises:
        TypeError, ValueError: a size is not a positive integer, rank > tokens, an unknown kind; when called, other
            tokens or items.

    Source:
        Haghighat, Moghadam, Mohamed, Koniusz 2024, Pre-training with Random Orthogonal Projection Image Modeling;
        ``data/data_ropim.py`` and ``main_ropim.py`` of csiro-robotics/ROPIM.

    >>> import torch
    >>> from subspan.nn import RandomOrthogonalProjection
    >>> projection = RandomOrthogonalProjection(tokens=196, rank=49, seed=0)
    >>> x = torch.ones(2, 196, 8)
    >>> once = projection(x)
    >>> print(bool((projection(once) - once).abs().max() < 1e-5), bool(projection(x - once).abs().max() < 1e-5))
    True True
    """

    frame: Tensor

    def __init__(
        self,
        tokens: int,
        rank: int,
        *,
        items: int | None = None,
        kind: str = "sketch",
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op = "RandomOrthogonalProjection"
        self.tokens, self.rank = _check.count(op, "tokens", tokens), _check.count(op, "rank", rank)
        if self.rank > self.tokens:
            raise ValueError(f"{op}: rank: expected at most tokens {self.tokens}, got {self.rank}")
        self.items = None if items is None else _check.count(op, "items", items)
        _check.choice(op, "kind", kind, _KINDS)
        self.kind = kind
        batch = () if self.items is None else (self.items,)
        self.register_buffer("frame", torch.empty(*batch, self.tokens, self.rank, device=device, dtype=dtype))
        self.resample(None if seed is None else torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def resample(self, generator: torch.Generator | None = None) -> None:
        """Draws new projections from a generator on the CPU, or from torch's own. In place."""
        if generator is not None and not isinstance(generator, torch.Generator):
            name = type(generator).__name__
            raise TypeError(f"RandomOrthogonalProjection: generator: expected a torch.Generator, got {name}")
        draw = self._sketch if self.kind == "sketch" else self._dense
        self.frame.copy_(torch.stack([draw(generator) for _ in range(self.items or 1)]).reshape(self.frame.shape))

    def _sketch(self, generator: torch.Generator | None) -> Tensor:
        """Buckets by permutations one after the other; as many signs of either kind, shuffled, but for an odd one."""
        rounds = -(-self.tokens // self.rank)
        permutations = [torch.randperm(self.rank, generator=generator) for _ in range(rounds)]
        buckets = torch.cat(permutations)[: self.tokens]
        signs = torch.where(torch.randperm(self.tokens, generator=generator) % 2 == 0, 1.0, -1.0).double()
        sizes = torch.bincount(buckets, minlength=self.rank).double()
        frame = torch.zeros(self.tokens, self.rank, dtype=torch.float64)
        frame[torch.arange(self.tokens), buckets] = signs / sizes[buckets].sqrt()
        return frame

    def _dense(self, generator: torch.Generator | None) -> Tensor:
        basis: Tensor = orthonormalize(
            torch.randn(self.tokens, self.rank, generator=generator, dtype=torch.float64, device="cpu")
        )
        return basis

    def forward(self, x: Tensor) -> Tensor:
        r"""P x of tokens (\*batch, n, d), or (items, n, d)."""
        op = "RandomOrthogonalProjection"
        _check.matrix(op, "x", x)
        own_items = self.items is None or (x.ndim == 3 and x.shape[0] == self.items)
        if x.shape[-2] != self.tokens or not own_items:
            expected = f"(*batch, {self.tokens}, d)" if self.items is None else f"({self.items}, {self.tokens}, d)"
            raise ValueError(f"{op}: x: expected {expected}, got shape {tuple(x.shape)}")
        frame = self.frame.to(x.dtype)
        projected: Tensor = frame @ (frame.mT @ x)
        return projected

    def complement(self, x: Tensor) -> Tensor:
        """x - P x."""
        return x - self.forward(x)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The mean absolute value of the complement of prediction - target, both (..., n, d): what the projection took
        away is to be restored, and what it kept does not count."""
        if prediction.shape != target.shape:
            expected = f"the shape of target {tuple(target.shape)}"
            got = f"got shape {tuple(prediction.shape)}"
            raise ValueError(f"RandomOrthogonalProjection: prediction: expected {expected}, {got}")
        return self.complement(prediction - target).abs().mean()

    def extra_repr(self) -> str:
        items = "" if self.items is None else f", items={self.items}"
        return f"tokens={self.tokens}, rank={self.rank}{items}, kind={self.kind!r}"
