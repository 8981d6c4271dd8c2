"""Stochastic gradient descent with momentum on the Grassmann manifold, without a singular value decomposition."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _check, _native, _route
from ..composite.grassmann import grassmann_step
from ._descent import Descent, Job

_OP = "GrassmannSGD"
_LAYOUTS = {"columns": 0, "rows": 1}


class GrassmannSGD(Descent):
    r"""SGD with momentum in which chosen parameters are orthonormal bases and move along geodesics of their spans.

    .. math::
        b \leftarrow \mu\,b + (1 - \tau)\,g, \qquad D = -\eta\,(b - P P^\top b), \qquad
        P \leftarrow \exp_P(D), \qquad b \leftarrow \Gamma_D(b - P P^\top b)

    with the exponential map of :func:`subspan.grassmann_exp`, and the parallel transport along the step of
    :func:`subspan.grassmann_transport`. All k x k work is in float64.

    Args:
        params: parameters or groups of them. A group with ``k`` holds bases; one without is updated as by
            ``torch.optim.SGD``, so that one optimiser serves a whole model.
        lr: eta, >= 0. The angles of a step are the singular values of eta times the projected gradient.
        momentum: mu, >= 0.
        dampening: tau; the first gradient is not dampened.
        weight_decay: adds this multiple of the parameter to the gradient. The step of a basis ignores it, since P is
            orthogonal to every tangent vector.
        nesterov: steps along g + mu b in place of b.
        k: number of vectors of each basis, or None for ordinary parameters.
        layout: "rows": (\*batch, classes * k, n), the rows of each class one after another, as in ``nn.Linear``;
            "columns": (\*batch, n, k).
        maximize: ascends.
        momentum_transport: carries the momentum along, as a tangent vector of the new point. False keeps the sum of the
            gradients as it is and projects it at every step, as the published code does.
        reorthonormalize_every: every so many steps of a parameter its bases are made orthonormal again, by a Cholesky
            factor; rounding drifts by about one unit per step. Counted for each parameter in its state.

    Bases must be orthonormal from the start, see ``torch.nn.init.orthogonal_`` of each; small deviations are removed.

    Raises:
        TypeError, ValueError: a number out of range, bases of an unsuitable shape, sparse gradients.

    Cost:
        On the CPU, in float32 and float64, one kernel for the whole step: 12 n k^2 flops per basis; P,
        gradient and momentum are read twice, the second time from cache, P and momentum are written once. Elsewhere in
        torch operations. No SVD, no QR, no memory beyond the momentum.

    Source:
        Replaces ``RiemannianGD`` in ``gcr/rsgd.py`` of GCR: same layout and step. There a thin SVD of every class gives
        the step and a QR factorisation every fifth step, counted over all parameters, changes the signs of basis
        vectors but not of their momentum.

    >>> import torch, subspan
    >>> head = torch.nn.Parameter(torch.linalg.qr(torch.randn(4, 16, 2)).Q.mT.reshape(8, 16))  # 4 classes
    >>> optimiser = subspan.optim.GrassmannSGD([{"params": [head], "k": 2}], lr=0.1, momentum=0.9)
    >>> head.square()[:, 0].sum().backward()
    >>> optimiser.step()
    >>> bases = head.detach().unflatten(0, (4, 2))
    >>> print(bool(((bases @ bases.mT - torch.eye(2)).abs() < 1e-6).all()))
    True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        k: int | None = None,
        layout: str = "rows",
        maximize: bool = False,
        momentum_transport: bool = True,
        reorthonormalize_every: int = 5,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "k": k,
            "layout": layout,
            "maximize": maximize,
            "momentum_transport": momentum_transport,
            "reorthonormalize_every": reorthonormalize_every,
        }
        super().__init__(params, defaults)

    _negates = False  # the steps do it

    def _check_group(self, group: dict[str, Any]) -> None:
        _check_group(group)

    def _update(self, jobs: list[Job]) -> None:
        for parameter, gradient, group in jobs:
            update = _step if group["k"] is None else _step_on_manifold
            update(parameter, gradient, self.state[parameter], group)


