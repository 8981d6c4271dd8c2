"""Checkpoints of other repositories: each layout's formula, written out in float64, on random checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sample_arrays import normal
from subspan import nn
from subspan.reference.phm import activation

N = [1, 2, 3, 4, 5]


def kronecker_sum(rule: Any, weights: Any) -> np.ndarray:
    return sum(np.kron(C, W) for C, W in zip(np.asarray(rule), np.asarray(weights), strict=True))  # type: ignore[return-value]


def close(actual: Tensor, expected: Any) -> None:
    np.testing.assert_allclose(actual.detach().numpy(), np.asarray(expected), rtol=1e-12, atol=1e-12)


# --- phc-gnn ---


@pytest.mark.parametrize("n", N)
@pytest.mark.parametrize("bias", [True, False])
def test_phcgnn_lists(n: int, bias: bool) -> None:
    """PHMLinear_Old: y = x H^T + concatenated biases, H the sum of the lists' Kronecker products."""
    rule, weights, biases = normal(1, n, n, n), normal(2, n, 3, 2), normal(3, n, 3)
    state = {f"layer.phm_rule.{i}": rule[i] for i in range(n)} | {f"layer.W.{i}": weights[i] for i in range(n)}
    if bias:
        state |= {f"layer.b.{i}": biases[i] for i in range(n)}
    x = normal(4, 5, 2 * n)
    expected = x.numpy() @ kronecker_sum(rule, weights).T + (biases.flatten().numpy() if bias else 0)
    close(nn.from_phcgnn(state, "layer.")(x), expected)


@pytest.mark.parametrize("n", N)
def test_phcgnn(n: int) -> None:
    """PHMLinear: y = x H + b."""
    state = {"phm_rule": normal(1, n, n, n), "W": normal(2, n, 2, 3), "b": normal(3, 3 * n)}
    x = normal(4, 5, 2 * n)
    close(nn.from_phcgnn(state)(x), x.numpy() @ kronecker_sum(state["phm_rule"], state["W"]) + state["b"].numpy())


def test_phcgnn_conjugates_in_its_newer_class() -> None:
    """The table of left products is w x as a list of C_i, and conj(w) x in x H."""
    table = np.zeros((4, 4, 4))
    signs = [[0, -1, -2, -3], [1, 0, -3, 2], [2, 3, 0, -1], [3, -2, 1, 0]]  # row p, column q: sign and i of w_i
    for p, q in np.ndindex(4, 4):
        i = abs(signs[p][q])
        table[i, p, q] = -1 if signs[p][q] < 0 else 1
    w, x = normal(1, 4), normal(2, 4)
    import subspan

    product = subspan.hamilton_product
    old = {f"phm_rule.{i}": table[i] for i in range(4)} | {f"W.{i}": w[i].reshape(1, 1) for i in range(4)}
    close(nn.from_phcgnn(old).double()(x), product(w, x))
    conjugate = w * torch.tensor([1, -1, -1, -1])
    new = {"phm_rule": table, "W": w.reshape(4, 1, 1)}
    close(nn.from_phcgnn(new)(x), product(conjugate, x))


# --- Compacter and adapters ---


def compacter_layer(n: int, inputs: int, outputs: int, seed: int, kind: str) -> dict[str, Tensor]:
    """A random checkpoint of one layer; "whole", "factorized" weights, or "both" rule and weights."""
    state = {"b": normal(seed, n * outputs)}
    if kind == "both":
        state |= {"phm_rule_left": normal(seed + 1, n, n, 1), "phm_rule_right": normal(seed + 2, n, 1, n)}
    else:
        state["phm_rule"] = normal(seed + 1, n, n, n)
    if kind == "whole":
        state["W"] = normal(seed + 3, n, inputs, outputs)
    else:
        state |= {"W_left": normal(seed + 3, n, inputs, 2), "W_right": normal(seed + 4, n, 2, outputs)}
    return state


