"""Adapters of the adapters package, where it is installed, exchanged for ours: equal outputs and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sample_arrays import normal
from subspan.nn import CompacterAdapter, from_adapters

adapters = pytest.importorskip("adapters")

FEATURES, HIDDEN, N = 48, 8, 4
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "compacter": {},
    "own rules": {"shared_phm_rule": False},
    "factorized rules": {"factorized_phm_rule": True},
    "own factorized rules": {"factorized_phm_rule": True, "shared_phm_rule": False},
    "shared weights": {"shared_W_phm": True},
    "phm adapter": {"factorized_phm_W": False, "shared_phm_rule": False},
    "rank, relu and scaling": {"phm_rank": 3, "non_linearity": "relu", "scaling": 4.0},
    "swish, learned scaling": {"non_linearity": "swish", "scaling": "learned"},
    "gelu_new": {"non_linearity": "gelu_new"},
}
ACTIVATIONS = {"swish": "silu", "gelu_new": "gelu_tanh"}


class Model:
    """What the package's layers ask for shared parameters."""

    def __init__(self, shared: Any) -> None:
        self.shared = shared

    def forward_context(self, context: Any) -> None:
        context.shared_parameters = {"a": self.shared}


def gradient_of_parts(config: Any, adapter: CompacterAdapter, side: str) -> dict[str, Tensor]:
    """Of the package's factors, from those of ours: transposed, and scaled as the second layer's first factor is."""
    scale = 1.0 if side == "down" or not isinstance(config["scaling"], float) else config["scaling"]
    grads = {
        name: getattr(adapter, f"{side}_{name}").grad
        for name in ("A", "U", "V", "S", "bias")
        if getattr(adapter, f"{side}_{name}", None) is not None
    }
    parts = {"phm_rule": grads["A"].mT, "b": scale * grads["bias"]}
    if "S" in grads:
        return parts | {"W": scale * grads["S"].mT}
    return parts | {"W_right": scale * grads["U"].mT, "W_left": grads["V"].mT}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_an_adapter_is_exchanged(name: str) -> None:
    from adapters.context import ForwardContext
    from adapters.methods.modeling import Adapter, init_shared_parameters

    torch.manual_seed(0)
    config = adapters.CompacterConfig(phm_dim=N, **CONFIGURATIONS[name])
    theirs = Adapter("a", FEATURES, HIDDEN, config).double()
    config = config.replace(reduction_factor=FEATURES // HIDDEN)
    shared = init_shared_parameters(config, FEATURES, "cpu").double()
    with torch.no_grad():
        for parameter in (*theirs.parameters(), *shared.parameters()):
            parameter.normal_()
    own = [layer for layer in (theirs.adapter_down[0], theirs.adapter_up)]
    x = normal(1, 3, 5, FEATURES).requires_grad_()
    with ForwardContext(Model(shared)):
        expected = theirs(x, x)[0]
    scaling = config["scaling"] if isinstance(config["scaling"], float) else 1.0
    activation = ACTIVATIONS.get(config["non_linearity"], config["non_linearity"])
    ours = from_adapters(theirs.state_dict(), shared=dict(shared), activation=activation, scaling=scaling)
    result = ours(x)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-10)
    upstream = torch.cos(torch.arange(expected.numel()).double()).reshape(expected.shape)
    (dx,) = torch.autograd.grad(expected, x, upstream, retain_graph=True)
    torch.testing.assert_close(
        torch.autograd.grad(result, x, upstream, retain_graph=True)[0], dx, rtol=1e-11, atol=1e-9
    )
    expected.backward(upstream)
    result.backward(upstream)
    learned = theirs.scaling.item() if isinstance(theirs.scaling, Tensor) else None
    for side, layer in zip(("down", "up"), own, strict=True):
        if learned is not None and side == "up":
            config = config.replace(scaling=learned)
        for part, gradient in gradient_of_parts(config, ours, side).items():
            parameter = getattr(layer, part, None)
            if parameter is None and part in shared:
                parameter = shared[part]
            if parameter is None:
                parameter = shared[part.replace("W", f"W_{side}")] if part.startswith("W") else None
            if parameter is None:  # a factorized rule
                left, right = (
                    getattr(layer, f"phm_rule_{factor}", None) if hasattr(layer, f"phm_rule_{factor}")
                    else shared[f"phm_rule_{factor}"]
                    for factor in ("left", "right")
                )  # fmt: skip
                torch.testing.assert_close(gradient @ right.mT, left.grad, rtol=1e-11, atol=1e-8)
                continue
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-11, atol=1e-8)
