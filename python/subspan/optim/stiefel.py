"""Descent on orthonormal frames: SGD with momentum and Adam on the Stiefel manifold."""

from __future__ import annotations

from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _check, _native, _route
from ..composite.factor import factor_dtype
from ..composite.stiefel_step import stiefel_step
from ._descent import Descent, Job, check_betas, check_floating, check_lr, check_nonnegative, grouped

_LAYOUTS = {"columns": 0, "rows": 1}
_METRICS = {"euclidean": 0, "canonical": 1}
_RETRACTIONS = {"qr": 0, "polar": 1}
_REAL = (torch.float32, torch.float64)

#: X is taken for a frame if X^T X is this close to I: one of bfloat16 comes within 1e-2, another matrix hardly does.
_NEAR = 0.1

#: Tensors of a state, in the order of the kernel's arguments.
_LARGEST = "largest_second_moment"
_STATE = ("momentum_buffer", "second_moment", _LARGEST)


class _Settings(NamedTuple):
    """Numbers and ways of a step, in the order of the kernel's arguments."""

    momentum: float
    share: float
    beta2: float
    eps: float
    nesterov: bool
    maximize: bool
    canonical: bool
    polar: bool
    rows: bool


class _StiefelDescent(Descent):
    """What the two have in common: the check of a group and the call of the kernel."""

    _own_type = _STATE[1:]
    _negates = False  # the kernel does

    def _check_group(self, group: dict[str, Any]) -> None:
        op = self._name
        check_lr(op, group["lr"])
        if _check.number(op, "weight_decay", group["weight_decay"]) != 0:
            reason = "X is orthogonal to every tangent vector, so that decay would change nothing but its rounding"
            raise ValueError(f"{op}: weight_decay: expected 0, got {group['weight_decay']}: {reason}")
        _check.choice(op, "retraction", group["retraction"], _RETRACTIONS)
        _check.choice(op, "metric", group["metric"], _METRICS)
        _check.flag(op, "maximize", group["maximize"])
        rows = _check.choice(op, "layout", group["layout"], _LAYOUTS) == 1
        check_floating(op, group["params"])
        for parameter in group["params"]:
            shape = tuple(parameter.shape)
            n, k = (0, 0) if len(shape) < 2 else shape[-2:][::-1] if rows else shape[-2:]
            if len(shape) < 2 or n < k:
                expected = "(*batch, k, n)" if rows else "(*batch, n, k)"
                raise ValueError(f"{op}: params: expected {expected} with n >= k, got shape {shape}")
            _check_frame(op, parameter, rows)

    def _new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def _settings(self, group: dict[str, Any], fresh: bool) -> _Settings:
        raise NotImplementedError

    def _ways(self, group: dict[str, Any]) -> tuple[bool, bool, bool, bool]:
        canonical, polar = group["metric"] == "canonical", group["retraction"] == "polar"
        return bool(group["maximize"]), canonical, polar, group["layout"] == "rows"

    def _update(self, jobs: list[Job]) -> None:
        fresh = {id(parameter) for parameter, _, _ in jobs if not self.state[parameter]}
        for same in grouped(jobs, lambda job: (id(job[2]), id(job[0]) in fresh)):
            group = same[0][2]
            new = id(same[0][0]) in fresh
            for parameter, _, _ in same:
                state = self.state[parameter]
                if new:
                    state.update(self._new_state(parameter, group))
                elif group.get("amsgrad") and _LARGEST not in state:  # asked for since
                    state[_LARGEST] = state["second_moment"].clone()
                if "step" in state:
                    state["step"] += 1
            settings, rate = self._settings(group, new), group["lr"]
            readable = not isinstance(rate, Tensor) or rate.is_cpu
            served, others = _by_path(same) if readable else ([], same)
            if served:
                self._by_kernel(served, float(rate), settings)
            self._by_composite(others, rate, settings)

    def _by_kernel(self, jobs: list[Job], rate: float, settings: _Settings) -> None:
        parameters, gradients = [job[0] for job in jobs], [job[1] for job in jobs]
        states = [self.state[parameter] for parameter in parameters]
        lists = [[state[name] for state in states if name in state] for name in _used(jobs[0][2])]
        lists += [[]] * (len(_STATE) - len(lists))
        steps = [float(state.get("step", 0)) for state in states]
        _native.cpu.stiefel_step(parameters, gradients, *lists, steps, rate, *settings, _route.threads())
        for changed in chain(parameters, *lists):
            torch.autograd.graph.increment_version(changed)

    def _by_composite(self, jobs: list[Job], rate: float | Tensor, settings: _Settings) -> None:
        for parameter, gradient, group in jobs:
            state = self.state[parameter]
            steps = state.get("step", 0)
            if isinstance(steps, Tensor):
                steps = steps.to(factor_dtype(parameter))
            buffer, second, largest = (state.get(name) if name in _used(group) else None for name in _STATE)
            stiefel_step(parameter, gradient, buffer, second, largest, steps, rate, *settings)


