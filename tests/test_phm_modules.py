"""Hypercomplex layers as modules."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import subspan.nn.phm as module
from sample_arrays import normal
from subspan import phm_linear
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
def test_freezing(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    torch.manual_seed(0)
    layer, x = PHMLinear(12, 8, 4, rule=rule).double(), normal(3, 40, 12)
    expected = layer(x).detach()
    assert layer.freeze() is layer and not layer.A.requires_grad
    torch.testing.assert_close(layer(x), expected, rtol=1e-7, atol=1e-7)
    layer(x).sum().backward()
    assert layer.A.grad is None and layer.S.grad is not None
    torch.testing.assert_close(copy.deepcopy(layer)(x), expected, rtol=1e-7, atol=1e-7)
    monkeypatch.setattr(
        module, "phm_linear", lambda *args, method: calls.append(method) or phm_linear(*args, method=method)
    )
    layer(x), layer(x[:31])
    assert calls == ["rank", "auto"]
    assert layer.unfreeze().A.requires_grad == (rule == "learned")
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)


def frozen_layer() -> PHMLinear:
    torch.manual_seed(0)
    return QuaternionLinear(12, 8).double().freeze()


def test_frozen_layers_are_copied_saved_and_loaded() -> None:
    layer, x = frozen_layer(), normal(3, 40, 12)
    expected = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.frozen and repr(other) == repr(layer)
        torch.testing.assert_close(other(x), expected, rtol=0, atol=0)
    fresh = QuaternionLinear(12, 8).double()
    fresh.load_state_dict(layer.state_dict())
    torch.testing.assert_close(fresh(x), expected, rtol=1e-13, atol=1e-13)
    other = PHMLinear(12, 8, 4, rule="klein").double()
    layer.load_state_dict(other.state_dict())  # another rule in the place of the frozen one
    torch.testing.assert_close(layer(x), other(x), rtol=1e-13, atol=1e-13)


@pytest.mark.no_sanitizer
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # the compiler's own
def test_frozen_layers_in_graphs_and_transforms() -> None:
    layer, x = frozen_layer(), normal(3, 40, 12)
    expected = layer(x)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(torch.vmap(layer)(x.expand(2, 40, 12))[1], expected, rtol=1e-13, atol=1e-13)
    gradient = torch.func.grad(lambda x: layer(x).square().sum())(x)
    wanted = torch.autograd.grad(layer(x.requires_grad_()).square().sum(), x)[0]
    torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("freeze", [False, True])
def test_autocast_lowers_neither_weights_nor_result(freeze: bool) -> None:
    torch.manual_seed(0)
    layer, x = QuaternionLinear(12, 8), normal(3, 40, 12, dtype=torch.float32)
    if freeze:
        layer.freeze()
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = layer(x)
        rounded = layer(x.bfloat16())
    torch.testing.assert_close(result, expected, rtol=0, atol=0)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, layer(x.bfloat16().float()), rtol=1e-6, atol=1e-6)
    result.sum().backward()
    own, layer.S.grad = layer.S.grad.clone(), None
    layer(x).sum().backward()
    torch.testing.assert_close(own, layer.S.grad, rtol=1e-6, atol=1e-6)


def test_layers_share_a_rule() -> None:
    """As Compacter's do: one parameter, which stays one, and whose gradient is the sum over the layers."""
    torch.manual_seed(0)
    first, second = PHMLinear(8, 12, 4), PHMLinear(12, 8, 4)
    second.A = first.A
    network = torch.nn.Sequential(first, torch.nn.Tanh(), second).double()
    assert len(list(network.parameters())) == 5
    x = normal(1, 6, 8)
    network(x).square().sum().backward()

    dense = [layer.to_dense() for layer in (first, second)]
    A = first.A.detach().clone().requires_grad_()
    hidden = torch.tanh(x @ kronecker_of(A, first.S).mT + dense[0].bias)
    expected = hidden @ kronecker_of(A, second.S).mT + dense[1].bias
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(expected.square().sum(), A)
    torch.testing.assert_close(first.A.grad, gradient, rtol=1e-11, atol=1e-11)

    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert other[0].A is other[2].A
        torch.testing.assert_close(other(x), network(x), rtol=0, atol=0)
    fresh = torch.nn.Sequential(PHMLinear(8, 12, 4), torch.nn.Tanh(), PHMLinear(12, 8, 4)).double()
    fresh.load_state_dict(network.state_dict())
    torch.testing.assert_close(fresh(x), network(x), rtol=0, atol=0)


def kronecker_of(A: torch.Tensor, S: torch.Tensor) -> torch.Tensor:
    """With a gradient to A."""
    return sum(torch.kron(a, s) for a, s in zip(A, S.detach(), strict=True))


@pytest.mark.parametrize("width", [45, 50, 125])
@pytest.mark.parametrize("n", [4, 5])
def test_widths_that_are_no_multiples_of_a_vector(width: int, n: int) -> None:
    """Of a component, as in PHC-GNN: values and gradients are those of the dense layer."""
    torch.manual_seed(0)
    layer = PHMLinear(n * width, n * width, n).double()
    dense, x = layer.to_dense(), normal(1, 33, n * width).requires_grad_()
    y, upstream = layer(x), normal(2, 33, n * width)
    torch.testing.assert_close(y, dense(x), rtol=1e-11, atol=1e-12)
    ours = torch.autograd.grad(y, [x, layer.A, layer.S, layer.bias], upstream)
    wanted = torch.autograd.grad(dense(x), [x, dense.bias, dense.weight], upstream)
    torch.testing.assert_close(ours[0], wanted[0], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(ours[3], wanted[1], rtol=1e-11, atol=1e-12)
    blocks = wanted[2].reshape(n, width, n, width)
    A, S = layer.A.detach(), layer.S.detach()
    torch.testing.assert_close(ours[1], torch.einsum("ilk,plqk->ipq", S, blocks), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(ours[2], torch.einsum("ipq,plqk->ilk", A, blocks), rtol=1e-11, atol=1e-11)


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
