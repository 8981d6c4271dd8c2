"""Modules of orthogonal matrices against their definitions: layers, adapters, projections and alignments."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_embedding_loss, cross_entropy, linear, normalize

from sample_arrays import normal
from subspan import nn
from subspan.ops.skew import cayley_of_packed
from subspan.reference import householder as exact


def deviation(columns: Tensor) -> float:
    wide = columns.detach().double()
    return (wide.mT @ wide - torch.eye(wide.shape[-1], dtype=torch.float64)).abs().max().item()


def close(actual: Tensor, expected: Tensor, bound: float = 1e-13) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=bound)


# --- HouseholderLinear ---

RECTANGLES = pytest.mark.parametrize(("inputs", "outputs", "rank"), ((9, 5, 3), (5, 9, 5), (6, 6, 6), (7, 1, 1)))


@RECTANGLES
def test_householder_linear_is_its_weight(inputs, outputs, rank):
    torch.manual_seed(0)
    layer = nn.HouseholderLinear(inputs, outputs, rank, dtype=torch.float64)
    with torch.no_grad():
        layer.scales.copy_(torch.linspace(1, 2, rank))
    U, V = (
        exact.householder_product(vectors.detach().numpy())[:, :rank] for vectors in (layer.U_vectors, layer.V_vectors)
    )
    close(layer.weight, torch.from_numpy(U * layer.scales.detach().numpy() @ V.T))
    x = normal(1, 4, 3, inputs)
    close(layer(x), linear(x, layer.weight, layer.bias))
    close(layer.to_linear()(x), layer(x))
    assert max(deviation(factor) for factor in layer.factors()[::2]) < 1e-14


@RECTANGLES
def test_householder_linear_from_a_weight_is_its_truncated_decomposition(inputs, outputs, rank):
    """numpy's U_r S_r V_r^T to rounding."""
    weight, bias = normal(3, outputs, inputs), normal(4, outputs)
    layer = nn.HouseholderLinear.from_weight(weight, rank, bias)
    U, S, Vt = np.linalg.svd(weight.numpy(), full_matrices=False)
    close(layer.weight, torch.from_numpy(U[:, :rank] * S[:rank] @ Vt[:rank]))
    close(layer.scales, torch.from_numpy(S[:rank]))
    assert torch.equal(layer.bias, bias)
    if rank == min(inputs, outputs):
        close(layer.weight, weight)


def test_householder_linear_in_float32_and_after_steps():
    torch.manual_seed(0)
    layer = nn.HouseholderLinear.from_weight(normal(3, 64, 32).float(), 8)
    assert layer.bias is None and layer.to_linear().bias is None
    start = layer.weight.detach().clone()
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.05, weight_decay=1e-3)
    for step in range(30):
        optimiser.zero_grad()
        layer(normal(step, 5, 32).float()).square().mean().backward()
        optimiser.step()
    assert (layer.weight - start).abs().max() > 1e-2
    assert max(deviation(factor) for factor in layer.factors()[::2]) < 2e-6


def test_householder_linear_in_half_precision():
    layer = nn.HouseholderLinear(32, 16, 4).bfloat16()
    x = normal(1, 5, 32).bfloat16()
    assert layer(x).dtype == torch.bfloat16 and layer.weight.dtype == torch.bfloat16
    torch.testing.assert_close(layer(x).float(), copy.deepcopy(layer).float()(x.float()), rtol=0.03, atol=0.05)


def test_householder_linear_derivatives():
    layer = nn.HouseholderLinear(4, 3, 2, dtype=torch.float64)
    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    x = normal(1, 3, 4).requires_grad_()

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        names = [name for name, _ in layer.named_parameters()]
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *parameters))
    assert torch.autograd.gradgradcheck(call, (x, *parameters))


def test_householder_linear_errors():
    with pytest.raises(ValueError, match=r"HouseholderLinear: rank: expected at most 3, .*got 4"):
        nn.HouseholderLinear(5, 3, 4)
    with pytest.raises(TypeError, match=r"HouseholderLinear: bias: expected True or False"):
        nn.HouseholderLinear(5, 3, 2, None)
    with pytest.raises(ValueError, match=r"HouseholderLinear: x: expected \(\*batch, 5\), got shape \(2, 4\)"):
        nn.HouseholderLinear(5, 3, 2)(torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"from_weight: weight: expected a tensor \(out, in\), got shape \(2, 3, 3\)"):
        nn.HouseholderLinear.from_weight(torch.ones(2, 3, 3), 1)
    with pytest.raises(ValueError, match=r"from_weight: bias: expected shape \(3,\), got shape \(2,\)"):
        nn.HouseholderLinear.from_weight(torch.ones(3, 3), 1, torch.ones(2))


