"""Similarity of representations: values against the papers' formulas, invariances, and delicate input."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import subspan
from sample_arrays import normal
from similarity_points import SHAPES, related, with_angles
from subspan.ops import spectra
from subspan.reference import similarity as reference

DOUBLE, SINGLE = torch.float64, torch.float32
REAL = pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
#: Roundings of a result of order one. float32 results are those of the float32 input, rounded at the end, but for CKA.
PRECISION = {SINGLE: 2e-6, DOUBLE: 2e-13}

#: name -> function, reference, pairwise form
MEASURES: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {
    "svcca by energy": (subspan.svcca, reference.svcca, subspan.pairwise_svcca),
    "svcca by rank": (
        partial(subspan.svcca, rank=3),
        partial(reference.svcca, rank=3),
        partial(subspan.pairwise_svcca, rank=3),
    ),
    "pwcca": (subspan.pwcca, reference.pwcca, subspan.pairwise_pwcca),
    "mean cca": (
        lambda X, Y: subspan.pairwise_cca([X], [Y])[..., 0, 0],
        lambda X, Y, **settings: reference.canonical_correlations(X, Y, **settings).mean(),
        subspan.pairwise_cca,
    ),
    "linear_cka": (subspan.linear_cka, reference.linear_cka, subspan.pairwise_linear_cka),
    "debiased linear_cka": (
        partial(subspan.linear_cka, debiased=True),
        partial(reference.linear_cka, debiased=True),
        partial(subspan.pairwise_linear_cka, debiased=True),
    ),
    "procrustes": (subspan.procrustes_distance, reference.procrustes_distance, subspan.pairwise_procrustes),
    "procrustes angle": (
        partial(subspan.procrustes_distance, metric="angular"),
        partial(reference.procrustes_distance, metric="angular"),
        partial(subspan.pairwise_procrustes, metric="angular"),
    ),
}
every_measure = pytest.mark.parametrize("name", MEASURES)


@every_measure
@REAL
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(name: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    function, exact, _ = MEASURES[name]
    X, Y = related(1, *shape, dtype=dtype)
    expected = exact(X.double().numpy(), Y.double().numpy())
    for result in (function(X, Y), torch.from_numpy(function(X.numpy(), Y.numpy()))):
        assert result.dtype == dtype and result.shape == ()
        assert abs(float(result) - expected) <= PRECISION[dtype]


@REAL
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_canonical_correlations(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    X, Y = related(2, *shape, dtype=dtype)
    expected = reference.cca(X.double().numpy(), Y.double().numpy())
    for result in (subspan.cca(X, Y).numpy(), subspan.cca(X.numpy(), Y.numpy())):
        assert result.shape == (min(shape[1:]),) and np.abs(result - expected).max() <= PRECISION[dtype]
        assert (np.diff(result) <= 0).all() and result[0] <= 1


def test_correlations_are_cosines_of_principal_angles() -> None:
    angles = (0.0, 1e-6, 0.3, 0.3, 1.5, math.pi / 2)
    X, Y = with_angles(*angles)
    expected = np.cos(angles)
    assert np.abs(subspan.cca(X + 5, Y).numpy() - expected).max() < 1e-13


@every_measure
@pytest.mark.parametrize("symmetric", [False, True])
def test_pairs_are_those_of_single_calls(name: str, symmetric: bool) -> None:
    """Representations of different widths, d > n among them."""
    function, _, pairwise = MEASURES[name]
    Xs = [related(3, 24, d, 4)[0] for d in (5, 9, 30)]
    Ys = None if symmetric else [related(3, 24, 4, d)[1] for d in (6, 40)]
    expected = torch.stack([torch.stack([function(X, Y) for Y in (Ys or Xs)]) for X in Xs])
    torch.testing.assert_close(pairwise(Xs, Ys), expected, rtol=0, atol=1e-12)
    arrays = [[Z.numpy() for Z in Zs] if Zs else None for Zs in (Xs, Ys)]
    np.testing.assert_allclose(pairwise(*arrays), expected, rtol=0, atol=1e-12)
    for leaf in Xs:  # the paths that are differentiated
        leaf.requires_grad_()
    torch.testing.assert_close(pairwise(Xs, Ys).detach(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in MEASURES if name != "mean cca"])  # which is a list's
def test_batches_broadcast(name: str) -> None:
    function, _, pairwise = MEASURES[name]
    X, Y = normal(4, 2, 1, 15, 6), normal(5, 3, 15, 4)
    result = function(X, Y)
    assert result.shape == (2, 3)
    torch.testing.assert_close(result[1, 2], function(X[1, 0], Y[2]), rtol=0, atol=1e-12)
    assert function(X[:0], Y[:1]).shape == (0, 1)
    stacked = pairwise([Y, 2 * Y[..., :3]], [Y])
    assert stacked.shape == (3, 2, 1)
    torch.testing.assert_close(stacked[1, :, 0], torch.stack([function(Y, Y)[1], function(Y[..., :3], Y)[1]]))


@every_measure
@REAL
def test_translation_scale_and_orthogonal_maps_change_nothing(name: str, dtype: torch.dtype) -> None:
    function = MEASURES[name][0]
    X, Y = related(6, 30, 6, 4)
    rotation = torch.linalg.qr(normal(7, 6, 6))[0]
    if name == "pwcca":  # whose weights are sums of absolute values over features
        rotation = torch.eye(6, dtype=DOUBLE)[:, torch.randperm(6)]
    for scale in (1e-3, 7.0, 1e15):
        mapped = scale * (X @ rotation + normal(8, 6))
        result = function(mapped.to(dtype), Y.to(dtype)).double()
        assert abs(result - function(X, Y)) <= 30 * PRECISION[dtype]


def test_invertible_maps_do_not_change_canonical_correlations() -> None:
    """The error is that of the map's condition number, not of its square."""
    X, Y = related(9, 50, 6, 5)
    badly = normal(10, 6, 6) @ torch.diag(torch.logspace(0, -9, 6, dtype=DOUBLE)) @ normal(11, 6, 6)
    torch.testing.assert_close(subspan.cca(X @ badly, Y), subspan.cca(X, Y), rtol=0, atol=1e-5)
    mildly = normal(10, 6, 6) @ torch.diag(torch.logspace(0, -3, 6, dtype=DOUBLE)) @ normal(11, 6, 6)
    torch.testing.assert_close(subspan.cca(X @ mildly, Y), subspan.cca(X, Y), rtol=0, atol=1e-11)


