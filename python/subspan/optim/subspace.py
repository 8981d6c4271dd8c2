"""Adam in a subspace of few dimensions that follows the gradient: Online Subspace Descent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _check
from ..composite.factor import factor_dtype
from ..ops.orthonormalize import orthonormalize
from ._descent import Descent, Job, check_betas, check_floating, check_lr, check_nonnegative, grouped

#: delta: a D that is no longer than this is hardly known, for all float32 can tell.
_ROUNDING = 1e-4


class OnlineSubspaceDescent(Descent):
    r"""Adam for matrices whose moments live in a subspace of few dimensions, which follows the gradient by online PCA.

    With the longer side of W, G as columns, W being m x n, m <= n or transposed for it, and a frame P (m, r):

    .. math::
        g = P^\top G, \qquad M \leftarrow \beta_1 M + (1 - \beta_1) g, \qquad
        V \leftarrow \beta_2 V + (1 - \beta_2) g^2

    .. math::
        W \leftarrow (1 - \eta \lambda) W - \eta\, \alpha\, P\,
        \frac{M / (1 - \beta_1^t)}{\sqrt{V / (1 - \beta_2^t)} + \varepsilon}

    .. math::
        P \leftarrow \operatorname{polar}\Bigl(P + \eta_P\, \frac{D}{\|D\|_F + \delta}\Bigr), \qquad
        D = (I - P P^\top)\, \frac{G}{\|G\|_F} \Bigl(\frac{P^\top G}{\|P^\top G\|_F}\Bigr)^\top, \qquad
        \delta = 10^{-4}

    D is a negative multiple of the gradient of the loss of PCA, |G - P P^T G|^2, on the Stiefel manifold. The published
    method lets Adam change the entries of P and holds it near the manifold by a penalty; here P stays orthonormal to
    rounding, so that P P^T is a projection at every step. As in Adam, the length of a step does not depend on that of
    D, which vanishes not only where P holds the leading directions but also where it holds none of G: what the weights
    have just learned in P's directions leaves just that. Delta keeps rounding from turning P. The polar factor turns P
    within its span as little as possible, hence moments are kept as they are. P begins as the leading singular vectors
    of the first gradient.

    Args:
        params: matrices, or groups of them. A group without ``rank``, and matrices whose shorter side is at most
            ``rank``, are updated as by ``torch.optim.AdamW``, parameters of any shape: one optimiser serves a model.
        lr: eta, a number >= 0 or a tensor of one element.
        betas: beta_1 and beta_2, in [0, 1).
        eps: > 0.
        weight_decay: lambda, decoupled: >= 0.
        rank: r, or None for an ordinary parameter.
        scale: alpha, > 0.
        subspace_lr: eta_P, >= 0: by what angle, in radian, P turns in a step. Of the published code's 1 /
            ``update_proj_gap`` it is the (m r)^1/2-fold.
        maximize: ascends.
        capturable: counts steps in a tensor on the device of the parameter, so that a step can be captured in a CUDA
            graph once P has been found, in the first step.

    State: "step", with ``capturable`` a tensor; "frame", P; "exp_avg" and "exp_avg_sq", M and V (r, n). All but the
    counter are of the type that is computed in, float32 for half precision.

    Raises:
        TypeError, ValueError: a number out of range, parameters that are no matrices where there is a rank, complex
            ones, sparse gradients.

    Cost:
        8 m n r flops and the polar factor of an m x r matrix, in torch operations; one singular value decomposition, in
        the first step. Memory m r + 2 r n in place of Adam's 2 m n. Nothing synchronises with a device.

    Source:
        Liang, Liu, Chen, Liu 2024, Memory-Efficient LLM Training with Online Subspace Descent (arXiv 2408.12857); Zhao
        et al. 2024, GaLore (arXiv 2403.03507). Replaces ``GaLoreAdamW`` with ``proj_type="continuous"``.

    >>> import torch, subspan
    >>> W = torch.nn.Parameter(torch.zeros(20, 50))
    >>> optimiser = subspan.optim.OnlineSubspaceDescent([W], lr=0.1, rank=4)
    >>> (W - torch.ones(20, 50)).square().sum().backward()
    >>> optimiser.step()
    >>> print(tuple(optimiser.state[W]["exp_avg"].shape))
    (4, 50)
    """

    _own_type = ("frame", "exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        rank: int | None = None,
        scale: float = 1.0,
        subspace_lr: float = 0.2,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "rank": rank,
            "scale": scale,
            "subspace_lr": subspace_lr,
            "maximize": maximize,
            "capturable": capturable,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        op = self._name
        check_lr(op, group["lr"])
        check_betas(op, group["betas"])
        _check.positive(op, "eps", group["eps"])
        _check.positive(op, "scale", group["scale"])
        check_nonnegative(op, "weight_decay", group["weight_decay"])
        check_nonnegative(op, "subspace_lr", group["subspace_lr"])
        for name in ("maximize", "capturable"):
            _check.flag(op, name, group[name])
        check_floating(op, group["params"])
        if group["rank"] is None:
            return
        _check.count(op, "rank", group["rank"])
        for parameter in group["params"]:
            if parameter.ndim != 2:
                raise ValueError(f"{op}: params: expected matrices with a rank, got shape {tuple(parameter.shape)}")

    def _update(self, jobs: list[Job]) -> None:
        """Matrices of one shape and group are worked on as one batch."""

        def key(job: Job) -> Any:
            parameter, gradient, group = job
            fresh, projected = not self.state[parameter], _projected(parameter, group)
            count = None if fresh or group["capturable"] else self.state[parameter]["step"]
            kind = parameter.dtype, gradient.dtype, parameter.device
            # Counters that are tensors are not read: each parameter then goes alone, with its own.
            alone = id(parameter) if group["capturable"] or not projected else None
            return id(group), projected, tuple(parameter.shape), kind, fresh, count, alone

        for same in grouped(jobs, key):
            self._step_together([job[0] for job in same], [job[1] for job in same], same[0][2])

    def _step_together(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        states = [self.state[parameter] for parameter in parameters]
        projected = _projected(parameters[0], group)
        kind = _check.COMPUTE_DTYPE[parameters[0].dtype]
        turned = projected and parameters[0].shape[0] > parameters[0].shape[1]
        G = torch.stack([gradient.to(kind) for gradient in gradients])
        G = G.mT if turned else G
        frames: Tensor | None = None
        if projected:
            known = "frame" in states[0]
            frames = torch.stack([s["frame"] for s in states]) if known else _leading(G, int(group["rank"]))
        g = G if frames is None else frames.mT @ G
        for i, state in enumerate(states):
            if not state:
                state["step"] = torch.zeros((), device=G.device) if group["capturable"] else 0
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(g[i]), torch.zeros_like(g[i])
            state["step"] += 1
        direction = self._adam(states, g, group)
        if frames is not None:
            direction = group["scale"] * (frames @ direction)
            moved = _turned_to(frames, G, g, group["subspace_lr"])
            for state, frame in zip(states, moved, strict=True):
                state["frame"] = frame.clone()
        direction = direction.mT if turned else direction
        for parameter, change in zip(parameters, direction, strict=True):
            if group["weight_decay"] != 0:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.sub_(group["lr"] * change)

    def _adam(self, states: list[dict[str, Any]], g: Tensor, group: dict[str, Any]) -> Tensor:
        beta1, beta2 = group["betas"]
        for state, gradient in zip(states, g, strict=True):
            state["exp_avg"].lerp_(gradient, 1 - beta1)
            state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        count = states[0]["step"]
        if isinstance(count, Tensor):
            count = count.to(factor_dtype(g))
        first = torch.stack([state["exp_avg"] for state in states]) / (1 - beta1**count)
        second = torch.stack([state["exp_avg_sq"] for state in states]) / (1 - beta2**count)
        direction: Tensor = first / (second.sqrt() + group["eps"])
        return direction


def _projected(parameter: Tensor, group: dict[str, Any]) -> bool:
    return group["rank"] is not None and group["rank"] < min(parameter.shape)


def _leading(G: Tensor, rank: int) -> Tensor:
    """The leading left singular vectors; NaN where a matrix is not finite."""
    good = G.isfinite().all(-1).all(-1)[..., None, None]
    U = torch.linalg.svd(torch.where(good, G, 0), full_matrices=False)[0][..., :rank]
    leading: Tensor = torch.where(good, U, torch.nan)
    return leading


def _turned_to(P: Tensor, G: Tensor, g: Tensor, rate: float) -> Tensor:
    """The polar factor of P + rate D / (|D| + delta), D = (G - P g) g^T / |G| / |g|, g = P^T G."""
    G = _unit(G)
    outward = (G - P @ (P.mT @ G)) @ _unit(g).mT
    norm = torch.linalg.matrix_norm(outward, keepdim=True)
    frame: Tensor = orthonormalize(P + rate * outward / (norm + _ROUNDING), "polar")
    return frame


def _unit(matrix: Tensor) -> Tensor:
    """Of norm 1, or 0. Divided by its largest entry first, so that squares neither overflow nor vanish."""
    largest = matrix.abs().amax((-2, -1), keepdim=True)
    matrix = matrix / torch.where(largest == 0, 1, largest)
    norm = torch.linalg.matrix_norm(matrix, keepdim=True)
    unit: Tensor = matrix / torch.where(norm == 0, 1, norm)
    return unit