def _check_group(group: dict[str, Any]) -> None:
    for name in ("lr", "momentum", "weight_decay"):
        if not _check.number(_OP, name, group[name]) >= 0:
            raise ValueError(f"{_OP}: {name}: expected a number >= 0, got {group[name]}")
    _check.number(_OP, "dampening", group["dampening"])
    for name in ("nesterov", "maximize", "momentum_transport"):
        _check.flag(_OP, name, group[name])
    if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
        raise ValueError(
            f"{_OP}: nesterov: expected a momentum > 0 and no dampening with it, "
            f"got momentum {group['momentum']} and dampening {group['dampening']}"
        )
    _check.count(_OP, "reorthonormalize_every", group["reorthonormalize_every"])
    rows = _check.choice(_OP, "layout", group["layout"], _LAYOUTS) == 1
    if group["k"] is None:
        return
    k = _check.count(_OP, "k", group["k"])
    for parameter in group["params"]:
        shape = tuple(parameter.shape)
        expected = "(*batch, classes * k, n)" if rows else "(*batch, n, k)"
        fits = len(shape) >= 2 and (shape[-2] % k == 0 if rows else shape[-1] == k)
        if not fits or k > shape[-1 if rows else -2]:
            raise ValueError(f"{_OP}: params: expected {expected} with n >= k = {k}, got shape {shape}")
        if not parameter.is_floating_point():
            raise TypeError(f"{_OP}: params: expected floating point parameters, got {parameter.dtype}")


def _step(parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """As torch.optim.SGD."""
    momentum = group["momentum"]
    if group["maximize"]:
        gradient = -gradient
    if group["weight_decay"] != 0:
        gradient = gradient.add(parameter, alpha=group["weight_decay"])
    if momentum != 0:
        buffer = state.get("momentum_buffer")
        if buffer is None:
            buffer = state["momentum_buffer"] = gradient.clone()
        else:
            buffer.mul_(momentum).add_(gradient, alpha=1 - group["dampening"])
        gradient = gradient.add(buffer, alpha=momentum) if group["nesterov"] else buffer
    parameter.add_(gradient, alpha=-group["lr"])


def _step_on_manifold(parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    rows, k = group["layout"] == "rows", int(group["k"])
    state["step"] = state.get("step", 0) + 1
    buffer, dampening = None, group["dampening"]
    if group["momentum"] != 0:
        buffer = state.get("momentum_buffer")
        if buffer is None:
            buffer, dampening = torch.zeros_like(parameter), 0.0
            state["momentum_buffer"] = buffer
    P, gradients, momentum = parameter, gradient, buffer
    if rows:
        P, gradients = P.unflatten(-2, (-1, k)), gradients.unflatten(-2, (-1, k))
        momentum = None if buffer is None else buffer.unflatten(-2, (-1, k))
    settings = (
        float(group["lr"]),
        float(group["momentum"]),
        float(dampening),
        float(group["weight_decay"]),
        bool(group["nesterov"]),
        bool(group["maximize"]),
        bool(group["momentum_transport"]),
        state["step"] % group["reorthonormalize_every"] == 0,
        rows,
    )
    if _kernel_serves(parameter, gradient):
        _native.cpu.grassmann_step(P, gradients, momentum, *settings, _route.threads())
        for changed in (parameter, buffer):
            if changed is not None:
                torch.autograd.graph.increment_version(changed)
        return
    basis, moved = grassmann_step(P, gradients, momentum, *settings)
    P.copy_(basis)
    if momentum is not None and moved is not None:
        momentum.copy_(moved)


def _kernel_serves(parameter: Tensor, gradient: Tensor) -> bool:
    return (
        not _check.DISABLED
        and parameter.dtype in (torch.float32, torch.float64)
        and gradient.dtype == parameter.dtype
        and _check.readable(parameter)
        and _check.readable(gradient)
        and not gradient.is_neg()
        and parameter.ndim < _check.MAX_DIMS
    )