@REAL
@pytest.mark.parametrize("differentiated", [False, True])
def test_dead_directions(dtype: torch.dtype, differentiated: bool) -> None:
    """Constant, repeated and dependent features change no correlation, and add zeros."""
    X, Y = related(12, 40, 4, 9)
    expected = torch.cat([subspan.cca(X, Y), torch.zeros(4, dtype=DOUBLE)])
    constant = torch.full((40, 2), 1e4, dtype=DOUBLE)
    wide = torch.cat([X, constant, X[:, :1], X[:, 1:2] - X[:, 2:3]], 1).to(dtype).requires_grad_(differentiated)
    result = subspan.cca(wide, Y.to(dtype))
    torch.testing.assert_close(result.detach().double(), expected, rtol=0, atol=1e3 * PRECISION[dtype])
    assert (result[4:] == 0).all()
    for function, *_ in MEASURES.values():
        value = function(wide, Y.to(dtype))
        assert value.isfinite()
        if differentiated:
            (gradient,) = torch.autograd.grad(value, wide)
            assert gradient.isfinite().all()


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6])
@REAL
def test_constant_representations(value: float, dtype: torch.dtype) -> None:
    """Nothing correlates with them, and they have no shape. 0.1 is not the rounded mean of its copies."""
    X, Y = torch.full((37, 5), value, dtype=dtype), related(13, 37, 3, 4, dtype=dtype)[1]
    expected = {"procrustes": math.sqrt(2), "procrustes angle": math.pi / 2}
    for differentiated in (False, True):
        X.requires_grad_(differentiated)
        for name, (function, _, pairwise) in MEASURES.items():
            for arguments in ((X, Y), (Y, X), (X, X)):
                assert abs(float(function(*arguments).detach()) - expected.get(name, 0.0)) < 1e-6
            assert abs(float(pairwise([X, Y])[0, 0].detach()) - expected.get(name, 0.0)) < 1e-6
            if differentiated:
                assert (torch.autograd.grad(function(X, Y), X)[0] == 0).all()
        assert subspan.cca(X, Y).eq(0).all()


@every_measure
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("differentiated", [False, True])
@pytest.mark.parametrize("shape", [(15, 4), (15, 30)], ids=str)
def test_nan_stays_in_its_item(name: str, bad: float, differentiated: bool, shape: tuple[int, int]) -> None:
    function, _, pairwise = MEASURES[name]
    X, Y = normal(14, 3, *shape), normal(15, 3, 15, 3)
    expected = function(X, Y)
    X[1, 2, 3] = bad
    X.requires_grad_(differentiated)
    result = function(X, Y)
    assert result[1].isnan()
    torch.testing.assert_close(result[[0, 2]].detach(), expected[[0, 2]])
    if differentiated:
        (gradient,) = torch.autograd.grad(result.sum(), X)
        assert gradient[1].isnan().any() and gradient[[0, 2]].isfinite().all()
    table = pairwise(list(X), list(Y))
    assert table.isnan().any(1).tolist() == [False, True, False]
    itself = pairwise(list(X))
    assert itself.isnan().sum() == 5 and itself[1].isnan().all()
    assert np.isnan(function(X.detach().numpy(), Y.numpy())).tolist() == [False, True, False]


