"""Hypercomplex layers as modules."""

from __future__ import annotations

import copy

import pytest
import torch

from sample_arrays import normal
from subspan.nn import PHMLinear, QuaternionLinear
from test_phm import kronecker


@pytest.mark.parametrize("rule", ["learned", "quaternion", "klein", "cyclic"])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_is_its_dense_layer(rule: str, bias: bool) -> None:
    layer = PHMLinear(12, 20, 4, bias, rule=rule).double()
    x = normal(1, 2, 3, 12)
    dense = layer.to_dense()
    torch.testing.assert_close(dense.weight, kronecker(layer.A.detach(), layer.S.detach()), rtol=0, atol=1e-14)
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-12, atol=1e-12)
    assert len(list(layer.parameters())) == 1 + bias + (rule == "learned")


def test_quaternion_layer_multiplies_quaternions() -> None:
    """With one quaternion for a weight: i j = k, and norms multiply."""
    layer = QuaternionLinear(4, 4, bias=False).double()
    with torch.no_grad():
        layer.S.copy_(torch.tensor([0.0, 1, 0, 0]).reshape(4, 1, 1))
    assert layer(torch.tensor([0.0, 0, 1, 0]).double()).tolist() == [0, 0, 0, 1]
    fresh, x = QuaternionLinear(4, 4, bias=False).double(), normal(2, 4)
    torch.testing.assert_close(fresh(x).norm(), x.norm() * fresh.S.norm())


@pytest.mark.parametrize("rule", ["learned", "quaternion"])
def test_freezing(rule: str) -> None:
    torch.manual_seed(0)
    layer, x = PHMLinear(12, 8, 4, rule=rule).double(), normal(3, 5, 12)
    expected = layer(x).detach()
    assert layer.freeze() is layer and not layer.A.requires_grad
    torch.testing.assert_close(layer(x), expected, rtol=1e-7, atol=1e-7)
    layer(x).sum().backward()
    assert layer.A.grad is None and layer.S.grad is not None
    torch.testing.assert_close(copy.deepcopy(layer)(x), expected, rtol=1e-7, atol=1e-7)
    assert layer.unfreeze().A.requires_grad == (rule == "learned")
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("rule", ["learned", "quaternion", "cyclic"])
def test_weights_start_with_the_variance_of_a_linear_layer(rule: str) -> None:
    torch.manual_seed(1)
    weights = torch.cat([PHMLinear(256, 128, 4, rule=rule).to_dense().weight.flatten() for _ in range(20)])
    assert abs(weights.var().item() * 3 * 256 - 1) < 0.1


@pytest.mark.parametrize(
    ("arguments", "rule", "message"),
    [
        ((10, 8, 4), "learned", r"in_features: expected a multiple of n = 4, got 10 \(8 and 12 are the nearest\)"),
        ((8, 2, 4), "learned", r"out_features: expected a multiple of n = 4, got 2 \(4 is the least\)"),
        ((8, 8, 2), "quaternion", "n: expected 4 for 'quaternion'"),
        ((8, 8, 2), "reals", "rule: expected one of 'learned'"),
    ],
)
def test_wrong_arguments(arguments: tuple[int, int, int], rule: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PHMLinear(*arguments, rule=rule)


@pytest.mark.parametrize("rule", ["learned", "quaternion"])
def test_type_and_device(rule: str) -> None:
    layer = PHMLinear(8, 12, 4, rule=rule, dtype=torch.float64)
    assert {tensor.dtype for tensor in layer.state_dict().values()} == {torch.float64}
    later = PHMLinear(8, 12, 4, rule=rule, device="meta").to_empty(device="cpu")
    later.reset_parameters()
    assert (later.A.abs() <= 3**0.5).all() and later(torch.ones(2, 8)).isfinite().all()
    if rule != "learned":
        torch.testing.assert_close(later.A.double(), layer.A)
    assert QuaternionLinear(8, 12, dtype=torch.float64)(torch.ones(2, 8).double()).dtype == torch.float64