# --- OrthogonalBlocks ---


def dense(blocks: nn.OrthogonalBlocks) -> Tensor:
    """The block diagonal matrix, by the definition."""
    n = blocks.block_size
    one, found = torch.eye(n, dtype=torch.float64), []
    rows, columns = torch.triu_indices(n, n, 1)
    for own in blocks.weight.double():
        A = torch.zeros(n, n, dtype=torch.float64).index_put((rows, columns), own)
        A = A - A.mT
        found.append(torch.linalg.inv(one - A) @ (one + A))
    return torch.block_diag(*found)


@pytest.mark.parametrize(("features", "size"), ((12, 4), (6, 2), (96, 32), (70, 35), (130, 65)))
def test_blocks_are_a_block_diagonal_matrix(features, size):
    blocks = nn.OrthogonalBlocks(features, size, dtype=torch.float64)
    x, weight = normal(1, 3, 5, features), normal(2, 7, features)
    assert torch.equal(blocks(x), x)
    with torch.no_grad():
        blocks.weight += normal(3, *blocks.weight.shape) / size**0.5
    R = dense(blocks)
    close(blocks(x), x @ R)
    close(torch.block_diag(*blocks.rotations()), R)
    assert deviation(blocks.rotations()) < 1e-13
    merged = blocks.merge(weight)
    close(linear(x, merged), linear(blocks(x), weight), 1e-12)
    close(blocks.unmerge(merged), weight)
    (own,) = torch.autograd.grad(blocks(x).cos().sum(), blocks.weight)
    (expected,) = torch.autograd.grad((x @ dense(blocks)).cos().sum(), blocks.weight)
    close(own, expected, 1e-12)


def test_blocks_derivatives_and_every_number_of_entries():
    for count in (0, 1, 3, 6, 10, 28):
        a = (0.4 * normal(count, 2, count)).requires_grad_()
        if count:
            assert torch.autograd.gradcheck(cayley_of_packed, a)
            assert torch.autograd.gradgradcheck(cayley_of_packed, a)
    assert torch.equal(cayley_of_packed(torch.zeros(3, 0)), torch.ones(3, 1, 1))
    assert cayley_of_packed(torch.zeros(0, 6)).shape == (0, 4, 4)


def test_blocks_of_large_parameters_stay_orthogonal_and_nan_stays_in_its_block():
    blocks = nn.OrthogonalBlocks(320, 32)
    with torch.no_grad():
        blocks.weight += 100 * normal(1, *blocks.weight.shape).float()
    assert deviation(blocks.rotations()) < 2e-5
    with torch.no_grad():
        blocks.weight[3, 5] = torch.nan
    finite = blocks.rotations().isfinite().all(-1).all(-1)
    assert finite.tolist() == [i != 3 for i in range(10)]


def test_blocks_of_any_strides_and_types_and_threads():
    a = (0.1 * normal(1, 496, 40)).float()
    expected = cayley_of_packed(a.mT.contiguous())
    assert torch.equal(cayley_of_packed(a.mT), expected)
    rounded = a.mT.contiguous().bfloat16()
    assert torch.equal(cayley_of_packed(rounded), cayley_of_packed(rounded.float()))
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        assert torch.equal(cayley_of_packed(a.mT), expected)
    torch.set_num_threads(before)
    numbers = cayley_of_packed(a.mT.contiguous().numpy())
    assert np.array_equal(numbers, expected.numpy())


def test_blocks_keep_the_type_of_their_input():
    blocks = nn.OrthogonalBlocks(64, 32)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert blocks(normal(1, 2, 64).to(dtype)).dtype == dtype
        assert blocks.merge(normal(1, 2, 64).to(dtype)).dtype == dtype


def test_blocks_errors():
    with pytest.raises(ValueError, match=r"OrthogonalBlocks: block_size: expected a divisor of the 10 .*got 4"):
        nn.OrthogonalBlocks(10, 4)
    with pytest.raises(ValueError, match=r"OrthogonalBlocks: block_size: .*at least 2, got 1"):
        nn.OrthogonalBlocks(10, 1)
    with pytest.raises(ValueError, match=r"OrthogonalBlocks: x: expected \(\*batch, 8\), got shape \(2, 4\)"):
        nn.OrthogonalBlocks(8, 4)(torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"OrthogonalBlocks: weight: expected \(\*batch, out, 8\)"):
        nn.OrthogonalBlocks(8, 4).merge(torch.ones(2, 4))


# --- HouseholderAdapter ---


