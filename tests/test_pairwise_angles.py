"""All pairs of two sets of subspaces: the same as pair by pair, in values, gradients, types, layouts and bad items."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import subspan
from angle_cases import ANGLES, DOUBLE, METRICS, SIMILARITIES, angle_bound, double, invertible, largest, pair, unit
from sample_arrays import normal

REAL = pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "angles": subspan.principal_angles,
    "cosines": subspan.principal_cosines,
    **{metric: functools.partial(subspan.subspace_distance, metric=metric) for metric in METRICS},
    **{f"{m} squared": functools.partial(subspan.subspace_distance, metric=m, squared=True) for m in METRICS},
    "chordal padded": functools.partial(subspan.subspace_distance, metric="chordal", unequal="padded"),
    "projection padded": functools.partial(subspan.subspace_distance, metric="projection", unequal="padded"),
    **{kind: functools.partial(subspan.subspace_similarity, kind=kind) for kind in SIMILARITIES},
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


def bases(seed: int, count: int, n: int, k: int) -> Tensor:
    """Orthonormal, of one family: the second half lies near the first, at 1e-1 ... 1e-9, one is repeated."""
    first = torch.linalg.qr(normal(seed, (count + 1) // 2, n, k)).Q
    sizes = torch.logspace(-1, -9, max(count // 2, 1), dtype=DOUBLE)[: count // 2, None, None]
    near = torch.linalg.qr(first[: count // 2] + sizes * normal(seed + 1, count // 2, n, k)).Q
    both = torch.cat([first, near])
    if count > 2:
        both[-1] = both[0]
    return both


def loop(function: Callable[..., Tensor], A: Tensor, B: Tensor, **options: Any) -> Tensor:
    return torch.stack([torch.stack([function(a, b, **options) for b in B]) for a in A])


def tolerance(name: str, dtype: torch.dtype, n: int) -> float:
    """Of the angles: products in the type of the data for large ones, rounded orthonormal bases for small ones. A
    function adds up to eight of them."""
    angle = angle_bound(n) if dtype == DOUBLE else 2 * math.sqrt(n) * unit(dtype)
    return 8 * angle * (4 if "martin" in name else 1)


# --- values -----------------------------------------------------------------------------------------------------------


@every_function
@REAL
@pytest.mark.parametrize("sizes", [(5, 7, 2, 2), (3, 18, 4, 2), (19, 2, 2, 4), (2, 3, 1, 3), (1, 1, 8, 8)], ids=str)
@pytest.mark.parametrize("orthonormal", [False, True], ids=["", "assume_orthonormal"])
def test_equals_the_loop(name: str, dtype: torch.dtype, sizes: tuple[int, int, int, int], orthonormal: bool) -> None:
    N, M, p, q = sizes
    n, function = 24, FUNCTIONS[name]
    A, B = bases(1, N, n, p), bases(1, M, n, max(p, q))[..., :q]
    if not orthonormal:
        A, B = A @ invertible(2, p, 5), B @ invertible(4, q, 5)
    A, B = A.to(dtype), B.to(dtype)
    got = function(A, B, pairwise=True, assume_orthonormal=orthonormal)
    expected = loop(function, A, B, assume_orthonormal=orthonormal)
    assert got.dtype == dtype and got.shape == expected.shape
    bound = tolerance(name, dtype, n)
    if "squared" not in name and name not in ("angles", "cosines", *SIMILARITIES):  # distances of martin are unbounded
        bound = bound * expected.double().clamp(min=1)
    assert ((got - expected).abs() <= bound).all(), largest(got - expected)


@every_function
@REAL
def test_a_set_with_itself(name: str, dtype: torch.dtype) -> None:
    """Half the work, and exactly symmetric; a space has no distance to itself."""
    function = FUNCTIONS[name]
    for A in (bases(3, 21, 24, 3), bases(3, 6, 24, 3) @ invertible(4, 3, 5), bases(5, 4, 9, 1)):
        A = A.to(dtype)
        once, twice = (function(A, B, pairwise=True) for B in (A, A.clone()))
        assert torch.equal(once, once.transpose(0, 1))
        scale = once.double().abs().clamp(min=1) if "martin" in name else 1.0
        assert ((once - twice).abs() <= 2 * tolerance(name, dtype, 24) * scale).all()
        diagonal = once.diagonal(dim1=0, dim2=1)
        perfect = {"cosines": 1.0, "mean_cos2": 1.0, "max_cos": 1.0, "overlap": float(A.shape[-1])}.get(name, 0.0)
        if name in ("mean_cos2", "overlap"):  # which are read off the products
            assert largest(diagonal - perfect) <= 8 * unit(dtype) * perfect
        else:
            assert (diagonal == perfect).all()


@every_function
@REAL
def test_dependent_columns(name: str, dtype: torch.dtype) -> None:
    """Their directions are missing: at right angles to everything, in the subspace itself too."""
    A, B = bases(6, 5, 24, 3) @ invertible(7, 3, 5), bases(8, 4, 24, 3) @ invertible(9, 3, 5)
    A[1, :, 2] = A[1, :, 0]
    A[3, :, 1] = 0
    B[2] = A[1]
    A, B = A.to(dtype), B.to(dtype)
    for other in (B, A):
        got, expected = FUNCTIONS[name](A, other, pairwise=True), loop(FUNCTIONS[name], A, other)
        assert torch.equal(got.isinf(), expected.isinf())
        finite = expected.isfinite()
        bound = 8 * tolerance(name, dtype, 24) * expected[finite].double().clamp(min=1)
        assert ((got - expected)[finite].abs() <= bound).all(), largest((got - expected)[finite])


def test_dependent_columns_in_torch_operations() -> None:
    from subspan import _angle_functions
    from subspan.composite import pairwise_angles as composite

    Q = bases(6, 3, 24, 3)
    Q[1, :, 2] = 0
    martin = _angle_functions.METRICS["martin"]
    value, _ = composite.pairwise_angles(Q, Q, martin, False, False)
    apart = torch.tensor([[False, True, False], [True, True, True], [False, True, False]])
    assert torch.equal(value.isinf(), apart)


@pytest.mark.parametrize("orthonormal", [False, True], ids=["", "assume_orthonormal"])
def test_constructed_angles(orthonormal: bool) -> None:
    """The accuracy of a pair, for each of the pairs."""
    for angles in ANGLES.values():
        n, r = 40, len(angles)
        scales = [1.0, 0.5, 0.25, 0.125]
        A, _ = pair(1, n, angles)
        others = [pair(1, n, [s * t for t in angles])[1] for s in scales]  # of the same A
        got = subspan.principal_angles(A[None], torch.stack(others), pairwise=True, assume_orthonormal=orthonormal)
        assert got.shape == (1, 4, r)
        assert largest(got[0] - double(scales)[:, None] * double(angles)) <= angle_bound(n), angles


def test_small_chordal_distances_do_not_cancel() -> None:
    """1 - |M|^2 would leave a floor of 1e-8."""
    for size in (1e-11, 1e-8, 1e-5, 1e-2):
        angles = (size / 2, size)
        A, B = pair(3, 30, angles)
        for metric in ("chordal", "projection"):
            factor = math.sqrt(2) if metric == "projection" else 1
            expected = factor * math.hypot(*(math.sin(t) for t in angles))
            got = subspan.subspace_distance(A[None], B[None], metric, pairwise=True).item()
            assert abs(got - expected) <= 2 * angle_bound(30)


def test_batches_types_and_layouts() -> None:
    A, B = normal(6, 2, 1, 3, 12, 2), normal(7, 4, 5, 12, 3)
    expected = torch.stack(
        [torch.stack([loop(subspan.principal_angles, A[i, 0], B[j]) for j in range(4)]) for i in range(2)]
    )
    got, info = subspan.principal_angles(A, B, pairwise=True, return_info=True)
    assert got.shape == (2, 4, 3, 5, 2) and info.shape == (2, 4, 3, 5) and (info == 2).all()
    torch.testing.assert_close(got, expected, rtol=0, atol=angle_bound(12, 10))
    rows = subspan.principal_angles(A.mT.contiguous(), B.mT.contiguous(), pairwise=True, layout="rows")
    torch.testing.assert_close(rows, got, rtol=0, atol=1e-15)
    strided = [torch.empty(*X.shape[:-1], 2 * X.shape[-1], dtype=DOUBLE)[..., ::2].copy_(X) for X in (A, B)]
    assert torch.equal(subspan.principal_angles(*strided, pairwise=True), got)
    mixed = subspan.principal_angles(A.float(), B, pairwise=True)
    assert mixed.dtype == DOUBLE
    assert torch.equal(mixed, subspan.principal_angles(A.float().double(), B, pairwise=True, rank_tol=None))
    half = subspan.principal_angles(A.bfloat16(), B.bfloat16(), pairwise=True)
    assert half.dtype == torch.float32
    assert largest(half - subspan.principal_angles(A.bfloat16().float(), B.bfloat16().float(), pairwise=True)) == 0
    array = subspan.principal_angles(A.numpy(), B.numpy(), pairwise=True)
    assert torch.equal(torch.from_numpy(array), got)
    assert torch.equal(subspan.principal_angles(A, B, pairwise=True, order="descending"), got.flip(-1))


@pytest.mark.parametrize("shapes", [((0, 5, 2), (3, 5, 2)), ((3, 5, 2), (0, 5, 2)), ((2, 5, 0), (3, 5, 2)),
                                    ((2, 0, 0), (3, 0, 0)), ((0, 2, 5, 2), (0, 1, 5, 2))], ids=str)  # fmt: skip
def test_empty(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    A, B = (torch.ones(shape, dtype=DOUBLE, requires_grad=True) for shape in shapes)
    pairs = (*A.shape[:-3], A.shape[-3], B.shape[-3])
    for name, function in FUNCTIONS.items():
        value = function(A, B, pairwise=True)
        assert value.shape == (*pairs, *((min(A.shape[-1], B.shape[-1]),) if name in ("angles", "cosines") else ()))
        assert ((value == 0) | (value == abs(A.shape[-1] - B.shape[-1]) ** 0.5)).all(), name
        for gradient, X in zip(torch.autograd.grad(value.sum(), (A, B)), (A, B), strict=True):
            assert gradient.shape == X.shape and (gradient == 0).all()


# --- gradients --------------------------------------------------------------------------------------------------------


@every_function
@pytest.mark.parametrize("sizes", [(4, 5, 2, 2), (3, 9, 3, 2), (2, 3, 1, 3)], ids=str)
@pytest.mark.parametrize("orthonormal", [False, True], ids=["", "assume_orthonormal"])
@pytest.mark.parametrize("graph", [False, True], ids=["", "create_graph"])
def test_gradients_equal_those_of_the_loop(
    name: str, sizes: tuple[int, int, int, int], orthonormal: bool, graph: bool
) -> None:
    N, M, p, q = sizes
    A, B = torch.linalg.qr(normal(8, N, 12, p)).Q, torch.linalg.qr(normal(9, M, 12, q)).Q
    A[-1, :, 0] = B[0, :, 0] + 0.1 * A[-1, :, 0]  # one pair with a small angle
    A = torch.linalg.qr(A).Q
    if not orthonormal:
        A, B = A @ invertible(2, p, 5), B @ invertible(4, q, 5)
    function = functools.partial(FUNCTIONS[name], assume_orthonormal=orthonormal)
    results = []
    for compute in (functools.partial(function, pairwise=True), functools.partial(loop, function)):
        leaves = [X.clone().requires_grad_() for X in (A, B)]
        value = compute(*leaves)
        upstream = torch.cos(torch.arange(value.numel(), dtype=DOUBLE)).reshape(value.shape)
        results.append(torch.autograd.grad(value, leaves, upstream, create_graph=graph))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got.detach(), expected.detach(), rtol=1e-10, atol=1e-11)


@every_function
def test_gradient_of_a_set_with_itself(name: str) -> None:
    A = bases(10, 6, 12, 2)[:5] @ invertible(1, 2, 4)
    A = A[[0, 1, 3, 4]]  # none equal
    results = []
    for other in (lambda A: A, lambda A: A.clone()):
        leaf = A.clone().requires_grad_()
        value = FUNCTIONS[name](leaf, other(leaf), pairwise=True)
        upstream = torch.cos(torch.arange(value.numel(), dtype=DOUBLE)).reshape(value.shape)
        off = ~torch.eye(4, dtype=torch.bool)
        results.append(torch.autograd.grad(value[off], leaf, upstream[off])[0])
    torch.testing.assert_close(*results, rtol=1e-7, atol=1e-9)


class Largest(TorchDispatchMode):
    """The size of the largest tensor that anything returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@every_function