def compacter(x: np.ndarray, state: dict[str, Tensor]) -> np.ndarray:
    """y = x H + b with H = sum_i C_i (x) W_i, of their factors where these are given."""
    arrays = {name: value.double().numpy() for name, value in state.items()}
    rule = arrays.get("phm_rule")
    if rule is None:
        rule = np.einsum("iab,ibc->iac", arrays["phm_rule_left"], arrays["phm_rule_right"])
    weights = arrays.get("W")
    if weights is None:
        weights = np.einsum("iab,ibc->iac", arrays["W_left"], arrays["W_right"])
    return x @ kronecker_sum(rule, weights) + arrays["b"]  # type: ignore[no-any-return]


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


KINDS = ["whole", "factorized", "both"]


@pytest.mark.parametrize("n", N)
@pytest.mark.parametrize("kind", KINDS)
def test_compacter_layer(n: int, kind: str) -> None:
    state, x = compacter_layer(n, 3, 2, 1, kind), normal(9, 4, 3 * n)
    layer = nn.from_compacter(under("encoder.", state), "encoder.")
    close(layer(x), compacter(x.numpy(), state))


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["relu", "gelu", "gelu_tanh", "silu"])
def test_compacter_adapter(n: int, kind: str, name: str) -> None:
    """HyperComplexAdapter: up(f(down(x))), without x."""
    down, up = compacter_layer(n, 5, 2, 1, kind), compacter_layer(n, 2, 5, 11, kind)
    state = under("down_sampler.", down) | under("up_sampler.", up)
    x = normal(30, 4, 5 * n)
    expected = compacter(activation(name, compacter(x.numpy(), down)), up)
    adapter = nn.from_compacter(state, activation=name)
    close(adapter(x), expected)
    assert adapter.rank == (None if kind == "whole" else 2)
    close(nn.from_compacter(state, activation=name, residual=True)(x), expected + x.numpy())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", ["nothing", "rule", "weights", "all"])
@pytest.mark.parametrize("scaling", ["one", "configured", "learned"])
def test_adapters_adapter(kind: str, shared: str, scaling: str) -> None:
    """Adapter: scaling * up(f(down(x))) + x, with what is shared in the model's parameters."""
    down, up = compacter_layer(4, 5, 2, 1, kind), compacter_layer(4, 2, 5, 11, kind)
    common: dict[str, Tensor] = {}
    if shared in ("rule", "all"):
        for name in [name for name in down if name.startswith("phm_rule")]:
            up[name] = common[name] = down[name]
    if shared in ("weights", "all"):
        for side, layer in (("down", down), ("up", up)):
            common |= {name.replace("W", f"W_{side}"): layer[name] for name in layer if name.startswith("W")}
    hidden = [name for name in down if name in common or (name.startswith("W") and shared in ("weights", "all"))]
    own = [{n: v for n, v in layer.items() if n not in hidden} for layer in (down, up)]
    state = under("adapter_down.0.", own[0]) | under("adapter_up.", own[1])
    scale = {"one": 1.0, "configured": 4.0, "learned": 2.5}[scaling]
    if scaling == "learned":
        state["scaling"] = torch.tensor([scale]).double()
    x = normal(30, 2, 3, 20)
    expected = x.numpy() + scale * compacter(activation("gelu", compacter(x.numpy(), down)), up)
    options = {"scaling": scale} if scaling == "configured" else {}
    adapter = nn.from_adapters(under("a.", state), "a.", shared=common, **options)
    close(adapter(x), expected)
    assert adapter.shared_rule == (shared in ("rule", "all")) == (adapter.up_A is adapter.down_A)
    close(nn.from_adapters(state, shared=common, residual=False, **options)(x), expected - x.numpy())


# --- HyperNets ---