def chain(vectors: Tensor) -> Tensor:
    """H_1 ... H_r as PEFT forms it."""
    unit, matrix = normalize(vectors, dim=0), torch.eye(len(vectors), dtype=vectors.dtype)
    for u in unit.mT:
        matrix = matrix - 2 * torch.outer(matrix @ u, u)
    return matrix


def adapted(r: int = 6) -> nn.HouseholderAdapter:
    torch.manual_seed(0)
    adapter = nn.HouseholderAdapter(torch.nn.Linear(9, 5, dtype=torch.float64), r)
    with torch.no_grad():
        adapter.vectors += 0.3 * normal(1, 9, r)
    return adapter


def test_adapter_begins_as_the_layer_and_trains_alone():
    layer = torch.nn.Linear(9, 5, dtype=torch.float64)
    before, x = copy.deepcopy(layer), normal(2, 4, 9)
    adapter = nn.HouseholderAdapter(layer, 4)
    close(adapter(x), before(x), 1e-14)
    assert adapter.vectors.dtype == torch.float64
    assert torch.equal(adapter.vectors[:, ::2], adapter.vectors[:, 1::2])
    assert [name for name, p in adapter.named_parameters() if p.requires_grad] == ["vectors"]
    optimiser = torch.optim.SGD(adapter.parameters(), lr=0.1)
    adapter(x).square().sum().backward()
    optimiser.step()
    assert torch.equal(layer.weight, before.weight) and (adapter(x) - before(x)).abs().max() > 1e-3


def test_adapter_multiplies_the_weight_by_the_chain():
    adapter, x = adapted(), normal(2, 2, 4, 9)
    base = adapter.base_layer
    Q = chain(adapter.vectors.detach())
    close(adapter(x), linear(x, base.weight @ Q, base.bias))
    (own,) = torch.autograd.grad(adapter(x).cos().sum(), adapter.vectors)
    whole = linear(x, base.weight @ chain(adapter.vectors), base.bias)
    (expected,) = torch.autograd.grad(whole.cos().sum(), adapter.vectors)
    close(own, expected, 1e-12)


def test_adapter_merged_is_the_adapter():
    adapter, x = adapted(), normal(2, 4, 9)
    before, weight = adapter(x).detach(), adapter.base_layer.weight.detach().clone()
    adapter.merge()
    close(adapter(x), before)
    assert adapter.merged and "merged=True" in repr(adapter) and copy.deepcopy(adapter).merged
    assert (adapter.base_layer.weight - weight).abs().max() > 1e-2
    with pytest.raises(ValueError, match=r"HouseholderAdapter: merge: expected an adapter that is not merged"):
        adapter.merge()
    adapter.unmerge()
    close(adapter.base_layer.weight, weight, 1e-14)
    close(adapter(x), before)
    with pytest.raises(ValueError, match=r"HouseholderAdapter: unmerge: expected an adapter that is merged"):
        adapter.unmerge()


def test_adapter_of_a_half_precision_layer():
    adapter = nn.HouseholderAdapter(torch.nn.Linear(32, 8).bfloat16(), 4, dtype=torch.float32)
    x = normal(1, 3, 32).bfloat16()
    assert adapter.vectors.dtype == torch.float32 and adapter(x).dtype == torch.bfloat16
    adapter.merge()
    assert adapter.base_layer.weight.dtype == torch.bfloat16
    assert nn.HouseholderAdapter(torch.nn.Linear(4, 4).half(), 2).vectors.dtype == torch.float16


def test_regularizer():
    adapter = adapted(4)
    unit = normalize(adapter.vectors, dim=0)
    close(adapter.regularizer(), (torch.eye(4) - unit.mT @ unit).square().sum())
    adapter.reset_parameters()
    assert adapter.regularizer().item() >= 4 - 1e-12  # two pairs
    with torch.no_grad():
        adapter.vectors.copy_(torch.linalg.qr(adapter.vectors + normal(5, 9, 4)).Q)
    assert adapter.regularizer().item() < 1e-28


def test_a_zero_vector_reflects_nothing():
    adapter = adapted()
    with torch.no_grad():
        adapter.vectors[:, 2] = 0
    kept = adapter.vectors.detach()[:, [0, 1, 3, 4, 5]]
    close(
        adapter(normal(1, 4, 9)),
        linear(normal(1, 4, 9), adapter.base_layer.weight @ chain(kept), adapter.base_layer.bias),
    )