@pytest.mark.parametrize("orthonormal", [False, True], ids=["", "assume_orthonormal"])
def test_no_bases_for_every_pair(name: str, orthonormal: bool) -> None:
    """Backward holds the products of all pairs, but no tall matrix for each of them."""
    N, M, n, p = 12, 10, 64, 3
    A = torch.linalg.qr(normal(11, N, n, p)).Q.requires_grad_()
    B = torch.linalg.qr(normal(12, M, n, p)).Q.requires_grad_()
    with Largest() as watch:
        value = FUNCTIONS[name](A, B, pairwise=True, assume_orthonormal=orthonormal)
        torch.autograd.grad(value.sum(), (A, B))
    assert watch.elements <= max(N * n * p, N * M * p * p)
    assert watch.elements < N * M * n * p / 5


# --- items that are not finite, threads -------------------------------------------------------------------------------


@every_function
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("orthonormal", [False, True], ids=["", "assume_orthonormal"])
@pytest.mark.parametrize("same", [False, True], ids=["", "with itself"])
def test_not_finite(name: str, bad: float, orthonormal: bool, same: bool) -> None:
    """A spoiled basis spoils its pairs, to the bit no others; its gradient, and those of what it met."""
    A, B = bases(13, 19, 12, 2), bases(14, 9, 12, 2)
    spoiled = A.clone()
    spoiled[7, 3, 1] = bad
    function = functools.partial(FUNCTIONS[name], pairwise=True, assume_orthonormal=orthonormal)
    clean, got = function(A, A if same else B), function(spoiled, spoiled if same else B)
    assert got[7].isnan().all()
    keep = [i for i in range(19) if i != 7]
    if same:
        assert got[:, 7].isnan().all()
        assert torch.equal(got[keep][:, keep], clean[keep][:, keep])
    else:
        assert torch.equal(got[keep], clean[keep])
    if name == "angles":
        info = function(spoiled, spoiled if same else B, return_info=True)[1]
        expected = torch.full(info.shape, 2, dtype=torch.int32)
        expected[7] = -1
        if same:
            expected[:, 7] = -1
        assert torch.equal(info, expected)
    if not same:
        leaves = spoiled.requires_grad_(), B.requires_grad_()
        of_A, _ = torch.autograd.grad(function(*leaves)[keep].sum(), leaves)
        assert of_A[keep].isfinite().all(), "a gradient that nothing spoiled asks for"
        total = torch.autograd.grad(function(*leaves).sum(), leaves)
        assert total[0][7].isnan().all() and total[0][keep].isfinite().all() and total[1].isnan().all()


@every_function
@REAL
def test_threads_change_nothing(name: str, dtype: torch.dtype) -> None:
    A, B = bases(15, 150, 40, 5).to(dtype), bases(16, 130, 40, 4).to(dtype)
    for pair_of_sets in ((A, B), (A, A)):
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(FUNCTIONS[name](*pair_of_sets, pairwise=True, assume_orthonormal=True))
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