@pytest.mark.parametrize("names", ["as", "AS"])
def test_hypernets_linear(names: str) -> None:
    state = {names[0]: normal(1, 3, 3, 3), names[1]: normal(2, 3, 2, 4), "bias": normal(3, 6)}
    x = normal(4, 5, 12)
    weight = kronecker_sum(state[names[0]], state[names[1]])
    close(nn.from_hypernets(state)(x), x.numpy() @ weight.T + state["bias"].numpy())


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_hypernets_convolutions_have_no_bias(dims: int) -> None:
    """F.conv2d(input, weight, stride, padding): the layer's bias is not passed. Every sum is written out."""
    kernel = (3, 2, 2)[:dims]
    state = {"A": normal(1, 2, 2, 2), "F": normal(2, 2, 2, 3, *kernel), "bias": normal(3, 4)}
    x = normal(4, 1, 6, *(4, 5, 3)[:dims])
    layer = nn.from_hypernets(state, stride=2)
    result = layer(x)
    taps = {t: kronecker_sum(state["A"], state["F"][(..., *t)]) for t in np.ndindex(*kernel)}
    for position in np.ndindex(*result.shape[2:]):
        expected = 0
        for t, W in taps.items():
            seen = tuple(2 * at + step for at, step in zip(position, t, strict=True))
            expected = expected + W @ x[(0, slice(None), *seen)].numpy()
        close(result[(0, slice(None), *position)], expected)
    assert layer.bias is None


# --- SpeechBrain ---


def hamilton(r: Any, i: Any, j: Any, k: Any) -> np.ndarray:
    """The real matrix of left multiplication, of matrices (out, in) in place of numbers."""
    return np.block([[r, -i, -j, -k], [i, r, -k, j], [j, k, r, -i], [k, -j, i, r]])


@pytest.mark.parametrize("bias", [True, False])
def test_speechbrain_linear(bias: bool) -> None:
    """Weights are (in, out)."""
    state = {f"{part}_weight": normal(i, 3, 2) for i, part in enumerate("rijk")}
    if bias:
        state["bias"] = normal(5, 8)
    x = normal(6, 2, 4, 12)
    expected = x.numpy() @ hamilton(*(state[f"{part}_weight"].numpy().T for part in "rijk")).T
    layer = nn.from_speechbrain(state)
    assert isinstance(layer, nn.QuaternionLinear)
    close(layer(x), expected + (state["bias"].numpy() if bias else 0))


@pytest.mark.parametrize("dims", [1, 2])
def test_speechbrain_convolutions(dims: int) -> None:
    """Weights are (out, in, *kernel)."""
    kernel = (3, 2)[:dims]
    state = {f"q.{part}_weight": normal(i, 2, 3, *kernel) for i, part in enumerate("rijk")} | {"q.bias": normal(5, 8)}
    x = normal(6, 1, 12, *(5, 4)[:dims])
    result = nn.from_speechbrain(state, "q.")(x)
    for position in np.ndindex(*result.shape[2:]):
        expected = state["q.bias"].numpy()
        for t in np.ndindex(*kernel):
            W = hamilton(*(state[f"q.{part}_weight"][(..., *t)].numpy() for part in "rijk"))
            seen = tuple(at + step for at, step in zip(position, t, strict=True))
            expected = expected + W @ x[(0, slice(None), *seen)].numpy()
        close(result[(0, slice(None), *position)], expected)


# --- the first PHM code ---


@pytest.mark.parametrize("n", [2, 4, 5])
@pytest.mark.parametrize("dual", [False, True])
def test_tensorflow_phm(n: int, dual: bool) -> None:
    """make_random_mul, shape by shape: kernel (k, dim) in n parts, tiled along the rule's columns, times the rule."""
    rng = np.random.default_rng(n)
    kernel, A, B = rng.standard_normal((3, 2 * n)), rng.standard_normal((n, 1, n, n)), rng.standard_normal((n, 1, n, n))
    state = {"Rffn/random:0": kernel, "Rffn/A:0": A} | ({"Rffn/B:0": B} if dual else {})
    mix = np.split(kernel.reshape(3, 1, 1, 2 * n), n, axis=-1)
    parts = np.tile(np.concatenate(mix, axis=1), (1, 1, n, 1)).transpose(1, 0, 2, 3)
    rule = A / (1 + np.exp(-B)) if dual else A
    H = np.matmul(np.tile(rule, (1, 3, 1, 1)), parts).reshape(3 * n, 2 * n)
    x = rng.standard_normal((4, 3 * n))
    close(nn.from_tensorflow_phm(state, "Rffn/")(torch.from_numpy(x)), x @ H)