def test_adapter_errors():
    with pytest.raises(TypeError, match=r"HouseholderAdapter: layer: expected a torch.nn.Linear, got Conv2d"):
        nn.HouseholderAdapter(torch.nn.Conv2d(3, 3, 1))
    with pytest.raises(ValueError, match=r"HouseholderAdapter: r: expected an even number, .*got 3"):
        nn.HouseholderAdapter(torch.nn.Linear(4, 4), 3)
    with pytest.raises(ValueError, match=r"HouseholderAdapter: x: expected \(\*batch, 4\), got shape \(2, 3\)"):
        nn.HouseholderAdapter(torch.nn.Linear(4, 4), 2)(torch.ones(2, 3))


# --- RandomOrthogonalProjection ---

KINDS = pytest.mark.parametrize("kind", ("sketch", "dense"))


@KINDS
@pytest.mark.parametrize("items", (None, 3))
@pytest.mark.parametrize(("tokens", "rank"), ((196, 49), (196, 28), (13, 5), (4, 4), (7, 1)))
def test_projection_and_complement(tokens, rank, items, kind):
    projection = nn.RandomOrthogonalProjection(tokens, rank, items=items, kind=kind, seed=2, dtype=torch.float64)
    x = normal(1, 3, tokens, 6)
    P = projection.frame @ projection.frame.mT
    assert deviation(projection.frame) < 1e-13
    close(projection(x), P @ x)
    close(projection(projection(x)), projection(x))
    close(projection(x) + projection.complement(x), x)
    close(projection(projection.complement(x)), torch.zeros_like(x))
    close(projection.loss(x.cos(), x), ((x.cos() - x) - P @ (x.cos() - x)).abs().mean())
    if items:
        assert (projection.frame - projection.frame[:1]).abs().max() > 0.1


def test_sketch_is_the_published_one_where_buckets_are_equal():
    """A count sketch S with one sign in each row, times its ratio: S S^T r / n."""
    projection = nn.RandomOrthogonalProjection(196, 49, seed=1, dtype=torch.float64)
    S = projection.frame.sign()
    assert S.abs().sum(1).eq(1).all() and S.abs().sum(0).eq(4).all() and S.sum().abs() <= 1
    close(projection.frame @ projection.frame.mT, S @ S.mT * 49 / 196)


@KINDS
def test_seeds_and_generators(kind):
    def frame(seed: int | None, **more: object) -> Tensor:
        return nn.RandomOrthogonalProjection(20, 6, kind=kind, seed=seed, **more).frame

    state = torch.get_rng_state()
    assert torch.equal(frame(5), frame(5)) and not torch.equal(frame(5), frame(6))
    assert torch.equal(torch.get_rng_state(), state)
    projection = nn.RandomOrthogonalProjection(20, 6, kind=kind, seed=5)
    before = projection.frame.clone()
    projection.resample(torch.Generator().manual_seed(5))
    assert torch.equal(projection.frame, before)
    projection.resample()
    assert not torch.equal(projection.frame, before)
    assert set(projection.state_dict()) == {"frame"} and not list(projection.parameters())


def test_dense_subspaces_have_no_preferred_direction():
    frames = nn.RandomOrthogonalProjection(5, 2, items=4000, kind="dense", seed=0, dtype=torch.float64).frame
    mean = (frames @ frames.mT).mean(0)
    assert (mean - 0.4 * torch.eye(5)).abs().max() < 0.03


def test_projection_errors():
    with pytest.raises(ValueError, match=r"RandomOrthogonalProjection: rank: expected at most tokens 4, got 5"):
        nn.RandomOrthogonalProjection(4, 5)
    with pytest.raises(ValueError, match=r"RandomOrthogonalProjection: kind: expected one of 'sketch', 'dense'"):
        nn.RandomOrthogonalProjection(4, 2, kind="binary")
    with pytest.raises(ValueError, match=r"x: expected \(\*batch, 4, d\), got shape \(2, 5, 3\)"):
        nn.RandomOrthogonalProjection(4, 2)(torch.ones(2, 5, 3))
    with pytest.raises(ValueError, match=r"x: expected \(3, 4, d\), got shape \(2, 4, 3\)"):
        nn.RandomOrthogonalProjection(4, 2, items=3)(torch.ones(2, 4, 3))
    with pytest.raises(ValueError, match=r"prediction: expected the shape of target \(4, 3\), got shape \(4, 1\)"):
        nn.RandomOrthogonalProjection(4, 2).loss(torch.ones(4, 1), torch.ones(4, 3))
    with pytest.raises(TypeError, match=r"generator: expected a torch.Generator, got int"):
        nn.RandomOrthogonalProjection(4, 2).resample(3)


# --- OrthogonalAlignment ---