@every_measure
def test_empty_sizes(name: str) -> None:
    function, _, pairwise = MEASURES[name]
    if "debiased" not in name:
        assert float(function(torch.zeros(0, 3), torch.zeros(0, 2))) in (
            0.0,
            pytest.approx(1.4142135),
            pytest.approx(math.pi / 2),
        )
    assert subspan.cca(np.zeros((5, 0)), normal(1, 5, 2).numpy()).shape == (0,)
    assert pairwise([normal(1, 0, 5, 2), normal(2, 0, 5, 3)]).shape == (0, 2, 2)


def test_svcca_returns_all_correlations_and_keeps_what_holds_the_variance() -> None:
    Q = with_angles(*(0.1,) * 5)[0]
    X = Q * torch.tensor([10.0, 5.0, 1.0, 0.1, 0.01], dtype=DOUBLE)  # squares 100, 25, 1, ...
    for energy, kept in ((0.79, 1), (0.8, 2), (0.99, 2), (0.993, 3), (1.0, 5)):
        mean, values = subspan.svcca(X, X, energy=energy, return_correlations=True)
        torch.testing.assert_close(values, torch.tensor([1.0] * kept + [0.0] * (5 - kept), dtype=DOUBLE))
        assert abs(mean - 1) < 1e-14
    assert subspan.svcca(X, X[:, :3], rank=2, return_correlations=True)[1].shape == (2,)
    assert abs(subspan.svcca(X[:, 2:], X[:, :2]) - 0) < 1e-14


def spectrum(seed: int, n: int, d: int, power: float, dtype: torch.dtype) -> Tensor:
    """Singular values as a power of their index; 0: those of independent entries."""
    if power == 0:
        return normal(seed, n, d, dtype=dtype)
    return decaying(seed, n, d, power, dtype)


def decaying(seed: int, n: int, d: int, power: float, dtype: torch.dtype) -> Tensor:
    left, right = (torch.linalg.qr(normal(seed + i, size, min(n, d)))[0] for i, size in enumerate((n, d)))
    return ((left * torch.arange(1, min(n, d) + 1) ** -power) @ right.mT).to(dtype)


@REAL
@pytest.mark.parametrize("shape", [(300, 220), (200, 330)], ids=str)
@pytest.mark.parametrize("power", [2.0, 1.0, 0.0])
def test_few_directions_by_iteration(dtype: torch.dtype, shape: tuple[int, int], power: float) -> None:
    """As exact as the whole decomposition; a spectrum without gaps falls back on it."""
    X, Y = (spectrum(seed, *shape, power, dtype) for seed in (16, 18))
    centred = (X - X.mean(0)).double()
    U, s, _ = torch.linalg.svd(centred, full_matrices=False)
    for rank in (1, 4):
        found = spectra.leading_left(centred.to(dtype), rank)
        if power != 1:
            assert (found is not None) == (power == 2)
        if found is not None:
            gap = (s[0] / (s[rank - 1] - s[rank])).item()
            assert torch.linalg.matrix_norm(
                found[0].double() - U[:, :rank] @ (U[:, :rank].mT @ found[0].double()), 2
            ) < (32 * gap * torch.finfo(dtype).eps)
            torch.testing.assert_close(found[1].double(), s[:rank], rtol=1e-5 if dtype == SINGLE else 1e-13, atol=0)
        if power:
            expected = reference.svcca(X.double().numpy(), Y.double().numpy(), rank=rank, tolerance=1e-6)
            bound = 32 * torch.finfo(dtype).eps * s[0] / (s[rank - 1] - s[rank])
            assert abs(float(subspan.svcca(X, Y, rank=rank)) - expected) < bound
            assert abs(float(subspan.svcca(X.numpy(), Y.numpy(), rank=rank)) - expected) < bound


def test_few_directions_of_low_rank_and_of_coinciding_singular_values() -> None:
    low = normal(20, 200, 3) @ normal(21, 3, 150)
    assert subspan.svcca(low, low, rank=10, return_correlations=True)[1][3:].eq(0).all()
    assert (
        abs(subspan.svcca(low, normal(22, 200, 3) @ normal(23, 3, 150), rank=10) - subspan.svcca(low, low, rank=3)) < 1
    )
    assert abs(float(subspan.svcca(low, low, rank=10)) - 1) < 1e-13
    equal = torch.linalg.qr(normal(24, 200, 150))[0] * torch.tensor([5.0] * 8 + [0.1] * 142, dtype=DOUBLE)
    equal = equal - equal.mean(0)
    assert abs(float(subspan.svcca(equal, equal @ torch.linalg.qr(normal(25, 150, 150))[0], rank=8)) - 1) < 1e-12


