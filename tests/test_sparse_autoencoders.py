"""Sparse autoencoders against their formulas in dense float64, and against the mistakes of published ones."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss, normalize
from torch.utils.checkpoint import checkpoint

import subspan
from sample_arrays import normal
from subspan.nn import MatchingPursuitAutoencoder, SparseAutoencoder, SparseDecoder, TopKEncoder

N, FEATURES, COLUMNS, K = 6, 5, 24, 2


def model(**options):
    torch.manual_seed(0)
    built = SparseAutoencoder(FEATURES, COLUMNS, K, **options).double()
    with torch.no_grad():
        built.encoder.bias.copy_(0.1 * normal(3, COLUMNS))
        built.encoder.pre_bias.copy_(0.1 * normal(4, FEATURES))
    return built


def aged(built, dead):
    built.since_fired = torch.where(dead, 100, 0)
    return built


def dense_codes(built, x, k, units=None):
    """The k largest of the units, in float64 and dense."""
    encoder = built.encoder
    pre = (x - encoder.pre_bias) @ encoder.weight.T + encoder.bias
    if units is not None:
        pre = pre.masked_fill(~units, -math.inf)
    top = pre.topk(k)
    return torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())


def expected_parts(built, x, positive=None, dead=None):
    both = x if positive is None else torch.cat([x, positive])
    codes = dense_codes(built, both, K)
    D, c = built.decoder.weight, built.encoder.pre_bias
    rebuilt = codes @ D + c
    parts = {
        "reconstruction": mse_loss(rebuilt, both),
        "multi": mse_loss(dense_codes(built, both, 4 * K) @ D + c, both),
    }
    if dead is not None:
        missing = (both - rebuilt).detach()
        again = dense_codes(built, both, built.aux_k, dead) @ D
        terms = [
            mse_loss(part, wanted) / mse_loss(wanted.mean(0).expand_as(wanted), wanted)
            for part, wanted in zip(again.split(len(x)), missing.split(len(x)), strict=True)
        ]
        parts["aux"] = sum(terms) / len(terms)
    unit = normalize(codes, dim=-1)
    if positive is not None:
        parts["contrastive"] = cross_entropy(unit[: len(x)] @ unit[len(x) :].T / 0.2, torch.arange(len(x)))
    else:  # two equal passes, as in CSR: each row has one partner and meets all others twice
        similar = (unit @ unit.T / 0.2).exp()
        own = similar.diagonal()
        parts["contrastive"] = -(own / (own + 2 * (similar.sum(1) - own))).log().mean()
    return parts


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("paired", [False, True])
def test_losses_and_gradients(paired, tied):
    dead = torch.arange(COLUMNS) % 3 == 0
    built = aged(model(aux_k=4, dead_after=10, contrastive_weight=0.7, tied=tied), dead)
    x, positive = normal(1, N, FEATURES), normal(2, N, FEATURES) if paired else None
    output = built(x, positive)
    expected = expected_parts(built, x, positive, dead)
    assert set(output.parts) == set(expected)
    for name, part in expected.items():
        torch.testing.assert_close(output.parts[name], part, rtol=1e-12, atol=1e-12, msg=name)
    weights = {"reconstruction": 1, "multi": 1 / 8, "aux": 1 / 32, "contrastive": 0.7}
    total = sum(weights[name] * part for name, part in expected.items())
    torch.testing.assert_close(output.loss, total, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(output.loss, list(built.parameters()))
    wanted = torch.autograd.grad(total, list(built.parameters()))
    assert len(gradients) == (3 if tied else 4)
    for gradient, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("part", ["multi", "aux"])
def test_every_loss_moves_the_encoder(part):
    """Published autoencoders mask the units in place, or drop the gradient: these losses then leave the encoder alone,
    and a weight of theirs that grows changes nothing there."""
    dead = torch.arange(COLUMNS) % 3 == 0
    built = aged(model(aux_k=4, dead_after=10), dead)
    gradient = torch.autograd.grad(built(normal(1, N, FEATURES)).parts[part], built.encoder.weight)[0]
    moved = gradient.abs().sum(1) > 0
    assert moved.any()
    if part == "aux":
        assert not moved[~dead].any(), "living units have no part in it"
    else:
        first = dense_codes(built, normal(1, N, FEATURES), K).abs().sum(0) > 0
        assert moved[~first].any(), "units beyond the first k learn too"


def masked_in_place(built, x):
    """The published order of operations: the mask of the dead is written into the units before the pass with 4 k."""
    pre = (x - built.encoder.pre_bias) @ built.encoder.weight.T + built.encoder.bias
    pre.data *= built.dead()
    top = pre.topk(4 * K)
    codes = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    return mse_loss(codes @ built.decoder.weight + built.encoder.pre_bias, x)


def test_the_published_mistake_would_be_caught():
    """Before any unit is dead, that pass has no codes and no gradient: the test above fails for it."""
    built, x = model(aux_k=4, dead_after=10), normal(1, N, FEATURES)
    gradient = torch.autograd.grad(masked_in_place(built, x), built.encoder.weight)[0]
    assert gradient.abs().max() == 0
    assert torch.autograd.grad(built(x).parts["multi"], built.encoder.weight)[0].abs().max() > 0


def test_picks_that_relu_kills_have_no_gradient_and_do_not_fire():
    built = model(aux_k=4, dead_after=2)
    with torch.no_grad():
        built.encoder.bias.fill_(-100.0)
    output = built(normal(1, N, FEATURES))
    assert output.codes.values.abs().max() == 0
    gradient = torch.autograd.grad(output.loss, built.encoder.weight)[0]
    assert gradient.abs().max() == 0
    assert not built.fired.any()


def test_dead_units_are_counted_by_steps():
    built = model(aux_k=4, dead_after=2)
    x = normal(1, N, FEATURES)
    fires = dense_codes(built, x, K).abs().sum(0) > 0
    assert fires.any() and not fires.all()
    for step in range(4):
        assert built.dead().equal(~fires & (step >= 2)), step
        built(x), built(x)  # accumulated gradients
        built.eval()
        built(normal(9, 50, FEATURES))  # evaluation
        built.train()
        built.step()
    assert built.since_fired.equal(torch.where(fires, 0, 4))


def test_without_dead_units_there_is_no_such_loss():
    output = model(aux_k=4, dead_after=2)(normal(1, N, FEATURES))
    assert output.parts["aux"] == 0


def test_more_wanted_than_are_dead():
    dead = torch.arange(COLUMNS) < 2
    built = aged(model(aux_k=4, dead_after=10), dead)
    x = normal(1, N, FEATURES)
    torch.testing.assert_close(built(x).parts["aux"], expected_parts(built, x, dead=dead)["aux"])


def test_standardized_rows():
    built, x = model(standardize=True), 5 + 3 * normal(1, N, FEATURES)
    mean, deviation = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    rows = (x - mean) / (deviation + 1e-5)
    rebuilt = dense_codes(built, rows, K) @ built.decoder.weight + built.encoder.pre_bias
    torch.testing.assert_close(built(x).reconstruction, rebuilt * deviation + mean)


def test_evaluation_is_the_reconstruction():
    built, x = model(aux_k=4, dead_after=10).eval(), normal(1, N, FEATURES)
    output = built(x)
    assert list(output.parts) == ["reconstruction"] and output.codes.values.shape == (N, K)
    torch.testing.assert_close(output.loss, mse_loss(output.reconstruction, x))
    torch.testing.assert_close(output.codes.to_dense(), dense_codes(built, x, K))


def test_activation_checkpointing():
    dead = torch.arange(COLUMNS) % 3 == 0
    built, x = aged(model(aux_k=4, dead_after=10), dead), normal(1, N, FEATURES)
    other = copy.deepcopy(built)
    built(x).loss.backward()
    checkpoint(lambda rows: other(rows).loss, x, use_reentrant=False).backward()
    for name, parameter in built.named_parameters():
        assert torch.equal(parameter.grad, other.get_parameter(name).grad), name
    built.step(), other.step()
    assert built.since_fired.equal(other.since_fired)


@pytest.mark.no_sanitizer
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # the compiler's own
def test_compiled_takes_the_other_way_to_the_same_loss():
    """A compiled graph cannot ask how many units are dead; it masks them."""
    dead = torch.arange(COLUMNS) < 3
    built, x = aged(model(aux_k=4, dead_after=10), dead), normal(1, N, FEATURES)
    torch._dynamo.reset()
    compiled = torch.compile(lambda rows: built(rows).loss, backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(built(x).loss, built.encoder.weight)[0]
    loss = compiled(x)
    torch.testing.assert_close(loss, built(x).loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, built.encoder.weight)[0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weight_grad", ["rows", "accumulate"])
def test_other_forms_of_the_weight_gradient(weight_grad):
    x = normal(1, N, FEATURES)
    dense, other = model(), model(weight_grad=weight_grad)
    for built in (dense, other):
        built(x).loss.backward()
    for name, parameter in dense.named_parameters():
        gradient = other.get_parameter(name).grad
        gradient = gradient.to_dense() if gradient.is_sparse else gradient
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-12, atol=1e-14, msg=name)


@pytest.mark.parametrize("kind", ["topk", "pursuit"])
def test_learns_a_dictionary(kind):
    """Rows that are sparse sums of known atoms are rebuilt far better than at the start."""
    torch.manual_seed(1)
    atoms = normalize(torch.randn(16, 8), dim=-1)
    codes = torch.zeros(512, 16).scatter(1, torch.rand(512, 16).topk(2).indices, 1 + torch.rand(512, 2))
    x = codes @ atoms
    built = SparseAutoencoder(8, 32, 2) if kind == "topk" else MatchingPursuitAutoencoder(8, 32, 2)
    optimizer = torch.optim.Adam(built.parameters(), lr=1e-2)
    losses = []
    for _ in range(200):
        output = built(x)
        losses.append(output.parts["reconstruction"].item())
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        built.step()
    assert losses[-1] < 0.25 * losses[0]


# --- matching pursuit ---


def pursuit():
    torch.manual_seed(0)
    built = MatchingPursuitAutoencoder(FEATURES, COLUMNS, 3).double()
    with torch.no_grad():
        built.bias.copy_(0.1 * normal(4, FEATURES))
    return built


def test_pursuit_against_its_definition():
    built, x = pursuit(), normal(1, N, FEATURES)
    rest, rebuilt = x - built.bias, torch.zeros_like(x) + built.bias
    for _ in range(3):
        value, atom = (rest @ built.weight.T).max(1)
        part = value.relu()[:, None] * built.weight[atom]
        rest, rebuilt = rest - part, rebuilt + part
    output = built(x)
    torch.testing.assert_close(output.reconstruction, rebuilt, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(output.codes.to_dense() @ built.weight + built.bias, rebuilt, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(output.loss, [built.weight, built.bias])
    wanted = torch.autograd.grad(rest.square().mean(), [built.weight, built.bias])
    for gradient, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-12)


def test_atoms_keep_their_length():
    built = pursuit()
    torch.testing.assert_close(built.weight.norm(dim=1), torch.ones(COLUMNS, dtype=torch.float64))
    with torch.no_grad():
        built.weight.mul_(3)
        built.weight[0] = 0
    built.step()
    assert built.weight[0].abs().max() == 0
    torch.testing.assert_close(built.weight[1:].norm(dim=1), torch.ones(COLUMNS - 1, dtype=torch.float64))


# --- layers ---


def test_layers():
    encoder, decoder = TopKEncoder(FEATURES, COLUMNS, K).double(), SparseDecoder(COLUMNS, FEATURES).double()
    x = normal(1, N, FEATURES)
    codes = encoder(x)
    expected = subspan.topk_rows((x - encoder.pre_bias) @ encoder.weight.T + encoder.bias, K)
    assert codes.indices.equal(expected.indices)
    torch.testing.assert_close(codes.values, expected.values)
    assert encoder(x, 7).values.shape == (N, 7)
    torch.testing.assert_close(decoder(codes), codes.to_dense() @ decoder.weight + decoder.bias)
    torch.testing.assert_close(decoder.weight.norm(dim=1), torch.ones(COLUMNS, dtype=torch.float64))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TopKEncoder(4, 8, 9), "TopKEncoder: k: expected at most the columns, 8, got 9"),
        (lambda: TopKEncoder(4, 8, 2)(normal(1, 3, 4).float(), 9), "TopKEncoder: k: expected at most"),
        (lambda: TopKEncoder(0, 8, 2), "TopKEncoder: features"),
        (lambda: TopKEncoder(4, 8, 2, by="size"), "TopKEncoder: by"),
        (lambda: SparseDecoder(8, 4, weight_grad="sparse"), "SparseDecoder: weight_grad"),
        (lambda: SparseAutoencoder(4, 8, 3), "SparseAutoencoder: multi: expected at most the columns, 8, got 12"),
        (lambda: SparseAutoencoder(4, 8, 1, aux_k=2), "SparseAutoencoder: dead_after: expected a number with aux_k"),
        (lambda: SparseAutoencoder(4, 8, 1, dead_after=2), "SparseAutoencoder: dead_after"),
        (lambda: SparseAutoencoder(4, 8, 1, aux_k=9, dead_after=2), "SparseAutoencoder: aux_k: expected at most"),
        (lambda: SparseAutoencoder(4, 8, 1, temperature=0.0), "SparseAutoencoder: temperature"),
        (lambda: MatchingPursuitAutoencoder(4, 8, 0), "MatchingPursuitAutoencoder: steps"),
        (lambda: MatchingPursuitAutoencoder(4, 8, 1, by="size"), "MatchingPursuitAutoencoder: by"),
    ],
)
def test_wrong_parameters(call, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        call()