def test_alignment_is_an_orthogonal_layer_and_a_part_of_its_input():
    torch.manual_seed(0)
    align, x = nn.OrthogonalAlignment(5, 3, dtype=torch.float64), normal(1, 2, 6, 8)
    compatible, features = align(x)
    unit = normalize(x, dim=-1)
    close(compatible, unit[..., :5])
    close(features, unit @ align.weight.mT)
    close(align.inverse(features), unit)
    assert deviation(align.weight) < 1e-14
    plain = nn.OrthogonalAlignment(5, 3, normalize=False, dtype=torch.float64)
    assert torch.equal(plain(x)[0], x[..., :5])
    assert nn.OrthogonalAlignment(5, 0)(torch.ones(2, 5))[1].shape == (2, 5)


def test_alignment_trains_and_stays_orthogonal():
    torch.manual_seed(0)
    align = nn.OrthogonalAlignment(12, 4)
    start = align.weight.detach().clone()
    optimiser = torch.optim.AdamW(align.parameters(), lr=1e-2, weight_decay=0.1)
    for step in range(50):
        optimiser.zero_grad()
        align(normal(step, 8, 16).float())[1].pow(4).sum().backward()
        optimiser.step()
    assert (align.weight - start).abs().max() > 0.05 and deviation(align.weight) < 1e-5


def test_alignment_loss_is_the_published_one():
    align = nn.OrthogonalAlignment(6, 2, dtype=torch.float64)
    compatible, prototypes, labels = normal(1, 7, 6), normal(2, 4, 6), torch.arange(7) % 4
    directions = normalize(compatible, dim=1)
    expected = 10 * cross_entropy(directions @ prototypes.mT, labels) + 5 * cosine_embedding_loss(
        prototypes[labels], directions, torch.ones(7)
    )
    close(align.loss(compatible, prototypes, labels), expected, 5e-12)  # torch adds 1e-12 to squared lengths
    assert align.loss(compatible, prototypes, labels, influence=0.0, alignment=0.0).item() == 0


def test_fit_finds_the_map_of_old_embeddings():
    """Old embeddings seen through an orthogonal map, with more dimensions: the inverse gives them back."""
    torch.manual_seed(0)
    align, old = nn.OrthogonalAlignment(6, 4, dtype=torch.float64), normal(1, 50, 6)
    B = torch.linalg.qr(normal(2, 10, 10)).Q
    new = torch.nn.functional.pad(old, (0, 4)) @ B.mT
    align.fit(new, old)
    close(align.weight[:, :6], B[:, :6])
    close(align.inverse(new)[:, :6], old, 1e-12)
    assert deviation(align.weight) < 1e-13


def test_fit_is_no_worse_than_other_orthogonal_matrices():
    align, new, old = nn.OrthogonalAlignment(3, 2, dtype=torch.float64), normal(1, 40, 5), normal(2, 40, 3)
    align.fit(new, old)
    padded = torch.nn.functional.pad(old, (0, 2))

    def distance(B: Tensor) -> float:
        return (padded @ B.mT - new).norm().item()

    best = distance(align.weight.detach())
    for seed in range(100):
        turn = torch.linalg.matrix_exp(0.2 * (normal(seed, 5, 5).triu(1) - normal(seed, 5, 5).triu(1).mT))
        assert distance(align.weight.detach() @ turn) >= best - 1e-12
    single = nn.OrthogonalAlignment(3, 2)
    single.fit(new.float(), old.float())
    torch.testing.assert_close(single.weight.double()[:, :3], align.weight[:, :3], rtol=0, atol=1e-5)


def test_alignment_errors():
    align = nn.OrthogonalAlignment(4, 2)
    with pytest.raises(ValueError, match=r"OrthogonalAlignment: x: expected \(\*batch, 6\), got shape \(2, 4\)"):
        align(torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"OrthogonalAlignment: features: expected \(\*batch, 6\)"):
        align.inverse(torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"OrthogonalAlignment.fit: old: expected \(k, 4\), got shape \(3, 6\)"):
        align.fit(torch.ones(3, 6), torch.ones(3, 6))
    with pytest.raises(ValueError, match=r"fit: old: expected as many samples as new \(3, 6\), got \(2, 4\)"):
        align.fit(torch.ones(3, 6), torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"loss: prototypes: expected \(k, 4\), got shape \(3, 6\)"):
        align.loss(torch.ones(3, 4), torch.ones(3, 6), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"loss: labels: expected \(3,\) for compatible \(3, 4\), got shape \(2,\)"):
        align.loss(torch.ones(3, 4), torch.ones(3, 4), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"OrthogonalAlignment: extra: expected an integer in 1"):
        nn.OrthogonalAlignment(4, -1)
