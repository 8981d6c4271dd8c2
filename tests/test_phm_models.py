"""Hypercomplex adapters, LSTM and attention, LoKr and MoSLoRA: against dense layers and written-out formulas."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import subspan
from resident_memory import extra_bytes, needs_counter
from sample_arrays import normal
from subspan import nn
from subspan.reference import phm as reference
from test_phm import kronecker

TIGHT = {"rtol": 1e-11, "atol": 1e-11}
ACTIVATIONS = ["relu", "gelu", "gelu_tanh", "silu"]

# --- adapters ---


@pytest.mark.parametrize("n", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("rank", [1, 3, None])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_adapter_is_two_layers_and_an_activation(n: int, rank: int | None, name: str) -> None:
    adapter = nn.CompacterAdapter(5 * n, 2 * n, n, rank, name, residual=False).double()
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    x = normal(1, 3, 7, 5 * n)

    def layer(rows: Tensor, side: str) -> Tensor:
        A, *S, bias = adapter.factors(side)
        result: Tensor = rows @ kronecker(A, S[0] @ S[1] if rank else S[0]).mT + bias
        return result

    activations = {
        "relu": torch.relu,
        "gelu": torch.nn.functional.gelu,
        "silu": torch.nn.functional.silu,
        "gelu_tanh": lambda z: torch.nn.functional.gelu(z, approximate="tanh"),
    }
    expected = layer(activations[name](layer(x, "down")), "up")
    torch.testing.assert_close(adapter(x), expected, **TIGHT)
    adapter.residual = True
    torch.testing.assert_close(adapter(x), expected + x, **TIGHT)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_activations_everywhere(name: str, dtype: torch.dtype) -> None:
    """One hidden unit that takes x itself: values to 8 roundings of (1 + z^2) |z|, slopes to those of 1 + z^2."""
    z = torch.cat([torch.linspace(-30, 30, 6001), torch.logspace(-12, 0, 200), -torch.logspace(-12, 0, 200)]).to(dtype)
    one = torch.ones(1, 1, 1, dtype=dtype)
    x = z[:, None].clone().requires_grad_()
    y = subspan.phm_adapter(x, (one, one, None), (one, one, None), name, residual=False)
    y.sum().backward()
    value = reference.activation(name, z.double().numpy())
    wide = z.double().requires_grad_()
    functions = {"relu": torch.relu, "gelu": torch.nn.functional.gelu, "silu": torch.nn.functional.silu}
    functions["gelu_tanh"] = lambda t: torch.nn.functional.gelu(t, approximate="tanh")
    functions[name](wide).sum().backward()
    bound = 8 * torch.finfo(dtype).eps * (1 + z.double() ** 2)
    assert (torch.from_numpy(value) - y.detach()[:, 0].double()).abs().le(bound * z.double().abs() + 1e-37).all()
    assert (wide.grad - x.grad[:, 0].double()).abs().le(bound).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_at_infinity(name: str) -> None:
    """As torch's in float64: infinite, NaN or zero in the same places. (Its gelu of inf is NaN in float32.)"""
    z = torch.tensor([torch.inf, -torch.inf, torch.nan, 1e30, -1e30])
    one = torch.ones(1, 1, 1)
    y = subspan.phm_adapter(z[:, None], (one, one, None), (one, one, None), name, residual=False)[:, 0]
    functions = {"relu": torch.relu, "gelu": torch.nn.functional.gelu, "silu": torch.nn.functional.silu}
    functions["gelu_tanh"] = lambda t: torch.nn.functional.gelu(t, approximate="tanh")
    expected = functions[name](z.double()).float()
    seen = ~torch.isneginf(z)  # where -inf times 0 is NaN in some versions and 0 in others
    torch.testing.assert_close(y[seen], expected[seen], equal_nan=True)


def test_adapter_starts_near_the_identity() -> None:
    torch.manual_seed(0)
    x = normal(1, 5, 768, dtype=torch.float32)
    assert (nn.CompacterAdapter(768, 24)(x) - x).abs().max() < 1e-2


