"""What hypercomplex modules keep in a state dict, refuse to load, and have of torch's interfaces."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch

from sample_arrays import normal
from subspan import nn
from test_phm_models import TIGHT, perturbed

KINDS = [nn.KroneckerAdapter, nn.MoSLoRALinear]

# --- adapters that are merged ---


def adapter_of(kind: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return perturbed(kind(torch.nn.Linear(24, 18).double(), 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("loaded", [False, True])
def test_merged_or_not_is_loaded_with_the_weight(kind: Any, saved: bool, loaded: bool) -> None:
    source, target, x = adapter_of(kind), adapter_of(kind, 1), normal(1, 5, 24)
    expected = source(x).detach()
    for adapter, merge in ((source, saved), (target, loaded)):
        if merge:
            adapter.merge()
    target.load_state_dict(copy.deepcopy(source.state_dict()))
    assert target.merged == saved
    torch.testing.assert_close(target(x), expected, **TIGHT)
    if saved:
        target.unmerge()
        torch.testing.assert_close(target(x), expected, **TIGHT)


@pytest.mark.parametrize("kind", KINDS)
def test_factors_alone_are_no_match_for_a_merged_weight(kind: Any) -> None:
    source, target, x = adapter_of(kind), adapter_of(kind, 1), normal(1, 5, 24)
    factors = {name: value for name, value in source.state_dict().items() if "base_layer" not in name}
    target.merge()
    before = target(x).detach()
    expected = f"{kind.__name__}: merged: expected an adapter that is not merged, to load factors without a weight"
    with pytest.raises(RuntimeError, match=expected):
        target.load_state_dict(factors, strict=False)
    target = adapter_of(kind, 1)
    target.load_state_dict(factors, strict=False)
    base = target.base_layer(x)
    torch.testing.assert_close(target(x) - base, source(x) - source.base_layer(x), **TIGHT)
    source.merge()
    factors = {name: value for name, value in source.state_dict().items() if "base_layer" not in name}
    with pytest.raises(RuntimeError, match=f"{kind.__name__}: merged: expected the base_layer.weight"):
        target.load_state_dict(factors, strict=False)
    assert not target.merged and before.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_adapters_is_saved_whole(kind: Any) -> None:
    """One of two merged, within another module: names have a prefix, and nothing is missing or too many."""
    model, other = (torch.nn.Sequential(adapter_of(kind, s), adapter_of(kind, s + 1)) for s in (0, 2))
    model[1].merge()
    other.load_state_dict(model.state_dict())
    assert [adapter.merged for adapter in other] == [False, True]
    for one, two in zip(model, other, strict=True):
        torch.testing.assert_close(one(normal(3, 4, 24)), two(normal(3, 4, 24)), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(0, 4), (4, 0)])
def test_layers_without_features_are_refused(kind: Any, sizes: tuple[int, int]) -> None:
    expected = rf"{kind.__name__}: layer: expected inputs and outputs, got weight of shape \({sizes[1]}, {sizes[0]}\)"
    with pytest.warns(UserWarning, match="zero-element"):
        layer = torch.nn.Linear(*sizes)
    with pytest.raises(ValueError, match=expected):
        kind(layer)


# --- rules that are shared ---


def sharing() -> dict[str, tuple[torch.nn.Module, str, str]]:
    """Modules with a shared rule, and two names of it."""
    linear = torch.nn.Sequential(nn.PHMLinear(4, 4, 2), nn.PHMConv1d(4, 4, 1, 2))
    linear[1].A = linear[0].A
    adapters = torch.nn.ModuleList([nn.CompacterAdapter(8, 4, 2), nn.CompacterAdapter(8, 4, 2)])
    adapters[1].down_A = adapters[1].up_A = adapters[0].down_A
    lstm = nn.PHMLSTM(4, 4, 2, num_layers=2)
    lstm.A_l1 = lstm.A_l0
    return {
        "one adapter": (nn.CompacterAdapter(8, 4, 2), "down_A", "up_A"),
        "layers": (linear, "0.A", "1.A"),
        "adapters": (adapters, "0.up_A", "1.down_A"),
        "LSTM": (lstm, "A_l0", "A_l1"),
    }


@pytest.mark.parametrize("name", list(sharing()))
@pytest.mark.parametrize("strict", [True, False])
def test_two_rules_for_one_are_refused(name: str, strict: bool) -> None:
    module, first, second = sharing()[name]
    state = copy.deepcopy(dict(module.state_dict()))
    for value in state.values():
        value.normal_()
    for key in [key for key in state if key.split(".")[-1].strip("downup_l01") == "A"]:
        state[key] = state[first].clone()
    module.load_state_dict(state)
    assert torch.equal(module.state_dict()[second], state[first])
    module.load_state_dict({key: value.double() for key, value in state.items()})  # and in another type
    state[second] = state[second] + 1
    expected = f"one rule for all layers that share it, got others in {re.escape(first)}"
    with pytest.raises(RuntimeError, match=expected if name != "adapters" else "one rule for all layers that share it"):
        module.load_state_dict(state, strict=strict)
    state[second] = state[first]
    module.load_state_dict(state)


def test_rules_of_their_own_may_differ() -> None:
    adapter = nn.CompacterAdapter(8, 4, 2, shared_rule=False)
    model = torch.nn.Sequential(nn.PHMLinear(4, 4, 2), nn.PHMLinear(4, 4, 2))
    for module in (adapter, model):
        other = copy.deepcopy(module)
        for parameter in other.parameters():
            torch.nn.init.normal_(parameter)
        module.load_state_dict(other.state_dict())
        for one, two in zip(module.parameters(), other.parameters(), strict=True):
            assert torch.equal(one, two)


def test_rules_that_are_assigned_are_no_longer_shared() -> None:
    module, first, second = sharing()["layers"]
    state = {name: torch.randn_like(value) for name, value in module.state_dict().items()}
    module.load_state_dict(state, assign=True)
    assert torch.equal(module.state_dict()[first], state[first])
    assert torch.equal(module.state_dict()[second], state[second])


# --- frozen rules that are trained after all ---


@pytest.mark.parametrize("rows", [4, 40])
def test_a_frozen_layer_trains_where_its_rule_requires_a_gradient(rows: int) -> None:
    torch.manual_seed(0)
    layer = nn.PHMLinear(12, 8, 4).double()
    x = normal(3, rows, 12)
    expected = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    layer.freeze().requires_grad_(True)
    got = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), layer.unfreeze()(x), **TIGHT)


# --- interfaces of torch ---


def test_lstm_is_taken_for_torchs() -> None:
    layer = nn.PHMLSTM(4, 8, 4)
    layer.flatten_parameters()
    assert layer.proj_size == 0
    with pytest.raises(ValueError, match="PHMLSTM: proj_size: expected 0, got 3"):
        nn.PHMLSTM(4, 8, 4, proj_size=3)


@pytest.mark.parametrize("kind", ["PHMConv1d", "PHMConv2d", "PHMConv3d", "PHMConvTranspose1d", "PHMConvTranspose2d"])
def test_convolutions_name_what_they_do_not_offer(kind: str) -> None:
    layer = getattr(nn, kind)
    assert layer(8, 4, 3, 4, groups=1, padding_mode="zeros").in_channels == 8
    with pytest.raises(ValueError, match=f"^{kind}: padding_mode: expected 'zeros', got 'reflect'"):
        layer(8, 4, 3, 4, padding_mode="reflect")
    with pytest.raises(ValueError, match=f"^{kind}: groups: expected 1, got 2"):
        layer(8, 4, 3, 4, groups=2)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("widths", [{}, {"kdim": 12, "vdim": 4}, {"vdim": 4}])
@pytest.mark.parametrize("batch_first", [False, True])
def test_attention_becomes_torchs(bias: bool, added: bool, widths: dict[str, int], batch_first: bool) -> None:
    options: dict[str, Any] = {"add_bias_kv": added, "add_zero_attn": added, "batch_first": batch_first}
    layer = nn.PHMMultiheadAttention(8, 2, 4, 0.5, bias, **options, **widths).double().eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    dense = layer.to_dense()
    assert type(dense) is torch.nn.MultiheadAttention and not dense.training and dense.dropout == 0.5
    assert all(p.requires_grad and p.is_leaf for p in dense.parameters())
    query, key, value = (normal(i, 5, 3, d) for i, d in enumerate((8, layer.kdim, layer.vdim)))
    for got, want in zip(dense(query, key, value), layer(query, key, value), strict=True):
        torch.testing.assert_close(got, want, **TIGHT)