@REAL
def test_small_procrustes_distances_do_not_cancel(dtype: torch.dtype) -> None:
    """2 - 2 |X^T Y|_* has no digits below 1e-8 even in float64."""
    X = with_angles(*(0.1,) * 5)[0] / math.sqrt(5)
    rotation = torch.linalg.qr(normal(26, 5, 5))[0]
    other = with_angles(*(math.pi / 2,) * 5)[1]
    direction = torch.linalg.qr(other)[0] / math.sqrt(5)  # orthogonal to X: no rotation helps
    for angle in (1e-3, 1e-6, 1e-9, 1e-12, 0.0):
        Y = (math.cos(angle) * X + math.sin(angle) * direction) @ rotation
        distance = subspan.procrustes_distance(X.to(dtype), Y.to(dtype), metric="angular")
        assert abs(float(distance) - angle) < 8 * torch.finfo(dtype).eps


def test_procrustes_of_a_representation_and_itself_is_zero() -> None:
    Xs = [normal(27, 20, 4), normal(28, 20, 30)]
    assert subspan.pairwise_procrustes(Xs).diagonal().eq(0).all()
    for X in Xs:
        assert float(subspan.procrustes_distance(X, X)) < 1e-14


def test_debiased_alignment_of_unrelated_features_is_around_zero() -> None:
    """The biased one approaches 1 as features outnumber samples."""
    X, Y = normal(29, 200, 10, 300), normal(30, 200, 10, 300)
    debiased = subspan.linear_cka(X, Y, debiased=True)
    assert abs(debiased.mean()) < 0.02 and (debiased < 0).any()
    assert subspan.linear_cka(X, Y).mean() > 0.9


@REAL
@pytest.mark.parametrize("debiased", [False, True])
def test_alignment_of_many_samples_and_features(dtype: torch.dtype, debiased: bool) -> None:
    """Gram matrices some rows at a time, by one product with those of all layers; differentiated ones whole."""
    Xs = [related(33, 300, d, 4, dtype=dtype)[0].expand(2, 300, d) for d in (400, 350)]
    Ys = [related(34, 300, d, 4, dtype=dtype)[0].expand(2, 300, d) for d in (280, 500, 450)]
    exact = partial(reference.linear_cka, debiased=debiased)
    for left, right in ((Xs, Ys), (Ys, None)):
        arrays = [[Z[1].double().numpy() for Z in Zs] if Zs else None for Zs in (left, right)]
        expected = torch.from_numpy(reference.pairwise(exact, *arrays)).to(dtype)
        bound = {"rtol": 0, "atol": 10 * PRECISION[dtype]}
        for item in subspan.pairwise_linear_cka(left, right, debiased=debiased):
            torch.testing.assert_close(item, expected, **bound)
        in_numpy = [[Z[0].numpy() for Z in Zs] if Zs else None for Zs in (left, right)]
        result = subspan.pairwise_linear_cka(*in_numpy, debiased=debiased)
        torch.testing.assert_close(torch.from_numpy(result), expected, **bound)
        leaves = [Z[0].clone().requires_grad_() for Z in left]
        whole = subspan.pairwise_linear_cka(leaves, right and [Z[0] for Z in right], debiased=debiased)
        torch.testing.assert_close(whole.detach(), expected, **bound)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@every_measure
def test_half_precision_and_autocast(name: str, dtype: torch.dtype) -> None:
    function, _, pairwise = MEASURES[name]
    X, Y = related(31, 20, 5, 4, dtype=dtype)
    expected = function(X.float(), Y.float())
    assert expected.dtype == SINGLE
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(function(X, Y), expected)
        assert torch.equal(pairwise([X], [Y])[0, 0], pairwise([X.float()], [Y.float()])[0, 0])
    assert function(X.double(), Y).dtype == DOUBLE


@every_measure
def test_strides_and_inputs_untouched(name: str) -> None:
    function = MEASURES[name][0]
    X, Y = related(32, 20, 5, 4)
    big = torch.zeros(40, 15, dtype=DOUBLE)
    big[::2, ::3] = X
    before = big.clone()
    expected = function(X, Y)
    torch.testing.assert_close(function(big[::2, ::3], Y.T.clone().T), expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(function(big.numpy()[::2, ::3], Y.numpy()[::-1][::-1]), expected, rtol=0, atol=1e-13)
    assert torch.equal(big, before)