def test_a_shared_rule_gathers_every_gradient() -> None:
    first, second = nn.CompacterAdapter(8, 4).double(), nn.CompacterAdapter(8, 4).double()
    second.down_A = second.up_A = first.down_A
    x = normal(1, 3, 8)
    second(first(x)).sum().backward()
    total = first.down_A.grad.clone()
    parts = []
    for one in range(4):  # each use of the rule with a rule of its own
        pair = [copy.deepcopy(adapter) for adapter in (first, second)]
        own = [torch.nn.Parameter(first.down_A.detach().clone()) for _ in range(4)]
        (pair[0].down_A, pair[0].up_A), (pair[1].down_A, pair[1].up_A) = own[:2], own[2:]
        pair[1](pair[0](x)).sum().backward()
        parts.append(own[one].grad)
    torch.testing.assert_close(total, sum(parts), **TIGHT)


@needs_counter
def test_hidden_units_are_not_kept() -> None:
    """With as many hidden units as features, 100 MB of them: a step takes y and dx beside a little."""
    adapter = nn.CompacterAdapter(512, 512, 4, 1)
    x = normal(1, 50_000, 512, dtype=torch.float32).requires_grad_()
    size = x.numel() * 4
    upstream = torch.ones_like(x)
    assert extra_bytes(lambda: adapter(x).backward(upstream)) < 2.5 * size


# --- LSTM ---


