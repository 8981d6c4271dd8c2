"""What the maps of the Grassmann manifold promise beside their values: orthonormality, isometry, inverses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import subspan
from grassmann_rows import basis, tangent
from op_row import same
from sample_arrays import normal
from subspan.reference import grassmann as reference

DOUBLE = torch.float64
EPS = torch.finfo(DOUBLE).eps
SHAPES = [(60, 4), (20, 1), (9, 6), (5, 5), (2500, 3), (3, 40, 7)]


def projector(X: Any) -> Tensor:
    X = torch.as_tensor(X).double()
    return X @ X.mT


def orthonormality(X: Tensor) -> float:
    return float((X.double().mT @ X.double() - torch.eye(X.shape[-1])).abs().max())


def frame(seed: int, n: int, k: int, angles: list[float]) -> tuple[Tensor, Tensor]:
    """X (n, k) and a tangent vector with the given singular values, n >= 2k."""
    Q = torch.linalg.qr(normal(seed, n, 2 * k)).Q
    turn, other = (torch.linalg.qr(normal(seed + i, k, k)).Q for i in (1, 2))
    return Q[:, :k] @ turn, (Q[:, k:] * torch.tensor(angles, dtype=DOUBLE)) @ other @ turn


# --- exp ---


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("angle", [0.0, 1e-6, 1e-2, 1.0, 3.0])
def test_exp_is_orthonormal(shape: tuple[int, ...], angle: float) -> None:
    X = basis(1, *shape)
    D = tangent(2, X, angle)
    D[..., shape[-1] // 2] = D[..., 0]  # rank deficient from three columns on
    moved = subspan.grassmann_exp(X, D)
    assert orthonormality(moved) <= 1e-15 * math.sqrt(shape[-2]) + 8 * shape[-1] * EPS * max(angle, 1)
    expected = torch.from_numpy(reference.grassmann_exp(X.numpy(), D.numpy()))
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-14)
    single = subspan.grassmann_exp(X.float(), D.float())
    assert orthonormality(single) < 6e-7
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=4e-7)
    rows = subspan.grassmann_exp(X.mT.contiguous(), D.mT.contiguous(), layout="rows")
    same(rows.mT.contiguous(), moved, "rows")


@pytest.mark.parametrize("angle", [1e-9, 0.3, 1.0, math.pi / 2, 3.0, 10.0, 100.0, 1000.0])
def test_exp_of_one_vector_is_a_circle(angle: float) -> None:
    X, D = torch.tensor([[1.0], [0.0]], dtype=DOUBLE), torch.tensor([[0.0], [angle]], dtype=DOUBLE)
    moved = subspan.grassmann_exp(X, D)
    assert abs(float(moved[0]) - math.cos(angle)) < 4 * EPS * max(1, angle)
    assert abs(float(moved[1]) - math.sin(angle)) < 4 * EPS * max(1, angle)


def test_exp_where_values_cannot_be_read() -> None:
    """In a gradient under vmap the number of doublings is fixed: enough for 512 radians, and NaN beyond."""
    X, D = frame(1, 12, 3, [0.3, 0.0, 1.0])
    D = D * torch.tensor([0.0, 1.0, 20.0, 400.0, 1000.0], dtype=DOUBLE)[:, None, None]
    moved = torch.func.vmap(lambda d: torch.func.grad(lambda e: subspan.grassmann_exp(X, e).sum())(d))(D)
    assert moved[:4].isfinite().all() and moved[4].isnan().all()
    leaf = D.clone().requires_grad_()
    (expected,) = torch.autograd.grad(subspan.grassmann_exp(X, leaf).sum(), leaf)
    torch.testing.assert_close(moved[:3], expected[:3], rtol=1e-11, atol=1e-11)


# --- transport ---


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("angle", [0.0, 1e-6, 1.0, 3.0])
def test_transport_is_an_isometry_between_tangent_spaces(shape: tuple[int, ...], angle: float) -> None:
    X = basis(1, *shape)
    D, V, W = tangent(2, X, angle), tangent(3, X, 1.0), tangent(4, X, 1.0)
    Y = subspan.grassmann_exp(X, D)
    moved_v, moved_w = (subspan.grassmann_transport(X, D, vector) for vector in (V, W))
    inner = (moved_v.mT @ moved_w).diagonal(dim1=-2, dim2=-1).sum(-1)
    torch.testing.assert_close(inner, (V.mT @ W).diagonal(dim1=-2, dim2=-1).sum(-1), rtol=0, atol=1e-14)
    assert float((Y.mT @ moved_v).abs().max()) < 1e-14
    velocity = subspan.grassmann_transport(X, D, D)  # of the geodesic, which comes back by its opposite
    torch.testing.assert_close(subspan.grassmann_exp(Y, -velocity), X, rtol=0, atol=2e-14)
    torch.testing.assert_close(subspan.grassmann_transport(Y, -velocity, moved_v), V, rtol=0, atol=2e-14)


def test_velocity_is_the_derivative_of_the_geodesic() -> None:
    X, D = frame(3, 20, 3, [0.4, 0.9, 0.9])
    step = 1e-6
    ends = [subspan.grassmann_exp(X, (1 + sign * step) * D) for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close(subspan.grassmann_transport(X, D, D), slope, rtol=0, atol=1e-8)


# --- log ---

ANGLES = [
    [0.0, 0.0, 0.0],
    [1e-11, 1e-7, 1e-3],
    [1e-9, 0.5, 1.4],
    [0.7, 0.7, 0.7],
    [0.0, 0.7, 0.7],
    [math.pi / 4, 1.0, 1.57],
]


@pytest.mark.parametrize("angles", ANGLES, ids=str)
def test_log_inverts_exp(angles: list[float]) -> None:
    X, D = frame(1, 50, 3, angles)
    turned = torch.linalg.qr(normal(9, 3, 3)).Q  # another basis of the same subspace
    Y = subspan.grassmann_exp(X, D) @ turned
    log = subspan.grassmann_log(X, Y)
    # The basis-free angles are exact to 1e-15; a rotation of equal angles near pi/2 is lost as 1 / cos.
    near = 1e-15 / math.cos(max(angles))
    torch.testing.assert_close(log, D, rtol=0, atol=1e-14 + 10 * near)
    torch.testing.assert_close(projector(subspan.grassmann_exp(X, log)), projector(Y), rtol=0, atol=2e-15 * 7)
    assert float((X.mT @ log).abs().max()) < 2e-15 * 3
    numpy = subspan.grassmann_log(X.numpy(), Y.numpy())
    assert isinstance(numpy, np.ndarray)
    np.testing.assert_allclose(numpy, D.numpy(), rtol=0, atol=1e-14 + 10 * near)
    for rows in (subspan.grassmann_log(X.mT, Y.mT, layout="rows"),):
        torch.testing.assert_close(rows.mT, log, rtol=0, atol=1e-15 + near)
    single = subspan.grassmann_log(X.float(), Y.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), D, rtol=0, atol=4e-7 / math.cos(max(angles)))


def test_log_is_the_reference() -> None:
    X, Y = basis(1, 4, 30, 5), basis(2, 30, 5)
    log = subspan.grassmann_log(X, Y)
    expected = reference.grassmann_log(X.numpy(), Y.numpy())
    np.testing.assert_allclose(log.numpy(), expected, rtol=0, atol=1e-11)  # the reference inverts X^T Y
    norms = torch.linalg.matrix_norm(log)
    angles = torch.linalg.svdvals(X.mT @ Y).clamp(max=1).acos()
    torch.testing.assert_close(norms, torch.linalg.vector_norm(angles, dim=-1), rtol=1e-13, atol=0)


def test_log_at_a_right_angle_is_one_of_the_shortest() -> None:
    X, D = frame(2, 9, 3, [math.pi / 2, math.pi / 2, 0.3])
    Y = subspan.grassmann_exp(X, D)
    for log in (subspan.grassmann_log(X, Y), torch.from_numpy(subspan.grassmann_log(X.numpy(), Y.numpy()))):
        expected = torch.tensor([math.pi / 2, math.pi / 2, 0.3], dtype=DOUBLE)
        torch.testing.assert_close(torch.linalg.svdvals(log), expected, rtol=0, atol=1e-14)
        torch.testing.assert_close(projector(subspan.grassmann_exp(X, log)), projector(Y), rtol=0, atol=1e-14)
    leaves = [X.requires_grad_(), Y.requires_grad_()]
    gradients = torch.autograd.grad(subspan.grassmann_log(*leaves).square().sum(), leaves)
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("angles", [*ANGLES[:5], [0.2, 0.5, 1.3]], ids=str)
def test_log_derivatives(angles: list[float]) -> None:
    X, D = frame(4, 8, 3, angles)
    Y = (subspan.grassmann_exp(X, D) @ torch.linalg.qr(normal(9, 3, 3)).Q).requires_grad_()
    inputs = (X.clone().requires_grad_(), Y.detach().clone().requires_grad_())
    assert torch.autograd.gradcheck(subspan.grassmann_log, inputs, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(subspan.grassmann_log, inputs, atol=1e-6)


def test_log_gradient_of_the_squared_distance() -> None:
    """1/2 d^2 has the gradient -log, so that a step along it arrives."""
    X, Y = basis(1, 20, 4).requires_grad_(), basis(2, 20, 4)
    log = subspan.grassmann_log(X, Y)
    (gradient,) = torch.autograd.grad(log.square().sum() / 2, X)
    along = X.detach() @ (X.detach().mT @ gradient)
    torch.testing.assert_close(gradient - along, -log.detach(), rtol=0, atol=1e-12)


@pytest.mark.no_sanitizer
@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")
def test_log_under_transforms() -> None:
    X, Y = basis(1, 3, 10, 2), basis(2, 3, 10, 2)
    leaf = X.clone().requires_grad_()
    expected = torch.autograd.grad(subspan.grassmann_log(leaf, Y).sin().sum(), leaf)[0]
    mapped = torch.func.vmap(torch.func.grad(lambda x, y: subspan.grassmann_log(x, y).sin().sum()))(X, Y)
    torch.testing.assert_close(mapped, expected, rtol=0, atol=1e-13)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, y: subspan.grassmann_log(x, y).sin().sum(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(leaf, Y), leaf)[0], expected, rtol=0, atol=1e-13)
    torch._dynamo.reset()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same(subspan.grassmann_log(X.float(), Y.float()), subspan.grassmann_log(X.float(), Y.float()), "autocast")


# --- means ---


def cluster(seed: int, m: int, n: int, k: int, spread: float) -> Tensor:
    """m bases around one, each in coordinates of its own."""
    X = basis(seed, n, k)
    D = tangent(seed + 1, X.expand(m, n, k), spread)
    return subspan.grassmann_exp(X, D) @ torch.linalg.qr(normal(seed + 2, m, k, k)).Q


@pytest.mark.parametrize(("m", "n", "k"), [(7, 20, 3), (3, 50, 2), (5, 6, 1), (1, 9, 4), (2, 8, 8)])
def test_karcher_mean_is_stationary(m: int, n: int, k: int) -> None:
    bases = torch.stack([cluster(1, m, n, k, 0.5), cluster(9, m, n, k, 0.01)])
    weights = normal(5, 2, m).abs() + 0.1
    mean = subspan.karcher_mean(bases, weights)
    assert mean.shape == (2, n, k) and orthonormality(mean) < 1e-14
    logs = subspan.grassmann_log(mean[:, None], bases)
    share = weights / weights.sum(-1, keepdim=True)
    assert float((logs * share[..., None, None]).sum(1).abs().max()) < 2e-14
    numpy = subspan.karcher_mean(bases.numpy(), weights.numpy())
    torch.testing.assert_close(projector(numpy), projector(mean), rtol=0, atol=1e-13)
    rows = subspan.karcher_mean(bases.mT, weights, layout="rows")
    torch.testing.assert_close(projector(rows.mT), projector(mean), rtol=0, atol=1e-13)
    single = subspan.karcher_mean(bases.float(), weights.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(projector(single), projector(mean), rtol=0, atol=2e-6)


def test_karcher_mean_of_two_is_the_middle_of_their_geodesic() -> None:
    X, D = frame(1, 15, 3, [0.2, 0.9, 0.9])
    Y = subspan.grassmann_exp(X, D)
    for share in (0.5, 0.25):
        mean = subspan.karcher_mean(torch.stack([X, Y]), torch.tensor([1 - share, share], dtype=DOUBLE))
        torch.testing.assert_close(projector(mean), projector(subspan.grassmann_exp(X, share * D)), rtol=0, atol=1e-13)
    excluded = subspan.karcher_mean(torch.stack([X, Y]), torch.tensor([1.0, 0.0], dtype=DOUBLE))
    torch.testing.assert_close(projector(excluded), projector(X), rtol=0, atol=1e-13)


def test_karcher_mean_is_differentiable() -> None:
    bases = cluster(3, 4, 7, 2, 0.4).requires_grad_()
    target = projector(basis(8, 7, 2))

    def distance(bases: Tensor) -> Tensor:
        mean = subspan.karcher_mean(bases, iterations=40)
        return (mean @ mean.mT * target).sum()

    (gradient,) = torch.autograd.grad(distance(bases), bases)
    # Along the manifold, where bases stay orthonormal: differences of the value.
    direction = tangent(9, bases.detach(), 1.0)
    ends = [distance(subspan.grassmann_exp(bases.detach(), sign * 1e-5 * direction)) for sign in (1, -1)]
    assert abs(float((gradient * direction).sum() - (ends[0] - ends[1]) / 2e-5)) < 1e-8


@pytest.mark.parametrize(
    ("m", "n", "p", "k"), [(6, 30, 4, None), (3, 40, 3, 5), (9, 8, 3, 8), (2, 30, 2, 4), (2, 5, 2, 1)]
)
def test_flag_mean_is_the_leading_singular_vectors(m: int, n: int, p: int, k: int | None) -> None:
    bases, weights = cluster(1, 2 * m, n, p, 0.8).unflatten(0, (2, m)), normal(3, 2, m).abs() + 0.1
    mean = subspan.flag_mean(bases, k, weights)
    size = k or p
    side = torch.cat([bases[:, i] * weights[:, i, None, None].sqrt() for i in range(m)], -1)
    U = torch.linalg.svd(side, full_matrices=False).U[..., :size]
    for j in range(1, size + 1):  # nested
        torch.testing.assert_close(projector(mean[..., :j]), projector(U[..., :j]), rtol=0, atol=1e-11)
    assert mean.shape == (2, n, size) and orthonormality(mean) < 1e-13
    numpy = subspan.flag_mean(bases.numpy(), k, weights.numpy())
    torch.testing.assert_close(projector(numpy), projector(mean), rtol=0, atol=1e-11)
    rows = subspan.flag_mean(bases.mT, k, weights, layout="rows")
    torch.testing.assert_close(projector(rows.mT), projector(mean), rtol=0, atol=1e-11)


def test_flag_mean_of_mixed_dimensions_and_without_enough_directions() -> None:
    X = basis(1, 9, 3)
    padded = torch.stack([X, torch.cat([X[:, :1], torch.zeros(9, 2)], 1)])
    mean = subspan.flag_mean(padded)
    torch.testing.assert_close(projector(mean[:, :1]), projector(X[:, :1]), rtol=0, atol=1e-13)
    torch.testing.assert_close(projector(mean), projector(X), rtol=0, atol=1e-13)
    more = subspan.flag_mean(torch.stack([X, X]), 5)
    assert orthonormality(more) < 1e-13
    torch.testing.assert_close(projector(more[:, :3]), projector(X), rtol=0, atol=1e-12)


# --- differences ---


@pytest.mark.parametrize(("n", "p", "q"), [(20, 3, 3), (30, 5, 2), (7, 4, 4), (6, 1, 1), (40, 2, 5)])
def test_difference_subspace_is_its_definition(n: int, p: int, q: int) -> None:
    """Eigenvectors of the sum of projections with eigenvalues between 0 and 1, beside those that p - q leave over at 1
    and those of right angles."""
    A, B = basis(1, 2, n, p), basis(2, 2, n, q)
    difference, dimension = subspan.difference_subspace(A, B, return_info=True)
    values, vectors = torch.linalg.eigh(projector(A) + projector(B))
    for i in range(2):
        between = (values[i] > 1e-10) & (values[i] < 1 - 1e-10)
        expected = projector(vectors[i][:, between])
        torch.testing.assert_close(projector(difference[i]), expected, rtol=0, atol=1e-11)
        assert int(dimension[i]) == int(between.sum())
        live = difference[i][:, : int(dimension[i])]
        assert orthonormality(live) < 1e-13 and not difference[i][:, int(dimension[i]) :].any()
    numpy, counted = subspan.difference_subspace(A.numpy(), B.numpy(), return_info=True)
    torch.testing.assert_close(projector(numpy), projector(difference), rtol=0, atol=1e-11)
    assert counted.dtype == np.int32 and counted.tolist() == dimension.tolist()
    rows = subspan.difference_subspace(A.mT, B.mT, layout="rows")
    torch.testing.assert_close(projector(rows.mT), projector(difference), rtol=0, atol=1e-11)
    single = subspan.difference_subspace(A.float(), B.float())
    torch.testing.assert_close(projector(single), projector(difference), rtol=0, atol=1e-4)


def test_difference_subspace_leaves_out_what_is_common() -> None:
    X, D = frame(1, 20, 3, [0.0, 1e-6, 0.8])
    Y = subspan.grassmann_exp(X, D) @ torch.linalg.qr(normal(5, 3, 3)).Q
    difference, dimension = subspan.difference_subspace(X, Y, return_info=True)
    assert int(dimension) == 2
    half = subspan.grassmann_transport(X, D / 2, D)  # tangent at the middle
    U = torch.linalg.svd(half, full_matrices=False).U[:, :2]
    torch.testing.assert_close(projector(difference), projector(U), rtol=0, atol=1e-8)
    nothing, none = subspan.difference_subspace(X, X @ torch.linalg.qr(normal(6, 3, 3)).Q, return_info=True)
    assert int(none) == 0 and not nothing.any()
    fewer = subspan.difference_subspace(X, Y, tol=1e-3, return_info=True)[1]
    assert int(fewer) == 1


def test_second_order_difference_vanishes_along_a_geodesic() -> None:
    X, D = frame(1, 20, 3, [0.3, 0.7, 0.7])
    turn = torch.linalg.qr(normal(5, 3, 3)).Q
    points = [subspan.grassmann_exp(X, t * D) @ turn for t in (0.0, 0.5, 1.0, 0.6)]
    _, dimension = subspan.difference_subspace(points[0], points[2], points[1], order=2, return_info=True)
    assert int(dimension) == 0
    late, dimension = subspan.difference_subspace(points[0], points[2], points[3], order=2, return_info=True)
    assert int(dimension) == 3
    torch.testing.assert_close(
        projector(late), projector(subspan.difference_subspace(points[1], points[3])), rtol=0, atol=1e-12
    )
    assert subspan.difference_subspace(basis(1, 9, 4), basis(2, 9, 3), basis(3, 9, 2), order=2).shape == (9, 2)


# --- all functions that are no registered ops ---


def functions() -> dict[str, tuple[Callable[[Any], Any], Tensor]]:
    """Each as a function of one array of three items."""
    X = cluster(1, 3, 12, 2, 0.3)
    many = cluster(2, 15, 12, 2, 0.3).unflatten(0, (3, 5))
    other = basis(7, 12, 2)

    def like(array: Any, value: Tensor) -> Any:
        return value.to(array.dtype) if isinstance(array, Tensor) else value.numpy().astype(array.dtype)

    return {
        "log": (lambda x: subspan.grassmann_log(x, like(x, other)), X),
        "log of": (lambda x: subspan.grassmann_log(like(x, other), x), X),
        "karcher_mean": (lambda x: subspan.karcher_mean(x, iterations=20), many),
        "flag_mean": (subspan.flag_mean, many),
        "difference": (lambda x: subspan.difference_subspace(x, like(x, other.expand(x.shape[0], 12, 2))), X),
    }


@pytest.mark.parametrize("name", functions())
@pytest.mark.parametrize("kind", ["torch", "numpy"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_stays_in_its_item(name: str, kind: str, value: float) -> None:
    function, array = functions()[name]
    broken = array.clone()
    broken[1].view(-1)[3] = value
    if kind == "numpy":
        clean, spoiled = (torch.from_numpy(function(a.numpy())) for a in (array, broken))
    else:
        clean, spoiled = function(array), function(broken)
    assert spoiled[1].isnan().all()
    torch.testing.assert_close(spoiled[::2], clean[::2], rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", functions())
def test_types_and_inputs(name: str) -> None:
    function, array = functions()[name]
    before = array.clone()
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float16, torch.float32), (DOUBLE, DOUBLE)):
        assert function(array.to(dtype)).dtype == expected
    assert function(array.numpy().astype(np.float32)).dtype == np.float32
    assert function(array[:0]).shape == (0, *function(array).shape[1:])
    same(array, before, "input")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda X: subspan.grassmann_log(X, X[:, :2]), ValueError, "grassmann_log: Y: expected .*, got"),
        (lambda X: subspan.grassmann_log(X, X.numpy()), TypeError, "grassmann_log: Y: expected .*, got"),
        (lambda X: subspan.grassmann_log(X, X, layout="row"), ValueError, "grassmann_log: layout: expected .*, got"),
        (lambda X: subspan.flag_mean(X), ValueError, "flag_mean: bases: expected .*, got"),
        (lambda X: subspan.flag_mean(X[None], 0), ValueError, "flag_mean: k: expected .*, got"),
        (lambda X: subspan.flag_mean(X[None], 4), ValueError, "flag_mean: k: expected .*, got"),
        (lambda X: subspan.flag_mean(X[None], None, -X[:1, 0]), ValueError, "flag_mean: weights: expected .*, got"),
        (lambda X: subspan.karcher_mean(X[None], X[:2, 0]), ValueError, "karcher_mean: weights: expected .*, got"),
        (lambda X: subspan.karcher_mean(X[None], iterations=0), ValueError, "karcher_mean: iterations: expected"),
        (lambda X: subspan.karcher_mean(X[None], tol=-1.0), ValueError, "karcher_mean: tol: expected .*, got"),
        (lambda X: subspan.karcher_mean(X[None].mT), ValueError, "karcher_mean: bases: expected .*, got"),
        (lambda X: subspan.difference_subspace(X, X[:4]), ValueError, "difference_subspace: B: expected .*, got"),
        (lambda X: subspan.difference_subspace(X, X, order=3), ValueError, "difference_subspace: order: expected 1"),
        (lambda X: subspan.difference_subspace(X, X, order="1"), ValueError, "difference_subspace: order: expected 1"),
        (lambda X: subspan.difference_subspace(X, X, order=2), ValueError, "difference_subspace: middle: expected a"),
        (lambda X: subspan.difference_subspace(X, X, X), ValueError, "difference_subspace: middle: expected None"),
        (lambda X: subspan.difference_subspace(X, X, tol=-1.0), ValueError, "difference_subspace: tol: expected"),
    ],
)
def test_bad_input(call: Callable[[Tensor], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(basis(1, 6, 3).abs())