def _used(group: dict[str, Any]) -> tuple[str, ...]:
    return _STATE if group.get("amsgrad") else _STATE[:2]


def _by_path(jobs: list[Job]) -> tuple[list[Job], list[Job]]:
    """Those that the kernel serves, and the others."""
    if not _route.kernel_serves([tensor for job in jobs for tensor in job[:2]]):
        parts = [_by_path([job]) for job in jobs] if len(jobs) > 1 else [([], jobs)]
        return [job for served, _ in parts for job in served], [job for _, others in parts for job in others]

    def real(job: Job) -> bool:
        return job[0].dtype in _REAL and job[1].dtype == job[0].dtype and job[0].ndim <= _check.MAX_DIMS

    return [job for job in jobs if real(job)], [job for job in jobs if not real(job)]


def _check_frame(op: str, parameter: Tensor, rows: bool) -> None:
    """Values are read where that waits for no device."""
    if not _check.readable(parameter) or not parameter.numel():
        return
    X = parameter.detach().to(torch.float64)
    X = X.mT if rows else X
    distance = float((X.mT @ X - torch.eye(X.shape[-1], dtype=X.dtype)).abs().max())
    if not distance <= _NEAR:
        raise ValueError(
            f"{op}: params: expected orthonormal {'rows' if rows else 'columns'} (subspan.orthonormalize makes them), "
            f"got max |X^T X - I| = {distance:.2g}"
        )


