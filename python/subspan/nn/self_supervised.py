"""Losses of self-supervised learning that rest on coding rates and covariances of the features of several views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from .. import _check
from ..ops.coding_rate import coding_rate
from ..ops.covariance_contrast import covariance_contrast


def _at_least_single(features: Tensor) -> Tensor:
    """Means and sums of squares are not left to half precision."""
    return features.float() if features.dtype in (torch.float16, torch.bfloat16) else features


def _views(op: str, z: Tensor | Sequence[Tensor]) -> Tensor:
    """(views, n, d) from a stack or a list of views."""
    stacked = z if isinstance(z, Tensor) else torch.stack(list(z))
    _check.matrix(op, "z", stacked)
    if stacked.ndim != 3:
        raise ValueError(f"{op}: z: expected (views, n, d) or a list of (n, d), got shape {tuple(stacked.shape)}")
    return stacked


class EMPSSLLoss(torch.nn.Module):
    r"""EMP-SSL: patches of one image agree with their mean, features of different images spread out.

    .. math:: -\text{inv\_coef}\; \frac1V \sum_v \frac1n \sum_i \cos(z_{vi}, \bar z_i)
        - \text{tcr\_coef}\; \frac1V \sum_v \tfrac12 \log\det\left(I + \frac{d}{n\,\text{tcr\_eps}} Z_v^\top Z_v\right)

    with the mean over views :math:`\bar z_i`. To change over from EMP-SSL's ``main.py``: ``EMPSSLLoss(args.eps,
    args.patch_sim, args.tcr)`` on ``z_proj.chunk(num_patches)`` is ``patch_sim * loss_contract + tcr * loss_TCR``. From
    lightly change the import; but mind the sign below.

    What differs: one call for all views, the smaller Gram matrix, no half-precision Gram matrix. lightly's class of
    this name **adds** the coding rate, so that minimising it contracts the features; this one subtracts it, as the
    paper and its repository do. ``tcr_coef=-1`` gives lightly's sign.

    Args:
        tcr_eps: epsilon **squared**, the name is that of the repositories; number > 0.
        inv_coef: weight of the invariance term.
        tcr_coef: weight of the coding rate.

    Raises:
        TypeError, ValueError: a parameter is not a finite number, or tcr_eps is not > 0.

    Source:
        Tong et al. 2023, EMP-SSL; ``main.py`` and ``TotalCodingRate`` of tsb0601/EMP-SSL, ``EMPSSLLoss`` of lightly.

    >>> import torch
    >>> from subspan.nn import EMPSSLLoss
    >>> z = torch.eye(4).expand(2, 4, 4)  # two views that agree, four orthogonal images
    >>> print(f"{EMPSSLLoss(tcr_eps=0.5)(z).item():.4f}")
    -202.1972
    """

    def __init__(self, tcr_eps: float = 0.2, inv_coef: float = 200.0, tcr_coef: float = 1.0) -> None:
        super().__init__()
        self.tcr_eps = _check.positive("EMPSSLLoss", "tcr_eps", tcr_eps)
        self.inv_coef = _check.number("EMPSSLLoss", "inv_coef", inv_coef)
        self.tcr_coef = _check.number("EMPSSLLoss", "tcr_coef", tcr_coef)

    def forward(self, z: Tensor | Sequence[Tensor]) -> Tensor:
        """The loss, a 0-d tensor, of views (V, n, d) or of a list of V views (n, d)."""
        views = _views("EMPSSLLoss", z)
        single = _at_least_single(views)
        agreement = cosine_similarity(single, single.mean(0, keepdim=True), dim=-1).mean()
        rate: Tensor = coding_rate(views, self.tcr_eps).mean()
        return -self.inv_coef * agreement - self.tcr_coef * rate

    def extra_repr(self) -> str:
        return f"tcr_eps={self.tcr_eps:g}, inv_coef={self.inv_coef:g}, tcr_coef={self.tcr_coef:g}"


class SimDINOExpansion(torch.nn.Module):
    r"""SimDINO's expansion term, which keeps features from collapsing; SimDINO subtracts it from the loss.

    .. math:: \frac{p + Nm}{pNm}\; \frac1V \sum_v \tfrac12 \log\det\left(I + \frac{p}{mN\,\text{eps}} G_v\right)

    with m samples of p features per view and process, and G_v = Z_v^T Z_v, summed over processes with reduce_cov.

    What differs: the Gram matrix is never rounded to half precision, whatever autocast says, and the factorisation
    cannot break down: with bfloat16 Gram matrices I + alpha G is indefinite as soon as features come close to collapse,
    and the NaN of a failed factorisation enters the weights.

    Args:
        eps: epsilon **squared**, the name is that of the repository; number > 0.
        reduce_cov: sum Gram matrices over the processes, so that the rate is that of all samples.
        world_scaling: "simdino" takes the number of processes for N even where Gram matrices are not summed, as the
            repository does: alpha shrinks with every process added, which weakens the term at the same eps. "local"
            takes the number of processes whose samples are in G_v: 1 without reduce_cov.
        group: the process group; None is the default group, or one process where none is initialised.

    Raises:
        TypeError, ValueError: a wrong parameter.

    Source:
        Wu et al. 2025, Simplifying DINO via Coding Rate Regularization; ``MCRLoss.calc_expansion`` in ``main_dino.py``
        of RobinWu218/SimDINO.

    >>> import torch
    >>> from subspan.nn import SimDINOExpansion
    >>> collapsed = torch.nn.functional.normalize(torch.ones(2, 64, 256), dim=-1)
    >>> print(f"{SimDINOExpansion(eps=0.05)(collapsed).item() * 256 * 64 / (256 + 64):.4f}")  # 1/2 log(1 + p / eps)
    4.2706
    """

    def __init__(
        self, eps: float = 0.5, reduce_cov: bool = False, world_scaling: str = "simdino", group: Any = None
    ) -> None:
        super().__init__()
        op = "SimDINOExpansion"
        self.eps = _check.positive(op, "eps", eps)
        self.reduce_cov = bool(reduce_cov)
        _check.choice(op, "world_scaling", world_scaling, {"simdino": 0, "local": 1})
        self.world_scaling = world_scaling
        self.group = group

    def forward(self, z: Tensor | Sequence[Tensor]) -> Tensor:
        """The expansion term, a 0-d tensor to be maximised, of views (V, m, p) or of a list of V views (m, p)."""
        views = _views("SimDINOExpansion", z)
        samples, features = views.shape[-2:]
        world = _world_size(self.group)
        counted = world if self.reduce_cov or self.world_scaling == "simdino" else 1
        total = samples * counted
        if total == 0:
            nothing: Tensor = coding_rate(views, self.eps).mean()  # no samples: 0
            return nothing
        alpha = features / (total * self.eps)
        reduced = {"group": _group(self.group)} if self.reduce_cov and world > 1 else {}
        rate: Tensor = coding_rate(views, None, alpha=alpha, **reduced).mean()
        return rate * ((features + total) / (features * total))

    def extra_repr(self) -> str:
        return f"eps={self.eps:g}, reduce_cov={self.reduce_cov}, world_scaling={self.world_scaling!r}"


def _world_size(group: Any) -> int:
    distributed = torch.distributed
    return distributed.get_world_size(group) if distributed.is_available() and distributed.is_initialized() else 1


def _group(group: Any) -> Any:
    return torch.distributed.group.WORLD if group is None else group


class TiCoLoss(torch.nn.Module):
    r"""TiCo: two views agree, and features avoid the directions that were used before.

    .. math:: -\frac1n \sum_i \langle z_{1i}, z_{2i}\rangle + \rho\, \frac1n \sum_i z_{1i}^\top C' z_{1i}, \qquad
        C' = \beta C + (1 - \beta)\, \tfrac1n z_1^\top z_1

    with rows normalised to length 1. The covariance goes in and comes out, as in the repository, so that the module has
    no state of its own and is safe to recompute::

        loss, C = criterion(C, query, key)

    Differences between implementations: lightly adds the constant 1 and, in its first version, centres the features
    before normalising (``center=True``). The published code differentiates C' as well; ``detach_covariance=True`` does
    not. Here the second product with C' is not needed, and half-precision features are summed in single precision.

    Args:
        beta: number in [0, 1], how much of C is kept.
        rho: weight of the covariance contrast.
        center: subtract the mean over samples before normalising.
        detach_covariance: hold C' constant in the gradient.

    Raises:
        TypeError, ValueError: a wrong parameter.

    Source:
        Zhu et al. 2022, TiCo; ``TiCo_Loss`` of sayannag/TiCo-pytorch, ``TiCoLoss`` of lightly.

    >>> import torch
    >>> from subspan.nn import TiCoLoss
    >>> loss, C = TiCoLoss(beta=0.5, rho=8.0)(torch.zeros(2, 2), torch.eye(2), torch.eye(2))
    >>> print(f"{loss.item():.4f}")  # -1 + 8 / 4
    1.0000
    """

    def __init__(
        self, beta: float = 0.9, rho: float = 20.0, *, center: bool = False, detach_covariance: bool = False
    ) -> None:
        super().__init__()
        self.beta = _check.number("TiCoLoss", "beta", beta)
        if not 0 <= self.beta <= 1:
            raise ValueError(f"TiCoLoss: beta: expected a number in [0, 1], got {beta}")
        self.rho = _check.number("TiCoLoss", "rho", rho)
        self.center, self.detach_covariance = bool(center), bool(detach_covariance)

    def forward(self, C: Tensor, x_1: Tensor, x_2: Tensor) -> tuple[Tensor, Tensor]:
        r"""The loss and the covariance for the next batch.

        Args:
            C: (d, d), zeros to begin with.
            x_1, x_2: (n, d) or (\*batch, n, d), features of two views; x_2 usually of a momentum encoder.

        Returns:
            loss, (\*batch), and C', (\*batch, d, d), which carries no gradient.
        """
        if x_1.shape != x_2.shape:
            raise ValueError(f"TiCoLoss: x_2: expected the shape of x_1 {tuple(x_1.shape)}, got {tuple(x_2.shape)}")
        z_1, z_2 = self._unit(x_1), self._unit(x_2)
        agreement = (z_1 * z_2).sum(-1).mean(-1)
        contrast, C = covariance_contrast(z_1, C, self.beta, detach_covariance=self.detach_covariance)
        return self.rho * contrast - agreement, C

    def _unit(self, x: Tensor) -> Tensor:
        x = _at_least_single(x)
        return normalize(x - x.mean(-2, keepdim=True) if self.center else x, dim=-1)

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}, rho={self.rho:g}, center={self.center}, detach_covariance={self.detach_covariance}"


class BarlowLoss(torch.nn.Module):
    r"""Barlow Twins: the cross-correlation of two views is the identity.

    .. math:: \sum_a (c_{aa} - 1)^2 + \lambda \sum_{a \neq b} c_{ab}^2, \qquad c = \tfrac1n \hat z_1^\top \hat z_2

    with features standardised over the samples.

    Implementations differ in the standard deviation. The one of SimTPR divides by n - 1 in it and by n in c, so that a
    perfect correlation is (n - 1)/n and the loss of identical views is not 0: the default here. Barlow Twins uses a
    batch normalisation: ``BarlowLoss(unbiased=False, eps=1e-5)``.

    Args:
        lmbda: weight of the off-diagonal entries.
        unbiased: divide by n - 1 in the standard deviation.
        eps: added to the variance; 0 leaves a constant feature NaN, as in SimTPR.

    Raises:
        TypeError, ValueError: lmbda or eps is not a finite number, eps is negative.

    Source:
        Zbontar et al. 2021, Barlow Twins; ``BarlowLoss`` of dojeon-ai/SimTPR.

    >>> import torch
    >>> from subspan.nn import BarlowLoss
    >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])  # uncorrelated features
    >>> print(f"{BarlowLoss(unbiased=False)(z, z).item():.4f} {BarlowLoss()(z, z).item():.4f}")  # 2 (1/4)^2
    0.0000 0.1250
    """

    def __init__(self, lmbda: float = 0.005, *, unbiased: bool = True, eps: float = 0.0) -> None:
        super().__init__()
        self.lmbda = _check.number("BarlowLoss", "lmbda", lmbda)
        self.unbiased = bool(unbiased)
        self.eps = _check.number("BarlowLoss", "eps", eps)
        if self.eps < 0:
            raise ValueError(f"BarlowLoss: eps: expected a number >= 0, got {eps}")

    def forward(self, z_1: Tensor, z_2: Tensor) -> Tensor:
        r"""The loss (\*batch) of two views (\*batch, n, d)."""
        if z_1.shape != z_2.shape or z_1.ndim < 2:
            raise ValueError(
                f"BarlowLoss: z_2: expected (*batch, n, d) as z_1 {tuple(z_1.shape)}, got {tuple(z_2.shape)}"
            )
        with torch.autocast(z_1.device.type, enabled=False):
            correlation = self._standard(z_1).mT @ self._standard(z_2) / z_1.shape[-2]
        on_diagonal = (correlation.diagonal(dim1=-2, dim2=-1) - 1).square().sum(-1)
        others = correlation - torch.diag_embed(correlation.diagonal(dim1=-2, dim2=-1))
        return on_diagonal + self.lmbda * others.square().sum((-1, -2))

    def _standard(self, z: Tensor) -> Tensor:
        z = _at_least_single(z)
        variance, mean = torch.var_mean(z, -2, correction=int(self.unbiased), keepdim=True)
        return (z - mean) / (variance + self.eps).sqrt()

    def extra_repr(self) -> str:
        return f"lmbda={self.lmbda:g}, unbiased={self.unbiased}, eps={self.eps:g}"
