"""How functions of principal angles are called: arguments, errors, libraries, types, and torch's transformations."""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import subspan
from angle_cases import DOUBLE, METRICS, SIMILARITIES, angle_bound, invertible, largest, pair, unit
from sample_arrays import normal

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "principal_angles": subspan.principal_angles,
    "principal_cosines": subspan.principal_cosines,
    "subspace_distance": subspan.subspace_distance,
    "subspace_similarity": subspan.subspace_similarity,
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)
PAIRWISE = pytest.mark.parametrize("pairwise", [False, True], ids=["", "pairwise"])


def sample(*, dtype: torch.dtype = DOUBLE) -> tuple[Tensor, Tensor]:
    return normal(1, 4, 9, 3).to(dtype), normal(2, 4, 9, 2).to(dtype)


# --- arguments --------------------------------------------------------------------------------------------------------


@every_function
@PAIRWISE
def test_layouts(name: str, pairwise: bool) -> None:
    """Bases as rows are read where they are."""
    A, B = sample()
    function = functools.partial(FUNCTIONS[name], pairwise=pairwise)
    expected = function(A, B)
    rows = [X.mT.contiguous() for X in (A, B)]
    torch.testing.assert_close(function(*rows, layout="rows"), expected, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(function(rows[0].mT, rows[1].mT), expected, rtol=1e-14, atol=1e-15)
    leaves = [X.requires_grad_() for X in (*rows, A, B)]
    of_rows = torch.autograd.grad(function(*leaves[:2], layout="rows").sum(), leaves[:2])
    of_columns = torch.autograd.grad(function(*leaves[2:]).sum(), leaves[2:])
    for row, column in zip(of_rows, of_columns, strict=True):
        torch.testing.assert_close(row.mT, column, rtol=1e-12, atol=1e-13)


@PAIRWISE
def test_order(pairwise: bool) -> None:
    A, B = (X.requires_grad_() for X in sample())
    up = subspan.principal_angles(A, B, pairwise=pairwise)
    down = subspan.principal_angles(A, B, pairwise=pairwise, order="descending")
    assert torch.equal(down, up.flip(-1)) and (up[..., 0] <= up[..., 1]).all()
    (of_up,) = torch.autograd.grad(up[..., 0].sum(), A)
    (of_down,) = torch.autograd.grad(down[..., -1].sum(), A)
    assert torch.equal(of_up, of_down)
    array = subspan.principal_angles(A.detach().numpy(), B.detach().numpy(), pairwise=pairwise, order="descending")
    assert np.array_equal(array, down.detach().numpy())
    if not pairwise:
        options: dict[str, Any] = {"return_vectors": True, "return_info": True}
        ascending = subspan.principal_angles(A, B, **options)
        descending = subspan.principal_angles(A, B, order="descending", **options)
        for first, second in zip(ascending[:3], descending[:3], strict=True):
            assert torch.equal(first.flip(-1), second)
        assert torch.equal(ascending[3], descending[3])


@every_function
def test_broadcasting(name: str) -> None:
    A, B = normal(3, 2, 1, 9, 3), normal(4, 5, 9, 2)
    got = FUNCTIONS[name](A, B)
    assert got.shape[:2] == (2, 5)
    for i in range(2):
        for j in range(5):
            # Items share SIMD lanes, not roundings.
            assert torch.equal(got[i, j], FUNCTIONS[name](A[i, 0], B[j]))


@every_function
@PAIRWISE
def test_mixed_types(name: str, pairwise: bool) -> None:
    A, B = sample()
    function = functools.partial(FUNCTIONS[name], pairwise=pairwise)
    for low, high in ((torch.float32, DOUBLE), (torch.bfloat16, torch.float32), (torch.float16, DOUBLE)):
        got = function(A.to(low), B.to(high))
        assert got.dtype == high
        assert torch.equal(got, function(A.to(low).to(high), B.to(high)))
    got = function(A.half(), B.bfloat16())
    assert got.dtype == torch.float32
    left, right = A.half().requires_grad_(), B.clone().requires_grad_()
    of_left, of_right = torch.autograd.grad(function(left, right).sum(), (left, right))
    assert of_left.dtype == torch.float16 and of_right.dtype == DOUBLE
    mixed = function(A.numpy().astype(np.float32), B.numpy())
    assert isinstance(mixed, np.ndarray) and mixed.dtype == np.float64


@every_function
@PAIRWISE
def test_numpy_arrays(name: str, pairwise: bool) -> None:
    A, B = sample()
    for dtype in (np.float64, np.float32, np.float16):
        arrays = [X.numpy().astype(dtype) for X in (A, B)]
        kept = [X.copy() for X in arrays]
        for X in arrays:
            X.flags.writeable = False
        got = FUNCTIONS[name](*arrays, pairwise=pairwise)
        expected = FUNCTIONS[name](*(torch.from_numpy(X.copy()) for X in arrays), pairwise=pairwise)
        assert isinstance(got, np.ndarray)
        assert got.dtype == (np.float64 if dtype == np.float64 else np.float32)
        assert np.array_equal(got, expected.numpy())
        assert all(np.array_equal(X, Y) for X, Y in zip(arrays, kept, strict=True))
    outputs = subspan.principal_angles(A.numpy(), B.numpy(), return_vectors=True, return_info=True)
    assert [type(x) for x in outputs] == [np.ndarray] * 4 and outputs[3].dtype == np.int32


EYE = torch.eye(9, 3, dtype=DOUBLE)
BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("more columns than rows", {"A": normal(1, 3, 9)}, ValueError, "A: expected at most as many .* got 9 vectors of 3"),
    ("more rows than columns", {"B": EYE, "A": EYE, "layout": "rows"}, ValueError, "A: expected at most as many"),
    ("other length", {"B": normal(1, 8, 2)}, ValueError, r"B: expected vectors of 9 entries as in A, got 8 .*\(8, 2\)"),
    (
        "batches",
        {"A": normal(1, 2, 9, 3), "B": normal(1, 3, 9, 3)},
        ValueError,
        r"A: expected batch dimensions .*\(2, 9, 3\)",
    ),
    ("one dimension", {"A": normal(1, 9)}, ValueError, r"A: expected at least 2 dimensions, got shape \(9,\)"),
    (
        "nine dimensions",
        {"A": normal(1, 1, 1, 1, 1, 1, 1, 1, 9, 3)},
        ValueError,
        "A: expected at most 8 dimensions, got 9",
    ),
    ("integers", {"A": torch.ones(9, 3, dtype=torch.int64)}, TypeError, "A: expected float64, .* got torch.int64"),
    ("complex", {"B": EYE.to(torch.complex128)}, TypeError, "B: expected float64, .* got torch.complex128"),
    ("bool", {"B": EYE.bool()}, TypeError, "B: expected float64, .* got torch.bool"),
    ("list", {"A": [[1.0], [2.0]]}, TypeError, "A: expected a torch tensor, .* got list"),
    ("none", {"B": None}, TypeError, "B: expected .* got NoneType"),
    ("mixed libraries", {"B": EYE.numpy()}, TypeError, r"B: expected the array library of A .* got ndarray"),
    ("other device", {"B": EYE.to("meta")}, ValueError, r"B: expected the device of A \(cpu\), got meta"),
    ("sparse", {"A": EYE.to_sparse()}, TypeError, "A: expected a dense tensor, got layout"),
    ("layout", {"layout": "row"}, ValueError, "layout: expected one of 'columns', 'rows', got 'row'"),
    ("negative tolerance", {"rank_tol": -1e-9}, ValueError, "rank_tol: expected a number >= 0, got -1e-09"),
    ("tolerance", {"rank_tol": "small"}, TypeError, "rank_tol: expected a number, got str"),
    ("infinite tolerance", {"rank_tol": float("inf")}, ValueError, "rank_tol: expected a finite number, got inf"),
    ("NaN tolerance", {"rank_tol": float("nan")}, ValueError, "rank_tol: expected a finite number, got nan"),
    ("pairwise flag", {"pairwise": 1}, TypeError, "pairwise: expected True or False, got int"),
    (
        "orthonormal flag",
        {"assume_orthonormal": "yes"},
        TypeError,
        "assume_orthonormal: expected True or False, got str",
    ),
    (
        "no set",
        {"pairwise": True},
        ValueError,
        r"A: expected at least 3 dimensions with pairwise, .* got shape \(9, 3\)",
    ),
]