def lstm_by_hand(layer: nn.PHMLSTM, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The equations, step by step, of one layer in one direction."""
    W, R = (
        torch.cat([kronecker(layer.A_l0, of_gate) for of_gate in getattr(layer, f"S_{letters}_l0")])
        for letters in ("ih", "hh")
    )
    h = c = x.new_zeros(x.shape[1], layer.hidden_size)
    states = []
    for row in x:
        gates = row @ W.mT + layer.bias_ih_l0 + h @ R.mT + layer.bias_hh_l0
        i, f, g, o = gates.chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        states.append(h)
    return torch.stack(states), h, c


@pytest.mark.parametrize("rule", ["learned", "quaternion"])
def test_lstm_is_its_equations(rule: str) -> None:
    layer, x = nn.PHMLSTM(8, 12, 4, rule=rule).double(), normal(1, 5, 3, 8)
    y, (h, c) = layer(x)
    for actual, expected in zip((y, h[0], c[0]), lstm_by_hand(layer, x), strict=True):
        torch.testing.assert_close(actual, expected, **TIGHT)


@pytest.mark.parametrize(
    ("layers", "bias", "batch_first", "both"), list(itertools.product((1, 2), *[(False, True)] * 3))
)
def test_lstm_has_the_interface_of_torch(layers: int, bias: bool, batch_first: bool, both: bool) -> None:
    layer = nn.PHMLSTM(6, 4, 2, layers, bias, batch_first, bidirectional=both).double()
    dense = layer.to_dense()
    x = normal(1, 5, 3, 6)
    states = tuple(normal(i, layers * (1 + both), 3 if batch_first is False else 5, 4) for i in (2, 3))
    for given in ((x,), (x, states)):
        y, (h, c) = layer(*given)
        expected, (h_dense, c_dense) = dense(*given)
        for actual, wanted in ((y, expected), (h, h_dense), (c, c_dense)):
            torch.testing.assert_close(actual, wanted, **TIGHT)
    torch.testing.assert_close(layer(x[0])[0], dense(x[0])[0], **TIGHT)
    packed = pack_padded_sequence(x, [2, 5, 3], enforce_sorted=False)
    state = tuple(normal(i, layers * (1 + both), 3, 4) for i in (2, 3))
    y, (h, c) = layer(packed, state)
    expected, (h_dense, c_dense) = dense(packed, state)
    torch.testing.assert_close(pad_packed_sequence(y)[0], pad_packed_sequence(expected)[0], **TIGHT)
    torch.testing.assert_close((h, c), (h_dense, c_dense), **TIGHT)


def test_lstm_composes_its_weights_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from subspan.nn import phm_recurrent

    calls = []
    original = phm_recurrent.phm_weight
    monkeypatch.setattr(phm_recurrent, "phm_weight", lambda *args: calls.append(1) or original(*args))
    layer = nn.PHMLSTM(4, 4, 2)
    layer(normal(1, 30, 2, 4, dtype=torch.float32))[0].sum().backward()
    assert len(calls) == 2


def test_lstm_gradients() -> None:
    layer, x = nn.PHMLSTM(2, 4, 2).double(), normal(1, 3, 2, 2).requires_grad_()
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def function(x: Tensor, *values: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))[0]
        return result

    inputs = (x, *(p.detach().clone().requires_grad_() for p in parameters))
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((6, 8, 4), ValueError, "PHMLSTM: input_size: expected a multiple of n = 4, got 6"),
        ((8, 8, 4, 0), ValueError, "PHMLSTM: num_layers: expected an integer in 1"),
        ((8, 8, 4, 1, True, False, 1.5), ValueError, "PHMLSTM: dropout: expected a probability, got 1.5"),
    ],
)
def test_wrong_arguments_of_lstm(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        nn.PHMLSTM(*arguments)


def test_wrong_inputs_of_lstm() -> None:
    layer = nn.PHMLSTM(4, 8, 4)
    for shape in ((5, 2, 8), (2, 3, 5, 4)):
        with pytest.raises(ValueError, match=r"PHMLSTM: x: expected 2 or 3 dimensions, the last of 4, got shape"):
            layer(torch.ones(*shape))
    with pytest.raises(TypeError, match="PHMLSTM: x: expected a tensor or a PackedSequence, got ndarray"):
        layer(np.ones((5, 2, 4), np.float32))
    with pytest.raises(TypeError, match=r"PHMLSTM: hx: expected a pair of tensors \(h, c\), got tuple of 1"):
        layer(torch.ones(5, 2, 4), (torch.ones(1, 2, 8),))
    with pytest.raises(ValueError, match=r"PHMLSTM: c: expected \(1, 2, 8\) for x \(5, 2, 4\), got shape \(1, 3, 8\)"):
        layer(torch.ones(5, 2, 4), (torch.ones(1, 2, 8), torch.ones(1, 3, 8)))


@pytest.mark.no_sanitizer
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # the compiler's own
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # likewise
def test_lstm_within_a_compiled_model() -> None:
    layer, x = nn.PHMLSTM(4, 8, 4), normal(1, 5, 2, 4, dtype=torch.float32).requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager")
    inputs = [x, *layer.parameters()]
    got, want = (torch.autograd.grad(run(x)[0].square().sum(), inputs) for run in (compiled, layer))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)


# --- attention ---


def dense_attention(layer: nn.PHMMultiheadAttention, **options: Any) -> torch.nn.MultiheadAttention:
    """torch's module of the same weights."""
    dense = torch.nn.MultiheadAttention(
        layer.embed_dim,
        layer.num_heads,
        bias=layer.q_proj.bias is not None,
        kdim=layer.kdim,
        vdim=layer.vdim,
        **options,
    ).double()
    weights = [p.to_dense().weight for p in (layer.q_proj, layer.k_proj, layer.v_proj)]
    with torch.no_grad():
        if dense.in_proj_weight is not None:
            dense.in_proj_weight.copy_(torch.cat(weights))
        else:
            for name, weight in zip("qkv", weights, strict=True):
                getattr(dense, f"{name}_proj_weight").copy_(weight)
        dense.out_proj.weight.copy_(layer.out_proj.to_dense().weight)
        if dense.in_proj_bias is not None:
            dense.in_proj_bias.copy_(torch.cat([p.bias for p in (layer.q_proj, layer.k_proj, layer.v_proj)]))
            dense.out_proj.bias.copy_(layer.out_proj.bias)
        if layer.bias_k is not None:
            dense.bias_k.copy_(layer.bias_k)
            dense.bias_v.copy_(layer.bias_v)
    return dense


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("extra", ["nothing", "added tokens", "other widths"])
def test_attention_has_the_interface_of_torch(batch_first: bool, bias: bool, extra: str) -> None:
    torch.manual_seed(0)
    added = {"add_bias_kv": True, "add_zero_attn": True} if extra == "added tokens" else {}
    widths = {"kdim": 12, "vdim": 4} if extra == "other widths" else {}
    options = {"batch_first": batch_first, **added}
    layer = nn.PHMMultiheadAttention(8, 2, 4, bias=bias, **options, **widths).double()
    if bias:
        for projection in (layer.q_proj, layer.k_proj, layer.v_proj, layer.out_proj):
            torch.nn.init.normal_(projection.bias)
    dense = dense_attention(layer, **options)
    shape = (3, 5) if batch_first else (5, 3)
    query, key, value = (normal(i, *shape, d) for i, d in enumerate((8, layer.kdim, layer.vdim)))
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    causal = torch.nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    calls: list[dict[str, Any]] = [
        {},
        {"need_weights": False},
        {"key_padding_mask": padding, "average_attn_weights": False},
        {"attn_mask": causal},
        {"attn_mask": causal, "is_causal": True, "need_weights": False},
    ]
    for given in calls:
        for actual, wanted in zip(layer(query, key, value, **given), dense(query, key, value, **given), strict=True):
            if wanted is None:
                assert actual is None
            else:
                torch.testing.assert_close(actual, wanted, **TIGHT)
    single = [t[:, 0] if not batch_first else t[0] for t in (query, key, value)]
    torch.testing.assert_close(layer(*single)[0], dense(*single)[0], **TIGHT)


def test_attention_starts_as_torch_does() -> None:
    torch.manual_seed(1)
    layers = [nn.PHMMultiheadAttention(128, 4, 4) for _ in range(10)]
    ours = torch.cat([layer.k_proj.to_dense().weight.flatten() for layer in layers])
    dense = torch.nn.MultiheadAttention(128, 4, kdim=128, vdim=64).k_proj_weight
    assert abs(ours.var() / dense.var() - 1) < 0.1
    assert all(not layer.q_proj.bias.any() and not layer.out_proj.bias.any() for layer in layers)


def test_wrong_arguments_of_attention() -> None:
    with pytest.raises(ValueError, match="PHMMultiheadAttention: kdim: expected a multiple of n = 4, got 6"):
        nn.PHMMultiheadAttention(8, 2, 4, kdim=6)
    with pytest.raises(ValueError, match="PHMMultiheadAttention: embed_dim: expected a multiple of num_heads = 3"):
        nn.PHMMultiheadAttention(8, 3, 4)
    with pytest.raises(ValueError, match=r"PHMMultiheadAttention: dropout: expected a number in \[0, 1\], got 3"):
        nn.PHMMultiheadAttention(8, 2, 4, dropout=3)
    layer, x = nn.PHMMultiheadAttention(8, 2, 4), torch.ones(5, 3, 8)
    for name, arguments in (("query", (x[..., :4], x, x)), ("key", (x, x[None], x)), ("value", (x, x, x[..., :4]))):
        with pytest.raises(ValueError, match=f"PHMMultiheadAttention: {name}: expected 2 or 3 dimensions, the last of"):
            layer(*arguments)
    with pytest.raises(TypeError, match="PHMMultiheadAttention: query: expected "):
        layer(x.cfloat(), x, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_takes_masks_of_half_precision(dtype: torch.dtype) -> None:
    layer, x = nn.PHMMultiheadAttention(8, 2, 4), normal(1, 5, 3, 8, dtype=torch.float32)
    mask, padding = torch.zeros(5, 5), torch.zeros(3, 5)
    mask[0, 3] = padding[1, 2] = -torch.inf
    want = layer(x, x, x, attn_mask=mask, key_padding_mask=padding)
    got = layer(x, x, x, attn_mask=mask.to(dtype), key_padding_mask=padding.to(dtype))
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("layers", [0, 2])
def test_attention_within_the_encoder_of_torch(layers: int) -> None:
    """In evaluation too, where torch's layer would read packed projections."""
    encoder: Any = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    encoder.self_attn = nn.PHMMultiheadAttention(8, 2, 4, batch_first=True)
    if layers:
        encoder = torch.nn.TransformerEncoder(encoder, layers, enable_nested_tensor=False)
    x = normal(1, 3, 5, 8, dtype=torch.float32)
    trained = encoder(x)
    with torch.no_grad():
        torch.testing.assert_close(encoder.eval()(x), trained)


# --- LoKr and MoSLoRA ---


def perturbed(adapter: torch.nn.Module) -> Any:
    for parameter in adapter.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    return adapter


@pytest.mark.parametrize("r", [None, 1, 2, 50])
@pytest.mark.parametrize("factor", [-1, 1, 2, 7])
def test_lokr_adds_a_kronecker_product(r: int | None, factor: int) -> None:
    layer = torch.nn.Linear(24, 18).double()
    weight = layer.weight.detach().clone()
    adapter, x = perturbed(nn.KroneckerAdapter(layer, r, 4.0, factor)), normal(1, 2, 3, 24)
    p, q = {-1: (3, 4), 1: (1, 1), 2: (2, 2), 7: (6, 6)}[factor]
    assert tuple(adapter.lokr_w1.shape) == (p, q)
    low = r is not None and 2 * r < max(18 // p, 24 // q)
    W = adapter.lokr_w2_a @ adapter.lokr_w2_b if low else adapter.lokr_w2
    delta = (4.0 / r if low else 1.0) * torch.kron(adapter.lokr_w1, W)
    torch.testing.assert_close(adapter(x), x @ (weight + delta).mT + layer.bias, **TIGHT)
    torch.testing.assert_close(adapter.delta(), delta, **TIGHT)


def test_moslora_adds_a_mixed_product() -> None:
    layer, x = torch.nn.Linear(24, 18).double(), normal(1, 2, 3, 24)
    adapter = perturbed(nn.MoSLoRALinear(layer, 4, 8.0))
    delta = 2.0 * adapter.lora_B @ adapter.lora_AB @ adapter.lora_A
    torch.testing.assert_close(adapter(x), x @ (layer.weight + delta).mT + layer.bias, **TIGHT)


@pytest.mark.parametrize("kind", [nn.KroneckerAdapter, nn.MoSLoRALinear])
def test_update_starts_at_zero_and_merges(kind: Any) -> None:
    layer, x = torch.nn.Linear(24, 18).double(), normal(1, 5, 24)
    original, weight = layer(x), layer.weight.detach().clone()
    adapter = kind(layer, 2)
    torch.testing.assert_close(adapter(x), original, rtol=0, atol=0)
    assert not layer.weight.requires_grad
    perturbed(adapter)
    expected = adapter(x).detach()
    with pytest.raises(ValueError, match=f"{kind.__name__}: unmerge: expected an adapter that is merged"):
        adapter.unmerge()
    adapter.merge()
    torch.testing.assert_close(adapter(x), expected, **TIGHT)
    with pytest.raises(ValueError, match=f"{kind.__name__}: merge: expected an adapter that is not merged yet"):
        adapter.merge()
    adapter.unmerge()
    torch.testing.assert_close(layer.weight, weight, **TIGHT)
    with pytest.raises(TypeError, match=f"{kind.__name__}: layer: expected a torch.nn.Linear, got Conv1d"):
        kind(torch.nn.Conv1d(2, 2, 1))
    with pytest.raises(ValueError, match=rf"{kind.__name__}: x: expected \(\*batch, 24\), got shape \(5, 23\)"):
        adapter(x[:, 1:])


def test_gradients_of_updates_are_those_of_the_dense_weight() -> None:
    for kind in (nn.KroneckerAdapter, nn.MoSLoRALinear):
        adapter, x = perturbed(kind(torch.nn.Linear(24, 18).double(), 2)), normal(1, 5, 24)
        trained = [p for p in adapter.parameters() if p.requires_grad]
        ours = torch.autograd.grad(adapter(x).cos().sum(), trained)
        dense = x @ (adapter.base_layer.weight + adapter.delta()).mT + adapter.base_layer.bias
        for a, b in zip(ours, torch.autograd.grad(dense.cos().sum(), trained), strict=True):
            torch.testing.assert_close(a, b, **TIGHT)


def test_numpy_adapter_of_whole_components() -> None:
    x, A, S, T = (normal(i, *shape).numpy() for i, shape in enumerate(((3, 6), (2, 2, 2), (2, 2, 3), (2, 3, 2))))
    result = subspan.phm_adapter(x, (A, S, None), (A, T, None), "silu")
    expected = reference.phm_adapter(x, (A, S, None), (A, T, None), "silu", True)
    np.testing.assert_allclose(result, expected, atol=1e-12)