def test_tensorflow_quaternions_are_conjugated() -> None:
    """make_quarternion_mul: rows of H are those of the left matrix of w, so that x H is conj(w) x."""
    kernel = normal(1, 3, 8).numpy()
    r, i, j, k = np.split(kernel, 4, axis=-1)
    rows = ([r, -i, -j, -k], [i, r, -k, j], [j, k, r, -i], [k, -j, i, r])
    H = np.concatenate([np.concatenate(row, axis=-1) for row in rows], axis=0)
    x = normal(2, 5, 12)
    layer = nn.from_tensorflow_phm({"quarternion:0": kernel})
    close(layer(x), x.numpy() @ H)
    assert isinstance(layer, nn.QuaternionLinear)
    close(layer(x), x.numpy() @ hamilton(r.T, -i.T, -j.T, -k.T).T)


# --- what is refused, and types ---


def test_types_and_devices_are_kept() -> None:
    state = {"phm_rule": torch.randn(2, 2, 2), "W": torch.randn(2, 3, 4).half()}
    assert {t.dtype for t in nn.from_phcgnn(state).state_dict().values()} == {torch.float16}
    values = {name: value.clone().requires_grad_() for name, value in state.items()}
    layer = nn.from_phcgnn(values)
    assert all(p.is_leaf and p.requires_grad for p in layer.parameters())
    with torch.no_grad():
        layer.S.zero_()
    assert values["W"].abs().sum() > 0, "the checkpoint is not written to"


REFUSED: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "no mapping": (nn.from_phcgnn, {"state": [1]}, TypeError, "from_phcgnn: state: expected a mapping .*, got list"),
    "nothing there": (nn.from_phcgnn, {"state": {}}, ValueError, "from_phcgnn: state: expected an entry 'phm_rule' .*"),
    "more": (
        nn.from_phcgnn,
        {"state": {"phm_rule": torch.ones(1, 1, 1), "W": torch.ones(1, 1, 1), "gate": torch.ones(1)}},
        ValueError,
        "from_phcgnn: state: expected no other entries, got gate",
    ),
    "one scaling for each channel": (
        nn.from_adapters,
        {"state": {"scaling": torch.ones(4)}},
        ValueError,
        r"from_adapters: scaling: expected one number, got shape \(4,\)",
    ),
    "spinors": (
        nn.from_speechbrain,
        {"state": {f"{p}_weight": torch.ones(2, 3) for p in "rijk"} | {"zero_kernel": torch.zeros(2, 3)}},
        ValueError,
        "from_speechbrain: state: expected no other entries, got zero_kernel",
    ),
    "a transposed convolution by its bias": (
        nn.from_speechbrain,
        {"state": {f"{p}_weight": torch.ones(2, 3, 5) for p in "rijk"} | {"bias": torch.zeros(12)}},
        ValueError,
        r"from_speechbrain: state: expected a convolution, .*, got a transposed convolution",
    ),
    "a transposed convolution by its option": (
        nn.from_speechbrain,
        {"state": {f"{p}_weight": torch.ones(2, 2, 5) for p in "rijk"}, "output_padding": 1},
        ValueError,
        r"from_speechbrain: state: expected a convolution, .*, got a transposed convolution",
    ),
    "four dimensions": (
        nn.from_hypernets,
        {"state": {"A": torch.ones(1, 1, 1), "F": torch.ones(1, 1, 1, 2, 2, 2, 2)}},
        ValueError,
        "from_hypernets: state: expected kernels of one to three dimensions, got shape",
    ),
    "bias of another length": (
        nn.from_phcgnn,
        {"state": {"phm_rule": torch.ones(1, 1, 1), "W": torch.ones(1, 1, 1), "b": torch.ones(2)}},
        ValueError,
        r"PHMLinear: bias: expected shape \(1,\), got \(2,\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    function, arguments, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        function(**arguments)