@every_function
@pytest.mark.parametrize(("changes", "error", "message"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_wrong_arguments(name: str, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"A": EYE, "B": EYE.clone()} | changes
    with pytest.raises(error, match=f"^{name}: {message}"):
        FUNCTIONS[name](**arguments)


@pytest.mark.parametrize(
    ("name", "changes", "error", "message"),
    [
        ("principal_angles", {"order": "up"}, ValueError, "order: expected one of 'ascending', 'descending', got 'up'"),
        ("principal_angles", {"return_vectors": 1}, TypeError, "return_vectors: expected True or False, got int"),
        ("principal_angles", {"return_info": None}, TypeError, "return_info: expected True or False, got NoneType"),
        ("principal_cosines", {"return_info": 0}, TypeError, "return_info: expected True or False, got int"),
        ("subspace_distance", {"metric": "euclid"}, ValueError, "metric: expected one of 'geodesic', .* got 'euclid'"),
        ("subspace_distance", {"metric": None}, ValueError, "metric: expected one of 'geodesic', .* got None"),
        ("subspace_distance", {"metric": "overlap"}, ValueError, "metric: expected one of .* got 'overlap'"),
        ("subspace_distance", {"unequal": "pad"}, ValueError, "unequal: expected one of 'nearest', 'padded', 'raise'"),
        ("subspace_distance", {"squared": 2}, TypeError, "squared: expected True or False, got int"),
        ("subspace_similarity", {"kind": "cka"}, ValueError, "kind: expected one of 'mean_cos2', .* got 'cka'"),
    ],
    ids=str,
)
def test_wrong_options(name: str, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{name}: {message}"):
        FUNCTIONS[name](EYE, EYE, **changes)


def test_vectors_of_all_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^principal_angles: return_vectors: expected False with pairwise, got True"):
        subspan.principal_angles(EYE[None], EYE[None], pairwise=True, return_vectors=True)


@pytest.mark.parametrize("name", ["small_svd", "small_svdvals", "small_eigh"])
def test_wrong_matrices(name: str) -> None:
    function, argument = getattr(subspan, name), "A" if name == "small_eigh" else "M"
    for array, error, message in (
        (torch.ones(3), ValueError, r"expected at least 2 dimensions, got shape \(3,\)"),
        (torch.ones(3, 3, dtype=torch.int32), TypeError, "expected float64, .* got torch.int32"),
        ([[1.0]], TypeError, "expected a torch tensor, .* got list"),
        (np.ones((2, 2), np.complex128), TypeError, "expected float64, .* got complex128"),
    ):
        with pytest.raises(error, match=f"^{name}: {argument}: {message}"):
            function(array)
    with pytest.raises(TypeError, match=f"^{name}: return_info: expected True or False, got int"):
        function(torch.eye(2), return_info=1)
    if name == "small_eigh":
        with pytest.raises(ValueError, match=r"^small_eigh: A: expected square matrices .* got shape \(2, 3\)"):
            function(torch.ones(2, 3))


# --- transformations --------------------------------------------------------------------------------------------------


def everything(A: Tensor, B: Tensor) -> Tensor:
    """A number made of every function, with and without options."""
    total = (subspan.principal_angles(A, B) * torch.arange(1, 3, dtype=A.dtype)).sum()
    total = total + subspan.principal_cosines(torch.linalg.qr(A).Q, torch.linalg.qr(B).Q, assume_orthonormal=True).sum()
    for metric in METRICS:
        total = total + subspan.subspace_distance(A, B, metric, squared=metric in ("geodesic", "gap")).sum()
    total = total + subspan.subspace_distance(A, B, "chordal", unequal="padded").sum()
    for kind in SIMILARITIES:
        total = total + subspan.subspace_similarity(A, B, kind).sum()
    for metric in ("geodesic", "projection"):
        total = total + subspan.subspace_distance(A, B, metric, pairwise=True).cos().sum()
    return total + subspan.small_svdvals(A.mT @ B).sum()


def value_and_gradients(function: Callable[..., Tensor], A: Tensor, B: Tensor) -> tuple[Tensor, ...]:
    leaves = [X.detach().clone().requires_grad_() for X in (A, B)]
    value = function(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves)


def assert_close(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-11)


# Dynamo instantiates every autograd.Function that it traces.
@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")
def test_compile() -> None:
    A, B = sample()
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    assert_close(value_and_gradients(compiled, A, B), value_and_gradients(everything, A, B))
    itself = torch.compile(lambda A: everything(A, A[..., :2]), fullgraph=True, backend="aot_eager")
    assert torch.isclose(itself(A), everything(A, A[..., :2]), rtol=1e-12)
    twice = torch.compile(
        functools.partial(subspan.subspace_distance, pairwise=True), fullgraph=True, backend="aot_eager"
    )
    assert largest(twice(A, A) - subspan.subspace_distance(A, A, pairwise=True)) <= 1e-7


def test_vmap_and_functional_gradients() -> None:
    A, B = normal(5, 3, 4, 9, 3), normal(6, 3, 4, 9, 2)
    expected = torch.stack([everything(a, b) for a, b in zip(A, B, strict=True)])
    torch.testing.assert_close(torch.func.vmap(everything)(A, B), expected, rtol=1e-12, atol=0)
    per_item = torch.func.vmap(torch.func.grad(everything, argnums=(0, 1)))(A, B)
    for i in range(3):
        _, *gradients = value_and_gradients(everything, A[i], B[i])
        assert_close(tuple(g[i] for g in per_item), tuple(gradients))
    shared = torch.func.vmap(everything, in_dims=(0, None))(A, B[0])
    torch.testing.assert_close(shared, torch.stack([everything(a, B[0]) for a in A]), rtol=1e-12, atol=0)


def test_autocast_lowers_nothing() -> None:
    A, B = sample(dtype=torch.float32)
    expected = value_and_gradients(everything, A, B)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = subspan.principal_angles(A, B), subspan.subspace_distance(A, B, pairwise=True)
        svd = subspan.small_svdvals(A)
    assert all(x.dtype == torch.float32 for x in (*got, svd))
    assert torch.equal(got[0], subspan.principal_angles(A, B))
    assert torch.equal(got[1], subspan.subspace_distance(A, B, pairwise=True))
    assert torch.equal(svd, subspan.small_svdvals(A))
    assert expected[0].dtype == torch.float32

    def gradient_under_autocast() -> Tensor:
        leaf = A.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = subspan.subspace_distance(leaf, B, squared=True).sum()
            (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
        return gradient.detach()

    leaf = A.clone().requires_grad_()
    (exact,) = torch.autograd.grad(subspan.subspace_distance(leaf, B, squared=True).sum(), leaf)
    torch.testing.assert_close(gradient_under_autocast(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant: bool) -> None:
    A, B = (X.requires_grad_() for X in sample())
    value = checkpoint(everything, A, B, use_reentrant=reentrant)
    value.backward()
    expected = value_and_gradients(everything, A, B)
    for got, wanted in zip((value.detach(), A.grad, B.grad), expected, strict=True):
        assert torch.equal(got, wanted)


def test_parameters_and_deepcopy() -> None:
    A, B = sample()
    module = torch.nn.ParameterList([A, B])
    copied = copy.deepcopy(module)
    everything(*copied).backward()
    _, of_A, of_B = value_and_gradients(everything, A, B)
    assert torch.equal(copied[0].grad, of_A) and torch.equal(copied[1].grad, of_B)
    assert module[0].grad is None


def test_meta_tensors() -> None:
    A, B = (X.to("meta") for X in sample())
    assert subspan.principal_angles(A, B).shape == (4, 2)
    assert subspan.subspace_distance(A, B, pairwise=True).shape == (4, 4)
    assert [x.shape for x in subspan.small_svd(A)] == [(4, 9, 3), (4, 3), (4, 3, 3)]


# --- in torch operations alone ----------------------------------------------------------------------------------------


def many_results() -> dict[str, Tensor]:
    """Of points of every kind, those that are delicate among them."""
    results: dict[str, Tensor] = {}
    points = {
        "generic": sample(),
        "small angles": tuple(X[None] for X in pair(1, 20, (1e-11, 1e-6, 0.5, 1.4))),
        "nearly right": tuple(X[None] for X in pair(2, 20, (0.1, 1.5707, 1.570796, 1.57079632))),
        "repeated": tuple(X[None] for X in pair(3, 12, (0.3, 0.3, 0.3), condition=20)),
        "p < q": tuple(X[None] for X in pair(4, 12, (0.3, 0.9), 2, 4, condition=5)),
        "huge and tiny": (1e200 * normal(5, 2, 8, 2), 1e-200 * normal(6, 2, 8, 3)),
    }
    A, B = pair(7, 9, (0.2, 0.7, 1.0))
    dependent = torch.stack([A[:, 0], -2 * A[:, 0], A[:, 2]], -1)
    points |= {
        "dependent": (dependent[None], B[None]),
        "of a zero column": ((A * torch.tensor([0, 1, 1]))[None], B[None]),
    }
    spoiled = normal(8, 3, 9, 2)
    spoiled[1, 4, 0] = float("nan")
    points["NaN"] = (spoiled, normal(9, 3, 9, 2))
    for name, (left, right) in points.items():
        for pairwise in (False, True):
            leaves = [X.clone().requires_grad_() for X in (left, right)]
            angles, info = subspan.principal_angles(*leaves, pairwise=pairwise, return_info=True)
            results[f"{name} {pairwise} angles"], results[f"{name} {pairwise} info"] = angles.detach(), info
            for metric in METRICS:
                value = subspan.subspace_distance(*leaves, metric, squared=True, pairwise=pairwise)
                if metric == "martin" and name in ("dependent", "of a zero column"):
                    continue  # infinite, or the logarithm of a rounding error
                results[f"{name} {pairwise} {metric}"] = value.detach()
                if name in ("huge and tiny", "nearly right") or metric in ("asimov", "spectral", "gap"):
                    continue
                gradients = torch.autograd.grad(value.sum(), leaves)
                results |= {f"{name} {pairwise} {metric} gradient {i}": g for i, g in enumerate(gradients)}
    return results


@pytest.mark.no_sanitizer
def test_without_kernels(tmp_path: Path) -> None:
    """The torch operations that stand in for kernels give the same, where ranks are short too."""
    script = "import sys, torch; sys.path.insert(0, sys.argv[1]); import test_angle_calls as t; "
    script += "torch.save(t.many_results(), sys.argv[2])"
    environment = os.environ | {"SUBSPAN_DISABLE": "1"}
    file = tmp_path / "results.pt"
    subprocess.run([sys.executable, "-c", script, str(Path(__file__).parent), str(file)], check=True, env=environment)
    without, with_kernels = torch.load(file), many_results()
    assert without.keys() == with_kernels.keys()
    for name, got in without.items():
        expected = with_kernels[name]
        if not got.is_floating_point():
            assert torch.equal(got, expected), name
            continue
        assert torch.equal(got.isnan(), expected.isnan()), name
        got, expected = got.nan_to_num(), expected.nan_to_num()
        scale = max(largest(expected), 1.0)
        bound = 20 * angle_bound(20) * scale
        if "nearly right" in name and "martin" in name:
            bound = 1e-4 * scale  # the cosine of the last angle has seven digits
        assert largest(got - expected) <= bound, (name, got, expected)


def test_reading_the_same_array_twice() -> None:
    """With and without a gradient, in pairs and pairwise."""
    A = normal(10, 4, 9, 3) @ invertible(1, 3, 3)
    for pairwise in (False, True):
        leaf = A.clone().requires_grad_()
        value = subspan.subspace_distance(leaf, leaf, squared=True, pairwise=pairwise)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        first, second = (A.clone().requires_grad_() for _ in range(2))
        parts = torch.autograd.grad(
            subspan.subspace_distance(first, second, squared=True, pairwise=pairwise).sum(), (first, second)
        )
        assert largest(gradient - sum(parts)) <= 1e-12 * max(1.0, largest(gradient))
        assert largest(value.diagonal() if pairwise else value) <= unit(DOUBLE) ** 2 * 100