class StiefelSGD(_StiefelDescent):
    r"""SGD with momentum for parameters with orthonormal columns, which stay orthonormal.

    .. math::
        r = \operatorname{grad}_X(G), \qquad b \leftarrow \mu\, b + (1 - \tau)\, r, \qquad
        Y = R_X(-\eta\, u), \quad u = b \text{ or } r + \mu b, \qquad b \leftarrow P_Y(b), \qquad X \leftarrow Y

    with grad the Riemannian gradient of :func:`subspan.egrad_to_rgrad`, R the retraction of :func:`subspan.retract` and
    P the projection of :func:`subspan.project_tangent`, which carries the momentum along. All k x k work is in float64,
    and the retraction starts from what X is, not from what it should be: rounding does not add up over any number of
    steps, and there is nothing to stabilise.

    Args:
        params: frames (\*batch, n, k), n >= k, with orthonormal columns, or groups of them. They are checked where
            values can be read without waiting for a device; deviations of X^T X from I up to 0.1 go with the first
            step.
        lr: eta, a number >= 0 or a tensor of one element.
        momentum: mu, >= 0.
        dampening: tau; the first gradient is not dampened.
        nesterov: steps along r + mu b in place of b.
        retraction: "qr", with a positive diagonal of R, or "polar".
        metric: "euclidean" or "canonical", in which the gradient is taken.
        layout: "rows" for frames as rows, (\*batch, k, n).
        weight_decay: 0. It has no meaning here and raises: X is orthogonal to every tangent vector.
        maximize: ascends.

    State: "momentum_buffer". A step synchronises with no device, so that it can be captured in a CUDA graph.

    Raises:
        TypeError, ValueError: a number out of range, weight decay, parameters with n < k or whose columns are not
            orthonormal, complex ones, sparse gradients.

    Cost:
        On the CPU, in float32 and float64, one call of a kernel for all frames of all parameters, 12 n k^2 flops for
        each: X, gradient and momentum are read once where a frame fits into the second cache, else twice; X and
        momentum are written once. 20 n k^2 with Nesterov's momentum. Elsewhere in torch operations. Steps of a norm
        beyond 1e7 lose X in rounding and may give NaN.

    Source:
        Bonnabel 2013, Stochastic gradient descent on Riemannian manifolds; Absil, Mahony, Sepulchre 2008, sections 4.1
        and 8.1. Replaces ``geoopt.optim.RiemannianSGD`` on ``geoopt.Stiefel(canonical=False)``, whose step this is; the
        one on ``geoopt.Stiefel()`` solves with n x n matrices.

    >>> import torch, subspan
    >>> A = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    >>> X = torch.nn.Parameter(torch.linalg.qr(torch.randn(4, 2)).Q)
    >>> optimiser = subspan.optim.StiefelSGD([X], lr=0.1, momentum=0.8, maximize=True)
    >>> for _ in range(300):
    ...     optimiser.zero_grad()
    ...     (X.mT @ A @ X).trace().backward()
    ...     optimiser.step()
    >>> print(round((X.mT @ A @ X).trace().item(), 4))
    7.0
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        *,
        retraction: str = "qr",
        metric: str = "euclidean",
        layout: str = "columns",
        weight_decay: float = 0.0,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "nesterov": nesterov,
            "retraction": retraction,
            "metric": metric,
            "layout": layout,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        check_nonnegative(self._name, "momentum", group["momentum"])
        _check.number(self._name, "dampening", group["dampening"])
        _check.flag(self._name, "nesterov", group["nesterov"])
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                f"{self._name}: nesterov: expected a momentum > 0 and no dampening with it, "
                f"got momentum {group['momentum']} and dampening {group['dampening']}"
            )
        super()._check_group(group)

    def _new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        if group["momentum"] == 0:
            return {}
        return {"momentum_buffer": torch.zeros_like(parameter, memory_format=torch.preserve_format)}

    def _settings(self, group: dict[str, Any], fresh: bool) -> _Settings:
        share = 1.0 if fresh else 1.0 - group["dampening"]
        nesterov = bool(group["nesterov"])
        return _Settings(float(group["momentum"]), share, 0.0, 0.0, nesterov, *self._ways(group))


class StiefelAdam(_StiefelDescent):
    r"""Adam for parameters with orthonormal columns, which stay orthonormal.

    .. math::
        r = \operatorname{grad}_X(G), \qquad m \leftarrow \beta_1 m + (1 - \beta_1)\, r, \qquad
        v \leftarrow \beta_2 v + (1 - \beta_2) \langle r, r \rangle_X

    .. math::
        Y = R_X\Bigl(-\eta\, \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \varepsilon}\Bigr), \qquad
        m \leftarrow P_Y(m), \qquad X \leftarrow Y

    The second moment v is one number for a frame: entries of a tangent vector have no scale of their own that would
    survive a change of coordinates, its length has. So Becigneul and Ganea define it for a product of manifolds, here
    that of all frames; the corrections of bias, which they leave out, are those of Adam and of geoopt. For Y, the
    gradient and what is kept orthonormal see :class:`StiefelSGD`.

    Args:
        params: frames (\*batch, n, k), n >= k, with orthonormal columns, or groups of them, as in ``StiefelSGD``. Each
            item of a batch is a frame with a second moment of its own.
        lr: eta, a number >= 0 or a tensor of one element. A step has about this length in the metric.
        betas: beta_1 and beta_2, in [0, 1).
        eps: > 0.
        amsgrad: divides by the largest v so far, as the convergence proof asks.
        retraction: "qr", with a positive diagonal of R, or "polar".
        metric: "euclidean" or "canonical": of the gradient and of its length.
        layout: "rows" for frames as rows, (\*batch, k, n).
        weight_decay: 0. It has no meaning here and raises: X is orthogonal to every tangent vector.
        maximize: ascends.
        capturable: counts steps in a tensor on the device of the parameter, so that a step can be captured in a CUDA
            graph.

    State: "step", with ``capturable`` a tensor; "momentum_buffer"; "second_moment" (\*batch, 1, 1) and, with
    ``amsgrad``, "largest_second_moment".

    Raises:
        TypeError, ValueError: a number out of range, weight decay, parameters with n < k or whose columns are not
            orthonormal, complex ones, sparse gradients.

    Cost:
        As ``StiefelSGD``, with 2 n k^2 flops more for each frame.
        Where gradients are nearly normal to the manifold, near an optimum, m / v^1/2 times the rate stands for a long
        vector of which little is tangent. With L its length before the projection, a step then leaves X orthonormal to
        L^2 roundings of float64, which the next step takes out again.

    Source:
        Becigneul, Ganea 2019, Riemannian Adaptive Optimization Methods. Replaces ``geoopt.optim.RiemannianAdam`` on
        ``geoopt.Stiefel(canonical=False)``, whose step this is.

    >>> import torch, subspan
    >>> A = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    >>> X = torch.nn.Parameter(torch.linalg.qr(torch.randn(4, 2)).Q)
    >>> optimiser = subspan.optim.StiefelAdam([X], lr=0.1, maximize=True)
    >>> for _ in range(300):
    ...     optimiser.zero_grad()
    ...     (X.mT @ A @ X).trace().backward()
    ...     optimiser.step()
    >>> print(round((X.mT @ A @ X).trace().item(), 3))
    7.0
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        amsgrad: bool = False,
        *,
        retraction: str = "qr",
        metric: str = "euclidean",
        layout: str = "columns",
        weight_decay: float = 0.0,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "amsgrad": amsgrad,
            "retraction": retraction,
            "metric": metric,
            "layout": layout,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "capturable": capturable,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        check_betas(self._name, group["betas"])
        _check.positive(self._name, "eps", group["eps"])
        _check.flag(self._name, "amsgrad", group["amsgrad"])
        _check.flag(self._name, "capturable", group["capturable"])
        super()._check_group(group)

    def _new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        kind = _check.COMPUTE_DTYPE[parameter.dtype]
        moments = torch.zeros(*parameter.shape[:-2], 1, 1, dtype=kind, device=parameter.device)
        state = {
            "step": torch.zeros((), device=parameter.device) if group["capturable"] else 0,
            "momentum_buffer": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "second_moment": moments,
        }
        if group["amsgrad"]:
            state[_LARGEST] = moments.clone()
        return state

    def _settings(self, group: dict[str, Any], fresh: bool) -> _Settings:
        beta1, beta2 = map(float, group["betas"])
        return _Settings(beta1, 1 - beta1, beta2, float(group["eps"]), False, *self._ways(group))
