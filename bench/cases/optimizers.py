"""Steps of optimisers: frames on the Stiefel manifold against geoopt, the matrices of a small detector by Muon.

Optimisers are made once; before every call weights and momentum are set to the inputs, within the time. Five steps of
frames are timed, one of Muon. Floors: of a step on frames products of X and of the update with themselves and each
other, and two new arrays, 12 n k^2 flops; X, gradient and momentum are read, X and momentum written. Of Muon those of
newton_schulz, and in bytes weights, gradients and momentum read, weights and momentum written.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import subspan
from baselines import newton_schulz as iteration
from baselines import optimizers as baseline
from harness.case import CLOSED_FORM, PEER, PLAIN, SUBSPAN, Bar, Case, Variant
from subspan.ops.newton_schulz import polynomials

from .coding_rate import FLOAT
from .newton_schulz import DETECTOR, _entries, _flops, _gaussian

LR, MOMENTUM = 0.1, 0.9
MUON_LR, DECAY = 0.02, 0.1
WITHOUT_GEOOPT = "n/a: geoopt is not installed" if importlib.util.find_spec("geoopt") is None else ""


class Steps:
    """Steps of an optimiser as a function of frames, gradient and, for some, momentum; `split`: each frame of the batch
    is a parameter of its own."""

    def __init__(
        self, make: Callable[[list[Tensor]], torch.optim.Optimizer], split: bool, parameter=torch.nn.Parameter
    ):
        self.make, self.split, self.parameter = make, split, parameter
        self.made: tuple[list[Tensor], torch.optim.Optimizer] | None = None

    def __call__(self, X: Tensor, g: Tensor, b: Tensor | None = None) -> Tensor:
        parts = [None if array is None else list(array) if self.split else [array] for array in (X, g, b)]
        if self.made is None or self.made[0][0].shape != parts[0][0].shape:
            weights = [self.parameter(part.detach().clone()) for part in parts[0]]
            self.made = weights, self.make(weights)
            for weight, gradient in zip(weights, parts[1], strict=True):
                weight.grad = gradient.detach().clone()
            self.made[1].step()  # makes the state
        weights, optimiser = self.made
        with torch.no_grad():
            for i, weight in enumerate(weights):
                weight.copy_(parts[0][i])
                weight.grad = parts[1][i].detach()
                self._reset(optimiser.state[weight], None if b is None else parts[2][i])
        for _ in range(baseline.STEPS):
            optimiser.step()
        weights = [weight.detach().as_subclass(Tensor) for weight in weights]
        return torch.stack(weights) if self.split else weights[0]

    @staticmethod
    def _reset(state: dict[str, Any], momentum: Tensor | None) -> None:
        for name, value in state.items():
            if name == "step":
                state[name] = 0
            elif name == "momentum_buffer" and momentum is not None:
                value.copy_(momentum)
            else:
                value.zero_()


def _geoopt(name: str, split: bool, **settings: Any) -> Steps:
    def make(weights: list[Tensor]) -> torch.optim.Optimizer:
        import geoopt

        return getattr(geoopt.optim, name)(weights, **settings)

    def parameter(data: Tensor) -> Tensor:
        import geoopt

        return geoopt.ManifoldParameter(data, manifold=geoopt.Stiefel(canonical=False))

    return Steps(make, split, parameter)


def _geoopt_default(X: Tensor, g: Tensor, b: Tensor) -> None:
    """One step of one frame on geoopt.Stiefel(), which solves with n x n matrices."""
    import geoopt

    weight = geoopt.ManifoldParameter(X[0].detach().clone(), manifold=geoopt.Stiefel())
    weight.grad = g[0].detach().clone()
    geoopt.optim.RiemannianSGD([weight], lr=LR, momentum=MOMENTUM).step()


def _inputs(seed: int, device: str, frames: int, n: int, k: int, momentum: bool) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.linalg.qr(torch.randn(frames, n, k, generator=generator, dtype=torch.float64)).Q
    g = torch.randn(frames, n, k, generator=generator, dtype=torch.float64) * n**-0.5
    b = baseline.tangent(X, torch.randn(frames, n, k, generator=generator, dtype=torch.float64) * n**-0.5)
    return tuple(array.float().contiguous().to(device) for array in ((X, g, b) if momentum else (X, g)))


def _distance(X: Any) -> str:
    X = X.double()
    return f"|QᵀQ-I| {(X.mT @ X - torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)).abs().max().item():.1e}"


def stiefel(name: str, frames: int, n: int, k: int, split: bool, bars: tuple[Bar, ...]) -> Case:
    sgd = name == "StiefelSGD"
    ours = getattr(subspan.optim, name)
    settings: dict[str, Any] = {"lr": LR, "momentum": MOMENTUM} if sgd else {"lr": LR}
    plain = partial(baseline.sgd_steps, **settings) if sgd else partial(baseline.adam_steps, **settings)
    peer = "RiemannianSGD" if sgd else "RiemannianAdam"
    whole = Variant(
        PEER,
        "geoopt, n × n",
        _geoopt_default,
        scale=frames * baseline.STEPS,
        note="geoopt.Stiefel(); one step of one frame",
        skip=WITHOUT_GEOOPT,
    )
    return Case(
        name=f"{name} {baseline.STEPS} steps {frames}×({n}×{k})" + (", each a parameter" if split else ""),
        op=f"optim.{name}",
        make_inputs=lambda seed, device: _inputs(seed, device, frames, n, k, sgd),
        variants=(
            Variant(PEER, "geoopt", _geoopt(peer, split, **settings), note="Euclidean", skip=WITHOUT_GEOOPT),
            *((whole,) if sgd and not split else ()),
            Variant(PLAIN, "QR", partial(plain, retract=baseline.by_qr)),
            Variant(CLOSED_FORM, "Cholesky factor of the Gram matrix", partial(plain, retract=baseline.by_cholesky)),
            Variant(SUBSPAN, "subspan", Steps(lambda weights: ours(weights, **settings), split)),
        ),
        reference=partial(plain, retract=baseline.by_qr),
        flops=(12 if sgd else 14) * baseline.STEPS * frames * n * k**2,
        bytes=5 * baseline.STEPS * FLOAT * frames * n * k,
        bars=bars,
        backward=False,
        quality=_distance,
        source="GCR's class heads",
    )


class MuonStep:
    """A step as a function of weights and gradients, from a momentum of 0."""

    def __init__(self, kind: type[torch.optim.Optimizer]):
        self.kind = kind
        self.made: tuple[list[Tensor], torch.optim.Optimizer] | None = None

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        given, gradients = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        if self.made is None:
            weights: list[Tensor] = [torch.nn.Parameter(w.detach().clone()) for w in given]
            self.made = weights, self.kind(weights, lr=MUON_LR, weight_decay=DECAY)
        weights, optimiser = self.made
        with torch.no_grad():
            for weight, w, g in zip(weights, given, gradients, strict=True):
                weight.copy_(w)
                weight.grad = g.detach()
                if weight in optimiser.state:
                    optimiser.state[weight]["momentum_buffer"].zero_()
        optimiser.step()
        return [weight.detach() for weight in weights]


def muon(name: str, shapes: tuple[tuple[int, ...], ...], bars: tuple[Bar, ...]) -> Case:
    plain = partial(baseline.muon_step, polynomials=polynomials(5, "muon"), lr=MUON_LR, decay=DECAY)
    return Case(
        name=f"Muon step {name}",
        op="optim.Muon",
        make_inputs=lambda seed, device: (
            *(0.1 * w for w in _gaussian(seed, device, shapes)),
            *_gaussian(seed + 1, device, shapes),
        ),
        variants=(
            Variant(PEER, "torch.optim.Muon", MuonStep(torch.optim.Muon), note="iterates in bfloat16"),
            Variant(PLAIN, "on the shorter side, stacked by shape", partial(plain, function=iteration.on_shorter_side)),
            Variant(PLAIN, "Muon in float32, stacked by shape", partial(plain, function=iteration.muon)),
            Variant(SUBSPAN, "subspan", MuonStep(subspan.optim.Muon)),
        ),
        reference=partial(plain, function=iteration.by_svd),
        flops=sum(_flops(shape, 5) for shape in shapes),
        bytes=5 * FLOAT * _entries(shapes),
        bars=bars,
        backward=False,
        source="ultralytics, YOLO26n with Muon",
    )


CASES = (
    stiefel("StiefelSGD", 100, 2048, 8, False, (Bar(PEER, 10),)),
    stiefel("StiefelSGD", 100, 2048, 8, True, ()),
    stiefel("StiefelAdam", 100, 2048, 8, False, (Bar(PEER, 10),)),
    stiefel("StiefelAdam", 100, 2048, 8, True, ()),
    muon(f"{len(DETECTOR)} mixed matrices", DETECTOR, (Bar(PEER, 4),)),
)
